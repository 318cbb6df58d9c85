"""The report's tables that hold runs against each other: lengths, int8, batch sizes, PyTorch, orders of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from deberta.core.contract import FP32, SEQUENCE_LENGTH, VERSIONS
from deberta.core.report import DataProblem, EvaluationCell, Proportion, Report, is_padded
from deberta.stages.report.tables import (
    ABSENT,
    INTERVAL,
    Table,
    accuracy,
    counted,
    filled,
    padded_runs,
    stands,
    where_counted,
)

ABOUT_LENGTHS = (
    "Rows run at the shortest of these lengths that holds them. fps over the data = rows / sum over the lengths of "
    "(its batches * average time of one batch); a length's last batch counts as a whole one. None of this is to be "
    f"held against the published figures, which are of rows padded to {SEQUENCE_LENGTH} in float32."
)


def lengths(report: Report) -> Table:
    """What ran at several lengths or in int8: none of it stands beside a published figure."""
    figures: dict[tuple[int, str, str], list[str]] = {}
    for cell in report.body.cells:
        if cell.precision != FP32 or not is_padded(cell.lengths):
            row = figures.setdefault((cell.batch_size, cell.version, cell.precision), [ABSENT] * 5)
            row[:2] = ",".join(cell.lengths), accuracy(report, cell, with_lengths=False)
    for result in report.measured.throughputs:
        place = (result.batch_size, result.version, result.precision)
        row = figures.setdefault(place, [ABSENT] * 5)
        row[2] = ",".join(result.lengths)
        row[3] = f"{result.fps:.3f} {stands(result.origin, result.place, result.pinned, FP32)}"
        padded = [run.fps for run in padded_runs(report) if (run.batch_size, run.version) == place[:2]]
        row[4] = f"{padded[0]:.3f}" if padded else ABSENT
    rows = tuple((f"{size}", version, precision, *row) for (size, version, precision), row in sorted(figures.items()))
    heads = (
        *("batch size", "version", "precision", "lengths", "measured accuracy"),
        *("lengths that were timed", "fps over the data", "padded fps"),
    )
    return Table("lengths", "Other lengths and int8", heads, ("", "", "", "", "", "", "", "number"), rows)


def int8(report: Report) -> Table:
    """int8 runs beside the float32 runs of the same rows."""
    rows = tuple(
        (
            f"{entry.batch_size}",
            entry.version,
            ",".join(map(str, entry.lengths)),
            f"{entry.int8.correct}/{entry.rows}",
            f"{entry.fp32.correct}/{entry.rows}",
            f"{entry.labels_changed}",
            f"{entry.right_before}",
            f"{entry.right_now}",
            f"{entry.largest_margin_changed:.3f}",
            f"{entry.max_abs_difference:.3f}",
            entry.origin,
        )
        for entry in report.measured.label_changes
    )
    heads = (
        *("batch size", "version", "lengths", "int8 correct", "fp32 correct", "changed labels", "right in fp32"),
        *("right in int8", "largest fp32 margin", "largest difference of a logit", "remarks"),
    )
    return filled(Table("int8", "int8 beside fp32", heads, ("", "", "", *["number"] * 7, "wrap"), rows))


def agreement(report: Report) -> list[Table]:
    """Whether all batch sizes predict the same, and the rows where they do not."""
    versions = report.body.agreement
    rows = [
        (
            version,
            ", ".join(map(str, entry.batch_sizes)),
            f"{entry.rows_that_differ}",
            f"{entry.beyond_near_ties}",
            f"{entry.near_tie_margin}",
        )
        for version, entry in versions.items()
    ]
    heads = ("version", "batch sizes", "rows that differ", "beyond near ties", "near tie: margin below")
    kinds = ("", "", "number", "number", "number")
    singles = [
        (version, f"{row.row}", f"{row.line}", f"{row.margin:.3f}", _predictions(row.labels))
        for version, entry in versions.items()
        for row in entry.differences
    ]
    single_heads = ("version", "row", "line of the tsv", "margin", "predicted, by batch size")
    single_kinds = ("", "number", "number", "number", "wrap")
    caption = "Rows that differ between batch sizes, the largest margins first, 50 at most of a version"
    tables = (
        Table("agreement", "Predictions at all batch sizes", heads, kinds, tuple(rows)),
        Table("differences", caption, single_heads, single_kinds, tuple(singles)),
    )
    return [table for table in tables if table.rows]


def _predictions(labels: Mapping[str, str]) -> str:
    return ", ".join(f"bs {size}: {label}" for size, label in labels.items())


def reference(report: Report) -> list[Table]:
    """PyTorch's own accuracy, each cell against it, and the rows whose label changed."""
    rows = [(version, *counted(counts)) for version, counts in report.body.reference.items()]
    heads = ("version", "correct / rows", "accuracy", INTERVAL)
    kinds = ("", "number", "number", "number")
    own = Table("reference", "PyTorch, float32, the same rows", heads, kinds, tuple(rows))
    return [table for table in (own, _versus(report.body.cells), _label_changes(report.body.cells)) if table.rows]


def size_of(cell: EvaluationCell) -> str:
    """The batch size, as it distinguishes the cells of a version."""
    return f"{cell.batch_size}" if cell.precision == FP32 else f"{cell.batch_size} ({cell.precision})"


def _versus(cells: Sequence[EvaluationCell]) -> Table:
    """A row for all batch sizes that compare alike."""
    sizes: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if versus := cell.versus_reference:
            key = (
                cell.version,
                f"{versus.same_labels}/{cell.rows}",
                f"{versus.only_reference_correct}",
                f"{versus.only_this_correct}",
                f"{versus.p_value}",
                f"{versus.flips_total}",
                f"{versus.beyond_near_ties}",
            )
            sizes.setdefault(key, []).append(size_of(cell))
    rows = [(", ".join(names), *key) for key, names in sizes.items()]
    compared = ("same labels", "only PyTorch correct", "only this correct", "p (McNemar, mid-p)", "changed labels")
    heads = ("batch sizes", "version", *compared, "beyond near ties")
    return Table("versus", "Evaluations against PyTorch", heads, ("", "", *["number"] * 6), tuple(rows))


def _label_changes(cells: Sequence[EvaluationCell]) -> Table:
    """A row each, with all batch sizes that changed its label so."""
    sizes: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        for change in cell.versus_reference.flips if cell.versus_reference else ():
            labels = (change.gold, change.reference, change.this)
            key = (cell.version, f"{change.row}", f"{change.line}", *labels, f"{change.margin:.3f}")
            sizes.setdefault(key, []).append(size_of(cell))
    rows = [(*key, ", ".join(names)) for key, names in sizes.items()]
    heads = ("version", "row", "line of the tsv", "gold", "PyTorch", "this", "PyTorch's margin", "batch sizes")
    kinds = ("", "number", "number", "", "", "", "number", "")
    caption = "Rows whose label changed, the largest margins first, 50 at most of an evaluation"
    return Table("flips", caption, heads, kinds, tuple(rows))


@dataclass(frozen=True)
class Group:
    """The cells of one version that counted the same, at batch sizes that are alike in where they were made."""

    version: str
    sizes: tuple[int, ...]
    stands: str  # as `where_counted`
    cell: EvaluationCell  # the first of them

    @property
    def title(self) -> str:
        separator = " " if self.stands.startswith("on ") else ", "
        return f"{self.version}, bs {', '.join(map(str, self.sizes))}{separator}{self.stands}"

    @property
    def counts(self) -> dict[str, Proportion | EvaluationCell]:
        return counts_of(self.cell)


def counts_of(cell: EvaluationCell) -> dict[str, Proportion | EvaluationCell]:
    """The whole and each genre."""
    return {"all": cell, **cell.genres}


def groups(report: Report) -> list[Group]:
    """The cells by what they counted, versions in order: as a rule one group for each version."""
    same: list[Group] = []
    for cell in sorted(report.body.cells, key=lambda cell: (VERSIONS.index(cell.version), cell.batch_size)):
        stands = where_counted(report, cell)
        for place, group in enumerate(same):
            counts = [(c.version, c.genres, c.confusion, c.permutations) for c in (cell, group.cell)]
            if counts[0] == counts[1] and group.stands == stands:
                same[place] = replace(group, sizes=(*group.sizes, cell.batch_size))
                break
        else:
            same.append(Group(cell.version, (cell.batch_size,), stands, cell))
    return same


def orders(report: Report) -> Table:
    """How many rows would be correct if the model's outputs had another order: a permuted model shows here."""
    rows = []
    for group in groups(report):
        best, second = group.cell.permutations[:2]
        first = [", ".join(best.order), f"{best.correct}", ", ".join(second.order), f"{second.correct}"]
        rows.append((f"{', '.join(map(str, group.sizes))}", group.version, *first))
    heads = ("batch sizes", "version", "best order of outputs", "correct", "next best", "correct")
    kinds = ("", "", "", "number", "", "number")
    return Table("orders", "The outputs taken in other orders", heads, kinds, tuple(rows))


def data_checks(report: Report) -> Table:
    """What the check of the data counted."""
    rows = [
        (version, f"{check.rows}", tuple(map(_problem, check.problems)) or "none", tuple(check.notes) or ABSENT)
        for version, check in report.body.sentinels.items()
    ]
    heads = ("version", "rows", "problems", "notes")
    return Table("data", "The data themselves", heads, ("", "number", "wrap", "wrap"), tuple(rows))


def _problem(problem: DataProblem) -> str:
    lines = f" (line {', '.join(map(str, problem.lines))})" if problem.lines else ""
    return f"{problem.what}{lines}"
