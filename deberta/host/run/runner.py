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

from deberta.ascend import ais_bench, atc, msame, programs
from deberta.core import files, records
from deberta.core.errors import ConfigError, DataError, DebertaError, StageError
from deberta.core.paths import record_of
from deberta.core.records import Record, Resource
from deberta.host.plan.evaluation import Compilation, Inference, Input, Step
from deberta.host.run import messages, source_digest
from deberta.host.run.console import Console
from deberta.host.run.executor import Executor, Ground, judge_stage

UNRECORDED = f"{files.TEMPORARY}unrecorded"
BUILDER = "urn:deberta-ascend:executor:"


@dataclass(frozen=True)
class Session:
    """One invocation: where things are, and how steps run. `soc_version` tells the chip when one is compiled for.

    `note` takes the steps of a dry run, instead of the executor, which prints them.
    `strict`: what was altered after it was made is an error, and not made again. `ran`: names of steps; each is
    forced, or shown in a dry run, once.
    """

    project: Path
    workspace: Path
    executor: Executor
    soc_version: Callable[[], str]
    force: bool = False
    why_forced: str = "--force"
    dry: bool = False
    strict: bool = False
    note: Optional[Callable[[Session, Step], None]] = None
    digests: records.Digests = field(init=False)
    ran: set[str] = field(init=False, default_factory=set, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", records.Digests(self.workspace))


@contextlib.contextmanager
def exclusive(session: Session) -> Iterator[None]:
    """Hold the workspace's lock: two invocations never write the same artifacts. Tidy up afterwards."""
    if session.dry:
        if session.note is None:
            print(f"cd {shlex.quote(str(session.workspace))}")
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
            try:
                session.digests.save()
            finally:  # last: it hands over what root made, that file among it
                session.executor.close()


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
        raise messages.missing([Input(path, command) for path, command in missing.items()])


def run(session: Session, step: Step) -> Optional[Record]:
    """Bring a step's outputs up to date and return their record (None in a dry run)."""
    console = Console(step.title)
    if session.dry:
        for one in (step.gate, step):
            if one is not None and one.name not in session.ran:
                if session.note is not None:
                    session.note(session, one)
                else:
                    session.executor.show(one)
                session.ran.add(one.name)
        return None
    if absent := _absent(session, step):
        raise messages.missing(absent)
    record = last_record(session, step)
    force = session.force and step.name not in session.ran
    reason = session.why_forced if force else why_run(session, step, record)
    if record is not None and reason is None:
        console.say(f"up to date: {', '.join(str(path) for path in step.outputs)}")
        return record
    altered = _altered_output(session, record) if session.strict and record is not None and not force else None
    if altered is not None and altered[1] == reason:
        raise messages.altered(step, *altered, session.workspace)
    session.ran.add(step.name)
    console.say(f"running: {reason}")
    gate = run(session, step.gate) if step.gate is not None else None
    checked = {"gate": gate.summary} if gate is not None else {}
    session.executor.prepare(step)
    ground = session.executor.ground(step)
    _check_cann(session, step, ground)
    parameters, dependencies = parameters_of(session, step), _dependencies(session, step)
    started, clock = records.now(), time.monotonic()
    summary_path = programs.new_scratch(session.workspace, step.name) / "summary.json"
    try:
        subjects = _execute(session, step, summary_path, console)
    except DebertaError as error:
        raise type(error)(messages.completed(step, str(error))) from error
    for subject in subjects:
        if not (session.workspace / subject).exists():
            raise StageError(f"{step.title} ended without an error, but {subject} is not there. See {step.log}")
    statement = records.statement(
        subjects=[records.resource(subject, session.digests.of(subject)) for subject in subjects],
        dependencies=[*dependencies, *ground.dependencies],
        parameters=parameters,
        internal={**ground.internal, **_sources(session, step)},
        builder=f"{BUILDER}{session.executor.name}",
        started=started,
        finished=records.now(),
        summary={**_summary(summary_path), **checked},
    )
    # Over the old record, and only now: old outputs with their record are true until new ones have theirs.
    records.write(session.workspace / record_of(step.outputs[0]), statement)
    files.remove(_unrecorded(session, step.outputs[0]))
    files.remove(session.workspace / programs.scratch(step.name))
    _remove_former(session, step, record, subjects)
    for subject in subjects:
        console.say(_describe(session, subject))
    console.say(f"done in {time.monotonic() - clock:.1f} s")
    return statement


def outdated(session: Session, step: Step) -> Optional[str]:
    """Why a step's outputs are not those that it would make now, or None if they are.

    A tool's options and what a step runs in (an environment, CANN, an image) are not asked for: what it once made is
    looked at without them.
    """
    absent = _absent(session, step)
    if absent:
        return f"{absent[0].path} is missing"
    record = last_record(session, step)
    return why_run(session, step, record, {} if step.tool else _own_parameters(session, step))


def why_run(
    session: Session, step: Step, record: Optional[Record], wanted: Optional[Mapping[str, Any]] = None
) -> Optional[str]:
    """The one reason why a step has to run, or None if its outputs are up to date. `wanted`: not all its parameters."""
    if record is None:
        there = (session.workspace / step.outputs[0]).exists()
        return f"{step.outputs[0]} has no record" if there else "not made yet"
    for key, value in (parameters_of(session, step) if wanted is None else wanted).items():
        if record.parameters.get(key) != value:
            return f"its {key} changed"
    return _altered(session, step, record)


def _altered(session: Session, step: Step, record: Record) -> Optional[str]:
    """The input or output that is no longer what the record says."""
    before, now = record.dependencies, records.digests(_dependencies(session, step))
    for name in now:
        if before.get(name) != now[name]:
            return f"{name} changed"
    altered = _altered_output(session, record)
    return altered[1] if altered is not None else None


def _altered_output(session: Session, record: Record) -> Optional[tuple[PurePosixPath, str]]:
    """The first output that is no longer what the record says, and what happened to it."""
    for name, digest in record.subjects.items():
        path = PurePosixPath(name)
        if not (session.workspace / path).exists():
            return path, f"{name} is missing"
        if session.digests.of(path) != digest:
            return path, f"{name} was changed after it was made"
    return None


def outputs_folder(record: Record, inference: Inference) -> PurePosixPath:
    """The `<output>/<T>` that a run left, as its record has it."""
    for name in record.subjects:
        if PurePosixPath(name).parent == inference.output:
            return PurePosixPath(name)
    raise StageError(f"the record of {inference.output} names no output folder. Infer again with --force")


def is_brought(session: Session, artifact: PurePosixPath) -> bool:
    """Whether an artifact is there that we did not make: the guide's own .om can be dropped in and used as it is."""
    recorded = (session.workspace / record_of(artifact)).exists()
    return (session.workspace / artifact).is_file() and not recorded and not _unrecorded(session, artifact).exists()


def _unrecorded(session: Session, artifact: PurePosixPath) -> Path:
    """Marks a compiled model as ours between its rename and its first record."""
    path = session.workspace / artifact
    return path.with_name(f".{path.name}{UNRECORDED}")


def _absent(session: Session, step: Step) -> list[Input]:
    return [needed for needed in step.inputs if not (session.workspace / needed.path).exists()]


def last_record(session: Session, step: Step) -> Optional[Record]:
    """The record of a step's last run; --force gets past a damaged one."""
    try:
        return records.read(session.workspace / record_of(step.outputs[0]))
    except DataError:
        if session.force:
            return None
        raise


def _dependencies(session: Session, step: Step) -> list[Resource]:
    return [records.resource(needed.path, session.digests.of(needed.path)) for needed in step.inputs]


def _check_cann(session: Session, step: Step, ground: Ground) -> None:
    """Raise ConfigError if a model would run on another CANN than the one that compiled it, where both are known.

    Such a pair converts without a word and fails when it runs (ACL 507011, 500002), or should not be trusted.
    """
    if not step.on_device:
        return
    compiled = step.inputs[0].path
    record = records.read(session.workspace / record_of(compiled))
    made, runs = record.internal.get("cann") if record else "", ground.internal.get("cann")
    if made and runs and made != runs:
        raise ConfigError(
            f"{compiled} was compiled with CANN {made}, and CANN {runs} would run it. Use the same for both "
            "(cann in invoke.yaml, or docker/cann and the images' bases), then run: invoke build-om --force"
        )


def parameters_of(session: Session, step: Step) -> dict[str, Any]:
    """All that decides whether a step runs again, beside its inputs and outputs."""
    executor = session.executor
    return {**_own_parameters(session, step), "executor": executor.name, **executor.identity(step)}


def _own_parameters(session: Session, step: Step) -> dict[str, Any]:
    """What the step is asked to do, wherever it runs."""
    if step.tool:
        unchecked = {"lint": False} if step.compilation is not None and step.gate is None else {}
        return {"step": step.name, "tool": step.tool, "arguments": list(step.arguments), **unchecked}
    own = {"step": step.name, "stage": step.stage, "arguments": list(step.arguments)}
    return {**own, "code": source_digest.digest(session.project, step.module)}


def _sources(session: Session, step: Step) -> dict[str, Any]:
    """The files behind `code`, so that a later run can name those that changed."""
    return {"sources": source_digest.sources(session.project, step.module)} if step.stage else {}


def _execute(session: Session, step: Step, summary: Path, console: Console) -> list[PurePosixPath]:
    """Run the command and return the paths that it made."""
    given = [*step.arguments, "--summary", str(summary.relative_to(session.workspace))]
    try:
        if step.compilation is not None:
            return _compile(session, step, step.compilation, summary, console)
        if step.inference is not None:
            return _infer(session, step, step.inference, list(step.arguments) if step.tool else given, console)
        _run_stage(session, step, given, console.line)
        return list(step.outputs)
    except BaseException:
        for output in step.outputs:  # what a command that was killed had half written
            files.remove_leftovers(session.workspace / output)
        raise
    finally:
        console.close()


def _run_stage(session: Session, step: Step, arguments: Sequence[str], show: Callable[[str], None]) -> str:
    lines, code = session.executor.run(step, arguments, show)
    judge_stage(step.module, lines, code, session.workspace / step.log)
    return "".join(lines)


def _compile(
    session: Session, step: Step, compilation: Compilation, summary: Path, console: Console
) -> list[PurePosixPath]:
    """Run ATC to a temporary name, judge what it left, and only then give it its name."""
    model, final = session.workspace / compilation.model, session.workspace / compilation.om
    root = session.executor.root
    seen = [compilation.model, compilation.om, *atc.option_files(compilation.options)]
    atc.check_paths([root / path for path in seen])
    final.parent.mkdir(parents=True, exist_ok=True)
    marker = _unrecorded(session, compilation.om)
    if marker.exists():
        files.remove(final)  # ours, of a run that was killed before it could vouch for it
    files.remove_leftovers(final)
    clock = files.temporary_beside(final)
    made = clock.with_name(clock.name + ".om")  # ATC adds it
    options = atc.rooted(compilation.options, root)
    output = made.relative_to(session.workspace)
    command = atc.command(
        compilation.model, output, compilation.batch_size, compilation.soc_version, options, compilation.length
    )
    try:
        clock.touch()
        started = clock.stat().st_mtime  # the file system's clock, which the .om's age is told by
        lines, status = session.executor.run(step, command[1:], console.line)
        outcome = atc.parse("".join(lines))
        atc.judge(outcome, status, made, started, atc.least_bytes(model.stat().st_size), step.log)
        marker.touch()
        os.replace(made, final)
    finally:
        files.remove(clock)
        files.remove(made)
    files.write_text(summary, json.dumps({**atc.summary(outcome), "soc_version": compilation.soc_version}))
    return [compilation.om]


def _infer(
    session: Session, step: Step, inference: Inference, arguments: Sequence[str], console: Console
) -> list[PurePosixPath]:
    """Run msame or its twin into a temporary folder, judge what it left, and only then give it its name."""
    final = session.workspace / inference.output
    final.parent.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(final)
    temporary = files.temporary_beside(final)
    relative = str(temporary.relative_to(session.workspace))
    elsewhere = [relative if argument == str(inference.output) else argument for argument in arguments]
    status = 0
    try:
        if step.tool:
            programs.check_bins(session.workspace, inference.bins, inference.bin_bytes, inference.times)
            programs.check_device(inference.device, console.say)
            lines, status = session.executor.run(step, elsewhere, console.quiet)
            stdout = "".join(lines)
        else:
            stdout = _run_stage(session, step, elsewhere, console.quiet)
        try:
            made, timing = _judged(session, step, inference, stdout, temporary)
        except DebertaError as error:
            raise type(error)(f"{error} (its output: {step.log})") from error
        if status:  # all its files are there, and something went wrong
            raise StageError(f"{step.tool} did all its work, but ended with exit code {status}. See {step.log}")
        final.mkdir(exist_ok=True)
        os.replace(made, final / made.name)
    finally:
        files.remove(temporary)
    subjects = [inference.output / made.name]
    if inference.log_copy:
        files.write_text(session.workspace / inference.log_copy, timing)
        subjects.insert(0, inference.log_copy)
    return subjects


def _judged(session: Session, step: Step, inference: Inference, stdout: str, temporary: Path) -> tuple[Path, str]:
    """The folder that a complete run left, its files under our names, and the text that has its times."""
    if step.tool != ais_bench.MODULE:
        outcome = msame.parse(stdout)
        made = session.workspace / outcome.folder if outcome.folder else temporary
        msame.judge(outcome, made, inference.expected, inference.times)
        return made, stdout
    run = ais_bench.read(stdout, session.workspace)
    made = session.workspace / run.folder if run.folder else temporary
    ais_bench.judge(run, made, inference.expected, inference.times)
    ais_bench.settle(made)
    return made, ais_bench.summary_of(made).read_text(encoding="utf-8")


def _remove_former(session: Session, step: Step, record: Optional[Record], subjects: Sequence[PurePosixPath]) -> None:
    """Remove the output folder of the run before; folders that we did not make stay."""
    if record is None or step.inference is None:
        return
    former = outputs_folder(record, step.inference)
    if former not in subjects:
        files.remove(session.workspace / former)


def _summary(path: Path) -> Mapping[str, Any]:
    """What the stage counted; a tool writes none."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _describe(session: Session, path: PurePosixPath) -> str:
    absolute = session.workspace / path
    [(kind, digest)] = session.digests.of(path).items()
    if absolute.is_dir():
        names = files.files_in(absolute)
        size = sum((absolute / name).stat().st_size for name in names)
        return f"{path}/: {len(names)} files, {size:,} bytes, {kind} {digest}"
    return f"{path}: {absolute.stat().st_size:,} bytes, {kind} {digest}"
