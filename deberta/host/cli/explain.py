"""explain: takes every option of the tasks that run steps, and reads those that were typed as that task does."""

from __future__ import annotations

from dataclasses import replace

from invoke.context import Context

from deberta.core.errors import ConfigError

# These modules make the commands that can be explained.
from deberta.host.cli import acceptance, check, evaluation, output  # noqa: F401
from deberta.host.cli.command import COMMANDS, command
from deberta.host.cli.options import OPTIONS, Options
from deberta.host.workflows import explain as workflow

EXPLAINED = {name: other for name, other in sorted(COMMANDS.items()) if {"executor", "dry"} <= set(other.options)}
UNREAD = {
    OPTIONS[field].name: replace(OPTIONS[field], default=None, usual="", positional=False, needed=False)
    for explained in EXPLAINED.values()
    for field in explained.options
    if field not in ("keep", "verbose", "dry", "json")
}


@command("task", "json", unread=list(UNREAD.values()))
def explain(c: Context, options: Options) -> None:
    """Say which steps a task would run, and why; run nothing."""
    if options.task not in EXPLAINED:
        raise ConfigError(f"{options.task!r} is no task that runs steps: {', '.join(EXPLAINED)}")
    explained = EXPLAINED[options.task]
    typed = {name: value for name, value in options.typed.items() if name not in ("task", "json")}
    if foreign := sorted(set(typed) - {entry.name for entry in explained.options.values()}):
        raise ConfigError(f"{options.task} takes no --{foreign[0]}. See: invoke --help {options.task}")
    steps: workflow.Planned = []
    explained.run(c, replace(explained.read(c, typed), planned=steps))
    verdicts = workflow.judge(steps)
    text = "\n".join(workflow.lines(verdicts)) if steps else f"{options.task} runs no step"
    output.show(options, workflow.document(options.task, verdicts), text)
