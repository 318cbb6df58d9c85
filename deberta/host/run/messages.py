"""The error messages about a step, which name the commands to run next."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Iterable, Sequence

from deberta.core.errors import DataError, MissingError, some
from deberta.host.plan.plan import Input, Step

_started = ("invoke", re.compile(r"(?!)"))  # what a command line begins with here, and the pattern of a hint


def start(name: str, tasks: Iterable[str]) -> None:
    """Say how the user starts the program, and which tasks hints may name."""
    global _started
    names = "|".join(sorted(map(re.escape, tasks), key=len, reverse=True))
    _started = (name, re.compile(rf"\binvoke (?=(?:{names}|--help|--list)(?![\w-]))"))


def as_started(text: str) -> str:
    """A message for the terminal: `invoke TASK` in it begins as the user started the program.

    What is written to files keeps `invoke`, and so is the same on every machine.
    """
    name, hint = _started
    return hint.sub(lambda match: f"{name} ", text)


def completed(step: Step, message: str) -> str:
    """A stage's message, with this run's options added to the commands that it names."""

    def command(match: re.Match[str]) -> str:
        return step.commands.get(match[1], f"invoke {match[1]}") + (match[2] or "")

    return re.sub(r"\binvoke ([a-z-]+[a-z])( --force)?", command, message)


def missing(inputs: Sequence[Input]) -> MissingError:
    """The error for missing inputs, with the commands that make or get them."""
    names = [str(needed.path) for needed in inputs]
    listed = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
    commands = list(dict.fromkeys(needed.command for needed in inputs))
    hints = [f"Run: {command}" if command.startswith("invoke ") else command for command in commands]
    return MissingError(f"{listed} missing. {'; then '.join(hints)}")


def altered(step: Step, output: PurePosixPath, reason: str, workspace: Path) -> DataError:
    """The error for an output that was modified, in a strict session, which does not rebuild it."""
    command = step.commands.get(step.task)
    again = f"Run: {command} --force" if command else "To make everything again, add --force to this command"
    # The files of a run's folder that are missing or of the wrong size, since a folder's digest names none.
    folder = workspace / output
    runs = step.inference.runs if step.inference and folder.is_dir() else ()
    expected = {name: size for run in runs if run.output == output.parent for name, size in run.expected.items()}
    wrong = [n for n in expected if not (folder / n).is_file() or (folder / n).stat().st_size != expected[n]]
    names = f" ({some(wrong, 3)})" if wrong else ""
    return DataError(f"{reason}{names}, so nothing is concluded from it. {again}")
