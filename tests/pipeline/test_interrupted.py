"""A kill between an artifact and its record: every command takes it for an interruption, and a later change for one."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from deberta.core import files
from deberta.core.errors import StageError
from deberta.core.paths import record_of
from deberta.host.report import request
from tests.pipeline_helpers import Workspace, make_small_demo, steps_that_ran

ACCEPT = ("acceptance", "--backend", "cpu", "--version", "match", "--loops", "2", "--bs", "8")
REPORT = ("--backend", "cpu")
LOG = "results/demo/cpu/msame_bs8_match.txt"
JOB = "results/demo/cpu/report_job.json"


@pytest.fixture(name="accepted", scope="module")
def _accepted(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_small_demo(tmp_path_factory.mktemp("accepted"), 24, {"match": (24, 1)})
    workspace.configure(buckets="256")
    workspace.succeed(*ACCEPT)
    return workspace


def replace_unrecorded(path: Path) -> None:
    """What a run does that is killed before its record is written."""
    files.intent_of(path).touch()
    files.write_text(path, path.read_text(encoding="utf-8") + " ")


@pytest.mark.parametrize("name", ("dynamic.onnx", "eval", "log"))
def test_it_is_told_from_a_change(accepted: Workspace, tmp_path: Path, name: str) -> None:
    workspace = accepted.copy(tmp_path / "copy")
    [path] = {
        "dynamic.onnx": [workspace.root / "models/demo/dynamic.onnx"],
        "eval": list((workspace.root / "results/demo/cpu").glob("eval_bs8*match.txt")),
        "log": [workspace.root / LOG],
    }[name]
    content = path.read_bytes()
    if name == "dynamic.onnx":
        with files.new_file(path) as temporary:
            files.intent_of(path).touch()
            temporary.write_bytes(content + b" ")
    else:
        replace_unrecorded(path)
    reason = f"{path.relative_to(workspace.root)} is of a run that did not get to its end"
    assert reason in workspace.succeed("explain", *ACCEPT)
    assert "which is of a run that did not get to its end" in workspace.fail(5, "verify", *REPORT)
    if name != "dynamic.onnx":
        assert f"left out of the report: {reason.replace(' is of', ': it is of')}" in workspace.succeed(
            "report", *REPORT
        )
    assert f"running: {reason}" in workspace.succeed(*ACCEPT)
    assert not files.intent_of(path).exists()
    if name != "log":  # times are new
        assert path.read_bytes() == content
    assert steps_that_ran(workspace.succeed(*ACCEPT)) == ["assess", "render"]

    path.write_bytes(content + b"  ")
    assert "was changed after it was made" in workspace.fail(5, *ACCEPT)
    (workspace.root / record_of(PurePosixPath(path.relative_to(workspace.root)))).unlink()
    if name == "eval":
        assert "was not made here, and is never replaced" in workspace.fail(5, *ACCEPT)
    else:
        assert "was not made here and is " in workspace.succeed(*ACCEPT)
    assert path.read_bytes() == content + b"  "


def test_a_job_of_which_no_report_was_made(
    accepted: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = accepted.copy(tmp_path / "copy")
    before = (workspace.root / JOB).read_bytes()

    def stop(*_: object) -> None:
        raise StageError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(request, "_run_stages", stop)
        workspace.fail(4, "report", *REPORT)
    assert (workspace.root / JOB).read_bytes() != before
    assert "report_job.json: expected" in (line := workspace.fail(5, "verify", *REPORT))
    assert "which is of a run that did not get to its end" in line
    workspace.succeed("report", *REPORT)
    assert not files.intent_of(workspace.root / JOB).exists()
    workspace.succeed("verify", *REPORT)
