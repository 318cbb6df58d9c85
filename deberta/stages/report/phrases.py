"""A report's texts in another language: those of report.json and of its tables are English, zh.toml has phrases.

A phrase is an English text with placeholders: `{n}`, `{m}` and `{k}` are numbers, `{sizes}` are whole numbers with
commas between, and any other is a text, which is translated in turn. `[s]` is an ending that may be missing. What has
no phrase stays English, as names and paths do.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deberta.core.contract import LANGUAGES
from deberta.stages.report.tables import NOTES, Cell, Section, Tile

BOOKS = {"zh": "zh.toml"}
LONGEST = 320  # characters of a text that is compared with phrases that have placeholders
MOST = 2000  # such texts of a report: what else a stranger's report has stays English, so that it takes no time
UNTRANSLATED = ("hash", "data")  # kinds of columns whose texts are not ours
Say = Callable[[str], str]
_NUMBER = r"-?[0-9][0-9.,]*"
_KINDS = {"n": _NUMBER, "m": _NUMBER, "k": _NUMBER, "sizes": r"[0-9]+(?:, [0-9]+)*"}
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_PARTS = re.compile(r"(\{\w+\}|\[[a-z]+\])")


class Pattern(NamedTuple):
    expression: re.Pattern[str]
    translation: str


class Phrases:
    """The phrases of one language. `missing`: the texts that had none."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.missing: set[str] = set()
        self._known: dict[str, str] = {}
        entries = phrases(language)
        fixed = {english: text for english, text in entries.items() if not _is_pattern(english)}
        self._fixed = fixed
        with_places = sorted(entries.keys() - fixed.keys(), key=lambda english: (-_literal(english), english))
        self._patterns = [Pattern(_expression(english), entries[english]) for english in with_places]

    def say(self, text: str) -> str:
        """The text in this language."""
        if self.language == LANGUAGES[0] or not (text in self._fixed or any(map(str.isalpha, text))):
            return text
        if text not in self._known:
            self._known[text] = self._translate(text)
        return self._known[text]

    def _translate(self, text: str) -> str:
        if text in self._fixed:
            return self._fixed[text]
        if len(text) <= LONGEST and len(self._known) < MOST:
            for expression, translation in self._patterns:
                if match := expression.fullmatch(text):
                    parts = {name: self.say(part) for name, part in match.groupdict().items()}
                    return translation.format(**parts)
        self.missing.add(text)
        return text


def phrases(language: str) -> dict[str, str]:
    """English -> the language's text, both with the same placeholders; none of English."""
    if language == LANGUAGES[0]:
        return {}
    content = tomllib.loads(Path(__file__).with_name(BOOKS[language]).read_text(encoding="utf-8"))
    notes = {NOTES[name]: text for name, text in content.pop("notes").items()}
    return notes | {english: text for part in content.values() for english, text in part.items()}


def placeholders(text: str) -> set[str]:
    return set(_PLACEHOLDER.findall(text))


def _is_pattern(english: str) -> bool:
    return bool(_PARTS.search(english))


def _literal(english: str) -> int:
    """How much of a phrase is no placeholder: of two that match, the one that says more is meant."""
    return len(_PLACEHOLDER.sub("", english))


def _expression(english: str) -> re.Pattern[str]:
    pieces = []
    for piece in _PARTS.split(english):
        if piece.startswith("{"):
            name = piece[1:-1]
            pieces.append(rf"(?P<{name}>{_KINDS.get(name, '.+?')})")
        elif _PARTS.fullmatch(piece):
            pieces.append(f"(?:{piece[1:-1]})?")
        else:
            pieces.append(re.escape(piece))
    return re.compile("".join(pieces), re.DOTALL)


def translated(section: Section, say: Say) -> Section:
    """A section in another language, but for its figures."""
    tables = [
        table._replace(
            caption=say(table.caption),
            folded=say(table.folded),
            heads=[say(head) for head in table.heads],
            rows=[[_cell(cell, kind, say) for cell, kind in zip(row, table.kinds, strict=True)] for row in table.rows],
        )
        for table in section.tables
    ]
    return section._replace(title=say(section.title), tables=tables, notes=[say(note) for note in section.notes])


def _cell(cell: Cell, kind: str, say: Say) -> Cell:
    if kind in UNTRANSLATED:
        return cell
    return say(cell) if isinstance(cell, str) else tuple(say(line) for line in cell)


def translated_tile(tile: Tile, say: Say) -> Tile:
    return Tile(say(tile.name), tile.value, say(tile.unit), tuple(map(say, tile.lines)), tile.status)
