"""As much of an ONNX file as atc looks at: inputs, outputs, nodes and opsets.

Reads protobuf's wire format itself (https://protobuf.dev/programming-guides/encoding), because atc's stand-in runs
where the onnx package is not. Field numbers are those of the public onnx.proto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Tuple, Union

# TensorProto.DataType -> numpy's name, of the types that a model's input can have here.
DTYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}

Value = Union[int, memoryview]


@dataclass(frozen=True)
class Input:
    """`dims`: None for a dimension without a fixed size."""

    name: str
    dtype: str
    dims: Tuple[Optional[int], ...]


@dataclass(frozen=True)
class Node:
    name: str
    op: str
    domain: str


@dataclass(frozen=True)
class Model:
    """`opsets`: domain -> version; the standard domain is ''."""

    inputs: Tuple[Input, ...]
    outputs: int
    nodes: Tuple[Node, ...]
    opsets: Dict[str, int]


def read(content: bytes) -> Model:
    """Raises ValueError if this is not an ONNX model."""
    graph: Optional[memoryview] = None
    opsets: Dict[str, int] = {}
    for number, value in _fields(memoryview(content)):
        if number == 7:
            graph = _bytes(value)
        elif number == 8:
            opset = dict(_fields(_bytes(value)))
            opsets[_text(opset.get(1, memoryview(b"")))] = _integer(opset.get(2, 0))
    if graph is None:
        raise ValueError("there is no graph in it")
    inputs: List[Input] = []
    nodes: List[Node] = []
    constants = set()
    outputs = 0
    for number, value in _fields(graph):
        if number == 1:
            nodes.append(_node(_bytes(value)))
        elif number == 5:
            constants.add(_text(dict(_fields(_bytes(value))).get(8, memoryview(b""))))
        elif number == 11:
            inputs.append(_input(_bytes(value)))
        elif number == 12:
            outputs += 1
    # Old exporters list constants among the inputs too.
    return Model(tuple(i for i in inputs if i.name not in constants), outputs, tuple(nodes), opsets)


def _node(content: memoryview) -> Node:
    fields = {number: value for number, value in _fields(content) if number in (3, 4, 7)}
    name, op, domain = (_text(fields.get(number, memoryview(b""))) for number in (3, 4, 7))
    return Node(name, op, domain)


def _input(content: memoryview) -> Input:
    fields = dict(_fields(content))
    tensor = dict(_fields(_bytes(dict(_fields(_bytes(fields[2])))[1]))) if 2 in fields else {}
    dims: List[Optional[int]] = []
    for _, dim in _fields(_bytes(tensor.get(2, memoryview(b"")))):
        size = dict(_fields(_bytes(dim))).get(1)
        dims.append(None if size is None else _integer(size))
    dtype = DTYPES.get(_integer(tensor.get(1, 0)))
    if dtype is None:
        raise ValueError(f"input {_text(fields.get(1, memoryview(b'')))} has a type that is not known")
    return Input(_text(fields.get(1, memoryview(b""))), dtype, tuple(dims))


def _fields(content: memoryview) -> Iterator[Tuple[int, Value]]:
    at = 0
    while at < len(content):
        tag, at = _varint(content, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(content, at)
            yield number, value
        elif kind in (1, 2, 5):
            size = {1: 8, 5: 4}.get(kind)
            if size is None:
                size, at = _varint(content, at)
            if number == 0 or at + size > len(content):
                raise ValueError("it is cut off, or is something else")
            yield number, content[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {kind} is not known")


def _varint(content: memoryview, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise ValueError("it is cut off, or is something else")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message was expected")
    return value


def _integer(value: Value) -> int:
    if not isinstance(value, int):
        raise ValueError("a message where a number was expected")
    return value - (1 << 64) if value >> 63 else value


def _text(value: Value) -> str:
    return bytes(_bytes(value)).decode("utf-8")
