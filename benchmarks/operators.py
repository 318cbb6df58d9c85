"""Where the cpu backend's time goes: OpenVINO's own times by kind of operator; prints a Markdown table.

    python -m benchmarks.operators --model models/mnli/cpu/deberta_bs8.xml

The rows are random ids of full length. Counting the time costs some: the sum is above an inference without it, and the
shares are what to read. Each time is the median over the repeats; the first inference is left out.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov

from benchmarks.engines import MAX_THREADS
from deberta.core.contract import INPUTS, parse_integer
from deberta.core.errors import MissingError, run_stage
from deberta.core.machine import effective_cpus
from deberta.stages.inference import openvino_engine, precisions

KINDS = (  # the first whose pattern is in OpenVINO's type and name
    ("feed-forward products, GELU", r"^FullyConnected .*(intermediate|output/dense_1)"),
    ("query, key, value and output products", r"^FullyConnected "),
    ("products with the tables of relative positions", r"^MatMul "),
    ("shift: slices and reshapes", r"^(Slice|StridedSlice|Reshape) "),
    ("transposes", r"^Transpose "),
    ("attention: scores, Softmax, values", r"^Subgraph .*(self/|Softmax)"),
    ("LayerNorm and residuals", r"^(MVN |MulAdd |Subgraph .*output|Eltwise )"),
)
OTHERS = "all others"


def times(model: Path, threads: int, repeats: int) -> dict[str, float]:
    """Milliseconds per row by kind, the largest first. Raises the errors of openvino_engine.load_model."""
    engine = openvino_engine.load_model(model, threads)
    core = ov.Core()
    graph = core.read_model(model)
    precision = "bf16" if precisions.of_model(graph, model) == "bf16" else "f32"
    settings = {**openvino_engine.engine_settings(threads, precision), "PERF_COUNT": True}
    request = core.compile_model(graph, "CPU", settings).create_infer_request()
    ids = np.random.default_rng(0).integers(1, engine.vocabulary, engine.shape, dtype=np.int32)
    for name, values in zip(INPUTS, (ids, np.ones_like(ids)), strict=True):
        openvino_engine.set_input(request, name, values)
    counted = []
    for _ in range(repeats + 1):
        request.infer()
        by_kind: Counter[str] = Counter()
        for entry in request.profiling_info:
            by_kind[kind_of(f"{entry.node_type} {entry.node_name}")] += entry.real_time.total_seconds() * 1000
        counted.append(by_kind)
    medians = {kind: statistics.median(each[kind] for each in counted[1:]) / engine.shape[0] for kind in counted[-1]}
    return dict(sorted(medians.items(), key=lambda entry: -entry[1]))


def kind_of(operator: str) -> str:
    """The kind of an operator of the compiled graph, by OpenVINO's type and name of it."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, operator)), OTHERS)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operators", description=__doc__)
    parser.add_argument("--model", required=True, type=Path, help="a compiled model of the cpu backend, .xml")
    parser.add_argument("--repeats", help="timed inferences, default 9")
    parser.add_argument("--threads", help="default: as many as the container's CPU quota allows")
    options = parser.parse_args(argv)
    if not options.model.is_file():
        raise MissingError(f"{options.model} is missing. Run: invoke build-om")
    threads = parse_integer("--threads", options.threads, effective_cpus(), 1, MAX_THREADS)
    found = times(options.model, threads, parse_integer("--repeats", options.repeats, 9, 1, 1000))
    total = sum(found.values())
    print("| operators | ms per row | share |\n|---|---|---|")
    for kind, value in found.items():
        print(f"| {kind} | {value:.1f} | {100 * value / total:.1f} % |")
    print(f"| together | {total:.1f} | 100 % |")


if __name__ == "__main__":
    sys.exit(run_stage(main))
