"""Runs rows of the bins through dynamic.onnx with ONNX Runtime on the CPU, and compares with the outputs that are kept.

The rows are drawn at random from all runs together. Each row's bins are also compared with what the tokenizer makes of
its line in the tsv: outputs that are consistent with everything but the model and the data are found here alone.

What is replayed stands in a JSON file: {"model": dynamic.onnx, "tokenizer": spm.model, "runs": [{"batch_size": 8,
"version": "match", "data": TSV, "bins": folder, "outputs": folder, "reference": X.npy or ""}], "limit": 0,
"float16": false}. The result is another: {"rows": n, "max_abs_difference": x, "tolerance": x, "differences": [text]}.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deberta.core import contract, files, mnli
from deberta.core.contract import INPUTS, LABELS
from deberta.core.errors import DataError, run_stage
from deberta.core.machine import effective_cpus
from deberta.core.progress import Progress
from deberta.stages import onnx_runtime
from deberta.stages.inference.logits import Logits, compare_logits, read_array
from deberta.stages.model import tokenizer as tokenizers_of_guide

TOLERANCE = 1e-3  # of logits between two float32 engines; build-om's own check allows 1e-4
# Of logits between float32 and an NPU's float16, not measured on a device: the emulation's differences on a model of
# full size reach a few hundredths (docs/check-fp16.md), and a margin below it is no preference (check_fp16.MARGIN).
FLOAT16_TOLERANCE = 0.1
CHUNK_ROWS = 8

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ReplayedRun:
    """One accuracy run whose outputs are kept; `reference` is PyTorch's logits, float32 [rows, 3], or None."""

    batch_size: int
    version: str
    data: Path
    bins: Path
    outputs: Path
    reference: Path | None

    def place(self, row: int) -> str:
        """Where a row of the tsv (from 0) is in the files."""
        batch, within = divmod(row, self.batch_size)
        file = self.outputs / contract.output_file(batch)
        return f"{file}: row {within} (bs {self.batch_size}, {self.data} line {row + 2})"


def read_row(path: Path, row: int, shape: tuple[int, int], kind: str) -> npt.NDArray[Any]:
    """Row `row` of a file that holds an array of `shape`, little-endian `kind`. Raises DataError."""
    try:
        values = np.fromfile(path, kind)
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    if values.size != shape[0] * shape[1]:
        raise DataError(f"{path} has {values.nbytes} bytes, not {4 * shape[0] * shape[1]}")
    found: npt.NDArray[Any] = values.reshape(shape)[row]
    return found


def inputs_of(run: ReplayedRun, row: int) -> Ids:
    """The ids and the mask of a row's bins, int32 [2, 256]."""
    batch, within = divmod(row, run.batch_size)
    shape = (run.batch_size, contract.SEQUENCE_LENGTH)
    return np.stack([read_row(run.bins / name / contract.input_file(batch), within, shape, "<i4") for name in INPUTS])


def stored_logits(run: ReplayedRun, row: int) -> Logits:
    """The logits of a row that the run left, float32 [3]."""
    batch, within = divmod(row, run.batch_size)
    shape = (run.batch_size, len(LABELS))
    return read_row(run.outputs / contract.output_file(batch), within, shape, "<f4")


def judge(expected: Logits, stored: Logits, tolerance: float, float16: bool) -> tuple[float, str]:
    """Largest difference between the model's logits and the ones kept, and what is wrong with them, or "".

    Labels must be the same; in float16 another one is allowed where the model's two largest logits are closer than
    the tolerance.
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


def draw(counts: Sequence[int], wanted: int, seed: int) -> list[tuple[int, int]]:
    """`wanted` different (run, row), in order, out of runs of `counts` rows; all of them if there are no more."""
    total = sum(counts)
    chosen = sorted(random.Random(seed).sample(range(total), min(wanted, total)))
    starts = np.cumsum([0, *counts])
    places = np.searchsorted(starts, chosen, side="right") - 1
    return [(int(run), number - int(starts[run])) for run, number in zip(places, chosen, strict=True)]


def replay(plan: Mapping[str, Any], wanted: int, seed: int) -> dict[str, Any]:
    """Replay a plan (see above) and return the result. Raises MissingError and DataError."""
    runs = [_run(entry) for entry in plan["runs"]]
    limit, float16 = int(plan["limit"]), bool(plan["float16"])
    tolerance = FLOAT16_TOLERANCE if float16 else TOLERANCE
    rows = {data: list(mnli.rows(data, limit=limit)) for data in {run.data for run in runs}}
    chosen = draw([len(rows[run.data]) for run in runs], wanted, seed)
    tokenizer = tokenizers_of_guide.load(Path(plan["tokenizer"]))
    tokenizers_of_guide.truncate(tokenizer, contract.SEQUENCE_LENGTH)
    session = onnx_runtime.open_session(Path(plan["model"]), effective_cpus())
    paths = {run.reference for run in runs if run.reference is not None}
    references = {path: read_array(path, "Run: invoke acceptance") for path in paths}
    progress = Progress("replaying", len(chosen), "rows")
    differences, largest = [], 0.0
    for first in range(0, len(chosen), CHUNK_ROWS):
        part = [(runs[run], row) for run, row in chosen[first : first + CHUNK_ROWS]]
        given = np.stack([inputs_of(run, row) for run, row in part], axis=1)  # [2, rows, 256]
        logits = onnx_runtime.run(session, *given)
        for at, (run, row) in enumerate(part):
            pair = rows[run.data][row]
            tokens = tokenizer.encode(pair.premise, pair.hypothesis).ids
            expected = np.zeros((len(INPUTS), contract.SEQUENCE_LENGTH), np.int32)
            expected[0, : len(tokens)], expected[1, : len(tokens)] = tokens, 1
            if not np.array_equal(expected, given[:, at]):
                line = f"{run.data} line {row + 2}"
                differences.append(f"{run.bins}: row {row} is not what the tokenizer makes of {line}")
            difference, wrong = judge(logits[at], stored_logits(run, row), tolerance, float16)
            largest = max(largest, difference)
            if wrong:
                differences.append(f"{run.place(row)}: {wrong}")
            if run.reference is not None:
                _, wrong = judge(logits[at], references[run.reference][row], TOLERANCE, False)
                if wrong:
                    differences.append(f"{run.reference}: row {row} ({run.data} line {row + 2}): {wrong}")
        progress.update(first + len(part))
    return {
        "rows": len(chosen),
        "max_abs_difference": largest,
        "tolerance": tolerance,
        "differences": list(dict.fromkeys(differences)),
    }


def _run(entry: Mapping[str, Any]) -> ReplayedRun:
    return ReplayedRun(
        batch_size=int(entry["batch_size"]),
        version=str(entry["version"]),
        data=Path(entry["data"]),
        bins=Path(entry["bins"]),
        outputs=Path(entry["outputs"]),
        reference=Path(entry["reference"]) if entry["reference"] else None,
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m deberta.stages.verify.replay", description="rows through dynamic.onnx"
    )
    parser.add_argument("--plan", type=Path, required=True, help="what to replay: see the module's text")
    parser.add_argument("--rows", required=True, help="rows to draw")
    parser.add_argument("--seed", required=True, help="of the draw")
    parser.add_argument("--output", type=Path, required=True, help="the result, JSON")
    options = parser.parse_args(argv)
    rows = contract.parse_integer("--rows", options.rows, 0, 1, 10**9)
    seed = contract.parse_integer("--seed", options.seed, 0, 0, 2**32 - 1)
    result = replay(json.loads(options.plan.read_text(encoding="utf-8")), rows, seed)
    files.write_text(options.output, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
