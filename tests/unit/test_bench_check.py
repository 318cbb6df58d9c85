"""bench --check and its end-to-end runs: what counts as slower, and bytes that must not differ."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import check, end_to_end
from deberta.core.contract import INPUTS
from deberta.core.errors import StageError


def _ratio(median: float) -> dict[str, float]:
    return {"q1": median * 0.98, "median": median, "q3": median * 1.02}


def _report(**ratios: float) -> Any:
    results = {name.replace("_", "-"): {"ratio": _ratio(value)} for name, value in ratios.items()}
    end = {
        "results": {"ours": {"ratio": _ratio(1)}, "ours-bf16": {"ratio": _ratio(0.4)}, "before": {"ratio": _ratio(1.1)}}
    }
    return {"cases": [{"title": "256 tokens", "results": results}], "end_to_end": end, "machine": {"cpu": "Some CPU"}}


PUBLISHED = _report(ours=1, guide=1.5, ours_bf16=0.4, eager=3)


@pytest.mark.parametrize(
    ("now", "slower"),
    [
        ({"guide": 1.48, "ours_bf16": 0.41}, []),  # within the noise
        ({"guide": 1.3}, ["256 tokens: guide"]),  # the peer's time by ours: ours took longer
        ({"ours_bf16": 0.5}, ["256 tokens: ours-bf16"]),
        ({"guide": 2.0, "ours_bf16": 0.3}, []),  # faster
    ],
)
def test_slower_is_what_leaves_both_runs_quartiles(now: dict[str, float], slower: list[str]) -> None:
    report = _report(**{"ours": 1, "guide": 1.5, "ours_bf16": 0.4, "eager": 3, **now})
    assert [change.what for change in check.changes(report, PUBLISHED) if change.slower] == slower
    assert check.not_compared(report, PUBLISHED) == []


def test_what_one_run_has_alone_is_said() -> None:
    report = copy.deepcopy(PUBLISHED)
    del report["cases"][0]["results"]["eager"]
    report["end_to_end"], report["machine"] = None, {"cpu": "Another"}
    said = check.not_compared(report, PUBLISHED)
    assert [line.split(":")[0] for line in said[:2]] == ["256 tokens", "End to end"]
    assert said[2] == "the published run is of another CPU, Some CPU, not Another: ratios differ between CPUs"
    assert not any("before" in line for line in said)  # another commit each time


def test_bins_hold_each_row_once_at_its_bucket(tmp_path: Path) -> None:
    end_to_end.write_bins(tmp_path, [5, 20, 16, 30, 7], (16, 32), 2, 50)
    rows = {}
    for bucket in (16, 32):
        parts = [
            np.concatenate(
                [
                    np.fromfile(file, np.int32).reshape(2, bucket)
                    for file in sorted((tmp_path / f"{bucket}/{name}").iterdir())
                ]
            )
            for name in INPUTS
        ]
        rows[bucket] = parts[1].sum(axis=1).tolist()
        assert ((parts[0] > 0) == (parts[1] == 1)).all()
    assert rows == {16: [5, 16, 7, 0], 32: [20, 30]}


def test_a_commit_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="git has no commit nosuch"):
        end_to_end.source_of("nosuch", tmp_path / "source")
