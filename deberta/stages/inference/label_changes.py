"""An int8 run beside the float32 run of the same rows: both accuracies, and the rows whose label changed.

Rows are those of the tsv. A margin is a row's largest logit minus its second largest: a change at a small float32
margin says little. Both runs are padded, or both have the same length buckets.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deberta.core import buckets, contract, files
from deberta.core.errors import run_stage
from deberta.stages.data import row_order
from deberta.stages.inference import postprocess, postprocess_buckets
from deberta.stages.inference.logits import Logits, compare_logits, finite_rows, read_outputs
from deberta.stages.inference.postprocess import Gold

SHOWN = 50  # changed rows listed, those of the largest float32 margin first


def compare(gold: Sequence[Gold], fp32: Logits, int8: Logits) -> dict[str, object]:
    """Two runs' logits, float32 [rows, 3], finite, in the tsv's order."""
    labels = np.array([label for _, label in gold])
    difference = compare_logits(fp32, int8)
    (before, after), (margin_fp32, margin_int8), changed = difference.labels, difference.margins, difference.changed
    listed = sorted(changed.tolist(), key=lambda row: (-margin_fp32[row], row))[:SHOWN]
    return {
        "rows": len(gold),
        **{
            name: {"correct": int((found == labels).sum()), "accuracy": float((found == labels).sum() / len(gold))}
            for name, found in (("fp32", before), ("int8", after))
        },
        "labels_changed": len(changed),
        "right_before": int((before[changed] == labels[changed]).sum()),
        "right_now": int((after[changed] == labels[changed]).sum()),
        "max_abs_difference": difference.max_abs,
        "mean_abs_difference": difference.mean_abs,
        "largest_margin_changed": float(margin_fp32[changed].max()) if len(changed) else 0.0,
        "changed": [
            {
                "row": row,
                "line": row + 2,
                "gold": contract.LABELS[labels[row]],
                "fp32": contract.LABELS[before[row]],
                "int8": contract.LABELS[after[row]],
                "margin_fp32": float(margin_fp32[row]),
                "margin_int8": float(margin_int8[row]),
            }
            for row in listed
        ],
    }


def read(
    outputs: Mapping[int, Path], bins: Mapping[int, Path], gold: Sequence[Gold], data: Path, batch_size: int
) -> Logits:
    """A run's logits, float32 [rows, 3]; `bins` of a bucketed run only. Raises MissingError and DataError."""
    if bins:
        orders = row_order.read_all(bins, len(gold), batch_size)
        return postprocess_buckets.merge(outputs, orders, len(gold), batch_size, data)[0]
    [folder] = outputs.values()
    logits = read_outputs(folder, contract.batch_count(len(gold), batch_size), batch_size)[: len(gold)]
    postprocess.check_finite(folder, data, finite_rows(logits), range(len(gold)), batch_size)
    return logits


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.inference.label_changes", description=__doc__)
    parser.add_argument("--fp32", required=True, help="the float32 run's folder of outputs, or one for each length")
    parser.add_argument("--int8", required=True, help="the int8 run's")
    parser.add_argument("--buckets", help="the lengths of bucketed runs")
    parser.add_argument("--bins", help="and their bins, one folder for each length")
    parser.add_argument("--data", type=Path, required=True, help="GLUE's dev tsv, 16 columns")
    parser.add_argument("--bs", required=True, help="rows in an output file")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--limit", help="the outputs are of the first N rows only")
    parser.add_argument("--rows", help="rows that the whole tsv must have")
    parser.add_argument("--version", default="match", help="match or mismatch, recorded in the JSON file")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    batch_size, most = contract.parse_batch_size(options.bs), 2**31 - 1
    limit = contract.parse_integer("--limit", options.limit, 0, 0, most)
    gold = postprocess.read_gold(options.data, limit, contract.parse_integer("--rows", options.rows, 0, 1, most))
    lengths = buckets.lengths(options.buckets) if options.buckets else (contract.SEQUENCE_LENGTH,)
    bins = buckets.folders(lengths, options.bins, "--bins") if options.buckets else {}
    runs = [
        {one: postprocess_buckets.run_folder(path) for one, path in buckets.folders(lengths, given, name).items()}
        for name, given in (("--fp32", options.fp32), ("--int8", options.int8))
    ]
    fp32, int8 = (read(run, bins, gold, options.data, batch_size) for run in runs)
    found = {
        "version": contract.parse_version(options.version),
        "batch_size": batch_size,
        "limit": limit,
        **compare(gold, fp32, int8),
    }
    files.write_text(options.output, json.dumps(found, indent=2) + "\n")
    print(f"{found['labels_changed']} of {len(gold)} labels changed: {options.output}")
    if options.summary:
        files.write_text(options.summary, json.dumps({**found, "changed": []}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
