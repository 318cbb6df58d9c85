"""status: what is there, what is stale and why, by the function that a run uses; nothing is changed by looking."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deberta.core.paths import RECORD_SUFFIX
from deberta.host.run import recorded, session
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace

SCHEMA = json.loads((REPOSITORY / "docs/schemas/status.schema.json").read_text(encoding="utf-8"))
EVALUATION = "results/tiny/cpu/eval_bs4_match.txt"


def status(workspace: Workspace) -> dict[str, Any]:
    document = json.loads(workspace.succeed("status", "--profile", "tiny", "--json"))
    jsonschema.validate(document, SCHEMA)
    [profile] = document["profiles"]
    return {**document, **profile, "states": {a["path"]: (a["state"], a["reason"]) for a in profile["artifacts"]}}


def contents(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_nothing_is_there(tmp_path: Path, tiny: Workspace) -> None:
    workspace = tiny.copy(tmp_path / "copy")
    workspace.configure(workspace=str(tmp_path / "not" / "made"))
    content = status(workspace)
    assert (content["artifacts"], content["bytes"], content["running"]) == ([], 0, "")
    assert content["next"]["problem"] == "models/tiny/pytorch.model-tiny.bin is missing"
    assert not (tmp_path / "not").exists()
    assert "  missing       models/tiny/pytorch.model-tiny.bin, models/tiny" in workspace.succeed(
        "status", "--profile", "tiny"
    )


def test_what_was_evaluated_is_there_and_stays_as_it_is(evaluated: Workspace, tmp_path: Path) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    before = contents(workspace.root)
    content, text = status(workspace), workspace.succeed("status", "--profile", "tiny")
    assert contents(workspace.root) == before
    assert {state for state, _ in content["states"].values()} == {"up to date"} and not content["problems"]
    [evaluation] = [artifact for artifact in content["artifacts"] if artifact["kind"] == "evaluation"]
    assert evaluation["path"] == EVALUATION and evaluation["figure"].endswith("/10)") and evaluation["backend"] == "cpu"
    assert f"eval_bs4_match.txt {evaluation['figure']}\n" in text
    assert f"  steps         {len(content['states'])} up to date\n" in text
    assert content["next"]["command"] == "invoke acceptance --profile tiny" and content["next"]["up_to_date"]
    assert content["next"]["never_ran"] and " never ran here)" in text


def test_what_is_stale_and_why(evaluated: Workspace, tmp_path: Path) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    with open(workspace.checkpoint, "ab") as file:
        file.write(b" ")
    (workspace.root / "models/tiny/ascend").mkdir()
    (workspace.root / "models/tiny/ascend/deberta_bs4.om").write_text("the user's")
    states = status(workspace)["states"]
    changed = f"{workspace.checkpoint.relative_to(workspace.root)} changed"
    assert states["models/tiny/dynamic.onnx"] == ("stale", changed)
    assert states["models/tiny/cpu/deberta_bs4.xml"] == (
        "may be stale",
        "models/tiny/dynamic.onnx would be made again",
    )
    assert states[EVALUATION][0] == "may be stale"
    assert states["models/tiny/ascend/deberta_bs4.om"] == ("user-supplied", "")
    explained = workspace.succeed("explain", "evaluate", "--bs", "4", "--version", "match")
    assert f"would run: {changed}" in explained
    assert f"  stale         models/tiny/dynamic.onnx: {changed}\n" in workspace.succeed("status", "--profile", "tiny")


def test_damage_is_named_and_ends_nothing(evaluated: Workspace, tmp_path: Path) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    (workspace.root / f"{EVALUATION}{RECORD_SUFFIX}").write_text("{")
    kept = workspace.root / "results/tiny/cpu/acceptances/20260101T000000Z_00000000"
    kept.mkdir(parents=True)
    (kept / "report_job.json").write_text("{}")
    content = status(workspace)
    [record, report] = content["problems"]
    assert EVALUATION in record and "is not a record of a step" in record
    assert "tells no verdict: its report" in report and content["acceptances"][0]["verdict"] == ""
    assert "is not a record of a step" in content["next"]["problem"] and EVALUATION not in content["states"]
    assert content["states"]["models/tiny/dynamic.onnx"] == ("up to date", "")


def test_what_takes_long_to_hash_is_not_known(
    evaluated: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    os.utime(workspace.checkpoint)
    monkeypatch.setattr(recorded, "MOST_HASHED", 100)
    state, reason = status(workspace)["states"]["models/tiny/dynamic.onnx"]
    assert state == "not known" and "pytorch.model-tiny.bin was not hashed again (" in reason


def test_a_run_that_goes_on(evaluated: Workspace, tmp_path: Path) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    lock = workspace.root / ".cache" / "lock"
    assert session.holder(workspace.root) == ""
    with open(lock, "w") as file:
        file.write(str(os.getpid()))
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        assert status(workspace)["running"] == str(os.getpid())
        assert workspace.succeed("status", "--profile", "tiny").startswith(f"a run is going on (process {os.getpid()})")
    nothing = tmp_path / "locks"
    nothing.write_text("")
    assert session.holder(workspace.root, nothing) == ""
