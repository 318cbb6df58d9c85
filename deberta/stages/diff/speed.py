"""Two reports' throughputs: is a difference larger than the noise, within the runs and between runs of one report?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deberta.core.differences import NOT_COMPARED, FpsDifference
from deberta.core.report import PerformanceRun, Report
from deberta.stages.report import intervals
from deberta.stages.report.intervals import Between, fps_interval, same_work

Key = tuple[int, str, str, int, str]


def key(run: PerformanceRun) -> Key:
    return run.batch_size, run.version, run.precision, run.length, run.runner


def compare(a: Report, b: Report) -> list[FpsDifference]:
    """The runs that both have."""
    runs_b = {key(run): run for run in b.measured.performances}
    pairs = [(run, runs_b[key(run)]) for run in a.measured.performances if key(run) in runs_b]
    spread, alike = between([a, b]), a.body.backend == b.body.backend
    return [_difference(first, second, spread, len(pairs), alike) for first, second in pairs]


def between(reports: Sequence[Report]) -> Between:
    """How far runs lie apart that compute the same, in these reports."""
    return intervals.between(group for report in reports for group in same_work(report.measured.performances))


def _difference(a: PerformanceRun, b: PerformanceRun, spread: Between, compared: int, alike: bool) -> FpsDifference:
    change = intervals.change(a, b, spread, compared)
    if not alike:
        change = change._replace(noise=None, reason="they are of two backends", conclusion=NOT_COMPARED)
    return FpsDifference(
        batch_size=b.batch_size,
        version=b.version,
        precision=b.precision,
        length=b.length,
        runner=b.runner,
        fps_a=a.fps,
        interval_a=fps_interval(a),
        fps_b=b.fps,
        interval_b=fps_interval(b),
        change=change.change,
        noise=change.noise,
        why_not_compared=change.reason,
        conclusion=change.conclusion,
    )


def missing(a: Report, b: Report) -> Iterator[PerformanceRun]:
    """A's runs that B has not."""
    keys = set(map(key, b.measured.performances))
    return (run for run in a.measured.performances if key(run) not in keys)
