"""Timing logs of either runner, read in one way: msame's text, ais_bench's JSON summary.

msame times its warm-up as the first inference; ais_bench leaves its own out. Percentiles are by nearest rank, so that
each is a measured time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from deberta.ascend import ais_bench, msame
from deberta.core import files
from deberta.core.errors import DataError

PERCENTILES = (50, 90, 99)
AVERAGE_TOLERANCE = 1e-3


class Timing(NamedTuple):
    """A run's inference times in ms; `average_ms` and `fps` (rows per second) are without the warm-up.

    `times_ms`: all that the log has; `counted_ms`: those without the warm-up.
    """

    runner: str
    times_ms: tuple[float, ...]
    counted_ms: tuple[float, ...]
    average_ms: float
    fps: float


def runner_of(log: Path | str) -> str:
    """ais_bench's logs are .json."""
    return ais_bench.MODULE if str(log).endswith(".json") else msame.PROGRAM


def read(log: Path, batch_size: int) -> Timing:
    """A timing log of either runner. Raises DataError naming the file."""
    try:
        return parse(files.read_text(log), runner_of(log), batch_size)
    except DataError as error:
        raise DataError(f"{log}: {error}") from None


def parse(text: str, runner: str, batch_size: int) -> Timing:
    """Raises DataError for a log without an average above 0, or whose throughput is not of that batch size."""
    if runner == ais_bench.MODULE:
        summary = ais_bench.read_summary(text)
        times = summary.times_ms
        return Timing(runner, times, times, summary.average_ms(), summary.fps(batch_size))
    run = msame.parse(text)
    average_ms = run.average_without_first_ms
    if average_ms is None or not 0 < average_ms < math.inf or not run.times_ms[1:]:
        raise DataError(f"no throughput can be computed from an average of {average_ms} ms")
    return Timing(runner, run.times_ms, run.times_ms[1:], average_ms, batch_size * 1000 / average_ms)


def check_average(run: Timing) -> None:
    """Raise DataError unless the log's average is that of its times, which have six digits."""
    average = statistics.fmean(run.counted_ms)
    if not math.isclose(run.average_ms, average, rel_tol=AVERAGE_TOLERANCE):
        raise DataError(f"its average is {run.average_ms} ms, and {average:.6g} ms by its times: it was changed")


def loops(log: Path) -> int:
    """How many inferences a timing log has; 0 if it is not there or is not to be read."""
    try:
        text = files.read_text(log)
        is_msame = runner_of(log) == msame.PROGRAM
        return len(msame.parse(text).times_ms if is_msame else ais_bench.read_summary(text).times_ms)
    except (OSError, DataError):
        return 0


def nearest_ranks(times_ms: Sequence[float]) -> dict[str, float]:
    """p50, p90 and p99. Raises DataError if there are no times."""
    times = sorted(times_ms)
    if not times:
        raise DataError("no inference was timed")
    return {f"p{percent}": times[-(-percent * len(times) // 100) - 1] for percent in PERCENTILES}
