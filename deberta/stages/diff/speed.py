"""Two reports' throughputs: is a difference larger than the noise, within the runs and between runs of one report?

The noise of a change is the larger of two 95 % intervals, each widened for the number of runs compared (Bonferroni), so
that all conclusions together hold with 95 %:
- within: Welch's t interval of the difference of both averages. Times in a row depend on each other, so what is taken
  to be independent are the averages of blocks of them.
- between: the runs of one report that compute the same, at one length, batch size, precision and runner but of several
  versions, tell how far two runs lie apart for no reason. Without such runs a change below FLOOR counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from deberta.ascend import msame
from deberta.core.differences import FASTER, NOT_COMPARED, SAME, SLOWER, FpsDifference
from deberta.core.report import PerformanceRun, Report
from deberta.stages.report import intervals
from deberta.stages.report.intervals import CONFIDENCE, DIGITS, Interval

BLOCKS = 10  # of a run's times
FLOOR = intervals.WIDE_INTERVAL
MOST_NOISE = 0.5  # beyond it nothing is concluded
LEAST_RATIO = 1e-9  # a smaller one, or its inverse, is cut: the figures may be anybody's

Key = tuple[int, str, str, int, str]


class Between(NamedTuple):
    """How far runs that compute the same lie apart: standard deviation of ln fps, and its degrees of freedom."""

    deviation: float
    freedom: int


def key(run: PerformanceRun) -> Key:
    return run.batch_size, run.version, run.precision, run.length, run.runner


def compare(a: Report, b: Report) -> list[FpsDifference]:
    """The runs that both have."""
    runs_b = {key(run): run for run in b.measured.performances}
    pairs = [(run, runs_b[key(run)]) for run in a.measured.performances if key(run) in runs_b]
    spread, alike = between([a, b]), a.body.backend == b.body.backend
    return [_difference(first, second, spread, len(pairs), alike) for first, second in pairs]


def between(reports: Sequence[Report]) -> Between:
    """Pooled over all groups of runs in one report that differ in their version alone."""
    squares, freedom = 0.0, 0
    for report in reports:
        groups: dict[tuple[int, str, int, str], list[float]] = {}
        for run in report.measured.performances:
            groups.setdefault((run.batch_size, run.precision, run.length, run.runner), []).append(math.log(run.fps))
        for logs in groups.values():
            mean = sum(logs) / len(logs)
            squares += sum((value - mean) ** 2 for value in logs)
            freedom += len(logs) - 1
    return Between(math.sqrt(squares / freedom) if freedom else 0.0, freedom)


def _difference(a: PerformanceRun, b: PerformanceRun, spread: Between, compared: int, alike: bool) -> FpsDifference:
    change = min(max(b.fps / a.fps, LEAST_RATIO), 1 / LEAST_RATIO) - 1
    noise, reason = _noise(a, b, spread, compared) if alike else (None, "they are of two backends")
    if noise is not None and not noise <= MOST_NOISE:  # NaN too
        reason = f"the times vary so much that a change of {100 * noise:.0f} % would say nothing"
        noise = None
    conclusion = NOT_COMPARED
    if noise is not None:
        conclusion = SAME if abs(math.log1p(change)) <= noise else SLOWER if change < 0 else FASTER
    return FpsDifference(
        batch_size=b.batch_size,
        version=b.version,
        precision=b.precision,
        length=b.length,
        runner=b.runner,
        fps_a=a.fps,
        interval_a=_fps_interval(a),
        fps_b=b.fps,
        interval_b=_fps_interval(b),
        change=round(change, DIGITS),
        noise=None if noise is None else round(noise, DIGITS),
        why_not_compared=reason,
        conclusion=conclusion,
    )


def _noise(a: PerformanceRun, b: PerformanceRun, spread: Between, compared: int) -> tuple[float | None, str]:
    """Half the interval of ln(fps of B / fps of A), or why there is none."""
    share = 1 - (1 - CONFIDENCE) / 2 / compared
    blocks = [_blocks(counted(run)) for run in (a, b)]
    if min(map(len, blocks)) < 2:
        return None, "a run has fewer than two times that count"
    parts = [float(np.var(values, ddof=1) / len(values) / np.mean(values) ** 2) for values in blocks]
    # Welch and Satterthwaite; 1 where all times are equal
    weights = sum(part**2 / (len(values) - 1) for part, values in zip(parts, blocks, strict=True))
    freedom = sum(parts) ** 2 / weights if weights else 1.0
    within = float(stats.t.ppf(share, freedom)) * math.sqrt(sum(parts))
    if not spread.freedom:
        return max(within, FLOOR), ""
    return max(within, float(stats.t.ppf(share, spread.freedom)) * spread.deviation * math.sqrt(2)), ""


def counted(run: PerformanceRun) -> Sequence[float]:
    """Times in ms without the warm-up, which is msame's first."""
    return run.times_ms[1:] if run.runner == msame.PROGRAM else run.times_ms


def _blocks(times: Sequence[float]) -> npt.NDArray[np.float64]:
    """The averages of BLOCKS parts of the times, or the times if they are few; as shares of the longest time."""
    shares = np.array(times, np.float64) / max(times, default=1.0)
    if len(shares) < 2 * BLOCKS:
        return shares
    return np.array([part.mean() for part in np.array_split(shares, BLOCKS)])


def _fps_interval(run: PerformanceRun) -> Interval | None:
    """By the formula that made fps of the average itself."""
    interval = run.interval_ms
    if interval is None or interval[0] <= 0:
        return None
    low, high = (run.batch_size * 1000 / time for time in reversed(interval))
    return (round(low, DIGITS), round(high, DIGITS)) if math.isfinite(high) else None


def missing(a: Report, b: Report) -> Iterator[PerformanceRun]:
    """A's runs that B has not."""
    keys = set(map(key, b.measured.performances))
    return (run for run in a.measured.performances if key(run) not in keys)
