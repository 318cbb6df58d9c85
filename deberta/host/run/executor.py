"""What runs a step's command. `local`: a subprocess on this machine; `docker`: a container of a stage image."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping, Protocol, Sequence

from deberta.core.errors import ERROR_PREFIX, StageError, from_exit_code
from deberta.core.records import Resource
from deberta.host.plan.plan import Step

Show = Callable[[str], None]


@dataclass(frozen=True)
class Ground:
    """What a command ran on, for its record: dependencies as in-toto resources, and what is not a dependency."""

    dependencies: Sequence[Resource] = ()
    internal: Mapping[str, Any] = field(default_factory=dict)


class Executor(Protocol):
    """Two of them: `local.LocalExecutor` and `docker_executor.DockerExecutor`."""

    @property
    def name(self) -> str:
        """`local` or `docker`."""

    @property
    def root(self) -> Path:
        """The workspace as a command sees it."""

    def identity(self, step: Step) -> Mapping[str, Any]:
        """What of the surroundings decides the result: a step runs again when it changes. Starts nothing."""

    def prepare(self, step: Step) -> None:
        """Make what the step runs in: an environment, an image. It is not counted as the step's time."""

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        """Run a prepared step with these arguments; returns the lines that it printed and its exit code.

        Raises KeyboardInterrupt, after it has ended, if it or we were interrupted.
        """

    def ground(self, step: Step) -> Ground:
        """What a prepared step runs on; `internal` has CANN's version for its tools: `cann`, empty if not told."""

    def show(self, step: Step) -> None:
        """Print what a person could paste to run the step, in the workspace."""

    def close(self) -> None:
        """Let go of everything; nothing that was started runs on."""


def judge_stage(module: str, lines: Sequence[str], code: int, log: Path) -> None:
    """Raise our error of a stage's exit code with the stage's own message; StageError for any other failure."""
    if code == 0:
        return
    errors = [line[len(ERROR_PREFIX) :].strip() for line in lines if line.startswith(ERROR_PREFIX)]
    if errors:
        raise from_exit_code(code, errors[-1])
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        raise StageError(f"{module} was killed, most likely because memory ran out. Its output is in {log}")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    raise StageError(f"{module} failed with exit code {code}: {last}. Its output is in {log}")
