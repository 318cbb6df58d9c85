"""Runs random rows of accuracy runs through dynamic.onnx again and compares with the logits that were kept.

Each row's bins are also compared with the tokens of its line in the tsv. This alone detects outputs that agree with
all records, but not with the model or the data.

The plan is a JSON file: {"model": dynamic.onnx, "tokenizer": spm.model, "runs": [{"batch_size": 8, "data": TSV,
"bins": {"256": folder}, "outputs": {"256": folder}, "reference": X.npy or ""}], "limit": 0, "float16": false}, folders
by sequence length. The result is JSON too: {"rows": n, "max_abs_difference": x, "tolerance": x, "differences": [text]}.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deberta.core import contract, files, mnli, schema
from deberta.core.contract import INPUTS, LABELS, SEQUENCE_LENGTH
from deberta.core.errors import DataError, run_stage
from deberta.core.machine import effective_cpus
from deberta.core.progress import track
from deberta.stages import arguments, onnx_runtime
from deberta.stages.arguments import Argument, whole
from deberta.stages.data import row_order
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import Logits, compare_logits, read_array
from deberta.stages.model import tokenizer as tokenizers_of_guide

TOLERANCE = 1e-3  # of logits between two float32 engines; build-om's own check allows 1e-4
# Of logits between float32 and an NPU's float16, not measured on a device: the emulation's differences on a model of
# full size reach a few hundredths (docs/check-fp16.md), and a margin below it is no preference (check_fp16.MARGIN).
FLOAT16_TOLERANCE = 0.1
CHUNK_ROWS = 8

Inputs = npt.NDArray[np.int32]


class RowPlace(NamedTuple):
    """Where a row of the tsv is: the sequence length that it ran at, the number of its files, its row in them."""

    length: int
    file: int
    row: int


@dataclass(frozen=True)
class ReplayedRun:
    """An accuracy run whose outputs were kept. `bins` and `outputs` are folders by sequence length.

    `places` has an entry for each row of the tsv; `reference` is PyTorch's logits, float32 [rows, 3], or None.
    """

    batch_size: int
    data: Path
    bins: Mapping[int, Path]
    outputs: Mapping[int, Path]
    places: Sequence[RowPlace]
    reference: Path | None

    def inputs(self, row: int) -> Inputs:
        """Ids and mask of a row of the tsv (from 0), int32 [2, 256]; what lies beyond its length is zero."""
        place = self.places[row]
        padded = np.zeros((len(INPUTS), SEQUENCE_LENGTH), np.int32)
        for values, name in zip(padded, INPUTS, strict=True):
            path = self.bins[place.length] / name / contract.input_file(place.file)
            values[: place.length] = read_row(path, place.row, (self.batch_size, place.length), "<i4")
        return padded


def read_row(path: Path, row: int, shape: tuple[int, int], kind: str) -> npt.NDArray[Any]:
    """Row `row` of a file that holds an array of `shape`, little-endian `kind` of 4 bytes. Raises DataError."""
    try:
        values = np.fromfile(path, kind)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    if values.size != shape[0] * shape[1]:
        raise DataError(f"{path} has {values.nbytes} bytes, not {4 * shape[0] * shape[1]}")
    return np.asarray(values.reshape(shape)[row])


def judge(expected: Logits, stored: Logits, tolerance: float, float16: bool) -> tuple[float, str]:
    """The largest difference between a row's expected and stored logits, and what is wrong with it, or "".

    Labels must be equal. In float16 they may differ where the two largest expected logits are closer than the
    tolerance.
    """
    difference = compare_logits(expected[None], stored[None])
    largest = difference.max_abs or 0.0
    near_tie = float16 and difference.margins[0][0] < tolerance
    if len(difference.changed) and not near_tie:
        model, kept = (LABELS[labels[0]] for labels in difference.labels)
        return largest, f"label {kept}, the model says {model}"
    if not difference.within(tolerance):
        return largest, f"logits {stored.tolist()}, the model says {expected.tolist()}"
    return largest, ""


def draw(counts: Sequence[int], size: int, seed: int) -> list[tuple[int, int]]:
    """`size` different (run, row), in order, out of runs of `counts` rows; all of them if there are no more."""
    places = [(run, row) for run, count in enumerate(counts) for row in range(count)]
    return sorted(random.Random(seed).sample(places, min(size, len(places))))


def replay(plan: Mapping[str, Any], size: int, seed: int) -> dict[str, Any]:
    """Replay `size` rows of a plan (see above) and return the result. Raises MissingError and DataError."""
    limit, float16 = plan["limit"], bool(plan["float16"])
    tolerance = FLOAT16_TOLERANCE if float16 else TOLERANCE
    pairs = {path: list(mnli.rows(Path(path), limit=limit)) for path in {entry["data"] for entry in plan["runs"]}}
    runs = [_run(entry, len(pairs[entry["data"]])) for entry in plan["runs"]]
    drawn = [(runs[index], row) for index, row in draw([len(run.places) for run in runs], size, seed)]
    tokenizer = tokenizers_of_guide.load(Path(plan["tokenizer"]), SEQUENCE_LENGTH)
    longest = tokenizers_of_guide.longest_row(tokenizer)
    session = onnx_runtime.open_session(Path(plan["model"]), effective_cpus())
    paths = {run.reference for run in runs if run.reference is not None}
    references = {path: read_array(path, "Run: invoke acceptance") for path in paths}
    chunks = [drawn[first : first + CHUNK_ROWS] for first in range(0, len(drawn), CHUNK_ROWS)]
    differences, largest = [], 0.0
    for chunk in track(chunks, "replaying", "rows", len):
        inputs = np.stack([run.inputs(row) for run, row in chunk])  # [rows, 2, 256]
        logits = onnx_runtime.run(session, inputs[:, 0], inputs[:, 1])
        for expected, ids_and_mask, (run, row) in zip(logits, inputs, chunk, strict=True):
            pair, line = pairs[str(run.data)][row], f"{run.data} line {row + 2}"
            place = run.places[row]
            file = run.outputs[place.length] / contract.output_file(place.file)
            stored = read_row(file, place.row, (run.batch_size, len(LABELS)), "<f4")  # the logits kept, float32 [3]
            tokenizers_of_guide.check_row(pair.premise, pair.hypothesis, longest, line)
            tokens = tokenizer.encode(pair.premise, pair.hypothesis).ids
            padding = [0] * (SEQUENCE_LENGTH - len(tokens))
            if ids_and_mask.tolist() != [tokens + padding, [1] * len(tokens) + padding]:
                differences.append(f"{run.bins[place.length]}: row {row} is not what the tokenizer makes of {line}")
            difference, problem = judge(expected, stored, tolerance, float16)
            largest = max(largest, difference)
            if problem:
                differences.append(f"{file}: row {place.row} (bs {run.batch_size}, {line}): {problem}")
            if run.reference is not None:
                _, problem = judge(expected, references[run.reference][row], TOLERANCE, False)
                if problem:
                    differences.append(f"{run.reference}: row {row} ({line}): {problem}")
    return {
        "rows": len(drawn),
        "of": sum(len(run.places) for run in runs),
        "max_abs_difference": largest,
        "tolerance": tolerance,
        "differences": list(dict.fromkeys(differences)),
    }


def _run(entry: Mapping[str, Any], rows: int) -> ReplayedRun:
    batch_size, bins = entry["batch_size"], postprocess.by_length(entry["bins"])
    if tuple(bins) == (SEQUENCE_LENGTH,):  # the guide's files, in the order of the tsv
        places = [RowPlace(SEQUENCE_LENGTH, *divmod(row, batch_size)) for row in range(rows)]
    else:
        by_row = {
            row: RowPlace(length, index, place)
            for length, order in row_order.read_all(bins, rows, batch_size).items()
            for index, batch in enumerate(order.order)
            for place, row in enumerate(batch)
        }
        places = [by_row[row] for row in range(rows)]
    return ReplayedRun(
        batch_size=batch_size,
        data=Path(entry["data"]),
        bins=bins,
        outputs=postprocess.by_length(entry["outputs"]),
        places=places,
        reference=Path(entry["reference"]) if entry["reference"] else None,
    )


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "output",
        plan=arguments.file("what to replay: see the module's text"),
        rows=Argument("rows to draw", whole(1, 10**9), required=True),
        seed=Argument("of the draw", whole(0, 2**32 - 1), required=True),
    )
    result = replay(schema.read(options.plan, dict[str, Any], "Run: invoke verify"), options.rows, options.seed)
    files.write_text(options.output, schema.text(result))


if __name__ == "__main__":
    sys.exit(run_stage(main))
