"""The cpu backend's engine: OpenVINO's settings, a loaded and checked model, its inputs and facts, and its memory."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deberta.core.contract import BF16, FP32, INPUTS, LABELS
from deberta.core.errors import DataError, MissingError, StageError
from deberta.core.machine import check_precision
from deberta.stages.inference import int8, precisions

if TYPE_CHECKING:
    import openvino as ov

REBUILD = "Run: invoke build-om --force"
_MADV_DONTNEED = 4  # Linux, <asm-generic/mman-common.h>


@dataclass(frozen=True)
class OpenVinoEngine:
    """A loaded model. `shape` is that of each input, (batch, length); token ids are below `vocabulary`.

    `any_length`: the model takes shorter inputs too, and `at` gives the engine for one length. `precision`: f32; bf16
    (see deberta.stages.inference.bf16); or int8 where the layers' weights are, and all else is computed in float32.
    """

    compiled: ov.CompiledModel
    shape: tuple[int, int]
    vocabulary: int
    any_length: bool = False
    precision: str = "f32"

    def at(self, length: int, model: Path) -> OpenVinoEngine:
        """This engine for inputs of one length. Raises DataError where the model does not take them."""
        if length != self.shape[1] and not (self.any_length and 0 < length < self.shape[1]):
            up_to = "up to " if self.any_length else ""
            raise DataError(f"{model} takes inputs of {up_to}{self.shape[1]} tokens, not of {length}. {REBUILD}")
        return replace(self, shape=(self.shape[0], length))


def engine_settings(threads: int, precision: str = "f32", at_once: int = 1) -> dict[str, str | int | bool]:
    """OpenVINO's properties for `at_once` inferences that share `threads` CPUs. `precision`: f32 or bf16."""
    return {
        # The default is bfloat16 wherever the CPU has instructions for it, which gives other logits without a warning.
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": int8.GROUP,  # of int8 models alone: other weights do not use it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": at_once,
        # Pinning would put every container of a host on the same first cores, whatever their quotas.
        "ENABLE_CPU_PINNING": False,
    }


def load_model(model: Path, threads: int, at_once: int = 1) -> OpenVinoEngine:
    """Load an OpenVINO model (.xml, weights in the .bin beside it) for this CPU, computing as the model is marked.

    `at_once`: for so many inferences at the same time.

    Raises MissingError (no such file), DataError (unreadable, or inputs and outputs that are not the contract's),
    ConfigError (this CPU has no instructions for it) and StageError (OpenVINO would compute in another precision).
    """
    for file in (model, model.with_suffix(".bin")):
        if not file.is_file():
            raise MissingError(f"{file} is missing. Run: invoke build-om")
    import openvino as ov  # half a second, so after the cheap checks

    core = ov.Core()
    try:
        graph = core.read_model(model)
        marked = precisions.of_model(graph, model)
        check_precision(marked)
        computed = "bf16" if marked == BF16 else "f32"
        compiled = core.compile_model(graph, "CPU", engine_settings(threads, computed, at_once))
    except RuntimeError as error:
        raise DataError(f"{model} is not a model that OpenVINO can load ({reason(error)}). {REBUILD}") from error
    taken = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if taken != computed:
        raise StageError(f"OpenVINO would compute {model} in {taken} instead of {computed}. Run: invoke doctor")
    shape, any_length = _checked_shape(model, compiled)
    precision = computed if marked == FP32 else marked
    return OpenVinoEngine(compiled, shape, vocabulary_of(model, graph), any_length, precision)


def _checked_shape(model: Path, compiled: ov.CompiledModel) -> tuple[tuple[int, int], bool]:
    """The model must have the contract's inputs, int32 [batch, length], and one output, float32 [batch, 3].

    The length may be a range, and the shape then has the largest: [8,1..256] gives (8, 256), True.
    """
    import openvino as ov

    inputs = {port.any_name: (port.element_type.get_type_name(), port.get_partial_shape()) for port in compiled.inputs}
    outputs = [(port.element_type.get_type_name(), port.get_partial_shape()) for port in compiled.outputs]
    shape = next(iter(inputs.values()))[1] if inputs else ov.PartialShape([])
    if len(shape) != 2 or shape[0].is_dynamic or inputs != dict.fromkeys(INPUTS, ("i32", shape)):
        raise DataError(f"{model} has the inputs {inputs}, not int32 {', '.join(INPUTS)} of one shape. {REBUILD}")
    batch_size, longest = shape[0].get_length(), shape[1].get_max_length()
    # Of a range of lengths OpenVINO cannot work out the batch again: [?,3].
    logits = ov.PartialShape([batch_size, len(LABELS)])
    if [name for name, _ in outputs] != ["f32"] or not logits.compatible(outputs[0][1]):
        raise DataError(f"{model} has the outputs {outputs}, not float32 [{batch_size}, {len(LABELS)}]. {REBUILD}")
    if longest < 1:
        raise DataError(f"{model} sets no limit to the length of its inputs. {REBUILD}")
    return (batch_size, longest), shape[1].is_dynamic


def vocabulary_of(model: Path, graph: ov.Model) -> int:
    """Rows of the embedding table that input_ids look up. OpenVINO gives zeros for ids beyond them, without an error.

    Raises DataError for a model without such a table.
    """
    for node in graph.get_ops():
        if node.get_type_name() != "Gather":
            continue
        indices = node.input_value(1).get_node()
        while indices.get_type_name() in ("Convert", "Reshape"):
            indices = indices.input_value(0).get_node()
        if indices.get_type_name() == "Parameter" and INPUTS[0] in indices.output(0).get_names():
            return int(node.input_value(0).get_partial_shape()[0].get_length())
    raise DataError(f"{model} looks up no embedding by {INPUTS[0]}. {REBUILD}")


def reason(error: Exception) -> str:
    """The last line of OpenVINO's message, which says what happened; the lines before it are places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def set_input(request: ov.InferRequest, name: str, values: np.ndarray) -> None:
    """Copy an input into its tensor, which takes the input's length if the model takes any."""
    tensor = request.get_tensor(name)
    tensor.shape = values.shape
    tensor.data[:] = values


def engine_facts(engine: OpenVinoEngine) -> dict[str, str | int]:
    """What a stage's summary says about the engine."""
    import openvino as ov

    return {
        "batch_size": engine.shape[0],
        "length": engine.shape[1],
        "vocabulary": engine.vocabulary,
        "engine": f"openvino {ov.__version__}",
        "precision": engine.precision,
        "threads": engine.compiled.get_property("INFERENCE_NUM_THREADS"),
    }


def release_pages(file: Path) -> int:
    """Release the pages of a file that this process has mapped to read only, and return their bytes.

    OpenVINO maps the weights, reads all of them when it compiles, and packs the matrices into memory of its own when
    they are first used. The mapped pages then only count as this process' memory: the system has them in its cache,
    and what is read again (rows of the embeddings) comes back from there.
    """
    path, released = os.path.realpath(file), 0
    library = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.split(maxsplit=5)
        if len(parts) < 6 or parts[5] != path or parts[1][:2] != "r-":
            continue
        start, end = (int(address, 16) for address in parts[0].split("-"))
        if library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED) == 0:
            released += end - start
    return released
