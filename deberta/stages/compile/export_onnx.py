"""export-onnx: from a checkpoint to `dynamic.onnx`, the clean graph that ATC gets; validated before it is kept."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto
from torch.jit._trace import TracerWarning

from deberta.core import files
from deberta.core.contract import (
    INPUTS,
    LABELS,
    ONNX_IR_VERSION,
    ONNX_MAX_BYTES,
    ONNX_OPSET,
    ONNX_PRODUCER,
    OUTPUT,
)
from deberta.core.errors import ConfigError, StageError, run_stage
from deberta.core.machine import effective_cpus
from deberta.stages import arguments, onnx_runtime
from deberta.stages.arguments import Argument, one_of
from deberta.stages.inference.logits import compare_logits
from deberta.stages.model import checkpoint, config, gather_attention, weights
from deberta.stages.model.deberta import Deberta

TOLERANCE = 1e-4  # largest difference of a logit between PyTorch and the exported graph, float32 both
FORBIDDEN = (
    "Shape",
    "GatherElements",
    "GatherND",
    "Where",
    "Expand",
    "Tile",
    "ScatterND",
    "NonZero",
    "Loop",
    "If",
    "Identity",
)
RELATIVE = ("shift", "gather")  # how relative scores are looked up; gather is the guide's form, for comparison
_GATHERING = ("Shape", "GatherElements", "Expand")  # operators of FORBIDDEN that the gather form has
_ORIGINS = ("doc_string", "metadata_props", "model_version")  # in which an exporter may say where or when it ran
# Tokens of the validation batches' rows: MNLI's median, p90 and p99, the full length, a very short and an empty row.
_BATCHES = ((38,), (67, 105, 256), (0, 3, 256, 38))
# A graph of any length also runs the rows that fit these lengths, and must give the logits of the padded rows.
_CUTS = (105, 38, 3)

Batch = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "checkpoint config output labels sequence_length summary",
        relative=Argument("gather: the guide's form, for comparison", one_of(RELATIVE), default="shift"),
        any_length=arguments.flag("for the cpu backend: shorter rows too, in one graph (never ATC's)"),
    )
    length, relative, any_length = options.sequence_length, options.relative, options.any_length
    if any_length and relative != "shift":
        raise ConfigError(f"--any-length is not for --relative {relative}")
    torch.set_num_threads(effective_cpus())
    model_config = config.read(options.config)
    if length > model_config.max_position_embeddings:
        raise ConfigError(f"--sequence-length {length} is not within 1 to {model_config.max_position_embeddings}")
    print(f"loading {weights.source(options.checkpoint)}", flush=True)
    loaded = checkpoint.load(options.checkpoint, model_config, options.labels)
    print(*loaded.notes, sep="\n", end="\n" if loaded.notes else "", flush=True)
    batches = validation_batches(length, model_config.vocab_size)
    print("running the PyTorch model on the validation batches", flush=True)
    expected = [_run_torch(loaded.model, batch) for batch in batches]
    print("exporting", flush=True)
    with files.new_file(options.output) as temporary:
        export(loaded.model, temporary, length, relative, any_length)
        nodes = check_graph(temporary, forbidden_in(relative, any_length))
        print("validating against PyTorch", flush=True)
        if any_length:
            pairs = list(zip(batches, expected, strict=True))
            cuts = [cut(batch, logits, tokens) for tokens in _CUTS for batch, logits in pairs]
            batches += [batch for batch, _ in cuts if len(batch[0])]
            expected += [logits for _, logits in cuts if len(logits)]
        difference = validate(temporary, batches, expected)
        size = temporary.stat().st_size
    count = sum(nodes.values())
    print(f"{options.output}: {size} bytes, {count} nodes, max |logit difference| {difference:.2e}", flush=True)
    summary = {
        "bytes": size,
        "nodes": dict(sorted(nodes.items())),
        "torch": torch.__version__,
        "relative": relative,
        "max_logit_difference": difference,
        "tolerance": TOLERANCE,
        "validation_rows": sum(len(ids) for ids, _ in batches),
        **loaded.facts,
    }
    arguments.write_summary(options.summary, summary)


def validation_batches(length: int, vocabulary: int) -> list[Batch]:
    """Token ids and masks, int32 [rows, length]: fixed pseudo-random ids, real lengths, one all-zero row."""
    random = np.random.default_rng(0)
    masks = [(np.arange(length) < np.array(lengths)[:, None]).astype(np.int32) for lengths in _BATCHES]
    return [(random.integers(0, vocabulary, mask.shape, dtype=np.int32) * mask, mask) for mask in masks]


def cut(batch: Batch, expected: npt.NDArray[np.float32], length: int) -> tuple[Batch, npt.NDArray[np.float32]]:
    """The rows of at most `length` tokens, ids and mask cut to [rows, length], and their expected logits."""
    ids, mask = batch
    fitting = mask.sum(axis=1) <= length
    return (ids[fitting, :length], mask[fitting, :length]), expected[fitting]


def export(model: Deberta, path: Path, length: int, relative: str = "shift", any_length: bool = False) -> None:
    """Fold `model` (in place) and write it as ONNX with a dynamic batch.

    The same weights give the same bytes, whichever of the locks' PyTorch versions exports them.
    `any_length`: the length is dynamic too, up to `length`.
    """
    if relative == "gather":
        gather_attention.fold(model, length)
    else:
        model.fold(length, any_length)
    zeros = torch.zeros(1, length, dtype=torch.int32)
    axes = {name: {0: "batch"} for name in (*INPUTS, OUTPUT)}
    if any_length:
        axes.update({name: {0: "batch", 1: "length"} for name in INPUTS})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # only the deprecated exporter writes opset 12
        warnings.simplefilter("ignore", TracerWarning)  # the length is a constant on purpose
        torch.onnx.export(
            model,
            (zeros, zeros),
            str(path),
            dynamo=False,
            opset_version=ONNX_OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes=axes,
        )
    _remove_identities(path)
    _write_producer(path)


def _remove_identities(path: Path) -> None:
    """Let nodes read equal tensors by one name: the exporter merges them, and leaves Identity nodes for the others."""
    if all(node.op_type != "Identity" for node in onnx_runtime.skeleton(path).graph.node):
        return  # the exporter's own bytes
    model = onnx.load(str(path))
    source = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    if OUTPUT in source:
        return  # check_graph names it
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            while name in source:
                name = source[name]
            node.input[index] = name
    nodes = [node for node in model.graph.node if node.op_type != "Identity"]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(path))


def _write_producer(path: Path) -> None:
    """Name ONNX_PRODUCER in place of PyTorch and its version, which is another one on aarch64.

    Nothing else is serialized again, so the rest stays the exporter's own bytes.
    """
    theirs, ours = onnx_runtime.skeleton(path), onnx.ModelProto()
    for field, _ in theirs.ListFields():
        if field.name not in ("ir_version", "producer_name", "producer_version"):
            theirs.ClearField(field.name)
    ours.ir_version = theirs.ir_version
    ours.producer_name, ours.producer_version = ONNX_PRODUCER
    head = theirs.SerializeToString()
    with files.open_regular(path) as file:
        content = memoryview(file.read())
    if content[: len(head)] != head:  # protobuf writes fields in the order of their numbers
        raise StageError(f"the exported graph does not begin with its producer, {theirs.producer_name!r}")
    with open(path, "wb") as file:
        file.write(ours.SerializeToString())
        file.write(content[len(head) :])


def forbidden_in(relative: str, any_length: bool = False) -> Sequence[str]:
    """Operators that the graph must not have; a graph of any length is never ATC's and may have all of them."""
    return () if any_length else [op for op in FORBIDDEN if relative == "shift" or op not in _GATHERING]


def check_graph(path: Path, forbidden: Sequence[str] = FORBIDDEN) -> Counter[str]:
    """Check a file against the contract and return its nodes by type, but for constants, which compute nothing.

    Raises StageError listing every violation.
    """
    if path.stat().st_size > ONNX_MAX_BYTES:
        raise StageError(
            f"the ONNX file has {path.stat().st_size} bytes; ATC reads one file of at most {ONNX_MAX_BYTES}"
        )
    onnx.checker.check_model(str(path))
    model = onnx_runtime.skeleton(path)
    nodes = Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")
    problems = [f"{nodes[op]} {op} nodes" for op in forbidden if nodes[op]]
    opsets = [(entry.domain, entry.version) for entry in model.opset_import]
    if opsets != [("", ONNX_OPSET)] or model.ir_version != ONNX_IR_VERSION:
        problems.append(f"opset {opsets}, IR {model.ir_version} instead of opset {ONNX_OPSET}, IR {ONNX_IR_VERSION}")
    if (model.producer_name, model.producer_version) != ONNX_PRODUCER:
        problems.append(f"producer {model.producer_name} {model.producer_version} instead of {' '.join(ONNX_PRODUCER)}")
    parts = (model, model.graph, *model.graph.node)
    if origins := sorted({field.name for part in parts for field, _ in part.ListFields()} & set(_ORIGINS)):
        problems.append(f"fields that depend on the exporter: {', '.join(origins)}")
    shapes = {value.name: _signature(value) for value in (*model.graph.input, *model.graph.output)}
    if shapes != {**dict.fromkeys(INPUTS, (TensorProto.INT32, 2)), OUTPUT: (TensorProto.FLOAT, 2)}:
        problems.append(f"inputs and outputs are {shapes}")
    casts = [node.input[0] for node in model.graph.node if node.op_type == "Cast" and node.input[0] not in INPUTS]
    if casts:
        problems.append(f"casts inside the graph: {', '.join(casts)}")
    if problems:
        raise StageError(f"the exported graph is not the clean graph that ATC needs: {'; '.join(problems)}")
    return nodes


def validate(path: Path, batches: Sequence[Batch], expected: Sequence[npt.NDArray[np.float32]]) -> float:
    """The largest logit difference between ONNX Runtime and `expected`. Raises StageError above the tolerance."""
    session = onnx_runtime.open_session(path, effective_cpus())
    worst = 0.0
    for (ids, mask), reference in zip(batches, expected, strict=True):
        logits = onnx_runtime.run(session, ids, mask)
        if logits.shape != reference.shape or not np.isfinite(logits).all():
            raise StageError(
                f"the exported graph gives logits {logits.shape}, finite: {bool(np.isfinite(logits).all())}"
            )
        difference = compare_logits(reference, logits)
        largest = float(difference.row_max.max())
        if not difference.within(TOLERANCE) or len(difference.changed):
            raise StageError(
                f"the exported graph differs from PyTorch: max |logit difference| {largest:.3e} (allowed"
                f" {TOLERANCE:.0e}), {len(difference.changed)} of {len(reference)} predictions differ, batch of"
                f" {len(reference)}"
            )
        worst = max(worst, largest)
    return worst


def _run_torch(model: Deberta, batch: Batch) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        logits: npt.NDArray[np.float32] = model(*(torch.from_numpy(values) for values in batch)).numpy()
    if logits.shape != (len(batch[0]), len(LABELS)) or not np.isfinite(logits).all():
        raise StageError(
            "the PyTorch model gives NaN or infinite logits on the validation batches; check the checkpoint"
        )
    return logits


def _signature(value: onnx.ValueInfoProto) -> tuple[int, int]:
    return value.type.tensor_type.elem_type, len(value.type.tensor_type.shape.dim)


if __name__ == "__main__":
    sys.exit(run_stage(main))
