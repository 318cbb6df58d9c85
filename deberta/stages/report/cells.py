"""A report's cells, counted again from the logits: per batch size and version, against PyTorch, against each other.

Logits are float32 [rows, 3] in the tsv's order, columns as contract.LABELS; line = row + 2. A margin is a row's
largest logit minus its second largest, rounded to 3 digits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deberta.core import contract
from deberta.core.errors import DataError, MissingError
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import (
    Logits,
    compare_logits,
    finite_rows,
    margins,
    predicted,
    read_array,
)
from deberta.stages.inference.postprocess import Evaluation, Gold
from deberta.stages.report import intervals

LISTED = 50  # rows named in a list, those with the largest margins first; the totals count all
MARGIN_DIGITS = 3
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """One evaluation, counted again. `origin`: empty, or why it is not of the present model."""

    batch_size: int
    version: str
    origin: str
    counts: Evaluation
    logits: Logits


@dataclass(frozen=True)
class Version:
    """What the cells of one version share. `reference`: PyTorch's logits, if there are any."""

    name: str
    gold: Sequence[Gold]
    reference: Logits | None
    near_tie_margin: float

    @property
    def labels(self) -> Rows:
        return np.array([label for _, label in self.gold], np.int64)


def recount(entry: Mapping[str, Any], data: Path, gold: Sequence[Gold], limit: int, root: Path = Path()) -> Cell:
    """Count a cell's outputs again; `entry` is the job's, its paths relative to `root`.

    Raises MissingError; DataError if outputs are not whole or not finite, or if either of the evaluation's two files
    says something else than the logits do.
    """
    batch_size, version = entry["batch_size"], entry["version"]
    outputs = root / entry["outputs"]
    run = postprocess.read_run({contract.SEQUENCE_LENGTH: outputs}, {}, data, len(gold), batch_size)
    counts = postprocess.count(gold, run, version, batch_size, limit)
    _check_evaluation(root / entry["evaluation"], outputs, counts)
    return Cell(batch_size, version, entry["origin"], counts, run.logits)


def _check_evaluation(text: Path, outputs: Path, counts: Evaluation) -> None:
    again = f"Run: invoke postprocess --bs {counts.batch_size} --version {counts.version} --force"
    path = text.with_suffix(".json")
    for needed in (text, path):
        if not needed.is_file():
            raise MissingError(f"{needed} is missing. {again}")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). {again}") from None
    if said := _difference(found, counts.content(), ""):
        raise DataError(f"{path}: {said} by the logits in {outputs}. {again}")
    if text.read_bytes() != postprocess.guide_text(counts).encode("utf-8"):
        raise DataError(f"{text} is not what the logits in {outputs} give. {again}")


def _difference(found: Any, counted: Any, key: str) -> str:
    """The first key whose value is not the counted one, with both; empty if all are."""
    if not isinstance(counted, dict):
        return "" if found == counted else f"{key} is {json.dumps(found)}, and {json.dumps(counted)}"
    if not isinstance(found, dict):
        return f"{key or 'the whole'} is no object, and has {len(counted)} keys"
    for name in [*counted, *found]:
        inner = f"{key}.{name}" if key else name
        if name not in counted:
            return f"{inner} is there, and not expected"
        if name not in found:
            return f"{inner} is missing, and is {json.dumps(counted[name])}"
        if said := _difference(found[name], counted[name], inner):
            return said
    return ""


def read_reference(path: Path, rows: int) -> Logits:
    """PyTorch's logits. Raises MissingError; DataError if they are not finite float32 [rows, 3]."""
    again = "Remove it and run: invoke acceptance"
    logits = read_array(path, again, rows)
    bad = np.flatnonzero(~finite_rows(logits))
    if len(bad):
        raise DataError(f"{path}: {len(bad)} rows hold NaN or infinity, the first is row {bad[0]}. {again}")
    return logits


def cell_body(cell: Cell, version: Version) -> dict[str, Any]:
    """The report's object of one cell."""
    counts = cell.counts
    return {
        "batch_size": cell.batch_size,
        "version": cell.version,
        "origin": cell.origin,
        **proportion(counts.correct, counts.rows),
        "genres": {genre: proportion(tally.correct, tally.rows) for genre, tally in counts.genres.items()},
        "labels_predicted": counts.labels_predicted,
        "labels_gold": counts.labels_gold,
        "confusion": counts.confusion,
        "permutations": permutations(counts.confusion),
        "versus_reference": None if version.reference is None else versus(cell.logits, version.reference, version),
    }


def proportion(correct: int, rows: int) -> dict[str, Any]:
    return {
        "rows": rows,
        "correct": correct,
        "accuracy": correct / rows,
        "interval": list(intervals.wilson(correct, rows)),
    }


def permutations(confusion: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """Correct rows if the model's outputs meant each of the six orders of labels; best first, then the given order.

    `confusion`: by gold label, then by predicted label. order[i]: the label that output i is read as.
    """
    rows = sum(sum(counts.values()) for counts in confusion.values())
    found = []
    for order in itertools.permutations(contract.LABELS):
        correct = sum(confusion[meant][label] for label, meant in zip(contract.LABELS, order, strict=True))
        found.append({"order": list(order), "correct": correct, "accuracy": correct / rows})
    return sorted(found, key=lambda entry: -entry["correct"])


def reference_body(reference: Logits, version: Version) -> dict[str, Any]:
    return proportion(int((predicted(reference) == version.labels).sum()), len(version.gold))


def versus(logits: Logits, reference: Logits, version: Version) -> dict[str, Any]:
    """A run beside PyTorch on the same rows; the margins are PyTorch's."""
    difference, gold = compare_logits(reference, logits), version.labels
    expected, this = difference.labels
    only_reference = int(((expected == gold) & (this != gold)).sum())
    only_this = int(((this == gold) & (expected != gold)).sum())
    margin = np.round(difference.margins[0], MARGIN_DIGITS)  # what is listed is what is judged
    return {
        "same_labels": len(gold) - len(difference.changed),
        "only_reference_correct": only_reference,
        "only_this_correct": only_this,
        "p_value": intervals.mcnemar(only_reference, only_this),
        "flips": [
            {
                **_place(row, margin),
                "gold": contract.LABELS[gold[row]],
                "reference": contract.LABELS[expected[row]],
                "this": contract.LABELS[this[row]],
            }
            for row in _listed(difference.changed, margin)
        ],
        "flips_total": len(difference.changed),
        "beyond_near_ties": int((margin[difference.changed] >= version.near_tie_margin).sum()),
    }


def agreement(cells: Sequence[Cell], version: Version) -> dict[str, Any]:
    """Whether all batch sizes predict the same labels; the margins are the smallest batch size's.

    `cells`: at least one, all of `version` and of the present model.
    """
    ordered = sorted(cells, key=lambda cell: cell.batch_size)
    labels = np.stack([predicted(cell.logits) for cell in ordered])
    differ = np.flatnonzero((labels != labels[0]).any(axis=0))
    margin = np.round(margins(ordered[0].logits), MARGIN_DIGITS)
    return {
        "batch_sizes": [cell.batch_size for cell in ordered],
        "rows_that_differ": len(differ),
        "beyond_near_ties": int((margin[differ] >= version.near_tie_margin).sum()),
        "near_tie_margin": version.near_tie_margin,
        "differences": [
            {
                **_place(row, margin),
                "labels": {
                    str(cell.batch_size): contract.LABELS[label]
                    for cell, label in zip(ordered, labels[:, row], strict=True)
                },
            }
            for row in _listed(differ, margin)
        ],
    }


def _place(row: int, margin: npt.NDArray[np.float64]) -> dict[str, Any]:
    return {"row": row, "line": row + 2, "margin": float(margin[row])}


def _listed(rows: npt.NDArray[np.intp], margin: npt.NDArray[np.float64]) -> list[int]:
    return sorted(rows.tolist(), key=lambda row: (-margin[row], row))[:LISTED]
