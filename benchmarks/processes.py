"""bench: worker processes that take commands in turns and never outlive this process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deberta.core.errors import StageError

TIMEOUT = 1800.0  # seconds for one answer; compiling the model for the first time is the longest


class Failed(Exception):
    """A process ended, answered with an error, or did not answer; the message is its reason."""


class WorkerProcess:
    """A child in a session of its own: Ctrl-C reaches us alone, and `close` takes its own children with it."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with open(log, "w", encoding="utf-8") as file:
            self.child = subprocess.Popen(
                list(command), env=dict(variables), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self.unread = b""

    def ask(self, line: str, timeout: float = TIMEOUT) -> dict[str, Any]:
        """Write a line and return the answer. Raises Failed."""
        self.tell(line)
        return self.answer(timeout)

    def tell(self, line: str) -> None:
        assert self.child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `answer` gives the reason
            self.child.stdin.write(line.encode() + b"\n")
            self.child.stdin.flush()

    def answer(self, timeout: float = TIMEOUT) -> dict[str, Any]:
        assert self.child.stdout is not None
        until = time.monotonic() + timeout
        while b"\n" not in self.unread:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.child.stdout], [], [], left)[0]:
                raise Failed(f"no answer in {timeout:.0f} s")
            read = os.read(self.child.stdout.fileno(), 1 << 20)
            if not read:
                raise Failed(f"it ended with exit code {self.child.wait()}: {last_line(self.log)}")
            self.unread += read
        line, _, self.unread = self.unread.partition(b"\n")
        content: dict[str, Any] = json.loads(line)
        if "error" in content:
            raise Failed(" ".join(str(content["error"]).split())[:500])
        return content

    def close(self) -> None:
        """Kill it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@contextlib.contextmanager
def started(command: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[WorkerProcess]:
    process = WorkerProcess(command, variables, log)
    try:
        yield process
    finally:
        process.close()


def finish(command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
    """Run a command to its end, its output into `log`. Raises StageError with its last line."""
    with started(["sh", "-c", 'exec "$@" >&2', "sh", *command], variables, log) as process:
        code = process.child.wait()
    if code:
        raise StageError(f"{' '.join(command[:3])} ended with exit code {code}: {last_line(log)}. All of it: {log}")


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it said nothing"
