"""GLUE's MNLI files, row by row: tab separated, never quoted, one header line, UTF-8.

Columns, counted from 0: pairID 2, genre 3, sentence1 8, sentence2 9, gold_label last. The dev files have 16 columns,
train.tsv 12, the test files 10 and no gold label. Cells are used unchanged: the texts have unbalanced double
quotes, and separators such as U+2028, so only the byte \\n ends a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional

from deberta.core import files
from deberta.core.contract import LABELS
from deberta.core.errors import DataError, MissingError

DEV_COLUMNS = 16
TRAIN_COLUMNS = 12
TEST_COLUMNS = 10
DEV_NAMES = (
    "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
    "sentence2_parse", "sentence1", "sentence2", "label1", "label2", "label3", "label4", "label5", "gold_label",
)  # fmt: skip
PAIR_ID, GENRE, PREMISE, HYPOTHESIS = 2, 3, 8, 9

_KINDS = {DEV_COLUMNS: "dev", TRAIN_COLUMNS: "train", TEST_COLUMNS: "test"}
_NAMES = {PAIR_ID: "pairID", GENRE: "genre", PREMISE: "sentence1", HYPOTHESIS: "sentence2", -1: "gold_label"}
_LABEL_INDEX = {label: index for index, label in enumerate(LABELS)}
LONGEST_LINE = 2**20  # bytes
_SHOWN = 5  # bad rows quoted in one message; the others are counted
MOST_BAD = 100_000  # bad rows after which the rest of a file is not read

HEAD = 4096  # bytes that tell what a file is
BOM = b"\xef\xbb\xbf"
GZIP, BOM_FIRST, UTF16, JSON_LINES, JSON, CSV, ORIGINAL = (
    "gzip",
    "BOM",
    "UTF-16",
    "JSON lines",
    "JSON",
    "csv",
    "MultiNLI",
)
SEPARATORS = {",": "commas", ";": "semicolons", "|": "vertical bars"}  # of csv files
_CONVERTIBLE = {b"\x1f\x8b": GZIP, BOM: BOM_FIRST, b"\xff\xfe": UTF16, b"\xfe\xff": UTF16, b"{": JSON_LINES, b"[": JSON}
_CONVERT = "To have it converted, see: invoke --help add-profile"
_TABLES = {b"PAR1": ("a parquet file", "parquet"), b"ARROW1": ("an Arrow file", "feather")}


@dataclass(frozen=True)
class Row:
    """One pair; `label` is an index into contract.LABELS. `pair_id` should be unique in a file."""

    premise: str
    hypothesis: str
    genre: str
    label: int
    pair_id: str = field(default="", compare=False)  # rows of the same content are equal


class Form(NamedTuple):
    """What a file is that is no tsv of GLUE's, for a message; `name`: of a form that add-profile converts, or empty."""

    name: str
    what: str


def form_of(head: bytes, size: int) -> Optional[Form]:
    """What a file of `size` bytes is by its first HEAD bytes; None if nothing shows that it is no tsv of GLUE's."""
    for start, (kind, reader) in _TABLES.items():
        if head.startswith(start):
            line = f"import sys, pandas; pandas.read_{reader}(sys.argv[1]).to_csv(sys.argv[2], index=False)"
            program = f'python3 -c "{line}" FILE FILE.csv'
            return Form(
                "", f"is {kind}, which nothing here reads: write it as csv where pandas and pyarrow are: {program}"
            )
    name = next((name for start, name in _CONVERTIBLE.items() if head.startswith(start)), "")
    what = files.form_of(head, size) or (name and "holds JSON, not GLUE's tsv")
    names = head.partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r").split("\t")
    if not what and max(head[:64:2].count(0), head[1:64:2].count(0)) > 8:
        what = "is UTF-16 text without a byte order mark: save it as UTF-8, for example with iconv -f UTF-16LE -t UTF-8"
    elif not what and names[0] == "gold_label" and "sentence1_binary_parse" in names:
        name, what = ORIGINAL, "is the original MultiNLI's or SNLI's text file, not GLUE's tsv"
    elif not what and len(names) == 1 and (separator := max(SEPARATORS, key=names[0].count)) in names[0]:
        name, what = CSV, f"has {SEPARATORS[separator]} between its columns (csv), not tabs"
    return Form(name, f"{what}. {_CONVERT}" if name else what) if what else None


def is_dev_file(path: Path) -> bool:
    """Whether a file's header line is that of GLUE's dev files. Raises OSError."""
    with files.open_regular(path) as file:
        head = file.read(HEAD)
    names = head.partition(b"\n")[0].rstrip(b"\r").split(b"\t")
    return (
        not head.startswith(BOM)
        and len(names) == DEV_COLUMNS
        and all(names[index] == name.encode() for index, name in _NAMES.items())
    )


def check_form(path: Path) -> None:
    """Raise DataError for a file that its first bytes show to be something else than GLUE's tsv."""
    with files.open_regular(path) as file:
        form = form_of(file.read(HEAD), os.fstat(file.fileno()).st_size)
    if form is not None:
        raise DataError(f"{path} {form.what}")


def rows(path: Path, expected_columns: int = DEV_COLUMNS, limit: int = 0) -> Iterator[Row]:
    """The file's rows in order, the first `limit` only if it is above 0.

    After a bad row nothing more is yielded, but the rest is still checked, up to MOST_BAD bad rows, so that one error
    reports all. Raises MissingError for an absent file, DataError (at the end) for anything that differs from GLUE's
    format.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing. Run: invoke fetch")
    check_form(path)
    bad: list[str] = []
    bad_count = read = 0
    with files.open_regular(path) as file:
        _check_header(path, file.readline(LONGEST_LINE), expected_columns)
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=2):
            if (limit and read >= limit) or bad_count >= MOST_BAD:
                break
            read += 1
            try:
                row = _parse(line, expected_columns)
            except ValueError as problem:
                bad_count += 1
                if len(bad) < _SHOWN:
                    bad.append(f"line {number}: {problem}")
            else:
                if not bad:
                    yield row
    if bad:
        more = f"; and {bad_count - len(bad)} more" if bad_count > len(bad) else ""
        what = "1 bad row" if bad_count == 1 else f"{'at least ' * (bad_count >= MOST_BAD)}{bad_count} bad rows"
        raise DataError(f"{path} has {what} in {read}: {'; '.join(bad)}{more}")
    if not read:
        raise DataError(f"{path} has a header line and no rows")


def count(path: Path, expected_columns: int = DEV_COLUMNS) -> int:
    """Read and check the whole file and count its rows. Raises as `rows` does."""
    return sum(1 for _ in rows(path, expected_columns))


def expect_rows(path: Path, rows: int, expected: int) -> None:
    """Raise DataError unless the file has exactly as many rows as its profile expects."""
    if rows != expected:
        raise DataError(
            f"{path} has {rows} rows, expected {expected} (the profile's `rows`): it is cut off, or of another data "
            "set, or `rows` in invoke.yaml is wrong. Correct that, or move the file away and get it whole (MNLI's: "
            "invoke fetch)"
        )


def _check_header(path: Path, line: bytes, expected_columns: int) -> None:
    if not line:
        raise DataError(f"{path} is empty, expected a header line and rows of {expected_columns} columns")
    try:
        names = _text(line).split("\t")
    except ValueError as problem:
        raise DataError(f"{path}: line 1: {problem}") from None
    if len(names) == TEST_COLUMNS != expected_columns and "gold_label" not in names:
        raise DataError(
            f"{path}: line 1: {TEST_COLUMNS} columns and no gold_label: this is a GLUE test file, which has no labels;"
            f" expected {_columns(expected_columns)}"
        )
    problems = []
    if lacking := sorted(set(_NAMES.values()) - set(names)):
        problems.append(f"no column named {', '.join(lacking)}; expected GLUE's header line")
    if len(names) != expected_columns:
        problems.append(f"{_columns(len(names))}, expected {_columns(expected_columns)}")
    if problems:
        raise DataError(f"{path}: line 1: {'; '.join(problems)}. Is it another tsv? {_CONVERT}")
    for index, name in _NAMES.items():
        if names[index] != name:
            where = f"column {index % len(names)} (from 0)"
            raise DataError(f"{path}: line 1: {where} is {names[index][:40]!r}, expected {name}")


def _parse(line: bytes, expected_columns: int) -> Row:
    """One line as a row. Raises ValueError with the reason, without the file's name."""
    cells = _text(line).split("\t")
    if cells == [""]:
        raise ValueError("a blank line")
    if len(cells) != expected_columns:
        raise ValueError(f"{len(cells)} columns, expected {expected_columns}")
    label = _LABEL_INDEX.get(cells[-1])
    if label is None:
        hint = " ('-' means no agreed label: GLUE's dev files have none)" if cells[-1] == "-" else ""
        raise ValueError(f"unknown label {cells[-1][:40]!r}{hint}, expected one of {', '.join(LABELS)}")
    if not cells[GENRE].isprintable():  # it becomes part of a line in the accuracy text
        raise ValueError(f"genre {cells[GENRE][:40]!r} has characters that do not print")
    return Row(cells[PREMISE], cells[HYPOTHESIS], cells[GENRE], label, cells[PAIR_ID])


def _text(line: bytes) -> str:
    if len(line) >= LONGEST_LINE:
        raise ValueError(f"longer than {LONGEST_LINE} bytes")
    if b"\0" in line:
        raise ValueError("a NUL byte, expected UTF-8 text")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line") from None
    if text.endswith("\n"):
        text = text[:-2] if text.endswith("\r\n") else text[:-1]
    return text


def _columns(number: int) -> str:
    return f"{number} columns" + (f" (GLUE's {_KINDS[number]} file)" if number in _KINDS else "")
