"""Intervals of counts, a test of two runs over the same rows, what a list of times supports, and what two tell apart.

Counts are rows, times milliseconds. Rounded to DIGITS: what a report states must not hang on a CPU's last bits.

The noise of a change of throughput is the larger of two 95 % intervals, each widened for the number of runs compared
(Bonferroni), so that all conclusions together hold with 95 %:
- within: Welch's t interval of the difference of both averages. Times in a row depend on each other, so what is taken
  to be independent are the averages of blocks of them.
- between: the runs of one report that compute the same, at one length, batch size, precision and runner but of several
  versions, tell how far two runs lie apart for no reason. Without such runs a change below FLOOR counts for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deberta.ascend import msame
from deberta.ascend.timing import nearest_ranks
from deberta.core.contract import PERFORMANCE_LOOPS
from deberta.core.differences import FASTER, NOT_COMPARED, SAME, SLOWER
from deberta.core.errors import DataError
from deberta.core.report import PerformanceRun
from deberta.stages.report.distributions import binomial_tail, normal_quantile, t_quantile

CONFIDENCE = 0.95
DIGITS = 6
FEW_TIMES = 20  # below, a p99 is the largest time and the interval rests on too little
WIDE_SPREAD = 0.10  # interquartile range / median
WIDE_INTERVAL = 0.05  # half the interval / average: catches the rare long times that quartiles do not see
BLOCKS = 10  # of a run's times
FLOOR = WIDE_INTERVAL
MOST_NOISE = 0.5  # beyond it nothing is concluded
LEAST_RATIO = 1e-9  # a smaller one, or its inverse, is cut: the figures may be anybody's

Interval = tuple[float, float]


class Between(NamedTuple):
    """How far runs that compute the same lie apart: standard deviation of ln fps, and its degrees of freedom."""

    deviation: float
    freedom: int


class Change(NamedTuple):
    """From one throughput to another: change = second / first - 1. A change up to `noise`, either way, says nothing.

    `noise` is None, and `reason` says why, if nothing can be concluded.
    """

    change: float
    noise: float | None
    reason: str
    conclusion: str


@dataclass(frozen=True)
class Latency:
    """What a list of times says. All in ms but `spread`; `warning` is empty if one may conclude from them.

    `percentiles_ms`: by nearest rank, so that each is a measured time. `interval_ms`: of the average, by Student's t,
    no lower than 0; None of a single time. Times in a row depend on each other, so the interval is the least to allow
    for, not the most. `spread`: interquartile range / median.
    """

    percentiles_ms: dict[str, float]
    interval_ms: Interval | None
    spread: float
    warning: str


def wilson(correct: int, rows: int) -> Interval:
    """The 95 % interval of a proportion: Wilson's score interval without continuity correction (JASA 22, 1927)."""
    square = normal_quantile((1 + CONFIDENCE) / 2) ** 2
    half = math.sqrt(square * (4 * correct * (rows - correct) / rows + square))
    low, high = (2 * correct + square - half, 2 * correct + square + half)
    widths = 2 * (rows + square)
    return round(low / widths if correct else 0.0, DIGITS), round(high / widths if correct < rows else 1.0, DIGITS)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's mid-p test: are two runs over the same rows equally often right?

    `only_first`, `only_second`: rows that one alone has right. With n rows in both, k in the smaller and X of the
    binomial distribution of n and 1/2: 2 * P(X <= k) - P(X = k), 1 without such rows. From Fagerland, Lydersen, Laake:
    The McNemar test for binary matched-pairs data, BMC Medical Research Methodology 13:91 (2013).
    """
    rows, fewer = only_first + only_second, min(only_first, only_second)
    below, exactly = binomial_tail(fewer, rows)
    return round(min(1.0, 2 * below - exactly), DIGITS)


def more_often_right(first: int, second: int) -> float:
    """One-sided exact p-value for `first` rows that one alone has right against `second` that another alone has.

    P(X >= first), X of the binomial distribution of first + second and 1/2 (the sign test). Not rounded.
    """
    return binomial_tail(second, first + second)[0]  # the other half of the same symmetric distribution


def latency(times_ms: Sequence[float]) -> Latency:
    """Describe times that count: no warm-up among them. Raises DataError if there are none, or one is no time."""
    times = np.array(times_ms, np.float64)
    if not len(times) or not np.isfinite(times).all() or times.min() <= 0:
        raise DataError(f"{len(times)} inferences count, and each needs a time above 0 ms. Run: invoke perf --force")
    average, median = float(times.mean()), float(np.median(times))
    low, high = np.percentile(times, (25, 75))
    spread = float(high - low) / median
    interval = None
    warnings = []
    if len(times) < FEW_TIMES:
        warnings.append(f"{len(times)} times that count: fewer than {FEW_TIMES} say little")
    if spread > WIDE_SPREAD:
        warnings.append(f"the middle half of the times spans {100 * spread:.1f} % of the median")
    if len(times) > 1:
        error = float(np.std(times, ddof=1)) / math.sqrt(len(times))
        half = t_quantile((1 + CONFIDENCE) / 2, len(times) - 1) * error
        interval = (round(max(0.0, average - half), DIGITS), round(average + half, DIGITS))
        if half > WIDE_INTERVAL * average:
            warnings.append(f"the average is known to {100 * half / average:.1f} % only")
    more = "" if len(times) + 1 >= PERFORMANCE_LOOPS else f" with more loops (up to {PERFORMANCE_LOOPS}) or"
    warning = f"{'; '.join(warnings)}. Measure again{more} on an idle machine" if warnings else ""
    return Latency(nearest_ranks(times.tolist()), interval, round(spread, DIGITS), warning)


def same_work(runs: Iterable[PerformanceRun]) -> list[list[float]]:
    """The fps of the runs that differ in their version alone."""
    groups: dict[tuple[int, str, int, str], list[float]] = {}
    for run in runs:
        groups.setdefault((run.batch_size, run.precision, run.length, run.runner), []).append(run.fps)
    return list(groups.values())


def between(groups: Iterable[Sequence[float]]) -> Between:
    """Pooled over groups of the fps of runs that compute the same."""
    squares, freedom = 0.0, 0
    for group in groups:
        logs = list(map(math.log, group))
        mean = sum(logs) / len(logs)
        squares += sum((value - mean) ** 2 for value in logs)
        freedom += len(logs) - 1
    return Between(math.sqrt(squares / freedom) if freedom else 0.0, freedom)


def change(first: PerformanceRun, second: PerformanceRun, spread: Between, compared: int, least: float = 0.0) -> Change:
    """Whether a run's fps differs from another's by more than noise, which is `least` or more.

    `compared`: of how many pairs it is one.
    """
    change = min(max(second.fps / first.fps, LEAST_RATIO), 1 / LEAST_RATIO) - 1
    noise, reason = _noise(counted_times(first), counted_times(second), spread, compared)
    noise = None if noise is None else max(noise, least)
    if noise is not None and not noise <= MOST_NOISE:  # NaN too, which max keeps as its first argument
        reason = f"the times vary so much that a change of {100 * noise:.0f} % would say nothing"
        noise = None
    conclusion = NOT_COMPARED
    if noise is not None:
        conclusion = SAME if abs(math.log1p(change)) <= noise else SLOWER if change < 0 else FASTER
    return Change(round(change, DIGITS), None if noise is None else round(noise, DIGITS), reason, conclusion)


def _noise(first: Sequence[float], second: Sequence[float], spread: Between, compared: int) -> tuple[float | None, str]:
    """Half the interval of ln(second fps / first fps), or why there is none."""
    share = 1 - (1 - CONFIDENCE) / 2 / compared
    blocks = [_blocks(times) for times in (first, second)]
    if min(map(len, blocks)) < 2:
        return None, "a run has fewer than two times that count"
    parts = [float(np.var(values, ddof=1) / len(values) / np.mean(values) ** 2) for values in blocks]
    # Welch and Satterthwaite; 1 where all times are equal
    weights = sum(part**2 / (len(values) - 1) for part, values in zip(parts, blocks, strict=True))
    freedom = sum(parts) ** 2 / weights if weights else 1.0
    within = t_quantile(share, freedom) * math.sqrt(sum(parts))
    if not spread.freedom:
        return max(within, FLOOR), ""
    return max(within, t_quantile(share, spread.freedom) * spread.deviation * math.sqrt(2)), ""


def counted_times(run: PerformanceRun) -> Sequence[float]:
    """Times in ms without the warm-up, which is msame's first; ais_bench's own is none of them."""
    return run.times_ms[1:] if run.runner == msame.PROGRAM else run.times_ms


def _blocks(times: Sequence[float]) -> npt.NDArray[np.float64]:
    """The averages of BLOCKS parts of the times, or the times if they are few; as shares of the longest time."""
    shares = np.array(times, np.float64) / max(times, default=1.0)
    if len(shares) < 2 * BLOCKS:
        return shares
    return np.array([part.mean() for part in np.array_split(shares, BLOCKS)])


def fps_interval(run: PerformanceRun) -> Interval | None:
    """Of a run's fps, by the formula that made it of the average time; None if it has no end."""
    interval = run.interval_ms
    if interval is None or interval[0] <= 0:
        return None
    low, high = (run.batch_size * 1000 / time for time in reversed(interval))
    return (round(low, DIGITS), round(high, DIGITS)) if math.isfinite(high) else None
