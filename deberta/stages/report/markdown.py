"""report.md: the guide's table, published figures beside measured ones, then everything that stands behind them."""

from __future__ import annotations

from collections.abc import Iterable

from deberta.core.report import Report
from deberta.stages.report import comparisons, tables
from deberta.stages.report.tables import Cell, Table


def markdown(report: Report) -> str:
    """The whole report as Markdown. On a limited run every part of it says so."""
    partial = tables.limited(report)
    lines = [f"# {_text(report.title)}", ""]
    if partial:
        lines += [f"**{partial[0].upper()}{partial[1:]}.**", ""]
    headline = tables.headline(report)
    if report.verdict is not None:
        reasons = [f"- {_text(reason)}" for reason in headline.reasons]
        lines += [f"**{headline.word}.** {_text(headline.statement)}", "", *reasons, *([""] if reasons else [])]
    lines += [*_table(tables.guide(report)), ""]
    for note in tables.notes(report):
        lines += [_text(note), ""]
    if report.verdict is not None:
        lines += _section("Verdict", partial, [tables.gates(report)])
    lines += _section("Accuracy by genre", partial, [_genres(report)])
    lines += _section("Performance runs", partial, [tables.performances(report)])
    lines += _section(
        "Other lengths and int8",
        partial,
        [comparisons.lengths(report), comparisons.int8(report)],
        comparisons.ABOUT_LENGTHS,
    )
    lines += _section("Agreement between batch sizes", partial, comparisons.agreement(report))
    lines += _section("Comparison with the reference", partial, comparisons.reference(report))
    lines += _section(
        "Checks of data and labels", partial, [comparisons.data_checks(report), comparisons.orders(report)]
    )
    lines += _section("Environment", "", [tables.environment(report), tables.steps(report)])
    lines += _section("Artifacts", partial, tables.artifacts(report))
    lines.append(f"SHA-256 of the body, which holds no time and no machine: `{report.body_sha256}`")
    return "\n".join(lines) + "\n"


def _genres(report: Report) -> Table:
    rows = [
        (comparisons.size_of(cell), cell.version, genre, *tables.counted(counts))
        for cell in report.body.cells
        for genre, counts in comparisons.counts_of(cell).items()
    ]
    heads = ("batch size", "version", "genre", "correct / rows", "accuracy", tables.INTERVAL)
    return Table("genres", "", heads, ("", "", "", "number", "number", "number"), tuple(rows))


def _section(title: str, partial: str, tables: Iterable[Table], note: str = "") -> list[str]:
    """A heading and its tables; several tables say which is which. No heading without a table."""
    present = [table for table in tables if table.rows]
    if not present:
        return []
    lines = [f"## {title}{f' ({partial})' if partial else ''}", ""]
    for table in present:
        lines += [f"{_text(table.caption)}:", ""] if len(present) > 1 else []
        lines += [*_table(table), ""]
    return [*lines, note, ""] if note else lines


def _table(table: Table) -> list[str]:
    lines = [f"| {' | '.join(table.heads)} |", "|" + "---|" * len(table.heads)]
    for row in table.rows:
        cells = [
            f"`{_cell(cell)}`" if kind == "hash" else _cell(cell) for cell, kind in zip(row, table.kinds, strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(cell: Cell) -> str:
    return _text(cell if isinstance(cell, str) else ", ".join(cell)).replace("|", "\\|")


def _text(text: str) -> str:
    """Names come from data: none may start a tag or end a line."""
    return " ".join(text.split()).replace("<", "&lt;")
