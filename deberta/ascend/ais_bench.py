"""Running, reading and judging ais_bench, the newer tool that runs compiled models: `python3 -m ais_bench`.

It writes `OUT/<T>/<input's name>_<k>.bin` and, beside that folder, `OUT/<T>_summary.json` with every inference's time,
its own warm-up left out. <T> is the local time to the second, so OUT must be fresh for each run. A run counts only if
every expected file has its exact size and no other file is there, its summary has as many times as inferences were
requested, and no error was printed. The caller judges its exit code.

Lines, names and keys are those of the public source, Ascend/tools at 9d6da90.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Optional

import msgspec

from deberta.ascend import causes
from deberta.ascend.causes import Printed
from deberta.ascend.runs import check_complete
from deberta.core import files
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError, some
from deberta.core.schema import decode

MODULE = "ais_bench"
INSTALL = "install the aclruntime and ais_bench wheels for CANN's python3 (in images: docker/ais_bench, invoke images)"
# Prints for installed() where the two packages are, without loading them; run by CANN's own python3 (3.7 to 3.9).
PROBE = """\
import importlib.util as util, json
def origin(name):
    try:
        spec = util.find_spec(name)
    except ImportError:
        return None
    return spec and spec.origin
print(json.dumps({"ais_bench": origin("ais_bench.__main__"), "aclruntime": origin("aclruntime")}))
"""
_FOLDER = re.compile(r"\[INFO\] output path:(.+)")
_TOLERANCE = 1e-6  # relative, of a mean beside that of its times


class Described(msgspec.Struct, frozen=True):
    """What the summary says about a list of times."""

    mean: float


class AisBenchSummary(msgspec.Struct, frozen=True):
    """`<T>_summary.json`. Times in ms, the warm-up's not among them; `throughput` in rows per second."""

    throughput: float
    times_ms: tuple[float, ...] = msgspec.field(name="npu_compute_time_list")
    described: Described = msgspec.field(name="NPU_compute_time")

    def average_ms(self) -> float:
        """The mean of its times. Raises DataError if that is not above 0, or if the summary has another mean."""
        own, mean = sum(self.times_ms) / len(self.times_ms) if self.times_ms else math.nan, self.described.mean
        if not (0 < own < math.inf and math.isclose(own, mean, rel_tol=_TOLERANCE)):
            raise DataError(f"the average time is {mean} ms in the summary, and {own} ms by its list of times")
        return mean

    def fps(self, batch_size: int) -> float:
        """Its throughput. Raises DataError if that is not batch size * 1000 / average time."""
        expected = batch_size * 1000 / self.average_ms()
        if not math.isclose(self.throughput, expected, rel_tol=_TOLERANCE):
            raise DataError(f"its throughput is {self.throughput}, and {expected:.3f} at batch size {batch_size}")
        return self.throughput


class AisBenchRun(NamedTuple):
    """What a run printed: the `OUT/<T>` that it wrote, and its lines by level."""

    folder: Optional[str]
    printed: Printed

    @property
    def errors(self) -> tuple[str, ...]:
        return self.printed.errors


def command(
    model: PurePosixPath,
    inputs: Sequence[PurePosixPath],
    output: PurePosixPath,
    batch_size: int,
    device: int = 0,
    loops: Optional[int] = None,
) -> tuple[str, ...]:
    """What comes after `python3 -m ais_bench`. `inputs`: a folder for each input, or a file for each.

    `loops`: inferences of each batch, for a performance run. Raises ConfigError for a path that has a comma.
    """
    for path in inputs:
        if "," in str(path):
            raise ConfigError(f"ais_bench cannot read {path}: rename it, so that its path has no comma")
    arguments = ["--model", str(model), "--input", ",".join(map(str, inputs)), "--output", str(output)]
    # Without --batchsize its throughput is of the batch size that the model reports.
    arguments += ["--outfmt", "BIN", "--batchsize", str(batch_size), "--device", str(device)]
    return (*arguments, *(("--loop", str(loops)) if loops is not None else ()))


def installed(stdout: str) -> dict[str, str]:
    """Where the two packages are, from what PROBE printed: their files by name. Raises MissingError if one is not."""
    lines = stdout.strip().splitlines()
    try:
        origins = decode(lines[-1], dict[str, Optional[str]])
    except (IndexError, ValueError):
        raise StageError(f"CANN's python3 does not run: {lines[-1] if lines else 'it printed nothing'}") from None
    missing = [name for name, path in origins.items() if not path]
    if missing:
        raise MissingError(f"CANN's python3 has no {' and no '.join(missing)}: {INSTALL}; or take --runner msame")
    return {name: str(path) for name, path in origins.items()}


def output_file(index: int) -> str:
    """The name that ais_bench gives to output 0 of `input_<index>.bin`, in a performance run too."""
    return f"input_{index}_0.bin"


def summary_of(folder: Path) -> Path:
    """The summary of the run that wrote `folder`."""
    return folder.with_name(f"{folder.name}_summary.json")


def parse(stdout: str) -> AisBenchRun:
    """Read the lines that a run printed, stderr's among them."""
    match = _FOLDER.search(stdout)
    return AisBenchRun(match[1].rstrip() if match else None, causes.read(stdout))


def read_summary(text: str) -> AisBenchSummary:
    """A summary's content. Raises DataError if it is not one of ais_bench's."""
    try:
        return decode(text, AisBenchSummary)
    except ValueError as error:
        raise DataError(f"the summary is not one of ais_bench's, or not whole: it {error}") from None


def judge(run: AisBenchRun, outputs_folder: Path, expected: Mapping[str, int], expected_times: int) -> None:
    """Return if the run is complete, otherwise raise the error that names the cause.

    `outputs_folder`: the `OUT/<T>` of the run; `expected`: name -> bytes of every output file, under ais_bench's names;
    `expected_times`: inferences requested. Raises the error that failures.json has for what a run that is not complete
    printed; without one DataError (sizes or counts differ) or StageError (it stopped).
    """
    problem = _incomplete(outputs_folder, expected, expected_times)
    if problem is None and not run.errors:
        return
    if problem is None:
        problem = StageError("it printed an error, though all outputs are there")
    raise causes.failure(MODULE, run.printed, problem, sure=bool(run.errors) or isinstance(problem, StageError))


def _incomplete(outputs_folder: Path, expected: Mapping[str, int], expected_times: int) -> Optional[DebertaError]:
    """What a run lacks, by its summary and outputs; None if it is complete."""
    path = summary_of(outputs_folder)
    if not path.is_file():
        return StageError("ais_bench stopped before it wrote its summary")
    question = "Are there as many files in each input directory, and is each as large as an input of the model?"
    try:
        summary = read_summary(files.read_text(path))
        check_complete(summary.times_ms, expected_times, question, outputs_folder, expected)
        summary.average_ms()
    except DataError as error:
        return error
    beside = sorted(set(os.listdir(outputs_folder.parent)) ^ {outputs_folder.name, path.name})
    if beside:
        return DataError(f"{outputs_folder.parent} does not hold this run alone: {some(beside, 3)}")
    return None


def settle(folder: Path) -> None:
    """Rename the outputs of a judged run as msame would have named them."""
    for name in os.listdir(folder):
        os.replace(folder / name, folder / f"{name[: -len('_0.bin')]}_output_0.bin")
