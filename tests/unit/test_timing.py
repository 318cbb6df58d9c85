"""Timing logs of both runners, read by the one reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import List, Sequence

import pytest

from deberta.ascend import ais_bench, timing
from deberta.core.errors import DataError


def msame_log(times: Sequence[float], without_first: str) -> str:
    lines = "".join(f"[INFO] model execute success\nInference time: {time:g}ms\n" for time in times)
    return f"{lines}Inference average time: 1 ms\nInference average time without first time: {without_first} ms\n"


def summary(times: List[float], **changed: object) -> str:
    """ais_bench's summary."""
    mean = sum(times) / len(times) if times else 0
    described = {"npu_compute_time_list": times, "NPU_compute_time": {"mean": mean}, "throughput": 1000 / (mean or 1)}
    return json.dumps({**described, **changed})


def test_msame_times_its_warm_up() -> None:
    run = timing.parse(msame_log([100, 3, 1, 2], "2"), "msame", 8)
    assert (run.runner, run.times_ms, run.counted_ms) == ("msame", (100, 3, 1, 2), (3, 1, 2))
    assert (run.average_ms, run.fps) == (2, 4000)
    assert timing.nearest_ranks(run.counted_ms) == {"p50": 2, "p90": 3, "p99": 3}


def test_ais_bench_leaves_its_warm_up_out() -> None:
    run = timing.parse(summary([100, 3, 1, 2]), ais_bench.MODULE, 1)
    assert (run.runner, run.times_ms, run.counted_ms) == ("ais_bench", (100, 3, 1, 2), (100, 3, 1, 2))
    assert timing.nearest_ranks(run.counted_ms) == {"p50": 2, "p90": 100, "p99": 100}
    assert run.average_ms == 26.5 and run.fps == pytest.approx(1000 / 26.5)


def test_a_log_is_read_by_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(msame_log([3, 1724.5], "1724.5"))
    assert timing.read(tmp_path / "a.txt", 8).fps == pytest.approx(4.639, abs=5e-4)  # as the guide counts
    (tmp_path / "b.json").write_text(summary([2.0, 4.0]))
    assert timing.read(tmp_path / "b.json", 1).average_ms == 3
    with pytest.raises(DataError, match=r"b\.json: its throughput is .* at batch size 8"):
        timing.read(tmp_path / "b.json", 8)


@pytest.mark.parametrize("average", ["nan", "inf", "0.0", "-1", ""])
def test_no_throughput_without_an_average_above_0(average: str) -> None:
    with pytest.raises(DataError, match="no throughput"):
        timing.parse(msame_log([3, 1, 2], average), "msame", 8)


def test_no_throughput_of_the_warm_up_alone() -> None:
    with pytest.raises(DataError, match="no throughput"):
        timing.parse(msame_log([3], "3"), "msame", 8)


@pytest.mark.parametrize("text", [summary([]), summary([0.0]), summary([1.0, 2.0], NPU_compute_time={"mean": 1.4})])
def test_an_average_that_its_times_do_not_have(text: str) -> None:
    with pytest.raises(DataError, match="average"):
        timing.parse(text, ais_bench.MODULE, 1)


def test_nearest_ranks_are_measured_times() -> None:
    times = [0.01 + i / 1000 for i in range(1, 100)]  # 0.011, 0.012 ... 0.109
    assert timing.nearest_ranks(times) == pytest.approx({"p50": 0.06, "p90": 0.1, "p99": 0.109})
    assert timing.nearest_ranks([100]) == {"p50": 100, "p90": 100, "p99": 100}
    with pytest.raises(DataError, match="no inference"):
        timing.nearest_ranks([])
