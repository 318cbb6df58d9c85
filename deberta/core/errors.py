"""The errors that users see: each class has one exit code, each message says what, where, and what to run next.

And how text from outside gets to a terminal or a page: with its control characters made visible.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from typing import Any, Callable, Iterator, Optional, Sequence, TextIO, cast


class DebertaError(Exception):
    """An error that the user can act on: shown as one line, without a traceback."""

    exit_code = 4


class ConfigError(DebertaError):
    """A bad value or configuration."""

    exit_code = 2


class MissingError(DebertaError):
    """Something needed is missing; the message names the command that makes it."""

    exit_code = 3


class StageError(DebertaError):
    """A stage ran and failed."""

    exit_code = 4


class DataError(DebertaError):
    """Data are wrong, or an artifact is not what its record says."""

    exit_code = 5


class GateError(DebertaError):
    """Everything ran, but a gate failed."""

    exit_code = 6


INTERRUPTED = 130
LONGEST_MESSAGE = 4000  # characters
ERROR_PREFIX = "error: "
OUTPUT_STREAM, ERROR_STREAM = "standard output", "standard error"
_BY_CODE = {c.exit_code: c for c in (ConfigError, MissingError, StageError, DataError, GateError)}


def from_exit_code(code: int, message: str) -> DebertaError:
    """The error that a stage process reported; an exit code that is not ours becomes StageError."""
    return _BY_CODE.get(code, StageError)(message)


def from_os_error(error: OSError) -> DebertaError:
    """An operating-system error as one of ours, naming the file and what usually helps."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.EPIPE:
        return StageError(f"nobody reads the output any more{where}. Run it again with its output in a file")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(f"the disk is full{where}. Free some space, then run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"no permission{where}: {error.strerror}. Check the owner and mode of the folder")
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR):
        return ConfigError(f"{error.strerror}{where}. Check the path")
    if isinstance(error, ValueError) and error.filename:  # files.UnfitFile
        return DataError(f"{error.filename} {error.strerror}")
    if isinstance(error, FileNotFoundError):
        return MissingError(f"{error.filename} is missing. Run: invoke doctor")
    return StageError(f"{error.strerror or error}{where}")


def run_stage(main: Callable[[Sequence[str]], None], argv: Optional[Sequence[str]] = None) -> int:
    """Run a stage's main and return its exit code; errors of ours become one line on stderr."""
    try:
        with visible_output():
            main(sys.argv[1:] if argv is None else argv)
        return 0
    except DebertaError as error:
        problem = error
    except OSError as error:
        problem = from_os_error(error)
    except MemoryError:
        problem = StageError("out of memory. Close other programs or use a smaller batch size")
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        # What the tokenizer library, in Rust, raises: PanicException, which is no Exception, or a bare Exception.
        if type(error).__name__ != "PanicException" and type(error) is not Exception:
            raise
        problem = DataError(f"the tokenizer cannot be used: its library failed ({error}). Fetch its files again")
    print(f"{ERROR_PREFIX}{one_line(str(problem))}", file=sys.stderr, flush=True)
    return problem.exit_code


def one_line(text: str) -> str:
    """For a message: without line ends and control characters, and of a very long one the beginning and the end."""
    line = visible(" ".join(text.split()))
    return line if len(line) <= LONGEST_MESSAGE else f"{line[:1000]} ... {line[1000 - LONGEST_MESSAGE :]}"


# C0 but tab and newline, DEL, C1, what turns the direction of text around, and surrogates, which no encoding has.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with control characters as \\u001b and the like; a JSON document keeps its content."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class VisibleStream:
    """Standard output or error: control characters become visible, and what cannot be written names the stream.

    What cannot be written to standard error, progress and messages, is lost without an error. `rewrites`: whether a
    line on a terminal may be drawn again; `colour`: whether it may have colours; `edit` changes what is written.
    """

    def __init__(
        self,
        stream: TextIO,
        name: str,
        rewrites: bool = True,
        colour: bool = False,
        edit: Callable[[str], str] = str,
    ) -> None:
        self.terminal: TextIO = getattr(stream, "terminal", stream)
        self.name, self.rewrites = name, rewrites
        self.colour = colour and self.isatty()
        self._edit = edit

    def isatty(self) -> bool:
        return self.rewrites and self.terminal.isatty()

    def write(self, text: str) -> int:
        return self.draw(visible(self._edit(text)))

    def draw(self, text: str) -> int:
        """Write control characters of our own as they are."""
        with self._named():
            self.terminal.write(text)
        return len(text)

    def flush(self) -> None:
        with self._named():
            self.terminal.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            discard(self.terminal)
            if self.name != ERROR_STREAM:
                raise OSError(error.errno, error.strerror, self.name) from None


def discard(stream: TextIO) -> None:
    """Let what a stream still gets vanish, so that Python's own flush at the end does not fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextlib.contextmanager
def visible_output(
    rewrites: bool = True, colour: bool = False, edit_message: Callable[[str], str] = str
) -> Iterator[None]:
    """Within this, whatever is printed has its control characters made visible; a closed stream is /dev/null.

    `rewrites` and `colour`: what a terminal is for, as of VisibleStream; `edit_message` changes what goes to standard
    error.
    Raises OSError with the stream's name as its file if the output cannot be written to its end.
    """
    for number in range(3):  # or the next file to be opened would be standard output
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    with open(os.devnull, "w", encoding="utf-8") as nothing:
        output = cast(TextIO, VisibleStream(sys.stdout or nothing, OUTPUT_STREAM, rewrites, colour))
        error = cast(TextIO, VisibleStream(sys.stderr or nothing, ERROR_STREAM, rewrites, colour, edit_message))
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
            yield
            output.flush()


def many(count: int, noun: str) -> str:
    """As in 1 row, 2 rows."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, its cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def some(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, separated by commas, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
