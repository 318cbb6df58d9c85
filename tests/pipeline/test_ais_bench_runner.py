"""The ascend backend with ais_bench in place of msame, as a user runs it, on the local executor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deberta.core import records
from tests import fake_cann
from tests import pipeline_helpers as helpers
from tests.pipeline_helpers import Workspace

RUNNER = ("--backend", "ascend", "--runner", "ais_bench")
EVALUATE = ("evaluate", "--bs", "4", "--version", "match")
PERF = ("perf", "--bs", "4", "--loops", "5")
RESULTS = "results/tiny/ascend"


@pytest.fixture(name="installed", scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = fake_cann.install(tmp_path_factory.mktemp("Ascend"), python=sys.executable)
    fake_cann.add_ais_bench(root, sys.executable)
    return root


@pytest.fixture(name="finished", scope="module")
def _finished(installed: Path, evaluated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = evaluated.copy(tmp_path_factory.mktemp("finished") / "workspace")
    workspace.configure(cann=str(installed / "ascend-toolkit"), msame=str(installed / fake_cann.MSAME))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{(installed / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}")
        workspace.succeed(*EVALUATE, "--backend", "ascend")
    return workspace


@pytest.fixture(name="workspace")
def _workspace(finished: Workspace, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    fake_cann.force(installed)
    monkeypatch.setenv("PATH", f"{(installed / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}")
    return finished.copy(tmp_path / "copy")


FAILURES = {
    "crash=1": (4, "stopped before it wrote its summary"),
    "missing-output": (5, "1 outputs of 3 are missing from"),
    "times=-1": (5, "2 inferences were timed, 3 were asked for"),
    "error-line": (4, "aclrtFree failed"),
    "exit=3": (4, "ais_bench did all its work, but ended with exit code 3"),
}


@pytest.mark.parametrize("forced", FAILURES)
def test_a_run_that_fails_leaves_what_was_there(workspace: Workspace, installed: Path, forced: str) -> None:
    before = {name for name in workspace.files() if "outputs_bs4_om" in name}
    fake_cann.force(installed, ais_bench=forced)
    code, says = FAILURES[forced]
    said = workspace.fail(code, *EVALUATE, *RUNNER)
    assert says in said and f"{RESULTS}/logs/infer_bs4_match.log" in said
    assert {name for name in workspace.files() if "outputs_bs4_om" in name} == before


def test_without_its_packages_nothing_runs(workspace: Workspace, tmp_path: Path) -> None:
    bare = fake_cann.install(tmp_path / "Ascend", python=sys.executable)
    settings = json.loads((workspace.root / "settings.yaml").read_text())
    settings["cann"] = str(bare / "ascend-toolkit")
    (workspace.root / "settings.yaml").write_text(json.dumps(settings))
    assert "no ais_bench and no aclruntime" in workspace.fail(3, *PERF, *RUNNER)
    assert "--runner is for the ascend backend" in workspace.fail(2, *PERF, "--backend", "cpu", "--runner", "msame")
    assert "--runner 'benchmark' is not one of" in workspace.fail(2, *PERF, *RUNNER[:3], "benchmark")


def test_both_runners_agree_and_stand_side_by_side(workspace: Workspace) -> None:
    evaluation = workspace.root / RESULTS / "eval_bs4_match.txt"
    by_msame = evaluation.read_text()
    said = workspace.succeed(*EVALUATE, *RUNNER)
    assert "[infer bs=4 match] running: its tool changed" in said
    assert evaluation.read_text() == by_msame
    assert "up to date" in workspace.succeed("infer", *EVALUATE[1:], *RUNNER)
    [folder] = (workspace.root / RESULTS / "outputs_bs4_om/match").iterdir()
    assert {path.name for path in folder.iterdir()} == {f"input_{index}_output_0.bin" for index in range(3)}
    record = records.read(folder.parent.with_name("match.record.json"))
    assert record is not None and len(record.parameters["aclruntime"]) == 64
    workspace.succeed(*PERF, "--backend", "ascend")
    said = workspace.succeed(*PERF, *RUNNER)
    assert (
        "perf bs=4 match on ascend (ais_bench): " in said
        and "(5 loops only, the guide's run has more, average " in said
    )
    assert f"{RESULTS}/ais_bench_bs4_match.json" in said
    text = workspace.succeed("report", "--backend", "ascend", "-v")
    [row] = [line for line in text.splitlines() if "| tiny bs4 |" in line]
    assert (
        " on ascend, not pinned, " in row and " on ascend (ais_bench), not pinned, 5 loops only |" in row
    )  # nothing pins this CANN
    assert "| 4 | match (ais_bench) | 5 |" in text and "its own throughput" in text


def test_a_dry_run_can_be_pasted(workspace: Workspace) -> None:
    said = workspace.succeed(*EVALUATE, *RUNNER, "--dry").splitlines()
    lines = "\n".join(line for line in said if not line.startswith("soc_version: "))
    shutil.rmtree(workspace.root / RESULTS)
    done = subprocess.run(
        ["bash", "-ec", lines], cwd=workspace.root, capture_output=True, text=True, timeout=helpers.TIMEOUT, check=False
    )
    assert done.returncode == 0, lines + done.stderr
    assert (workspace.root / RESULTS / "eval_bs4_match.txt").read_text().startswith("accuracy = ")
