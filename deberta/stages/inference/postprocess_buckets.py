"""The outputs of all length buckets, put back into the tsv's order by order.json, and counted as postprocess counts.

The JSON file says, beyond what a padded run's does, which lengths ran and how many rows each had (`buckets`).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deberta.core import buckets, contract, files
from deberta.core.errors import run_stage
from deberta.stages.data import row_order
from deberta.stages.data.row_order import Order
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import Logits, finite_rows, read_outputs
from deberta.stages.inference.postprocess import Evaluation


def merge(
    outputs: Mapping[int, Path], orders: Mapping[int, Order], rows: int, batch_size: int, data: Path
) -> tuple[Logits, int]:
    """The logits of `rows` tsv rows in their order, float32 [rows, 3], and the number of padding rows with NaN.

    `orders` have each row once (order.read_all). Raises MissingError, DataError.
    """
    logits = np.empty((rows, len(contract.LABELS)), np.float32)
    padding_nan = 0
    for length, found in orders.items():
        placed = found.flat
        values = read_outputs(outputs[length], len(found.order), batch_size)
        finite = finite_rows(values)
        postprocess.check_finite(outputs[length], data, finite[: len(placed)], placed, batch_size)
        padding_nan += int(np.count_nonzero(~finite[len(placed) :]))
        logits[placed] = values[: len(placed)]
    return logits, padding_nan


def evaluate(
    outputs: Mapping[int, Path],
    bins: Mapping[int, Path],
    data: Path,
    batch_size: int,
    version: str,
    limit: int = 0,
    expected_rows: int = 0,
) -> tuple[Evaluation, dict[str, int]]:
    """What was counted, and the rows of each length. Raises as postprocess.evaluate and order.read_all do."""
    gold = postprocess.read_gold(data, limit, expected_rows)
    orders = row_order.read_all(bins, len(gold), batch_size)
    logits, padding_nan = merge(outputs, orders, len(gold), batch_size, data)
    digest = hashlib.sha256()
    for length, folder in outputs.items():
        digest.update(f"{files.folder_digest(folder)}  {length}\n".encode())
    result = postprocess.count(gold, logits, version, batch_size, limit, padding_nan, digest.hexdigest())
    return result, {str(length): len(found.flat) for length, found in orders.items()}


def run_folder(folder: Path) -> Path:
    """The folder itself, or the only one in it: what run_buckets and msame make in theirs has the time as its name."""
    inside = list(folder.iterdir()) if folder.is_dir() else []
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.inference.postprocess_buckets", description=__doc__)
    parser.add_argument("--buckets", required=True, help="the lengths, increasing, with commas between")
    parser.add_argument("--bins", required=True, help="folders of preprocess, one for each length, commas between")
    parser.add_argument("--outputs", required=True, help="folders of outputs or with one such in them, one for each")
    parser.add_argument("--data", type=Path, required=True, help="GLUE's dev tsv, 16 columns")
    parser.add_argument("--bs", required=True, help="rows in an output file")
    parser.add_argument("--output", type=Path, required=True, help="the accuracy text; the JSON file goes beside it")
    parser.add_argument("--limit", help="the outputs are of the first N rows only")
    parser.add_argument("--rows", help="rows that the whole tsv must have")
    parser.add_argument("--version", default="match", help="match or mismatch, recorded in the JSON file")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    most = 2**31 - 1
    lengths = buckets.lengths(options.buckets)
    outputs = buckets.folders(lengths, options.outputs, "--outputs")
    result, rows = evaluate(
        {length: run_folder(folder) for length, folder in outputs.items()},
        buckets.folders(lengths, options.bins, "--bins"),
        options.data,
        contract.parse_batch_size(options.bs),
        contract.parse_version(options.version),
        contract.parse_integer("--limit", options.limit, 0, 0, most),
        contract.parse_integer("--rows", options.rows, 0, 1, most),
    )
    postprocess.keep(result, {**asdict(result), "buckets": rows}, options.output, options.summary)


if __name__ == "__main__":
    sys.exit(run_stage(main))
