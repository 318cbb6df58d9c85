"""Commands: invoke's tasks with arguments from the table of options; errors become a line and an exit code."""

from __future__ import annotations

import atexit
import errno
import functools
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from typing import Any, Callable, Optional, TextIO, cast

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.tasks import Task

from deberta.core.errors import (
    ERROR_PREFIX,
    ERROR_STREAM,
    INTERRUPTED,
    OUTPUT_STREAM,
    ConfigError,
    DebertaError,
    VisibleStream,
    discard,
    from_os_error,
    one_line,
    visible_output,
)
from deberta.core.progress import RED, write
from deberta.host.cli import output
from deberta.host.cli.options import OPTIONS, Document, Option, Options
from deberta.host.run.console import PLAIN, Surroundings, surroundings
from deberta.host.run.messages import as_started

Body = Callable[[Context, Options], None]

RUN = ("executor", "keep", "force", "verbose", "dry")  # of every task that runs steps
DEVICES = ("cluster", "allow_different_devices")  # of those that share a run out to several
DEVICE = ("soc_version", "device", "msame", "runner")  # of those that run the model

COMMANDS: dict[str, Command] = {}  # name -> every command whose module has been imported


class Command(Task[Callable[..., None]]):
    """A task that takes `options` (field of Options -> option) and leaves `unread` ones in Options.typed."""

    def __init__(self, body: Body, options: Mapping[str, Option], unread: Sequence[Option] = ()) -> None:
        @functools.wraps(body)
        def run(c: Context, **typed: Any) -> None:
            around, document = surroundings(os.environ), Document() if typed.get("json") else None
            with exit_codes(around, document, functools.partial(self.another_way, typed)):
                values = replace(self.read(c, typed), surroundings=around, document=document)
                if document and values.dry and "dry" in self.options:
                    raise ConfigError("--json and --dry: a dry run has no result. Give one of them")
                with _only_document(document):
                    body(c, values)

        self.options, self.unread, self.run = options, unread, body
        super().__init__(run, positional=())
        COMMANDS[body.__name__.replace("_", "-")] = self

    def another_way(self, typed: Mapping[str, Any], message: str) -> str:
        """The message of this command's error, whose hint is never the command that has just failed.

        In its place stands the same command with --force, if it takes that, or nothing.
        """
        task = self.name.replace("_", "-")
        words = {f"--{name}" for name, value in typed.items() if value not in (None, False, [])}

        def way(match: re.Match[str]) -> str:
            if not words.issuperset(re.findall(r"(?<= )--[a-z-]+", match[1])):
                return match[0]
            takes_force = "force" in self.options and "--force" not in words
            return ". Run the same command with --force" if takes_force else ""

        return re.sub(rf"\. Run: invoke {task}((?: --[a-z-]+(?: (?!--)[^\s.,;]+)?)*)(?=$|\. )", way, message)

    @property
    def all_options(self) -> list[Option]:
        """Those that are read, then those that are not."""
        return [*self.options.values(), *self.unread]

    def get_arguments(self, ignore_unknown_help: Optional[bool] = None) -> list[Argument]:
        """What invoke's parser takes: positional ones first, a short flag only where the table has it."""
        options = sorted(self.all_options, key=lambda entry: not entry.positional)
        return [
            Argument(
                names=(entry.name, entry.short) if entry.short else (entry.name,),
                kind=entry.kind,
                default=False if entry.kind is bool else None,
                help=entry.help,
                positional=entry.positional,
            )
            for entry in options
        ]

    def read(self, c: Context, typed: Mapping[str, Any]) -> Options:
        """The options' values; `--dry` may be invoke's own. Raises ConfigError."""
        values = {field: entry.value(typed.get(entry.name)) for field, entry in self.options.items()}
        values.setdefault("task", self.name.replace("_", "-"))
        values["dry"] = bool(values.get("dry") or c.config.run.dry)
        present = {name: value for name, value in typed.items() if value not in (None, False, [])}
        return Options(**values, typed=present)


def command(
    *names: str, needed: Sequence[str] = (), unread: Sequence[Option] = (), **defaults: str
) -> Callable[[Body], Command]:
    """Make a task of a function: options by field, those that must be typed, and those with a default of its own."""
    options = {field: replace(OPTIONS[field], needed=OPTIONS[field].needed or field in needed) for field in names}
    options.update({field: replace(OPTIONS[field], default=default) for field, default in defaults.items()})
    return lambda body: Command(body, options, unread)


@contextmanager
def _only_document(document: Optional[Document]) -> Iterator[None]:
    """Keep standard output for the document, if there is to be one: what else is printed goes to standard error."""
    if document is None:
        yield
        return
    document.stream = sys.stdout
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def exit_codes(
    around: Surroundings = PLAIN, document: Optional[Document] = None, edit: Callable[[str], str] = str
) -> Iterator[None]:
    """Our errors end a task with one line and their exit code; a bug keeps its traceback.

    An error is the document, if one was to be printed and is not yet. `edit` changes the message.
    """
    # Being terminated cleans up as Ctrl-C does; and a shell's background job, which ignores SIGINT, can be stopped.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # of nohup
            signal.signal(number, signal.default_int_handler)
    atexit.register(_ignore_signals)
    try:
        with visible_output(around.terminal, around.colour, as_started):
            yield
        return
    except (DebertaError, OSError) as error:
        known = from_os_error(error) if isinstance(error, OSError) else error
        message, code = f"{ERROR_PREFIX}{one_line(edit(str(known)))}", known.exit_code
        if isinstance(error, OSError) and (error.errno, error.filename) == (errno.EIO, OUTPUT_STREAM):
            code = INTERRUPTED  # the terminal was closed
    except KeyboardInterrupt:
        message, code = "interrupted; what was finished is kept, run the same command to go on", INTERRUPTED
    in_place = document is not None and not document.shown
    message = as_started(message)
    text = message.removeprefix(ERROR_PREFIX)
    head = message[: len(message) - len(text)]
    _print_last(around, (head, RED), (f"{text}\n", ""), document=output.error(text, code) if in_place else "")
    raise Exit(code=code)


def _ignore_signals() -> None:
    """Keep a signal from changing the exit code of a command that has said how it ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _print_last(around: Surroundings, *message: tuple[str, str], document: str) -> None:
    """Print a message to standard error, and a document to standard output, whatever has become of both streams."""
    for stream, name, parts in ((sys.stdout, OUTPUT_STREAM, ((document, ""),)), (sys.stderr, ERROR_STREAM, message)):
        try:
            if stream is not None:
                write(cast(TextIO, VisibleStream(stream, name, around.terminal, around.colour)), *parts)
                stream.flush()
        except OSError:
            discard(stream)
