"""Locks that all users of a machine share: one runner a device, and none of ours beside a performance run.

A lock is an open file with flock: it ends when this process and all that it handed the file down to have ended, by
whatever signal. What is written in the file tells those who wait who has it, and is never relied on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import stat
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

from deberta.core import machine, records
from deberta.core.errors import ConfigError
from deberta.host.engine import npu_access

FOLDER = npu_access.LOCKS  # unless npu.locks in invoke.yaml names another
HOST, NEXT, NPU_SMI = "host", "host.next", "npu-smi"
POLL_SECONDS = 0.1
QUIET_SECONDS = 0.5  # of waiting that nothing is said about: another process may just be looking
AGAIN_SECONDS = 60.0  # after which the same is said again
LONGEST_NOTE = 300  # bytes

Say = Callable[[str], None]


@contextlib.contextmanager
def held(folder: Path, device: Optional[int], alone: bool, say: Say) -> Iterator[tuple[int, ...]]:
    """Hold a device and its host for a run of the model; gives the open files, for what runs to keep open.

    `device`: None on cpu, whose devices are processes. `alone`: a performance run, which has its host to itself; others
    share it. A performance run that waits lets no other begin, so that runs one after another do not keep it waiting.
    Waits as long as it takes, and says for whom. On cpu nothing is held where the folder is on a read-only file system,
    as in a container that may write to its workspace alone; that is said. Raises ConfigError if the folder cannot be
    used otherwise.
    """
    if device is None and _is_read_only(folder):
        say(f"no lock is taken, since {folder} is on a read-only file system: runs elsewhere are not waited for")
        yield ()
        return
    with contextlib.ExitStack() as stack:
        with _locked(folder, NEXT, alone, "this host", say):
            files = [stack.enter_context(_locked(folder, HOST, alone, "this host", say))]
        if device is not None:
            files.append(stack.enter_context(_locked(folder, f"device{device}", True, f"device {device}", say)))
        yield tuple(files)


@contextlib.contextmanager
def looking(folder: Path, say: Say) -> Iterator[None]:
    """Hold npu-smi, of which one may run at a time."""
    with _locked(folder, NPU_SMI, True, "npu-smi", say) as file:
        os.set_inheritable(file, True)
        yield


def is_held(folder: Path, device: int) -> bool:
    """Whether a run of ours has a device now, here or in another workspace. Raises ConfigError as `held` does."""
    file = _open(folder, f"device{device}")
    try:
        return not _try(file, alone=False)
    finally:
        os.close(file)


@contextlib.contextmanager
def _locked(folder: Path, name: str, alone: bool, what: str, say: Say) -> Iterator[int]:
    file, told, began, again = _open(folder, name), "nobody", time.monotonic(), 0.0
    try:
        while True:
            if _try(file, alone):
                if _is_current(folder, name, file):
                    break
                os.close(file)  # somebody has removed the file that we waited for
                file = _open(folder, name)
                continue
            if time.monotonic() - began >= QUIET_SECONDS:
                number, text = _holder(file)
                if number != told or time.monotonic() >= again:
                    told, again = number, time.monotonic() + AGAIN_SECONDS
                    say(f"waiting for {what}: {text}. See who: fuser -v {shlex.quote(str(folder / name))}")
            time.sleep(POLL_SECONDS)
        _write_note(file)
        yield file
    finally:
        os.close(file)  # and no LOCK_UN, which would take it from those who still have it open


def _try(file: int, alone: bool) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(folder: Path, name: str) -> int:
    """Open a lock's file, which all users may write; make it and its folder if they are not there yet.

    Others may write in the folder, too: nothing but a regular file of one name is opened, and no link is followed.
    """
    path = folder / name
    try:
        with contextlib.suppress(FileExistsError):
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.mkdir(folder)
            os.chmod(folder, 0o1777)  # whatever the umask: as /tmp itself, of whose files each user removes own ones
        within = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            file = _open_or_make(name, within)
        finally:
            os.close(within)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(file)
        raise _unusable(path, "it is no regular file of one name")
    return file


def _open_or_make(name: str, within: int) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        try:  # Linux refuses O_CREAT for a file of another user's in a folder like /tmp
            return os.open(name, flags, dir_fd=within)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                file = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=within)
                os.fchmod(file, 0o666)
                return file


def _is_read_only(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False  # opening it says why


def _is_current(folder: Path, name: str, file: int) -> bool:
    """Whether an open file is still the one of its name: /tmp is tidied on many machines."""
    try:
        return os.path.samestat(os.stat(folder / name, follow_symlinks=False), os.fstat(file))
    except OSError:
        return False


def _unusable(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be used as a lock that all users of this machine share: {reason}. Remove it, or name a folder "
        "that all of them can write in, the same for each: locks under npu in invoke.yaml"
    )


def _write_note(file: int) -> None:
    """Say who has a lock; of several, the last who took it. A full disk is no reason not to run."""
    note = f"{os.getpid()} since {records.now()}: invoke {' '.join(sys.argv[1:])}"
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, note.encode("utf-8", "replace")[:LONGEST_NOTE], 0)


def _holder(file: int) -> tuple[str, str]:
    """The number of the process that has a lock, and all that its note says, which any user may have written."""
    note = os.pread(file, LONGEST_NOTE, 0).decode("utf-8", "replace").strip()
    number, _, rest = note.partition(" ")
    if not rest:
        return "", "another run of ours has it"
    gone = "" if machine.is_alive(number) else ", which has ended or is not seen from here: what it started has it"
    return number, f"process {number} has it, {rest}{gone}"
