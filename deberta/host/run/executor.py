"""The interface of executors, which run a step's command, and the error of a command that failed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Protocol, Sequence

from deberta.core.errors import ERROR_PREFIX, StageError, from_exit_code
from deberta.core.records import Resource
from deberta.host.engine.transcript import Show
from deberta.host.plan.plan import Step


class Provenance(NamedTuple):
    """Provenance of a run: in-toto dependencies plus internal parameters (CANN's version, pins)."""

    dependencies: Sequence[Resource] = ()
    internal: Mapping[str, Any] = {}


class Judged(NamedTuple):
    """A run of the model that left all it should: its folder, the text that has its times, and the times in ms."""

    folder: Path
    printed: str
    times_ms: tuple[float, ...]


class Executor(Protocol):
    """Implemented by `local.LocalExecutor` (subprocesses) and `docker_executor.DockerExecutor` (containers)."""

    @property
    def name(self) -> str:
        """`local` or `docker`."""

    @property
    def root(self) -> Path:
        """The workspace as a command sees it."""

    def identity(self, step: Step) -> Mapping[str, Any]:
        """The parts of the environment that a result depends on; a change makes the step run again. Starts nothing."""

    def prepare(self, step: Step) -> None:
        """Install or build what the step runs in, an environment or an image, outside of the step's time."""

    def hold(self, files: Sequence[int]) -> None:
        """Have what runs next keep these open files, which are locks, until it has ended, even if we are killed.

        None: it has ended.
        """

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        """Run a prepared step with these arguments; returns the lines that it printed and its exit code.

        Raises KeyboardInterrupt, after it has ended, if it or we were interrupted.
        """

    def provenance(self, step: Step) -> Provenance:
        """For a prepared step; `internal` has CANN's version for its tools: `cann`, empty if it is unknown."""

    def show(self, step: Step) -> None:
        """Print the lines that run the step when pasted in the workspace."""

    def sibling(self) -> Executor:
        """Another one of the same settings, for a process of its own that works beside this one's."""

    def close(self) -> None:
        """Release everything and end whatever still runs."""


def check_exit(name: str, lines: Sequence[str], code: int, log: Path) -> None:
    """Raise the error of a command that failed: ours, with the stage's own message, or else StageError."""
    if code == 0:
        return
    errors = [line[len(ERROR_PREFIX) :].strip() for line in lines if line.startswith(ERROR_PREFIX)]
    if errors:
        raise from_exit_code(code, errors[-1])
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        raise StageError(f"{name} was killed, most likely because memory ran out. Its output is in {log}")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    raise StageError(f"{name} failed with exit code {code}: {last}. Its output is in {log}")
