"""The CI image on a real engine: whole runs in it, cut off from everything, by the commands of our documentation.

One build serves all tests but the last. CANN in it is a stand-in (tests/fakes), ATC's Python and packages are real.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deberta.core import records
from deberta.host.images import build, ci, definition, pins
from deberta.host.images.ci import YAML
from tests import fake_cann
from tests.container import container_helpers as helpers
from tests.container.conftest import CANN_AT, one_at_a_time
from tests.container.container_helpers import CALLER
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import copy_demo

NAME = "deberta-ci:1"  # as in the documentation
OPTIONS = "--version match --limit 16 --bs 1 --loops 5"
PLANTED = "planted-proxy.invalid"
STAND_IN = f"{CANN_AT}/with-stages"  # runs the stand-in of msame, which needs onnxruntime
# As the documentation's command, which finds it made.
EVALUATE = ("evaluate", "--bs", "1", "--version", "match", "--limit", "16")


@dataclass(frozen=True)
class Built:
    """`said`: by the command that built it."""

    client: Any
    project: Path
    said: str

    def run(self, workspace: Path, *arguments: str, **options: Any) -> tuple[int, str]:
        """Exit code and output of a container with the demo's inputs mounted, without a network."""
        mounted = {str(workspace): {"bind": "/workspace", "mode": "rw"}}
        made = self.client.containers.create(
            NAME,
            list(arguments),
            volumes=mounted,
            network_mode="none",
            labels={definition.LABEL: "container"},
            **options,
        )
        try:
            made.start()
            code = int(made.wait(timeout=300)["StatusCode"])
            return code, made.logs().decode()
        finally:
            made.remove(force=True)


@pytest.fixture(scope="module")
def built(
    project: Path,
    has_cann: str,
    engine_client: Any,
    build_settings: dict[str, str],
    locks: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Built]:
    """Of a copy of the project with CANN's stand-in in the compile image's base, and an msame; built once."""
    folder = tmp_path_factory.mktemp("ci")
    copy = shutil.copytree(project, folder / "project")
    (copy / pins.MSAME).parent.mkdir(exist_ok=True)
    shutil.copy(fake_cann.install(folder / "msame", at=CANN_AT, python=STAND_IN) / fake_cann.MSAME, copy / pins.MSAME)
    values = YAML.safe_load((copy / "invoke.yaml").read_text(encoding="utf-8"))
    values["images"]["no_proxy"] = PLANTED
    (copy / "invoke.yaml").write_text(YAML.safe_dump(values), encoding="utf-8")
    helpers.invoke(copy, build_settings, "images", "--lock")
    with one_at_a_time(locks, "compile"):
        helpers.invoke(copy, build_settings, "images", "--stage", "compile", "--base", f"compile={has_cann}")
    said = helpers.invoke(copy, build_settings, "ci-image", "--tag", NAME)
    yield Built(engine_client, copy, said)
    tags = re.findall(r"done: (deberta-ascend/ci:\w+)", said)
    for tag in (*tags, NAME):
        engine_client.images.remove(tag)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo(tmp_path_factory.mktemp("ci-workspace") / "work")


def demo(folder: Path) -> Path:
    """A workspace of somebody who is not root, with what is committed of the demo."""
    copy_demo(folder)
    helpers.own(folder, CALLER)
    return folder


def as_caller(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line of the documentation in a shell here, by the workspace's owner as far as `id` knows."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/id").write_text(f'#!/bin/sh\n[ "$1" = -u ] && echo {CALLER[0]} || echo {CALLER[1]}\n')
    (folder / "bin/id").chmod(0o755)
    variables = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    variables.update(CI_IMAGE=NAME, WORKSPACE=str(folder / "work"), PROFILE="demo", BACKEND="cpu", OPTIONS=OPTIONS)
    summary = folder / "summary.md"
    summary.touch()
    os.chown(summary, *CALLER)
    variables.update(REQUIRE="checked", CI="true", GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary))
    return subprocess.run(["sh", "-ec", line], cwd=folder, env=variables, capture_output=True, text=True, check=False)


def test_what_is_missing_is_said(built: Built, tmp_path: Path) -> None:
    """With nothing in the workspace, and with a workspace that its user may not write to."""
    code, said = built.run(tmp_path, "export-onnx", "--profile", "demo", user="0:0")
    assert code == 3 and "models/demo/pytorch.model-demo.bin" in said and "Traceback" not in said
    folder = demo(tmp_path / "work")
    code, said = built.run(folder, "export-onnx", "--profile", "demo")  # by 1000:1000
    assert code not in (0, 1) and "error: " in said and "Traceback" not in said


def test_it_says_what_it_holds(built: Built) -> None:
    labels = built.client.images.get(NAME).labels
    assert labels[ci.HOLDS] == '["cpu","cann","msame"]' and "not for redistribution" in labels[ci.NOTICE]
    assert "holds: cpu, cann, msame; not for redistribution: holds CANN and msame" in built.said
    assert built.said.count("not pinned: base sha256:") >= 1 and f"named it {NAME}" in built.said
    parts = json.loads(labels[ci.PARTS])
    assert parts["export"]["base"].startswith("sha256:") and "docker/compile.Dockerfile" in parts["compile"]


def test_nothing_of_this_machine_is_in_it(built: Built, workspace: Path, build_settings: dict[str, str]) -> None:
    looked = f"ls -d /build /out; grep -rl {PLANTED} /opt/deberta-ascend /etc; find / -xdev -name pip.conf"
    _, said = built.run(workspace, "-c", f"({looked}) 2>/dev/null", entrypoint="/bin/sh")
    assert said == ""
    variables = built.client.images.get(NAME).attrs["Config"]["Env"]
    text = json.dumps([built.client.images.get(NAME).history(), variables])
    assert not [value for value in (PLANTED, *build_settings.values()) if value and value in text]


def test_it_is_found_again_and_by_clean(built: Built, build_settings: dict[str, str]) -> None:
    again = helpers.invoke(built.project, build_settings, "ci-image", "--dry")
    (tag,) = re.findall(r"up to date: (deberta-ascend/ci:\w{20})", again)
    doomed = helpers.invoke(built.project, build_settings, "clean", "--images", "--dry")
    assert re.search(rf"would remove image ({re.escape(tag)}|{NAME})\n", doomed)
    log = (built.project / build.LOGS / "ci.log").read_text(encoding="utf-8")
    (label,) = set(re.findall(rf'LABEL {build.BUILD}="(\w+)"', log))
    carry = {"label": f"{build.BUILD}={label}"}
    assert built.client.api.images(all=True, filters=carry) == [], "builder stages are left"
    (built.project / "deberta/host/plan/evaluation.py").open("a").write("# changed\n")
    assert f"would build {definition.REPOSITORY}/ci:" in helpers.invoke(
        built.project, build_settings, "ci-image", "--dry"
    )


def test_atc_and_msame_run_in_it(built: Built, workspace: Path) -> None:
    """ATC's stand-in by Python 3.9 of the compile image, msame's by the stages' own; any user; a read-only root."""
    code, said = built.run(
        workspace, *EVALUATE, "--profile", "demo", "--backend", "ascend", "--soc-version", "Ascend310P3",
        user="{}:{}".format(*CALLER), read_only=True, tmpfs={"/tmp": ""},
    )  # fmt: skip
    assert code == 0 and "on ascend: " in said and "installing" not in said, said
    record = records.read(workspace / "models/demo/ascend/deberta_bs1.om.record.json")
    assert record is not None and record.parameters["cann"] == fake_cann.VERSION
    assert helpers.owners(workspace / "results") == {CALLER}
    tried = "python3 -c 'import sys, scipy.linalg, ssl, ctypes; print(sys.version)'"
    code, said = built.run(workspace, "-c", f". {ci.SET_ENV}; {tried}", entrypoint="/bin/bash")
    assert code == 0 and said.startswith("3.9."), said


def test_with_no_folder_to_write_to_but_the_workspace(built: Built, workspace: Path) -> None:
    code, said = built.run(
        workspace, *EVALUATE, "--profile", "demo", "--backend", "cpu", user="{}:{}".format(*CALLER), read_only=True
    )
    assert code == 0 and "on cpu: " in said, said


def test_the_documentations_command(built: Built, workspace: Path) -> None:
    page = (REPOSITORY / "docs/ci.md").read_text(encoding="utf-8")
    line = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    done = as_caller(line, workspace.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((workspace / "results/demo/cpu/report_limit16.json").read_text(encoding="utf-8"))
    assert report["verdict"]["verdict"] == "checked" and report["body"]["limit"] == 16


def test_githubs_job(built: Built, workspace: Path) -> None:
    job = YAML.safe_load((REPOSITORY / "docs/ci/github-actions.yml").read_text(encoding="utf-8"))["jobs"]["acceptance"]
    done = as_caller(job["steps"][0]["run"], workspace.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "::group::" in done.stderr and "checked" in (workspace.parent / "summary.md").read_text(encoding="utf-8")


def test_gitlabs_job(built: Built, workspace: Path) -> None:
    """As its runner does it: a shell in the image, the job's folder and the variables given."""
    settings = YAML.safe_load((REPOSITORY / "docs/ci/gitlab-ci.yml").read_text(encoding="utf-8"))
    job, variables = settings["acceptance"], {**settings["variables"], "CI_PROJECT_DIR": "/workspace/job"}
    variables.update(PROFILE="demo", BACKEND="cpu", OPTIONS=OPTIONS)
    user = "{}:{}".format(*CALLER)
    (workspace / "job").mkdir()
    os.chown(workspace / "job", *CALLER)
    for lines in (job["script"], job["after_script"]):
        given = {"environment": variables, "entrypoint": "/bin/sh", "user": user}
        code, said = built.run(workspace, "-ec", "\n".join(lines), **given)
        assert code == 0, said
    assert {path.suffix for path in (workspace / "job/report").iterdir()} >= {".html", ".json"}


def test_without_cann(project: Path, engine_client: Any, build_settings: dict[str, str], tmp_path: Path) -> None:
    name = "deberta-ascend-test/ci:cpu"
    said = helpers.invoke(project, build_settings, "ci-image", "--tag", name)
    try:
        assert f"holds: cpu; {ci.FREE}" in said
        assert "without CANN: for the cpu backend only: the compile image needs CANN" in said
        mounted = {str(demo(tmp_path / "work")): {"bind": "/workspace", "mode": "rw"}}
        line = ["preprocess", "--bs", "8", "--version", "match", "--limit", "8", "--profile", "demo"]
        printed = engine_client.containers.run(
            name, line, remove=True, network_mode="none", volumes=mounted, user="{}:{}".format(*CALLER), stderr=True
        )
        assert b"done in" in printed and (tmp_path / "work/data/demo/pre_mnli_bs8_limit8/match").is_dir()
    finally:
        for tag in (name, *re.findall(r"(?:done|up to date): (deberta-ascend/ci:\w+)", said)):
            engine_client.images.remove(tag)
