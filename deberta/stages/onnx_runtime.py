"""ONNX Runtime on the CPU: how every stage opens a model and runs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deberta.core import files
from deberta.core.contract import INPUTS, OUTPUT
from deberta.core.errors import DataError, MissingError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

CONTROL_FLOW = ("If", "Loop", "Scan")  # operations that hold graphs of their own


def open_session(model: Path, threads: int, batch_size: int = 0) -> InferenceSession:
    """Load a model with all of ONNX Runtime's graph optimizations, its default; warnings are not shown.

    `batch_size` above 0 fixes the dimension named "batch". Raises MissingError, and DataError for a file that ONNX
    Runtime does not take.
    """
    if not model.is_file():
        raise MissingError(f"{model} is missing. Run: invoke export-onnx")
    import onnxruntime  # slow to import, so after the cheap check

    _refuse_loops(model)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if batch_size:
        options.add_free_dimension_override_by_name("batch", batch_size)
    try:
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes have no public common base
        raise DataError(f"{model} cannot be run: {str(error)[:200]}. Run: invoke export-onnx --force") from error


def run(session: InferenceSession, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """The logits, float32 [rows, 3], of token ids and masks, int32 [rows, length] each."""
    inputs = dict(zip(INPUTS, (ids, mask), strict=True))
    try:
        return np.asarray(session.run([OUTPUT], inputs)[0])
    except Exception as error:  # as above: another shape, or no memory for what the graph asks for
        raise DataError(f"the model cannot be run: {str(error)[:200]}. Run: invoke export-onnx --force") from error


def _refuse_loops(model: Path) -> None:
    """Raise DataError for a graph that may run for ever. What cannot be read is left to ONNX Runtime to name."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        with files.open_regular(model) as file:
            content = onnx.load(file, load_external_data=False)
    except DecodeError:
        return
    nodes = [content.graph.node, *(function.node for function in content.functions)]
    if branches := sorted({node.op_type for group in nodes for node in group} & set(CONTROL_FLOW)):
        raise DataError(f"{model} has {', '.join(branches)}, which no DeBERTa needs. Run: invoke export-onnx --force")
