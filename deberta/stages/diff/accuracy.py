"""Two reports' evaluations: a paired test on the rows that both have, and the rows whose label changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import structs

from deberta.core.contract import LABELS, PRECISIONS, VERSIONS
from deberta.core.differences import HIGHER, LOWER, SAME, AccuracyDifference, ChangedRow, PairedTest
from deberta.core.errors import DebertaError
from deberta.core.report import LISTED, EvaluationCell
from deberta.stages.diff import sides
from deberta.stages.diff.sides import Pairs, ReportSide, RunRows
from deberta.stages.report import intervals
from deberta.stages.report.cells import MARGIN_DIGITS, cut
from deberta.stages.report.distributions import normal_tail

SIGNIFICANT = 0.05


class Pairing(NamedTuple):
    """The rows of an evaluation in both, and which of them are the same rows."""

    a: RunRows
    b: RunRows
    rows: Pairs


class Comparison(NamedTuple):
    """`changed_total`: changed rows, one that changed alike at several batch sizes counted once.

    `no_text`: why rows have no text, empty if they have.
    """

    accuracy: list[AccuracyDifference]
    changed_rows: list[ChangedRow]
    changed_total: int
    no_text: str


def compare(a: ReportSide, b: ReportSide) -> Comparison:
    """All evaluations that both have. Reads what the trees have of their rows; raises OSError for a disk's faults."""
    accuracy: list[AccuracyDifference] = []
    changed: dict[tuple[str, str, int, int, int, int], list[tuple[EvaluationCell, Pairing, int]]] = {}
    for cell_a, cell_b in common(a.report.body.cells, b.report.body.cells):
        pairing, reason = _pairing(a, b, cell_a, cell_b)
        accuracy.append(_difference(cell_a, cell_b, pairing, reason))
        if pairing:
            for place in _changed(pairing):
                row_a, row_b = int(pairing.rows.a[place]), int(pairing.rows.b[place])
                labels = int(pairing.a.labels[row_a]), int(pairing.b.labels[row_b])
                key = (cell_b.version, cell_b.precision, row_a, row_b, *labels)
                changed.setdefault(key, []).append((cell_b, pairing, place))
    rows = [_row(key, runs) for key, runs in changed.items()]
    rows.sort(key=lambda row: (VERSIONS.index(row.version), row.precision, -row.margin_a, row.line))
    listed = [row for version in VERSIONS for row in [row for row in rows if row.version == version][:LISTED]]
    shown, no_text = _with_text(a, b, listed)
    return Comparison(accuracy, shown, len(rows), no_text)


def common(
    cells_a: Sequence[EvaluationCell], cells_b: Sequence[EvaluationCell]
) -> Iterator[tuple[EvaluationCell, EvaluationCell]]:
    """The evaluations of one version, precision and batch size; those of the smallest ones if no size is in both."""
    for version in VERSIONS:
        for precision in PRECISIONS:
            of_a, of_b = (
                {cell.batch_size: cell for cell in cells if (cell.version, cell.precision) == (version, precision)}
                for cells in (cells_a, cells_b)
            )
            sizes = sorted(of_a.keys() & of_b.keys())
            yield from ((of_a[size], of_b[size]) for size in sizes)
            if of_a and of_b and not sizes:
                yield of_a[min(of_a)], of_b[min(of_b)]


def _pairing(
    a: ReportSide, b: ReportSide, cell_a: EvaluationCell, cell_b: EvaluationCell
) -> tuple[Pairing | None, str]:
    """The paired rows, or why there are none."""
    try:
        rows_a, rows_b = a.rows(cell_a), b.rows(cell_b)
        pairs = sides.pair(a, b, cell_a.version, len(rows_a.gold), len(rows_b.gold))
    except (DebertaError, OSError) as error:
        return None, sides.why_not(error)
    if not len(pairs.a):
        return None, "the two have no row in common"
    if (rows_a.gold[pairs.a] != rows_b.gold[pairs.b]).any():
        return None, "the two have other gold labels for the same rows"
    return Pairing(rows_a, rows_b, pairs), ""


def _difference(
    cell_a: EvaluationCell, cell_b: EvaluationCell, pairing: Pairing | None, reason: str
) -> AccuracyDifference:
    paired = None
    if pairing:
        gold = pairing.a.gold[pairing.rows.a]
        right_a = pairing.a.labels[pairing.rows.a] == gold
        right_b = pairing.b.labels[pairing.rows.b] == gold
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        p_value, less = intervals.mcnemar(only_a, only_b), only_b < only_a
        paired = PairedTest(
            rows=len(gold),
            only_a_correct=only_a,
            only_b_correct=only_b,
            changed=len(_changed(pairing)),
            p_value=p_value,
        )
    else:
        p_value = _unpaired(cell_a, cell_b)
        less = cell_b.accuracy < cell_a.accuracy
    return AccuracyDifference(
        version=cell_b.version,
        precision=cell_b.precision,
        batch_size_a=cell_a.batch_size,
        batch_size_b=cell_b.batch_size,
        rows_a=cell_a.rows,
        correct_a=cell_a.correct,
        rows_b=cell_b.rows,
        correct_b=cell_b.correct,
        paired=paired,
        why_not_paired=reason,
        p_value=p_value,
        conclusion=SAME if p_value >= SIGNIFICANT else LOWER if less else HIGHER,
    )


def _unpaired(a: EvaluationCell, b: EvaluationCell) -> float:
    """Two-sided p-value of the z test of two proportions, with the variance of both counts together."""
    share = (a.correct + b.correct) / (a.rows + b.rows)
    variance = share * (1 - share) * (1 / a.rows + 1 / b.rows)
    deviation = abs(a.correct / a.rows - b.correct / b.rows)
    return round(2 * normal_tail(deviation / math.sqrt(variance)), intervals.DIGITS) if variance else 1.0


def _changed(pairing: Pairing) -> list[int]:
    """The places among the pairs of the rows with another label."""
    labels = pairing.a.labels[pairing.rows.a], pairing.b.labels[pairing.rows.b]
    return np.flatnonzero(labels[0] != labels[1]).tolist()


def _row(key: tuple[str, str, int, int, int, int], runs: Sequence[tuple[EvaluationCell, Pairing, int]]) -> ChangedRow:
    version, precision, row_a, row_b, label_a, label_b = key
    pairing = runs[0][1]
    return ChangedRow(
        version=version,
        precision=precision,
        batch_sizes=[cell.batch_size for cell, _, _ in runs],
        line_a=row_a + 2,
        line=row_b + 2,
        gold=LABELS[pairing.b.gold[row_b]],
        a=LABELS[label_a],
        b=LABELS[label_b],
        margin_a=round(float(pairing.a.margins[row_a]), MARGIN_DIGITS),
        margin_b=round(float(pairing.b.margins[row_b]), MARGIN_DIGITS),
        premise="",
        hypothesis="",
    )


def _with_text(a: ReportSide, b: ReportSide, rows: Sequence[ChangedRow]) -> tuple[list[ChangedRow], str]:
    """The rows with their sentences, of B's tsv or, if the rows are the same, of A's; or why there are none."""
    reasons, with_text = [], []
    for version in dict.fromkeys(row.version for row in rows):
        of_version, reason = [row for row in rows if row.version == version], ""
        for side, lines in ((b, [row.line for row in of_version]), (a, [row.line_a for row in of_version])):
            try:
                table = side.table(version)
            except (DebertaError, OSError) as error:
                reason = reason or sides.why_not(error)
                continue
            texts = [table[line - 2] for line in lines]
            of_version = [
                structs.replace(row, premise=cut(text.premise), hypothesis=cut(text.hypothesis))
                for row, text in zip(of_version, texts, strict=True)
            ]
            break
        else:
            reasons.append(reason)
        with_text += of_version
    return with_text, next(iter(reasons), "")
