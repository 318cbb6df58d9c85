"""bench: rows per second of `infer` from bins on disk: the stage as a process, its start and the model's load included.

The rows are a larger sample of the real lengths, in bins of the cpu backend's lengths, as preprocess writes them. With
another commit that commit's stage takes turns with ours on the same model and bins, and must leave the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import deberta
from benchmarks import batching, figures, processes
from benchmarks.engines import OURS, ours_xml
from deberta.core import contract, files
from deberta.core.contract import INPUTS
from deberta.core.errors import StageError

ROWS = 1000
REPEATS = 3
BEFORE = "before"  # another commit, each time a different one
STAGE = "deberta.stages.inference.run_cpu"


def write_bins(folder: Path, lengths: Sequence[int], buckets: Sequence[int], batch_size: int, vocabulary: int) -> None:
    """Bins of rows of these lengths, each at the smallest bucket that holds it, in the rows' order."""
    ids, mask = batching.make(lengths, vocabulary)
    fitted = [next(bucket for bucket in buckets if bucket >= length) for length in lengths]
    for bucket in sorted(set(fitted)):
        rows = [row for row, length in enumerate(fitted) if length == bucket]
        for name in INPUTS:
            (folder / str(bucket) / name).mkdir(parents=True)
        for index in range(contract.batch_count(len(rows), batch_size)):
            picked = tuple(rows[index * batch_size : (index + 1) * batch_size])
            for name, values in zip(INPUTS, (ids, mask), strict=True):
                filled = batching.fill(values, batching.RowBatch(picked, bucket), batch_size)
                filled.tofile(folder / str(bucket) / name / contract.input_file(index))


def source_of(revision: str, folder: Path) -> Path:
    """The package of another commit, in `folder`. Raises StageError for a commit that git does not have."""
    folder.mkdir(parents=True)
    command = ["git", "-C", str(deberta.PROJECT), "archive", "--format=tar", f"{revision}^{{commit}}", "deberta"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        raise StageError(f"git has no commit {revision}: {archive.stderr.decode(errors='replace').strip()[:300]}")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def run(source: Path, model: Path, bins: Path, outputs: Path, variables: Mapping[str, str], log: Path) -> float:
    """Seconds of the stage of a source tree, from its start to its end. Raises StageError."""
    lengths = sorted(int(path.name) for path in bins.iterdir())
    command = [sys.executable, "-m", STAGE, "--model", str(model), "--lengths", ",".join(map(str, lengths))]
    for length in lengths:
        (outputs / str(length)).mkdir(parents=True)
        parts = ",".join(str(bins / str(length) / name) for name in INPUTS)
        command += ["--input", parts, "--output", str(outputs / str(length))]
    started = time.perf_counter()
    processes.finish(command, {**variables, "PYTHONPATH": str(source)}, log)
    return time.perf_counter() - started


def digest(outputs: Path) -> str:
    """Of the content of all outputs, whatever their runs' folders are called."""
    lines = [
        f"{length.name} {path.name} {files.sha256_of(path)}\n"
        for length in sorted(outputs.iterdir())
        for path in sorted(length.glob("*/*.bin"))
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def measure(
    folder: Path,
    batch_size: int,
    lengths: Sequence[int],
    buckets: Sequence[int],
    vocabulary: int,
    precisions: Sequence[str],
    variables: Mapping[str, str],
    logs: Path,
    revision: str = "",
) -> dict[str, Any]:
    """Rows per second of each precision, and of another commit's float32, with the ratios to ours of float32.

    Raises StageError where the other commit leaves other bytes.
    """
    bins, log = folder / "bins", logs / "end_to_end.log"
    write_bins(bins, lengths, buckets, batch_size, vocabulary)
    runs = {
        OURS if precision == contract.FP32 else f"{OURS}-{precision}": (
            deberta.PROJECT,
            folder / ours_xml(batch_size, False, precision),
        )
        for precision in precisions
    }
    if revision:
        runs[BEFORE] = (source_of(revision, folder / "before"), folder / ours_xml(batch_size, False))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    digests: dict[str, set[str]] = {name: set() for name in runs}
    for repeat in range(REPEATS):
        first = repeat % len(runs)
        for name in [*list(runs)[first:], *list(runs)[:first]]:
            print(f"[bench end to end] {name}, {repeat + 1} of {REPEATS}", flush=True)
            outputs = folder / "end_to_end_outputs"
            seconds[name].append(run(*runs[name], bins, outputs, variables, log))
            digests[name].add(digest(outputs))
            shutil.rmtree(outputs)
    if varying := [name for name, found in digests.items() if len(found) > 1]:
        raise StageError(f"{varying[0]} leaves other bytes each time. See {log}")
    if revision and digests[BEFORE] != digests[OURS]:
        raise StageError(f"{revision} leaves other outputs than this commit for the same model and bins")
    return {
        "rows": len(lengths),
        "batch_size": batch_size,
        "revision": revision,
        "results": {
            name: {
                "times_s": times,
                "rows_per_s": len(lengths) / statistics.median(times),
                "ratio": figures.ratio(times, seconds[OURS]),
                "outputs": min(digests[name]),
            }
            for name, times in seconds.items()
        },
    }
