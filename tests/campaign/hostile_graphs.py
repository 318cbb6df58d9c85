"""Hostile files, third part: ONNX graphs that are checked, compiled, compared and replayed."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.campaign.hostile_trees import ESCAPE, GRAPH, Case, Plant, being, both, holding, remove, sparse


def graph(nodes: Any = (), constants: Any = (), inputs: Any = None, opset: int = 12, dims: Any = ("n", 256)) -> bytes:
    """An ONNX file with the project's inputs and output, and these nodes."""
    kinds = inputs or [helper.make_tensor_value_info(n, TensorProto.INT32, dims) for n in ("input_ids", "input_mask")]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("n", 3))
    inner = helper.make_graph(list(nodes), "g", kinds, [output], list(constants))
    model = helper.make_model(inner, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    content: bytes = model.SerializeToString()
    return content


def _tensor(name: str, values: Any, kind: Any = np.int64) -> Any:
    return numpy_helper.from_array(np.array(values, kind), name)


def _raw(name: str, dims: list[int], kind: int = TensorProto.FLOAT, data: bytes = b"") -> Any:
    tensor = TensorProto(name=name, data_type=kind, raw_data=data)
    tensor.dims.extend(dims)
    return tensor


def _external(location: str) -> Any:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.dims.extend([4, 3])
    tensor.external_data.add(key="location", value=location)
    return tensor


def _loop() -> Any:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["s"], ["s2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("c", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, ("n", 3)),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("s2", TensorProto.FLOAT, ("n", 3)),
        ],
    )
    return [
        helper.make_node("Cast", ["input_ids"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["f", "zero", "three", "one"], ["t"]),
        helper.make_node("Loop", ["most", "true", "t"], ["logits"], body=body),
    ]


def graphs() -> dict[str, bytes | Plant]:
    sliced = [_tensor("zero", [0]), _tensor("three", [3]), _tensor("one", [1])]
    chain = [helper.make_node("Erf", [f"t{i}" if i else "input_ids"], [f"t{i + 1}"]) for i in range(100_000)]
    deep = helper.make_graph([helper.make_node("Foo", [], ["a"])], "g", [], [])
    for _ in range(90):
        deep = (
            helper.make_graph([helper.make_node("If", ["c"], ["a"], then_branch=deep, else_branch=deep)], "g", [], [])
            if deep.ByteSize() < 2_000_000
            else deep
        )
    huge = helper.make_node("ConstantOfShape", ["size"], ["logits"])
    return {
        "empty": b"",
        "text": ESCAPE.encode(),
        "noise": bytes(range(256)) * 100,
        "length without end": b"\x3a\xff\xff\xff\xff\x0f",
        "no nodes": graph(),
        "100,000 nodes": graph([*chain, helper.make_node("Foo", ["t100000"], ["logits"])]),
        "a circle": graph(
            [
                helper.make_node("Erf", ["b"], ["a"]),
                helper.make_node("Erf", ["a"], ["b"]),
                helper.make_node("Foo", ["b"], ["logits"]),
            ]
        ),
        "escapes": graph([helper.make_node("Foo", ["input_ids"], ["logits"], name=ESCAPE, domain=ESCAPE)]),
        "no utf-8": graph([helper.make_node("Foo", ["input_ids"], ["logits"], name="\u00e9")]).replace(
            b"\xc3\xa9", b"\xff\xfe"
        ),
        "branches": helper.make_model(deep).SerializeToString(),
        "a far opset": graph([helper.make_node("Foo", ["input_ids"], ["logits"])], opset=2**31 - 1),
        "a negative size": graph([helper.make_node("Foo", ["w"], ["logits"])], [_raw("w", [-1, 3])]),
        "a size without end": graph([helper.make_node("Foo", ["w"], ["logits"])], [_raw("w", [2**62, 2**62])]),
        "a size without data": graph([helper.make_node("Foo", ["w"], ["logits"])], [_raw("w", [2**20, 2**10])]),
        "many sizes": graph([helper.make_node("Foo", ["w"], ["logits"])], [_raw("w", [1] * 100_000)]),
        "an unknown type": graph([helper.make_node("Foo", ["w"], ["logits"])], [_raw("w", [1], 99, b"a")]),
        "a constant of a terabyte": graph([huge], [_tensor("size", [2**38, 3])]),
        "a range": graph(
            [helper.make_node("Range", ["z", "e", "o"], ["r"]), helper.make_node("Foo", ["r"], ["logits"])],
            [_tensor("z", 0), _tensor("e", 2**50), _tensor("o", 1)],
        ),
        "tiles": graph(
            [helper.make_node("Tile", ["zero", "size"], ["r"]), helper.make_node("Foo", ["r"], ["logits"])],
            [*sliced, _tensor("size", [2**45])],
        ),
        "a loop": graph(_loop(), [*sliced, _tensor("most", 2**60), _tensor("true", True, bool)]),
        "a function of others": graph([helper.make_node("Foo", ["input_ids"], ["logits"], domain="com.microsoft")]),
        "data outside": lambda place: place.tree.joinpath(GRAPH).write_bytes(
            graph([helper.make_node("Identity", ["w"], ["logits"])], [_external("../../../outside/canary.txt")])
        ),
        "data at an absolute path": lambda place: place.tree.joinpath(GRAPH).write_bytes(
            graph([helper.make_node("Identity", ["w"], ["logits"])], [_external(str(place.canary))])
        ),
        "data of a device": graph([helper.make_node("Identity", ["w"], ["logits"])], [_external("/dev/zero")]),
        "text tensors": graph(
            [helper.make_node("Identity", ["w"], ["logits"])],
            [numpy_helper.from_array(np.array(["\x1b[2J"], object), "w")],
        ),
        "a large batch": graph([helper.make_node("Foo", ["input_ids"], ["logits"])], dims=(2**62, 2**62)),
        "no batch": graph([helper.make_node("Foo", ["input_ids"], ["logits"])], dims=(-1, 0)),
        "a name without end": graph([helper.make_node("Foo", ["input_ids"], ["logits"], name="a" * 5_000_000)]),
    }


def cases() -> dict[str, Case]:
    table: dict[str, Case] = {}
    kinds = ("fifo", "zero", "random", "loop", "folder")
    plants = {key: content if callable(content) else holding(GRAPH, content, True) for key, content in graphs().items()}
    plants |= {f"is {kind}": being(GRAPH, kind) for kind in kinds} | {"3 GB": sparse(GRAPH, 3 << 30)}
    for key, plant in plants.items():
        table[f"lint-onnx: {key}"] = Case(f"lint-onnx --model {{tree}}/{GRAPH} --stats --severity note", plant)
        foreign = both(plant, lambda place: remove(place.tree / f"{GRAPH}.record.json"))
        command = "build-om --backend cpu --force"
        if not key.startswith("is ") and key not in ("3 GB", "100,000 nodes"):
            table[f"build-om: {key}"] = Case(command, foreign)
            compare = "compare onnx pytorch --a-file {tree}/" + GRAPH
            table[f"compare: {key}"] = Case(compare, plant)
        if key in (
            "a loop",
            "a constant of a terabyte",
            "data outside",
            "data at an absolute path",
            "tiles",
            "a circle",
        ):
            table[f"check-fp16: {key}"] = Case("check-fp16", foreign)
            table[f"replay: {key}"] = Case("verify --path {tree} --strict --replay 3", plant, foreign=True)
    return table
