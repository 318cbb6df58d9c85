"""bench: the matrix-multiply floor, a graph of the model's matrix products alone, in ONNX.

The products are those of our graph, in its shapes: the relative scores of 2 * L distances, and only the first position
in the last layer. Between them stand reshapes, which move nothing, in place of what the model does there. All layers
read the same input, so that no number grows, and of what nothing reads a corner goes to the output: an engine has to
compute the product, and nothing is spent on passing it on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from deberta.core.contract import ONNX_IR_VERSION, ONNX_OPSET, SEQUENCE_LENGTH
from deberta.stages.model.config import ModelConfig

INPUTS = ("x", "first")  # float32 [batch_size * length, E] and [batch_size, E]
LONGEST = SEQUENCE_LENGTH
WEIGHTS = "floor.weights"


def write(config: ModelConfig, batch_size: int, length: int, path: Path) -> None:
    """Write the graph for one batch size and length, 0 for any up to LONGEST.

    The random weights are shared by all graphs that lie beside it.
    """
    graph = _Graph(config, batch_size, length)
    last = config.num_hidden_layers - 1
    for index in range(last + 1):
        graph.layer(index, first_only=index == last and not (index == 0 and config.conv_kernel_size))
    pooled = graph.product("first", graph.weight("pooler", (config.hidden_size, config.hidden_size)))
    graph.corner(graph.product(pooled, graph.weight("classifier", (config.hidden_size, 3))), 2)
    graph.save(path)


def inputs(batch_size: int, length: int, hidden: int) -> dict[str, npt.NDArray[np.float32]]:
    draw = np.random.default_rng(0)
    sizes = zip(INPUTS, (batch_size * length, batch_size), strict=True)
    return {name: draw.standard_normal((rows, hidden), np.float32) for name, rows in sizes}


def products(path: Path) -> tuple[int, int]:
    """The matrix products in an ONNX file of fixed shapes, and their multiplications and additions in all."""
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False), data_prop=True)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        shapes[value.name] = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
    count = operations = 0
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm"):
            count += 1
            operations += 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return count, operations


class _Graph:
    def __init__(self, config: ModelConfig, batch_size: int, length: int) -> None:
        self.config, self.batch_size, self.length = config, batch_size, length
        self.nodes: list[onnx.NodeProto] = []
        self.small: list[onnx.TensorProto] = []
        self.large: dict[str, tuple[int, ...]] = {}
        self.corners: list[str] = []
        self.bounds: list[str] = []  # of any length: the length, and where the tables are cut

    def weight(self, name: str, shape: tuple[int, ...]) -> str:
        """A matrix in the shared file."""
        self.large[name] = shape
        return name

    def constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        if name not in {tensor.name for tensor in self.small}:
            self.small.append(numpy_helper.from_array(values, name))
        return name

    def node(self, kind: str, inputs: Sequence[str]) -> str:
        output = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output]))
        return output

    def product(self, left: str, right: str) -> str:
        return self.node("MatMul", (left, right))

    def reshape(self, value: str, shape: tuple[int, ...]) -> str:
        name = "shape_" + "_".join(map(str, shape))
        return self.node("Reshape", (value, self.constant(name, np.array(shape, np.int64))))

    def corner(self, value: str, axes: int) -> None:
        """One element of `value`, to the output."""
        zeros = self.constant(f"zeros_{axes}", np.zeros(axes, np.int64))
        ones = self.constant(f"ones_{axes}", np.ones(axes, np.int64))
        element = self.node("Slice", (value, zeros, ones, self.constant(f"axes_{axes}", np.arange(axes))))
        self.corners.append(self.reshape(element, (1,)))

    def cut(self, table: str, first_only: bool) -> str:
        """What of a table for LONGEST tokens the input's number of tokens needs."""
        if self.length:
            return table
        if not self.bounds:
            tokens = self.node(
                "Slice", (self.node("Shape", ("x",)), *(self.constant(f"c{n}", np.array([n])) for n in (0, 1)))
            )
            length = self.node("Div", (tokens, self.constant("batch", np.array([self.batch_size]))))
            longest = self.constant("longest", np.array([LONGEST]))
            self.bounds = [length, self.node("Sub", (longest, length)), self.node("Add", (longest, length))]
        length, begin, end = self.bounds
        start, stop = (self.constant("c0", np.array([0])), length) if first_only else (begin, end)
        return self.node("Slice", (table, start, stop, self.constant("c3", np.array([3]))))

    def layer(self, index: int, first_only: bool) -> None:
        config, batch = self.config, self.batch_size
        hidden, inner = config.hidden_size, config.all_head_size
        heads, size = config.num_attention_heads, config.attention_head_size

        def linear(value: str, name: str, rows: int, columns: int) -> str:
            return self.product(value, self.weight(f"{index}.{name}", (rows, columns)))

        def table(name: str) -> str:
            """[1, H, D, 2 * length], or [1, H, D, length] for the first position alone."""
            columns = (1 if first_only else 2) * (self.length or LONGEST)
            values = np.random.default_rng(index).standard_normal((1, heads, size, columns), np.float32)
            return self.cut(self.constant(f"{index}.{name}", values / math.sqrt(size)), first_only)

        x = "first" if first_only else "x"
        query = self.reshape(linear(x, "query", hidden, inner), (batch, heads, 1 if first_only else -1, size))
        key = linear("x", "key", hidden, inner)
        value = self.reshape(linear("x", "value", hidden, inner), (batch, heads, -1, size))
        scores = self.product(query, self.reshape(key, (batch, heads, size, -1)))
        if config.relative_attention and "c2p" in config.pos_att_type:
            self.corner(self.product(query, table("c2p")), 4)
        # For one position p2c is no product of matrices: each key meets one distance only.
        if config.relative_attention and "p2c" in config.pos_att_type and not first_only:
            self.corner(self.product(self.reshape(key, (batch, heads, -1, size)), table("p2c")), 4)
        context = self.reshape(self.product(scores, value), (-1, inner))
        attended = linear(context, "output", inner, hidden)
        wide = linear(attended, "wide", hidden, config.intermediate_size)
        self.corner(linear(wide, "narrow", config.intermediate_size, hidden), 2)

    def save(self, path: Path) -> None:
        shared = path.with_name(WEIGHTS)
        if not shared.exists():
            draw = np.random.default_rng(0)
            with open(shared, "wb") as file:
                for shape in self.large.values():
                    file.write((draw.standard_normal(shape, np.float32) / math.sqrt(shape[0])).tobytes())
        offset = 0
        outside = []
        for name, shape in self.large.items():
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
            size = math.prod(shape) * 4
            for key, value in (("location", WEIGHTS), ("offset", offset), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            tensor.data_location = TensorProto.EXTERNAL
            outside.append(tensor)
            offset += size
        self.nodes.append(helper.make_node("Concat", self.corners, ["corners"], axis=0))
        graph = helper.make_graph(
            self.nodes,
            "floor",
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, self.config.hidden_size])
                for name, rows in zip(INPUTS, (self.batch_size * self.length or "tokens", self.batch_size), strict=True)
            ],
            [helper.make_tensor_value_info("corners", TensorProto.FLOAT, [len(self.corners)])],
            [*self.small, *outside],
        )
        opset = [helper.make_opsetid("", ONNX_OPSET)]
        onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=ONNX_IR_VERSION), str(path))
