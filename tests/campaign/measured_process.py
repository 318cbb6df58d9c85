"""A command run as a process: what it printed, how long it took, how much memory it needed, what else it opened."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# Starts the command from a process that is itself small: Linux counts the parent's memory as the child's until exec.
_LAUNCHER = """
import json, os, resource, signal, subprocess, sys, time
limit, report, *command = sys.argv[1:]
signal.signal(signal.SIGINT, signal.default_int_handler)
resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
started = time.monotonic()
process = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
try:
    code = process.wait(float(limit))
except subprocess.TimeoutExpired:
    code = None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(report, "w") as file:
    json.dump([code, time.monotonic() - started, usage.ru_maxrss / 1024], file)
"""


class Done(NamedTuple):
    """`mib`: the largest resident set of a process of the tree (ru_maxrss); `code`: None if it was killed."""

    code: int | None
    seconds: float
    mib: float
    stdout: str
    stderr: str


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str], scratch: Path, seconds: float) -> Done:
    """Run it in `folder`, for at most `seconds`; `scratch` gets the measurements."""
    scratch.mkdir(exist_ok=True)
    streams = [scratch / "stdout", scratch / "stderr"]
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(seconds), str(scratch / "usage.json"), *command]
    with open(streams[0], "wb") as output, open(streams[1], "wb") as error:
        subprocess.run(launcher, cwd=folder, env=dict(environment), stdout=output, stderr=error, check=True)
    code, took, mib = json.loads((scratch / "usage.json").read_text())
    return Done(code, took, mib, *(path.read_text(encoding="utf-8", errors="surrogateescape") for path in streams))


_MODIFY, _ATTRIBUTES, _MOVED, _CREATE, _DELETE, _OPEN = 0x2, 0x4, 0xC0, 0x100, 0x200, 0x20  # linux/inotify.h
_EVENT = struct.Struct("iIII")


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[list[str]]:
    """The names in `folder` that are opened, changed, made or removed within this, told by the kernel (inotify)."""
    library = ctypes.CDLL(None, use_errno=True)
    file = library.inotify_init1(os.O_NONBLOCK)
    mask = _MODIFY | _ATTRIBUTES | _MOVED | _CREATE | _DELETE | _OPEN
    assert file >= 0 and library.inotify_add_watch(file, os.fsencode(folder), mask) > 0
    names: list[str] = []
    try:
        yield names
        with contextlib.suppress(BlockingIOError):
            while events := os.read(file, 65536):
                while events:
                    *_, length = _EVENT.unpack_from(events)
                    name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                    names.append(os.fsdecode(name) or ".")
                    events = events[_EVENT.size + length :]
    finally:
        os.close(file)
