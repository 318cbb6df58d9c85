"""A model that atc's stand-in packed, run on the CPU in one onnxruntime session, with the runtime's own size check.

The check is the one of the public GE source 1.8: it refuses only an input that is more than 64 bytes too small, takes
larger ones, and looks at nothing in a model with gears. What is missing of a buffer reads as zeros here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence, Tuple

from . import om

MARGIN = 64
ROW = 256 * 4  # bytes of a row's ids, or of its mask
NOT_AN_INPUT = 145000  # ACL_ERROR_GE_PARAM_INVALID


class LoadError(Exception):
    """The file is no model."""


class ExecuteError(Exception):
    """The runtime refused to run; the text is what it says of it."""


@dataclass
class Model:
    """`session`: of onnxruntime. `gear`: the one chosen by --dymDims. `sizes`: of the output buffers under gears."""

    packed: om.Om
    session: Any
    gear: Optional[Tuple[int, ...]] = None
    sizes: Tuple[int, ...] = ()

    def shapes(self) -> List[Tuple[int, ...]]:
        return (
            [tensor.shape for tensor in self.packed.inputs]
            if self.gear is None
            else om.shapes_of(self.packed, self.gear)
        )

    def zeros(self) -> List[bytes]:
        """What file mode runs without --input."""
        return [bytes(_bytes(tensor.dtype, tensor.shape)) for tensor in self.packed.inputs]

    def execute(self, buffers: Sequence[bytes]) -> List[Any]:
        """The outputs as numpy arrays. Raises ExecuteError."""
        inputs = self.packed.inputs
        if len(buffers) != len(inputs):
            raise ExecuteError(f"the model has {len(inputs)} inputs, {len(buffers)} were given")
        for index, (tensor, buffer) in enumerate(zip(inputs, buffers)):
            size = _bytes(tensor.dtype, tensor.shape)
            if self.gear is None and len(buffer) + MARGIN < size:
                raise ExecuteError(f"input {index} has {len(buffer)} bytes, the model's {size} ({NOT_AN_INPUT})")
        outputs = self._run(buffers, self.shapes())
        if self.packed.gears and not self.sizes:  # the output buffers are those of the largest gear
            largest = self._run(self.zeros(), [tensor.shape for tensor in inputs])
            self.sizes = tuple(values.nbytes for values in largest)
        return outputs

    def _run(self, buffers: Sequence[bytes], shapes: Sequence[Tuple[int, ...]]) -> List[Any]:
        import numpy as np

        feed = {}
        for tensor, buffer, shape in zip(self.packed.inputs, buffers, shapes):
            size = _bytes(tensor.dtype, shape)
            feed[tensor.name] = np.frombuffer(buffer[:size].ljust(size, b"\0"), tensor.dtype).reshape(shape)
        try:
            outputs = self.session.run(None, feed)
        except Exception as error:  # every failure of onnxruntime has a class of its own
            raise ExecuteError(" ".join(str(error).split())) from error
        half = self.packed.output_type == "FP16"
        return [values.astype(np.float16) if half and values.dtype == np.float32 else values for values in outputs]


class _Raw(bytes):
    """An output as bytes, with the one method of an array that is asked for."""

    def tobytes(self) -> bytes:
        return bytes(self)


class Digests(Model):
    """In the place of a model: what a row gives depends on its tokens alone, as a model's logits do."""

    def __init__(self) -> None:
        super().__init__(om.Om((), b""), None)

    def execute(self, buffers: Sequence[bytes]) -> List[Any]:
        rows = [[buffer[start : start + ROW] for buffer in buffers] for start in range(0, len(buffers[0]), ROW)]
        return [_Raw(b"".join(hashlib.sha256(b"".join(row)).digest()[:12] for row in rows))]


def load(path: str) -> Model:
    """Raises LoadError for a file that is missing, unreadable, or not one of atc's stand-in."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # the real tool writes nothing to stderr
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        with open(path, "rb") as file:
            packed = om.unpack(file.read())
        return Model(packed, onnxruntime.InferenceSession(packed.onnx, options, ["CPUExecutionProvider"]))
    except Exception as error:  # every failure of onnxruntime has a class of its own
        raise LoadError(" ".join(str(error).split())) from error


def content(model: Model, index: int, values: Any) -> bytes:
    """What a .bin holds: the raw values, and under gears the rest of the largest gear's buffer."""
    raw: bytes = values.tobytes()
    return raw.ljust(model.sizes[index], b"\0") if model.sizes else raw


def text(values: Any) -> str:
    """What a .txt holds: values with a blank after each, and a line for each innermost row."""
    row = math.prod(values.shape[1:]) if values.ndim > 1 else 0
    flat = values.reshape(-1).tolist()
    words = []
    for index, value in enumerate(flat):
        words.append(f"{value:g} ")
        if row and (index + 1) % row == 0:
            words.append("\n")
    return "".join(words)


def _bytes(dtype: str, shape: Sequence[int]) -> int:
    return int(math.prod(shape)) * {"bool": 1, "int8": 1, "uint8": 1, "float16": 2, "int64": 8, "float64": 8}.get(
        dtype, 4
    )
