"""lint-onnx --stats: parameters, FLOP and bytes per kind of operator, and the time that a device cannot go below.

FLOP are counted, not measured: 2 for each multiply-and-add of a MatMul, Gemm or Conv; 1 per element of any other
computation (per input element of a reduction, 5 of a Softmax); 0 for an operator that only moves data.
"""

from __future__ import annotations

import re
import timeit
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from deberta.core.errors import ConfigError
from deberta.stages.lint.graph import FLOATS, Graph, Tensor, attribute, node_cost
from deberta.stages.lint.rules import MOVES, OPERATORS, VIEWS

_COPIES = [op for op, rule in OPERATORS.items() if rule in ("copy-op", "dynamic-shape-op", "data-dependent-shape")]


@dataclass(frozen=True)
class ChipModel:
    """Peaks of one device: FLOP/s, bytes/s, and the bytes that a float takes in it."""

    name: str
    flops: float
    bandwidth: float
    float_bytes: int
    source: str


# One 310P chip in float16, ATC's default. Public notes for developers (of vllm-ascend among others) give these numbers
# for the Atlas 300I Pro, which has one 310P, and name Huawei's product page. Reports on the 300I Duo, with two, give
# 280 TOPS in int8 and 408 GB/s: the same for each chip. Huawei's own page was not read.
ASCEND_310P = ChipModel(
    "310P", 70e12, 204.8e9, 2, "70 TFLOPS in float16 and 204.8 GB/s by secondary sources for the Atlas 300I Pro"
)


def parse_device(text: str) -> ChipModel:
    """310P, cpu (measured here and now), or NAME=TFLOPS,GB/s[,BYTES PER FLOAT]. Raises ConfigError."""
    if text == "310P":
        return ASCEND_310P
    if text == "cpu":
        return _measure_cpu()
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"([^=]+)={number},{number}(?:,([124]))?", text)
    if not match or not float(match[2]) or not float(match[3]):
        raise ConfigError(f"--device {text!r} is not 310P, cpu, or NAME=TFLOPS,GB/s[,BYTES PER FLOAT]")
    return ChipModel(match[1], float(match[2]) * 1e12, float(match[3]) * 1e9, int(match[4] or 4), "as given")


def _measure_cpu() -> ChipModel:
    """The best of a few float32 products and copies by numpy: about a second, and lower while others compute."""
    left, right = np.ones((1024, 1024), np.float32), np.ones((1024, 1024), np.float32)
    source, target = np.ones(1 << 24, np.float32), np.empty(1 << 24, np.float32)
    flops = 2 * 1024**3 / min(timeit.repeat(lambda: left @ right, number=1, repeat=6))
    bandwidth = 2 * source.nbytes / min(timeit.repeat(lambda: np.copyto(target, source), number=1, repeat=6))
    return ChipModel("cpu", flops, bandwidth, 4, "numpy's float32 product and copy, measured in this run")


def statistics(graph: Graph, batches: Sequence[int], devices: Sequence[ChipModel]) -> dict[str, Any]:
    """The object that `--stats` adds to the report; the module's docstring has the units."""
    weights = [constant.tensor for constant in graph.constants.values() if constant.tensor.dtype in FLOATS]
    return {
        "parameters": sum(tensor.elements or 0 for tensor in weights),
        "parameter_bytes": sum(tensor.bytes() for tensor in weights),
        "batches": {str(batch): _batch_statistics(graph, batch, devices) for batch in batches},
    }


def _batch_statistics(graph: Graph, batch: int, devices: Sequence[ChipModel]) -> dict[str, Any]:
    tensors = graph.tensors(batch)
    operators: dict[str, dict[str, float]] = {}
    for node in graph.nodes:
        if node.op_type == "Constant":
            continue
        entry = operators.setdefault(node.op_type, {"nodes": 0, "flop": 0, "bytes": 0})
        entry["nodes"] += 1
        entry["flop"] += flop(node, tensors)
        entry["bytes"] += node_cost(node, tensors).bytes
    for entry in operators.values():
        entry["intensity"] = round(entry["flop"] / entry["bytes"], 3) if entry["bytes"] else 0.0
    total = sum(entry["flop"] for entry in operators.values())
    moved = sum(entry["bytes"] for entry in operators.values())
    return {
        "flop": total,
        "bytes": moved,
        "intensity": round(total / moved, 3) if moved else 0.0,
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1]["flop"], -item[1]["bytes"], item[0]))),
        "devices": {device.name: _bounds(graph, batch, device) for device in devices},
    }


def _bounds(graph: Graph, batch: int, device: ChipModel) -> dict[str, Any]:
    """Seconds per inference that the device cannot go below, and those it takes at its peak with nothing fused.

    The first: all FLOP at the peak, or each weight that is read, input and output moved once, whichever is longer.
    """
    size, flops, bandwidth = device.float_bytes, device.flops, device.bandwidth
    tensors = graph.tensors(batch)
    nodes = [node for node in graph.nodes if node.op_type != "Constant"]
    work = [(flop(node, tensors), node_cost(node, tensors, size).bytes) for node in nodes]
    looked_up = {node.input[0] for node in nodes if node.op_type == "Gather"}  # an embedding is not read whole
    outside = [*(set(graph.constants) - looked_up), *graph.inputs, *(v.name for v in graph.model.graph.output)]
    once = sum(tensors[name].bytes(size) for name in outside if name in tensors)
    least = max(sum(computed for computed, _ in work) / flops, once / bandwidth)
    unfused = sum(max(computed / flops, moved / bandwidth) for computed, moved in work)
    return {
        "peak_tflops": round(flops / 1e12, 4),
        "peak_gb_per_s": round(bandwidth / 1e9, 2),
        "source": device.source,
        "least_seconds": least,
        "most_rows_per_second": batch / least if least else None,
        "unfused_seconds": unfused,
        "unfused_rows_per_second": batch / unfused if unfused else None,
    }


def flop(node: NodeProto, tensors: dict[str, Tensor]) -> int:
    """FLOP of one node, 0 for an unknown shape."""
    sizes = [tensors[name].elements or 0 if name in tensors else 0 for name in node.input]
    out = sum(tensors[name].elements or 0 for name in node.output if name in tensors)
    if node.op_type in (*VIEWS, *MOVES, *_COPIES) or not sizes:
        return 0
    first = tensors[node.input[0]].shape if node.input[0] in tensors else None
    if node.op_type == "MatMul":
        return 2 * out * ((first or (0,))[-1] or 0)
    if node.op_type == "Gemm":
        inner = (first or (0, 0))[0 if attribute(node, "transA") else -1] or 0
        return 2 * out * inner + (out if len(node.input) > 2 else 0)
    if node.op_type == "Conv":
        kernel = tensors[node.input[1]].shape if node.input[1] in tensors else None
        per_output = sizes[1] // (kernel[0] or 1) if kernel else 0
        return 2 * out * per_output + (out if len(node.input) > 2 else 0)
    if node.op_type.startswith("Reduce"):
        return sizes[0]
    return 5 * out if node.op_type in ("Softmax", "LogSoftmax") else out
