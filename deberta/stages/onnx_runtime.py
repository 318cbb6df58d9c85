"""ONNX Runtime on the CPU: how every stage opens a model and runs it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from deberta.core import files
from deberta.core.contract import INPUTS, OUTPUT
from deberta.core.errors import DataError, MissingError

if TYPE_CHECKING:
    import onnx
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
    return np.asarray(run_to(session, [OUTPUT], ids, mask)[0])


def run_to(
    session: InferenceSession, outputs: Sequence[str], ids: npt.NDArray[np.int32], mask: npt.NDArray[np.int32]
) -> list[npt.NDArray[Any]]:
    """The tensors of these names, of `run`'s inputs. Raises DataError for a graph that cannot be run."""
    inputs = dict(zip(INPUTS, (ids, mask), strict=True))
    try:
        return list(session.run(outputs, inputs))
    except Exception as error:  # as above: another shape, or no memory for what the graph asks for
        raise DataError(f"the model cannot be run: {str(error)[:200]}. Run: invoke export-onnx --force") from error


def skeleton(model: Path) -> onnx.ModelProto:
    """An ONNX file without its graph's initializers, which are not read: they are nearly all of its bytes.

    Raises OSError, UnfitFile for a file of another form, and DecodeError for what is no ONNX.
    """
    import onnx

    with files.open_regular(model) as file:
        if form := files.form_of(file.read(64), os.fstat(file.fileno()).st_size):
            raise files.UnfitFile(errno.EINVAL, form, os.fspath(model))
        file.seek(0)
        try:
            parts = _without(file, os.fstat(file.fileno()).st_size, (_GRAPH, _INITIALIZER), iter(range(MOST_FIELDS)))
            return onnx.load_from_string(b"".join(parts))
        except DecodeError:  # damaged, or odd and yet valid: protobuf decides
            file.seek(0)
            return onnx.load(file, load_external_data=False)


# Numbers of public onnx.proto's fields: ModelProto.graph and GraphProto.initializer.
_GRAPH, _INITIALIZER = 7, 5
MOST_FIELDS = 200_000  # of the model and its graph, each weight one
_SIZES = {1: 8, 5: 4}  # bytes of protobuf's wire types of a fixed size


def _without(file: IO[bytes], end: int, path: Sequence[int], budget: Iterator[int]) -> Iterator[bytes]:
    """The bytes of a protobuf message up to `end`, but for the fields at this path of field numbers.

    The wire format is that of https://protobuf.dev/programming-guides/encoding; `budget` gives one item a field.
    """
    while (start := file.tell()) < end:
        if next(budget, None) is None:
            raise DecodeError("it has too many fields")
        tag = _number(file)
        number, kind = tag >> 3, tag & 7
        length = _number(file) if kind in (0, 2) else _SIZES.get(kind, -1)
        content = file.tell()
        after = content if kind == 0 else content + length
        if not content <= after <= end:
            raise DecodeError("a field is longer than its message, or of an unknown type")
        if (number, kind) != (path[0], 2):
            file.seek(start)
            yield file.read(after - start)
        elif len(path) > 1:
            inner = b"".join(_without(file, after, path[1:], budget))
            yield _written(tag) + _written(len(inner)) + inner
        file.seek(after)


def _number(file: IO[bytes]) -> int:
    """A whole number as protobuf writes it: seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise DecodeError("a number has no end")


def _written(value: int) -> bytes:
    """The same, written."""
    low = bytearray()
    while value > 127:
        low.append(value & 127 | 128)
        value >>= 7
    return bytes([*low, value])


def _refuse_loops(model: Path) -> None:
    """Raise DataError for a graph that may run for ever. What cannot be read is left to ONNX Runtime to name."""
    try:
        content = skeleton(model)
    except DecodeError:
        return
    nodes = [content.graph.node, *(function.node for function in content.functions)]
    if branches := sorted({node.op_type for group in nodes for node in group} & set(CONTROL_FLOW)):
        raise DataError(f"{model} has {', '.join(branches)}, which no DeBERTa needs. Run: invoke export-onnx --force")
