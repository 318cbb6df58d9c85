"""Runs planned steps: skips what is up to date, says why the rest runs, checks what came out, and records it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

from deberta import files, msame, records
from deberta.artifacts import record_of
from deberta.errors import MissingError, StageError
from deberta.host import code, local
from deberta.host.console import Console
from deberta.host.steps import Inference, Input, Step

LOCK = "requirements-stages.lock"
BUILDER = "urn:deberta-ascend:executor:local"


@dataclass(frozen=True)
class Session:
    """One invocation: where things are, and how steps run. `python` gives the stages' interpreter when first needed."""

    project: Path
    workspace: Path
    python: Callable[[], Path]
    python_name: str  # as shown in a dry run, which must not make the environment
    force: bool = False
    dry: bool = False
    digests: records.Digests = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", records.Digests(self.workspace))


@contextlib.contextmanager
def exclusive(session: Session) -> Iterator[None]:
    """Hold the workspace's lock: two invocations never write the same artifacts. Keep the digests afterwards."""
    if session.dry:
        yield
        return
    path = session.workspace / ".cache" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "?"
            raise StageError(
                f"another invoke (process {holder}) works in {session.workspace}. Run this again when it is done"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            session.digests.save()


def check_sources(session: Session, steps: Sequence[Step]) -> None:
    """Raise one MissingError naming all inputs that no earlier step of `steps` makes and that are not there."""
    made: set[PurePosixPath] = set()
    missing: dict[PurePosixPath, str] = {}
    for step in steps:
        for needed in step.inputs:
            if needed.path not in made and not (session.workspace / needed.path).exists():
                missing.setdefault(needed.path, needed.command)
        made.update(step.outputs)
    if missing:
        raise _missing([Input(path, command) for path, command in missing.items()])


def run(session: Session, step: Step) -> Mapping[str, Any]:
    """Bring a step's outputs up to date and return their record (an empty one in a dry run)."""
    console = Console(step.title)
    if session.dry:
        _show(session, step)
        return {}
    if absent := [needed for needed in step.inputs if not (session.workspace / needed.path).exists()]:
        raise _missing(absent)
    record_path = session.workspace / record_of(step.outputs[0])
    record = records.read(record_path)
    parameters = _parameters(session, step)
    dependencies = [records.resource(needed.path, session.digests.of(needed.path)) for needed in step.inputs]
    reason = "--force" if session.force else why_run(session, step, record, parameters, dependencies)
    if record is not None and reason is None:
        console.say(f"up to date: {', '.join(str(path) for path in step.outputs)}")
        return record
    console.say(f"running: {reason}")
    python = session.python()
    started, clock = records.now(), time.monotonic()
    summary_path = session.workspace / ".cache" / f"{step.name}.summary.json"
    files.remove(summary_path)
    files.remove(record_path)  # from here on the old outputs are not vouched for
    subjects = _execute(session, step, python, summary_path, console, record)
    for subject in subjects:
        if not (session.workspace / subject).exists():
            raise StageError(f"{step.title} ended without an error, but {subject} is not there. See {step.log}")
    statement = records.statement(
        subjects=[records.resource(subject, session.digests.of(subject)) for subject in subjects],
        dependencies=dependencies,
        parameters=parameters,
        builder=BUILDER,
        started=started,
        finished=records.now(),
        summary=_summary(summary_path),
    )
    records.write(record_path, statement)
    for subject in subjects:
        console.say(_describe(session, subject))
    console.say(f"done in {time.monotonic() - clock:.1f} s")
    return statement


def why_run(
    session: Session,
    step: Step,
    record: Optional[Mapping[str, Any]],
    parameters: Mapping[str, Any],
    dependencies: Sequence[Mapping[str, Any]],
) -> Optional[str]:
    """The one reason why a step has to run, or None if its outputs are up to date."""
    if record is None:
        there = (session.workspace / step.outputs[0]).exists()
        return f"{step.outputs[0]} has no record" if there else "not made yet"
    for key, value in parameters.items():
        if records.parameters(record).get(key) != value:
            return f"its {key} changed"
    before, now = records.dependencies(record), records.digests(dependencies)
    for name in now:
        if before.get(name) != now[name]:
            return f"{name} changed"
    for name, digest in records.digests(record["subject"]).items():
        path = PurePosixPath(name)
        if not (session.workspace / path).exists():
            return f"{name} is missing"
        if session.digests.of(path) != digest:
            return f"{name} was changed after it was made"
    return None


def outputs_folder(record: Mapping[str, Any], inference: Inference) -> PurePosixPath:
    """The `<output>/<T>` that a run left, as its record has it."""
    for name in records.digests(record["subject"]):
        if PurePosixPath(name).parent == inference.output:
            return PurePosixPath(name)
    raise StageError(f"the record of {inference.output} names no output folder. Run: invoke infer --force")


def _parameters(session: Session, step: Step) -> dict[str, Any]:
    return {
        "step": step.name,
        "module": step.module,
        "arguments": list(step.arguments),
        "code": code.digest(session.project, step.module),
        "packages": files.sha256_of(session.project / LOCK),
    }


def _execute(
    session: Session,
    step: Step,
    python: Path,
    summary: Path,
    console: Console,
    record: Optional[Mapping[str, Any]],
) -> list[PurePosixPath]:
    """Run the command and return the paths that it made."""
    log = session.workspace / step.log
    try:
        if step.inference is None:
            arguments = [*step.arguments, "--summary", str(summary.relative_to(session.workspace))]
            command = local.command_line(python, step.module, arguments)
            local.run(command, session.workspace, session.project, log, console.line)
            return list(step.outputs)
        return _infer(session, step, step.inference, python, console, record)
    finally:
        console.close()


def _infer(
    session: Session,
    step: Step,
    inference: Inference,
    python: Path,
    console: Console,
    record: Optional[Mapping[str, Any]],
) -> list[PurePosixPath]:
    """Run msame's twin into a temporary folder, judge what it left, and only then give it its name."""
    final = session.workspace / inference.output
    final.parent.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(final)
    temporary = files.temporary_beside(final)
    relative = temporary.relative_to(session.workspace)
    arguments = [str(relative) if a == str(inference.output) else a for a in step.arguments]
    try:
        command = local.command_line(python, step.module, arguments)
        stdout = local.run(command, session.workspace, session.project, session.workspace / step.log, console.quiet)
        outcome = msame.parse(stdout)
        made = session.workspace / outcome.folder if outcome.folder else temporary
        msame.judge(outcome, made, inference.expected, inference.times)
        final.mkdir(exist_ok=True)
        os.replace(made, final / made.name)
    finally:
        files.remove(temporary)
    if record is not None:  # the folder of the run before; folders that we did not make stay
        old = outputs_folder(record, inference)
        if old.name != made.name:
            files.remove(session.workspace / old)
    subjects = [inference.output / made.name]
    if inference.log_copy:
        files.write_text(session.workspace / inference.log_copy, stdout)
        subjects.append(inference.log_copy)
    return subjects


def _show(session: Session, step: Step) -> None:
    """Print the command that a person could paste, from the workspace."""
    command = [session.python_name, "-m", step.module, *step.arguments]
    print(f"PYTHONPATH={shlex.quote(str(session.project))} {shlex.join(command)}")


def _missing(inputs: Sequence[Input]) -> MissingError:
    names = [str(needed.path) for needed in inputs]
    listed = f"{', '.join(names[:-1])} and {names[-1]} are" if len(names) > 1 else f"{names[0]} is"
    commands = list(dict.fromkeys(needed.command for needed in inputs))
    hints = [f"Run: {command}" if command.startswith("invoke ") else command for command in commands]
    return MissingError(f"{listed} missing. {'; then '.join(hints)}")


def _summary(path: Path) -> Optional[Mapping[str, Any]]:
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    files.remove(path)
    return dict(content)


def _describe(session: Session, path: PurePosixPath) -> str:
    absolute = session.workspace / path
    [(kind, digest)] = session.digests.of(path).items()
    if absolute.is_dir():
        names = files.files_in(absolute)
        size = sum((absolute / name).stat().st_size for name in names)
        return f"{path}/: {len(names)} files, {size:,} bytes, {kind} {digest}"
    return f"{path}: {absolute.stat().st_size:,} bytes, {kind} {digest}"
