"""report.md: the guide's table, published figures beside measured ones, then everything that stands behind them."""

from __future__ import annotations

from deberta.core.report import Report
from deberta.stages.report import comparisons, tables
from deberta.stages.report.tables import Cell, Section, Table


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
    sections = [
        Section("gates", "Verdict", [tables.gates(report)]),
        Section("accuracy", "Accuracy by genre", [_genres(report)]),
        Section("performances", "Performance runs", [tables.performances(report)]),
        *comparisons.sections(report),
    ]
    for section in sections:
        lines += _section(section, partial if section.name != "environment" else "")
    lines.append(f"SHA-256 of the body, which holds no time and no machine: `{report.body_sha256}`")
    return "\n".join(lines) + "\n"


def _genres(report: Report) -> Table:
    rows = [
        (comparisons.size_of(cell), cell.version, genre, *tables.counted(counts))
        for cell in report.body.cells
        for genre, counts in comparisons.counts_of(cell).items()
    ]
    return tables.table("genres", rows)


def _section(section: Section, partial: str) -> list[str]:
    """A heading and its tables; several tables say which is which. No heading without a table."""
    present = [table for table in section.tables if table.rows]
    if not present:
        return []
    lines = [f"## {section.title}{f' ({partial})' if partial else ''}", ""]
    for table in present:
        lines += [f"{_text(table.caption)}:", ""] if len(present) > 1 else []
        lines += [*_table(table), ""]
    for note in section.notes:
        lines += [note, ""]
    return lines


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
