"""build-om for the cpu backend: dynamic.onnx with its batch fixed, as an OpenVINO model (.xml; weights in a .bin).

The pair is kept only after the saved files, loaded as run_cpu loads them, gave the logits that ONNX Runtime computes
from the ONNX. The same ONNX gives the same bytes: an .xml names no file, folder or time, and finds its weights by its
own name.
"""

from __future__ import annotations

import errno
import filecmp
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deberta.core import files
from deberta.core.contract import BF16, FP32, INPUTS, INT8, SEQUENCE_LENGTH
from deberta.core.errors import ConfigError, DataError, MissingError, StageError, run_stage
from deberta.core.machine import check_precision, effective_cpus
from deberta.stages import arguments, onnx_runtime
from deberta.stages.compile import blocked_shift
from deberta.stages.inference import bf16, int8, openvino_engine, precisions
from deberta.stages.inference.logits import compare_logits
from deberta.stages.inference.openvino_engine import OpenVinoEngine, reason

TOLERANCE = 1e-4  # max abs difference of logits between ONNX Runtime and the compiled model
# Tokens per row of the verification: full, none, and the lengths of real pairs (median 38, p99 105, longest 253).
LENGTHS = (256, 0, 38, 105, 253, 12, 64, 3)
MIN_ROWS = 4  # at batch 1, too, rows of several lengths are compared
# The logits of a lower precision differ from the ONNX's; label_changes.py measures by how much on real data. A
# difference above this multiple of the reference's largest logit means that the model is broken.
BROKEN = {INT8: 0.5, BF16: 0.25}
# A name that OpenVINO generates: a node's type and a counter of the process. A folded constant keeps its node's.
_GENERATED = re.compile(r"[A-Z]\w*_[0-9]+")
CUTS = (105, 38, 3)  # lengths at which a model of any length is verified too, on the rows that fit


@contextmanager
def new_model(output: Path) -> Iterator[Path]:
    """Yield a temporary .xml; then move its .bin and it to `output`, the .xml last: if it exists, both are whole."""
    weights = output.with_suffix(".bin")
    with files.staged(output) as folder:
        folder.mkdir()
        yield folder / output.name
        _share_weights(folder / weights.name, output.parent)
        if not (weights.exists() and weights.samefile(folder / weights.name)):
            files.note(folder / output.name, output)
            output.unlink(missing_ok=True)
        files.switch(folder / weights.name, weights)
        files.switch(folder / output.name, output)


def _share_weights(weights: Path, folder: Path) -> None:
    """Replace `weights` by a hard link to equal weights in `folder`, if there are any: the batch size changes none.

    Nothing writes into a finished file, so the link is as good as a copy, and saves 824 MB per batch size at full size.
    """
    for present in sorted(folder.glob("*.bin")):
        if present.stat().st_size == weights.stat().st_size and filecmp.cmp(present, weights, shallow=False):
            link = weights.with_name(weights.name + ".link")
            try:
                os.link(present, link)
            except OSError:
                return  # a file system without links: keep the copy
            os.replace(link, weights)
            return


def save(onnx: Path, batch_size: int, xml: Path, longest: int = 0, precision: str = FP32) -> int:
    """Save `onnx` as an OpenVINO model for inputs int32 [batch_size, length], with its float32 weights unchanged.

    `longest` above 0: the ONNX is one of any length, and so is the model, from 1 to `longest`. `precision`: int8
    quantizes the layers' weights, bf16 leaves them as they are. Returns the number of quantized layers. Raises
    DataError for the ONNX, StageError.
    """
    import openvino as ov

    try:
        model = ov.Core().read_model(onnx)
    except RuntimeError as error:
        raise DataError(f"{onnx} cannot be read ({reason(error)}). Run: invoke export-onnx --force") from error
    shapes = {port.any_name: port.get_partial_shape() for port in model.inputs}
    fixed = not longest
    if set(shapes) != set(INPUTS) or any(
        len(s) != 2 or s[0].is_static or s[1].is_static != fixed for s in shapes.values()
    ):
        wanted = f"{' and '.join(INPUTS)} [any batch, {'a fixed' if fixed else 'any'} length]"
        raise DataError(f"{onnx} has the inputs {shapes}, not {wanted}. Run: invoke export-onnx --force")
    if shutil.disk_usage(xml.parent).free < onnx.stat().st_size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(xml))
    try:
        length = ov.Dimension(1, longest)
        model.reshape({name: [batch_size, shape[1] if fixed else length] for name, shape in shapes.items()})
        if fixed:
            blocked_shift.apply(model, next(iter(shapes.values()))[1].get_length())
        quantized = int8.apply(model) if precision == INT8 else 0
        if precision == BF16:
            bf16.apply(model)
        if precision != FP32:
            precisions.mark(model, precision)
        for index, node in enumerate(model.get_ordered_ops()):
            if _GENERATED.fullmatch(node.get_friendly_name()):
                node.set_friendly_name(f"unnamed_{index}")
        ov.save_model(model, xml, compress_to_fp16=False)
    except RuntimeError as error:
        message = reason(error)
        if "iostream" in message:  # OpenVINO's whole message when a write fails
            message += ", is the disk full?"
        raise StageError(f"OpenVINO cannot compile {onnx} for batch size {batch_size} ({message})") from error
    return quantized


def verification_rows(batch_size: int, length: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and masks, int32 [rows, length] each; rows is a multiple of batch_size, and rows repeat beyond 8."""
    rows = min(batch_size * -(-MIN_ROWS // batch_size), len(LENGTHS))
    mask = (np.arange(length) < np.array(LENGTHS[:rows])[:, None]).astype(np.int32)
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, length), dtype=np.int32) * mask
    repeated = np.arange(batch_size * -(-rows // batch_size)) % rows  # a larger batch repeats them
    return ids[repeated], mask[repeated]


def reference_logits(onnx: Path, ids: np.ndarray, mask: np.ndarray, threads: int) -> np.ndarray:
    """ONNX Runtime's logits, float32 [rows, 3], of `verification_rows`; rows that repeat are computed once."""
    distinct = min(len(ids), len(LENGTHS))
    logits = onnx_runtime.run(onnx_runtime.open_session(onnx, threads), ids[:distinct], mask[:distinct])
    return logits[np.arange(len(ids)) % distinct]


def compiled_logits(engine: OpenVinoEngine, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The compiled model's logits, float32 [rows, 3]; rows is a multiple of its batch size."""
    request = engine.compiled.create_infer_request()
    batches = []
    for first in range(0, len(ids), engine.shape[0]):
        rows = slice(first, first + engine.shape[0])
        for name, values in zip(INPUTS, (ids[rows], mask[rows]), strict=True):
            openvino_engine.set_input(request, name, values)
        request.infer()
        batches.append(request.get_output_tensor(0).data.copy())
    return np.concatenate(batches)


def compare(reference: np.ndarray, logits: np.ndarray, allowed: float = TOLERANCE, same_labels: bool = True) -> float:
    """The max abs difference, if it is at most `allowed` and every row has the same label. Raises StageError."""
    difference = compare_logits(reference, logits)
    largest = float(difference.row_max.max())
    changed = difference.changed if same_labels else ()
    if not difference.within(allowed) or len(changed):
        worst = int(difference.row_max.argmax())
        raise StageError(
            f"the compiled model differs from its ONNX: max abs difference {largest:.3g} (at most {allowed:g} "
            f"is allowed), {len(changed)} of {len(logits)} rows have another label; row {worst}: ONNX Runtime "
            f"{reference[worst].tolist()}, OpenVINO {logits[worst].tolist()}"
        )
    return largest


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "model bs precision threads summary",
        output=arguments.file("the .xml; its .bin is written beside it"),
        any_length=arguments.flag("one model for every length, from export-onnx's graph of any length"),
    )
    threads, exact = options.threads or effective_cpus(), options.precision == FP32
    if options.output.suffix != ".xml":
        raise ConfigError(f"--output {options.output} must end in .xml; the weights go to a .bin beside it")
    if not options.model.is_file():
        raise MissingError(f"{options.model} is missing. Run: invoke export-onnx")
    check_precision(options.precision)
    with new_model(options.output) as xml:
        longest = SEQUENCE_LENGTH if options.any_length else 0
        layers = save(options.model, options.bs, xml, longest, options.precision)
        if layers:
            print(f"quantized the weights of {layers} layers to int8", flush=True)
        print(f"compiled {options.model} for batch size {options.bs}, verifying against ONNX Runtime", flush=True)
        engine = openvino_engine.load_model(xml, threads)
        ids, mask = verification_rows(options.bs, engine.shape[1], engine.vocabulary)
        reference = reference_logits(options.model, ids, mask, threads)
        allowed = TOLERANCE if exact else BROKEN[options.precision] * float(np.abs(reference).max())
        difference = compare(reference, compiled_logits(engine, ids, mask), allowed, exact)
        for length in CUTS if options.any_length else ():
            fitting = mask.sum(axis=1) <= length
            logits = compiled_logits(engine, ids[:, :length], mask[:, :length])
            difference = max(difference, compare(reference[fitting], logits[fitting], allowed, exact))
        print(f"max abs difference of {len(ids)} rows' logits: {difference:.3g} (at most {allowed:.3g})", flush=True)
    summary = {
        **openvino_engine.engine_facts(engine),
        "reference": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
        "verified_rows": len(ids),
        "max_abs_difference": difference,
        "tolerance": allowed,
        "quantized_layers": layers,
    }
    arguments.write_summary(options.summary, summary)


if __name__ == "__main__":
    sys.exit(run_stage(main))
