"""A report's cells, counted again from the logits: per batch size and version, against PyTorch, against each other.

Logits are float32 [rows, 3] in the tsv's order, columns as contract.LABELS; line = row + 2. A margin is a row's
largest logit minus its second largest, rounded to 3 digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from deberta.core import contract, files, mnli, schema
from deberta.core.differences import differences
from deberta.core.errors import DataError, MissingError
from deberta.core.job import EvaluationFiles, FigureFiles
from deberta.core.report import (
    CUT,
    LISTED,
    TEXT_LISTED,
    WRONG_LISTED,
    Agreement,
    Disagreement,
    EvaluationCell,
    LabelChange,
    LabelOrder,
    Proportion,
    ReferenceComparison,
    WrongRow,
    WrongRows,
)
from deberta.core.schema import Schema
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import Logits, compare_logits, finite_rows, margins, predicted, read_array
from deberta.stages.inference.postprocess import Evaluation, Gold
from deberta.stages.report import intervals

MARGIN_DIGITS = 3  # what is listed is what is judged
Rows = npt.NDArray[np.int64]


class Recount(NamedTuple):
    """One evaluation, counted again from its logits."""

    cell: EvaluationCell
    logits: Logits


class Version(NamedTuple):
    """What the cells of one version share. `reference`: PyTorch's logits, if there are any."""

    gold: Sequence[Gold]
    reference: Logits | None
    near_tie_margin: float

    @property
    def labels(self) -> Rows:
        return np.array([label for _, label in self.gold], np.int64)


def shared(source: FigureFiles, schema: type[Schema]) -> dict[str, Any]:
    """What a job says of a figure that the report's schema has by the same name."""
    return {name: getattr(source, name) for name in source.__struct_fields__ if name in schema.__struct_fields__}


def recount(source: EvaluationFiles, data: Path, version: Version, limit: int, root: Path = Path()) -> Recount:
    """Count a cell's outputs again; `source` is the job's, its paths relative to `root`.

    Raises MissingError; DataError if outputs are not whole or not finite, or if either of the evaluation's two files
    says something else than the logits do.
    """
    outputs, rows = postprocess.by_length(source.outputs, root), len(version.gold)
    run = postprocess.read_run(outputs, postprocess.by_length(source.bins, root), data, rows, source.batch_size)
    counts = postprocess.count(version.gold, run, source.version, source.batch_size, limit)
    _check_evaluation(root / source.evaluation, ", ".join(map(str, outputs.values())), counts)
    content = {
        **shared(source, EvaluationCell),
        **msgspec.structs.asdict(proportion(counts.correct, counts.rows)),
        "lengths": run.buckets or {str(contract.SEQUENCE_LENGTH): rows},
        "genres": {genre: proportion(tally.correct, tally.rows) for genre, tally in counts.genres.items()},
        "labels_predicted": counts.labels_predicted,
        "labels_gold": counts.labels_gold,
        "confusion": counts.confusion,
        "permutations": permutations(counts.confusion),
        "versus_reference": None if version.reference is None else versus(run.logits, version.reference, version),
    }
    return Recount(msgspec.convert(content, EvaluationCell), run.logits)


def _check_evaluation(text: Path, outputs: str, counts: Evaluation) -> None:
    again = f"Run: invoke postprocess --bs {counts.batch_size} --version {counts.version} --force"
    path = text.with_suffix(".json")
    for needed in (text, path):
        if not needed.is_file():
            raise MissingError(f"{needed} is missing. {again}")
    try:
        stored = schema.read_json(path, Any)
    except ValueError as error:
        raise DataError(f"{path} {error}. {again}") from None
    for place, value, counted in differences(stored, msgspec.to_builtins(counts)):
        what = f"is {value}, and {counted}"
        if value is None:
            what = f"is missing, and is {counted}"
        elif counted is None:
            what = "is there, and not expected"
        raise DataError(f"{path}: {place or 'the whole'} {what} by the logits in {outputs}. {again}")
    if files.read_bytes(text) != postprocess.guide_text(counts).encode("utf-8"):
        raise DataError(f"{text} is not what the logits in {outputs} give. {again}")


def read_reference(path: Path, rows: int) -> Logits:
    """PyTorch's logits. Raises MissingError; DataError if they are not finite float32 [rows, 3]."""
    again = "Remove it and run: invoke acceptance"
    logits = read_array(path, again, rows)
    bad = np.flatnonzero(~finite_rows(logits))
    if len(bad):
        raise DataError(f"{path}: {len(bad)} rows hold NaN or infinity, the first is row {bad[0]}. {again}")
    return logits


def proportion(correct: int, rows: int) -> Proportion:
    return Proportion(rows=rows, correct=correct, accuracy=correct / rows, interval=intervals.wilson(correct, rows))


def permutations(confusion: Mapping[str, Mapping[str, int]]) -> list[LabelOrder]:
    """Correct rows if the model's outputs meant each of the six orders of labels; best first, then the usual order.

    `confusion`: by gold label, then by predicted label. order[i]: the label that output i is read as.
    """
    rows = sum(sum(counts.values()) for counts in confusion.values())
    orders = []
    for order in itertools.permutations(contract.LABELS):
        correct = sum(confusion[meaning][label] for label, meaning in zip(contract.LABELS, order, strict=True))
        orders.append(LabelOrder(order=list(order), correct=correct, accuracy=correct / rows))
    return sorted(orders, key=lambda order: -order.correct)


def versus(logits: Logits, reference: Logits, version: Version) -> ReferenceComparison:
    """A run beside PyTorch on the same rows; the margins are PyTorch's."""
    difference, gold = compare_logits(reference, logits), version.labels
    expected, this = difference.labels
    only_reference = int(((expected == gold) & (this != gold)).sum())
    only_this = int(((this == gold) & (expected != gold)).sum())
    changed, margin = difference.changed, np.round(difference.margins[0], MARGIN_DIGITS)
    return ReferenceComparison(
        same_labels=len(gold) - len(changed),
        only_reference_correct=only_reference,
        only_this_correct=only_this,
        p_value=intervals.mcnemar(only_reference, only_this),
        flips=[
            LabelChange(
                row=row,
                line=row + 2,
                margin=float(margin[row]),
                gold=contract.LABELS[gold[row]],
                reference=label,
                this=changed_label,
            )
            for row, (label, changed_label), _ in itertools.islice(difference.changes(margin), LISTED)
        ],
        flips_total=len(changed),
        beyond_near_ties=int((margin[changed] >= version.near_tie_margin).sum()),
    )


def wrong_rows(recounts: Sequence[Recount], version: Version, data: Path) -> WrongRows:
    """The wrong rows that were most certain, of the first of some evaluations of one version. `data`: their tsv."""
    cell, logits = recounts[0]
    labels, gold, margin = predicted(logits), version.labels, np.round(margins(logits), MARGIN_DIGITS)
    wrong = np.flatnonzero(labels != gold).tolist()
    listed = sorted(wrong, key=lambda row: (-margin[row], row))[:WRONG_LISTED]
    texts = {number: row for number, row in enumerate(mnli.rows(data)) if number in listed}
    return WrongRows(
        batch_size=cell.batch_size,
        version=cell.version,
        precision=cell.precision,
        origin=cell.origin,
        total=len(wrong),
        rows=[
            WrongRow(
                row=row,
                line=row + 2,
                gold=contract.LABELS[gold[row]],
                label=contract.LABELS[labels[row]],
                margin=float(margin[row]),
                premise=cut(texts[row].premise),
                hypothesis=cut(texts[row].hypothesis),
            )
            for row in listed
        ],
    )


def cut(text: str) -> str:
    return text if len(text) <= TEXT_LISTED else f"{text[:TEXT_LISTED]}{CUT}"


def agreement(recounts: Sequence[Recount], version: Version) -> Agreement:
    """Whether all batch sizes predict the same labels; the margins are the smallest batch size's.

    `recounts`: at least one, by increasing batch size, all of `version`, in float32 and of the present model.
    """
    sizes = [recount.cell.batch_size for recount in recounts]
    labels = np.stack([predicted(recount.logits) for recount in recounts])
    differ = np.flatnonzero((labels != labels[0]).any(axis=0))
    margin = np.round(margins(recounts[0].logits), MARGIN_DIGITS)
    return Agreement(
        batch_sizes=sizes,
        rows_that_differ=len(differ),
        beyond_near_ties=int((margin[differ] >= version.near_tie_margin).sum()),
        near_tie_margin=version.near_tie_margin,
        differences=[
            Disagreement(
                row=row,
                line=row + 2,
                margin=float(margin[row]),
                labels={str(size): contract.LABELS[label] for size, label in zip(sizes, labels[:, row], strict=True)},
            )
            for row in sorted(differ.tolist(), key=lambda row: (-margin[row], row))[:LISTED]
        ],
    )
