"""Intervals of counts, a test of two runs over the same rows, and what a list of times supports.

Counts are rows, times milliseconds. Rounded to DIGITS: what a report states must not hang on a CPU's last bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from deberta.ascend.timing import nearest_ranks
from deberta.core.contract import PERFORMANCE_LOOPS
from deberta.core.errors import DataError

CONFIDENCE = 0.95
DIGITS = 6
FEW_TIMES = 20  # below, a p99 is the largest time and the interval rests on too little
WIDE_SPREAD = 0.10  # interquartile range / median
WIDE_INTERVAL = 0.05  # half the interval / average: catches the rare long times that quartiles do not see

Interval = tuple[float, float]


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
    interval = stats.binomtest(correct, rows).proportion_ci(CONFIDENCE, method="wilson")
    return round(float(interval.low), DIGITS), round(float(interval.high), DIGITS)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's mid-p test: are two runs over the same rows equally often right?

    `only_first`, `only_second`: rows that one alone has right. With n rows in both, k in the smaller and X of the
    binomial distribution of n and 1/2: 2 * P(X <= k) - P(X = k), 1 without such rows. From Fagerland, Lydersen, Laake:
    The McNemar test for binary matched-pairs data, BMC Medical Research Methodology 13:91 (2013).
    """
    rows, fewer = only_first + only_second, min(only_first, only_second)
    p_value = 2 * stats.binom.cdf(fewer, rows, 0.5) - stats.binom.pmf(fewer, rows, 0.5)
    return round(min(1.0, float(p_value)), DIGITS)


def more_often_right(first: int, second: int) -> float:
    """One-sided exact p-value for `first` rows that one alone has right against `second` that another alone has.

    P(X >= first), X of the binomial distribution of first + second and 1/2 (the sign test). Not rounded.
    """
    return float(stats.binom.sf(first - 1, first + second, 0.5))


def latency(times_ms: Sequence[float]) -> Latency:
    """Describe times that count: no warm-up among them. Raises DataError if there are none, or one is no time."""
    times = np.array(times_ms, np.float64)
    if not len(times) or not np.isfinite(times).all() or times.min() <= 0:
        raise DataError(f"{len(times)} inferences count, and each needs a time above 0 ms. Run: invoke perf --force")
    average, median = float(times.mean()), float(np.median(times))
    spread = float(stats.iqr(times)) / median
    interval = None
    warnings = []
    if len(times) < FEW_TIMES:
        warnings.append(f"{len(times)} times that count: fewer than {FEW_TIMES} say little")
    if spread > WIDE_SPREAD:
        warnings.append(f"the middle half of the times spans {100 * spread:.1f} % of the median")
    if len(times) > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(times) - 1) * stats.sem(times))
        interval = (round(max(0.0, average - half), DIGITS), round(average + half, DIGITS))
        if half > WIDE_INTERVAL * average:
            warnings.append(f"the average is known to {100 * half / average:.1f} % only")
    more = "" if len(times) + 1 >= PERFORMANCE_LOOPS else f" with more loops (up to {PERFORMANCE_LOOPS}) or"
    warning = f"{'; '.join(warnings)}. Measure again{more} on an idle machine" if warnings else ""
    return Latency(nearest_ranks(times.tolist()), interval, round(spread, DIGITS), warning)
