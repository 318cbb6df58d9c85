"""Running, reading and judging ais_bench, the newer tool that runs compiled models: `python3 -m ais_bench`.

It writes `OUT/<T>/<input's name>_<k>.bin` and, beside that folder, `OUT/<T>_summary.json` with every inference's time,
its own warm-up left out. <T> is the local time to the second, so OUT must be fresh for each run. It raises on mistakes,
and a run counts only if every expected file is there with its exact size and no other file is, its summary has as many
times as inferences were asked for, and no error was printed. Its exit code is the caller's to look at.

Lines, names and keys are those of the public source, Ascend/tools at 9d6da90.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from deberta.ascend.msame import check_outputs
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError, some

MODULE = "ais_bench"
INSTALL = "install the aclruntime and ais_bench wheels for CANN's python3 (in images: docker/ais_bench, invoke images)"
# Run by CANN's own python3 (3.7 to 3.9), to be read by installed(): nothing of the two is loaded.
PROBE = """\
import importlib.util as util, json
def found(name):
    try:
        spec = util.find_spec(name)
    except ImportError:
        return None
    return spec and spec.origin
print(json.dumps({"ais_bench": found("ais_bench.__main__"), "aclruntime": found("aclruntime")}))
"""
_SUMMARY = "_summary.json"
_OUTPUT = re.compile(r"(input_\d+)_(\d+)\.bin")
_FOLDER = re.compile(r"\[INFO\] output path:(.+)")
# Its log, which a progress bar may begin the line of; argparse; the last line of a traceback; and two of aclruntime's
# that are no [ERROR] but name the cause of one.
_ERROR = re.compile(
    r"\[ERROR\].*|\[WARN\] check failed dym.*|the dynamic_dims parameter is not specified.*|\S+: error: .+"
    r"|.*No module named .+|^(?:\w+\.)*\w+(?:Error|Exception)(?:: .+)?$"
)
_BARE = re.compile(r"\w+")  # the last line of `raise RuntimeError()`, which says nothing

# What ais_bench says -> the error that it is, and what to do. The first row that fits any error decides.
_CAUSES = (
    (r"No module named '?(?:ais_bench|aclruntime|numpy|tqdm)", MissingError, INSTALL),
    (r"error: (?:argument|unrecognized|the following)", ConfigError, "check the options of the command"),
    (r"dym_?dims|dynamic.dims|dym gearcount", ConfigError, "the model was not compiled for these --dym options"),
    (r"Permission denied|Not a directory|File exists", ConfigError, "check the output folder, and who may write to it"),
    (r"No space left", StageError, "free some space, then run the same command again"),
    (r"load model from file failed", MissingError, "the model is missing or unreadable, run: invoke build-om --force"),
    (r"of --input is invalid|not a real dir path|\bnot exist\b", MissingError, "run: invoke preprocess"),
    (r"not find valid file|size: ?\d+ .*not match", DataError, "run: invoke preprocess --force"),
    (r"list index out of range|(?:fileslist|dir num):\d+", DataError, "run: invoke preprocess --force"),
    (r"open device \d+ failed", StageError, "check --device and who uses it with: npu-smi info"),
    (r"acl init failed", StageError, "source CANN's set_env.sh"),
)


@dataclass(frozen=True)
class AisBenchRun:
    """What a run printed and wrote. Times in ms, the warm-up's not among them; `throughput` in rows per second.

    `unread`: why there is no summary to take them from, empty if there is one.
    """

    folder: Optional[str]
    times_ms: tuple[float, ...]
    average_ms: Optional[float]
    throughput: Optional[float]
    errors: tuple[str, ...] = ()
    unread: str = ""


def command(
    model: PurePosixPath,
    inputs: Sequence[PurePosixPath],
    output: PurePosixPath,
    batch_size: int,
    device: int = 0,
    loops: Optional[int] = None,
) -> tuple[str, ...]:
    """What comes after `python3 -m ais_bench`. `inputs`: a folder for each input, or a file for each.

    `loops`: inferences of each batch, for a performance run. Raises ConfigError for a path that it would take apart.
    """
    for path in inputs:
        if "," in str(path):
            raise ConfigError(f"ais_bench cannot read {path}: rename it, so that its path has no comma")
    return (
        *("--model", str(model), "--input", ",".join(map(str, inputs)), "--output", str(output), "--outfmt", "BIN"),
        # It would take the batch size from the model, and its throughput from that.
        *("--batchsize", str(batch_size), "--device", str(device)),
        *(("--loop", str(loops)) if loops is not None else ()),
    )


def installed(stdout: str) -> dict[str, str]:
    """Where the two packages are, from what PROBE printed: their files by name. Raises MissingError if one is not."""
    lines = stdout.strip().splitlines()
    try:
        found: dict[str, Optional[str]] = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise StageError(f"CANN's python3 does not run: {lines[-1] if lines else 'it printed nothing'}") from None
    missing = [name for name, path in found.items() if not path]
    if missing:
        raise MissingError(f"CANN's python3 has no {' and no '.join(missing)}: {INSTALL}; or take --runner msame")
    return {name: str(path) for name, path in found.items()}


def output_file(index: int) -> str:
    """The name that ais_bench gives to output 0 of `input_<index>.bin`, in a performance run too."""
    return f"input_{index}_0.bin"


def renamed(name: str) -> str:
    """Our name, which is msame's, of an output of ais_bench: input_12_0.bin -> input_12_output_0.bin."""
    match = _OUTPUT.fullmatch(name)
    if match is None:
        raise DataError(f"{name} is not the name of an output of ais_bench")
    return f"{match[1]}_output_{match[2]}.bin"


def summary_of(folder: Path) -> Path:
    """The summary of the run that wrote `folder`."""
    return folder.with_name(folder.name + _SUMMARY)


def read(stdout: str, root: Path) -> AisBenchRun:
    """Read a run from what it printed and from its summary; `root`: what its --output was relative to."""
    folder = _folder(stdout)
    path = summary_of(root / folder) if folder else None
    there = path is not None and path.is_file()
    return parse(stdout, path.read_text(encoding="utf-8", errors="replace") if there and path else None)


def parse(stdout: str, summary: Optional[str]) -> AisBenchRun:
    """Read the lines that ais_bench printed, stderr's among them, and its summary's text, None if there is none."""
    if summary is None:
        run = AisBenchRun(None, (), None, None, unread="it stopped before it wrote its summary")
    else:
        try:
            run = read_summary(summary)
        except DataError as error:
            run = AisBenchRun(None, (), None, None, unread=str(error))
    found = [match[0].strip() for match in map(_ERROR.search, stdout.splitlines()) if match]
    errors = [line for line in found if not _BARE.fullmatch(line)] or found
    return replace(run, folder=_folder(stdout), errors=tuple(errors))


def _folder(stdout: str) -> Optional[str]:
    match = _FOLDER.search(stdout)
    return match[1].rstrip() if match else None


def read_summary(text: str) -> AisBenchRun:
    """The times of a summary, of a run that is long over as well. Raises DataError if it is none of ais_bench's."""
    try:
        content: dict[str, Any] = json.loads(text)
        times = tuple(float(time) for time in content["npu_compute_time_list"])
        return AisBenchRun(None, times, float(content["NPU_compute_time"]["mean"]), float(content["throughput"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the summary is not one of ais_bench's, or not whole: {error!r}") from None


def judge(run: AisBenchRun, outputs_folder: Path, expected: Mapping[str, int], expected_times: int) -> None:
    """Return if the run is complete, otherwise raise the error that names the cause.

    `outputs_folder`: the `OUT/<T>` of the run; `expected`: name -> bytes of every output file, under ais_bench's names;
    `expected_times`: inferences asked for. Raises ConfigError (an option's value), MissingError (model, input or tool),
    DataError (sizes or counts differ) and StageError (anything else).
    """
    if run.errors:
        raise _cause(run)
    if run.unread:
        raise (DataError if summary_of(outputs_folder).exists() else StageError)(f"ais_bench: {run.unread}")
    if len(run.times_ms) != expected_times:
        raise DataError(
            f"{len(run.times_ms)} inferences were timed, {expected_times} were asked for. "
            "Are there as many files in each input directory, and is each as large as an input of the model?"
        )
    average(run)
    check_outputs(outputs_folder, expected)
    whole = {outputs_folder.name, summary_of(outputs_folder).name}
    beside = sorted(set(os.listdir(outputs_folder.parent)) ^ whole)
    if beside:
        raise DataError(f"{outputs_folder.parent} does not hold this run alone: {some(beside, 3)}")


def _cause(run: AisBenchRun) -> DebertaError:
    for pattern, error, advice in _CAUSES:
        for line in run.errors:
            if re.search(pattern, line, re.IGNORECASE):
                return error(f"ais_bench: {line}: {advice}")
    return StageError("ais_bench: " + "; ".join(run.errors[:3]))


def settle(folder: Path) -> None:
    """Give the outputs of a judged run our names."""
    for name in sorted(os.listdir(folder)):
        os.replace(folder / name, folder / renamed(name))


def average(run: AisBenchRun) -> float:
    """The mean of its times. Raises DataError if that is none, or if the summary says something else."""
    own = sum(run.times_ms) / len(run.times_ms) if run.times_ms else math.nan
    if run.average_ms is None or not (0 < own < math.inf and math.isclose(own, run.average_ms, rel_tol=1e-6)):
        raise DataError(f"the average time is {run.average_ms} ms in the summary, and {own} ms by its list of times")
    return run.average_ms
