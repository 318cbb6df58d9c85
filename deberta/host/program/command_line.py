"""The program around the tasks: invoke's own, with our name, list, help, version, suggestions and completion.

`inv` starts it through tasks.py. Plain `invoke` goes on as it once it has loaded tasks.py, which imports this module.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

import invoke
from invoke import main as plain
from invoke.context import Context
from invoke.exceptions import Exit, ParseError
from invoke.parser.context import ParserContext
from invoke.program import Program

from deberta import PROJECT, __version__
from deberta.core.errors import ERROR_PREFIX, DebertaError, MissingError, one_line, visible
from deberta.host.cli import preparation
from deberta.host.cli.command import COMMANDS, Command
from deberta.host.program import completion
from deberta.host.run import messages

STARTED_AS = "DEBERTA_STARTED_AS"  # the environment variable in which `inv` says how the user called it
GROUPS: Mapping[str, Sequence[str]] = {
    "set up": ("doctor", "status", "fetch", "add-profile", "adopt", "images", "wheelhouse", "clean"),
    "make": (
        "export-onnx",
        "preprocess",
        "build-om",
        "infer",
        "postprocess",
        "evaluate",
        "perf",
        "finetune",
        "predict",
    ),
    "judge": (
        "lint-onnx",
        "check-fp16",
        "compare",
        "acceptance",
        "report",
        "diff",
        "verify",
        "sign",
        "reproduce",
        "explain",
    ),
    "share": ("ci-image", "cluster"),
    "try": ("demo", "bench", "test", "lint"),
}


def with_file(words: Sequence[str]) -> list[str]:
    """`predict FILE` as `predict --file FILE`: a positional argument cannot be left out."""
    if words[:1] == ["predict"]:
        valued = [option for option in COMMANDS["predict"].all_options if option.kind is not bool]
        flags = {flag for option in valued for flag in option.flags}
        for at in range(1, len(words)):
            if not words[at].startswith("-") and words[at - 1] not in flags and words[at] not in COMMANDS:
                return [*words[:at], "--file", *words[at:]]
    return list(words)


class CommandProgram(Program):
    """What the command line says around our tasks."""

    @property
    def name(self) -> str:
        return "deberta-ascend"

    @property
    def binary(self) -> str:
        """What a command line begins with that has the same settings as this one."""
        started = os.environ.get(STARTED_AS)
        words = [typed_name(started or (self.argv[0] if self.argv else "invoke"))]
        if not started and (root := self.args["search-root"].value):
            words += ["--search-root", shlex.quote(root)]
        if settings := self.args.config.value:
            words += ["-f", shlex.quote(settings)]
        return visible(" ".join(words))

    def update_config(self, merge: bool = True) -> None:
        settings = self.args.config.value
        if settings and not os.path.exists(settings):  # invoke goes on without it
            message = f"{ERROR_PREFIX}{one_line(settings)} is missing: the settings file of -f"
            raise Exit(message, code=MissingError.exit_code)
        super().update_config(merge)

    def print_version(self) -> None:
        print(f"{self.name} {__version__} (invoke {invoke.__version__}, Python {platform.python_version()})")

    def print_help(self) -> None:
        super().print_help()
        print(f"Tasks: {self.binary} --list\nOptions of one: {self.binary} --help TASK")

    def parse_core_args(self) -> None:
        with _refusals():
            super().parse_core_args()
        if shell := self.args["print-completion-script"].value:
            print(completion.script(shell), end="")
            raise Exit

    def parse_tasks(self) -> None:
        words = self.core.unparsed
        if words and words[0] in COMMANDS and {"-h", "--help"} & {*words[1:]}:  # a positional argument would take it
            self.args.help.value = words[0]
            words.clear()
        words[:] = with_file(words)
        try:
            with _refusals():
                super().parse_tasks()
        except ParseError as error:
            raise ParseError(self._suggestion(error), error.context) from None

    def parse_cleanup(self) -> None:
        messages.start(self.binary, COMMANDS)
        if self.args.complete.value:
            core = [f"--{argument.name}" for argument in self.initial_context.args.values()]
            for candidate in completion.candidates(self.core.remainder, core, self.config.get("profiles") or ()):
                print(candidate)
            raise Exit
        try:
            super().parse_cleanup()
        except ParseError as error:
            raise ParseError(self._suggestion(error), error.context) from None

    def no_tasks_given(self) -> None:
        self.update_config()
        try:
            now = f"{preparation.can_run_now(Context(self.config)).line}\n\n"
        except DebertaError as error:
            now = f"{ERROR_PREFIX}{one_line(str(error))}\n\n"
        print(visible(messages.as_started(now)), end="")
        self.list_flat()
        raise Exit

    def list_flat(self) -> None:
        """The tasks in groups, a line each."""
        width = max(map(len, COMMANDS))
        for group, names in GROUPS.items():
            print(f"{group}:")
            for name in names:
                print(f"  {name.ljust(width)}  {summary(COMMANDS[name])}")
            print()
        print(f"Options of one: {self.binary} --help TASK. Of all: docs/commands.md. To begin with: {self.binary} demo")

    def list_nested(self) -> None:
        self.list_flat()

    def print_task_help(self, name: str) -> None:
        """A task's usage, meaning and options, those that must be given first."""
        task = COMMANDS[name]
        entries = sorted(task.options.values(), key=lambda entry: (not entry.positional, entry.name))
        required = [entry for entry in entries if entry.positional or entry.needed]
        optional = [entry for entry in entries if entry not in required]
        words = [self.binary, name, *(entry.required_usage for entry in required)]
        print(f"Usage: {' '.join([*words, *(['[options]'] if optional or task.unread else [])])}\n")
        print(f"{messages.as_started(inspect.getdoc(task) or '')}\n")
        if required:
            print("Required:")
            self.print_columns([(entry.usage, messages.as_started(entry.help)) for entry in required])
        if task.unread:
            print("Options: those of TASK, without --keep and --dry\n")
        if optional:
            print("Options:")
            self.print_columns([(entry.usage, messages.as_started(entry.help)) for entry in optional])

    def _suggestion(self, error: ParseError) -> str:
        """A refusal of the command line, with what was probably meant and where to look."""
        text = re.sub(r"<Argument: ([\w-]+).*?>", r"--\1", visible(str(error)))
        refused = text.split("'")[1] if text.startswith("No idea what '") and text.count("'") > 1 else ""
        context: ParserContext = error.context if error.context is not None else self.initial_context
        where = f"{self.binary} --help {context.name}" if context.name else f"{self.binary} --list"
        known = [*dict.fromkeys([*context.flag_names(), *self.initial_context.flag_names()])]
        if refused and not refused.startswith("-"):
            known, where = [*COMMANDS], f"{self.binary} --list"
        close = difflib.get_close_matches(refused, known, n=1) if refused else []
        meant = f" Did you mean {close[0]}?" if close else ""
        return f"{text}{meant} See: {where}"


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What a number of invoke's own options is not ends in its refusal, without a traceback."""
    try:
        yield
    except ValueError as error:
        raise ParseError(str(error)) from None


def typed_name(typed: str) -> str:
    """How a program is called again, for a shell: by its name if PATH leads to it, else by the path that was typed."""
    name = os.path.basename(typed)
    if name == "__main__.py":
        return "invoke"
    on_path = shutil.which(name)
    if "/" not in typed:
        if on_path or not os.path.isfile(name):
            return shlex.quote(name)
        typed = f"./{name}"  # `sh inv`
    elif on_path and os.path.isfile(typed) and os.path.samefile(on_path, typed):
        return shlex.quote(name)
    runs = not os.path.isfile(typed) or os.access(typed, os.X_OK)
    return shlex.quote(typed) if runs else f"sh {shlex.quote(typed)}"


def summary(command: Command) -> str:
    """The first line of what a command says of itself."""
    return (inspect.getdoc(command) or "").partition("\n")[0]


def main() -> None:
    """What `inv` starts."""
    CommandProgram(version=__version__).run(["inv", "--search-root", str(PROJECT), *sys.argv[1:]])


plain.program.__class__ = CommandProgram
