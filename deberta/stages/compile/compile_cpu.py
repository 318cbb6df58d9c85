"""build-om for the cpu backend: dynamic.onnx with its batch fixed, as an OpenVINO model (.xml; weights in a .bin).

The pair is kept only after the saved files, loaded the way run_cpu loads them, gave the same logits as ONNX Runtime
did from the ONNX. The same ONNX gives the same bytes: an .xml names no file, folder or time, and finds its weights by
its own name.
"""

from __future__ import annotations

import argparse
import errno
import filecmp
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deberta.core import files
from deberta.core.contract import (
    FP32,
    INPUTS,
    INT8,
    PRECISIONS,
    SEQUENCE_LENGTH,
    one_of,
    parse_batch_size,
    parse_integer,
)
from deberta.core.errors import ConfigError, DataError, MissingError, StageError, run_stage
from deberta.core.machine import effective_cpus
from deberta.stages import onnx_runtime
from deberta.stages.inference import int8, openvino_engine
from deberta.stages.inference.logits import compare_logits
from deberta.stages.inference.openvino_engine import OpenVinoEngine, reason

TOLERANCE = 1e-4  # max abs difference of logits between ONNX Runtime and the compiled model
# Tokens per row of the verification: full, none, and the lengths of real pairs (median 38, p99 105, longest 253).
LENGTHS = (256, 0, 38, 105, 253, 12, 64, 3)
MIN_ROWS = 4  # at batch 1, too, rows of several lengths are compared
# An int8 model gives other logits than its ONNX. How other is for the data to say (flips.py); beyond this, in multiples
# of the reference's largest logit, something is broken.
INT8_TOLERANCE = 0.5
CUTS = (105, 38, 3)  # a model of any length runs the rows that fit at these lengths too


@contextmanager
def new_model(output: Path) -> Iterator[Path]:
    """Yield a temporary .xml; then move it and its .bin to `output`, the .xml last: where it is, both are whole."""
    output.parent.mkdir(parents=True, exist_ok=True)
    files.remove_leftovers(output)
    folder = files.temporary_beside(output)
    folder.mkdir()
    try:
        yield folder / output.name
        _share_weights(folder / output.with_suffix(".bin").name, output.parent)
        output.unlink(missing_ok=True)
        os.replace(folder / output.with_suffix(".bin").name, output.with_suffix(".bin"))
        os.replace(folder / output.name, output)
    finally:
        shutil.rmtree(folder)


def _share_weights(weights: Path, folder: Path) -> None:
    """Weights do not depend on the batch size: make those of another one in `folder` a hard link, if they are equal.

    Nothing writes into a finished file, so the link is as good as a copy, and saves 739 MB per batch size.
    """
    for other in sorted(folder.glob("*.bin")):
        if other.stat().st_size == weights.stat().st_size and filecmp.cmp(other, weights, shallow=False):
            link = weights.with_name(weights.name + ".link")
            try:
                os.link(other, link)
            except OSError:
                return  # a file system without links: keep the copy
            os.replace(link, weights)
            return


def save(onnx: Path, batch_size: int, xml: Path, longest: int = 0, precision: str = FP32) -> int:
    """Save `onnx` as an OpenVINO model for inputs int32 [batch_size, length], with its float32 weights as they are.

    `longest` above 0: the ONNX is one of any length, and so is the model, from 1 to `longest`. `precision` int8: its
    layers' weights are quantized; returns how many layers.
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
        quantized = int8.apply(model) if precision == INT8 else 0
        for index, node in enumerate(model.get_ordered_ops()):
            if node.get_friendly_name() == node.get_name():  # made up from a counter of the process
                node.set_friendly_name(f"unnamed_{index}")
        ov.save_model(model, xml, compress_to_fp16=False)
    except RuntimeError as error:
        said = reason(error)
        if "iostream" in said:  # all that OpenVINO says when a write fails
            said += ", is the disk full?"
        raise StageError(f"OpenVINO cannot compile {onnx} for batch size {batch_size} ({said})") from error
    return quantized


def verification_rows(batch_size: int, length: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids and masks, int32 [rows, length] each; rows is a multiple of batch_size and the LENGTHS repeat."""
    rows = min(batch_size * -(-MIN_ROWS // batch_size), len(LENGTHS))
    mask = (np.arange(length) < np.array(LENGTHS[:rows])[:, None]).astype(np.int32)
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, length), dtype=np.int32) * mask
    repeated = np.arange(batch_size * -(-rows // batch_size)) % rows  # a large batch holds the same rows again
    return ids[repeated], mask[repeated]


def reference_logits(onnx: Path, ids: np.ndarray, mask: np.ndarray, threads: int) -> np.ndarray:
    """Logits of ONNX Runtime, float32 [rows, 3], row after row in batches of up to as many rows as differ."""
    distinct = min(len(ids), len(LENGTHS))
    logits = onnx_runtime.run(onnx_runtime.open_session(onnx, threads), ids[:distinct], mask[:distinct])
    return logits[np.arange(len(ids)) % distinct]


def compiled_logits(engine: OpenVinoEngine, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits of the compiled model, float32 [rows, 3]; rows is a multiple of its batch size."""
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
    parser = argparse.ArgumentParser(
        prog="python -m deberta.stages.compile.compile_cpu", description="build-om on a CPU"
    )
    parser.add_argument("--model", required=True, type=Path, help="dynamic.onnx")
    parser.add_argument("--bs", required=True, help="the batch size")
    parser.add_argument("--output", required=True, type=Path, help="the .xml; its .bin is written beside it")
    parser.add_argument("--any-length", action="store_true", help="one model for every length, of export-onnx's twin")
    parser.add_argument("--precision", default=FP32, help="fp32 or int8")
    parser.add_argument("--threads", help="default: as many as the container's CPU quota allows")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    batch_size = parse_batch_size(options.bs)
    precision = one_of("--precision", options.precision, PRECISIONS)
    threads = parse_integer("--threads", options.threads, effective_cpus(), 1, openvino_engine.MAX_THREADS)
    if options.output.suffix != ".xml":
        raise ConfigError(f"--output {options.output} must end in .xml; the weights go to a .bin beside it")
    if not options.model.is_file():
        raise MissingError(f"{options.model} is missing. Run: invoke export-onnx")
    with new_model(options.output) as xml:
        layers = save(options.model, batch_size, xml, SEQUENCE_LENGTH if options.any_length else 0, precision)
        if layers:
            print(f"quantized the weights of {layers} layers to int8", flush=True)
        print(f"compiled {options.model} for batch size {batch_size}, verifying against ONNX Runtime", flush=True)
        engine = openvino_engine.load_model(xml, threads)
        ids, mask = verification_rows(batch_size, engine.shape[1], engine.vocabulary)
        reference = reference_logits(options.model, ids, mask, threads)
        allowed = TOLERANCE if precision == FP32 else INT8_TOLERANCE * float(np.abs(reference).max())
        difference = compare(reference, compiled_logits(engine, ids, mask), allowed, precision == FP32)
        for length in CUTS if options.any_length else ():
            fitting = mask.sum(axis=1) <= length
            logits = compiled_logits(engine, ids[:, :length], mask[:, :length])
            difference = max(difference, compare(reference[fitting], logits[fitting], allowed, precision == FP32))
        print(f"max abs difference of {len(ids)} rows' logits: {difference:.3g} (at most {allowed:.3g})", flush=True)
    if options.summary:
        _write_summary(options.summary, engine, len(ids), difference, allowed, layers)


def _write_summary(
    path: Path, engine: OpenVinoEngine, rows: int, difference: float, allowed: float, layers: int
) -> None:
    import onnxruntime

    counted = {
        **openvino_engine.engine_facts(engine),
        "reference": f"onnxruntime {onnxruntime.__version__}",
        "verified_rows": rows,
        "max_abs_difference": difference,
        "tolerance": allowed,
        "quantized_layers": layers,
    }
    files.write_text(path, json.dumps(counted, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
