"""Intervals and tests against published values and against plain counting."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from scipy import stats

from deberta.core.errors import DataError
from deberta.stages.report import distributions, intervals


@pytest.mark.parametrize(
    ("correct", "rows", "interval"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3: Wilson's score interval without correction.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_gives_the_published_intervals(correct: int, rows: int, interval: tuple[float, float]) -> None:
    low, high = intervals.wilson(correct, rows)
    assert (round(low, 4), round(high, 4)) == interval
    assert intervals.wilson(rows - correct, rows) == pytest.approx((1 - high, 1 - low), abs=1.1e-6)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    # Fagerland, Lydersen, Laake 2013: airway hyper-responsiveness (1, 7), complete response (6, 16).
    [(1, 7, 0.039), (6, 16, 0.035), (0, 0, 1.0), (5, 5, 1.0)],
)
def test_mcnemar_gives_the_published_p_values(first: int, second: int, p: float) -> None:
    assert round(intervals.mcnemar(first, second), 3) == p == round(intervals.mcnemar(second, first), 3)


def test_mcnemar_is_what_counting_all_outcomes_gives() -> None:
    for first in range(13):
        for second in range(13):
            rows, fewer = first + second, min(first, second)
            # Of all equally likely ways to tell `rows` rows apart: those at least as far out, this far out by half.
            beyond = sum(math.comb(rows, k) for k in range(fewer)) + Fraction(math.comb(rows, fewer), 2)
            assert intervals.mcnemar(first, second) == pytest.approx(float(2 * beyond / 2**rows), abs=1e-6)


def test_more_often_right_counts_the_tail() -> None:
    assert intervals.more_often_right(9, 1) == pytest.approx((1 + 10) / 2**10)
    assert intervals.more_often_right(0, 0) == 1


def test_steady_times_need_no_warning() -> None:
    times = [10 + 0.01 * (i % 7) for i in range(99)]
    found = intervals.latency(times)
    assert found.warning == "" and found.percentiles_ms == {"p50": 10.03, "p90": 10.06, "p99": 10.06}
    assert found.interval_ms is not None and found.interval_ms[0] < sum(times) / 99 < found.interval_ms[1]


def test_the_interval_is_a_textbooks() -> None:
    # Walpole and others, Probability & Statistics, 9th edition, example 9.5: 9.74 to 10.26.
    found = intervals.latency([9.8, 10.2, 10.4, 9.8, 10.0, 10.2, 9.6])
    assert found.interval_ms is not None and [round(end, 2) for end in found.interval_ms] == [9.74, 10.26]
    assert found.spread == 0.04 and "7 times that count: fewer than 20" in found.warning


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ([10.0, 12.0] * 20, "the middle half of the times spans 18.2 % of the median"),
        ([10.0] * 38 + [60.0, 60.0], "the average is known to 28.2 % only"),  # quartiles do not see it
        ([10.0] * 19, "19 times that count"),
        ([10.0], "1 times that count"),
    ],
)
def test_too_little_or_too_wide_is_said(times: list[float], says: str) -> None:
    found = intervals.latency(times)
    assert says in found.warning and "Measure again" in found.warning
    assert (found.interval_ms is None) == (len(times) == 1)


def test_no_interval_goes_below_zero_and_the_advice_is_possible() -> None:
    few = intervals.latency([1.0, 9.0])
    assert few.interval_ms is not None and few.interval_ms[0] == 0.0 < few.interval_ms[1]
    assert "Measure again with more loops (up to 100) or on an idle machine" in few.warning
    for most in (99, 100):  # msame's log of 100 loops has 99 times that count
        warning = intervals.latency([10.0] * (most - 2) + [60.0, 90.0]).warning
        assert "Measure again on an idle machine" in warning and "loops" not in warning


@pytest.mark.parametrize("times", [[], [1.0, math.nan], [1.0, math.inf], [1.0, 0.0], [-1.0]])
def test_what_is_no_time_is_refused(times: list[float]) -> None:
    with pytest.raises(DataError, match="a time above 0 ms"):
        intervals.latency(times)


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 3.7, 9, 18.2, 98, 500.5, 1e4])
def test_quantiles_of_students_t_are_scipys(freedom: float) -> None:
    for share in (0.5, 0.6, 0.9, 0.975, 0.9975, 0.9999, 1 - 1e-7):
        expected = stats.t.ppf(share, freedom)
        assert distributions.t_quantile(share, freedom) == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("rows", [0, 1, 10, 333, 9815, 19647])
def test_tails_and_proportions_are_scipys(rows: int) -> None:
    """At sizes whose counts are beyond a float."""
    for count in {0, rows // 3, rows // 2, max(0, rows // 2 - 40)}:
        expected = stats.binom.cdf(count, rows, 0.5), stats.binom.pmf(count, rows, 0.5)
        assert distributions.binomial_tail(count, rows) == pytest.approx(expected, rel=1e-9, abs=1e-300)
        assert intervals.more_often_right(count, rows - count) == pytest.approx(stats.binom.sf(count - 1, rows, 0.5))
        if rows:
            wilson = stats.binomtest(count, rows).proportion_ci(0.95, method="wilson")
            assert intervals.wilson(count, rows) == (round(float(wilson.low), 6), round(float(wilson.high), 6))
    assert distributions.binomial_tail(-1, rows) == (0, 0) and distributions.binomial_tail(rows + 1, rows) == (1, 0)
    for value in (0.0, 1.0, 3.0, 8.0):
        assert distributions.normal_tail(value) == pytest.approx(stats.norm.sf(value), rel=1e-10)
