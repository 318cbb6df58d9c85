"""Charts as SVG text: the same figures give the same bytes. Colours and fonts are classes of the page's style sheet.

A chart is as wide as a phone, so that its text stays readable there; what it shows is in a table of the page too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_CHARACTER = 7.6  # px, about the mean width of a character in the widest of the page's fonts
_BASE = 4  # px from the middle of a line of text down to its baseline


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


def whiskers(name: str, title: str, dots: Sequence[Dot], marked: Mapping[str, float], domain: Sequence[float]) -> str:
    """Accuracies in percent, a line each with its interval. `marked`: named vertical lines; `domain`: the axis' ticks.

    Dots are read by their place, not by their distance from an edge, so the axis need not begin at zero.
    """
    width, row, top = 400, 28, 26 if marked else 8
    left = 14 + _CHARACTER * min(22, max(len(dot.label) for dot in dots))
    right, bottom = width - 56.0, top + row * len(dots) + 4

    def x(value: float) -> float:
        return _scale(value, domain[0], domain[-1], left, right)

    parts = [_line("grid", x(tick), top, x(tick), bottom) for tick in domain]
    parts += [_text(x(tick), bottom + 16, _number(tick), "middle") for tick in domain]
    parts += [
        _line("axis", left, bottom, right, bottom),
        _text((left + right) / 2, bottom + 36, "accuracy, %", "middle"),
    ]
    for mark, value in marked.items():
        parts += [_line("marked", x(value), top - 6, x(value), bottom), _text(x(value), top - 11, mark, "middle")]
    for place, dot in enumerate(dots):
        y = top + row * (place + 0.5)
        weight = " strong" if dot.strong else ""
        parts += [
            _text(left - 10, y + _BASE, _short(dot.label, 22), "end", weight),
            _line(f"whisker{weight}", x(dot.low), y, x(dot.high), y),
            *(_line(f"whisker{weight}", x(end), y - 4, x(end), y + 4) for end in (dot.low, dot.high)),
            f'<circle class="dot" cx="{x(dot.value):.1f}" cy="{y:.1f}" r="{5 if dot.strong else 4}"/>',
            _text(width - 2, y + _BASE, f"{dot.value:.2f}", "end", weight),
        ]
    values = "; ".join(f"{dot.label} {dot.value:.2f}, interval {dot.low:.2f} to {dot.high:.2f}" for dot in dots)
    return _svg(name, title, f"Accuracy in percent: {values}.", width, bottom + 42, parts)


def throughput(name: str, title: str, series: Sequence[Series]) -> str:
    """Throughput against batch size: the size by its logarithm, the throughput from zero."""
    width, left, right, top = 400, 52.0, 400 - 22.0, 14 + 20 * len(series) + 14
    bottom = top + 210
    sizes = sorted({size for line in series for size, _ in line.points})
    most = max(fps for line in series for _, fps in line.points)
    ends = [interval[1] for line in series for interval in line.intervals if interval]
    levels = ticks(0, min(max([most, *ends]), 1.5 * most))  # an interval of very few loops may leave the chart

    def x(size: int) -> float:
        if len(sizes) == 1:
            return (left + right) / 2
        return _scale(math.log(size), math.log(sizes[0]), math.log(sizes[-1]), left + 14, right - 8)

    def y(fps: float) -> float:
        return _scale(min(fps, levels[-1]), 0, levels[-1], bottom, top)

    parts = [_line("axis" if level == 0 else "grid", left, y(level), right, y(level)) for level in levels]
    parts += [_text(left - 8, y(level) + _BASE, _number(level), "end") for level in levels]
    parts += [_line("axis", x(size), bottom, x(size), bottom + 4) for size in sizes]
    parts += [_text(x(size), bottom + 18, str(size), "middle") for size in sizes]
    parts += [_text((left + right) / 2, bottom + 38, "batch size (logarithmic)", "middle")]
    parts += [_text(left - 44, top - 12, "samples per second", "start")]
    for place, line in enumerate(series):
        height = 12 + 20 * place
        key = [_line("line", 8, height, 36, height), _marker(line.style, 22, height)]
        parts += [
            f'<g class="{line.style}">{"".join(key)}</g>',
            _text(46, height + _BASE, _short(line.label, 56), "start"),
        ]
        path = " L".join(f"{x(size):.1f} {y(fps):.1f}" for size, fps in line.points)
        drawn = [f'<path class="line" d="M{path}"/>']
        for (size, _), interval in zip(line.points, line.intervals or (None,) * len(line.points), strict=True):
            drawn += [_line("whisker", x(size), y(interval[0]), x(size), y(interval[1]))] if interval else []
        drawn += [_marker(line.style, x(size), y(fps)) for size, fps in line.points]
        parts.append(f'<g class="{line.style}">{"".join(drawn)}</g>')
        if line.labelled:
            parts += [_text(x(size), y(fps) - 11, rate(fps), "middle", " value") for size, fps in line.points]
    values = "; ".join(f"{o.label}: {', '.join(f'bs {s} {rate(fps)}' for s, fps in o.points)}" for o in series)
    return _svg(name, title, f"Samples per second by batch size. {values}.", width, bottom + 44, parts)


def distribution(name: str, title: str, times_ms: Sequence[float], marks: Mapping[str, float]) -> str:
    """The share of times up to each one, in ms, and percentiles of it: names like p90, and their values in ms."""
    width, left, right, top, bottom = 340, 40.0, 340 - 116.0, 33.0, 33.0 + 130
    times = sorted(times_ms)
    levels = ticks(times[0], times[-1], 3)

    def x(time: float) -> float:
        return _scale(time, levels[0], levels[-1], left, right)

    def y(percent: float) -> float:
        return _scale(percent, 0, 100, bottom, top)

    parts = [_line("axis" if level == 0 else "grid", left, y(level), right, y(level)) for level in (0, 25, 50, 75, 100)]
    parts += [_text(left - 8, y(level) + _BASE, f"{level}", "end") for level in (0, 50, 100)]
    parts += [_line("axis", x(level), bottom, x(level), bottom + 4) for level in levels]
    parts += [_text(x(level), bottom + 18, _number(level), "middle") for level in levels]
    parts.append(_text((left + right) / 2, bottom + 36, "time of one batch, ms", "middle"))
    parts.append(_text(2, 13, "share of times, %", "start"))
    path = "".join(f"H{x(time):.1f}V{y(100 * (k + 1) / len(times)):.1f}" for k, time in enumerate(times))
    parts.append(f'<path class="line" d="M{x(times[0]):.1f} {y(0):.1f}{path}"/>')
    for mark, time in marks.items():
        percent = float(mark[1:])
        # p90 and p99 are closer than two lines of text.
        label = y(percent) + {"p99": -6, "p90": 8}.get(mark, 0)
        parts += [
            f'<path class="leader" d="M{x(time):.1f} {y(percent):.1f}H{right + 4:.1f}L{right + 12:.1f} {label:.1f}"/>',
            f'<circle class="dot" cx="{x(time):.1f}" cy="{y(percent):.1f}" r="3.5"/>',
            _text(right + 16, label + _BASE, f"{mark} {time:.3f}", "start", " value"),
        ]
    percentiles = ", ".join(f"{mark} {time:.3f} ms" for mark, time in marks.items())
    about = f"{len(times)} times from {times[0]} to {times[-1]} ms; {percentiles}."
    return _svg(name, title, about, width, bottom + 42, [f'<g class="measured-1">{"".join(parts)}</g>'])


def rate(fps: float) -> str:
    """Three decimals, as in the tables, or fewer where there is no room for them."""
    return f"{fps:.{3 if fps < 10 else 2 if fps < 100 else 1}f}"


def _svg(name: str, title: str, description: str, width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" role="img" aria-labelledby="{name}-title {name}-desc"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-desc">{escape(description)}</desc>'
        f"{''.join(parts)}</svg>"
    )


def _scale(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (value - low) / (high - low) * (end - start)


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, style: str = "") -> str:
    return f'<text class="text{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _marker(style: str, x: float, y: float) -> str:
    """A shape for each style, so that none is told by its colour alone."""
    if style in ("published", "measured-2"):
        return f'<rect class="dot" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    if style in ("baseline", "measured-3"):
        return f'<path class="dot" d="M{x:.1f} {y - 5:.1f}L{x + 5:.1f} {y + 4:.1f}H{x - 5:.1f}Z"/>'
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'


def _number(value: float) -> str:
    return f"{value:.10g}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
