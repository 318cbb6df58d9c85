"""How long lint-onnx --stats takes on a graph of many nodes: wall and CPU seconds of the stage, for a chosen size.

python -m benchmarks.large_graph --nodes 100000 (in the stages' environment)
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deberta.core.contract import INPUTS, LABELS, ONNX_IR_VERSION, ONNX_OPSET, OUTPUT, SEQUENCE_LENGTH
from deberta.core.errors import run_stage
from deberta.stages.lint import lint_onnx

_WIDTH = 64


def write(path: Path, nodes: int) -> int:
    """An ONNX file of at most `nodes` nodes in blocks of seven, with the contract's inputs and output.

    A block: product, reshape by a constant of its own, two transposes, softmax, sum. Returns the number of nodes.
    """
    weights = {"first": (SEQUENCE_LENGTH, _WIDTH), "weight": (_WIDTH, _WIDTH), "last": (_WIDTH, len(LABELS))}
    graph = [
        helper.make_node("Cast", [INPUTS[0]], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["cast", "first"], ["x"]),
    ]
    x = "x"
    for block in range((nodes - 3) // 7):
        names = [f"{kind}_{block}" for kind in ("shape", "product", "view", "turned", "back", "soft", "sum")]
        shape, product, view, turned, back, soft, total = names
        value = numpy_helper.from_array(np.array([-1, _WIDTH], np.int64))
        graph += [
            helper.make_node("Constant", [], [shape], value=value),
            helper.make_node("MatMul", [x, "weight"], [product]),
            helper.make_node("Reshape", [product, shape], [view]),
            helper.make_node("Transpose", [view], [turned], perm=[1, 0]),
            helper.make_node("Transpose", [turned], [back], perm=[1, 0]),
            helper.make_node("Softmax", [back], [soft], axis=-1),
            helper.make_node("Add", [soft, x], [total]),
        ]
        x = total
    graph.append(helper.make_node("MatMul", [x, "last"], [OUTPUT]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", SEQUENCE_LENGTH]) for name in INPUTS]
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(LABELS)])
    constants = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    model = helper.make_model(
        helper.make_graph(graph, "large", inputs, [output], constants),
        opset_imports=[helper.make_opsetid("", ONNX_OPSET)],
        ir_version=ONNX_IR_VERSION,
    )
    onnx.save(model, str(path))
    return len(graph)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_graph", description=__doc__)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--batch-sizes", default="8", help="of lint-onnx")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.onnx"
        count = write(path, options.nodes)
        wall, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            shape = ["--sequence-length", str(SEQUENCE_LENGTH), "--batch-sizes", options.batch_sizes]
            lint_onnx.main(["--model", str(path), *shape, "--stats"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{count} nodes, batch sizes {options.batch_sizes}: {wall:.2f} s, CPU {cpu:.2f} s", flush=True)


if __name__ == "__main__":
    sys.exit(run_stage(main))
