"""One runner a device, and none of ours beside a performance run: what holds the locks, who waits, and who is named."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from deberta.core.errors import ConfigError
from deberta.host.engine import reaper, reaper_process
from deberta.host.run import device_locks
from deberta.host.run.device_locks import HOST, NEXT, held, is_held

Take = Callable[[Path], contextlib.AbstractContextManager[object]]
SHARD: Take = lambda folder: held(folder, 3, False, print)  # noqa: E731
OTHER_DEVICE: Take = lambda folder: held(folder, 4, False, print)  # noqa: E731
ON_CPU: Take = lambda folder: held(folder, None, False, print)  # noqa: E731
TIMED: Take = lambda folder: held(folder, 3, True, print)  # noqa: E731
TIMED_ELSEWHERE: Take = lambda folder: held(folder, 4, True, print)  # noqa: E731
TIMED_ON_CPU: Take = lambda folder: held(folder, None, True, print)  # noqa: E731


@contextlib.contextmanager
def _in_another_process(body: Callable[[], object]) -> Iterator[int]:
    """A process that runs `body`, ready once that has returned, and then sleeps; it is killed at the end."""
    ready, told = os.pipe()
    process = os.fork()
    if not process:
        with contextlib.suppress(BaseException):
            kept = body()
            os.write(told, b"x")
            time.sleep(60)
            del kept
        os._exit(1)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"x"
        yield process
    finally:
        os.close(ready)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)


def _taken(take: Take, folder: Path) -> Callable[[], object]:
    def body() -> object:
        stack = contextlib.ExitStack()
        stack.enter_context(take(folder))
        return stack

    return body


def _waits(folder: Path, take: Take) -> bool:
    """Whether a lock cannot be had within a moment."""
    got = threading.Event()

    def body() -> None:
        with contextlib.suppress(ConfigError), take(folder):
            got.set()

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return not got.wait(0.3)


@pytest.mark.parametrize(
    ("first", "second", "waits"),
    [
        (SHARD, SHARD, True),
        (SHARD, OTHER_DEVICE, False),
        (SHARD, ON_CPU, False),
        (ON_CPU, ON_CPU, False),
        (SHARD, TIMED_ELSEWHERE, True),
        (ON_CPU, TIMED, True),
        (TIMED, OTHER_DEVICE, True),
        (TIMED_ON_CPU, ON_CPU, True),
        (TIMED, TIMED_ELSEWHERE, True),
    ],
)
def test_who_waits_for_whom(first: Take, second: Take, waits: bool, tmp_path: Path) -> None:
    folder = tmp_path / "locks"
    with _in_another_process(_taken(first, folder)) as process:
        assert _waits(folder, second) == waits
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with second(folder):
        assert is_held(folder, 3) == (second in (SHARD, TIMED))


def test_a_performance_run_that_waits_is_the_next(tmp_path: Path) -> None:
    """Shards that follow each other on two devices leave no moment without one."""
    with SHARD(tmp_path):
        assert _waits(tmp_path, TIMED_ELSEWHERE)  # its thread still does
        assert _waits(tmp_path, OTHER_DEVICE)
    deadline = time.monotonic() + 10
    while is_held(tmp_path, 4) and time.monotonic() < deadline:
        time.sleep(0.05)
    with OTHER_DEVICE(tmp_path):
        pass


def test_the_holder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["./inv", "infer", "--device", "3"])
    monkeypatch.setattr(device_locks, "QUIET_SECONDS", 0.0)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)

    with (
        _in_another_process(_taken(SHARD, tmp_path)) as process,
        held(tmp_path, 3, False, say) as files,
    ):
        assert len(files) == 2
    [line] = said
    assert line.startswith(f"waiting for device 3: process {process} has it, since 20")
    assert line.endswith(f": invoke infer --device 3. See who: fuser -v {tmp_path}/device3")


def test_a_runner_keeps_the_lock_of_a_process_that_was_killed(tmp_path: Path) -> None:
    runner = tmp_path / "runner"

    def starts_a_runner() -> object:
        stack = contextlib.ExitStack()
        for file in stack.enter_context(held(tmp_path, 3, False, print)):
            os.set_inheritable(file, True)
        process = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "60")
        runner.write_text(str(process))
        return stack

    with _in_another_process(starts_a_runner) as process:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert is_held(tmp_path, 3) and _waits(tmp_path, TIMED_ELSEWHERE)
        os.kill(int(runner.read_text()), signal.SIGKILL)
    with SHARD(tmp_path):
        pass


def test_the_reaper_keeps_the_locks_of_a_container(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    ended: list[bool] = []
    waiting = threading.Thread(target=lambda: ended.append(reaper.wait(theirs)))
    waiting.start()
    try:
        with held(tmp_path, 3, False, print) as files:
            socket.send_fds(ours, [reaper_process.HOLD], list(files))
        assert is_held(tmp_path, 3)  # ours are closed, as if we had been killed
        ours.sendall(reaper_process.FREE)
        assert ours.recv(1) == reaper_process.FREE and not is_held(tmp_path, 3)
    finally:
        ours.close()
        waiting.join()
    assert ended == [False]  # no word of ours that nothing is left


def test_a_lock_is_a_file_that_all_may_write(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with SHARD(tmp_path / "new"):
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    finally:
        os.umask(before)
    assert modes == dict.fromkeys((HOST, NEXT, "device3"), 0o666)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o1777


def test_a_file_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    """Who waited for it waits for the file that has its name now: /tmp is tidied."""
    got = threading.Event()

    def wait() -> None:
        with SHARD(tmp_path):
            got.set()

    with _in_another_process(_taken(SHARD, tmp_path)) as process:
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)
        (tmp_path / "device3").unlink()
        with SHARD(tmp_path):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            assert not got.wait(0.4)
        assert got.wait(10)
        waiting.join()


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.symlink_to("/etc/hostname"),
        lambda path: path.hardlink_to(path.parent / "other"),
        os.mkfifo,
        os.mkdir,
    ],
)
def test_nothing_but_a_file_of_its_own_is_a_lock(make: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    make(tmp_path / "device3")
    with pytest.raises(ConfigError, match=r"device3 cannot be used as a lock .* locks under npu in invoke\.yaml"):
        is_held(tmp_path, 3)
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path / "link", tmp_path / "other"):
        with pytest.raises(ConfigError, match="cannot be used as a lock"), SHARD(folder):
            pass
    assert (tmp_path / "other").read_text() == "kept"


def test_on_cpu_a_read_only_file_system_needs_no_lock_and_a_device_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/container/test_ci_image.py has a real one."""

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    monkeypatch.setattr(os, "mkdir", read_only)
    with TIMED_ON_CPU(tmp_path / "locks") as files:
        assert files == () and "read-only file system" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="Read-only file system"), SHARD(tmp_path / "locks"):
        pass
