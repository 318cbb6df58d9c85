"""What has been measured: the evaluations and performance runs that are there, and what stands behind each of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional, Sequence, Union

from deberta.ascend import ais_bench
from deberta.core import records
from deberta.core.contract import BROUGHT_MODEL, RUNNERS
from deberta.core.errors import DataError, MissingError
from deberta.core.paths import record_of
from deberta.core.records import Record
from deberta.host.plan.evaluation import Plan
from deberta.host.run import runner as pipeline
from deberta.host.run.runner import Session

ABSENT = "-"


@dataclass(frozen=True)
class Measurement:
    """What stands behind something measured. `origin` is empty for a run of the present model, else it says what was
    counted instead. `pinned` is False if a step on the way ran in an image that is not as pinned.
    """

    batch_size: int
    version: str
    origin: str
    pinned: bool
    engine: str  # what the run's own summary says it ran on, or empty


@dataclass(frozen=True)
class Evaluated(Measurement):
    """One evaluation, and the folder of outputs that it counted."""

    evaluation: PurePosixPath
    outputs: PurePosixPath


@dataclass(frozen=True)
class Timed(Measurement):
    """One performance run."""

    runner: str
    log: PurePosixPath


@dataclass(frozen=True)
class Measured:
    """What is there to be reported. `left_out`: evaluations that cannot be counted again, and why."""

    evaluations: tuple[Evaluated, ...]
    performances: tuple[Timed, ...]
    left_out: tuple[str, ...]

    @property
    def figures(self) -> tuple[Measurement, ...]:
        return (*self.evaluations, *self.performances)

    def __bool__(self) -> bool:
        return bool(self.figures or self.left_out)


def collect(
    session: Session, plan: Plan, sizes: Sequence[int], versions: Sequence[str], runners: Sequence[str] = RUNNERS
) -> Measured:
    """What is there at these batch sizes. Raises DataError if a file was altered."""
    evaluations, performances, left_out = [], [], []
    for size in sizes:
        for version in versions:
            text = plan.artifacts.evaluation(size, version)
            if (session.workspace / text).exists():
                found = _evaluated(session, plan, size, version)
                if isinstance(found, Evaluated):
                    evaluations.append(found)
                else:
                    left_out.append(f"{text}: {found}")
            for runner in runners:
                log = plan.artifacts.timing_log(size, version, runner)
                if (session.workspace / log).exists():
                    record = unaltered(session, log)
                    origin = _model_of(session, plan, size, record) if record else "no record"
                    engine = _engine(record.summary) if record else ""
                    pinned = _pinned(session, plan, size, log)
                    performances.append(Timed(size, version, origin, pinned, engine, runner, log))
    return Measured(tuple(evaluations), tuple(performances), tuple(left_out))


def present(session: Session, plan: Plan) -> set[int]:
    """Batch sizes of the result files that are there."""
    folder = session.workspace / plan.artifacts.results
    names = [path.name for path in folder.glob("*.*")] if folder.is_dir() else []
    kept = r"(?:(?:eval|msame)_bs(\d+)_(?:match|mismatch)\.txt|ais_bench_bs(\d+)_(?:match|mismatch)\.json)"
    matches = [re.fullmatch(kept, name) for name in names]
    return {int(match[1] or match[2]) for match in matches if match}


def _evaluated(session: Session, plan: Plan, batch_size: int, version: str) -> Union[Evaluated, str]:
    """An Evaluated, or why there is none: a report counts again, so outputs and labels have to be those of then."""
    text, parent = plan.artifacts.evaluation(batch_size, version), plan.artifacts.outputs(batch_size, version)
    data, record = plan.profile.data_path(version), unaltered(session, text)
    if not (session.workspace / data).exists():
        return f"it counted {data}, which is gone"
    if record is None:
        there = session.workspace / parent
        folders = [entry.name for entry in there.iterdir() if entry.is_dir()] if there.is_dir() else []
        if len(folders) != 1:
            return f"it has no record, and {parent} not one folder but {len(folders)}"
        pinned = _pinned(session, plan, batch_size)
        return Evaluated(batch_size, version, "no record", pinned, "", text, parent / folders[0])
    [(folder, digest)] = [entry for entry in record.dependencies.items() if "dirHash" in entry[1]]
    for path, then in ((folder, digest), (str(data), record.dependencies.get(str(data)))):
        if not (session.workspace / path).exists():
            return f"it counted {path}, which is gone"
        if session.digests.of(PurePosixPath(path)) != then:
            return f"it counted {path}, which was changed since"
    run = records.read(session.workspace / record_of(parent))
    pinned = _pinned(session, plan, batch_size, text, parent)
    if run is None or run.subjects.get(folder) != digest:
        origin, engine = f"outputs brought: {folder}", ""
    else:
        origin, engine = _model_of(session, plan, batch_size, run), _engine(run.summary)
    return Evaluated(batch_size, version, origin, pinned, engine, text, PurePosixPath(folder))


def _model_of(session: Session, plan: Plan, batch_size: int, run: Record) -> str:
    """Empty if a run used the present compiled model, and that was made of the present dynamic.onnx."""
    compiled, onnx = plan.artifacts.compiled(batch_size), plan.artifacts.onnx
    made = records.read(session.workspace / record_of(compiled))
    if plan.backend == "ascend" and pipeline.is_brought(session, compiled):
        same = run.dependencies.get(str(compiled)) == session.digests.of(compiled)
        return BROUGHT_MODEL if same else "outdated: another model"
    weights = compiled.with_suffix(".bin")
    read = [compiled, *([weights] if str(weights) in run.dependencies else [])]
    for record, needed in (*((run, path) for path in read), (made, onnx)):
        there = (session.workspace / needed).exists()
        if record is None or not there or record.dependencies.get(str(needed)) != session.digests.of(needed):
            return "outdated: another model"
    return ""


def _pinned(session: Session, plan: Plan, batch_size: int, *made: PurePosixPath) -> bool:
    """Whether no step on the way to these artifacts says that its image was not pinned."""
    way = (*made, plan.artifacts.compiled(batch_size), plan.artifacts.onnx)
    found = [records.read(session.workspace / record_of(path)) for path in way]
    return not any(record.internal.get("pins", "pinned") != "pinned" for record in found if record)


def _engine(summary: Mapping[str, Any]) -> str:
    if "engine" not in summary:
        return ""
    return f"{summary['engine']}, {summary.get('precision')}, {summary.get('threads')} threads"


def read_evaluation(path: Path) -> Mapping[str, Any]:
    """The exact counts of an evaluation. Raises MissingError and DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Evaluate again with --force") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Evaluate again with --force") from None
    if not isinstance(content, dict) or not {"accuracy", "correct", "rows", "genres"} <= set(content):
        raise DataError(f"{path} does not hold the counts of an evaluation. Evaluate again with --force")
    return content


def place(plan: Plan, runner: str) -> str:
    """Where a figure was measured; the guide's own runner is not named."""
    return f"on {plan.backend}" + (f" ({runner})" if runner == ais_bench.MODULE else "")


def unaltered(session: Session, artifact: PurePosixPath) -> Optional[Record]:
    """An artifact's record, None for a file that we did not make. Raises DataError if the two do not agree."""
    record = records.read(session.workspace / record_of(artifact))
    for name, digest in record.subjects.items() if record else ():
        path = PurePosixPath(name)
        if not (session.workspace / path).exists() or session.digests.of(path) != digest:
            raise DataError(f"{name} is not what {record_of(artifact)} says. Run the step again with --force")
    return record
