"""What killed runs left is removed by the next command that has the lock, whatever it is; nothing else is touched."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deberta.core.errors import StageError
from deberta.host.engine import address, engine, ping, unfinished
from deberta.host.images import build
from deberta.host.run import leftovers
from deberta.host.run.session import Session, exclusive

URL = "unix:///run/test/docker.sock"


def session(workspace: Path, dry: bool = False) -> Session:
    executor: Any = SimpleNamespace(name="local", close=lambda: None)
    return Session(workspace, workspace, executor, lambda: "", dry=dry)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {".cache", ".cache/lock"}


@pytest.fixture(autouse=True)
def _an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "endpoint", lambda *_: address.Endpoint(URL))


@pytest.mark.parametrize("how", ["killed", "failed"])
def test_scratch_folders_go_after_a_kill_and_stay_after_a_failure(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(StageError), exclusive(session(tmp_path)):
        (tmp_path / ".cache/scratch/export-onnx/home").mkdir(parents=True)
        number = (tmp_path / ".cache/lock").read_text()
        raise StageError("as a step that fails")
    assert number == str(os.getpid()) and (tmp_path / ".cache/lock").read_text() == ""
    if how == "killed":
        (tmp_path / ".cache/lock").write_text("999999")
    with exclusive(session(tmp_path, dry=True)):
        pass
    assert (tmp_path / ".cache/scratch/export-onnx").is_dir() and capsys.readouterr().err == ""
    with exclusive(session(tmp_path)):
        pass
    assert (tmp_path / ".cache/scratch/export-onnx").is_dir() == (how == "failed")
    said = "removed what an earlier run left: .cache/scratch/export-onnx\n"
    assert capsys.readouterr().err == ("" if how == "failed" else said)


class _Client:
    def close(self) -> None:
        pass


def test_the_engine_is_asked_only_where_something_may_be_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def noting(answer: Any, name: str = "") -> Any:
        def note(*arguments: Any) -> Any:
            asked.append(name or arguments[1])
            return answer

        return note

    monkeypatch.setattr(ping, "look", noting(ping.PingResult(True), "look"))
    monkeypatch.setattr(engine, "connect", noting(_Client(), "connect"))
    monkeypatch.setattr(engine, "remove_left", noting(None, "containers"))
    monkeypatch.setattr(build, "clean", noting(3))  # its label
    with exclusive(session(tmp_path)):
        assert asked == []
    (tmp_path / unfinished.BUILDS).mkdir(parents=True)
    at_work = unfinished.begin_build(tmp_path / unfinished.BUILDS, "x=alive")
    unfinished.begin_containers(tmp_path)
    _killed_build(tmp_path, "x=killed")
    with exclusive(session(tmp_path)):
        assert asked == ["look", "connect", "containers", "x=killed"]
    assert "removed 3 containers and images of a build that was killed" in capsys.readouterr().err
    assert len(files_in(tmp_path / unfinished.BUILDS)) == 1
    at_work()
    with exclusive(session(tmp_path)):
        assert len(asked) == 4
    assert files_in(tmp_path) == {str(unfinished.BUILDS), ".cache/digests.json"}


@pytest.mark.parametrize(
    ("url", "answers", "says"),
    [
        (
            "unix:///run/other.sock",
            True,
            "at unix:///run/other.sock: set DOCKER_HOST=unix:///run/other.sock to have that",
        ),
        (URL, False, f"at {URL}: it does not answer now"),
        (URL, True, f"at {URL}: the Docker engine refused"),
    ],
)
def test_what_cannot_be_removed_is_said_and_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    answers: bool,
    says: str,
) -> None:
    def refuse(_: float) -> Any:
        raise StageError("the Docker engine refused")

    unfinished.begin_containers(tmp_path)
    (tmp_path / unfinished.CONTAINERS).write_text(f"{url}\n")
    monkeypatch.setattr(ping, "look", lambda: ping.PingResult(answers))
    monkeypatch.setattr(engine, "connect", refuse)
    with exclusive(session(tmp_path)):
        assert says in capsys.readouterr().err
    assert (tmp_path / unfinished.CONTAINERS).exists()


def _killed_build(workspace: Path, label: str) -> None:
    """A process that begins a build and is killed."""
    code = (
        "import os, signal, sys; from pathlib import Path; from deberta.host.engine import unfinished; "
        "unfinished.begin_build(Path(sys.argv[1]), sys.argv[2]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    variables = {**os.environ, "DOCKER_HOST": URL}
    command = [sys.executable, "-c", code, str(workspace / unfinished.BUILDS), label]
    assert subprocess.run(command, env=variables, check=False).returncode == -9


def test_begun_builds_of_nobody_are_left(tmp_path: Path) -> None:
    """A file that is still empty is one whose process is about to lock it."""
    (tmp_path / unfinished.BUILDS).mkdir(parents=True)
    (tmp_path / unfinished.BUILDS / f"a{unfinished.BUILD}").touch()
    assert unfinished.left(tmp_path) == []
    leftovers.sweep_engine(tmp_path, print)
