"""Runs planned steps: skips what is up to date, says why the rest runs, checks what came out, and records it."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, NamedTuple, Optional, Sequence

from deberta.ascend import programs
from deberta.core import files, progress, records, schema
from deberta.core.errors import ConfigError, DataError, DebertaError, StageError
from deberta.core.paths import record_of
from deberta.core.records import Record
from deberta.host.plan.plan import Input, Step
from deberta.host.run import devices, freshness, messages, source_digest
from deberta.host.run.console import Console
from deberta.host.run.executor import Provenance
from deberta.host.run.session import Session

MANY = 4  # artifacts of a step
BUILDER = "urn:deberta-ascend:executor:"


class StepResult(NamedTuple):
    """A step's record, None in a dry run, and whether it ran now."""

    record: Optional[Record]
    ran: bool

    @property
    def summary(self) -> Mapping[str, Any]:
        """What the stage counted."""
        return self.record.summary if self.record else {}


def check_sources(session: Session, steps: Sequence[Step]) -> None:
    """Raise one MissingError naming all inputs that no earlier step of `steps` makes and that are not there."""
    outputs: set[PurePosixPath] = set()
    missing: dict[PurePosixPath, Input] = {}
    for step in steps:
        for needed in freshness.missing_inputs(session, step):
            if needed.path not in outputs:
                missing.setdefault(needed.path, needed)
        outputs.update(step.outputs)
    if missing:
        raise messages.missing(list(missing.values()))


def run_all(session: Session, steps: Sequence[Step]) -> list[StepResult]:
    """Run steps in order, after a look at everything that they need from outside."""
    check_sources(session, steps)
    return [run(session, step) for step in steps]


def run(session: Session, step: Step) -> StepResult:
    """Bring a step's outputs up to date."""
    if session.dry:
        _show(session, step)
        return StepResult(None, False)
    console = Console(step.title)
    if missing := freshness.missing_inputs(session, step):
        raise messages.missing(missing)
    record = freshness.last_record(session, step)
    force = session.forces(step.task) and step.name not in session.ran
    reason = session.why_forced if force else freshness.why_run(session, step, record)
    if record is not None and reason is None:
        freshness.settle(session, step.outputs)
        files.remove(session.workspace / programs.scratch(step.name))  # of a run that was stopped
        unknown = freshness.not_compared(session, step)
        note = f" (what ran it was not compared with what is here: {re.split('[.:] ', unknown)[0]})" if unknown else ""
        if session.verbose or note not in ("", *session.up_to_date.values()):
            console.say(f"up to date: {', '.join(str(path) for path in step.outputs)}{note}")
        if step.name not in session.ran:
            session.up_to_date[step.name] = note
        return StepResult(record, False)
    if session.strict and record is not None and not force:
        altered = freshness.altered_output(session, record)
        if altered is not None and altered[1] == reason and not files.is_interrupted(session.workspace / altered[0]):
            raise messages.altered(step, *altered, session.workspace)
    foreign = freshness.foreign(session, step, record)
    if foreign and not (force and session.why_forced == "--force"):
        command = step.commands.get(step.task)
        again = f", or run: {command} --force, which renames it to {foreign[0].name}.before-<time>" if command else ""
        raise DataError(f"{foreign[0]} {freshness.FOREIGN}. Move it away{again}")
    session.ran.add(step.name)
    console.say(f"running: {reason}")
    aside = {session.workspace / path: _move_aside(session.workspace / path, console) for path in foreign}
    try:
        with freshness.intended(session, step.outputs, record if step.inference else None):
            return StepResult(_run(session, step, console), True)
    except BaseException:
        for place in (place for place in aside if not place.exists()):
            os.rename(aside[place], place)
        raise


def look(session: Session, step: Step) -> dict[str, Any]:
    """Run a stage for its summary alone."""
    Console(step.title).say("reading")
    session.executor.prepare(step)
    scratch = programs.new_scratch(session.workspace, step.name)
    try:
        arguments = [*step.arguments, "--summary", str(programs.scratch(step.name) / "summary.json")]
        devices.run_stage(session, step, arguments, lambda line: None)
        return schema.read_json(scratch / "summary.json", dict[str, Any])
    finally:
        files.remove(scratch)


def _move_aside(place: Path, console: Console) -> Path:
    """Rename a file of the user's after the time, never over another; returns its new path."""
    aside = files.aside(place)
    os.rename(place, aside)
    console.say(f"{place.name} was not made here: it is now {aside}")
    return aside


def _show(session: Session, step: Step) -> None:
    for planned in (step.gate, step):
        if planned is not None and planned.name not in session.ran:
            session.ran.add(planned.name)
            if session.planned is None:
                session.executor.show(planned)
            else:
                session.planned.append((session, planned))


def _run(session: Session, step: Step, console: Console) -> Record:
    """Run a step and return its new record."""
    gate = {"gate": run(session, step.gate).summary} if step.gate is not None else {}
    session.executor.prepare(step)
    provenance = session.executor.provenance(step)
    _check_cann(session, step, provenance)
    parameters, dependencies = freshness.parameters(session, step), freshness.dependencies(session, step)
    begun, clock = session.shards.begun(step) if session.shards else "", time.monotonic()
    started = begun or records.now()
    summary = programs.new_scratch(session.workspace, step.name) / "summary.json"
    try:
        with console.group(session.groups):
            subjects = _execute(session, step, summary, console)
    except DebertaError as error:
        raise type(error)(messages.completed(step, str(error))) from error
    for subject in subjects:
        if not (session.workspace / subject).exists():
            raise StageError(f"{step.title} ended without an error, but {subject} is not there. See {step.log}")
    # The files behind the parameter `code`, so that a later run can name those that changed.
    counts = schema.read_json(summary, dict[str, Any]) if summary.exists() else {}  # a tool may have none
    sources = {"sources": source_digest.sources(session.project, step.module)} if step.stage else {}
    shards = session.shards.internal(step) if session.shards and step.inference else {}
    statement = records.statement(
        subjects=[session.digests.resource(subject) for subject in subjects],
        dependencies=[*dependencies, *provenance.dependencies],
        parameters=parameters,
        internal={**provenance.internal, **sources, **shards},
        builder=f"{BUILDER}{session.executor.name}",
        started=started,
        finished=records.now(),
        summary={**counts, **gate},
    )
    files.remove(session.workspace / programs.scratch(step.name))
    # Replace the record last: until then it still describes the old outputs.
    records.write(session.workspace / record_of(step.outputs[0]), statement)
    if session.shards and step.inference:
        session.shards.recorded(session, step)
    for line in _describe_all(session, subjects):
        console.say(line)
    console.say(f"done in {statement.seconds if begun else time.monotonic() - clock:.1f} s", progress.GREEN)
    return statement


def _check_cann(session: Session, step: Step, provenance: Provenance) -> None:
    """Raise ConfigError if a model would run on another CANN than the one that compiled it, where both are known.

    Such a pair converts without a word and fails when it runs (ACL 507011, 500002), or should not be trusted.
    """
    if not step.on_device:
        return
    compiled = step.inputs[0].path
    record = records.read(session.workspace / record_of(compiled))
    compiler, runtime = record.internal.get("cann") if record else "", provenance.internal.get("cann")
    if compiler and runtime and compiler != runtime:
        raise ConfigError(
            f"{compiled} was compiled with CANN {compiler}, and CANN {runtime} would run it. Use the same for both "
            "(cann in invoke.yaml, or docker/cann and the images' bases), then run: invoke build-om --force"
        )


def _execute(session: Session, step: Step, summary: Path, console: Console) -> list[PurePosixPath]:
    """Run the command and return the paths of what it left."""
    arguments = [*step.arguments, *(["--summary", str(summary.relative_to(session.workspace))] if step.stage else [])]
    try:
        if step.compilation is not None:
            return devices.compile_om(session, step, step.compilation, summary, console)
        if step.inference is not None:
            return devices.infer(session, step, step.inference, arguments, summary, console)
        devices.run_stage(session, step, arguments, console.line)
        return list(step.outputs)
    except BaseException:
        for output in step.outputs:  # what a command that was killed had half written
            files.remove_leftovers(session.workspace / output)
        raise
    finally:
        console.close()


def _describe_all(session: Session, paths: Sequence[PurePosixPath]) -> list[str]:
    """A line for each artifact; for many, as of a run at several lengths, one in all unless the session is verbose."""
    if session.verbose or len(paths) <= MANY:
        return [_describe(session, path) for path in paths]
    size = sum(_size(session.workspace / path)[0] for path in paths)
    return [f"{paths[0]} and {len(paths) - 1} more: {size:,} bytes in all"]


def _size(path: Path) -> tuple[int, str]:
    """The bytes of a file or of all files of a folder, and what to say of their number."""
    if not path.is_dir():
        return path.stat().st_size, ""
    names = files.files_in(path)
    return sum((path / name).stat().st_size for name in names), f"{len(names)} files, "


def _describe(session: Session, path: PurePosixPath) -> str:
    """A path with its size and, if the session is verbose, its digest."""
    size, number = _size(session.workspace / path)
    [(kind, value)] = session.digests.of(path).items()
    digest = f", {kind} {value}" if session.verbose else ""
    return f"{path}{'/' if number else ''}: {number}{size:,} bytes{digest}"
