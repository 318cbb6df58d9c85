"""The output of a step's command, which is logged and shown line by line."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Callable, Iterable, Iterator, Sequence

from deberta.core.errors import ERROR_PREFIX, visible

GRACE_SECONDS = 120.0  # for an interrupted command to end and remove unfinished files, before it is killed
Show = Callable[[str], None]  # takes a line of output


@contextlib.contextmanager
def transcript(log: Path, command: Sequence[str], show: Show) -> Iterator[Callable[[Iterable[str]], list[str]]]:
    """Open a log that begins with the command; yields a function that logs and shows lines, and returns them.

    Our errors are not shown: the step's error message repeats them.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")

        def record(output: Iterable[str]) -> list[str]:
            lines = []
            for line in output:
                lines.append(line)
                file.write(visible(line))
                if not line.startswith(ERROR_PREFIX):
                    show(line.rstrip("\n"))
            return lines

        yield record
