"""Reading and judging a run of msame, the tool that runs compiled models, or of its CPU twin (inference/run_cpu.py).

msame's exit code is 0 after most mistakes and after incomplete runs. A run counts only if every expected output file
has its exact size and no other file is there, the success line and no [ERROR] line was printed, and there are as many
`Inference time:` lines as inferences were requested.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Optional

from deberta.ascend import causes
from deberta.ascend.causes import Printed
from deberta.ascend.runs import check_complete
from deberta.core.errors import DataError, DebertaError, StageError

PROGRAM = "msame"

# C++ streams print six significant digits, in scientific notation where that is shorter; printf may print `-nan`.
# Digits are bounded, or the time for a long line of them would grow with the square of its length.
_NUMBER = r"([-+]?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?(?:[eE][-+]?[0-9]{1,4})?|nan|inf))"
_TIME = re.compile(rf"Inference time: {_NUMBER} ?ms")
_AVERAGE = re.compile(rf"Inference average time ?: {_NUMBER} ms")  # directory mode has a space before the colon
_WITHOUT_FIRST = re.compile(rf"Inference average time without first time ?: {_NUMBER} ms")
_SUCCESS = re.compile(r"\[INFO\] (?:pid: \d+ )?Execute sample success")  # older builds print no pid
# `OUT/<T>` alone on its line. T is the local time without leading zeros; older builds have fewer parts in it.
_FOLDER = re.compile(r"[^\[].*/\d{6,8}(?:_\d{1,6}){1,4}")


class MsameRun(NamedTuple):
    """What a run printed. Times in ms; an average is None if it was not printed, NaN if msame printed that.

    `printed`: its lines by level.
    """

    folder: Optional[str]
    times_ms: tuple[float, ...]
    average_ms: Optional[float]
    average_without_first_ms: Optional[float]
    success: bool
    printed: Printed

    @property
    def errors(self) -> tuple[str, ...]:
        return self.printed.errors


def parse(stdout: str) -> MsameRun:
    """Read the lines that msame printed; lines of other kinds (progress, a newer build's) are passed over."""
    return MsameRun(
        folder=next((line for line in map(str.rstrip, causes.lines_of(stdout)) if _FOLDER.fullmatch(line)), None),
        times_ms=tuple(float(number) for number in _TIME.findall(stdout)),
        average_ms=_last(_AVERAGE, stdout),
        average_without_first_ms=_last(_WITHOUT_FIRST, stdout),
        success=_SUCCESS.search(stdout) is not None,
        printed=causes.read(stdout),
    )


def _last(pattern: re.Pattern[str], text: str) -> Optional[float]:
    numbers = pattern.findall(text)
    return float(numbers[-1]) if numbers else None


def judge(run: MsameRun, outputs_folder: Path, expected: Mapping[str, int], expected_times: int) -> None:
    """Return if the run is complete, otherwise raise the error that names the cause.

    `outputs_folder`: the `OUT/<T>` of the run; `expected`: name -> bytes of every output file; `expected_times`:
    inferences requested. Raises the error that failures.json has for what a run that is not complete printed; without
    one DataError (sizes or counts differ, or there is no average) or StageError (it stopped).
    """
    problem = _incomplete(run, outputs_folder, expected, expected_times)
    if problem is None and not run.errors:
        return
    if run.errors and run.success:
        problem = DataError(
            "it printed an error, though all outputs are there"
            if problem is None
            else "some inputs were not run, perhaps for their size. Run: invoke preprocess --force"
        )
    raise causes.failure(PROGRAM, run.printed, problem or StageError(""), sure=bool(run.errors) or not run.success)


def _incomplete(
    run: MsameRun, outputs_folder: Path, expected: Mapping[str, int], expected_times: int
) -> Optional[DebertaError]:
    """What a run lacks, by its outputs and times; None if it is complete."""
    if not run.success:
        return StageError(f"the run stopped without its success line, after {len(run.times_ms)} inferences")
    question = "Are there as many files in each input directory, and a directory for each input?"
    try:
        check_complete(run.times_ms, expected_times, question, outputs_folder, expected)
    except DataError as error:
        return error
    averages = [run.average_ms] + ([run.average_without_first_ms] if expected_times > 1 else [])
    if any(average is None or not math.isfinite(average) for average in averages):
        return DataError(f"the averages that were printed are no numbers: {averages}")
    return None
