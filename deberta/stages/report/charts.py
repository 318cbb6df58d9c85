"""Charts as SVG text: the same figures give the same bytes. Colours and fonts are classes of the page's style sheet.

A chart is as wide as a phone, so that its text stays readable there; what it shows is in a table of the page too. Here
its values get their places; charts.svg.jinja beside this module draws them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

_CHARACTER = 7.6  # px, about the mean width of a character in the widest of the page's fonts


class Dot(NamedTuple):
    """A value with its interval; `strong`: the total, set apart from its parts."""

    label: str
    value: float
    low: float
    high: float
    strong: bool = False


class Series(NamedTuple):
    """Points (batch size, fps) by increasing size, each with its interval or None. `style`: a class of the page."""

    label: str
    style: str
    points: tuple[tuple[int, float], ...]
    intervals: tuple[tuple[float, float] | None, ...] = ()
    labelled: bool = False  # write the values at the points


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values, evenly spaced, that enclose low to high: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        span = abs(high) / 10 or 1.0
        low, high = low - span / 2, high + span / 2
    power = 10 ** math.floor(math.log10(span / about))
    step = next(power * times for times in (1, 2, 5, 10) if power * times * about >= span * 0.999)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(step * k, digits) for k in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def whiskers(
    name: str, title: str, dots: Sequence[Dot], marked: Mapping[str, float], domain: Sequence[float]
) -> Markup:
    """Accuracies in percent, a line each with its interval. `marked`: named vertical lines; `domain`: the axis' ticks.

    Dots are read by their place, not by their distance from an edge, so the axis need not begin at zero.
    """
    width, row, top = 400, 28, 26 if marked else 8
    left = 14 + _CHARACTER * min(22, max(len(dot.label) for dot in dots))
    right, bottom = width - 56.0, top + row * len(dots) + 4
    x = _scale(domain[0], domain[-1], left, right)
    body = _DRAW.whiskers(x, dots, marked, domain, row, left, right, top, bottom, width - 2)
    values = "; ".join(f"{dot.label} {dot.value:.2f}, interval {dot.low:.2f} to {dot.high:.2f}" for dot in dots)
    return Markup(_DRAW.svg(name, title, f"Accuracy in percent: {values}.", width, bottom + 42, body))


def throughput(name: str, title: str, series: Sequence[Series]) -> Markup:
    """Throughput against batch size: the size by its logarithm, the throughput from zero."""
    width, left, right, top = 400, 52.0, 400 - 22.0, 14 + 20 * len(series) + 14
    bottom = top + 210
    sizes = sorted({size for line in series for size, _ in line.points})
    most = max(fps for line in series for _, fps in line.points)
    ends = [interval[1] for line in series for interval in line.intervals if interval]
    levels = ticks(0, min(max([most, *ends]), 1.5 * most))  # an interval of very few loops may leave the chart
    by_logarithm = _scale(math.log(sizes[0]), math.log(sizes[-1]), left + 14, right - 8)
    by_level = _scale(0, levels[-1], bottom, top)

    def x(size: int) -> float:
        return by_logarithm(math.log(size)) if len(sizes) > 1 else (left + right) / 2

    def y(fps: float) -> float:
        return by_level(min(fps, levels[-1]))

    body = _DRAW.throughput(x, y, series, sizes, levels, left, right, top, bottom)
    values = "; ".join(f"{o.label}: {', '.join(f'bs {s} {rate(fps)}' for s, fps in o.points)}" for o in series)
    return Markup(_DRAW.svg(name, title, f"Samples per second by batch size. {values}.", width, bottom + 44, body))


def distribution(name: str, title: str, times_ms: Sequence[float], marks: Mapping[str, float]) -> Markup:
    """The share of times up to each one, in ms, and percentiles of it: names like p90, and their values in ms."""
    width, left, right, top, bottom = 340, 40.0, 340 - 116.0, 33.0, 33.0 + 130
    times = sorted(times_ms)
    levels = ticks(times[0], times[-1], 3)
    x, y = _scale(levels[0], levels[-1], left, right), _scale(0, 100, bottom, top)
    body = _DRAW.distribution(x, y, times, marks, levels, left, right, bottom)
    percentiles = ", ".join(f"{mark} {time:.3f} ms" for mark, time in marks.items())
    about = f"{len(times)} times from {times[0]} to {times[-1]} ms; {percentiles}."
    return Markup(_DRAW.svg(name, title, about, width, bottom + 42, body))


def rate(fps: float) -> str:
    """Three decimals, as in the tables, or fewer where there is no room for them."""
    return f"{fps:.{3 if fps < 10 else 2 if fps < 100 else 1}f}"


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values between low and high to places between start and end."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _macros() -> Any:
    source = Path(__file__).with_name("charts.svg.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters.update(
        escaped=html.escape,
        number=lambda value: f"{value:.10g}",
        px=lambda value: f"{value:.1f}",
        rate=rate,
        short=lambda text, most: text if len(text) <= most else text[: most - 1] + "…",
    )
    return environment.from_string("".join(map(str.strip, source.splitlines()))).module


_DRAW = _macros()
