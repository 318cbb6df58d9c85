"""Switching to new content, killed at each point in between: the old or the new is there whole, and known for ours."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Callable, Optional

import pytest

from deberta.core import files

OLD, NEW = {"input_0.bin": "old", "only_old.bin": "old"}, {"input_0.bin": "new"}


def write_folder(folder: Path) -> None:
    with files.new_folder(folder) as temporary:
        for name, text in NEW.items():
            (temporary / name).write_text(text)


def write_file(path: Path) -> None:
    files.write_text(path, "new")


def content(path: Path) -> object:
    return {name: (path / name).read_text() for name in files.files_in(path)} if path.is_dir() else path.read_text()


def killed_at(point: Optional[str], action: Callable[[Path], None], path: Path) -> int:
    """Act in a process that is killed at a commit point; returns the signal that ended it, 0 if it came to its end."""
    child = os.fork()
    if not child:
        files.commit_point = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None
        try:
            action(path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.mark.parametrize("exchanges", (True, False))
@pytest.mark.parametrize("point", ("noted", "aside", "switched"))
@pytest.mark.parametrize("action", (write_folder, write_file))
def test_a_kill_leaves_the_old_or_the_new(
    action: Callable[[Path], None], point: str, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "match"
    old, new = ("old", "new") if action is write_file else (OLD, NEW)
    if action is write_file:
        path.write_text("old")
    else:
        path.mkdir()
        for name, text in OLD.items():
            (path / name).write_text(text)
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    files.intent_of(path).touch()
    reaches = point != "aside" or (action is write_folder and not exchanges)
    assert killed_at(point, action, path) == (signal.SIGKILL if reaches else 0)
    if point == "aside" and reaches:
        assert not path.exists() and files.is_interrupted(path)
    files.remove_leftovers(path)
    is_new = point == "switched" or not reaches
    assert content(path) == (new if is_new else old)
    assert files.is_interrupted(path) is is_new
    assert sorted(os.listdir(tmp_path)) == [files.intent_of(path).name, "match"]
    if is_new:  # the user's from here on: never taken for ours
        (path / "input_0.bin" if path.is_dir() else path).write_text("of the user")
        assert not files.is_interrupted(path)


def test_what_a_live_process_writes_is_left(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    of_parent = tmp_path / f".dynamic.onnx{files.TEMPORARY}{os.getppid()}"
    strange = tmp_path / f".dynamic.onnx{files.TEMPORARY}mine"
    for kept in (of_parent, strange):
        kept.touch()
    zombie = os.fork()
    if not zombie:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    for process in (1, os.getpid(), 999_999_999, zombie):
        (tmp_path / f".dynamic.onnx{files.TEMPORARY}{process}.om").touch()
    files.write_text(path, "")
    os.waitpid(zombie, 0)
    assert sorted(os.listdir(tmp_path)) == sorted([of_parent.name, strange.name, "dynamic.onnx"])
