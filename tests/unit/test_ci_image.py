"""The CI image as data, without an engine: what goes in and what must not, what its tag follows from, its labels."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.host.images import ci, definition, pins
from deberta.host.images.ci import YAML
from deberta.host.images.context import write_context
from deberta.host.images.definition import BuildSettings, Image
from tests.image_helpers import ARCH, bring, elf, make_project
from tests.mnli_helpers import REPOSITORY

TOOLKIT = pins.CANN / f"Ascend-cann-toolkit_5.1.RC2_linux-{ARCH}.run"
PLANTED = {
    "wheelhouse": "/planted-wheels", "index_url": "https://planted-index.invalid", "ca": "/planted-ca.pem",
    "https_proxy": "http://planted-user:planted-word@planted-proxy.invalid",
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What the image takes of the project, with a package of two files; nothing of a user's."""
    project = make_project(tmp_path / "project")
    for name in ("inv", "tasks.py", "LICENSE", "invoke.yaml", "requirements-host.lock", "requirements-cluster.lock"):
        shutil.copy2(REPOSITORY / name, project / name)
    for folder in ("host/__pycache__", "host/plan"):
        (project / "deberta" / folder).mkdir(parents=True)
    (project / "deberta/host/plan/evaluation.py").write_text("STEPS = 1\n")
    (project / "deberta/gates.toml").write_text("[defaults]\n")
    (project / "deberta/host/__pycache__/steps.cpython-311.pyc").write_bytes(b"compiled")
    return project


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def bring_all(project: Path) -> Path:
    bring(project, TOOLKIT, b"#!/bin/sh\n# toolkit", pin=False)
    bring(project, pins.MSAME, elf(0x3E))
    return project


def plan(project: Path, scratch: Path) -> Image:
    return ci.plan(project, ci.parts(project, pins.load(project), ARCH), scratch)


def packed(image: Image) -> dict[str, tuple[int, bytes]]:
    """Name to mode and bytes of the build's context."""
    target = io.BytesIO()
    write_context(target, image, BuildSettings(), "deberta-ascend.build=1")
    target.seek(0)
    with tarfile.open(fileobj=target) as archive:
        return {one.name: (one.mode, file.read()) for one in archive if (file := archive.extractfile(one))}


def change(project: Path, **values: object) -> None:
    path = project / "invoke.yaml"
    path.write_text(YAML.safe_dump({**YAML.safe_load(path.read_text()), **values}))


@pytest.mark.parametrize("brought", [TOOLKIT, pins.MSAME], ids=str)
def test_what_was_brought_is_never_left_out_because_it_is_not_pinned(project: Path, brought: Path) -> None:
    if brought == pins.MSAME:
        bring(project, TOOLKIT, b"#!/bin/sh\n")
    bring(project, brought, b"#!/bin/sh\necho other\n", pin=False)
    with pytest.raises((MissingError, DataError), match="invoke images --lock"):
        ci.parts(project, pins.load(project), ARCH)


def test_without_cann_it_is_for_the_cpu_and_says_so(project: Path, scratch: Path) -> None:
    bring(project, pins.MSAME, elf(0x3E))  # of no use without CANN
    contents = ci.parts(project, pins.load(project), ARCH)
    assert contents.holds == ("cpu",) and f"put {TOOLKIT.name} in docker/cann" in contents.lacks
    image = plan(project, scratch)
    assert image.notes[ci.HOLDS] == '["cpu"]' and image.notes[ci.NOTICE] == ci.FREE
    assert image.base == contents.export.tag and "compile image" not in image.inputs
    content = packed(image)
    assert "project/docker/bin/msame" not in content
    assert YAML.safe_load(content["project/invoke.yaml"][1])["cann"] == ""


def test_with_cann_and_without_msame(project: Path) -> None:
    bring(project, TOOLKIT, b"#!/bin/sh\n")
    contents = ci.parts(project, pins.load(project), ARCH)
    assert contents.holds == ("cpu", "cann") and "put it at docker/bin/msame" in contents.lacks
    assert ci.notice(contents) == "not for redistribution: holds CANN, whose licence does not allow it"


def test_labels_name_the_pins_and_every_part(project: Path, scratch: Path) -> None:
    bring_all(project)
    pins.set_base(project, "compile", f"sha256:{'a' * 64}")
    image = plan(project, scratch)
    said = definition.labels(image)
    assert said[definition.STAGE] == "ci" and said[ci.HOLDS] == '["cpu","cann","msame"]'
    assert said[ci.NOTICE].startswith("not for redistribution: holds CANN and msame")
    parts = json.loads(said[ci.PARTS])
    assert parts["export"]["base"].startswith("python@sha256:") and "requirements-stages.lock" in parts["export"]
    assert parts["compile"][str(TOOLKIT)] == pins.load(project).cann[TOOLKIT.name]
    assert json.loads(said[definition.INPUTS])["docker/bin/msame"] == pins.load(project).msame[ARCH]
    (reason,) = json.loads(said[definition.UNPINNED])
    assert reason.startswith("base sha256:aaa")
    assert YAML.safe_load(packed(image)["project/invoke.yaml"][1])[ci.UNPINNED] == [reason]


CHANGES = [
    ("deberta/host/plan/evaluation.py", "code changed"),
    ("deberta/new.toml", "code changed"),
    ("tasks.py", "tasks.py changed"),
    ("requirements-host.lock", "requirements-host.lock changed"),
    ("requirements-cluster.lock", "requirements-cluster.lock changed"),
    ("requirements-stages.lock", "export image changed, requirements-stages.lock changed"),
    ("requirements-compile.lock", "compile image changed, pins.toml changed"),
    (str(pins.MSAME), "msame changed"),
    ("docker/ci-collect", "ci-collect changed"),
    ("docker/ci.Dockerfile", "ci.Dockerfile changed"),
    ("README.md", ""),
    ("docker/README.md", ""),
    ("deberta/host/__pycache__/steps.cpython-311.pyc", ""),
]


@pytest.mark.parametrize(("file", "said"), CHANGES, ids=[change[0] for change in CHANGES])
def test_a_tag_follows_from_what_goes_in(project: Path, scratch: Path, file: str, said: str) -> None:
    before = plan(bring_all(project), scratch)
    bring(project, Path(file), b"#!/bin/sh\n# other\n")
    after = plan(project, scratch)
    found = definition.changes(before.inputs, after.inputs)
    if file != "docker/ci.Dockerfile" and said and "pins.toml changed" in found and "pins.toml" not in said:
        found.remove("pins.toml changed")  # it records what was brought
    assert ", ".join(sorted(found)) == said
    assert (after.tag == before.tag) == (said == "")


def test_settings_go_in_without_what_is_of_this_machine(project: Path, scratch: Path) -> None:
    plain = plan(bring_all(project), scratch)
    change(
        project,
        images=PLANTED,
        containers={"tmp": "3g"},
        npu={"nodes": "/planted"},
        stages_python="/planted",
        workspace="/planted",
    )
    image = plan(project, scratch)
    assert image.tag == plain.tag, "how a machine reaches packages is no part of an image"
    assert not [name for name, (_, data) in packed(image).items() if b"planted" in data]
    profiles = {"mine": {"checkpoint": "检查点.bin", "labels": ["a", "b", "c"]}}
    change(project, profiles=profiles, executor="docker", profile="mine")
    image = plan(project, scratch)
    assert image.tag != plain.tag
    inside = YAML.safe_load(packed(image)["project/invoke.yaml"][1])
    assert (inside["profile"], inside["profiles"]) == ("mine", profiles)
    assert (inside["executor"], inside["workspace"]) == ("local", "/workspace")
    assert (inside["cann"], inside["msame"]) == ("/opt/deberta-ascend/docker/ci-set-env", "")


def test_gates_of_the_users_own_go_along(project: Path, scratch: Path, tmp_path: Path) -> None:
    for place in ("mine.toml", str(tmp_path / "elsewhere.toml")):
        (project / place).write_text(f"# {place}\n")
        change(project, gates=place)
        content = packed(plan(project, scratch))
        assert content["project/gates.toml"][1].decode() == f"# {place}\n"
        assert YAML.safe_load(content["project/invoke.yaml"][1])["gates"] == "/opt/deberta-ascend/gates.toml"
    (project / place).unlink()
    with pytest.raises(MissingError, match=r"elsewhere\.toml is missing\. Correct gates in invoke\.yaml"):
        plan(project, scratch)


def test_settings_that_cannot_be_read(project: Path, scratch: Path) -> None:
    for text, error in (("a: [", ConfigError), ("- a\n", ConfigError), (None, MissingError)):
        (project / "invoke.yaml").unlink()
        if text:
            (project / "invoke.yaml").write_text(text)
        with pytest.raises(error, match=r"invoke\.yaml"):
            plan(project, scratch)
        (project / "invoke.yaml").touch()


def test_the_context_is_what_runs_and_no_more(project: Path, scratch: Path) -> None:
    content = packed(plan(bring_all(project), scratch))
    assert {name: mode for name, (mode, _) in content.items() if mode == 0o755} == dict.fromkeys(
        (
            *("project/inv", "project/docker/bin/msame", "ci-collect", "install-packages"),
            *(f"project/docker/{name}" for name in ("check-cann", "ci-finish", "ci-inv", "settle")),
        ),
        0o755,
    )
    assert content["requirements.lock"] == content["project/requirements-host.lock"]
    assert {"project/deberta/host/plan/evaluation.py", "project/deberta/gates.toml"} <= set(content)
    for name in content:
        assert "__pycache__" not in name and not name.endswith((".run", "overrides.toml")), name


@pytest.mark.parametrize("name", ["deberta-ci", "deberta-ci:1", "host:5000/a/b-c:1.0", "registry.example/x:A_1"])
def test_names_that_may_be_given(name: str) -> None:
    assert ci.check_name(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a:b:c", "Upper", "a:", "-a", "deberta-ascend/ci:x", "a@sha256:0", "a\n"])
def test_names_that_may_not(name: str) -> None:
    with pytest.raises(ConfigError, match="--tag"):
        ci.check_name(name)
