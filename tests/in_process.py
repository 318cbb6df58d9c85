"""Our commands and stages, run in the tests' own process: to import torch and invoke once saves seconds a call.

What a test sees is as with a process: exit code, stdout and stderr, working directory, environment, log files. A test
that is about processes (signals, kills, locks, the shell) starts one: `Workspace.start`, `Workspace.run_process`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

from deberta import PROJECT
from deberta.core import errors
from deberta.host.engine.transcript import transcript
from deberta.host.environments import stages
from deberta.host.run import local, messages, source_digest

_execute_process, _installed = local.execute, stages.installed
_installed_here = functools.cache(lambda: _installed(Path(sys.executable)))


def run_invoke(
    arguments: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """`invoke ARGUMENTS` in `folder` with these environment variables alone; its stages run in this process too.

    The settings file that tests begin with, `-f FILE`, is left out of the hints in the output.
    """
    done = run_main(lambda: _invoke(arguments), folder, variables)
    if done.returncode == errors.INTERRUPTED:
        raise KeyboardInterrupt  # whoever runs the tests wants to stop them
    if arguments[:1] == ["-f"]:
        hint = f"invoke -f {shlex.quote(arguments[1])} "
        done.stdout, done.stderr = (text.replace(hint, "invoke ") for text in (done.stdout, done.stderr))
    return done


def run_stage(
    module: str, arguments: Sequence[str], folder: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGUMENTS` of a stage, in `folder` with these environment variables alone."""
    return run_main(lambda: _main(module, arguments), folder, variables)


def run_main(main: Callable[[], int], folder: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A Python program's main, which returns the exit code, as if it were a process."""
    output, error = _text(), _text()
    code = _run(main, folder, variables, output, error)
    return subprocess.CompletedProcess([], code, _content(output), _content(error))


def _of_ours_once(function: Callable[[Path, str], Any]) -> Callable[[Path, str], Any]:
    cached = functools.cache(function)
    return lambda project, module: cached(project, module) if project == PROJECT else function(project, module)


@contextlib.contextmanager
def stages_in_process() -> Iterator[None]:
    """Within this, `deberta.host.run.local` runs a stage in this process; other programs stay processes.

    This interpreter is asked for its packages, and our code digested, once and not by every command.
    """

    def installed(python: Path) -> dict[str, str]:
        return _installed_here() if str(python) == sys.executable else _installed(python)

    with (
        mock.patch.object(local, "execute", execute),
        mock.patch.object(stages, "installed", installed),
        mock.patch.object(source_digest, "digest", _of_ours_once(source_digest.digest)),
        mock.patch.object(source_digest, "sources", _of_ours_once(source_digest.sources)),
    ):
        yield


def execute(
    command: Sequence[str], folder: Path, variables: Mapping[str, str], log: Path, show: Callable[[str], None]
) -> tuple[list[str], int]:
    """As `local.execute`, and by it if this is no stage of this interpreter.

    A command of ours gets a process, and runs its stages in that.
    """
    if [*command[:3]] == [sys.executable, "-m", "invoke"]:
        command = [sys.executable, "-m", "tests.in_process", *command[3:]]
    if [*command[:2]] != [sys.executable, "-m"] or not command[2].startswith("deberta.stages."):
        return _execute_process(command, folder, variables, log, show)
    with transcript(log, command, show) as record:
        lines = _Lines(record)
        code = _run(lambda: _main(command[2], command[3:]), folder, variables, lines, lines)
        lines.end()
    if code == errors.INTERRUPTED:
        raise KeyboardInterrupt
    return lines.lines, code


class _Lines(io.StringIO):
    """A stage's stdout and stderr, given to `record` a line at a time."""

    def __init__(self, record: Callable[[Iterable[str]], list[str]]) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._record, self._unfinished = record, ""
        self._newlines = io.IncrementalNewlineDecoder(None, translate=True)
        self._host_output, self._host_error = sys.stdout, sys.stderr

    def write(self, text: str, /) -> int:
        *lines, self._unfinished = (self._unfinished + self._newlines.decode(text)).split("\n")
        for line in lines:
            self._add(f"{line}\n")
        return len(text)

    def end(self) -> None:
        if self._unfinished:
            self._add(self._unfinished)

    def _add(self, line: str) -> None:
        # What the host prints of it is not the stage's output.
        with contextlib.redirect_stdout(self._host_output), contextlib.redirect_stderr(self._host_error):
            self.lines += self._record([line])


def _text() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _content(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def _invoke(arguments: Sequence[str]) -> int:
    from deberta.host.program.command_line import CommandProgram

    tasks = sys.modules.get("tasks")  # invoke puts its own copy there
    try:
        CommandProgram().run(["invoke", *arguments])
        return 0
    finally:
        messages.start("invoke", ())
        sys.modules.pop("tasks", None)
        if tasks is not None:
            sys.modules["tasks"] = tasks


def _main(module: str, arguments: Sequence[str]) -> int:
    return errors.run_stage(importlib.import_module(module).main, arguments)


def _run(
    body: Callable[[], int | None], folder: Path, variables: Mapping[str, str], output: TextIO, error: TextIO
) -> int:
    """What a Python process does: run `body` in these surroundings and return the exit code. Restores ours."""
    with _surroundings(folder, variables), contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            return body() or 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
                return 1
            return end.code or 0
        except Exception:
            traceback.print_exc()
            return 1


@contextlib.contextmanager
def _surroundings(folder: Path, variables: Mapping[str, str]) -> Iterator[None]:
    before, path, compiled = Path.cwd(), list(sys.path), sys.dont_write_bytecode
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with mock.patch.dict(os.environ, dict(variables), clear=True), open(os.devnull) as nothing, _torch():
        os.chdir(folder)
        try:
            with mock.patch.object(sys, "stdin", nothing):
                yield
        finally:
            os.chdir(before)
            sys.path[:], sys.dont_write_bytecode = path, compiled
            for number, handler in handlers.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    """Restore what stages set in torch for their whole process: threads, determinism, the random state."""
    if "torch" not in sys.modules:
        yield
        if "torch" in sys.modules:
            sys.modules["torch"].use_deterministic_algorithms(False)
        return
    import torch

    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


if __name__ == "__main__":  # invoke with its stages in one process
    with stages_in_process():
        sys.exit(_invoke(sys.argv[1:]))
