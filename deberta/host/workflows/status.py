"""status: what is there of each profile, what is stale and why, what a next acceptance would take. Changes nothing.

An artifact's record says what made it. The step is put together again from that, and judged by freshness.why_run as
explain and a run do; what the present settings would make otherwise is in the next command's steps.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Callable, Iterator, Mapping, NamedTuple, Optional, Sequence

from msgspec import Meta

from deberta.ascend import timing
from deberta.core import contract, files, records, schema
from deberta.core.errors import DebertaError, many, some
from deberta.core.paths import ACCEPTANCES, RECORD_SUFFIX, Artifacts, record_of
from deberta.core.records import Record
from deberta.core.schema import Schema
from deberta.host.plan.plan import Plan, Step
from deberta.host.plan.profiles import hashed
from deberta.host.report import archive
from deberta.host.run import freshness, recorded
from deberta.host.run.session import Session
from deberta.host.workflows import explain

UP_TO_DATE, STALE, MAY_BE, BLOCKED, UNKNOWN = "up to date", "stale", "may be stale", "input missing", "not known"
USERS = contract.SUPPLIED
_STATES = {explain.NO: UP_TO_DATE, explain.YES: STALE, explain.MAYBE: MAY_BE, explain.STOPS: BLOCKED}
_KINDS = {  # by the stage or the tool that made it
    "export-onnx": "ONNX",
    "atc": "compiled",
    "compile-cpu": "compiled",
    "preprocess": "bins",
    "postprocess": "evaluation",
    "label-changes": "a lower precision beside fp32",
    "assess": "report",
    "render": "report",
}
_SHOWN = ("ONNX", "compiled", "bins", "evaluation", "performance")
_STATE_ORDER = (UP_TO_DATE, STALE, MAY_BE, BLOCKED, UNKNOWN, USERS)
_OF_USERS = {  # kind of the user's own files that are used as they are -> root, and pattern below it
    "ONNX": ("models", "dynamic*.onnx"),
    "compiled": ("models", "ascend/*.om"),
    "bins": ("data", "pre_mnli_bs*/*"),
    "outputs": ("results", "*/outputs_bs*_om/*/*"),
    "performance": ("results", "*/msame_bs*_*.txt"),
    "evaluation": ("results", "*/eval_bs*_*.txt"),
}


class InputStatus(Schema):
    """What the user brings. `get`: what to do where it is missing."""

    path: str
    present: bool
    bytes: int
    get: str


class ArtifactStatus(Schema):
    """What a step left. `seconds`: how long that took, null if nothing says it; `figure`: accuracy or throughput."""

    path: str
    kind: str
    backend: str
    state: Annotated[str, schema.one_of((UP_TO_DATE, STALE, MAY_BE, BLOCKED, UNKNOWN, USERS))]
    reason: str
    bytes: int
    seconds: Optional[float]
    finished: str
    figure: str


class AcceptanceStatus(Schema):
    """An acceptance that is kept, as it says itself: verify checks it. `signed`: a signature lies beside it."""

    name: str
    backend: str
    verdict: str
    signed: bool


class NextCommand(Schema):
    """What a command would do now. `seconds`: what those of its steps took that ran before; `never_ran`: the others."""

    command: str
    would_run: int
    may_run: int
    up_to_date: int
    seconds: float
    never_ran: int
    reasons: Sequence[str]
    problem: str


class ProfileStatus(Schema):
    name: str
    bytes: int
    inputs: Sequence[InputStatus]
    artifacts: Sequence[ArtifactStatus]
    acceptances: Sequence[AcceptanceStatus]
    next: NextCommand
    problems: Sequence[str]


class Images(Schema):
    """`asked`: whether an engine told its images; if not, `names` is empty and `note` says why."""

    asked: bool
    names: Sequence[str]
    note: str


class Status(Schema):
    """What status --json prints. `running`: the process that holds the workspace's lock, empty if none does."""

    workspace: str
    running: str
    free: Annotated[int, Meta(description="Bytes on the workspace's disk.")]
    profiles: Sequence[ProfileStatus]
    unreadable: Annotated[Sequence[str], Meta(description="Profiles whose settings are wrong.")]
    images: Images


class Tree(NamedTuple):
    """The files of a profile: bytes by file and folder, hard links counted once in `total`, and the records."""

    sizes: Mapping[PurePosixPath, int]
    total: int
    records: Sequence[PurePosixPath]


def of_profile(session: Session, plan: Plan, planned: Callable[[], explain.Planned]) -> ProfileStatus:
    """All that is there of the profile of `plan`; `planned` plans its next acceptance. Damage is named, not raised."""
    profile, problems = plan.profile, []
    tree = _walk(session.workspace, profile.name)
    known: dict[PurePosixPath, Record] = {}
    for path in tree.records:
        try:
            record = records.read(session.workspace / path)
            if record is not None:
                known[path] = record
        except (DebertaError, OSError) as error:
            problems.append(str(error))
    inputs = [_input(session.workspace, plan, path) for path in profile.files(profile.rows)]
    artifacts = [*_recorded(session, tree, known, problems), *_users(session, plan, tree, known)]
    kept = archive.kept(session.workspace, profile.name).values()
    return ProfileStatus(
        name=profile.name,
        bytes=tree.total,
        inputs=inputs,
        artifacts=artifacts,
        acceptances=[_acceptance(folder, problems) for folder in kept],
        next=_next(session, plan, inputs, planned),
        problems=problems,
    )


def _walk(workspace: Path, profile: str) -> Tree:
    sizes: dict[PurePosixPath, int] = {}
    of_steps: list[PurePosixPath] = []
    inodes: set[int] = set()
    total = 0
    for kind in ("models", "data", "results"):
        for parent, _, names in os.walk(workspace / kind / profile):
            folder = PurePosixPath(os.path.relpath(parent, workspace))
            is_kept = ACCEPTANCES in folder.parts
            size = 0
            for name in names:
                with contextlib.suppress(OSError):
                    entry = os.lstat(os.path.join(parent, name))
                    size += entry.st_size
                    total += entry.st_size if entry.st_ino not in inodes else 0
                    inodes.add(entry.st_ino)
                    sizes[folder / name] = entry.st_size
                    if name.endswith(RECORD_SUFFIX) and not is_kept:
                        of_steps.append(folder / name)
            for above in (folder, *folder.parents):
                sizes[above] = sizes.get(above, 0) + size
    return Tree(sizes, total, sorted(of_steps))


def _input(workspace: Path, plan: Plan, path: PurePosixPath) -> InputStatus:
    present = (workspace / path).exists()
    size = files.size_of(workspace / hashed(path)) if present else 0
    return InputStatus(path=str(path), present=present, bytes=size, get="" if present else plan.source(path).command)


def _recorded(
    session: Session, tree: Tree, known: Mapping[PurePosixPath, Record], problems: list[str]
) -> Iterator[ArtifactStatus]:
    """What has a record, in the order in which it was made out of each other."""
    steps = {
        path: step for path in recorded.in_order(known) if (step := recorded.step_of(path, known[path])) is not None
    }
    verdicts = explain.judge([(session, step) for step in steps.values()], to_the_end=True)
    for (path, step), verdict in zip(steps.items(), verdicts):
        record, artifact = known[path], step.outputs[0]
        kind = _kind(step)
        yield ArtifactStatus(
            path=str(artifact),
            kind=kind,
            backend=_backend(artifact),
            state=_STATES.get(verdict.runs, UNKNOWN),
            reason=verdict.reason.rstrip(" ."),
            bytes=sum(tree.sizes.get(PurePosixPath(name), 0) for name in record.subjects),
            seconds=max(0.0, record.seconds),
            finished=record.finished,
            figure=_figure(session.workspace, kind, artifact, problems),
        )


def _kind(step: Step) -> str:
    maker = step.stage or step.tool
    if maker in recorded.RUNNERS:
        return "performance" if step.name.startswith("perf") else "outputs"
    return _KINDS.get(maker, maker)


def _backend(path: PurePosixPath) -> str:
    return next((part for part in path.parts[2:3] if part in contract.BACKENDS), "")


class EvaluationCounts(Schema, forbid_unknown_fields=False):
    """What an evaluation's JSON counts."""

    correct: schema.Count
    rows: schema.Positive


def _figure(workspace: Path, kind: str, path: PurePosixPath, problems: list[str]) -> str:
    """The accuracy or the throughput that a file has; empty if it has none or cannot be read, which is a problem."""
    try:
        if kind == "evaluation":
            counts = schema.read_json(workspace / path.with_suffix(".json"), EvaluationCounts)
            return f"{100 * counts.correct / counts.rows:.2f} % ({counts.correct}/{counts.rows})"
        if kind == "performance":
            return f"{timing.read(workspace / path, _batch_size(path)).fps:.1f} fps"
    except (DebertaError, OSError, ValueError) as error:
        problems.append(f"{path} tells no figure: {error}")
    return ""


def _batch_size(path: PurePosixPath) -> int:
    match = re.search(r"_bs([0-9]{1,4})", str(path))
    return contract.whole(match[1], 1) if match else 1


def _users(session: Session, plan: Plan, tree: Tree, known: Mapping[PurePosixPath, Record]) -> Iterator[ArtifactStatus]:
    """What lies where a step would write and has no record: it is the user's, and is used as it is."""
    ours = {name for record in known.values() for name in record.subjects}
    artifacts = Artifacts(plan.profile.name)
    roots = {"models": artifacts.models, "data": artifacts.data, "results": artifacts.results.parent}
    for kind, (root, pattern) in _OF_USERS.items():
        for path in sorted((session.workspace / roots[root]).glob(pattern)):
            relative = PurePosixPath(path.relative_to(session.workspace).as_posix())
            hidden = path.name.startswith(".") or path.name.endswith(RECORD_SUFFIX)
            is_folder = kind in ("bins", "outputs")
            if hidden or str(relative) in ours or path.is_dir() != is_folder:
                continue
            with contextlib.suppress(DebertaError, OSError):  # a damaged record beside it is named already
                if kind != "outputs" and not freshness.is_user_supplied(session, relative):
                    continue
                if kind == "outputs" and (session.workspace / record_of(relative.parent)).exists():
                    continue
                yield ArtifactStatus(
                    path=str(relative),
                    kind=kind,
                    backend=_backend(relative),
                    state=USERS,
                    reason="",
                    bytes=tree.sizes.get(relative, 0),
                    seconds=None,
                    finished="",
                    figure=_figure(session.workspace, kind, relative, []),
                )


class KeptVerdict(Schema, forbid_unknown_fields=False):
    verdict: str


class KeptReport(Schema, forbid_unknown_fields=False):
    """What status takes from a report."""

    verdict: Optional[KeptVerdict]


def _acceptance(folder: Path, problems: list[str]) -> AcceptanceStatus:
    verdict, job = "", min(folder.glob("report_job*.json"))  # archive.kept goes by it
    try:
        report = schema.read_json(job.with_name(job.name.replace("report_job", "report", 1)), KeptReport)
        verdict = report.verdict.verdict if report.verdict else "not judged"
    except (OSError, ValueError) as error:
        problems.append(f"{folder.name} tells no verdict: its report {error}")
    signed = any(folder.glob("report*.dsse.json"))
    return AcceptanceStatus(name=folder.name, backend=folder.parent.parent.name, verdict=verdict, signed=signed)


def _next(
    session: Session, plan: Plan, inputs: Sequence[InputStatus], planned: Callable[[], explain.Planned]
) -> NextCommand:
    """What the next acceptance would take; where inputs are missing, what gets them."""
    command, problem = f"invoke acceptance --profile {plan.profile.name}", ""
    missing = [entry for entry in inputs if not entry.present]
    verdicts: list[explain.Verdict] = []
    steps: explain.Planned = []
    if missing:
        command, problem = missing[0].get, f"{missing[0].path} is missing"
    else:
        try:
            steps = [(recorded.read_only(s, session.digests), step) for s, step in planned()]
            verdicts = explain.judge(steps)
            problem = next((f"it would stop: {v.reason}" for v in verdicts if v.runs == explain.STOPS), "")
        except (DebertaError, OSError) as error:
            problem = str(error)
    lasted: dict[str, float] = {}
    for _, step in steps:
        for each in (step, step.gate):
            with contextlib.suppress(DebertaError, OSError):
                if each is not None and (record := records.read(session.workspace / record_of(each.outputs[0]))):
                    lasted[each.title] = max(0.0, record.seconds)
    running = [verdict for verdict in verdicts if verdict.runs == explain.YES]
    maybe = [verdict for verdict in verdicts if verdict.runs == explain.MAYBE]
    return NextCommand(
        command=command,
        would_run=len(running),
        may_run=len(maybe),
        up_to_date=sum(verdict.runs == explain.NO for verdict in verdicts),
        seconds=sum(lasted.get(verdict.title, 0.0) for verdict in (*running, *maybe)),
        never_ran=sum(verdict.title not in lasted for verdict in (*running, *maybe)),
        reasons=[f"{verdict.title}: {verdict.reason}" for verdict in running if verdict.title in lasted][:3],
        problem=problem,
    )


def text(status: Status) -> str:
    """The same for a person: a block a profile, and only what is there or wrong in it."""
    lines = [f"a run is going on (process {status.running}); what it changes may look stale"] if status.running else []
    for profile in status.profiles:
        lines += [
            f"{profile.name}  {_size(profile.bytes)}",
            *(f"  {name:<14}{value}" for name, value in _rows(profile)),
            "",
        ]
    lines += [f"{name}: its settings are wrong. Run: invoke doctor --profile {name}" for name in status.unreadable]
    images = some(status.images.names) or "none" if status.images.asked else status.images.note
    return "\n".join(
        [*lines, f"{'images':<16}{images}", f"{'disk':<16}{_size(status.free)} free at {status.workspace}"]
    )


def _rows(profile: ProfileStatus) -> Iterator[tuple[str, str]]:
    """What a profile's block says: a name and a text a line."""
    missing = [entry for entry in profile.inputs if not entry.present]
    present = [f"{PurePosixPath(entry.path).name} {_size(entry.bytes)}" for entry in profile.inputs if entry.present]
    yield "inputs", ", ".join(present) or "none"
    if missing:
        yield "missing", f"{some([entry.path for entry in missing], 2)}. {missing[0].get}"
    by_kind: dict[tuple[str, str], list[ArtifactStatus]] = {}
    for artifact in profile.artifacts:
        backend = artifact.backend if artifact.kind != "ONNX" else ""
        by_kind.setdefault((artifact.kind, backend), []).append(artifact)
    for kind in _SHOWN:
        for (name, backend), artifacts in by_kind.items():
            if name == kind:
                yield kind, f"{f'{backend}  ' if backend else ''}{', '.join(map(_shown, artifacts))}"
    for acceptance in profile.acceptances:
        signed = "signed" if acceptance.signed else "not signed"
        yield "acceptance", f"{acceptance.backend}  {acceptance.name}: {acceptance.verdict or 'unreadable'}, {signed}"
    states = {state: sum(a.state == state for a in profile.artifacts) for state in _STATE_ORDER}
    if profile.artifacts:
        yield "steps", ", ".join(f"{count} {state}" for state, count in states.items() if count)
    by_reason: dict[tuple[str, str], list[str]] = {}
    for artifact in profile.artifacts:
        if artifact.state in (STALE, BLOCKED, UNKNOWN):
            by_reason.setdefault((artifact.state, artifact.reason), []).append(artifact.path)
    for (state, reason), paths in by_reason.items():
        yield state, f"{some(paths, 3)}: {reason}"
    for problem in profile.problems:
        yield "damaged", problem
    yield "next", _next_text(profile.next)


def _shown(artifact: ArtifactStatus) -> str:
    """An artifact's name without what its kind says already, its figure, and whose it is."""
    path = PurePosixPath(artifact.path)
    name = f"{path.parent.name}/{path.name}" if artifact.kind == "bins" else path.name
    figure = f" {artifact.figure}" if artifact.figure else ""
    return f"{name}{figure}{f' ({USERS})' if artifact.state == USERS else ''}"


def _next_text(next_command: NextCommand) -> str:
    if next_command.problem:
        return f"{next_command.command} ({next_command.problem})"
    runs, maybe = next_command.would_run, next_command.may_run
    if not runs and not maybe:
        return f"{next_command.command}: nothing to run, {many(next_command.up_to_date, 'step')} up to date"
    ran = runs + maybe - next_command.never_ran
    before = [f"{ran} took {next_command.seconds:.0f} s last time"] if ran else []
    before += [f"{next_command.never_ran} never ran here"] if next_command.never_ran else []
    sure = f"{many(runs, 'step')} would run" + (f" and {maybe} may" if maybe else "")
    return f"{next_command.command}: {sure} ({', '.join(before)}), {next_command.up_to_date} up to date"


def _size(size: int) -> str:
    unit = next((unit for unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= unit[0]), (1, "bytes"))
    return f"{size / unit[0]:.{int(unit[0] >= 1e6)}f} {unit[1]}"
