"""Tables of other tools' become GLUE's tsv: what each form gives, and what is refused, with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from deberta.core import mnli
from deberta.core.errors import DataError
from deberta.stages.data import tables
from tests.mnli_helpers import DEV_HEADER, dev_line, run_stage, write_dev

ROWS = [('A "boat", here.', "A ship.", "entailment"), ("B\u2028b", "C", "neutral"), (" D\t ", '"E"', "contradiction")]
HEAD = ("premise", "hypothesis", "label")


def as_csv(rows: list[tuple[str, ...]], separator: str = ",") -> str:
    return "".join(separator.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in rows)


def as_lines(names: tuple[str, ...] = HEAD) -> str:
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in ROWS)


def as_tsv(rows: list[tuple[str, ...]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


PLAIN = [(premise.replace("\t", " "), *rest) for premise, *rest in ROWS]  # a tab becomes a blank
FORMS: dict[str, tuple[bytes, str]] = {
    "csv": (as_csv([HEAD, *ROWS]).encode(), "csv, commas"),
    "csv with semicolons": (as_csv([HEAD, *ROWS], ";").encode(), "csv, semicolons"),
    "csv with a BOM": (as_csv([HEAD, *ROWS]).encode("utf-8-sig"), "csv, commas"),
    "csv with its last line open": (as_csv([HEAD, *ROWS]).encode()[:-2], "csv, commas"),
    "quoted tsv": (as_csv([HEAD, *ROWS], "\t").encode(), "tsv, cells quoted"),
    "tsv of pandas": (
        b'premise\thypothesis\tlabel\n"A ""boat"", here."\tA ship.\tentailment\n'
        b'B\xe2\x80\xa8b\tC\tneutral\n" D\t "\t"""E"""\tcontradiction\n',
        "tsv, cells quoted",
    ),
    "JSON lines": (as_lines().encode(), "JSON lines"),
    "other names in JSON lines": (as_lines(("sentence1", "sentence2", "gold_label")).encode(), "JSON lines"),
    "JSON": (f"[{','.join(as_lines().splitlines())}]".encode(), "JSON"),
    "gzip": (gzip.compress(as_csv([HEAD, *ROWS]).encode(), mtime=0), "csv, commas, gzip"),
    "JSON lines in gzip": (gzip.compress(as_lines().encode(), mtime=0), "JSON lines, gzip"),
    "UTF-16": (as_csv([HEAD, *ROWS]).encode("utf-16"), "csv, commas, UTF-16"),
    "plain tsv": (as_tsv([HEAD, *PLAIN]).encode(), "tsv"),
    "plain tsv with \\r\\n": (as_tsv([HEAD, *PLAIN]).replace("\n", "\r\n").encode(), "tsv"),
}  # fmt: skip


def convert(folder: Path, content: bytes, *options: str) -> tuple[list[mnli.Row], dict[str, object]]:
    (folder / "file").write_bytes(content)
    arguments = ["--data", folder / "file", "--output", folder / "out.tsv", "--summary", folder / "summary.json"]
    done = run_stage("convert-data", *arguments, *options)
    assert done.returncode == 0, done.stderr
    return list(mnli.rows(folder / "out.tsv")), json.loads((folder / "summary.json").read_bytes())


def refused(folder: Path, content: bytes, *options: str, code: int = 5) -> str:
    (folder / "file").write_bytes(content)
    done = run_stage("convert-data", "--data", folder / "file", "--output", folder / "out.tsv", *options)
    assert done.returncode == code and done.stderr.count("\n") == 1, done.stderr
    assert not (folder / "out.tsv").exists()
    return done.stderr


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    content, kind = FORMS[form]
    rows, summary = convert(tmp_path, content)
    assert [(row.premise, row.hypothesis) for row in rows] == [
        (premise, hypothesis) for premise, hypothesis, _ in PLAIN
    ]
    assert [row.label for row in rows] == [2, 1, 0]
    assert {row.genre for row in rows} == {"all"} and [row.pair_id for row in rows] == ["0", "1", "2"]
    assert (summary["kind"], summary["rows"]) == (kind, 3)
    assert summary["rows_with_breaks"] == (0 if form.startswith("plain") else 1)
    assert mnli.is_dev_file(tmp_path / "out.tsv")


def test_the_original_multinli_loses_the_rows_that_glue_left_out(tmp_path: Path) -> None:
    """dev_matched of MultiNLI 1.0 as text and as JSON lines, and SNLI's: all labels, genres and pairIDs stay."""
    names = ["gold_label", *DEV_HEADER[4:10], "promptID", "pairID", "genre", *DEV_HEADER[10:15]]
    lines = [
        [
            label,
            "( a )",
            "( b )",
            "x",
            "y",
            f'He said "no" {label}',
            "b",
            "1",
            f"1{label}",
            "slate",
            label,
            "",
            "",
            "",
            "",
        ]
        for label in ("neutral", "-", "entailment")
    ]
    text = as_tsv([tuple(names), *map(tuple, lines)])
    objects = "".join(
        json.dumps({**dict(zip(names, line, strict=True)), "annotator_labels": ["-"]}) + "\n" for line in lines
    )
    for content in (text, objects):
        rows, summary = convert(tmp_path, content.encode())
        assert [(row.label, row.genre, row.pair_id) for row in rows] == [
            (1, "slate", "1neutral"),
            (2, "slate", "1entailment"),
        ]
        assert rows[0].premise == 'He said "no" neutral' and summary["rows_left_out"] == 1


def test_a_mapping_names_columns_and_labels(tmp_path: Path) -> None:
    content = b"q,a,verdict,domain,key\nx,y,0,law,7\nx,y,2.0,law,8\nx,z,-1,tax,9\n"
    columns = ["--columns", "premise=q,hypothesis=a,label=verdict,genre=domain,id=key"]
    rows, summary = convert(tmp_path, content, *columns, "--label-words=0=entailment,2=contradict,-1=none")
    assert [(row.label, row.genre, row.pair_id) for row in rows] == [(2, "law", "7"), (0, "law", "8")]
    assert summary["rows_left_out"] == 1 and summary["columns"]["genre"] == "domain"  # type: ignore[index]
    rows, _ = convert(tmp_path, b"a,b,yes\nc,d,No\n", "--columns", "premise=1,hypothesis=2,label=3", "--model-words",
                      "yes=entailment,no=contradiction")  # fmt: skip
    assert [(row.premise, row.label) for row in rows] == [("a", 2), ("c", 0)]


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"a,b,c\nx,y,neutral\n", (), "no column for premise (looked for premise, sentence1, text_a); no column for"),
        (b"premise,hypothesis\nx,y\n", (), "no column for label (looked for label, gold_label); is it a test file"),
        (b"premise,hypothesis,label\nx,y,neutral\n", ("--columns", "label=gold"), "no column 'gold'"),
        (b"premise,hypothesis,label,gold_label\nx,y,neutral,-\n", (), "label may be label or gold_label"),
        (b"premise,hypothesis,label,label\nx,y,neutral,-\n", (), "2 columns called 'label'"),
        (b"premise,hypothesis,label\nx,y,0\nx,y,1\n", (), "2 bad rows: line 2: the label is the number 0. Say what it"),
        (b"premise,hypothesis,label\nx,y,maybe\n", (), "unknown label 'maybe'. Say what it means: --label-words may"),
        (b"premise,hypothesis,label\nx,y,-\n", (), "unknown label '-'"),
        (b"premise,hypothesis,label\nx,y,\n", (), "line 2: it has no label"),
        (b"premise,hypothesis,label\nx,y\n", (), "line 2: 2 cells, and there are 3 columns"),
        (b'premise,hypothesis,label\n"x,y,neutral\n', (), "line 2: unexpected end of data"),
        (b"premise,hypothesis,label\n", (), "has no rows with a label"),
        (b"", (), "is empty"),
        (b'{"premise": "x", "hypothesis": null, "label": "neutral"}\n', (), "entry 1: its hypothesis is missing"),
        (b'{"premise": "x", "hypothesis": 3, "label": "neutral"}\n', (), "entry 1: its hypothesis is no text"),
        (b'{"premise": "x"\n', (), "has a line that is no JSON object"),
        (b'{"premise": "x", "premise": "y"}\n', (), "a key occurs twice"),
        (b"premise,hypothesis,label\nx,y\xe9,neutral\n", (), "is not UTF-8: byte 0xe9 at byte 29. Save it as UTF-8"),
        (b"PAR1\x15\x04", (), "is a parquet file, which nothing here reads: write it as csv"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", (), "is a Git LFS pointer (63 bytes)"),
        (gzip.compress(b"PAR1\x15\x04", mtime=0), (), "holds what is a parquet file"),
        (gzip.compress(gzip.compress(b"a", mtime=0), mtime=0), (), "holds what is compressed with gzip"),
        (gzip.compress(b"premise,hypothesis,label\n" * 9, mtime=0)[:-9], (), "is compressed with gzip, and damaged"),
        (b"<!doctype html>", (), "is a web page"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted(content: bytes, options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path, content, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--columns", "premise"), "is not a list such as a=b,c=d"),
        (("--columns", "sentence=a"), "names 'sentence', which is none of premise, hypothesis"),
        (("--label-words", "yes=true"), "names 'true', which is none of contradiction"),
        (("--label-words", "yes=neutral,yes=entailment"), "each name once"),
        (("--label-words", "neutral=entailment"), "says that 'neutral' is entailment. Its own meaning stands"),
        (("--label-words", "yes=neutral", "--model-words", "yes=entailment"), "and for the model it is entailment"),
    ],
)
def test_a_mapping_that_makes_no_sense(options: tuple[str, ...], says: str, tmp_path: Path) -> None:
    assert says in refused(tmp_path, as_csv([HEAD, *ROWS]).encode(), *options, code=2)


def test_bad_rows_are_counted(tmp_path: Path) -> None:
    content = as_csv([HEAD, *[("a", "b", f"x{row}") for row in range(8)]]).encode()
    assert (
        "has 8 bad rows: line 2: unknown label 'x0'" in (line := refused(tmp_path, content)) and "; and 3 more" in line
    )


def test_more_than_fits_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LARGEST", 1000)
    (tmp_path / "bomb").write_bytes(gzip.compress(b"a" * 100_000, mtime=0))
    with pytest.raises(DataError, match="has more than 1000 bytes when it is unpacked"):
        tables.read(tmp_path / "bomb")


def test_glues_own_file_is_known_by_its_header(tmp_path: Path) -> None:
    path = write_dev(tmp_path / "dev.tsv", [dev_line()])
    assert mnli.is_dev_file(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert not mnli.is_dev_file(path)
