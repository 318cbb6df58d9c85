"""How it goes, on standard error: of anything over two seconds a line that rewrites itself, plain lines elsewhere.

When the host runs a stage, the stage's output is a pipe: the stage prints plain lines, which the host parses
and draws on its terminal.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Optional, TextIO, TypeVar

from deberta.core.errors import visible

_Item = TypeVar("_Item")
_LINE = re.compile(r"\[progress\] (.+: \d+/\d+(?: .+)?)")
_COUNTED = re.compile(r"(.+): ([0-9]{1,18})/([0-9]{1,18})(.*)")
BAR, SHORTEST_BAR = 20, 5  # characters
BOLD, GREEN, RED, YELLOW = "1", "32", "31", "33"  # of a terminal (SGR)


def parse(line: str) -> Optional[str]:
    """The text of a line printed by `Progress` without its prefix, or None for any other line."""
    match = _LINE.fullmatch(line.rstrip())
    return match[1] if match else None


def say(line: str) -> None:
    """Tell how it goes. Standard output is for results alone."""
    print(line, file=sys.stderr, flush=True)


def write(stream: TextIO, *parts: tuple[str, str]) -> None:
    """Write texts, each in its style: BOLD, a colour, or "" for none. A stream without colours gets the texts alone."""
    if getattr(stream, "colour", False):
        styled = (f"\x1b[{style}m{visible(text)}\x1b[0m" if style else visible(text) for text, style in parts)
        draw(stream, "".join(styled))
    else:
        stream.write("".join(text for text, _ in parts))


def draw(stream: TextIO, text: str) -> None:
    """Write control characters of our own."""
    getattr(stream, "draw", stream.write)(text)


def redraw(stream: TextIO, text: str) -> None:
    """Replace the last line of a terminal; a count in the text gets a bar, and what does not fit is cut."""
    line, ending = visible(text.rstrip("\n")), "\n" if text.endswith("\n") else ""
    room = _columns(stream) - 1
    if counted := _COUNTED.fullmatch(line):
        what, done, total, rest = counted.groups()
        width = min(BAR, room - len(line) - len("[] "))
        if width >= SHORTEST_BAR:
            full = int(done) * width // max(1, int(total))
            line = f"{what}: [{'#' * full:.<{width}}] {done}/{total}{rest}"
    draw(stream, f"\r\x1b[K{line[:room]}{ending}")


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def track(items: Sequence[_Item], what: str, unit: str, size: Callable[[_Item], int] = lambda _: 1) -> Iterator[_Item]:
    """The items, with the progress of what is done with each before the next; `size`: how many units an item is."""
    progress, done = Progress(what, sum(map(size, items)), unit), 0
    for item in items:
        yield item
        done += size(item)
        progress.update(done)


class Progress:
    """Counts `done` of `total` and prints at most twice a second. `done` never goes back."""

    def __init__(self, what: str, total: int, unit: str = "", stream: Optional[TextIO] = None) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._stream = sys.stderr if stream is None else stream
        self._started = time.monotonic()
        self._printed = self._started  # nothing is printed in the first half second

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        if now - self._printed < 0.5 and done < self.total:
            return
        if done >= self.total and self._printed == self._started:
            return  # it took less than half a second
        self._printed = now
        left = (now - self._started) / done * (self.total - done) if done else 0.0
        unit = f" {self.unit}" if self.unit else ""
        text = f"{self.what}: {done}/{self.total}{unit} {note + ', ' if note else ''}{duration(left)} left"
        if self._stream.isatty():
            redraw(self._stream, text + ("\n" if done >= self.total else ""))
        else:
            self._stream.write(f"[progress] {text}\n")
        self._stream.flush()
