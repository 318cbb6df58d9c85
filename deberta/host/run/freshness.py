"""Whether a step's outputs are up to date, by its record, and the one reason if they are not."""

from __future__ import annotations

import platform
import re
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional, Sequence

from deberta.core import files, records
from deberta.core.errors import DataError, StageError, some
from deberta.core.paths import record_of
from deberta.core.records import Record, Resource
from deberta.host.environments.stages import STAGES_LOCK
from deberta.host.plan.plan import Input, Step
from deberta.host.run import source_digest
from deberta.host.run.session import Session

FOREIGN = "was not made here, and is never replaced"
OF_BINS = re.compile(r"(.*/)?(input_\d+\.bin|order\.json)")
UNRECORDED = f"{files.TEMPORARY}unrecorded"


def why_run(
    session: Session, step: Step, record: Optional[Record], wanted: Optional[Mapping[str, Any]] = None
) -> Optional[str]:
    """The one reason why a step has to run, or None if its outputs are up to date. `wanted`: not all its parameters."""
    if record is None:
        exists = (session.workspace / step.outputs[0]).exists()
        return f"{step.outputs[0]} has no record" if exists else "not made yet"
    for key, value in (parameters(session, step) if wanted is None else wanted).items():
        if record.parameters.get(key) != value:
            return f"its {key} changed{_change(session, step, record, key, value)}"
    before = record.dependencies
    for needed in dependencies(session, step):
        if before.get(needed.name) != needed.digest:
            return f"{needed.name} changed"
    altered = altered_output(session, record)
    return altered[1] if altered is not None else None


def _change(session: Session, step: Step, record: Record, key: str, now: Any) -> str:
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


def outdated(session: Session, step: Step) -> Optional[str]:
    """Why a step's outputs are not those that it would make now, or None if they are.

    A tool's options and what a step runs in (an environment, CANN, an image) are not compared: the outputs of a tool
    can be read without them.
    """
    missing = missing_inputs(session, step)
    if missing:
        return f"{missing[0].path} is missing"
    return why_run(session, step, last_record(session, step), {} if step.tool else own_parameters(session, step))


def altered_output(session: Session, record: Record) -> Optional[tuple[PurePosixPath, str]]:
    """The first output that is no longer what the record says, and what happened to it."""
    for name, digest in record.subjects.items():
        path = PurePosixPath(name)
        if not (session.workspace / path).exists():
            return path, f"{name} is missing"
        if session.digests.of(path) != digest:
            return path, f"{name} was changed after it was made"
    return None


def last_record(session: Session, step: Step) -> Optional[Record]:
    """The record of a step's last run; --force gets past a damaged one."""
    try:
        return records.read(session.workspace / record_of(step.outputs[0]))
    except DataError:
        if session.forces(step.task):
            return None
        raise


def run_folder(record: Record, output: PurePosixPath) -> PurePosixPath:
    """The `<output>/<T>` that a run left, as its record has it."""
    for name in record.subjects:
        if PurePosixPath(name).parent == output:
            return PurePosixPath(name)
    raise StageError(f"the record of {output} names no output folder. Run: invoke infer --force")


def missing_inputs(session: Session, step: Step) -> list[Input]:
    return [needed for needed in step.inputs if not (session.workspace / needed.path).exists()]


def dependencies(session: Session, step: Step) -> list[Resource]:
    return [session.digests.resource(needed.path) for needed in step.inputs]


def parameters(session: Session, step: Step) -> dict[str, Any]:
    """All that decides whether a step runs again, beside its inputs and outputs."""
    executor = session.executor
    return {**own_parameters(session, step), "executor": executor.name, **executor.identity(step)}


def own_parameters(session: Session, step: Step) -> dict[str, Any]:
    """What the step is told to do, wherever it runs."""
    if step.tool:
        unchecked = {"lint": False} if step.compilation is not None and step.gate is None else {}
        return {"step": step.name, "tool": step.tool, "arguments": list(step.arguments), **unchecked}
    code = source_digest.digest(session.project, step.module)
    return {"step": step.name, "stage": step.stage, "arguments": list(step.arguments), "code": code}


def is_user_supplied(session: Session, artifact: PurePosixPath) -> bool:
    """Whether a file is there that we did not make: the guide's own .om can be dropped in and used as it is."""
    recorded = (session.workspace / record_of(artifact)).exists()
    return (session.workspace / artifact).is_file() and not recorded and not unrecorded(session, artifact).exists()


def foreign(session: Session, step: Step, record: Optional[Record]) -> list[PurePosixPath]:
    """What lies where a step writes, and is the user's: `record` does not name it, or it is a folder with other files.

    Each run makes a folder of its own beside others. finetune and demo --remake say themselves what they replace.
    """
    if step.stage in ("finetune", "demo-data") or unrecorded(session, step.outputs[0]).exists():
        return []
    places = {path: session.workspace / path for path in step.outputs}
    of_runs = [run.output for run in step.inference.runs if places[run.output].is_dir()] if step.inference else []
    names = record.subjects if record else {}
    mixed = [path for path in places if not all(map(OF_BINS.fullmatch, files.files_in(places[path])))]
    theirs = [path for path in places if str(path) not in names or path in mixed]
    return [path for path in theirs if places[path].exists() and path not in of_runs]


def unrecorded(session: Session, artifact: PurePosixPath) -> Path:
    """Marks a compiled model as ours between its rename and its first record."""
    path = session.workspace / artifact
    return path.with_name(f".{path.name}{UNRECORDED}")
