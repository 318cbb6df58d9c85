"""msame's twin for the cpu backend: the same inputs, output files and timing lines, on a CPU through OpenVINO.

Directory mode (`--input a/,b/`): file x of every directory is one batch; outputs are `<x without .bin>_output_<k>.bin`.
File mode (`--input a/x.bin,b/x.bin`): the one batch runs `--loop` times; outputs are `<model's stem>_output_<k>.bin`.
Outputs land in `OUT/<T>/`, where T is the local time in msame's form; a run that fails leaves no such folder.

Where msame goes on or exits 0 after a mistake, this runner stops with an error before anything runs. Nothing is run
to warm up, so that "average without first time" means what it means in msame.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from deberta.core import files
from deberta.core.contract import INPUTS, PERFORMANCE_LOOPS, SEQUENCE_LENGTH, input_bytes, parse_integer
from deberta.core.errors import ConfigError, DataError, MissingError, StageError, run_stage, some
from deberta.core.machine import effective_cpus
from deberta.core.progress import Progress
from deberta.stages.inference.openvino_engine import MAX_THREADS, OpenVinoEngine, engine_facts, load_model, set_input


@dataclass(frozen=True)
class Batch:
    """One batch: what its outputs' names start with, and one file per model input, in the order of contract.INPUTS."""

    stem: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class RunRequest:
    """What to run. `loops` inferences per batch; `by_directory` decides how msame prints the averages."""

    batches: tuple[Batch, ...]
    loops: int
    by_directory: bool


def plan(elements: Sequence[str], loops: int, model: Path) -> RunRequest:
    """Turn `--input`'s elements into batches. Raises ConfigError, MissingError and DataError; reads no file."""
    if len(elements) != len(INPUTS) or not all(elements):
        raise ConfigError(
            f"--input {','.join(elements)!r} must be {len(INPUTS)} directories or files, for {' and '.join(INPUTS)}"
        )
    for element in elements:
        if not os.path.exists(element):
            raise MissingError(f"the input {element} is missing. Run: invoke preprocess")
    directories = [os.path.isdir(element) for element in elements]
    if not any(directories):
        return RunRequest((Batch(model.stem, tuple(elements)),), loops, by_directory=False)
    if not all(directories):
        raise ConfigError(f"--input {','.join(elements)!r} mixes directories and files")
    names = _bins_in(elements[0])
    for other in elements[1:]:
        if different := sorted(set(names) ^ set(_bins_in(other))):
            raise DataError(
                f"{elements[0]} and {other} must hold files of the same names; only one has {some(different)}. "
                "Run: invoke preprocess --force"
            )
    batches = (Batch(name[: -len(".bin")], tuple(f"{folder}/{name}" for folder in elements)) for name in names)
    return RunRequest(tuple(batches), loops=1, by_directory=True)


def _bins_in(folder: str) -> list[str]:
    """The names in a folder in msame's order (plain string order), which makes the logs comparable line by line."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no file. Run: invoke preprocess --force")
    strange = [name for name in names if not name.endswith(".bin") or not os.path.isfile(os.path.join(folder, name))]
    if strange:
        raise DataError(
            f"{folder} holds something else than .bin files: {some(strange)}. Run: invoke preprocess --force"
        )
    return names


def check_sizes(job: RunRequest, expected: int, model: Path) -> None:
    """Every file must hold exactly one input of the model: `expected` bytes. Raises DataError naming the wrong ones."""
    wrong = [
        f"{file} ({size} bytes)"
        for batch in job.batches
        for file in batch.files
        if (size := os.path.getsize(file)) != expected
    ]
    if wrong:
        raise DataError(
            f"{model} takes {expected} bytes per file, not {some(wrong)}. "
            "The bins are of another batch size, length or type. Run: invoke preprocess --force"
        )


def read_input(name: str, file: str, engine: OpenVinoEngine) -> np.ndarray:
    """One input, int32 [batch, length]. Raises DataError where a file cannot be this input: msame, whose inputs are
    told apart by position alone, would run swapped directories without a word."""
    values = np.fromfile(file, dtype="<i4").reshape(engine.shape)
    limit = engine.vocabulary if name == INPUTS[0] else 2
    if values.min() < 0 or values.max() >= limit:
        raise DataError(
            f"{file} holds values from {values.min()} to {values.max()}; {name} goes from 0 to {limit - 1}. "
            f"Give the directories in the order {', '.join(INPUTS)}, or run: invoke preprocess --force"
        )
    return values


def run(job: RunRequest, engine: OpenVinoEngine, folder: Path) -> list[float]:
    """Run a job, write its outputs into `folder`, print msame's lines and return the inference times in ms."""
    request = engine.compiled.create_infer_request()
    progress = Progress("infer", len(job.batches), "batches")
    # On a terminal msame's own lines show how far the run is, and a line that rewrites itself would garble them.
    draws = job.by_directory and not sys.stdout.isatty()
    times: list[float] = []
    for index, batch in enumerate(job.batches):
        for name, file in zip(INPUTS, batch.files, strict=True):
            print(f"[INFO] start to process file:{file}")
            set_input(request, name, read_input(name, file, engine))
        for _ in range(job.loops):
            started = time.perf_counter()
            request.infer(share_outputs=True)
            times.append((time.perf_counter() - started) * 1000)
            print("[INFO] model execute success")
            print(f"Inference time: {times[-1]:g}ms", flush=True)  # %g is what a C++ stream does by default
        for k in range(len(engine.compiled.outputs)):
            write_output(folder / f"{batch.stem}_output_{k}.bin", request.get_output_tensor(k).data)
        print("[INFO] output data success", flush=True)
        if draws:
            progress.update(index + 1)
    return times


def write_output(path: Path, values: np.ndarray) -> None:
    content = values.astype("<f4").tobytes()
    path.write_bytes(content)
    if path.stat().st_size != len(content):
        raise StageError(f"{path} has {path.stat().st_size} bytes after {len(content)} were written. Check the disk")


def print_averages(times: Sequence[float], by_directory: bool) -> None:
    """msame's two average lines, which differ between its modes; the second only after more than one inference."""
    average = statistics.fmean(times)
    print(f"Inference average time : {average:.2f} ms" if by_directory else f"Inference average time: {average:.6f} ms")
    if len(times) > 1:
        digits = 2 if by_directory else 6
        print(f"Inference average time without first time: {statistics.fmean(times[1:]):.{digits}f} ms")


def time_name(now: datetime) -> str:
    """msame's name of an output folder: numbers without leading zeros, `20261122_22_1_58_100122`."""
    return f"{now.year}{now.month}{now.day}_{now.hour}_{now.minute}_{now.second}_{now.microsecond}"


def _check_output(output: str) -> Path:
    """The parent of `<T>`; like msame, one level is made when it is absent, and no more."""
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {output} is not a folder")
    if not folder.parent.is_dir():
        raise MissingError(f"the folder {folder.parent} of --output is missing. Run: mkdir -p {folder.parent}")
    return folder


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deberta.stages.inference.run_cpu", description="msame's twin on a CPU"
    )
    parser.add_argument("--model", required=True, type=Path, help="a model made by build-om (.xml)")
    parser.add_argument("--input", required=True, help="two directories or two .bin files, with a comma between")
    parser.add_argument("--output", required=True, help="the folder that gets <T>/; its parent must exist")
    parser.add_argument("--loop", help="inferences in file mode, 1 to 100; checked but not used in directory mode")
    parser.add_argument("--device", default="0", help="only 0")
    parser.add_argument("--sequence-length", help="of the inputs, where the model takes any")
    parser.add_argument("--threads", help="default: as many as the container's CPU quota allows")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    options = _parse(argv)
    loops = parse_integer("--loop", options.loop, 1, 1, PERFORMANCE_LOOPS)
    if options.device.strip() != "0":
        raise ConfigError(f"--device {options.device!r}: the cpu backend has one device, 0")
    threads = parse_integer("--threads", options.threads, effective_cpus(), 1, MAX_THREADS)
    elements = options.input.split(",")
    job = plan(elements, loops, options.model)
    output = _check_output(options.output)
    engine = load_model(options.model, threads)
    if options.sequence_length is not None:
        length = parse_integer("--sequence-length", options.sequence_length, engine.shape[1], 1, SEQUENCE_LENGTH)
        engine = engine.at(length, options.model)
    print(f"[INFO] load model {options.model} success")
    check_sizes(job, input_bytes(*engine.shape), options.model)
    folder = time_name(datetime.now())
    print(f"{options.output}/{folder}", flush=True)
    with files.new_folder(output / folder) as temporary:
        times = run(job, engine, temporary)
    print_averages(times, job.by_directory)
    if options.summary:
        _write_summary(options.summary, job, engine)
    print(f"[INFO] pid: {os.getpid()} Execute sample success", flush=True)


def _write_summary(path: Path, job: RunRequest, engine: OpenVinoEngine) -> None:
    counted = {"batches": len(job.batches), "loops": job.loops, **engine_facts(engine)}
    files.write_text(path, json.dumps(counted, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
