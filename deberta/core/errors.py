"""The errors that users see: each class has one exit code, each message says what, where, and what to run next."""

from __future__ import annotations

import errno
import sys
from typing import Callable, Optional, Sequence


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
ERROR_PREFIX = "error: "
_BY_CODE = {c.exit_code: c for c in (ConfigError, MissingError, StageError, DataError, GateError)}


def from_exit_code(code: int, message: str) -> DebertaError:
    """The error that a stage process reported; an exit code that is not ours becomes StageError."""
    return _BY_CODE.get(code, StageError)(message)


def from_os_error(error: OSError) -> DebertaError:
    """An operating-system error as one of ours, naming the file and what usually helps."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(f"the disk is full{where}. Free some space, then run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ConfigError(f"no permission{where}: {error.strerror}. Check the owner and mode of the folder")
    if isinstance(error, FileNotFoundError):
        return MissingError(f"{error.filename} is missing. Run: invoke doctor")
    return StageError(f"{error.strerror or error}{where}")


def run_stage(main: Callable[[Sequence[str]], None], argv: Optional[Sequence[str]] = None) -> int:
    """Run a stage's main and return its exit code; errors of ours become one line on stderr."""
    try:
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
    print(f"{ERROR_PREFIX}{one_line(str(problem))}", file=sys.stderr, flush=True)
    return problem.exit_code


def one_line(text: str) -> str:
    return " ".join(text.split())


def many(count: int, noun: str) -> str:
    """As in 1 row, 2 rows."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def some(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, separated by commas, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
