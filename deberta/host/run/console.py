"""The output of a running step, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from deberta.core import progress

PLAIN_SECONDS = 15.0  # between progress lines if the output is no terminal


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

    def say(self, text: str) -> None:
        """Print a line of our own under the title."""
        self.close()
        print(f"[{self._title}] {text}", file=self._stream, flush=True)

    def close(self) -> None:
        """End a progress line that is still open."""
        if self._open:
            progress.redraw(self._stream, "")
            self._open = False
