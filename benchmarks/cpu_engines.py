"""Which engine should run the cpu backend? Times dynamic.onnx on ONNX Runtime and OpenVINO; prints a Markdown table.

    python -m benchmarks.cpu_engines --onnx models/mnli/dynamic.onnx

The engines take turns, so that what else the machine does hits all of them, with a pause before each: ONNX Runtime's
threads go on spinning after an inference, on the CPUs of whatever comes next. Each engine gets static shapes, the same
rows and the same number of threads. The first inference of each is left out: it allocates memory.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import openvino as ov

from benchmarks.engines import MAX_THREADS
from deberta.core.contract import INPUTS, parse_integer
from deberta.core.errors import MissingError, run_stage
from deberta.core.machine import effective_cpus
from deberta.stages import onnx_runtime
from deberta.stages.inference.openvino_engine import engine_settings, vocabulary_of

Engine = Callable[[np.ndarray, np.ndarray], np.ndarray]
REFERENCE = "ONNX Runtime"
PAUSE = 0.1  # seconds


def engines(onnx: Path, batch_size: int, length: int, threads: int) -> dict[str, Engine]:
    """Name -> function from ids and mask, int32 [batch_size, length], to logits, float32 [batch_size, 3]."""
    session = onnx_runtime.open_session(onnx, threads, batch_size)
    settings = engine_settings(threads)
    as_shipped = {name: value for name, value in settings.items() if name != "INFERENCE_PRECISION_HINT"}
    exact, default = _openvino(onnx, batch_size, length, settings), _openvino(onnx, batch_size, length, as_shipped)
    precision = default.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return {
        REFERENCE: lambda ids, mask: onnx_runtime.run(session, ids, mask),
        "OpenVINO, f32": lambda ids, mask: exact((ids, mask))[0],
        f"OpenVINO, its default ({precision})": lambda ids, mask: default((ids, mask))[0],
    }


def _openvino(onnx: Path, batch_size: int, length: int, settings: dict[str, str | int | bool]) -> ov.CompiledModel:
    core = ov.Core()
    model = core.read_model(onnx)
    model.reshape({name: [batch_size, length] for name in INPUTS})
    # Inputs are passed by position, below and in `engines`.
    assert tuple(port.any_name for port in model.inputs) == INPUTS
    return core.compile_model(model, "CPU", settings)


def measure(onnx: Path, batch_size: int, repeats: int, threads: int) -> list[str]:
    """Rows of the table, one per engine."""
    model = ov.Core().read_model(onnx)
    length = model.input(INPUTS[0]).get_partial_shape()[1].get_length()
    draw = np.random.default_rng(0)
    ids = draw.integers(0, vocabulary_of(onnx, model), (batch_size, length), dtype=np.int32)
    mask = np.ones_like(ids)
    runners = engines(onnx, batch_size, length, threads)
    logits = {name: np.array(run(ids, mask)) for name, run in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, run in runners.items():
            time.sleep(PAUSE)
            started = time.perf_counter()
            run(ids, mask)
            times[name].append((time.perf_counter() - started) * 1000)
    lines = []
    for name in runners:
        median = statistics.median(times[name])
        difference = np.abs(logits[name] - logits[REFERENCE]).max()
        lines.append(
            f"| {batch_size} | {name} | {median / batch_size:.0f} | {min(times[name]) / batch_size:.0f}"
            f"-{max(times[name]) / batch_size:.0f} | {batch_size * 1000 / median:.2f} | {difference:.1e} |"
        )
    return lines


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_engines", description=__doc__)
    parser.add_argument("--onnx", required=True, type=Path)
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--repeats", help="timed inferences per engine and batch size, default 9")
    parser.add_argument("--threads", help="default: as many as the container's CPU quota allows")
    options = parser.parse_args(argv)
    if not options.onnx.is_file():
        raise MissingError(f"{options.onnx} is missing. Run: invoke export-onnx")
    threads = parse_integer("--threads", options.threads, effective_cpus(), 1, MAX_THREADS)
    repeats = parse_integer("--repeats", options.repeats, 9, 1, 1000)
    sizes = [parse_integer("--batch-sizes", size, 1, 1, 1024) for size in options.batch_sizes.split(",")]
    versions = f"ONNX Runtime {onnxruntime.__version__}, OpenVINO {ov.__version__.split('-')[0]}"
    print(f"{versions}, {threads} threads, median of {repeats} interleaved repeats\n")
    print("| batch | engine | ms per row | min-max | rows per s | max abs difference of logits |")
    print("|---|---|---|---|---|---|")
    for size in sizes:
        for line in measure(options.onnx, size, repeats, threads):
            print(line, flush=True)


if __name__ == "__main__":
    sys.exit(run_stage(main))
