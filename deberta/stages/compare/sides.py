"""Runs one side of a comparison: rows in, named arrays out. Nothing here compares, and every run loads its own model.

Loading a model anew for each run lets two of 184 M parameters be compared on a machine that holds one; and a graph with
more outputs is another graph anyway, since engines fuse less where an inner value has to be handed out.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from deberta.core import contract, schema
from deberta.core.contract import INPUTS, LABELS, OUTPUT
from deberta.core.errors import DataError, MissingError
from deberta.core.progress import track
from deberta.stages import onnx_runtime
from deberta.stages.data.bins import Rows
from deberta.stages.fp16 import emulation, keep_dtype
from deberta.stages.fp16.emulation import EmulationResult, Node
from deberta.stages.inference import openvino_engine
from deberta.stages.inference.logits import read_array, read_outputs
from deberta.stages.model import checkpoint, config
from deberta.stages.model.deberta import Deberta

if TYPE_CHECKING:
    import openvino as ov

Array = npt.NDArray[np.float32]
# By name: float32 [rows, any, any]; the first axis has one entry for each row.
Results = dict[str, Array]

MOST_ROWS = 8  # computed at a time where the batch is free
_MARK = re.compile(r"/(?:(embeddings|pooler)|encoder/(?:layer\.(\d+)|(conv)))/")


@dataclass(frozen=True)
class GraphNode:
    """A node of an ONNX graph: its name, its operation, and the tensor that it computes."""

    name: str
    op: str
    output: str


class Setting(NamedTuple):
    """What both sides are run with. `batches`: how many bins of `options.bs` rows the data have."""

    options: argparse.Namespace  # compare's
    batches: int
    threads: int
    scratch: Path  # a folder for copies of models, removed at the end


@dataclass(frozen=True)
class Side:
    """One of the two. `run` gives the arrays of the names wanted: "logits", `marks`, and output tensors of `nodes`.

    A tensor that the engine does not have (it was fused away), or that is not float32, is missing in what `run` gives.
    """

    kind: str
    file: Path
    run: Callable[[Rows, Sequence[str]], Results]
    # Layers, in the order in which they are computed, with the tensor of the graph that leaves each; none: only logits.
    marks: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[GraphNode, ...] = ()  # in the graph's order


def open_side(kind: str, file: Path, setting: Setting) -> Side:
    """Raises MissingError and DataError for what can be seen without running it."""
    opener, command = _KINDS[kind]
    if not file.exists():
        raise MissingError(f"{file} is missing. Run: invoke {command}")
    return opener(kind, file, setting)


def marks_of(nodes: Iterable[GraphNode]) -> dict[str, str]:
    """Each layer's name, and the tensor that leaves it: the last in the graph's order that the module computed.

    The names are those that export-onnx writes, by module; a graph without them has no layers to name.
    """
    marks: dict[str, str] = {}
    for node in nodes:
        if match := _MARK.match(node.name):
            plain, index, convolution = match.groups()
            marks[plain or ("convolution" if convolution else f"layer {index}")] = node.output
    return {**marks, OUTPUT: OUTPUT} if marks else {}


def read_nodes(path: Path) -> tuple[GraphNode, ...]:
    """The nodes of an ONNX file that compute something, in order. Raises MissingError and DataError."""
    nodes = emulation.read_graph(path).node
    return tuple(GraphNode(node.name, node.op_type, node.output[0]) for node in nodes if node.op_type != "Constant")


class _Recorder:
    """Arrays by name, part after part of the rows. What is not float32, or not of so many rows, is left out."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Array]] = {}

    def add(self, name: str, values: Any, rows: int, real: int | None = None) -> None:
        """Add what was computed for `rows` rows; of these the first `real` are kept, all by default."""
        array = np.asarray(values)
        if array.dtype == np.float32 and array.ndim and array.shape[0] % rows == 0:
            self._parts.setdefault(name, []).append(array.reshape(rows, -1, array.shape[-1])[:real].copy())

    def results(self) -> Results:
        return {name: np.concatenate(parts) for name, parts in self._parts.items()}


def _by_parts(kind: str, rows: Rows, size: int) -> Iterator[Rows]:
    """`size` rows at a time, with progress."""
    return track(rows.split(size), f"compare, {kind}", "rows", len)


def _modules(model: Any) -> dict[str, nn.Module]:
    """The parts of our module or of transformers', which are named alike, by their mark."""
    encoder = model.deberta.encoder
    modules: dict[str, nn.Module] = {"embeddings": model.deberta.embeddings}
    for index, layer in enumerate(encoder.layer):
        modules[f"layer {index}"] = layer
        if index == 0 and getattr(encoder, "conv", None) is not None:
            modules["convolution"] = encoder.conv
    return {**modules, "pooler": model.pooler}


def _torch(kind: str, file: Path, setting: Setting) -> Side:
    """Our module in float32, as the checkpoint gives it, or transformers' of the same weights; layers by hooks."""
    settings = config.read(setting.options.config)

    def load() -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
        ours = checkpoint.load(file, settings, setting.options.labels).model
        if kind == "pytorch":
            return ours, ours
        from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

        values = schema.read_json(setting.options.config, dict[str, Any])
        peer = DebertaV2ForSequenceClassification(DebertaV2Config.from_dict({**values, "num_labels": len(LABELS)}))
        peer.load_state_dict(ours.state_dict())
        peer.train(False)
        return peer, lambda ids, mask: peer(input_ids=ids.long(), attention_mask=mask.long()).logits

    def run(rows: Rows, wanted: Sequence[str]) -> Results:
        model, forward = load()
        recorder, modules, count = _Recorder(), _modules(model), 0

        def hook(name: str) -> Callable[..., None]:
            # transformers' layers give a tuple, whose first entry is what goes on to the next.
            return lambda module, inputs, output: recorder.add(
                name, (output[0] if isinstance(output, tuple) else output).numpy(), count
            )

        with ExitStack() as hooks, torch.no_grad():
            for name in wanted:
                if name in modules:
                    hooks.callback(modules[name].register_forward_hook(hook(name)).remove)
            for part in _by_parts(kind, rows, MOST_ROWS):
                count = len(part)
                recorder.add(OUTPUT, forward(torch.from_numpy(part.ids), torch.from_numpy(part.mask)).numpy(), count)
        return recorder.results()

    with torch.device("meta"):  # no weights: only the modules' names are wanted
        names = (*_modules(Deberta(settings, len(LABELS))), OUTPUT)
    return Side(kind, file, run, dict(zip(names, names, strict=True)))


def _graph_side(kind: str, file: Path, graph: Path | None, compute: Callable[[Rows, list[str]], Results]) -> Side:
    """A side with the layers and nodes of an ONNX file; `compute` gives the values of its tensors, by their names."""
    nodes = read_nodes(graph) if graph else ()
    marks = marks_of(nodes)

    def run(rows: Rows, wanted: Sequence[str]) -> Results:
        tensors = {name: marks.get(name, name) for name in (*wanted, OUTPUT)}
        computed = compute(rows, [tensor for tensor in dict.fromkeys(tensors.values()) if tensor != OUTPUT])
        return {name: computed[tensor] for name, tensor in tensors.items() if tensor in computed}

    return Side(kind, file, run, marks, nodes)


def _onnx(kind: str, file: Path, setting: Setting) -> Side:
    """ONNX Runtime, in float32."""
    known = {node.output for node in read_nodes(file)}

    def compute(rows: Rows, wanted: list[str]) -> Results:
        inner = [tensor for tensor in wanted if tensor in known]
        session = onnx_runtime.open_session(_with_outputs(file, inner, setting.scratch), setting.threads)
        recorder, outputs = _Recorder(), [*inner, OUTPUT]
        for part in _by_parts(kind, rows, min(setting.options.bs, MOST_ROWS)):
            computed = onnx_runtime.run_to(session, outputs, part.ids, part.mask)
            for name, values in zip(outputs, computed, strict=True):
                recorder.add(name, values, len(part))
        return recorder.results()

    return _graph_side(kind, file, file, compute)


def _with_outputs(file: Path, tensors: Sequence[str], scratch: Path) -> Path:
    """A copy of an ONNX file with more outputs; the file itself if none are wanted.

    Protobuf merges messages that follow each other, repeated fields being joined: outputs are added by appending to
    the file, and its weights never pass through memory.
    """
    if not tensors:
        return file
    extra = onnx.ModelProto()
    extra.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
    path = scratch / "marked.onnx"
    shutil.copyfile(file, path)
    with open(path, "ab") as copy:
        copy.write(extra.SerializeToString())
    return path


def _fp16(kind: str, file: Path, setting: Setting) -> Side:
    """The graph with float16 between its nodes, as check-fp16 runs it."""

    def compute(rows: Rows, wanted: list[str]) -> Results:
        graph = emulation.load(file)
        keep = keep_dtype.read(setting.options.kept, graph) if setting.options.kept else set()
        recorder, count = _Recorder(), 0

        def watch(node: Node, result: EmulationResult) -> bool:
            if node.output in (*wanted, OUTPUT):
                recorder.add(node.output, result.value.numpy(), count)
            return False

        for part in _by_parts(kind, rows, emulation.PART_ROWS):
            count = len(part)
            emulation.run(graph, part, keep, watch)
        return recorder.results()

    return _graph_side(kind, file, file, compute)


def _cpu(kind: str, file: Path, setting: Setting) -> Side:
    """build-om's OpenVINO model of the batch size; rows that fill its last batch are zeros, and left out again."""

    def compute(rows: Rows, wanted: list[str]) -> Results:
        engine = openvino_engine.load_model(file, setting.threads)
        size, length = setting.options.bs, rows.ids.shape[1]
        if engine.shape != (size, length):
            takes = f"{engine.shape[0]} x {engine.shape[1]}, not of {size} x {length}"
            raise DataError(f"{file} takes inputs of {takes}. Run: invoke build-om --force")
        compiled, inner = engine.compiled, wanted
        if wanted:
            del engine
            compiled, inner = _compiled_with(file, wanted, setting.threads)
        request = compiled.create_infer_request()
        recorder = _Recorder()
        for part in _by_parts(kind, rows, size):
            real = len(part)
            for name, values in zip(INPUTS, (part.ids, part.mask), strict=True):
                openvino_engine.set_input(request, name, np.pad(values, ((0, size - real), (0, 0))))
            request.infer()
            for name in (*inner, OUTPUT):
                recorder.add(name, request.get_tensor(name).data, size, real)
        return recorder.results()

    return _graph_side(kind, file, setting.options.graph, compute)


def _compiled_with(file: Path, tensors: list[str], threads: int) -> tuple[ov.CompiledModel, list[str]]:
    """The model with those of `tensors` as outputs that OpenVINO still knows by name; and which these are."""
    import openvino as ov

    core = ov.Core()
    model = core.read_model(file)
    known = {name for node in model.get_ops() for port in node.outputs() for name in port.get_names()}
    present = [tensor for tensor in tensors if tensor in known]
    if present:
        model.add_outputs(present)
    return core.compile_model(model, "CPU", openvino_engine.engine_settings(threads)), present


def _stored(kind: str, file: Path, setting: Setting) -> Side:
    """Logits in a run's output files, or PyTorch's in a .npy: float32 [rows, 3] in the tsv's order."""
    if kind == "om":
        logits = read_outputs(file, setting.batches, setting.options.bs)
    else:
        again = "It is of other data, or of other rows of them: make it again"
        logits = read_array(file, again)
        if contract.batch_count(len(logits), setting.options.bs) != setting.batches:
            wanted = f"those in {setting.batches} bins of {setting.options.bs}"
            raise DataError(f"{file} holds logits of {len(logits)} rows, not of {wanted}. {again}")

    def run(rows: Rows, wanted: Sequence[str]) -> Results:
        return {OUTPUT: logits[rows.numbers].reshape(len(rows), 1, -1)}

    return Side(kind, file, run)


# By kind: what opens it, and the command that makes its file.
_KINDS: dict[str, tuple[Callable[[str, Path, Setting], Side], str]] = {
    "pytorch": (_torch, "fetch"),
    "transformers": (_torch, "fetch"),
    "onnx": (_onnx, "export-onnx"),
    "fp16": (_fp16, "export-onnx"),
    "cpu": (_cpu, "build-om"),
    "om": (_stored, "infer"),
    "reference": (_stored, "acceptance"),
}
KINDS = tuple(_KINDS)
HALF = ("fp16", "om")  # computed in float16: the second by ATC's default
