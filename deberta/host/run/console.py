"""The output of a running step, on standard error: lines under its title, progress, groups of a CI service's log."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, TextIO

from deberta.core import progress
from deberta.core.errors import visible
from deberta.host.run.messages import as_started

PLAIN_SECONDS = 15.0  # between progress lines if the output is no terminal
NO = ("", "0", "false")


@dataclass(frozen=True)
class Surroundings:
    """Who reads the output. `terminal`: a line may rewrite itself. `groups`: of the log: github, gitlab or none.

    `step_summary`: the file of a GitHub step's summary, which Markdown is appended to.
    """

    terminal: bool = True
    colour: bool = False
    groups: str = ""
    step_summary: Optional[Path] = None


PLAIN = Surroundings()


def surroundings(environment: Mapping[str, str]) -> Surroundings:
    """What the environment's variables say of it: TERM, NO_COLOR, CI and those of GitHub and GitLab."""
    in_ci = environment.get("CI", "").lower() not in NO
    terminal = environment.get("TERM", "dumb") != "dumb" and not in_ci
    services = {"github": "GITHUB_ACTIONS", "gitlab": "GITLAB_CI"}
    summary = environment.get("GITHUB_STEP_SUMMARY")
    return Surroundings(
        terminal=terminal,
        colour=terminal and not environment.get("NO_COLOR"),
        groups=next((name for name, key in services.items() if environment.get(key, "").lower() not in NO), ""),
        step_summary=Path(summary) if summary else None,
    )


class Console:
    """Prints a step's lines under its title. Progress rewrites one line on a terminal, else a line every 15 seconds."""

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._open = False  # whether a progress line is on the terminal, without its line end
        self._last = time.monotonic()

    def line(self, text: str) -> None:
        """Show one line of a stage's output."""
        update = progress.parse(text)
        if update is None:
            self.say(text)
        elif self._terminal:
            progress.redraw(self._stream, f"[{self._title}] {update}")
            self._stream.flush()
            self._open = True
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self.say(update)

    def quiet(self, text: str) -> None:
        """Show progress only: for programs that print several lines per batch, as msame does."""
        if progress.parse(text) is not None:
            self.line(text)

    def say(self, text: str, style: str = "") -> None:
        """Print a line of our own under the title; `style` is of progress.write."""
        self.close()
        progress.write(self._stream, (f"[{self._title}]", progress.BOLD), (f" {as_started(text)}", style), ("\n", ""))
        self._stream.flush()

    def close(self) -> None:
        """End a progress line that is still open."""
        if self._open:
            progress.redraw(self._stream, "")
            self._open = False

    @contextlib.contextmanager
    def group(self, kind: str) -> Iterator[None]:
        """Fold what is printed within this in the log of a CI service: github or gitlab; nothing for none."""
        self._mark(kind, "start")
        try:
            yield
        finally:
            self.close()
            self._mark(kind, "end")

    def _mark(self, kind: str, end: str) -> None:
        if kind == "github":
            print(f"::group::{self._title}" if end == "start" else "::endgroup::", file=self._stream, flush=True)
        elif kind == "gitlab":
            section = re.sub(r"\W+", "_", self._title)
            folded = "[collapsed=true]" if end == "start" else ""
            head = f"section_{end}:{time.time():.0f}:{section}{folded}"
            title = self._title if end == "start" else ""
            progress.draw(self._stream, f"\x1b[0K{head}\r\x1b[0K{visible(title)}\n")
            self._stream.flush()
