"""report.md: the verdict, its figures and gates, the guide's table, then everything that stands behind them."""

from __future__ import annotations

from deberta.core.report import Report
from deberta.stages.report import comparisons, tables
from deberta.stages.report.phrases import Phrases, Say, translated, translated_tile
from deberta.stages.report.tables import Cell, Section, Table, Tile

OF_RUN = ("environment", "steps")  # sections that hold no figure of a limited run


def markdown(report: Report, phrases: Phrases) -> str:
    """The whole report as Markdown. On a limited run every part of it says so."""
    say = phrases.say
    partial = tables.limited(report)
    lines = [f"# {text(say(report.title))}", ""]
    if partial:
        lines += [f"**{text(say(f'{partial[0].upper()}{partial[1:]}.'))}**", ""]
    headline = tables.headline(report)
    if report.verdict is not None:
        lines += [f"**{say(headline.word)}{say('.')}** {text(say(headline.statement))}", ""]
    lines += [*(_tile(translated_tile(tile, say), say) for tile in tables.tiles(report)), ""]
    if headline.reasons:
        lines += [text(say(headline.lead)), "", *(f"- {text(say(reason))}" for reason in headline.reasons), ""]
    sections = [
        Section("gates", "Gates", [tables.gates(report)]),
        Section("results", "By batch size", [tables.guide(report)], tables.notes(report)),
        Section("throughput", "Performance runs", [tables.performances(report)], tables.performance_notes(report)),
        Section("accuracy", "Accuracy by genre", [_genres(report)]),
        *comparisons.sections(report),
    ]
    for section in sections:
        lines += section_lines(translated(section, say), say(partial) if section.name not in OF_RUN else "")
    lines.append(f"{say('SHA-256 of the body, which holds no time and no machine:')} `{report.body_sha256}`")
    return "\n".join(lines) + "\n"


def _tile(tile: Tile, say: Say) -> str:
    value, lines = text(f"{tile.value} {tile.unit}".strip()), text("; ".join(tile.lines))
    return f"- {text(tile.name)}{say(': ')}**{value}**{f' ({lines})' if lines else ''}"


def _genres(report: Report) -> Table:
    rows = [
        (comparisons.size_of(cell), cell.version, genre, *tables.counted(counts))
        for cell in report.body.cells
        for genre, counts in comparisons.counts_of(cell).items()
    ]
    return tables.table("genres", rows)


def section_lines(section: Section, partial: str) -> list[str]:
    """A heading and its tables; several tables say which is which. No heading without a table."""
    present = [table for table in section.tables if table.rows]
    if not present:
        return []
    lines = [f"## {section.title}{f' ({partial})' if partial else ''}", ""]
    for table in present:
        lines += [f"{text(table.caption)}:", ""] if len(present) > 1 else []
        lines += [*_table(table), ""]
    for note in section.notes:
        lines += [text(note), ""]
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
    return text(cell if isinstance(cell, str) else ", ".join(cell)).replace("|", "\\|")


def text(content: str) -> str:
    """Names come from data: none may start a tag or end a line."""
    return " ".join(content.split()).replace("<", "&lt;")
