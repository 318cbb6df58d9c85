"""The local executor: a step is a subprocess on this machine; CANN's tools run in CANN's environment alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Mapping, Sequence

from deberta.ascend import ais_bench, executables
from deberta.ascend import programs as tools
from deberta.ascend.programs import Tools
from deberta.core import files, machine
from deberta.core.errors import INTERRUPTED
from deberta.host.engine.transcript import GRACE_SECONDS, Show, transcript
from deberta.host.environments import venvs
from deberta.host.environments.stages import STAGES_LOCK
from deberta.host.plan.plan import LATEST, Step
from deberta.host.run.executor import Provenance


@dataclass(frozen=True)
class LocalExecutor:
    """`python` returns the stages' interpreter, which it may install; a dry run shows `python_name` instead.

    `surroundings`: what all records say: `environment`, of stages, if the user prepared it; in the CI image `pins`.
    """

    project: Path
    root: Path
    python: Callable[[], Path]
    python_name: str
    tools: Tools
    surroundings: Mapping[str, str]
    name: str = "local"

    def identity(self, step: Step) -> Mapping[str, Any]:
        if not step.tool:
            return {"packages": files.sha256_of(self.project / STAGES_LOCK)}
        installed = self.tools.cann()
        return {"cann": installed.version, **tools.user_supplied(self.tools, installed, step.tool)}

    def prepare(self, step: Step) -> None:
        if step.tool:
            self.tools.announce()
            if step.on_device:
                tools.check_visible(step.device, os.environ, self.tools.cann().environment)
        else:
            self.python()

    def hold(self, files: Sequence[int]) -> None:
        """They go to what `execute` starts, as the workspace's lock does."""
        for file in files:
            os.set_inheritable(file, True)

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        log, scratch = self.root / step.log, self.root / tools.scratch(step.name)
        if not step.tool:
            command = [str(self.python()), "-m", step.module, *arguments]
            return execute(command, self.root, environment(self.project), log, show)
        installed = self.tools.cann()
        program = tools.executable(self.tools, installed, step.tool)
        variables = tools.variables(installed, step.tool, scratch / "home")
        return execute([str(program), *step.program[1:], *arguments], scratch, variables, log, show)

    def provenance(self, step: Step) -> Provenance:
        if not step.tool:
            return Provenance(internal=self.surroundings)
        installed = self.tools.cann()
        of_cann = {"cann": installed.version, "cann_location": installed.location.text}
        return Provenance(internal={**self.surroundings, **of_cann})

    def show(self, step: Step) -> None:
        if step.tool:
            print(f"source {shlex.quote(self.tools.source())}")
            program = [str(self.tools.msame)] if step.tool == "msame" else step.program
            lines = script(step, [*program, *step.arguments], step.writes)
        else:
            command = [self.python_name, "-m", step.module, *step.arguments]
            prefix = f"PYTHONPATH={shlex.quote(str(self.project))} "
            lines = script(step, command, step.writes if step.inference else (), prefix=prefix)
        print("\n".join(lines))

    def sibling(self) -> LocalExecutor:
        """It holds nothing."""
        return self

    def close(self) -> None:
        """Its processes end with their steps."""


def script(
    step: Step, command: Sequence[str], folders: Sequence[PurePosixPath], setup: Sequence[str] = (), prefix: str = ""
) -> list[str]:
    """The shell lines that make the folders, run `setup` and the command, and give the step's outputs our names.

    An argument that ends in LATEST becomes a path with "$T": the newest folder there. `prefix` is not quoted.
    """
    lines = [f"mkdir -p {shlex.join(map(str, folders))}"] if folders else []
    lines += setup
    for argument in command:
        if argument.endswith(LATEST):
            lines.append(f'T=$(basename "$(ls -td {shlex.quote(argument[: -len(LATEST)])}/*/ | head -n 1)")')
    lines.append(prefix + " ".join(map(_quoted, command)))
    if step.tool == ais_bench.MODULE and step.inference is not None:
        rename = """-exec sh -c 'mv "$1" "${1%_0.bin}_output_0.bin"' sh {} \\;"""
        output = shlex.quote(str(step.inference.runs[0].output))
        lines.append(f"find {output} -name 'input_*_0.bin' ! -name '*_output_0.bin' {rename}")
    return lines


def _quoted(argument: str) -> str:
    """As shlex.quote does, with "$T" left to the shell: a mount's source and target have it too."""
    return '/"$T"'.join(shlex.quote(part) if part else "" for part in argument.split(LATEST)) or "''"


def environment(project: Path) -> dict[str, str]:
    """The caller's environment without its virtual environment, and with our package importable."""
    own = {"PYTHONPATH": str(project), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return {**venvs.environment(), **own}


def execute(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], log: Path, show: Show
) -> tuple[list[str], int]:
    """Run a command in a folder with these variables alone; returns its lines (stderr's too) and exit code.

    Raises KeyboardInterrupt, after the command has ended, if it or we were interrupted.
    """
    with transcript(log, command, show) as record:
        # A session of its own: Ctrl-C on the terminal reaches us alone, and we pass it on once. It ends with us, and
        # has the workspace's lock as long as it lives (the one open file that is handed down).
        try:
            process = machine.start(
                command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, encoding="utf-8", start_new_session=True, close_fds=False,
            )  # fmt: skip
        except OSError as error:
            raise executables.unstartable(Path(command[0]), error) from error
        assert process.stdout is not None
        try:
            lines = record(process.stdout)
            process.wait()
        except BaseException:
            with contextlib.suppress(OSError):  # the terminal may be gone
                show("stopping; interrupt again to kill it at once")
            _stop(process)
            raise
    if process.returncode in (INTERRUPTED, -signal.SIGINT):
        raise KeyboardInterrupt
    return lines, process.returncode


def _stop(process: subprocess.Popen[str]) -> None:
    """Interrupt the whole process group, as Ctrl-C on a terminal does: ATC compiles in processes of its own."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.communicate(timeout=GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
