"""What differs between two reports, A and B, as a part of a report: tables and words of a ReportDifference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from deberta.core.contract import FP32, RUNNERS, SEQUENCE_LENGTH
from deberta.core.differences import (
    NO_WORSE,
    WORSE,
    AccuracyDifference,
    ChangedRow,
    DiffSide,
    FpsDifference,
    GateDifference,
    ReportDifference,
)
from deberta.core.errors import many
from deberta.stages.report.tables import ABSENT, Cell, Section, Table, between, table

SHOWN = 12  # reasons of a kind


def section(difference: ReportDifference) -> Section:
    """The part of a report that has a baseline, which is A; B is the report itself."""
    a = difference.a
    notes = [
        f"A, the baseline: {side(a)}; SHA-256 of its body {a.body_sha256}. B: this report.",
        statement(difference),
        *reasons(difference),
        *difference.notes,
    ]
    return Section("changes", "Changes since the baseline", tables(difference), notes)


def side(facts: DiffSide) -> str:
    """One of both, in words."""
    partial = f", first {facts.limit} rows only" if facts.limit else ""
    verdict = facts.verdict or "no verdict"
    return f"{facts.name} ({facts.profile} on {facts.backend}{partial}, {verdict}, {facts.made}, {facts.verification})"


def statement(difference: ReportDifference) -> str:
    """The conclusion and what it rests on."""
    counts = [
        f"accuracy {_counts([entry.conclusion for entry in difference.accuracy])}",
        many(difference.changed_total, "changed label"),
        f"fps {_counts([entry.conclusion for entry in difference.fps])}",
        f"{many(len(difference.gates), 'gate check')} changed, {difference.gates_alike} alike",
    ]
    word = {WORSE: "B is worse than A", NO_WORSE: "B is no worse than A"}
    return f"{word.get(difference.conclusion, 'Not all was compared')}: {'; '.join(counts)}."


def _counts(conclusions: Sequence[str]) -> str:
    """As in "2 no difference, 1 lower"."""
    texts = [f"{conclusions.count(word)} {word}" for word in dict.fromkeys(conclusions)]
    return ", ".join(texts) or "of nothing that both have"


def reasons(difference: ReportDifference) -> Iterator[str]:
    """Why it is worse, and what was not compared; the first SHOWN of each."""
    for lead, texts in (("Worse", difference.worse), ("Not compared", difference.not_compared)):
        yield from (f"{lead}: {text}" for text in texts[:SHOWN])
        if len(texts) > SHOWN:
            yield f"{lead}: {len(texts) - SHOWN} more"


def tables(difference: ReportDifference) -> list[Table]:
    """All tables, with and without rows."""
    rows = f"{many(len(difference.changed_rows), 'row')} with another label"
    return [
        table("changes-accuracy", map(_accuracy, difference.accuracy)),
        table("changes-rows", map(_row, difference.changed_rows))._replace(folded=rows),
        table("changes-fps", map(_fps, difference.fps)),
        table("changes-gates", map(_gate, difference.gates)),
        table(
            "changes-facts", ((fact.kind, fact.what, fact.a or ABSENT, fact.b or ABSENT) for fact in difference.facts)
        ),
    ]


def p_value(value: float) -> str:
    """A p-value, of which six digits are known."""
    return f"{value:.4g}" if value else "below 0.000001"


def _accuracy(entry: AccuracyDifference) -> tuple[Cell, ...]:
    sizes = f"{entry.batch_size_b}"
    if entry.batch_size_a != entry.batch_size_b:
        sizes = f"A {entry.batch_size_a}, B {entry.batch_size_b}"
    test = entry.paired
    counts = (test.rows, test.only_a_correct, test.only_b_correct, test.changed) if test else ("",) * 4
    return (
        entry.version,
        "" if entry.precision == FP32 else entry.precision,
        sizes,
        f"{100 * entry.correct_a / entry.rows_a:.2f} % ({entry.correct_a}/{entry.rows_a})",
        f"{100 * entry.correct_b / entry.rows_b:.2f} % ({entry.correct_b}/{entry.rows_b})",
        *map(str, counts),
        p_value(entry.p_value),
        entry.conclusion,
        entry.why_not_paired and f"{entry.why_not_paired}; p is of the z test of both counts",
    )


def _row(row: ChangedRow) -> tuple[Cell, ...]:
    return (
        row.version,
        "" if row.precision == FP32 else row.precision,
        ", ".join(map(str, row.batch_sizes)),
        f"{row.line}",
        "" if row.line == row.line_a else f"{row.line_a}",
        row.gold,
        row.a,
        row.b,
        f"{row.margin_a:.3f}",
        f"{row.margin_b:.3f}",
        row.premise,
        row.hypothesis,
    )


def _fps(entry: FpsDifference) -> tuple[Cell, ...]:
    length = "" if entry.length == SEQUENCE_LENGTH else f"length {entry.length}"
    precision = "" if entry.precision == FP32 else entry.precision
    return (
        f"{entry.batch_size}",
        entry.version,
        ", ".join(filter(None, ("" if entry.runner == RUNNERS[0] else entry.runner, length, precision))),
        f"{entry.fps_a:.2f}",
        between(entry.interval_a, 2),
        f"{entry.fps_b:.2f}",
        between(entry.interval_b, 2),
        f"{100 * entry.change:+.1f} %",
        "" if entry.noise is None else f"{100 * entry.noise:.1f} %",
        entry.conclusion,
        entry.why_not_compared,
    )


def _gate(entry: GateDifference) -> tuple[Cell, ...]:
    return (
        entry.gate,
        entry.of,
        entry.a or ABSENT,
        entry.b or ABSENT,
        (entry.actual_a or ABSENT, entry.required_a or ABSENT),
        (entry.actual_b or ABSENT, entry.required_b or ABSENT),
    )
