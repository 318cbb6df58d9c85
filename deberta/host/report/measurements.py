"""What has been measured: the evaluations and performance runs that are there, and what stands behind each of them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional, Sequence

from deberta.ascend import ais_bench
from deberta.core import records
from deberta.core.contract import BROUGHT_MODEL, FP32, RUNNERS, SEQUENCE_LENGTH
from deberta.core.errors import DataError, MissingError
from deberta.core.job import EvaluationFiles, PerformanceFiles
from deberta.core.paths import record_of
from deberta.core.records import Record
from deberta.host.plan.plan import Plan
from deberta.host.run import freshness
from deberta.host.run.session import Session

ABSENT = "-"
OTHER_MODEL = "outdated: another model"
_RESULT = re.compile(r"(?:(?:eval|msame)_bs(\d+)_(?:match|mismatch)\.txt|ais_bench_bs(\d+)_(?:match|mismatch)\.json)")

Json = Mapping[str, Any]


@dataclass
class Measured:
    """What can be reported, as a job names it. `left_out`: evaluations that cannot be counted again, and why.

    `engines`: what the runs' own summaries say that they ran on.
    """

    evaluations: list[EvaluationFiles] = field(default_factory=list)
    performances: list[PerformanceFiles] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    engines: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.evaluations or self.performances or self.left_out)


def collect(
    session: Session, plan: Plan, sizes: Sequence[int], versions: Sequence[str], runners: Sequence[str] = RUNNERS
) -> Measured:
    """What is there at these batch sizes. Raises DataError if a file was altered."""
    measured = Measured()
    for size in sizes:
        for version in versions:
            if (session.workspace / plan.artifacts.evaluation(size, version)).exists():
                _add_evaluation(session, plan, size, version, measured)
            for name in runners:
                log = plan.artifacts.timing_log(size, version, name)
                if (session.workspace / log).exists():
                    _add_performance(session, plan, size, version, name, log, measured)
    return measured


def present(session: Session, plan: Plan) -> set[int]:
    """Batch sizes of the result files that are there."""
    folder = session.workspace / plan.artifacts.results
    matches = [_RESULT.fullmatch(path.name) for path in folder.glob("*.*")] if folder.is_dir() else []
    return {int(match[1] or match[2]) for match in matches if match}


def _add_performance(
    session: Session, plan: Plan, size: int, version: str, name: str, log: PurePosixPath, measured: Measured
) -> None:
    record = unaltered(session, log)
    if record:
        measured.engines |= _engine(record)
    measured.performances.append(
        PerformanceFiles(
            batch_size=size,
            version=version,
            precision=FP32,
            length=SEQUENCE_LENGTH,
            runner=name,
            log=str(log),
            origin=_origin(session, plan, size, record) if record else "no record",
            pinned=_is_pinned(session, plan, size, log),
            place=place(plan, name),
        )
    )


def _add_evaluation(session: Session, plan: Plan, size: int, version: str, measured: Measured) -> None:
    """An evaluation, or why it is left out: a report counts again, so outputs and labels have to be those of then."""
    text, parent = plan.artifacts.evaluation(size, version), plan.artifacts.outputs(size, version)
    data, record = plan.profile.data_path(version), unaltered(session, text)
    if not (session.workspace / data).exists():
        measured.left_out.append(f"{text}: it counted {data}, which is gone")
        return
    if record is None:
        outputs = session.workspace / parent
        folders = [entry.name for entry in outputs.iterdir() if entry.is_dir()] if outputs.is_dir() else []
        if len(folders) != 1:
            measured.left_out.append(f"{text}: it has no record, and {parent} not one folder but {len(folders)}")
            return
        folder, origin, pinned = str(parent / folders[0]), "no record", _is_pinned(session, plan, size)
    else:
        dependencies = record.dependencies
        folders_read = [entry for entry in dependencies.items() if "dirHash" in entry[1]]
        if len(folders_read) != 1:
            measured.left_out.append(f"{text}: its rows ran at several lengths")
            return
        [(folder, digest)] = folders_read
        for path, expected in ((folder, digest), (str(data), dependencies.get(str(data)))):
            if not (session.workspace / path).exists():
                measured.left_out.append(f"{text}: it counted {path}, which is gone")
                return
            if session.digests.of(PurePosixPath(path)) != expected:
                measured.left_out.append(f"{text}: it counted {path}, which was changed since")
                return
        run = records.read(session.workspace / record_of(parent))
        pinned = _is_pinned(session, plan, size, text, parent)
        if run is None or run.subjects.get(folder) != digest:
            origin = f"outputs brought: {folder}"
        else:
            origin = _origin(session, plan, size, run)
            measured.engines |= _engine(run)
    measured.evaluations.append(
        EvaluationFiles(
            batch_size=size,
            version=version,
            precision=FP32,
            outputs={str(SEQUENCE_LENGTH): folder},
            bins={},
            evaluation=str(text),
            origin=origin,
            pinned=pinned,
            place=place(plan, ""),
        )
    )


def _origin(session: Session, plan: Plan, batch_size: int, run: Record) -> str:
    """Empty if a run used the present compiled model, and that was made of the present dynamic.onnx."""
    model, onnx = plan.artifacts.compiled(batch_size), plan.artifacts.onnx
    dependencies = run.dependencies
    if plan.backend == "ascend" and freshness.is_user_supplied(session, model):
        return BROUGHT_MODEL if dependencies.get(str(model)) == session.digests.of(model) else OTHER_MODEL
    compilation = records.read(session.workspace / record_of(model))
    weights = model.with_suffix(".bin")
    models = [model, *([weights] if str(weights) in dependencies else [])]
    for record, path in (*((run, path) for path in models), (compilation, onnx)):
        exists = (session.workspace / path).exists()
        if record is None or not exists or record.dependencies.get(str(path)) != session.digests.of(path):
            return OTHER_MODEL
    return ""


def _is_pinned(session: Session, plan: Plan, batch_size: int, *artifacts: PurePosixPath) -> bool:
    """Whether no step on the way to these artifacts says that its image was not pinned."""
    way = (*artifacts, plan.artifacts.compiled(batch_size), plan.artifacts.onnx)
    way_records = [records.read(session.workspace / record_of(path)) for path in way]
    return all(record.internal.get("pins", "pinned") == "pinned" for record in way_records if record)


def _engine(record: Record) -> set[str]:
    """What a run's summary says of its engine, if it does."""
    summary = record.summary
    if "engine" not in summary:
        return set()
    return {f"{summary['engine']}, {summary.get('precision')}, {summary.get('threads')} threads"}


def read_evaluation(path: Path) -> Json:
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


def place(plan: Plan, name: str) -> str:
    """Where a figure was measured; the guide's own runner is not named."""
    return f"on {plan.backend}" + (f" ({name})" if name == ais_bench.MODULE else "")


def unaltered(session: Session, artifact: PurePosixPath) -> Optional[Record]:
    """An artifact's record, None for a file without one. Raises DataError if the two do not agree."""
    record = records.read(session.workspace / record_of(artifact))
    for name, digest in record.subjects.items() if record else ():
        path = PurePosixPath(name)
        if not (session.workspace / path).exists() or session.digests.of(path) != digest:
            raise DataError(f"{name} is not what {record_of(artifact)} says. Run the step again with --force")
    return record
