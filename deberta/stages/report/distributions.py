"""Quantiles and tails of the distributions that a report's tests need, without scipy, whose import takes longer than a
whole report. A test holds each against scipy's.
"""

from __future__ import annotations

import math
from statistics import NormalDist

_STEPS = 500  # of the continued fraction, and of the search for a quantile: far more than either takes
_TINY = 1e-300


def binomial_tail(most: int, rows: int) -> tuple[float, float]:
    """P(X <= most) and P(X = most), X of the binomial distribution of `rows` and 1/2: of whole numbers, so exact."""
    if not 0 <= most <= rows:
        return (0.0, 0.0) if most < 0 else (1.0, 0.0)
    ways = total = 1  # of choosing 0 of them
    for chosen in range(1, most + 1):
        ways = ways * (rows - chosen + 1) // chosen
        total += ways
    return _share(total, rows), _share(ways, rows)


def _share(ways: int, rows: int) -> float:
    """ways / 2**rows, correctly rounded whatever their size."""
    return ways / (1 << rows)


def normal_quantile(share: float) -> float:
    """Where the standard normal distribution has `share` below it."""
    return NormalDist().inv_cdf(share)


def normal_tail(value: float) -> float:
    """P(X > value), X standard normal."""
    return math.erfc(value / math.sqrt(2)) / 2


def t_quantile(share: float, freedom: float) -> float:
    """Where Student's t distribution of `freedom` > 0 degrees, whole or not, has `share` of 1/2 to 1 below it."""
    if not (0.5 <= share < 1 and freedom > 0):
        return math.nan
    tail = 1 - share
    low, high = 0.0, 1.0
    while high < 1e300 and _t_tail(high, freedom) > tail:
        low, high = high, 2 * high
    for _ in range(_STEPS):
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if _t_tail(middle, freedom) > tail else (low, middle)
    return high if low else low


def _t_tail(value: float, freedom: float) -> float:
    """P(X > value), value >= 0: half the regularised incomplete beta function of freedom/(freedom + value**2)."""
    square = value * value
    if not math.isfinite(square):
        return 0.0
    return _beta(freedom / 2, 0.5, freedom / (freedom + square), square / (freedom + square)) / 2


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b); `rest` is 1 - x without its rounding.

    By Lentz's evaluation of its continued fraction (DLMF 8.17.22) where that converges fast, else by 1 - I_rest(b, a).
    """
    if x <= 0 or rest <= 0:
        return 0.0 if x <= 0 else 1.0
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)
    if x > (a + 1) / (a + b + 2):
        return 1 - math.exp(logs) * _fraction(b, a, rest) / b
    return math.exp(logs) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d or _TINY)
    value = d
    for m in range(1, _STEPS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for factor in (even, odd):
            d, c = 1 / (1 + factor * d or _TINY), 1 + factor / c or _TINY
            value *= d * c
        if abs(d * c - 1) < 1e-16:
            break
    return value
