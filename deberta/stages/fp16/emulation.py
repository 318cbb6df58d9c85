"""Runs the exported graph with float16 between its nodes: an emulation of what a force_fp16 compilation computes.

Every float input and output of a node is rounded to float16 as IEEE 754 says: to nearest, ties to even, subnormals
kept, beyond the largest value (65504; from 65520 on) infinity. Inside a node it is float32, as in matrix units that
multiply float16 and add up in float32. A node that is kept in float32 (ATC's --keep_dtype) is not rounded, and what it
hands to one that is not kept is rounded on entry, where ATC puts a cast.

An NPU may compute something else: a compiler that fuses nodes rounds less often, an erf may be approximated, a unit may
drop subnormals. By CANN's page of aclrtFloatOverflowMode ("Atlas inference products") a 310P has saturation mode alone:
the largest value instead of infinity, 0 instead of NaN. `saturate` computes that. The search goes without, since
infinities and NaN show where values stop being right.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from deberta.core import files
from deberta.core.contract import INPUTS, LABELS, OUTPUT, has_text_names
from deberta.core.errors import DataError, MissingError, some
from deberta.stages.data.bins import Rows

LARGEST = 65504.0  # float16's largest value
OVERFLOW = 65520.0  # from here on, rounding to float16 gives infinity
PART_ROWS = 2  # computed at a time: small tensors are several times faster than those of a whole batch
AGAIN = "Run: invoke export-onnx --force"


@dataclass(frozen=True)
class Node:
    """One node, with the attributes that its operation reads. No node of the graph has two outputs."""

    name: str
    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any]

    @property
    def moves(self) -> bool:
        """Whether it only moves values, so that float16 values stay float16 values."""
        return self.op in _MOVING


@dataclass(frozen=True)
class Float16Graph:
    nodes: tuple[Node, ...]  # in an order in which they can be computed
    weights: dict[str, Tensor]  # initializers and constants, float32 or whole numbers
    narrow: dict[str, tuple[Tensor, int]]  # float weights that are computed with: rounded, and how many overflow
    done_with: tuple[tuple[str, ...], ...]  # per node: the values that nothing reads after it
    length: int
    vocabulary: int


@dataclass(frozen=True)
class EmulationResult:
    """The result of one node."""

    inputs: tuple[Tensor, ...]  # as the node gets them, rounded unless it is kept
    raw: Tensor  # its result in float32
    value: Tensor  # what the next nodes get: rounded, unless the node is kept
    peak: float  # the largest |raw|; nan if there is a NaN
    lost: int  # finite values that rounding, on entry or of the result, made infinite
    kept: bool

    @property
    def good(self) -> bool:
        return not self.lost and (math.isfinite(self.peak) if self.kept else self.peak < OVERFLOW)


# Sees every result; True: compute the node again in float32, and keep it from now on.
Watch = Callable[[Node, EmulationResult], bool]


def read_graph(path: Path) -> onnx.GraphProto:
    """An ONNX file with the contract's inputs and output. Raises MissingError and DataError."""
    if not path.is_file():
        raise MissingError(f"{path} is missing. Run: invoke export-onnx")
    try:
        with files.open_regular(path) as file:
            graph: onnx.GraphProto = onnx.load(file, load_external_data=False).graph
    except (DecodeError, ValueError) as error:
        raise DataError(f"{path} is not an ONNX file ({error}). {AGAIN}") from None
    if not has_text_names(graph):
        raise DataError(f"{path} is no valid ONNX: a name in it is not UTF-8. {AGAIN}")
    inputs, outputs = [value.name for value in graph.input], [value.name for value in graph.output]
    if tuple(inputs) != INPUTS or outputs != [OUTPUT]:
        raise DataError(f"{path} has the inputs {', '.join(inputs)} and outputs {', '.join(outputs)}. {AGAIN}")
    return graph


def load(path: Path) -> Float16Graph:
    """Read an ONNX file that export-onnx wrote. Raises MissingError, and DataError for any other graph."""
    graph = read_graph(path)
    dims = graph.input[0].type.tensor_type.shape.dim
    if len(dims) != 2 or dims[1].dim_value < 1:
        raise DataError(f"{path} has no fixed sequence length. {AGAIN}")
    weights: dict[str, Tensor] = {}
    for tensor in graph.initializer:
        weights[tensor.name] = _tensor(path, tensor)
        tensor.ClearField("raw_data")  # a large model is not held twice
    nodes = []
    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            weights[node.output[0]] = _tensor(path, attributes["value"])
        else:
            nodes.append(Node(node.name, node.op_type, tuple(node.input), node.output[0], attributes))
    unknown = sorted({node.op for node in nodes} - set(_OPERATIONS))
    unknown += [node.name for node in nodes if node.op == "Cast" and node.attributes["to"] != TensorProto.FLOAT]
    if unknown:
        raise DataError(f"{path} holds nodes that export-onnx does not write: {some(unknown)}. {AGAIN}")
    if len({node.name for node in nodes} - {""}) != len(nodes):
        raise DataError(f"{path} has nodes without a name of their own, so none could be named to ATC. {AGAIN}")
    last = {name: i for i, node in enumerate(nodes) for name in node.inputs if name not in weights}
    done_with = tuple(tuple(name for name in set(node.inputs) if last.get(name) == i) for i, node in enumerate(nodes))
    tables = [weights[n.inputs[0]] for n in nodes if n.op == "Gather" and n.inputs[1] == INPUTS[0]]
    if not tables:
        raise DataError(f"{path} looks up no embedding by {INPUTS[0]}. {AGAIN}")
    if broken := [name for name, x in weights.items() if x.is_floating_point() and not math.isfinite(peak(x))]:
        raise DataError(f"{path} holds NaN or infinite weights: {some(broken)}. Check the checkpoint, then {AGAIN}")
    computed = {name for node in nodes if not node.moves for name in node.inputs}
    floats = {name: x for name, x in weights.items() if name in computed and x.is_floating_point()}
    narrow = {name: (rounded(x), overflows(x)) for name, x in floats.items()}
    return Float16Graph(tuple(nodes), weights, narrow, done_with, int(dims[1].dim_value), len(tables[0]))


def _tensor(path: Path, tensor: TensorProto) -> Tensor:
    if tensor.data_location == TensorProto.EXTERNAL:
        raise DataError(f"{path} keeps the tensor {tensor.name} in another file, which export-onnx never does. {AGAIN}")
    try:
        return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
    except (TypeError, ValueError) as error:  # an unknown type, or too few bytes for its shape
        raise DataError(f"{path}: the tensor {tensor.name} cannot be read ({error}). {AGAIN}") from None


def rounded(x: Tensor, saturate: bool = False) -> Tensor:
    """To float16 and back."""
    narrow = x.half().float()
    return torch.nan_to_num(narrow, nan=0.0, posinf=LARGEST, neginf=-LARGEST) if saturate else narrow


def peak(x: Tensor) -> float:
    """The largest magnitude, infinity included; nan if there is a NaN."""
    low, high = (float(bound) for bound in torch.aminmax(x))
    return math.nan if math.isnan(low) or math.isnan(high) else max(abs(low), abs(high))


@dataclass
class Computation:
    """A run of some rows that has come as far as the node `index`, which is the next one to be computed.

    It holds the values that nodes from there on read, and no others. A copy goes on by itself: two lists of nodes to
    keep that differ from `index` on need the nodes before it once.
    """

    graph: Float16Graph
    rows: Rows
    values: dict[str, Tensor]
    wide: set[str]  # the values that are not in float16
    saturate: bool = False
    index: int = 0

    @classmethod
    def start(cls, graph: Float16Graph, rows: Rows, saturate: bool = False) -> Computation:
        ids, mask = torch.from_numpy(rows.ids), torch.from_numpy(rows.mask)
        wide = {name for name, x in graph.weights.items() if x.is_floating_point()}
        return cls(graph, rows, {**graph.weights, INPUTS[0]: ids, INPUTS[1]: mask}, wide, saturate)

    def copy(self) -> Computation:
        """Another that goes on from here; the tensors, which nothing changes, are shared."""
        return replace(self, values=dict(self.values), wide=set(self.wide))

    @property
    def held(self) -> int:
        """Bytes of the values that are no weights."""
        return sum(x.numel() * x.element_size() for name, x in self.values.items() if name not in self.graph.weights)

    def advance(self, end: int, keep: Container[str] | None, watch: Watch | None = None) -> None:
        """Compute the nodes up to `end`, which is left out. `keep` and `watch` as `run` takes them."""
        with torch.no_grad():
            while self.index < end:
                node = self.graph.nodes[self.index]
                kept = keep is None or node.name in keep
                result = _compute(self.graph, node, self.values, self.wide, kept, self.saturate)
                if watch is not None and watch(node, result) and not result.kept:
                    result = _compute(self.graph, node, self.values, self.wide, True, self.saturate)
                    watch(node, result)
                self.values[node.output] = result.value
                if result.kept:
                    self.wide.add(node.output)
                for name in self.graph.done_with[self.index]:
                    del self.values[name]
                self.index += 1


def run(
    graph: Float16Graph, rows: Rows, keep: Container[str] | None, watch: Watch | None = None, saturate: bool = False
) -> Tensor:
    """The logits, float32 [rows, 3]. `keep`: nodes that are computed in float32, all of them if None.

    `keep` is looked at anew for every node, so that `watch` may add to it.
    """
    computation = Computation.start(graph, rows, saturate)
    computation.advance(len(graph.nodes), keep, watch)
    logits = computation.values[OUTPUT]
    if logits.shape != (len(rows), len(LABELS)):
        raise DataError(f"the graph gives logits {list(logits.shape)} for {len(rows)} rows. {AGAIN}")
    return logits


def _compute(
    graph: Float16Graph, node: Node, values: dict[str, Tensor], wide: set[str], kept: bool, saturate: bool
) -> EmulationResult:
    inputs = tuple(values[name] for name in node.inputs)
    lost = 0
    rounds = not kept and any(name in wide for name in node.inputs)
    if rounds and not node.moves:
        entered = [_enter(graph, name, values[name], wide, saturate) for name in node.inputs]
        inputs, lost = tuple(x for x, _ in entered), sum(count for _, count in entered)
    raw = _OPERATIONS[node.op](node, *inputs)
    if not raw.is_floating_point() or (node.moves and not kept and not rounds):
        return EmulationResult(inputs, raw, raw, 0.0, 0, kept)  # nothing can have changed
    largest = peak(raw)
    if kept:
        return EmulationResult(inputs, raw, raw, largest, 0, True)
    # A node that moves is rounded after it moved, which is the same, and less work for an embedding's table.
    lost += 0 if largest < OVERFLOW else overflows(raw)
    return EmulationResult(inputs, raw, rounded(raw, saturate), largest, lost, False)


def _enter(graph: Float16Graph, name: str, x: Tensor, wide: set[str], saturate: bool) -> tuple[Tensor, int]:
    """An input as a node that is not kept gets it, and how many of its values overflow on the way."""
    if name not in wide:
        return x, 0
    if name in graph.narrow and not (saturate and graph.narrow[name][1]):
        return graph.narrow[name]
    return rounded(x, saturate), overflows(x)


def overflows(x: Tensor) -> int:
    """How many finite values become infinite in float16."""
    if peak(x) < OVERFLOW:
        return 0
    return int((x.isfinite() & (x.abs() >= OVERFLOW)).sum())


def _gather(node: Node, data: Tensor, indices: Tensor) -> Tensor:
    axis = int(node.attributes.get("axis", 0)) % data.dim()
    taken = torch.index_select(data, axis, indices.reshape(-1).long())
    return taken.reshape(*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])


def _gather_elements(node: Node, data: Tensor, indices: Tensor) -> Tensor:
    axis = int(node.attributes.get("axis", 0)) % data.dim()
    return torch.gather(data, axis, torch.where(indices < 0, indices + data.shape[axis], indices).long())


def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def _slice(node: Node, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor, steps: Tensor | None = None) -> Tensor:
    cut = [slice(None)] * x.dim()
    strides = [1] * len(axes) if steps is None else steps.tolist()
    for start, end, axis, stride in zip(starts.tolist(), ends.tolist(), axes.tolist(), strides, strict=True):
        cut[axis] = slice(start, end, stride)
    return x[tuple(cut)]


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    read = node.attributes.get
    a, b = (a.t() if read("transA", 0) else a), (b.t() if read("transB", 0) else b)
    return torch.addmm(c, a, b, beta=read("beta", 1.0), alpha=read("alpha", 1.0))


def _softmax(node: Node, x: Tensor) -> Tensor:
    """Opset 12: over all axes from `axis` on, together."""
    axis = int(node.attributes.get("axis", 1)) % x.dim()
    return torch.softmax(x.flatten(axis), axis).reshape(x.shape)


def _reduce(function: Callable[..., Tensor], node: Node, x: Tensor) -> Tensor:
    axes = node.attributes.get("axes") or range(x.dim())
    return function(x, dim=tuple(axes), keepdim=bool(node.attributes.get("keepdims", 1)))


def _convolution(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One-dimensional, padded alike on both sides: DeBERTa v2's."""
    read = node.attributes
    return functional.conv1d(x, weight, bias, read["strides"], read["pads"][:1], read["dilations"], read["group"])


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda node, *inputs: function(*inputs)


_MOVING = ("Expand", "Gather", "GatherElements", "Reshape", "Slice", "Transpose")
_NAMED_ALIKE = ("Add", "Div", "Erf", "MatMul", "Mul", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh")  # in torch
_OPERATIONS: dict[str, Callable[..., Tensor]] = {
    **{op: _plain(getattr(torch, op.lower())) for op in _NAMED_ALIKE},
    "Cast": _plain(lambda x: x.float()),
    "Conv": _convolution,
    "Expand": _plain(lambda x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Gemm": _gemm,
    "ReduceMean": functools.partial(_reduce, torch.mean),
    "ReduceSum": functools.partial(_reduce, torch.sum),
    "Reshape": _reshape,
    "Shape": _plain(lambda x: torch.tensor(x.shape)),
    "Slice": _slice,
    "Softmax": _softmax,
    "Transpose": lambda node, x: x.permute(*node.attributes["perm"]),
}
