"""The page docs/commands.md: `python -m tests.commands_page > docs/commands.md` in the project's folder."""

from __future__ import annotations

import inspect

# These modules make the commands; explain has imported the others.
from deberta.host.cli import cluster, development, explain, preparation, reproduce  # noqa: F401
from deberta.host.cli.command import COMMANDS
from deberta.host.cli.options import Option

HEAD = """\
# Commands

Every task of `./inv` with its options; `./inv --help TASK` shows one task's. `./inv --dry TASK` is its own `--dry`.

Results are on standard output, how it goes is on standard error. What is up to date is told in one line; `-v` names
each such step and shows digests. With `--json` standard output is one document by the schema in
[schemas/](schemas), whatever else is said is on standard error, and a command that fails before it has a result
prints `{"error": {"message": ..., "exit_code": ...}}`. On a terminal there are colours and a bar with the remaining
time, unless `NO_COLOR` or `CI` is set or `TERM` is `dumb`. In the logs of GitHub (`GITHUB_ACTIONS`) and GitLab
(`GITLAB_CI`) each step is folded.

The shell can complete tasks and options: `eval "$(./inv --print-completion-script bash)"` in `~/.bashrc`; in
`~/.zshrc` the same with `zsh`; for fish `./inv --print-completion-script fish | source`. `inv` works from any
folder, and paths of options are relative to where you stand.

This page is made by `.venv/bin/python -m tests.commands_page`, of the table in `deberta/host/cli/options.py`.
"""


def page() -> str:
    """The page, Markdown."""
    lines = [HEAD]
    for name, command in sorted(COMMANDS.items()):
        entries = sorted(command.options.values(), key=lambda entry: (not entry.positional, entry.name))
        positional = "".join(f" {entry.name.upper()}" for entry in entries if entry.positional)
        lines.append(
            f"## {name}\n\n`./inv {name}{positional}`: {escape(' '.join((inspect.getdoc(command) or '').split()))}\n"
        )
        rows = [f"| {usage(entry)} | {escape(entry.help)} |" for entry in entries]
        if command.unread:
            rows.append(
                "| the options of TASK, without `--keep`, `--verbose`, `--json` and `--dry` | as TASK reads them |"
            )
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Text in which Markdown sees no HTML."""
    return text.replace("<", r"\<")


def usage(entry: Option) -> str:
    """How the option is typed."""
    if entry.positional:
        return f"`{entry.name.upper()}`"
    long = f"-{entry.name}" if len(entry.name) == 1 else f"--{entry.name}"
    value = "" if entry.kind is bool else f" {entry.name.upper()}"
    return f"`{long}{value}`" if not entry.short else f"`-{entry.short}`, `{long}{value}`"


if __name__ == "__main__":
    print(page(), end="")
