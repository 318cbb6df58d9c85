"""explain: what a task would run and why, without running it.

A task plans as it goes, so its plan is what its own dry run shows: the steps are noted instead of printed. Each is then
judged as the pipeline would judge it, with one thing more to be said. What an earlier step would make again may come
out as it is now, and then a later step is skipped: such a step is one that may run.
"""

from __future__ import annotations

import platform
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from deberta.core.errors import some
from deberta.core.records import Record
from deberta.host.environments.stages import STAGES_LOCK
from deberta.host.plan.evaluation import LATEST, Step
from deberta.host.run import runner, source_digest
from deberta.host.run.runner import Session

NO, MAYBE, YES, STOPS = "up to date", "may run", "would run", "would stop"
Noted = List[Tuple[Session, Step]]
_noted: ContextVar[Optional[Noted]] = ContextVar("noted", default=None)


@dataclass(frozen=True)
class Verdict:
    """What would become of a step: NO, MAYBE, YES or STOPS, and the one reason."""

    title: str
    runs: str
    reason: str = ""


def note() -> Optional[Callable[[Session, Step], None]]:
    """What takes the steps of a dry run while a task is being explained, for Session.note; else None."""
    noted = _noted.get()
    return None if noted is None else lambda session, step: noted.append((session, step))


def plan(task: Callable[[], None]) -> Noted:
    """The steps that a task would look at, in order, each with the session in which it would run."""
    noted: Noted = []
    token = _noted.set(noted)
    try:
        task()
    finally:
        _noted.reset(token)
    return noted


def judge(planned: Noted) -> List[Verdict]:
    """What would become of each step, in the order in which they would run; reads and hashes, changes nothing.

    Raises DataError for a record that is damaged.
    """
    gates = {step.gate.name for _, step in planned if step.gate is not None}
    again: Dict[str, str] = {}  # path of an output -> MAYBE or YES: it would be made again
    latest: Dict[str, str] = {}  # a run's folder as a dry run names it -> as its record does
    verdicts: List[Verdict] = []
    for session, noted in {step.name: (session, step) for session, step in planned if step.name not in gates}.values():
        step = _with_folders(noted, latest)
        verdict = _judge(session, step, again)
        if step.gate is not None and verdict.runs in (MAYBE, YES):
            gate = _judge(session, step.gate, again)
            sure = verdict.runs == YES or gate.runs != YES
            verdicts.append(gate if sure else replace(gate, runs=MAYBE))
        verdicts.append(verdict)
        if verdict.runs == STOPS:
            break
        made = [str(path) for path in step.outputs]
        if step.inference is not None:
            folder, output = _latest(session, step), str(step.inference.output)
            latest.update({output: folder, f"{output}{LATEST}": folder} if folder else {})
            made += [f"{output}{LATEST}", *([folder] if folder else [])]
        if verdict.runs != NO:
            again.update(dict.fromkeys(made, verdict.runs))
    return verdicts


def lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The verdicts as text, and how many there are of each kind."""
    for verdict in verdicts:
        yield f"{verdict.title}: {verdict.runs}{f': {verdict.reason}' if verdict.reason else ''}"
    counts = {kind: sum(verdict.runs == kind for verdict in verdicts) for kind in (YES, MAYBE, NO, STOPS)}
    said = [f"{count} {kind}" for kind, count in counts.items() if count]
    yield f"{len(verdicts)} step{'' if len(verdicts) == 1 else 's'}: {', '.join(said)}"
    if counts[MAYBE]:
        yield "What may run is skipped if that which is made again comes out as it is now."


def _judge(session: Session, step: Step, again: Mapping[str, str]) -> Verdict:
    fresh = [needed.path for needed in step.inputs if str(needed.path) in again]
    settled = replace(step, inputs=tuple(needed for needed in step.inputs if needed.path not in fresh))
    if session.force:
        return Verdict(step.title, YES, session.why_forced)
    for needed in settled.inputs:
        if not (session.workspace / needed.path).exists():
            return Verdict(step.title, STOPS, f"{needed.path} is missing. {needed.command}")
    record = runner.last_record(session, step)
    reason = _reason(session, settled, record)
    if reason:
        stops = session.strict and record is not None and reason == _altered(session, step, record)
        return Verdict(step.title, STOPS if stops else YES, reason)
    for path in fresh:
        # A run's folder is named after its time, so it is another one each time.
        if again[str(path)] == YES and _is_run(path, again):
            return Verdict(step.title, YES, f"{path.parent} would have a new folder")
    if fresh:
        verb = "would" if again[str(fresh[0])] == YES else "may"
        return Verdict(step.title, MAYBE, f"{fresh[0]} {verb} be made again")
    return Verdict(step.title, NO)


def _is_run(path: PurePosixPath, again: Mapping[str, str]) -> bool:
    """Whether a path is the `<T>` of an output folder."""
    return f"{path.parent}{LATEST}" in again


def _with_folders(step: Step, latest: Mapping[str, str]) -> Step:
    """The step with the folders that runs left, where the dry run could only name their parent."""

    def real(text: str) -> str:
        return ",".join(latest.get(part, part) for part in text.split(","))

    inputs = tuple(replace(needed, path=PurePosixPath(real(str(needed.path)))) for needed in step.inputs)
    return replace(step, arguments=tuple(map(real, step.arguments)), inputs=inputs)


def _latest(session: Session, step: Step) -> str:
    """The folder that a run left, empty if none is recorded."""
    record = runner.last_record(session, step)
    assert step.inference is not None
    return str(runner.outputs_folder(record, step.inference)) if record is not None else ""


def _altered(session: Session, step: Step, record: Record) -> Optional[str]:
    """Which output is no longer what the record says."""
    return runner.why_run(session, replace(step, inputs=()), record, {})


def _reason(session: Session, step: Step, record: Optional[Record]) -> Optional[str]:
    """As pipeline.why_run, with the old and the new value of a parameter that changed."""
    if record is None:
        return runner.why_run(session, step, None)
    before = record.parameters
    for key, value in runner.parameters_of(session, step).items():
        if before.get(key) != value:
            return f"its {key} changed{_detail(session, step, record, key, before.get(key), value)}"
    return runner.why_run(session, step, record, {})


def _detail(session: Session, step: Step, record: Record, key: str, old: Any, new: Any) -> str:
    if key == "arguments" and old is not None:
        return f": {', '.join(option_changes(old, new))}"
    if key == "code":
        changed = source_digest.changed_since(record, session.project, step.module)
        return f" ({some(changed)})" if changed else ""
    said = f": {_short(old)} -> {_short(new)}"
    if key == "packages":
        return f": {STAGES_LOCK} is another one{said.replace(': ', ', ', 1)}"
    if key == "image" and (parts := _image_changes(session, step, record)):
        return f"{said}: {', '.join(parts)}"
    return said


def option_changes(old: Sequence[str], new: Sequence[str]) -> List[str]:
    """What is not the same in two command lines, one text for each option."""
    before, now = _options(old), _options(new)
    said = []
    for name in dict.fromkeys([*now, *before]):
        if name not in before:
            said.append(f"{name} {now[name]} is new".replace("  ", " "))
        elif name not in now:
            said.append(f"{name} {before[name]} is gone".replace("  ", " "))
        elif before[name] != now[name]:
            said.append(f"{name} {before[name]} -> {now[name]}")
    return said or ["their order"]


def _options(arguments: Sequence[str]) -> Dict[str, str]:
    """Option to value: `--name value ...` as our stages and msame take it, `--name=value` as atc does."""
    found: Dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, separator, value = argument.partition("=")
            found[name] = value if separator else ""
        else:
            found[name] = f"{found.get(name, '')} {argument}".strip()
    return found


def _image_changes(session: Session, step: Step, record: Record) -> List[str]:
    """What the image was made of when the step ran, compared with now; no engine is asked."""
    from deberta.host.images import (
        definition,
        pins,  # tomlkit is not loaded for the list of tasks
    )
    from deberta.host.run.docker_executor import STAGES

    before = record.internal.get("image_inputs")
    if not isinstance(before, dict):
        return []
    now = definition.plan(session.project, pins.load(session.project), STAGES[step.tool], platform.machine())
    return definition.changes(before, now.inputs)


def _short(value: Any) -> str:
    """A value as a message shows it; of a digest its beginning."""
    text = "nothing" if value is None else str(value)
    return f"{text[:12]}.." if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
