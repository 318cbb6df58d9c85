"""Tables of text that other tools wrote: tsv, csv, JSON lines and JSON, plain or compressed with gzip.

UTF-8, with or without a byte order mark, and UTF-16 with one. Everything else is refused for what it is.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deberta.core import files, mnli, schema
from deberta.core.errors import DataError

LARGEST = 128 * 2**20  # bytes of a file, unpacked
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class ForeignTable:
    """A table with its columns in order. `rows` yields line numbers, or those of JSON's elements, and cells by column.

    A cell is a text, or what JSON has in its place.
    """

    kind: str
    columns: tuple[str, ...]
    rows: Iterator[tuple[int, Mapping[str, Any]]]


def read(path: Path, has_header: bool = True) -> ForeignTable:
    """Read a table; without a header line its columns are called 1, 2, 3, ... Raises OSError and DataError."""
    text, packed = _text(path)
    beginning = text.lstrip()[:1]
    if beginning in ("{", "["):
        return _json(path, text, packed)
    first = text.partition("\n")[0]
    separator = "\t" if "\t" in first else max(mnli.SEPARATORS, key=first.count)
    if separator == "\t" and not _is_quoted(path, text):
        cells: Iterator[tuple[int, Sequence[str]]] = enumerate((line.split("\t") for line in _lines(text)), start=1)
        kind = "tsv"
    else:
        cells = _quoted_cells(path, text, separator)
        kind = "tsv, cells quoted" if separator == "\t" else f"csv, {mnli.SEPARATORS[separator]}"
    start = next(cells, None)
    if start is None:
        raise DataError(f"{path} is empty")
    number, names = start
    if not has_header:
        cells = itertools.chain([(number, names)], cells)
        names, kind = [str(column) for column in range(1, len(names) + 1)], f"{kind}, no header line"
    return ForeignTable(kind + packed, tuple(names), _by_column(path, names, cells))


def _text(path: Path) -> tuple[str, str]:
    """The file's text, and what else is to be said of its kind."""
    content, packed = files.read_bytes(path, LARGEST), ""
    form = mnli.form_of(content[: mnli.HEAD], len(content))
    if form is not None and form.name == mnli.GZIP:
        try:
            with gzip.open(io.BytesIO(content)) as stream:
                content = stream.read(LARGEST + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path} is compressed with gzip, and damaged: {error}") from None
        if len(content) > LARGEST:
            raise DataError(f"{path} has more than {LARGEST} bytes when it is unpacked")
        form, packed = mnli.form_of(content[: mnli.HEAD], len(content)), ", gzip"
    if form is not None and form.name in ("", mnli.GZIP):
        raise DataError(f"{path} {'holds what ' if packed else ''}{form.what}")
    encoding = "utf-16" if form is not None and form.name == mnli.UTF16 else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start + 1}. Save it as UTF-8, for "
            "example with iconv -f LATIN1 -t UTF-8, if it is Latin-1"
        ) from None
    if "\0" in text:
        raise DataError(f"{path} holds a NUL byte, expected text")
    return text, packed + (", UTF-16" if encoding == "utf-16" else "")


def _json(path: Path, text: str, packed: str) -> ForeignTable:
    """A JSON array of objects, or a line for each object. The columns are the first object's."""
    is_array = text.lstrip().startswith("[")
    try:
        entries: list[Any] = (
            schema.decode(text, list[dict[str, Any]])
            if is_array
            else [schema.decode(line, dict[str, Any]) for line in _lines(text) if line.strip()]
        )
    except ValueError as error:
        problem = f"{error}" if is_array else f"has a line that is no JSON object: it {error}"
        raise DataError(f"{path} {problem}. Expected a line for each object, or one array of objects") from None
    if not entries:
        raise DataError(f"{path} holds no rows")
    return ForeignTable(
        f"{'JSON' if is_array else 'JSON lines'}{packed}", tuple(entries[0]), enumerate(iter(entries), 1)
    )


def _lines(text: str) -> list[str]:
    """Only \\n ends a line: texts have U+2028 and the like. A \\r before it goes."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _is_quoted(path: Path, text: str) -> bool:
    """Whether cells of a tsv are quoted, as pandas and spreadsheets do; GLUE's texts have quotes that mean nothing.

    They are if the column names are; or if only so all rows have a cell for each column; or if a doubled quote stands
    in a cell within quotes, and every cell that begins with a quote is such a cell.
    """
    if '"' not in text:
        return False
    rows = [line.split("\t") for line in _lines(text)]
    if all(map(_QUOTED.fullmatch, rows[0])):
        return True
    if any(len(row) != len(rows[0]) for row in rows):
        try:
            return all(len(row) == len(rows[0]) for _, row in _quoted_cells(path, text, "\t"))
        except DataError:
            return False
    quoted = [cell for row in rows for cell in row if cell.startswith('"')]
    return any('""' in cell[1:-1] for cell in quoted) and all(map(_QUOTED.fullmatch, quoted))


def _quoted_cells(path: Path, text: str, separator: str) -> Iterator[tuple[int, Sequence[str]]]:
    """Rows by the rules of csv; blank lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{path} line {number}: {error}") from None
        if cells is None:
            return
        if cells:
            yield number, cells


def _by_column(
    path: Path, names: Sequence[str], rows: Iterator[tuple[int, Sequence[str]]]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, cells in rows:
        if len(cells) != len(names):
            raise DataError(f"{path} line {number}: {len(cells)} cells, and there are {len(names)} columns")
        yield number, dict(zip(names, cells, strict=True))
