"""What has been measured: the evaluations and performance runs that are there, and what stands behind each of them."""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Optional, Sequence

import msgspec

from deberta.core import buckets, contract, files, records, schema
from deberta.core.contract import FP32, PRECISIONS, RUNNERS, SEQUENCE_LENGTH, SUPPLIED_LOG, SUPPLIED_OUTPUTS
from deberta.core.errors import DataError
from deberta.core.job import EvaluationFiles, LabelChangeFiles, PerformanceFiles, ThroughputFiles
from deberta.core.paths import record_of
from deberta.core.records import Record
from deberta.host.plan.plan import Case, Plan
from deberta.host.report import sharded_runs
from deberta.host.run import freshness
from deberta.host.run.session import Session

OTHER_MODEL = "outdated: another model"
NO_RECORD = "no record"
_RESULT = re.compile(
    r"(?:eval|msame|ais_bench|perf)_bs(\d+)(?:_int8|_bf16)?_(?:match|mismatch)(?:\.txt|\.json|_buckets\.json)"
)


@dataclass
class Measured:
    """What can be reported, as a job names it. `left_out`: files that cannot be counted again, and why."""

    evaluations: list[EvaluationFiles] = field(default_factory=list)
    performances: list[PerformanceFiles] = field(default_factory=list)
    on_devices: list[PerformanceFiles] = field(default_factory=list)
    throughputs: list[ThroughputFiles] = field(default_factory=list)
    label_changes: list[LabelChangeFiles] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


class Unreadable(Exception):
    """Why something that is there cannot be counted again."""


def collect(
    session: Session, plan: Plan, sizes: Sequence[int], versions: Sequence[str], runners: Sequence[str] = RUNNERS
) -> Measured:
    """What is there at these batch sizes, of all lengths and precisions. Raises DataError if a file was altered."""
    measured, precisions = Measured(), PRECISIONS if plan.backend == "cpu" else (FP32,)
    for size, version, precision in itertools.product(sizes, versions, precisions):
        case = Case(replace(plan, precision=precision), size, version).padded  # what is there says its lengths
        collector = _Collector(session, case, measured)
        collector.collect(case.evaluation, collector.evaluation)
        for name in runners:
            log = replace(case.artifacts, limit=0).timing_log(size, version, name)
            collector.collect(log, functools.partial(collector.performance, part=case, name=name))
            for of_device in collector.device_logs(log):
                collector.collect(of_device, functools.partial(collector.on_device, name=name))
        collector.collect(case.throughput, collector.throughput)
        if case.plan.precision != FP32:
            collector.collect(case.label_changes, collector.label_changes)
    return measured


def present(session: Session, plan: Plan) -> set[int]:
    """Batch sizes of the result files that are there."""
    folder = session.workspace / plan.artifacts.results
    matches = [_RESULT.fullmatch(path.name) for path in folder.glob("*.*")] if folder.is_dir() else []
    return {int(match[1]) for match in matches if match}


@dataclass(frozen=True)
class _Collector:
    """Adds what is there of one padded case to `measured`. Raises Unreadable where it is to be left out."""

    session: Session
    case: Case
    measured: Measured

    def collect(self, path: PurePosixPath, add: Callable[[PurePosixPath], object]) -> None:
        if not (self.session.workspace / path).exists():
            return
        try:
            add(path)
        except Unreadable as error:
            self.measured.left_out.append(f"{path}: {error}")

    def evaluation(self, text: PurePosixPath) -> None:
        """An evaluation: outputs, bins and labels have to be those of then, since a report counts again."""
        session, record = self.session, unaltered(self.session, text)
        self._require(self.case.plan.profile.data_path(self.case.version), record, "counted")
        case = self.case.of_lengths(lengths_of(session.workspace / text.with_suffix(".json")))
        outputs, origins = {}, []
        for part in case.lengths:
            folder = self._outputs(part, record)
            outputs[str(part.plan.length)] = folder
            # The run of this length alone, or that of all lengths, which has the first one's name.
            run = _record(session, part.outputs) or _record(session, case.lengths[0].outputs)
            if record is None:
                origins.append(NO_RECORD)
            elif run is None or run.subjects.get(folder) != session.digests.of(PurePosixPath(folder)):
                in_place = run is None and PurePosixPath(folder).parent == part.outputs
                origins.append(SUPPLIED_OUTPUTS if in_place else f"{SUPPLIED_OUTPUTS}: {folder}")
            else:
                origins.append(self._origin(part, run))
        bins = {} if case.plan.is_padded else {str(part.plan.length): str(part.bins) for part in case.lengths}
        for path in bins.values():
            self._require(PurePosixPath(path), record, "counted")
        self.measured.evaluations.append(
            EvaluationFiles(
                **self._run,
                outputs=outputs,
                bins=bins,
                evaluation=str(text),
                predictions=str(case.predictions) if record and str(case.predictions) in record.subjects else "",
                origin=next(filter(None, origins), ""),
            )
        )

    @property
    def _run(self) -> dict[str, Any]:
        """What names the run in each of a job's entries."""
        case = self.case
        run = {"batch_size": case.batch_size, "version": case.version, "precision": case.plan.precision}
        return {**run, "pinned": False, "place": ""}  # reasons.conclude fills in both

    def _require(self, path: PurePosixPath, record: Optional[Record], verb: str) -> None:
        """The file is there, and as the record has it."""
        if not (self.session.workspace / path).exists():
            raise Unreadable(f"it {verb} {path}, which is gone")
        if record is not None and self.session.digests.of(path) != record.dependencies.get(str(path)):
            raise Unreadable(f"it {verb} {path}, which was changed since")

    def _outputs(self, part: Case, record: Optional[Record]) -> str:
        """The folder of outputs that was counted of one length: below the case's own, or the user's."""
        if record is None:
            outputs = self.session.workspace / part.outputs
            folders = [entry.name for entry in outputs.iterdir() if entry.is_dir()] if outputs.is_dir() else []
            if len(folders) != 1:
                raise Unreadable(f"it has no record, and {part.outputs} not one folder but {len(folders)}")
            return str(part.outputs / folders[0])
        folders = [path for path, digest in record.dependencies.items() if "dirHash" in digest]
        own = [path for path in folders if part.outputs in (PurePosixPath(path), *PurePosixPath(path).parents)]
        [folder] = own[:1] or (folders if len(folders) == 1 else [""])
        if not folder:
            raise Unreadable(f"its record names no outputs of length {part.plan.length}")
        self._require(PurePosixPath(folder), record, "counted")
        return folder

    def _origin(self, part: Case, run: Record) -> str:
        """Empty if a run used the present compiled model, and that was made of the present ONNX: none of the user's."""
        session, model, onnx = self.session, part.compiled, part.artifacts.onnx
        theirs = (
            ["bins"] if str(part.bins) in run.dependencies and freshness.is_user_supplied(session, part.bins) else []
        )
        if part.plan.backend == "ascend" and freshness.is_user_supplied(session, model):
            is_present = run.dependencies.get(str(model)) == session.digests.of(model)
            return contract.ran_with("ascend", [".om", *theirs]) if is_present else OTHER_MODEL
        weights = model.with_suffix(".bin")
        models = [model, *([weights] if str(weights) in run.dependencies else [])]
        for record, path in (*((run, path) for path in models), (_record(session, model), onnx)):
            exists = (session.workspace / path).exists()
            if record is None or not exists or record.dependencies.get(str(path)) != session.digests.of(path):
                return OTHER_MODEL
        theirs = ["ONNX", *theirs] if freshness.is_user_supplied(session, onnx) else theirs
        return contract.ran_with(part.plan.backend, theirs) if theirs else ""

    def performance(self, log: PurePosixPath, part: Case, name: str) -> PerformanceFiles:
        """A performance run at one length, by its log."""
        run = self._run_of(log, part, name)
        if part.plan.is_padded or part.plan.length != SEQUENCE_LENGTH:
            self.measured.performances.append(run)
        return run

    def _run_of(self, log: PurePosixPath, part: Case, name: str) -> PerformanceFiles:
        record = unaltered(self.session, log)
        return PerformanceFiles(
            **self._run,
            length=part.plan.length,
            runner=name,
            log=str(log),
            device=sharded_runs.device_of(record),
            origin=self._origin(part, record) if record else SUPPLIED_LOG,
        )

    def device_logs(self, log: PurePosixPath) -> list[PurePosixPath]:
        """The timing logs of further devices, beside the one that the figures are of."""
        names = (self.session.workspace / log.parent).glob(f"{log.stem}.device-*{log.suffix}")
        return [log.with_name(path.name) for path in sorted(names)]

    def on_device(self, log: PurePosixPath, name: str) -> None:
        """A further device's performance run, which only its record can say what it is of."""
        run, whole = self._run_of(log, self.case, name), replace(self.case.artifacts, limit=0)
        if not run.device or whole.device_log(run.batch_size, run.version, run.device, name) != log:
            raise Unreadable("no record says that it is of the device in its name")
        if run.origin == OTHER_MODEL:
            raise Unreadable(OTHER_MODEL)
        first = whole.timing_log(run.batch_size, run.version, name)
        if run.device in [known.device for known in self.measured.performances if known.log == str(first)]:
            raise Unreadable(f"{first} is of the same device")
        self.measured.on_devices.append(run)

    def throughput(self, path: PurePosixPath) -> None:
        """What several lengths come to; the runs at these lengths are performance runs too."""
        record = unaltered(self.session, path)
        case = self.case.of_lengths(lengths_of(self.session.workspace / path))
        logs, runs = {}, []
        for part in case.lengths:
            whole = replace(part.artifacts, limit=0)
            names = {name: whole.timing_log(part.batch_size, part.version, name) for name in RUNNERS}
            known = [name for name, log in names.items() if record and str(log) in record.dependencies]
            if not known or not (self.session.workspace / names[known[0]]).exists():
                raise Unreadable(f"the timing log of length {part.plan.length} is gone, or no record names it")
            run = self.performance(names[known[0]], part, known[0])
            self._require(PurePosixPath(run.log), record, "took")
            logs[str(part.plan.length)] = run.log
            runs.append(run)
        tokens = replace(case.artifacts, limit=0).token_counts(case.version)
        self._require(tokens, record, "took")
        self.measured.throughputs.append(
            ThroughputFiles(
                **self._run,
                throughput=str(path),
                logs=logs,
                tokens=str(tokens),
                origin=next(filter(None, (run.origin for run in runs)), ""),
            )
        )

    def label_changes(self, path: PurePosixPath) -> None:
        """The comparison of a lower precision's evaluation with the float32 one, which are measured already."""
        case, record = self.case, unaltered(self.session, path)
        pair = {
            cell.precision: cell
            for cell in self.measured.evaluations
            if (cell.batch_size, cell.version) == (case.batch_size, case.version)
        }
        precision = case.plan.precision
        if record is None or not {FP32, precision} <= set(pair):
            raise Unreadable("it has no record, or one of both evaluations is not there")
        fp32, lower = pair[FP32], pair[precision]
        if list(fp32.outputs) != list(lower.outputs):
            raise Unreadable("the evaluations are of other lengths")
        for folder in (*fp32.outputs.values(), *lower.outputs.values(), *lower.bins.values()):
            self._require(PurePosixPath(folder), record, "compared")
        self.measured.label_changes.append(
            LabelChangeFiles(
                batch_size=case.batch_size,
                version=case.version,
                label_changes=str(path),
                fp32=fp32.outputs,
                precision=precision,
                lower=lower.outputs,
                bins=lower.bins,
                origin=lower.origin or fp32.origin,
            )
        )


class _LengthsOnly(msgspec.Struct):
    """The key of an evaluation's or a throughput's JSON file that says which lengths it is of."""

    buckets: dict[schema.Number, Any] = msgspec.field(default_factory=dict)


def lengths_of(path: Path) -> buckets.Lengths:
    """The lengths that made a file; 256 alone if it does not say so. What else is wrong with it is assess' to find."""
    try:
        content = schema.read_json(path, _LengthsOnly)
    except (OSError, ValueError):
        return buckets.PADDED
    return tuple(sorted(map(int, content.buckets))) or buckets.PADDED


def _record(session: Session, artifact: PurePosixPath) -> Optional[Record]:
    return records.read(session.workspace / record_of(artifact))


def unaltered(session: Session, artifact: PurePosixPath) -> Optional[Record]:
    """An artifact's record, None for a file without one. Raises DataError if the two do not agree, and Unreadable."""
    record = _record(session, artifact)
    altered = freshness.altered_output(session, record) if record else None
    if files.is_interrupted(session.workspace / (altered[0] if altered else artifact)):
        raise Unreadable(f"it {freshness.INTERRUPTED}")
    if altered:
        raise DataError(f"{altered[0]} is not what {record_of(artifact)} says. Run what makes it with --force")
    return record
