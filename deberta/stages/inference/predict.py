"""Outputs of rows without gold labels -> a JSON line for each row: its texts, label, probabilities and margin.

Rows are those of one of convert-pairs' files, of which `--first` says how many rows stand before it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import msgspec
import numpy as np

from deberta.core import contract, files, mnli
from deberta.core.errors import run_stage
from deberta.stages import arguments
from deberta.stages.arguments import Argument
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import Logits, PerRow, margins, predicted
from deberta.stages.inference.postprocess import MARGIN_DIGITS


def probabilities(logits: Logits) -> PerRow:
    """The softmax of logits, [rows, 3], in float64."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


def rows_of(pairs: Sequence[mnli.Row], logits: Logits, labels: Sequence[str], first: int) -> list[dict[str, object]]:
    """Each row as it is written; logits are float32 [rows, 3], finite, and `labels` the order of the probabilities."""
    columns = [contract.LABELS.index(label) for label in labels]
    shares = np.round(probabilities(logits)[:, columns], MARGIN_DIGITS)
    values = zip(pairs, predicted(logits), shares, margins(logits), strict=True)
    return [
        {
            "row": first + index,
            "line": contract.whole(pair.pair_id),
            "premise": pair.premise,
            "hypothesis": pair.hypothesis,
            "label": contract.LABELS[guess],
            "probabilities": dict(zip(labels, of_row.tolist(), strict=True)),
            "margin": round(float(margin), MARGIN_DIGITS),
        }
        for index, (pair, guess, of_row, margin) in enumerate(values)
    ]


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "data bs labels lengths output version rows summary",
        outputs=Argument("folders of outputs, or with one such in them, one for each length", required=True),
        bins=postprocess.BINS,
        first=Argument("rows before this file's", arguments.whole(0), default=0),
    )
    pairs = list(mnli.rows(options.data))
    mnli.expect_rows(options.data, len(pairs), options.rows)
    run = postprocess.read_listed(options, "--outputs", options.outputs, len(pairs))
    rows = rows_of(pairs, run.logits, options.labels or contract.LABELS, options.first)
    files.write_text(options.output, msgspec.json.Encoder().encode_lines(rows).decode())
    print(f"{len(rows)} rows: {options.output}")
    arguments.write_summary(options.summary, {"rows": len(rows)})


if __name__ == "__main__":
    sys.exit(run_stage(main))
