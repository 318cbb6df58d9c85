"""bench: the figures of a bench.json as bars. Run by the Python of the environment of requirements-bench.lock."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib  # type: ignore[import-not-found]

matplotlib.use("svg")
from matplotlib import pyplot

OURS, FLOOR, OTHER = "#c7301f", "#b8b8b8", "#4878a8"


def draw(report: dict[str, Any], path: Path) -> None:
    """One panel per case, the fastest engine on top; the lines on the bars are the quartiles."""
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.family": "sans-serif"})
    cases = report["cases"]
    rows = (len(cases) + 1) // 2
    figure, axes = pyplot.subplots(rows, min(2, len(cases)), figsize=(12, 0.6 + 2.9 * rows), squeeze=False)
    for axis, case in zip(axes.flat, cases, strict=False):  # there may be an axis more
        _panel(axis, case, report["engines"])
    for axis in axes.flat[len(cases) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, format="svg", metadata={"Date": None})


def _panel(axis: Any, case: dict[str, Any], labels: dict[str, str]) -> None:
    results = {name: result for name, result in case["results"].items() if "ms_per_row" in result}
    names = sorted(results, key=lambda name: -results[name]["ms_per_row"]["median"])
    medians = [results[name]["ms_per_row"]["median"] for name in names]
    low = [results[name]["ms_per_row"]["median"] - results[name]["ms_per_row"]["q1"] for name in names]
    high = [results[name]["ms_per_row"]["q3"] - results[name]["ms_per_row"]["median"] for name in names]
    colours = [OURS if name == "ours" else FLOOR if name.startswith("floor") else OTHER for name in names]
    axis.barh(range(len(names)), medians, xerr=[low, high], color=colours, height=0.7)
    for place, (name, median, more) in enumerate(zip(names, medians, high, strict=True)):
        differs = " (computes something else)" if results[name].get("differs") else ""
        text = f" {median:.1f} ms, {results[name]['ratio']['median']:.2f}x{differs}"
        axis.text(median + more, place, text, va="center", fontsize=8)
    axis.set_yticks(range(len(names)), [labels[name] for name in names], fontsize=8)
    axis.set_xlim(0, max(medians) * 1.5)
    axis.set_xlabel("ms per row (x: by ours)", fontsize=8)
    axis.set_title(case["title"], fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
