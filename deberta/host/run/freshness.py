"""Whether a step's outputs are up to date, by its record, and the one reason if they are not."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import PurePosixPath
from typing import Any, Iterator, Mapping, Optional, Sequence

from deberta.core import files, records
from deberta.core.errors import DataError, MissingError, StageError, some
from deberta.core.paths import RECORD_SUFFIX, record_of
from deberta.core.records import Record, Resource
from deberta.host.environments.stages import STAGES_LOCK
from deberta.host.plan.plan import Input, Step
from deberta.host.run import source_digest
from deberta.host.run.session import Session

FOREIGN = "was not made here, and is never replaced"
OF_BINS = re.compile(r"(.*/)?(input_\d+\.bin|order\.json)")
INTERRUPTED = "is of a run that did not get to its end"


def why_run(
    session: Session, step: Step, record: Optional[Record], wanted: Optional[Mapping[str, Any]] = None
) -> Optional[str]:
    """The one reason why a step has to run, or None if its outputs are up to date. `wanted`: not all its parameters."""
    if record is None:
        exists = (session.workspace / step.outputs[0]).exists()
        if files.is_interrupted(session.workspace / step.outputs[0]):
            return f"{step.outputs[0]} {INTERRUPTED}"
        return f"{step.outputs[0]} has no record" if exists else "not made yet"
    for key, value in (_known_parameters(session, step) if wanted is None else wanted).items():
        if record.parameters.get(key) != value and not (key == "arguments" and _is_as_good(step, record, value)):
            return f"its {key} changed{_change(session, step, record, key, value)}"
    before = record.dependencies
    for needed in dependencies(session, step):
        if before.get(needed.name) != needed.digest:
            return f"{needed.name} changed"
    altered = altered_output(session, record)
    return altered[1] if altered is not None else None


def _is_as_good(step: Step, record: Record, now: Sequence[str]) -> bool:
    """Whether the one thing that is not the same is that more loops were measured than are wanted.

    Or, of an accuracy run, that it ran on another device: its outputs depend on none.
    """
    before = record.parameters.get("arguments")
    if not isinstance(before, list) or not all(isinstance(argument, str) for argument in before):
        return False
    changes = option_changes(before, now)
    if step.inference is not None and step.inference.log_copy is None:
        return all(change.startswith("--device ") for change in changes)
    match = re.fullmatch(r"--loop ([0-9]{1,3}) -> ([0-9]{1,3})", "; ".join(changes))
    return match is not None and int(match[1]) > int(match[2])


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
    if key == "image" and (parts := _image_changes(session, str(now), record)):
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


def _image_changes(session: Session, tag: str, record: Record) -> list[str]:
    """What the image was made of when the step ran, compared with the one of this tag; no engine is needed."""
    from deberta.host.images import definition, pins  # tomlkit is not loaded for the list of tasks

    before = record.internal.get("image_inputs")
    if not isinstance(before, dict):
        return []
    stage = PurePosixPath(tag).name.partition(":")[0]
    now = definition.plan(session.project, pins.load(session.project), stage, platform.machine())
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
        if files.is_interrupted(session.workspace / path):
            return path, f"{name} {INTERRUPTED}"
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


def _known_parameters(session: Session, step: Step) -> dict[str, Any]:
    """The same, without what a tool runs in where that is not here: its outputs can be read without it."""
    return own_parameters(session, step) if not_compared(session, step) else parameters(session, step)


def not_compared(session: Session, step: Step) -> str:
    """Why what a tool's step runs in (CANN, msame, an image) cannot be compared with its record: it is not here."""
    try:
        if step.tool:
            session.executor.identity(step)
    except MissingError as error:
        return str(error)
    return ""


def own_parameters(session: Session, step: Step) -> dict[str, Any]:
    """What the step is told to do, wherever it runs."""
    if step.tool:
        unchecked = {"lint": False} if step.compilation is not None and step.gate is None else {}
        return {"step": step.name, "tool": step.tool, "arguments": list(step.arguments), **unchecked}
    code = source_digest.remembered(session.digests, session.project, step.module)
    return {"step": step.name, "stage": step.stage, "arguments": list(step.arguments), "code": code}


def is_user_supplied(session: Session, artifact: PurePosixPath) -> bool:
    """Whether something is there that we did not make: the guide's own .om can be dropped in and used as it is."""
    path = session.workspace / artifact
    if not path.exists() or (session.workspace / record_of(artifact)).exists() or files.is_interrupted(path):
        return False
    return path.is_file() or not _is_of_another_step(session, artifact)


def foreign(session: Session, step: Step, record: Optional[Record]) -> list[PurePosixPath]:
    """What lies where a step writes, and is the user's: `record` does not name it, or it is a folder with other files.

    Each run makes a folder of its own beside others. finetune and demo --remake say themselves what they replace.
    """
    if step.stage in ("finetune", "demo-data"):
        return []
    places = {path: session.workspace / path for path in step.outputs}
    of_runs = [run.output for run in step.inference.runs if places[run.output].is_dir()] if step.inference else []
    names = record.subjects if record else {}
    theirs = []
    for path, place in places.items():
        is_ours = str(path) in names or files.is_interrupted(place) or _is_of_another_step(session, path)
        is_mixed = not all(map(OF_BINS.fullmatch, files.files_in(place)))
        if os.path.lexists(place) and path not in of_runs and (is_mixed or not is_ours):
            theirs.append(path)
    return theirs


def _is_of_another_step(session: Session, path: PurePosixPath) -> bool:
    """Whether a record beside it or in a folder next to its own names it: the bins of a length in another choice do."""
    parent = session.workspace / path.parent
    beside = [*parent.glob(f"*{RECORD_SUFFIX}"), *parent.parent.glob(f"*/*{RECORD_SUFFIX}")]
    return any((record := records.read(other)) is not None and str(path) in record.subjects for other in beside)


@contextlib.contextmanager
def intended(session: Session, outputs: Sequence[PurePosixPath], former: Optional[Record]) -> Iterator[None]:
    """Keep an intent beside each output until the block has written the record, or failed before it changed anything.

    The first one names the folders of the run before as well: they go when the new record is there and names others.
    """
    paths = [session.workspace / output for output in outputs]
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.intent_of(path).touch()
            if os.getuid() == 0:  # a container adds to it as the workspace's owner
                owner = session.workspace.stat()
                os.chown(files.intent_of(path), owner.st_uid, owner.st_gid)
        for name in former.subjects if former else ():
            files.append(files.intent_of(paths[0]), files.BEFORE, name)
        files.commit_point("begun")
        yield
        settle(session, outputs)
    finally:
        for path in paths:
            if not set().union(*files.intended(path).values()) - {files.BEFORE}:
                files.remove(files.intent_of(path))


def settle(session: Session, outputs: Sequence[PurePosixPath]) -> None:
    """The record is of the present outputs: remove the folders of other runs that the intents name, and the intents."""
    paths = [session.workspace / output for output in outputs]
    intents = [(path, files.intended(path)) for path in paths if files.intent_of(path).exists()]
    record = records.read(session.workspace / record_of(outputs[0])) if intents else None
    for path, states in intents:
        for name, contents in states.items():
            folder = session.workspace / name if files.BEFORE in contents else path / name
            # An output that the user named may be outside the workspace, and then has an absolute name.
            relative = folder.relative_to(session.workspace) if session.workspace in folder.parents else folder
            known = record is None or str(relative) in record.subjects
            if not known and folder.is_dir() and not folder.is_symlink():
                files.remove(folder)
    for path, _ in reversed(intents):  # the first has the names of what has to go
        files.remove(files.intent_of(path))
