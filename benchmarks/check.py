"""bench --check: what got slower since the published run, by ratios that each run measured side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.end_to_end import BEFORE
from benchmarks.engines import OURS

Json = dict[str, Any]
LEAST = 0.05  # a median that changed by less is no finding, whatever the quartiles say


class RatioChange(NamedTuple):
    """An engine's time by ours: medians of the published run and of this one. `slower`: ours, or the engine if it is
    one of ours in another precision, by more than both runs' quartiles."""

    what: str
    published: float
    now: float
    slower: bool


def changes(report: Json, published: Json) -> Iterator[RatioChange]:
    """Every ratio that both runs have."""
    before, now = dict(_ratios(published)), dict(_ratios(report))
    for what, ratio in now.items():
        if what in before:
            of_ours = what.split(": ")[1].startswith(OURS)  # its ratio grows where it gets slower, a peer's shrinks
            yield RatioChange(what, before[what]["median"], ratio["median"], _is_slower(before[what], ratio, of_ours))


def not_compared(report: Json, published: Json) -> list[str]:
    """What one of both runs has alone, and that they were made on different CPUs."""
    before, now = dict(_ratios(published)), dict(_ratios(report))
    lines = [f"{what}: the published run alone has it" for what in before if what not in now]
    lines += [f"{what}: this run alone has it" for what in now if what not in before]
    if (theirs := published["machine"]["cpu"]) != (ours := report["machine"]["cpu"]):
        lines.append(f"the published run is of another CPU, {theirs}, not {ours}: ratios differ between CPUs")
    return lines


def _ratios(report: Json) -> Iterator[tuple[str, dict[str, float]]]:
    for case in report["cases"]:
        for name, result in case["results"].items():
            if "ratio" in result and name != OURS:
                yield f"{case['title']}: {name}", result["ratio"]
    for name, result in ((report.get("end_to_end") or {}).get("results") or {}).items():
        if name not in (OURS, BEFORE):
            yield f"End to end: {name}", result["ratio"]


def _is_slower(before: dict[str, float], now: dict[str, float], of_ours: bool) -> bool:
    if of_ours:
        return now["q1"] > before["q3"] and now["median"] > before["median"] * (1 + LEAST)
    return now["q3"] < before["q1"] and now["median"] < before["median"] * (1 - LEAST)
