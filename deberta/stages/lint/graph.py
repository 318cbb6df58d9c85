"""An ONNX file for lint-onnx: nodes, constants, and every tensor's type and shape at a fixed batch size.

Weights are read once and dropped, so that the shape inference of each batch size copies a small model.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deberta.core import files
from deberta.core.contract import ONNX_MAX_BYTES, has_text_names
from deberta.core.errors import DataError, MissingError
from deberta.stages.lint.rules import VIEWS

MOST_NODES = 100_000  # the guide's form of 12 layers has 2,537 (docs/benchmarks.md)
_SMALL = 1024  # elements up to which a constant keeps its values, for shapes, axes and single numbers
_WHOLE = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
_ITEM_BYTES = {dtype: helper.tensor_dtype_to_np_dtype(dtype).itemsize for dtype in TensorProto.DataType.values()[1:]}

Array = npt.NDArray[Any]


@functools.lru_cache(maxsize=4096)
def _product(shape: tuple[int | None, ...] | None) -> int | None:
    """Elements of a shape, None where unknown. A large graph asks for few shapes, a million times."""
    if shape is None or None in shape:
        return None
    return math.prod(size for size in shape if size is not None)


class Tensor(NamedTuple):
    """Type and shape; an unknown dimension is None, and so is a shape of unknown rank."""

    dtype: int
    shape: tuple[int | None, ...] | None

    @property
    def elements(self) -> int | None:
        return _product(self.shape)

    def bytes(self, float_bytes: int | None = None) -> int:
        """Bytes in memory, 0 for an unknown type or shape; `float_bytes`: of one float, if not its type's own."""
        of_one = _ITEM_BYTES.get(self.dtype, 0)
        return (self.elements or 0) * (float_bytes if float_bytes and self.dtype in FLOATS else of_one)


class Cost(NamedTuple):
    """What a node moves in one inference."""

    elements: int
    bytes: int


@dataclass(frozen=True)
class Constant:
    """An initializer or a Constant node's value. Of a large one only the counts below are kept."""

    name: str
    tensor: Tensor
    external: bool
    values: Array | None  # None: a large one
    lowest: float = 0.0  # of the finite values
    highest: float = 0.0
    not_finite: int = 0  # infinite and NaN values

    @classmethod
    def of(cls, name: str, tensor: TensorProto) -> Constant:
        described = Tensor(tensor.data_type, tuple(tensor.dims))
        external = tensor.data_location == TensorProto.EXTERNAL
        small = (described.elements or 0) <= _SMALL
        if external or tensor.data_type == TensorProto.STRING:
            return cls(name, described, external, np.zeros(0) if small and not external else None)
        values = numpy_helper.to_array(tensor)
        kept = values.copy() if small else None
        if tensor.data_type in (TensorProto.BFLOAT16, TensorProto.FLOAT16):
            values = values.astype(np.float32)
        if not np.issubdtype(values.dtype, np.number):
            return cls(name, described, external, kept)
        not_finite, numbers = 0, values
        if tensor.data_type in FLOATS:
            finite = np.isfinite(values)
            not_finite = values.size - int(finite.sum())
            numbers = values[finite] if not_finite else values
        low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
        return cls(name, described, external, kept, low, high, not_finite)

    @property
    def largest(self) -> float:
        """The largest finite magnitude."""
        return max(abs(self.lowest), abs(self.highest))


@dataclass(frozen=True)
class Graph:
    path: Path
    model: onnx.ModelProto  # without the large constants
    nodes: tuple[NodeProto, ...]  # those of subgraphs too
    constants: dict[str, Constant]
    producers: dict[str, NodeProto]
    consumers: dict[str, list[NodeProto]]
    inputs: tuple[str, ...]  # the graph's inputs without the initializers that old files list there
    _inferred: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _folded: dict[int, set[str]] = field(default_factory=dict)

    def tensors(self, batch: int) -> dict[str, Tensor]:
        """Every tensor's type and shape with the batch fixed."""
        if batch not in self._inferred:
            self._inferred[batch] = _infer(self, batch)
        return self._inferred[batch]

    def folded(self, batch: int) -> set[str]:
        """Names of all tensors that are constant once the batch is fixed, so that ATC computes them."""
        if batch not in self._folded:
            constant, tensors = set(self.constants), self.tensors(batch)
            for node in self.model.graph.node:  # in topological order
                if _of_known_shape(node, tensors) or (node.input and constant.issuperset(filter(None, node.input))):
                    constant.update(node.output)
            self._folded[batch] = constant
        return self._folded[batch]

    def folded_bytes(self, batch: int) -> int:
        """Bytes of the constants that are left once all that is constant at this batch size is computed."""
        tensors, constant = self.tensors(batch), self.folded(batch)
        read = {name for node in self.nodes if not constant.issuperset(node.output) for name in node.input}
        read |= {value.name for value in self.model.graph.output}
        return sum(tensors[name].bytes() for name in read & constant if name in tensors)

    def declared(self, name: str) -> list[str | int]:
        """The dimensions of an input or output in the file: numbers, names, or ? for neither."""
        for value in (*self.model.graph.input, *self.model.graph.output):
            if value.name == name:
                dims = value.type.tensor_type.shape.dim
                return [d.dim_value if d.dim_value > 0 else d.dim_param or "?" for d in dims]
        return []

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the file itself fixes, or None."""
        first = [shape[0] for shape in map(self.declared, self.inputs) if shape]
        numbers = [size for size in first if isinstance(size, int)]
        return numbers[0] if first and len(numbers) == len(first) else None


@contextlib.contextmanager
def broken_is_data_error(path: Path) -> Iterator[None]:
    """Protobuf takes any graph: nodes without inputs, unknown types. One that cannot be judged is a DataError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, files.UnfitFile):
            raise
        raise DataError(f"{path} is no valid ONNX: {type(error).__name__}: {error}") from error


def load_graph(path: Path) -> Graph:
    """Read a file of at most ONNX_MAX_BYTES. Raises MissingError, and DataError if it is no ONNX."""
    try:
        with files.open_regular(path) as file:
            model = onnx.load(file, load_external_data=False)
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Run: invoke export-onnx") from None
    except files.UnfitFile as error:
        raise DataError(f"{path} {error}, so it is no ONNX file") from None
    except DecodeError as error:
        raise DataError(f"{path} is no ONNX file ({error})") from None
    if (count := len(model.graph.node)) > MOST_NODES:
        raise DataError(f"{path} has {count} nodes, and more than {MOST_NODES} are not judged")
    if not has_text_names(model.graph):
        raise DataError(f"{path} is no valid ONNX: a name in it is not UTF-8")
    if not model.graph.node or not model.opset_import or not model.ir_version:
        raise DataError(f"{path} is no ONNX file: it has no nodes, no opset or no IR version")
    constants = {constant.name: constant for constant in _take_constants(model)}
    small = onnx.ModelProto()
    small.CopyFrom(model)
    del model  # protobuf frees what was deleted from a message with the message
    nodes = tuple(_walk(small.graph))
    consumers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.input):
            consumers.setdefault(name, []).append(node)
    producers = {name: node for node in nodes for name in node.output if name}
    inputs = tuple(value.name for value in small.graph.input if value.name not in constants)
    _check_order(path, small, constants)
    return Graph(path, small, nodes, constants, producers, consumers, inputs)


def _check_order(path: Path, model: onnx.ModelProto, constants: Collection[str]) -> None:
    """Raise DataError unless each node reads what stands before it, which leaves no circle, and no name is made twice.

    Nodes of subgraphs, which see the names around them too, are left out.
    """
    known = {*constants, *(value.name for value in model.graph.input)}
    known |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    for node in model.graph.node:
        unknown = next((name for name in node.input if name and name not in known), None)
        if unknown is not None:
            raise DataError(f"{path} is no valid ONNX: {name_of(node)} reads {unknown}, which nothing before it makes")
        outputs = [name for name in node.output if name and node.op_type != "Constant"]
        if twice := known.intersection(outputs):
            raise DataError(f"{path} is no valid ONNX: {min(twice)} is made twice")
        known.update(node.output)


def too_large(path: Path) -> bool:
    """Whether the file is beyond what protobuf reads, so that `load_graph` cannot be called."""
    return path.is_file() and path.stat().st_size > ONNX_MAX_BYTES


def name_of(node: NodeProto) -> str:
    return node.name or (node.output[0] if node.output else node.op_type)


def attribute(node: NodeProto, name: str) -> object:
    """An attribute's value, or None."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)


def node_cost(node: NodeProto, tensors: dict[str, Tensor], float_bytes: int | None = None) -> Cost:
    """Elements that a node writes, and bytes that it reads and writes in one inference.

    A gather reads its indices and as much data as it writes; a slice reads what it writes; a view moves nothing.
    """
    operator = node.op_type
    outputs = [tensors[name] for name in node.output if name in tensors]
    elements = sum(tensor.elements or 0 for tensor in outputs)
    if operator in VIEWS:
        return Cost(0 if operator == "Constant" else elements, 0)
    written = sum(tensor.bytes(float_bytes) for tensor in outputs)
    if operator == "Slice":
        return Cost(elements, 2 * written)
    inputs = [tensors[name] for name in node.input if name in tensors]
    if operator in ("Gather", "GatherElements", "GatherND"):
        return Cost(elements, 2 * written + sum(tensor.bytes(float_bytes) for tensor in inputs[1:2]))
    return Cost(elements, written + sum(tensor.bytes(float_bytes) for tensor in inputs))


def _walk(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of subgraphs after the node that has them."""
    for node in graph.node:
        yield node
        for attr in node.attribute:
            for subgraph in (attr.g, *attr.graphs) if attr.type in (attr.GRAPH, attr.GRAPHS) else ():
                yield from _walk(subgraph)


def _take_constants(model: onnx.ModelProto) -> Iterator[Constant]:
    """All constants of the main graph; large ones leave the model and become typed inputs of the same name."""
    graph = model.graph
    listed = {value.name for value in graph.input}
    kept = []
    for tensor in graph.initializer:
        constant = Constant.of(tensor.name, tensor)
        if constant.values is not None:
            kept.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(_typed(constant))
        yield constant
    kept = [TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]  # they die with the list
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        value = _value(node)
        if value is None:
            continue
        constant = Constant.of(node.output[0], value)
        if constant.values is None:
            graph.input.append(_typed(constant))
            del graph.node[index]
        yield constant


def _value(node: NodeProto) -> TensorProto | None:
    """The value of a Constant node; None for any other node, and for strings and sparse tensors."""
    if node.op_type != "Constant" or len(node.attribute) != 1:
        return None
    name, value = node.attribute[0].name, helper.get_attribute_value(node.attribute[0])
    if name in ("value_float", "value_floats", "value_int", "value_ints"):
        return numpy_helper.from_array(np.asarray(value, dtype=np.float32 if "float" in name else np.int64))
    return value if name == "value" else None


def _typed(constant: Constant) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(constant.name, constant.tensor.dtype, constant.tensor.shape)


def _infer(graph: Graph, batch: int) -> dict[str, Tensor]:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for value in model.graph.input:
        if value.name in graph.inputs and value.type.tensor_type.shape.dim:
            first = value.type.tensor_type.shape.dim[0]
            if first.dim_value <= 0:
                first.dim_value = batch
    del model.graph.value_info[:]  # inferred with a dynamic batch
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    known = {c.name: c.values for c in graph.constants.values() if c.values is not None and c.values.size}
    while True:
        tensors = _infer_once(graph.path, model)
        computed = _compute_shapes(model, tensors, known)
        if not computed:
            return {**{name: constant.tensor for name, constant in graph.constants.items()}, **tensors}
        known |= computed
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in computed.items())
        for index in reversed(range(len(model.graph.node))):
            if computed.keys() >= set(model.graph.node[index].output):
                del model.graph.node[index]


def _infer_once(path: Path, model: onnx.ModelProto) -> dict[str, Tensor]:
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
        raise DataError(f"{path} is no valid ONNX: {error}") from None
    tensors = {tensor.name: Tensor(tensor.data_type, tuple(tensor.dims)) for tensor in model.graph.initializer}
    described: dict[bytes, Tensor] = {}  # a large graph has few types, of many tensors
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        if value.type.HasField("tensor_type"):
            kind = value.type.tensor_type.SerializeToString()
            if kind not in described:
                described[kind] = _described(value.type.tensor_type)
            tensors[value.name] = described[kind]
    return tensors


def _compute_shapes(model: onnx.ModelProto, tensors: dict[str, Tensor], known: dict[str, Array]) -> dict[str, Array]:
    """Values of the small integer tensors that follow from shapes, which ONNX's inference of opset 12 leaves out."""
    computed: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type == "Constant" or len(node.output) != 1:
            continue
        if _of_known_shape(node, tensors):
            sizes = np.array(tensors[node.input[0]].shape, dtype=np.int64)
            computed[node.output[0]] = sizes if node.op_type == "Shape" else np.array(sizes.prod(), dtype=np.int64)
            continue
        inputs = {name: computed[name] if name in computed else known.get(name) for name in node.input if name}
        small = {name: value for name, value in inputs.items() if value is not None}
        result = tensors.get(node.output[0])
        whole = result is not None and result.dtype in _WHOLE and (result.elements is None or result.elements <= _SMALL)
        if whole and small and len(small) == len(inputs):
            value = _run(model, node, small)
            if value is not None and value.size <= _SMALL:
                computed[node.output[0]] = value
    return computed


def _run(model: onnx.ModelProto, node: NodeProto, inputs: dict[str, Array]) -> Array | None:
    """The value that ONNX's reference implementation gives for one node, or None where it has none."""
    infos = [helper.make_value_info(name, onnx.TypeProto()) for name in (*inputs, node.output[0])]
    alone = helper.make_graph([node], "one", infos[:-1], infos[-1:])
    try:
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        (value,) = ReferenceEvaluator(alone, opsets=opsets).run(None, dict(inputs))
    except Exception:  # the shape stays unknown, which is a finding of its own
        return None
    return np.asarray(value)


def _of_known_shape(node: NodeProto, tensors: dict[str, Tensor]) -> bool:
    of_shape = node.op_type in ("Shape", "Size") and node.input[0] in tensors
    return of_shape and tensors[node.input[0]].elements is not None


def _described(tensor: onnx.TypeProto.Tensor) -> Tensor:
    if not tensor.HasField("shape"):
        return Tensor(tensor.elem_type, None)
    sizes = (d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim)
    return Tensor(tensor.elem_type, tuple(sizes))
