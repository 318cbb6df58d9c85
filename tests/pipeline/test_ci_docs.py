"""The CI examples: their commands, run here as they stand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deberta.host.images.ci import YAML
from tests.bootstrap_helpers import script
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import copy_demo, environment

CI = REPOSITORY / "docs/ci"
OPTIONS = "--version match --limit 16 --bs 1 --loops 5"
# Takes the options that the example gives, and runs our command here in the folder that it mounts.
DOCKER = """#!/bin/sh
[ "$1" = run ] || exit 99
shift
while :; do
    case $1 in
    --rm | --read-only) shift ;;
    --network | --tmpfs | --user | --env) shift 2 ;;
    --volume)
        case $2 in *:/workspace) INVOKE_WORKSPACE=${2%:/workspace}; export INVOKE_WORKSPACE ;; esac
        shift 2
        ;;
    deberta-ci:1)
        shift
        for argument; do
            shift
            case $argument in /workspace/*) argument=$INVOKE_WORKSPACE/${argument#/workspace/} ;; esac
            set -- "$@" "$argument"
        done
        exec inv "$@"
        ;;
    *) echo "docker: $1?" >&2; exit 99 ;;
    esac
done
"""


def parsed(name: str) -> dict[Any, Any]:
    return dict(YAML.safe_load((CI / name).read_text(encoding="utf-8")))


class Runner:
    """A CI system's machine: a folder with checkpoint and data, one for a job, and `inv` or `docker` on PATH."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.job, self.bin = folder / "work space", folder / "job", folder / "bin"
        copy_demo(self.workspace)
        self.job.mkdir()
        python, root = shlex.quote(sys.executable), shlex.quote(str(REPOSITORY))
        script(self.bin / "inv", f'#!/bin/sh\ncd {root} && exec {python} -m tests.in_process "$@"\n')

    def run(self, lines: list[str], variables: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        given = {
            **environment(),
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "INVOKE_STAGES_PYTHON": sys.executable,
            "CI_PROJECT_DIR": str(self.job),
            **{name: str(value) for name, value in variables.items()},
            **{"PROFILE": "demo", "BACKEND": "cpu", "OPTIONS": OPTIONS, "WORKSPACE": str(self.workspace)},
        }
        if "INVOKE_WORKSPACE" in given:
            given["INVOKE_WORKSPACE"] = str(self.workspace)
        given.update({"CI": "true", "GITHUB_STEP_SUMMARY": str(self.job / "summary.md")})
        command = ["sh", "-ec", "\n".join(lines)]
        return subprocess.run(command, cwd=self.job, env=given, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(tmp_path_factory.mktemp("ci"))


def test_gitlabs_job(runner: Runner) -> None:
    settings = parsed("gitlab-ci.yml")
    job = settings["acceptance"]
    assert job["image"] == {"name": "$CI_IMAGE", "entrypoint": [""]}
    variables = {**settings["variables"], **job["variables"]}
    done = runner.run(job["script"], {**variables, "GITLAB_CI": "true"})
    assert done.returncode == 0, done.stdout + done.stderr
    starts, ends = (re.findall(rf"\x1b\[0Ksection_{end}:\d+:(\w+)", done.stderr) for end in ("start", "end"))
    assert "export_onnx_any_length" in starts and starts == ends
    assert runner.run(job["after_script"], variables).returncode == 0
    assert job["artifacts"]["when"] == "always"
    kept = [path.name for pattern in job["artifacts"]["paths"] for path in runner.job.glob(pattern)]
    pages = {f"report_limit16.{kind}" for kind in ("html", "md", "json")}
    assert {*pages, "bom_limit16.cdx.json", "junit.xml", "logs"} <= set(kept)
    assert job["artifacts"]["reports"] == {"junit": "junit.xml"}


def test_githubs_job_and_a_failed_gate(runner: Runner) -> None:
    job = parsed("github-actions.yml")["jobs"]["acceptance"]
    run, upload = job["steps"]
    script(runner.bin / "docker", DOCKER)
    in_github = {**job["env"], "GITHUB_ACTIONS": "true"}
    done = runner.run([run["run"]], in_github)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.count("::group::") == done.stderr.count("::endgroup::") > 0 and "\x1b" not in done.stderr
    summary = (runner.job / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### checked: profile demo on cpu\n")
    assert upload["if"] == "always()" and upload["with"]["path"].splitlines() == [
        "${{ env.WORKSPACE }}/junit.xml",
        *(
            f"${{{{ env.WORKSPACE }}}}/results/${{{{ env.PROFILE }}}}/${{{{ env.BACKEND }}}}/{name}"
            for name in ("report*.html", "report*.md", "report*.json", "bom*.json", "baseline*.json", "logs/")
        ),
    ]
    assert 'failures="0"' in (runner.workspace / "junit.xml").read_text(encoding="utf-8")
    # The job ends as the command does: the demo's data is not what its gates know any more.
    data = runner.workspace / "data/demo/MNLI/dev_matched.tsv"
    text = data.read_text(encoding="utf-8")
    data.write_text(text.replace("The ", "This ", 1), encoding="utf-8")
    done = runner.run([run["run"]], job["env"])
    assert done.returncode == 6, done.stdout + done.stderr
    assert "<failure " in (runner.workspace / "junit.xml").read_text(encoding="utf-8")
    assert "dev_matched.tsv" in (runner.workspace / "results/demo/cpu/report_limit16.json").read_text()
    shutil.rmtree(runner.workspace / "models")
    assert runner.run([run["run"]], job["env"]).returncode == 3
