"""Outputs that an option names: a run's folder, or one above it, as the user means it from where they are."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from deberta.core.errors import ConfigError
from deberta.host.plan.plan import Case, Plan
from deberta.host.plan.profiles import Profile
from deberta.host.run.session import Session
from deberta.host.user_files import named_paths
from tests.mnli_helpers import REPOSITORY

RUN = "2026_1_2_3_4"
_PATH = PurePosixPath("x")
CASE = Case(Plan(Profile("p", _PATH, _PATH, _PATH, _PATH, None, {"match": None}, False), "ascend"), 8, "match")


@pytest.fixture(name="session")
def _session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    executor: Any = None
    (tmp_path / "workspace").mkdir()
    (tmp_path / "user").mkdir()
    monkeypatch.chdir(tmp_path / "user")
    return Session(REPOSITORY, tmp_path / "workspace", executor, lambda: "")


def _make(folder: Path, name: str = "input_0_output_0.bin") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    return folder


def _take(session: Session, text: str) -> str:
    return str(named_paths.find_outputs(session, "--outputs", text, CASE))


@pytest.mark.parametrize("above", ["", "match", "outputs_bs8_om", "result", "."])
def test_a_folder_too_high_gives_its_only_run(
    session: Session, tmp_path: Path, above: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _make(tmp_path / f"user/result/outputs_bs8_om/match/{RUN}")
    _make(tmp_path / "user/result/outputs_bs8_om/mismatch/2026_9_9_9")
    names = {"": run, "match": run.parent, "outputs_bs8_om": run.parents[1], "result": run.parents[2], ".": Path(".")}
    assert _take(session, str(names[above])) == str(run)
    assert (f"{run} is taken" in capsys.readouterr().err) == (above != "")


def test_several_are_named(session: Session, tmp_path: Path) -> None:
    for name in (RUN, "2026_1_2_3_5", "notes"):
        _make(tmp_path / f"user/match/{name}", "notes" if name == "notes" else "input_0_output_0.bin")
    with pytest.raises(ConfigError, match=rf"match holds 2 runs \({RUN}, 2026_1_2_3_5\). Name one: --outputs /"):
        _take(session, "match")


def test_relative_paths_are_the_callers_then_the_workspaces(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _make(tmp_path / "workspace/outs")
    assert _take(session, "outs") == "outs" and capsys.readouterr().err == ""
    here = _make(tmp_path / "user/outs")
    assert _take(session, "outs") == str(here)
    assert capsys.readouterr().err == f"--outputs outs: {here} is taken\n"
    monkeypatch.chdir(there.parent)
    assert _take(session, "outs") == "outs"
    monkeypatch.chdir(there)
    assert _take(session, ".") == "outs" and _take(session, "../outs") == "outs"
    assert named_paths.of_caller(session.workspace, "input_0_output_0.bin") == "outs/input_0_output_0.bin"
    assert named_paths.of_caller(session.workspace, "outs/x") == "outs/x"
    assert named_paths.of_caller(session.workspace, "") == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("empty", "nor of a run"),
        ("../../nowhere", "leads out of"),
        ("file", "is no folder"),
        ("other", "holds the folder x"),
    ],
)
def test_what_is_no_outputs(session: Session, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "workspace/empty").mkdir()
    (tmp_path / "workspace/file").write_text("")
    _make(tmp_path / "workspace/other/x", "notes")
    with pytest.raises(ConfigError, match=reason):
        _take(session, text)


def test_what_is_absent_is_for_the_step_to_say(session: Session) -> None:
    assert _take(session, "results/nothing") == "results/nothing"
