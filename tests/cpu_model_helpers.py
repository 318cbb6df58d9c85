"""A model of the contract's inputs and output that is small enough to compile in every test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deberta.host.plan.plan import STAGES

REPOSITORY = Path(__file__).parents[1]
VOCABULARY = 50
LENGTH = 256


def small_onnx(
    path: Path, *, seed: int = 0, names: Sequence[str] = ("input_ids", "input_mask"), batch: str | int = "batch"
) -> Path:
    """Write an ONNX of two int32 inputs [batch, 256] and float32 logits [batch, 3], which depend on both."""
    draw = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {
        "table": draw.normal(size=(VOCABULARY, 16)).astype(np.float32),
        "mix": (draw.normal(size=(LENGTH, LENGTH)) / 16).astype(np.float32),
        "head": draw.normal(size=(16, 3)).astype(np.float32),
        "column": np.array([-1, LENGTH, 1], np.int64),
    }
    ids, mask = names
    nodes = [
        helper.make_node("Gather", ["table", ids], ["rows"]),
        helper.make_node("Cast", [mask], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["mask", "column"], ["mask_column"]),
        helper.make_node("Mul", ["rows", "mask_column"], ["masked"]),
        helper.make_node("MatMul", ["mix", "masked"], ["mixed"]),
        helper.make_node("Tanh", ["mixed"], ["bent"]),
        helper.make_node("ReduceMean", ["bent"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.INT32, [batch, LENGTH]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), path)
    return path


def any_length_onnx(path: Path) -> Path:
    """Write an ONNX of two int32 inputs [batch, length]: the mean of what the tokens look up, where the mask is 1."""
    draw = np.random.default_rng(0)
    constants: dict[str, np.ndarray] = {
        "table": draw.normal(size=(VOCABULARY, 16)).astype(np.float32),
        "head": draw.normal(size=(16, 3)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["input_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask"], ["mask_column"], axes=[2]),
        helper.make_node("Mul", ["rows", "mask_column"], ["masked"]),
        helper.make_node("ReduceMean", ["masked"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"])
        for name in ("input_ids", "input_mask")
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "any", inputs, [logits], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), path)
    return path


def write_bins(folder: Path, batches: int, batch_size: int, length: int = LENGTH) -> tuple[np.ndarray, np.ndarray]:
    """Write both folders' `input_<i>.bin`; return ids and mask, int32 [batches, batch_size, length]."""
    draw = np.random.default_rng(1)
    ids = draw.integers(0, VOCABULARY, (batches, batch_size, length), dtype=np.int32)
    lengths = draw.integers(0, length + 1, (batches, batch_size, 1))
    mask = (np.arange(length) < lengths).astype(np.int32)
    for name, values in (("input_ids", ids), ("input_mask", mask)):
        (folder / name).mkdir(parents=True)
        for index in range(batches):
            (folder / name / f"input_{index}.bin").write_bytes(values[index].tobytes())
    return ids, mask


def stage_process(stage: str, arguments: Sequence[object], folder: Path) -> subprocess.Popen[str]:
    """Start `python -m deberta.stages.<stage>` in `folder`, as the host does."""
    return subprocess.Popen(
        [sys.executable, "-m", STAGES[stage], *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
