"""What changed in a parameter of a step's record, in words: which option, package, image part or source file."""

from __future__ import annotations

import platform
from typing import Any, Sequence

from deberta.core.errors import some
from deberta.core.records import Record
from deberta.host.environments.stages import STAGES_LOCK
from deberta.host.plan.plan import Step
from deberta.host.run import source_digest
from deberta.host.run.session import Session


def describe(session: Session, step: Step, record: Record, key: str, now: Any) -> str:
    """The old and the new value of the parameter `key`, as a continuation of "its <key> changed"."""
    before = record.parameters.get(key)
    if key == "arguments" and before is not None:
        return f": {', '.join(option_changes(before, now))}"
    if key == "code":
        changed = source_digest.changed_since(record, session.project, step.module)
        return f" ({some(changed)})" if changed else ""
    values = f"{_short(before)} -> {_short(now)}"
    if key == "packages":
        return f": {STAGES_LOCK} is another one, {values}"
    if key == "image" and (parts := _image_changes(session, step, record)):
        return f": {values}: {', '.join(parts)}"
    return f": {values}"


def option_changes(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """What is not the same in two command lines, one text for each option."""
    before, now = _options(old), _options(new)
    changes = []
    for name in dict.fromkeys([*now, *before]):
        if name not in before:
            changes.append(f"{name} {now[name]} is new".replace("  ", " "))
        elif name not in now:
            changes.append(f"{name} {before[name]} is gone".replace("  ", " "))
        elif before[name] != now[name]:
            changes.append(f"{name} {_short(before[name])} -> {_short(now[name])}")
    return changes or ["their order"]


def _options(arguments: Sequence[str]) -> dict[str, str]:
    """Option to value: `--name value ...` as our stages and msame take it, `--name=value` as atc does."""
    options: dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, separator, value = argument.partition("=")
            options[name] = value if separator else ""
        else:
            options[name] = f"{options.get(name, '')} {argument}".strip()
    return options


def _image_changes(session: Session, step: Step, record: Record) -> list[str]:
    """What the image was made of when the step ran, compared with now; no engine is needed."""
    from deberta.host.images import definition, pins  # tomlkit is not loaded for the list of tasks
    from deberta.host.run.docker_executor import STAGES

    before = record.internal.get("image_inputs")
    if not isinstance(before, dict):
        return []
    now = definition.plan(session.project, pins.load(session.project), STAGES[step.tool], platform.machine())
    return definition.changes(before, now.inputs)


def _short(value: Any) -> str:
    """A value as a message shows it; of a digest and of a long list of paths its beginning."""
    text = "nothing" if value is None else str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f"{text[:12]}.."
    return text if len(text) <= 120 else f"{text[:117]}..."
