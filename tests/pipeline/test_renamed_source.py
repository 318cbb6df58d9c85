"""Records name a stage by an id of its own and digest its code apart from file names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests import pipeline_helpers as helpers
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace, steps_that_ran

EVALUATE = ("evaluate", "--bs", "4", "--version", "match")


def evaluate(project: Path, workspace: Workspace) -> str:
    """The evaluation, by the code in `project`."""
    command = [sys.executable, "-m", "invoke", "--search-root", str(project), *workspace.arguments(*EVALUATE)]
    variables = {**helpers.environment(), "PYTHONPATH": str(project)}
    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr + done.stdout


def test_artifacts_stay_fresh_when_source_files_get_other_names(evaluated: Workspace, tmp_path: Path) -> None:
    workspace, project = evaluated.copy(tmp_path / "workspace"), tmp_path / "project"
    shutil.copytree(REPOSITORY / "deberta", project / "deberta", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*REPOSITORY.glob("requirements-*.lock"), REPOSITORY / "tasks.py", REPOSITORY / "invoke.yaml"):
        shutil.copy(path, project)
    workspace.succeed(*EVALUATE)
    package = project / "deberta"
    (package / "core/machine.py").rename(package / "core/computer.py")
    (package / "stages/inference/postprocess.py").rename(package / "stages/inference/counting.py")
    changed = 0
    for path in package.rglob("*.py"):
        text = path.read_text()
        moved = text.replace("deberta.core.machine", "deberta.core.computer")
        moved = moved.replace("stages.inference.postprocess", "stages.inference.counting")
        moved = re.sub(r"(?m)^(from deberta\.core import .*)\bmachine\b", r"\1computer as machine", moved)
        moved = re.sub(
            r"(?m)^(from deberta\.stages\.inference import .*)\bpostprocess\b", r"\1counting as postprocess", moved
        )
        path.write_text(moved)
        changed += moved != text
    assert changed > 5
    assert steps_that_ran(evaluate(project, workspace)) == []
    counting = package / "stages/inference/counting.py"
    counting.write_text(counting.read_text() + "\nX = 1\n")
    again = evaluate(project, workspace)
    assert steps_that_ran(again) == ["postprocess bs=4 match"]
    [reason] = [line for line in again.splitlines() if "running: its code changed (" in line]
    assert "deberta/stages/inference/counting.py" in reason
