"""Charts as SVG text: the same figures give the same bytes. Colours and fonts are classes of the page's style sheet.

All charts are of one form: a row for each figure, its label on the left, its value on the right, and between them, on
one axis for all rows, a mark with its interval. So no text ever stands on a mark. A chart is as wide as a phone; what
it shows is in a table of the page too. Here values get their places; charts.svg.jinja beside this module draws them.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

WIDTH = 400  # px
LONGEST_LABEL = 22  # characters
LOGARITHMIC = 12.0  # times the smallest value, from which on an axis that need not begin at zero is logarithmic
_CHARACTER = 7.6  # px, about the mean width of a character in the widest of the page's fonts
_ROW = 28.0
_GAP = 10.0


class ChartRow(NamedTuple):
    """A value with its interval, and other values on the same axis by their style.

    `text`: what stands on the right. `strong`: the total, set apart from its parts.
    """

    label: str
    value: float
    low: float
    high: float
    text: str
    strong: bool = False
    others: Sequence[tuple[str, float]] = ()


class Axis(NamedTuple):
    """What is measured, and the axis' ticks. `is_logarithmic`: by the values' logarithms."""

    label: str
    ticks: Sequence[float]
    is_logarithmic: bool = False


class Key(NamedTuple):
    """What a mark of a style means."""

    style: str
    label: str


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


def axis(label: str, low: float, high: float) -> Axis:
    """An axis for values above zero that encloses low to high."""
    if high < LOGARITHMIC * low:
        return Axis(label, [tick for tick in ticks(low, high) if tick >= 0])
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = sorted({float(f"{times}e{power}") for power in powers for times in (1, 2, 5)})
    first = max(place for place, step in enumerate(steps) if step <= low)
    last = min(place for place, step in enumerate(steps) if step >= high)
    return Axis(label, steps[first : last + 1], is_logarithmic=True)


def rows(
    name: str,
    title: str,
    entries: Sequence[ChartRow],
    scale: Axis,
    head: str = "",
    marked: Mapping[str, float] | None = None,
    keys: Sequence[Key] = (),
    with_bars: bool = False,
) -> Markup:
    """A chart. `head` stands above the texts on the right, `marked` are named vertical lines, `keys` explain marks.

    With bars, which begin at the axis' first tick, or dots, which are read by their place.
    """
    labels = max(extent(entry.label[:LONGEST_LABEL]) for entry in entries)
    texts = max(extent(text) for text in (head, *(entry.text for entry in entries)))
    left = 4 + min(labels, _CHARACTER * LONGEST_LABEL) + _GAP
    right = WIDTH - 4 - texts - _GAP - 4
    first, last = scale.ticks[0], scale.ticks[-1]
    low, high = (math.log(end) if scale.is_logarithmic else end for end in (first, last))

    def x(value: float) -> float:
        within = min(max(value, first), last)  # an interval of very few loops may leave the chart
        place = math.log(within) if scale.is_logarithmic else within
        return left + (place - low) / (high - low) * (right - left)

    marks = marked or {}
    key_lines = _key_lines(keys)
    top = 6 + 20.0 * len(key_lines) + (18 if head or marks else 0)
    bottom = top + _ROW * len(entries) + 4
    drawn = {
        "ends": (left, right, top, bottom, WIDTH - 4.0),
        "rows": [(entry, top + _ROW * (place + 0.5)) for place, entry in enumerate(entries)],
        "ticks": [(tick, x(tick)) for tick in scale.ticks],
        "labelled": _apart(scale.ticks, x),
        "axis": (min(max((left + right) / 2, extent(scale.label) / 2 + 2), WIDTH - extent(scale.label) / 2 - 2)),
        "marked": [(mark, x(value), min(x(value), right - extent(mark) / 2 + texts)) for mark, value in marks.items()],
        "keys": key_lines,
        "with_bars": with_bars,
        "head": head,
    }
    values = "; ".join(f"{entry.label} {entry.text}" for entry in entries)
    description = f"{scale.label}: {values}."
    return Markup(_DRAW.svg(name, title, description, WIDTH, bottom + 44, _DRAW.rows(x, scale.label, drawn)))


def extent(text: str) -> float:
    """About how many px wide a text is; Chinese characters are as wide as they are high."""
    return sum(12.5 if unicodedata.east_asian_width(c) in "WF" else _CHARACTER for c in text)


def _key_lines(keys: Sequence[Key]) -> list[list[tuple[Key, float]]]:
    """The keys with their places from the left, as many in a line as fit."""
    lines: list[list[tuple[Key, float]]] = []
    at = WIDTH + 1.0
    for key in keys:
        width = 20 + extent(key.label) + 14
        if at + width > WIDTH:
            lines.append([])
            at = 4.0
        lines[-1].append((key, at))
        at += width
    return lines


def _apart(values: Sequence[float], x: Callable[[float], float]) -> list[tuple[float, float]]:
    """The ticks whose labels have room, both ends first."""
    kept: list[tuple[float, float]] = []
    for value in (values[0], values[-1], *values[1:-1]):
        room = extent(f"{value:.10g}") / 2 + 4
        if all(abs(x(value) - at) >= room + extent(f"{other:.10g}") / 2 for other, at in kept):
            kept.append((value, x(value)))
    return sorted(kept)


def _macros() -> Any:
    source = Path(__file__).with_name("charts.svg.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters.update(
        escaped=html.escape,
        number=lambda value: f"{value:.10g}",
        px=lambda value: f"{value:.1f}",
        short=lambda text: text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…",
    )
    return environment.from_string("".join(map(str.strip, source.splitlines()))).module


_DRAW = _macros()
