"""Report of a profile's runs: every evaluation counted again from its logits, compared, and judged by the gates.

The job, a JSON file that the host writes, names every file that is read; its paths are relative to the working
directory. `body` depends on pins and inputs alone, and its SHA-256 is of its canonical JSON (RFC 8785); times, tools
and machines are in `measured`. The same job and files give the same bytes. A failed verdict is no error here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from deberta.ascend import timing
from deberta.core import files, schema
from deberta.core.contract import FP32, PRECISIONS, RUNNERS, is_supplied
from deberta.core.differences import SAME, LabelChangeCounts, ReportDifference
from deberta.core.errors import DataError, MissingError, StageError, run_stage
from deberta.core.job import FORMAT, Job, LabelChangeFiles, PerformanceFiles, ThroughputFiles
from deberta.core.progress import track
from deberta.core.report import (
    Body,
    DataCheck,
    DeviceFps,
    DeviceRuns,
    EvaluationCell,
    PerformanceRun,
    PrecisionComparison,
    Report,
    ReportMeasured,
    ThroughputCounts,
    ThroughputResult,
)
from deberta.stages import arguments
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import predicted
from deberta.stages.report import canonical, cells, gates, intervals
from deberta.stages.report.cells import Recount, Version
from deberta.stages.report.intervals import Between, Change


def read_job(path: Path) -> Job:
    """Raises MissingError; DataError if it is not a job of this format."""
    return schema.read(path, Job, "Run: invoke report")


def assess(job: Job, root: Path = Path()) -> Report:
    """The report; the job's paths are relative to `root`. Reads, and writes nothing.

    Raises MissingError if nothing was measured or a named file is missing, DataError if one does not hold what it
    should, StageError if the report does not fit its own schema.
    """
    if not (job.cells or job.performances or job.throughputs):
        raise MissingError(f"nothing has been measured for profile {job.profile.name}. Run: invoke evaluate")
    versions = read_versions(job, root)
    counted = [
        cells.recount(source, root / job.data[source.version], versions[source.version], job.limit, root)
        for source in track(job.cells, "recount", "evaluations")
    ]
    counted.sort(key=lambda entry: _order(entry.cell))
    body = make_body(job, root, versions, counted)
    performances = sorted(
        (performance(run, root) for run in job.performances), key=lambda run: (*_order(run), RUNNERS.index(run.runner))
    )
    report = Report(
        format=FORMAT,
        title=f"DeBERTa on MNLI: profile {job.profile.name}, backend {job.backend}",
        body=body,
        body_sha256=canonical.digest(body),
        verdict=gates.judge(job, body, performances) if job.purpose == "acceptance" else None,
        measured=ReportMeasured(
            **msgspec.structs.asdict(job.measured),
            performances=performances,
            throughputs=[throughput(source, root) for source in job.throughputs],
            label_changes=[label_changes(source, root) for source in job.label_changes],
            published=job.published,
            note=job.note,
            device_runs=device_runs(job, performances, root),
            wrong_rows=[
                cells.wrong_rows(entries, versions[name], root / job.data[name])
                for name in versions
                if (entries := _comparable(counted, name) or [entry for entry in counted if entry.cell.version == name])
            ],
            baseline=baseline(job, body, root),
        ),
    )
    try:
        msgspec.convert(msgspec.to_builtins(report), Report)
    except msgspec.ValidationError as error:
        raise StageError(f"the report {schema.problem(error)}") from None
    return report


def read_versions(job: Job, root: Path) -> dict[str, Version]:
    """What the cells of each version share. Raises MissingError and DataError."""
    used = {*job.references, *(cell.version for cell in job.cells)}
    versions = {}
    for name in (name for name in job.data if name in used):
        gold = postprocess.read_gold(root / job.data[name], job.limit, job.profile.rows.get(name) or 0)
        path = job.references.get(name)
        reference = cells.read_reference(root / path, len(gold)) if path else None
        versions[name] = Version(gold, reference, gates.near_tie_margin(job))
    return versions


def make_body(job: Job, root: Path, versions: Mapping[str, Version], counted: Sequence[Recount]) -> Body:
    """What depends on pins and inputs alone."""
    return Body(
        profile=job.profile.name,
        backend=job.backend,
        published=job.profile.published,
        limit=job.limit,
        labels=job.profile.labels,
        versions=job.versions,
        batch_sizes=job.batch_sizes,
        inputs=job.inputs,
        artifacts=job.artifacts,
        sentinels={
            name: schema.read(root / path, DataCheck, "Run: invoke acceptance") for name, path in job.sentinels.items()
        },
        reference={
            name: cells.proportion(int((predicted(version.reference) == version.labels).sum()), len(version.gold))
            for name, version in versions.items()
            if version.reference is not None
        },
        cells=[entry.cell for entry in counted],
        agreement={
            name: cells.agreement(of_version, version)
            for name, version in versions.items()
            if (of_version := _comparable(counted, name))
        },
    )


def _comparable(counted: Sequence[Recount], version: str) -> list[Recount]:
    """A version's float32 evaluations of the present model."""
    cells_of = [entry for entry in counted if entry.cell.version == version]
    return [entry for entry in cells_of if entry.cell.precision == FP32 and not entry.cell.origin]


def _order(figure: EvaluationCell | PerformanceRun) -> tuple[int, str, int]:
    return figure.batch_size, figure.version, PRECISIONS.index(figure.precision)


def performance(source: PerformanceFiles, root: Path = Path()) -> PerformanceRun:
    """A performance run from its log. fps and average are the log's own, without its warm-up.

    msame's first time is its warm-up; ais_bench leaves its own out. Raises MissingError; DataError if the log is not
    whole, or its average is not that of its times.
    """
    path = root / source.log
    again = f"Run: invoke perf --bs {source.batch_size} --version {source.version} --force"
    if not path.is_file():
        raise MissingError(f"{path} is missing. {again}")
    try:
        run = timing.parse(files.read_text(path), source.runner, source.batch_size)
        latency = intervals.latency(run.counted_ms)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    try:
        timing.check_average(run)
    except DataError as error:
        raise DataError(f"{path}: {error}. {again}") from None
    content = {
        **cells.shared(source, PerformanceRun),
        **asdict(latency),
        "loops": len(run.times_ms),
        "fps": run.fps,
        "average_ms": run.average_ms,
        "times_ms": run.times_ms,
    }
    return msgspec.convert(content, PerformanceRun)


def device_runs(job: Job, performances: Sequence[PerformanceRun], root: Path) -> list[DeviceRuns]:
    """Further devices' runs beside those of `performances` that measured the same. Raises as `performance`."""
    main = {_same(source): source.device for source in job.performances}
    groups = {_same(run): [(main[_same(run)], run)] for run in performances}
    for source in job.on_devices:
        groups.setdefault(_same(source), []).append((source.device, performance(source, root)))
    several = [sorted(group, key=lambda entry: -entry[1].fps) for group in groups.values() if len(group) > 1]
    spread = intervals.between(intervals.same_work(performances))
    pairs = sum(len(group) - 1 for group in several)
    compared = []
    for group in several:
        reference, middle = group[(len(group) - 1) // 2]
        devices = [_beside(name, run, middle, spread, pairs) for name, run in sorted(group, key=lambda entry: entry[0])]
        compared.append(
            DeviceRuns(
                batch_size=middle.batch_size,
                version=middle.version,
                precision=middle.precision,
                length=middle.length,
                runner=middle.runner,
                reference=reference,
                devices=devices,
                sum=sum(run.fps for _, run in group),
            )
        )
    return compared


def _same(run: PerformanceRun | PerformanceFiles) -> tuple[int, str, str, int, str]:
    """What is the same of runs on several devices."""
    return run.batch_size, run.version, run.precision, run.length, run.runner


def _beside(device: str, run: PerformanceRun, middle: PerformanceRun, spread: Between, pairs: int) -> DeviceFps:
    change = intervals.change(middle, run, spread, pairs, least=intervals.FLOOR)
    if run is middle:
        change = Change(0.0, None, "", SAME)
    not_pinned = [] if run.pinned or is_supplied(run.origin) else ["not pinned"]
    return DeviceFps(
        device=device,
        loops=run.loops,
        fps=run.fps,
        interval=intervals.fps_interval(run),
        change=change.change,
        noise=change.noise,
        conclusion=change.conclusion,
        why_not_compared=change.reason,
        remarks=[*filter(None, [run.origin, *not_pinned, run.warning]), *run.not_checked],
    )


def throughput(source: ThroughputFiles, root: Path) -> ThroughputResult:
    """What the throughput stage's file says; whether it is of these logs is for `verify`. Raises as schema.read."""
    again = f"Run: invoke perf --bs {source.batch_size} --version {source.version} --force"
    counts = schema.read(root / source.throughput, ThroughputCounts, again)
    lengths = {length: entry.rows for length, entry in counts.buckets.items()}
    figures = {"lengths": lengths, "rows": counts.rows, "fps": counts.fps}
    return msgspec.convert({**cells.shared(source, ThroughputResult), **figures}, ThroughputResult)


def label_changes(source: LabelChangeFiles, root: Path) -> PrecisionComparison:
    """What the label-changes stage's file says, likewise."""
    case = f"--bs {source.batch_size} --version {source.version} --precision {source.precision}"
    again = f"Run: invoke evaluate {case} --force"
    counts = schema.read(root / source.label_changes, LabelChangeCounts, again)
    if counts.precision != source.precision:
        raise DataError(f"{source.label_changes} is of {counts.precision}, not of {source.precision}. {again}")
    figures = {"lengths": list(map(int, source.lower)), **msgspec.structs.asdict(counts)}
    return msgspec.convert({**cells.shared(source, PrecisionComparison), **figures}, PrecisionComparison)


def baseline(job: Job, body: Body, root: Path) -> ReportDifference | None:
    """What differs from the job's baseline, None if it names none. Raises DataError if it is of another report."""
    if not job.baseline:
        return None
    again = "Run: invoke report"
    difference = schema.read(root / job.baseline, ReportDifference, again)
    if difference.b.body_sha256 != canonical.digest(body):
        raise DataError(f"{job.baseline} is of another report: its body is {difference.b.body_sha256}. {again}")
    return difference


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(argv, __doc__, "output summary", job=arguments.file("report_job.json"))
    report = assess(read_job(options.job))
    files.write_text(options.output, schema.text(report))
    verdict = report.verdict.verdict if report.verdict else None
    evaluations, runs = len(report.body.cells), len(report.measured.performances)
    print(
        f"{evaluations} evaluations counted again, {runs} performance runs: "
        f"{verdict or 'no verdict was asked for'}: {options.output}"
    )
    summary = {"verdict": verdict, "body_sha256": report.body_sha256, "evaluations": evaluations, "performances": runs}
    arguments.write_summary(options.summary, summary)


if __name__ == "__main__":
    sys.exit(run_stage(main))
