"""explain: what a task would run and why, without running it.

A task plans as it goes, so its plan is what its own dry run would show (Session.planned). Each step is then judged by
freshness.why_run, as when it runs. If a rebuilt input has the same hash, its consumers are skipped; they are reported
as "may run".
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Iterator, Mapping, NamedTuple, Sequence

from deberta.core.errors import DebertaError, many
from deberta.core.schema import Schema
from deberta.host.plan.plan import LATEST, Step
from deberta.host.run import freshness
from deberta.host.run.session import Session

NO, MAYBE, YES, STOPS, UNKNOWN = "up to date", "may run", "would run", "would stop", "not known"
Planned = list[tuple[Session, Step]]


class ExplainedStep(Schema):
    """`state`: up to date, may run, would run or would stop; `reason` is empty if it is up to date."""

    step: str
    state: str
    reason: str


class ExplainDocument(Schema):
    """The steps of `task`, in the order in which they would run."""

    task: str
    steps: list[ExplainedStep]


class Verdict(NamedTuple):
    """What would become of a step: NO, MAYBE, YES, STOPS or UNKNOWN, and the one reason."""

    title: str
    runs: str
    reason: str = ""


def judge(steps: Planned, to_the_end: bool = False) -> list[Verdict]:
    """What would become of each step, in the order in which they would run; reads and hashes, changes nothing.

    Raises DataError for a record that is damaged. `to_the_end`: goes on after what would stop a run, and what cannot be
    judged is UNKNOWN.
    """
    gates = {step.gate.name for _, step in steps if step.gate is not None}
    rebuilt: dict[str, str] = {}  # path of an output -> MAYBE or YES
    latest: dict[str, str] = {}  # a run's folder as a dry run names it -> as its record does
    verdicts: list[Verdict] = []
    own = {(step.name, step.outputs[0]): (session, step) for session, step in steps if step.name not in gates}
    for session, shown in own.values():
        step = _with_folders(shown, latest)
        try:
            verdict = _judge(session, step, rebuilt)
        except (DebertaError, OSError) as error:
            if not to_the_end:
                raise
            verdict = Verdict(step.title, UNKNOWN, str(error))
        if step.gate is not None and verdict.runs in (MAYBE, YES):
            gate = _judge(session, step.gate, rebuilt)
            sure = verdict.runs == YES or gate.runs != YES
            verdicts.append(gate if sure else gate._replace(runs=MAYBE))
        verdicts.append(verdict)
        if verdict.runs == STOPS and not to_the_end:
            break
        outputs = [str(path) for path in step.outputs]
        record = freshness.last_record(session, step) if step.inference else None
        for run in step.inference.runs if step.inference else ():
            folder = str(freshness.run_folder(record, run.output)) if record else ""
            latest.update({str(run.output): folder, f"{run.output}{LATEST}": folder} if folder else {})
            outputs += [f"{run.output}{LATEST}", *([folder] if folder else [])]
        if verdict.runs not in (NO, STOPS):
            rebuilt.update(dict.fromkeys(outputs, verdict.runs))
    return verdicts


def document(task: str, verdicts: Sequence[Verdict]) -> ExplainDocument:
    steps = [ExplainedStep(step=verdict.title, state=verdict.runs, reason=verdict.reason) for verdict in verdicts]
    return ExplainDocument(task=task, steps=steps)


def lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The verdicts as text, and how many there are of each kind."""
    for verdict in verdicts:
        yield f"{verdict.title}: {verdict.runs}{f': {verdict.reason}' if verdict.reason else ''}"
    counts = {kind: sum(verdict.runs == kind for verdict in verdicts) for kind in (YES, MAYBE, NO, STOPS)}
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    yield f"{many(len(verdicts), 'step')}: {summary}"
    if counts[MAYBE]:
        yield "What may run is skipped if that which is made again comes out as it is now."


def _judge(session: Session, step: Step, rebuilt: Mapping[str, str]) -> Verdict:
    fresh = [needed.path for needed in step.inputs if str(needed.path) in rebuilt]
    settled = replace(step, inputs=tuple(needed for needed in step.inputs if needed.path not in fresh))
    if session.forces(step.task):
        return Verdict(step.title, YES, session.why_forced)
    for needed in freshness.missing_inputs(session, settled):
        return Verdict(step.title, STOPS, f"{needed.path} is missing. {needed.command}")
    record = freshness.last_record(session, step)
    if reason := freshness.why_run(session, settled, record):
        altered = freshness.altered_output(session, record) if session.strict and record is not None else None
        if foreign := freshness.foreign(session, step, record):
            return Verdict(step.title, STOPS, f"{foreign[0]} {freshness.FOREIGN}")
        return Verdict(step.title, STOPS if altered is not None and altered[1] == reason else YES, reason)
    for path in fresh:
        # A run's folder is named after its time, so it is another one each time.
        if rebuilt[str(path)] == YES and f"{path.parent}{LATEST}" in rebuilt:
            return Verdict(step.title, YES, f"{path.parent} would have a new folder")
    if fresh:
        verb = "would" if rebuilt[str(fresh[0])] == YES else "may"
        return Verdict(step.title, MAYBE, f"{fresh[0]} {verb} be made again")
    return Verdict(step.title, NO)


def _with_folders(step: Step, latest: Mapping[str, str]) -> Step:
    """The step with the folders that runs left, where the dry run could only name their parent."""

    def real(text: str) -> str:
        return ",".join(latest.get(part, part) for part in text.split(","))

    inputs = tuple(replace(needed, path=PurePosixPath(real(str(needed.path)))) for needed in step.inputs)
    return replace(step, arguments=tuple(map(real, step.arguments)), inputs=inputs)
