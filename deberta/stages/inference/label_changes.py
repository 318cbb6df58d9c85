"""A run of a lower precision beside the float32 run of the same rows: both accuracies, in all and by genre, and the
rows whose label changed.

Rows are those of the tsv. A margin is a row's largest logit minus its second largest: a change at a small float32
margin says little. Both runs have the same lengths.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from deberta.core import contract, files
from deberta.core.errors import run_stage
from deberta.stages import arguments
from deberta.stages.arguments import SHARED, Argument
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import Logits, compare_logits
from deberta.stages.inference.postprocess import Gold

SHOWN = 50  # changed rows listed, those of the largest float32 margin first


def compare(gold: Sequence[Gold], fp32: Logits, lower: Logits) -> dict[str, object]:
    """Two runs' logits, float32 [rows, 3], finite, in the tsv's order."""
    labels = np.array([label for _, label in gold])
    difference = compare_logits(fp32, lower)
    (before, after), changed, margins = difference.labels, difference.changed, difference.margins[0]
    return {
        "rows": len(gold),
        "fp32": _accuracy(before == labels),
        "lower": _accuracy(after == labels),
        "genres": _by_genre([genre for genre, _ in gold], before == labels, after == labels, before != after),
        "labels_changed": len(changed),
        "right_before": int((before[changed] == labels[changed]).sum()),
        "right_now": int((after[changed] == labels[changed]).sum()),
        "max_abs_difference": difference.max_abs,
        "mean_abs_difference": difference.mean_abs,
        "largest_margin_changed": float(margins[changed].max()) if len(changed) else 0.0,
        "changed": [
            {
                "row": row,
                "line": row + 2,
                "gold": contract.LABELS[labels[row]],
                "fp32": label_fp32,
                "lower": label_lower,
                "margin_fp32": margin_fp32,
                "margin_lower": margin_lower,
            }
            for row, (label_fp32, label_lower), (margin_fp32, margin_lower) in islice(
                difference.changes(margins), SHOWN
            )
        ],
    }


def _accuracy(correct: np.ndarray) -> dict[str, float]:
    return {"correct": int(correct.sum()), "accuracy": float(correct.sum() / len(correct))}


def _by_genre(genres: Sequence[str], fp32: np.ndarray, lower: np.ndarray, changed: np.ndarray) -> dict[str, object]:
    """Counts by genre, of bool [rows]: right in float32, right in the lower precision, and of another label there."""
    counted = {"fp32": fp32, "lower": lower, "labels_changed": changed}
    places = {genre: [row for row, name in enumerate(genres) if name == genre] for genre in sorted(set(genres))}
    return {
        genre: {"rows": len(rows), **{name: int(values[rows].sum()) for name, values in counted.items()}}
        for genre, rows in places.items()
    }


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "data bs lengths output version limit rows summary",
        precision=replace(SHARED["precision"], help="of the other run", required=True),
        fp32=Argument("the float32 run's folders of outputs, one for each length, commas between", required=True),
        lower=Argument("the other run's", required=True),
        bins=postprocess.BINS,
    )
    gold = postprocess.read_gold(options.data, options.limit, options.rows)
    fp32 = postprocess.read_listed(options, "--fp32", options.fp32, len(gold)).logits
    lower = postprocess.read_listed(options, "--lower", options.lower, len(gold)).logits
    changes = {
        "version": options.version,
        "batch_size": options.bs,
        "limit": options.limit,
        "precision": options.precision,
        **compare(gold, fp32, lower),
    }
    files.write_text(options.output, json.dumps(changes, indent=2) + "\n")
    print(f"{changes['labels_changed']} of {len(gold)} labels changed: {options.output}")
    arguments.write_summary(options.summary, {**changes, "changed": []})


if __name__ == "__main__":
    sys.exit(run_stage(main))
