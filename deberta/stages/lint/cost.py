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

PRODUCTS = ("MatMul", "Gemm", "Conv")
_COPYING = ("copy-op", "dynamic-shape-op", "data-dependent-shape")
_NO_FLOP = frozenset((*VIEWS, *MOVES, *(op for op, rule in OPERATORS.items() if rule in _COPYING)))


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
    nodes = [node for node in graph.nodes if node.op_type != "Constant"]
    sizes = (None, *(device.float_bytes for device in devices))
    work = _work(nodes, tensors, sizes)
    flops = [computed for computed, _ in work]
    moved = {size: [of_sizes[i] for _, of_sizes in work] for i, size in enumerate(sizes)}
    operators: dict[str, dict[str, float]] = {}
    for node, computed, size in zip(nodes, flops, moved[None], strict=True):
        entry = operators.setdefault(node.op_type, {"nodes": 0, "flop": 0, "bytes": 0})
        entry["nodes"] += 1
        entry["flop"] += computed
        entry["bytes"] += size
    for entry in operators.values():
        entry["intensity"] = round(entry["flop"] / entry["bytes"], 3) if entry["bytes"] else 0.0
    total, all_moved = sum(flops), sum(moved[None])
    return {
        "flop": total,
        "bytes": all_moved,
        "intensity": round(total / all_moved, 3) if all_moved else 0.0,
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1]["flop"], -item[1]["bytes"], item[0]))),
        "devices": {
            device.name: _bounds(graph, batch, device, list(zip(nodes, flops, moved[device.float_bytes], strict=True)))
            for device in devices
        },
    }


def _work(
    nodes: Sequence[NodeProto], tensors: dict[str, Tensor], sizes: Sequence[int | None]
) -> list[tuple[int, list[int]]]:
    """Each node's FLOP, and the bytes that it moves where a float takes so many; equal nodes are counted once."""
    known: dict[tuple[Any, ...], tuple[int, list[int]]] = {}
    work = []
    for node in nodes:
        of_inputs, of_outputs = tuple(map(tensors.get, node.input)), tuple(map(tensors.get, node.output))
        transposed = attribute(node, "transA") if node.op_type == "Gemm" else None
        key = (node.op_type, of_inputs, of_outputs, transposed)
        if key not in known:
            known[key] = flop(node, tensors), [node_cost(node, tensors, size).bytes for size in sizes]
        work.append(known[key])
    return work


def _bounds(graph: Graph, batch: int, device: ChipModel, work: Sequence[tuple[NodeProto, int, int]]) -> dict[str, Any]:
    """Seconds per inference that the device cannot go below, and those it takes at its peak, fused and unfused.

    `work`: each node with its FLOP and the bytes that it moves. Least: all FLOP at the peak, or each weight that is
    read, input and output moved once, whichever is longer. Fused: only matrix products take time, one after the other,
    each its FLOP or the move of its inputs, weights and output, whichever is longer. Unfused: so every node.
    """
    flops, bandwidth = device.flops, device.bandwidth
    tensors = graph.tensors(batch)
    looked_up = {node.input[0] for node, _, _ in work if node.op_type == "Gather"}  # an embedding is not read whole
    outside = [*(set(graph.constants) - looked_up), *graph.inputs, *(v.name for v in graph.model.graph.output)]
    once = sum(tensors[name].bytes(device.float_bytes) for name in outside if name in tensors)
    seconds = {
        "least": max(sum(computed for _, computed, _ in work) / flops, once / bandwidth),
        "fused": sum(max(c / flops, size / bandwidth) for node, c, size in work if node.op_type in PRODUCTS),
        "unfused": sum(max(computed / flops, size / bandwidth) for _, computed, size in work),
    }
    return {
        "peak_tflops": round(flops / 1e12, 4),
        "peak_gb_per_s": round(bandwidth / 1e9, 2),
        "source": device.source,
        "least_seconds": seconds["least"],
        "most_rows_per_second": _rate(batch, seconds["least"]),
        "fused_seconds": seconds["fused"],
        "fused_rows_per_second": _rate(batch, seconds["fused"]),
        "unfused_seconds": seconds["unfused"],
        "unfused_rows_per_second": _rate(batch, seconds["unfused"]),
    }


def _rate(batch: int, seconds: float) -> float | None:
    return batch / seconds if seconds else None


def flop(node: NodeProto, tensors: dict[str, Tensor]) -> int:
    """FLOP of one node, 0 for an unknown shape."""
    if node.op_type in _NO_FLOP or not node.input:
        return 0
    sizes = [tensors[name].elements or 0 if name in tensors else 0 for name in node.input]
    out = sum(tensors[name].elements or 0 for name in node.output if name in tensors)
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
