"""An int8 run beside the float32 run of the same rows: both accuracies, and the rows whose label changed.

Rows are those of the tsv. A margin is a row's largest logit minus its second largest: a change at a small float32
margin says little. Both runs have the same lengths.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import islice

import numpy as np

from deberta.core import contract, files
from deberta.core.errors import run_stage
from deberta.stages import arguments
from deberta.stages.arguments import Argument
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import Logits, compare_logits
from deberta.stages.inference.postprocess import Gold

SHOWN = 50  # changed rows listed, those of the largest float32 margin first


def compare(gold: Sequence[Gold], fp32: Logits, int8: Logits) -> dict[str, object]:
    """Two runs' logits, float32 [rows, 3], finite, in the tsv's order."""
    labels = np.array([label for _, label in gold])
    difference = compare_logits(fp32, int8)
    (before, after), changed, margins = difference.labels, difference.changed, difference.margins[0]
    return {
        "rows": len(gold),
        "fp32": _accuracy(before == labels),
        "int8": _accuracy(after == labels),
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
                "int8": label_int8,
                "margin_fp32": margin_fp32,
                "margin_int8": margin_int8,
            }
            for row, (label_fp32, label_int8), (margin_fp32, margin_int8) in islice(difference.changes(margins), SHOWN)
        ],
    }


def _accuracy(correct: np.ndarray) -> dict[str, float]:
    return {"correct": int(correct.sum()), "accuracy": float(correct.sum() / len(correct))}


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "data bs lengths output version limit rows summary",
        fp32=Argument("the float32 run's folders of outputs, one for each length, commas between", required=True),
        int8=Argument("the int8 run's", required=True),
        bins=postprocess.BINS,
    )
    gold = postprocess.read_gold(options.data, options.limit, options.rows)
    fp32 = postprocess.read_listed(options, "--fp32", options.fp32, len(gold)).logits
    int8 = postprocess.read_listed(options, "--int8", options.int8, len(gold)).logits
    changes = {
        "version": options.version,
        "batch_size": options.bs,
        "limit": options.limit,
        **compare(gold, fp32, int8),
    }
    files.write_text(options.output, json.dumps(changes, indent=2) + "\n")
    print(f"{changes['labels_changed']} of {len(gold)} labels changed: {options.output}")
    arguments.write_summary(options.summary, {**changes, "changed": []})


if __name__ == "__main__":
    sys.exit(run_stage(main))
