"""The demo as a user runs it, in a workspace that holds only what is committed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import environment

# What the committed model gets right; another CPU's rounding must not change a prediction.
CORRECT = {"match": 1189, "mismatch": 1157}
ROWS = 1200
COMMITTED = (
    "models/demo/pytorch.model-demo.bin",
    "models/demo/model_config.json",
    "models/demo/spm.model",
    "data/demo/MNLI/dev_matched.tsv",
    "data/demo/MNLI/dev_mismatched.tsv",
)


def copy_demo(workspace: Path) -> None:
    for name in COMMITTED:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, workspace / name)


def invoke(workspace: Path, *arguments: str) -> str:
    settings = {**environment(), "INVOKE_WORKSPACE": str(workspace), "INVOKE_STAGES_PYTHON": sys.executable}
    command = [sys.executable, "-m", "invoke", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(name="workspace", scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("demo")
    copy_demo(workspace)
    invoke(workspace, "demo")
    return workspace


@pytest.mark.parametrize("version", CORRECT)
def test_exact_counts(workspace: Path, version: str) -> None:
    results = workspace / "results/demo/cpu"
    found = json.loads((results / f"eval_bs8_{version}.json").read_text())
    assert (found["correct"], found["rows"], found["nan_rows"]) == (CORRECT[version], ROWS, 0)
    assert found["accuracy"] >= 0.90
    lines = (results / f"eval_bs8_{version}.txt").read_text().splitlines()
    assert lines == sorted(lines)
    assert f"accuracy = {CORRECT[version] / ROWS}" in lines and f"eval_samples = {ROWS}" in lines
    assert sum(counts["rows"] for counts in found["genres"].values()) == ROWS and len(found["genres"]) == 5


def test_table_and_second_run(workspace: Path) -> None:
    report = (workspace / "results/demo/cpu/report.md").read_text()
    for version, correct in CORRECT.items():
        assert f"{'M' if version == 'match' else 'MM'}={100 * correct / ROWS:.2f} ({correct}/{ROWS})" in report
    assert report.count(" on cpu |") == 3  # one accuracy cell, two of throughput
    again = invoke(workspace, "demo")
    assert "running: " not in again and again.count("up to date") >= 9
    assert report in again
