"""The cpu backend's run of length buckets: one process, one model for all lengths, each length's bins after the other.

Reads what preprocess_buckets wrote and leaves, for each length, the outputs that msame would: `OUT/<T>/input_<i>_
output_0.bin`. No folder of outputs takes the place of an older one before all are complete.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from deberta.core import buckets, files
from deberta.core.contract import INPUTS, input_bytes, output_bytes, output_file, parse_integer
from deberta.core.errors import StageError, run_stage
from deberta.core.machine import effective_cpus
from deberta.core.progress import Progress
from deberta.stages.inference import openvino_engine, run_cpu
from deberta.stages.inference.openvino_engine import OpenVinoEngine
from deberta.stages.inference.run_cpu import RunRequest


def run(
    jobs: Mapping[int, RunRequest], engine: OpenVinoEngine, model: Path, outputs: Mapping[int, Path]
) -> dict[int, list[float]]:
    """Run all jobs into their folders and return the inference times in ms, by length.

    The longest comes first: what it takes in memory serves all others, where growing from length to length would leave
    holes behind.
    """
    request = engine.compiled.create_infer_request()
    progress = Progress("infer", sum(len(job.batches) for job in jobs.values()), "batches")
    times: dict[int, list[float]] = {}
    for length in sorted(jobs, reverse=True):
        fitted, times[length] = engine.at(length, model), []
        for batch in jobs[length].batches:
            for name, file in zip(INPUTS, batch.files, strict=True):
                openvino_engine.set_input(request, name, run_cpu.read_input(name, file, fitted))
            started = time.perf_counter()
            request.infer(share_outputs=True)
            times[length].append((time.perf_counter() - started) * 1000)
            run_cpu.write_output(outputs[length] / f"{batch.stem}_output_0.bin", request.get_output_tensor(0).data)
            if len(times[length]) == 1:  # another length may have packed matrices in another form
                openvino_engine.release_pages(model.with_suffix(".bin"))
            progress.update(sum(map(len, times.values())), f"length {length}")
    return times


def _check(folder: Path, batches: int, size: int) -> None:
    """Every batch has its output of exactly the size. Raises StageError."""
    expected = {output_file(index): size for index in range(batches)}
    found = {path.name: path.stat().st_size for path in folder.iterdir()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise StageError(f"{folder} does not hold the outputs of {batches} batches, {size} bytes each: {wrong[0]}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.inference.run_buckets", description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="a model of any length, made by build-om (.xml)")
    parser.add_argument("--buckets", required=True, help="the lengths, increasing, with commas between")
    parser.add_argument("--bins", required=True, help="folders of preprocess, one for each length, commas between")
    parser.add_argument("--output", required=True, help="folders to make, one for each length, commas between")
    parser.add_argument("--threads", help="default: as many as the container's CPU quota allows")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    options = _parse(argv)
    lengths = buckets.lengths(options.buckets)
    bins, outputs = (
        buckets.folders(lengths, options.bins, "--bins"),
        buckets.folders(lengths, options.output, "--output"),
    )
    threads = parse_integer("--threads", options.threads, effective_cpus(), 1, openvino_engine.MAX_THREADS)
    jobs = {length: run_cpu.plan([f"{bins[length]}/{name}" for name in INPUTS], 1, options.model) for length in lengths}
    engine = openvino_engine.load_model(options.model, threads)
    openvino_engine.release_pages(options.model.with_suffix(".bin"))
    for length, job in jobs.items():
        size = input_bytes(*engine.at(length, options.model).shape)
        run_cpu.check_sizes(job, size, options.model)
    named = run_cpu.time_name(datetime.now())
    with contextlib.ExitStack() as made:
        temporary = {length: made.enter_context(files.new_folder(outputs[length])) / named for length in lengths}
        for folder in temporary.values():
            folder.mkdir()
        times = run(jobs, engine, options.model, temporary)
        for length, job in jobs.items():
            _check(temporary[length], len(job.batches), output_bytes(engine.shape[0]))
    total = sum(map(sum, times.values()))
    print(
        f"{sum(map(len, times.values()))} batches of {engine.shape[0]} in {total / 1000:.1f} s of inference", flush=True
    )
    if options.summary:
        by_length = {
            str(length): {"batches": len(times[length]), "inference_ms": sum(times[length])} for length in lengths
        }
        counted = {**openvino_engine.engine_facts(engine), "inference_ms": total, "buckets": by_length}
        files.write_text(options.summary, json.dumps(counted, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
