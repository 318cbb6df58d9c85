"""Whether a step's outputs are up to date, by its record, and the one reason if they are not."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional

from deberta.core import files, records
from deberta.core.errors import DataError, StageError
from deberta.core.paths import record_of
from deberta.core.records import Record, Resource
from deberta.host.plan.plan import Input, Step
from deberta.host.run import changes, source_digest
from deberta.host.run.session import Session

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
            return f"its {key} changed{changes.describe(session, step, record, key, value)}"
    before, now = record.dependencies, records.digests(dependencies(session, step))
    for name in now:
        if before.get(name) != now[name]:
            return f"{name} changed"
    altered = altered_output(session, record)
    return altered[1] if altered is not None else None


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
        if session.force:
            return None
        raise


def run_folder(record: Record, output: PurePosixPath) -> PurePosixPath:
    """The `<output>/<T>` that a run left, as its record has it."""
    for name in record.subjects:
        if PurePosixPath(name).parent == output:
            return PurePosixPath(name)
    raise StageError(f"the record of {output} names no output folder. Infer again with --force")


def missing_inputs(session: Session, step: Step) -> list[Input]:
    return [needed for needed in step.inputs if not (session.workspace / needed.path).exists()]


def dependencies(session: Session, step: Step) -> list[Resource]:
    return [records.resource(needed.path, session.digests.of(needed.path)) for needed in step.inputs]


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


def unrecorded(session: Session, artifact: PurePosixPath) -> Path:
    """Marks a compiled model as ours between its rename and its first record."""
    path = session.workspace / artifact
    return path.with_name(f".{path.name}{UNRECORDED}")
