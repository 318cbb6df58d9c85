"""The local executor: a step is a subprocess on this machine; atc and msame run in CANN's environment alone."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from deberta.ascend import ais_bench
from deberta.ascend import programs as tools
from deberta.ascend.programs import Tools
from deberta.core import files
from deberta.core.errors import ERROR_PREFIX, INTERRUPTED
from deberta.host.environments.stages import STAGES_LOCK
from deberta.host.plan.evaluation import LATEST, Step
from deberta.host.run.executor import Ground, Show

GRACE_SECONDS = 120.0  # for a stage to finish its step and remove what it half wrote, before it is killed


@dataclass(frozen=True)
class LocalExecutor:
    """`python` gives the stages' interpreter when first needed; `python_name` is shown in a dry run, which must not."""

    project: Path
    root: Path
    python: Callable[[], Path]
    python_name: str
    tools: Tools
    name: str = "local"

    def identity(self, step: Step) -> Mapping[str, Any]:
        if not step.tool:
            return {"packages": files.sha256_of(self.project / STAGES_LOCK)}
        installed = self.tools.cann()
        return {"cann": installed.version, **tools.user_supplied(self.tools, installed, step.tool)}

    def prepare(self, step: Step) -> None:
        if not step.tool:
            self.python()

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        log, scratch = self.root / step.log, self.root / tools.scratch(step.name)
        if not step.tool:
            command = [str(self.python()), "-m", step.module, *arguments]
            return execute(command, self.root, environment(self.project, os.environ), log, show)
        installed = self.tools.cann()
        program = tools.executable(self.tools, installed, step.tool)
        variables = tools.variables(installed, step.tool, scratch / "home")
        return execute([str(program), *step.program[1:], *arguments], scratch, variables, log, show)

    def ground(self, step: Step) -> Ground:
        return Ground(internal={"cann": self.tools.cann().version} if step.tool else {})

    def show(self, step: Step) -> None:
        if step.tool:
            print(f"source {shlex.quote(self.tools.source())}")
            print(f"mkdir -p {shlex.quote(str(step.writes[0]))}")  # atc and msame make no folder above the last one
            program = (str(self.tools.msame),) if step.tool == "msame" else step.program
            print(shlex.join([*program, *step.arguments]))
            print("\n".join(renaming(step)), end="\n" if renaming(step) else "")
            return
        if step.inference is not None:
            print(f"mkdir -p {shlex.quote(str(step.writes[0]))}")
        *before, command = to_paste([self.python_name, "-m", step.module, *step.arguments])
        print("\n".join([*before, f"PYTHONPATH={shlex.quote(str(self.project))} {command}"]))

    def close(self) -> None:
        """Its processes end with their steps."""


def renaming(step: Step) -> list[str]:
    """The line to paste that gives ais_bench's outputs our names."""
    if step.tool != ais_bench.MODULE or step.inference is None:
        return []
    rename = """-exec sh -c 'mv "$1" "${1%_0.bin}_output_0.bin"' sh {} \\;"""
    there = shlex.quote(str(step.inference.output))
    return [f"find {there} -name 'input_*_0.bin' ! -name '*_output_0.bin' {rename}"]


def to_paste(command: Sequence[str]) -> list[str]:
    """The lines to paste for a command. An argument that a run names after its time is "$T", the latest there is."""
    lines = []
    for argument in command:
        if argument.endswith(LATEST):
            lines.append(f'T=$(basename "$(ls -td {shlex.quote(argument[: -len(LATEST)])}/*/ | head -n 1)")')
    return [*lines, " ".join(map(_quoted, command))]


def _quoted(argument: str) -> str:
    """As shlex.quote does, with "$T" left to the shell: a mount's source and target have it too."""
    return '/"$T"'.join(shlex.quote(part) if part else "" for part in argument.split(LATEST)) or "''"


def environment(project: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment with our package importable and nothing of another virtual environment in it."""
    kept = {key: value for key, value in inherited.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONPATH": str(project), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def execute(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], log: Path, show: Callable[[str], None]
) -> tuple[list[str], int]:
    """Run a command in a folder with these variables alone; returns its lines (stderr's among them) and exit code.

    Raises KeyboardInterrupt, after it has ended, if it or we were interrupted.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    with open(log, "w", encoding="utf-8") as kept:
        kept.write(f"$ {shlex.join(command)}\n")
        # Its own session: Ctrl-C on the terminal reaches us alone, and we pass it on once.
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                kept.write(line)
                if not line.startswith(ERROR_PREFIX):
                    show(line.rstrip("\n"))
            process.wait()
        except BaseException:
            show("stopping; interrupt again to kill it at once")
            _stop(process)
            raise
    if process.returncode in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    return lines, process.returncode


def _stop(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C on a terminal would: the whole group, since ATC compiles in processes of its own."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
