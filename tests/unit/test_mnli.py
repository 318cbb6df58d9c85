"""GLUE's tsv: what is refused, with the line and the count, and what is legal although it looks odd."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from deberta.core import mnli
from deberta.core.errors import DataError, MissingError
from tests.mnli_helpers import DEV_HEADER, dev_line, write_dev

HEADER = "\t".join(DEV_HEADER).encode() + b"\n"
GOOD = dev_line().encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ["is empty", "16 columns"]),
        (HEADER, ["header line and no rows"]),
        (HEADER + GOOD + GOOD.replace(b"\t", b"", 1), ["1 bad row in 2", "line 3", "15 columns, expected 16"]),
        (HEADER + GOOD[:-1] + b"\textra\n", ["line 2", "17 columns, expected 16"]),
        (HEADER + GOOD + b"\n" + GOOD, ["line 3", "blank line"]),
        (HEADER + dev_line(label="maybe").encode(), ["line 2", "unknown label 'maybe'", "contradiction, neutral"]),
        (HEADER + dev_line(label="-").encode(), ["line 2", "unknown label '-'", "dev files have none"]),
        (HEADER + dev_line(label="").encode(), ["line 2", "unknown label ''"]),
        (HEADER + dev_line(label="Neutral").encode(), ["unknown label 'Neutral'"]),
        (HEADER + GOOD.replace(b"A boat", b"A b\xf6at"), ["line 2", "not UTF-8", "byte 0xf6 at byte"]),
        (HEADER + GOOD.replace(b"A boat", b"A b\0at"), ["line 2", "NUL byte"]),
        (b"index" + HEADER.replace(b"index", b"\0", 1) + GOOD, ["line 1", "NUL byte"]),
        (GOOD + GOOD, ["line 1", "no column named", "gold_label", "sentence1"]),
        (HEADER.replace(b"gold_label", b"label") + GOOD, ["line 1", "no column named gold_label"]),
        (
            b"premise\thypothesis\tlabel\na\tb\tneutral\n",
            ["no column named genre", "3 columns, expected 16", "add-profile"],
        ),
        (HEADER.replace(b"sentence1\tsentence2", b"sentence2\tsentence1") + GOOD, ["column 8", "expected sentence1"]),
        (HEADER.replace(b"label1\tlabel2\tlabel3\tlabel4\tlabel5", b"label1"), ["12 columns (GLUE's train file)"]),
        (b"\t".join(HEADER.split(b"\t")[:10]) + b"\n", ["GLUE test file", "no gold_label"]),
        (HEADER + dev_line(genre="tra\u2028vel").encode(), ["line 2", "genre", "do not print"]),
    ],
)
def test_bad_file_is_a_data_error_that_says_where(tmp_path: Path, content: bytes, says: list[str]) -> None:
    path = tmp_path / "dev_matched.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        mnli.count(path)
    assert str(path) in str(error.value)
    for part in says:
        assert part in str(error.value)


ORIGINAL = b"gold_label\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            gzip.compress(HEADER + GOOD, mtime=0),
            "is compressed with gzip: unpack it with gunzip. To have it converted, see: invoke --help add-",
        ),
        ((HEADER + GOOD).decode().encode("utf-16"), "is UTF-16 text: save it as UTF-8, for example with iconv"),
        ((HEADER + GOOD).decode().encode("utf-16-be"), "is UTF-16 text without a byte order mark"),
        (b"\xef\xbb\xbf" + HEADER + GOOD, "begins with a byte order mark (BOM): save it"),
        (b"PAR1\x15\x04", "is a parquet file, which nothing here reads: write it as csv"),
        (b"ARROW1\0\0", "is an Arrow file, which nothing here reads: write it as csv"),
        (b"PK\x03\x04\x14\0", "is a zip archive"),
        (b"BZh91AY&SY", "is compressed with bzip2"),
        (b"\xfd7zXZ\0\0", "is compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x04", "is compressed with zstd"),
        (LFS, "is a Git LFS pointer (63 bytes), not the file: run git lfs pull"),
        (b'{"sentence1": "a", "sentence2": "b", "gold_label": "neutral"}\n', "holds JSON, not GLUE's tsv. To"),
        (b'[{"premise": "a"}]', "holds JSON, not GLUE's tsv. To"),
        (b"<!DOCTYPE html>\n<html>", "is a web page"),
        (ORIGINAL, "is the original MultiNLI's or SNLI's text file"),
        (b'premise,hypothesis,label\n"a, b",c,neutral\n', "has commas between its columns (csv), not tabs"),
        (b"premise;hypothesis;label\r\n", "has semicolons between its columns"),
    ],
)
def test_a_file_of_another_form_is_named_for_what_it_is(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "dev_matched.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        mnli.count(path)
    assert str(error.value).startswith(f"{path} {says}")


def test_many_bad_rows_are_counted_and_five_are_shown(tmp_path: Path) -> None:
    lines = [dev_line(label="-") if number % 2 else dev_line() for number in range(20)]
    with pytest.raises(DataError, match=r"10 bad rows in 20: line 3: .*; line 11: .*; and 5 more$") as error:
        mnli.count(write_dev(tmp_path / "dev.tsv", lines))
    assert str(error.value).count("line ") == 5


def test_missing_file_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="invoke fetch"):
        mnli.count(tmp_path / "dev_matched.tsv")


def test_wrong_row_count(tmp_path: Path) -> None:
    mnli.expect_rows(tmp_path, 9815, 9815)
    with pytest.raises(DataError, match=r"has 9814 rows, expected 9815 \(the profile's `rows`\)"):
        mnli.expect_rows(tmp_path, 9814, 9815)


def test_odd_text_is_legal_and_kept_as_it_stands(tmp_path: Path) -> None:
    texts = [
        '"Unbalanced',
        'both "" and "',
        "a\u2028b\u2029c\u0085d\x0b\x0c\x1ce",
        "",
        "  blanks  ",
        "\ufeff",
        "it's \\N",
    ]
    path = write_dev(tmp_path / "dev.tsv", [dev_line(text, text[::-1]) for text in texts])
    assert [(row.premise, row.hypothesis) for row in mnli.rows(path)] == [(text, text[::-1]) for text in texts]


def test_windows_line_ends_and_a_last_line_without_one(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    lines = [dev_line(label=label) for label in ("contradiction", "neutral", "entailment")]
    path.write_bytes("\r\n".join(["\t".join(DEV_HEADER), *lines]).encode())
    assert [row.label for row in mnli.rows(path)] == [0, 1, 2]


def test_train_file_and_limit(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    header = DEV_HEADER[:11] + DEV_HEADER[15:]
    rows = ["\t".join([*dev_line(f"text {number}").split("\t")[:11], "entailment"]) for number in range(5)]
    path.write_text("\n".join(["\t".join(header), *rows, "a bad row"]) + "\n")
    first = list(mnli.rows(path, mnli.TRAIN_COLUMNS, limit=2))
    assert first == [mnli.Row("text 0", "A ship.", "travel", 2), mnli.Row("text 1", "A ship.", "travel", 2)]
    with pytest.raises(DataError, match="1 columns, expected 12"):
        mnli.count(path, mnli.TRAIN_COLUMNS)
