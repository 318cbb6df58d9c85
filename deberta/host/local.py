"""The local executor: a stage is a subprocess on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Callable, Mapping, Sequence

from deberta.errors import ERROR_PREFIX, INTERRUPTED, StageError, from_exit_code

GRACE_SECONDS = 120.0  # for a stage to finish its step and remove what it half wrote, before it is killed


def command_line(python: Path, module: str, arguments: Sequence[str]) -> list[str]:
    return [str(python), "-m", module, *arguments]


def environment(project: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment with our package importable and nothing of another virtual environment in it."""
    kept = {key: value for key, value in inherited.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME")}
    return {**kept, "PYTHONPATH": str(project), "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def run(command: Sequence[str], workspace: Path, project: Path, log: Path, show: Callable[[str], None]) -> str:
    """Run a stage in the workspace, pass its lines to `show` and the log, and return all that it printed.

    Raises our error of the stage's exit code with the stage's own message, StageError for any other failure, and
    KeyboardInterrupt, after the stage has ended, if it or we were interrupted.
    """
    lines, code = execute(command, workspace, environment(project, os.environ), log, show)
    return _result(code, lines, command, log)


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


def _result(code: int, lines: Sequence[str], command: Sequence[str], log: Path) -> str:
    if code == 0:
        return "".join(lines)
    errors = [line[len(ERROR_PREFIX) :].strip() for line in lines if line.startswith(ERROR_PREFIX)]
    if errors:
        raise from_exit_code(code, errors[-1])
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        raise StageError(f"{command[2]} was killed, most likely because memory ran out. Its output is in {log}")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
    raise StageError(f"{command[2]} failed with exit code {code}: {last}. Its output is in {log}")
