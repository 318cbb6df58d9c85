"""Rows go to their length and come back in their order; what does not fit together is refused, never counted."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deberta.core import contract, errors
from deberta.stages.data import preprocess, preprocess_buckets, row_order, token_counts
from deberta.stages.inference import openvino_engine, postprocess, postprocess_buckets, throughput
from tests.mnli_helpers import SPM_MODEL, dev_line, write_dev

ROWS, BATCH_SIZE = 23, 4


@pytest.fixture(name="data")
def _data(tmp_path: Path) -> Path:
    """Rows of very different lengths in no order, the longest beyond 256 tokens."""
    lines = [
        dev_line("A boat." * (1 + (row * 7) % 11), "A ship." * (60 if row == 5 else 1), label=contract.LABELS[row % 3])
        for row in range(ROWS)
    ]
    return write_dev(tmp_path / "dev_matched.tsv", lines)


def _folders(root: Path, lengths: str) -> str:
    return ",".join(str(root / f"s{length}" / "match") for length in lengths.split(","))


def _preprocess(data: Path, root: Path, lengths: str, *more: str) -> int:
    given = ["--data", str(data), "--tokenizer", str(SPM_MODEL), "--bs", str(BATCH_SIZE), "--buckets", lengths]
    return errors.run_stage(preprocess_buckets.main, [*given, "--output", _folders(root, lengths), *more])


LENGTHS = "32,64,256"


@pytest.fixture(name="bins")
def _bins(data: Path, tmp_path: Path) -> Path:
    assert _preprocess(data, tmp_path / "bins", LENGTHS, "--summary", str(tmp_path / "summary.json")) == 0
    return tmp_path / "bins"


def _padded(data: Path, root: Path) -> np.ndarray:
    """[2, rows, 256]: what the padded run's bins hold."""
    preprocess.preprocess(data, SPM_MODEL, BATCH_SIZE, root / "padded")
    files = [[root / "padded" / name / contract.input_file(i) for i in range(6)] for name in contract.INPUTS]
    return np.array([np.concatenate([np.fromfile(file, "<i4") for file in one]) for one in files]).reshape(2, -1, 256)


def test_every_row_is_in_the_shortest_length_that_holds_it(data: Path, bins: Path, tmp_path: Path) -> None:
    padded = _padded(data, tmp_path)
    tokens = padded[1].sum(axis=1)
    seen = []
    for shorter, length in ((0, 32), (32, 64), (64, 256)):
        folder = bins / f"s{length}" / "match"
        found = row_order.read(folder)
        assert found.flat == [row for row in range(ROWS) if shorter < tokens[row] <= length]
        seen += found.flat
        for name, wanted in zip(contract.INPUTS, padded, strict=True):
            assert {path.name for path in folder.iterdir()} == {*contract.INPUTS, row_order.NAME}
            for index, rows in enumerate(found.order):
                values = np.fromfile(folder / name / contract.input_file(index), "<i4").reshape(BATCH_SIZE, length)
                assert (values[: len(rows)] == wanted[list(rows), :length]).all() and not values[len(rows) :].any()
    assert sorted(seen) == list(range(ROWS))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["truncated_rows"] == 1 and summary["tokens"] == tokens.sum()
    assert sum(one["rows"] for one in summary["buckets"].values()) == ROWS
    assert summary["run_tokens"] == sum(one["batches"] * BATCH_SIZE * int(n) for n, one in summary["buckets"].items())


def test_counts_are_those_of_the_rows(data: Path, tmp_path: Path) -> None:
    tokens = _padded(data, tmp_path)[1].sum(axis=1)[:ROWS]
    counted = token_counts.count(data, SPM_MODEL)
    assert (
        counted["tokens"] == {str(n): int((tokens == n).sum()) for n in np.unique(tokens)} and counted["rows"] == ROWS
    )
    assert token_counts.count(data, SPM_MODEL, limit=3)["rows"] == 3


@pytest.mark.parametrize(
    ("lengths", "code", "says"),
    [
        ("32,64", 2, "line 7 has 256 tokens, and --buckets ends with 64"),
        ("4,64,256", 5, "needs length 4. Leave it out"),
        ("auto", 2, "takes the lengths themselves"),
    ],
)
def test_lengths_that_do_not_fit_leave_nothing(
    data: Path, tmp_path: Path, lengths: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _preprocess(data, tmp_path / "none", lengths) == code
    assert says in capsys.readouterr().err
    assert not [path for path in (tmp_path / "none").rglob("*") if path.is_file()]


def _outputs(bins: Path, root: Path) -> np.ndarray:
    """Write outputs that name their tsv row, padding rows NaN; return the logits in the tsv's order."""
    logits = np.random.default_rng(0).normal(size=(ROWS, 3)).astype("<f4")
    for length in LENGTHS.split(","):
        folder = root / f"s{length}" / "match" / "20261123_4_4_54_1"
        folder.mkdir(parents=True)
        for index, rows in enumerate(row_order.read(bins / f"s{length}" / "match").order):
            values = np.full((BATCH_SIZE, 3), np.nan, "<f4")
            values[: len(rows)] = logits[list(rows)]
            values.tofile(folder / contract.output_file(index))
    return logits


def _postprocess(data: Path, bins: Path, outputs: Path, result: Path, lengths: str = LENGTHS) -> int:
    given = ["--buckets", lengths, "--bins", _folders(bins, lengths), "--outputs", _folders(outputs, lengths)]
    given += ["--data", str(data), "--bs", str(BATCH_SIZE), "--output", str(result)]
    return errors.run_stage(postprocess_buckets.main, given)


def test_merged_counts_are_the_padded_runs(data: Path, bins: Path, tmp_path: Path) -> None:
    logits = _outputs(bins, tmp_path / "out")
    assert _postprocess(data, bins, tmp_path / "out", tmp_path / "eval.txt") == 0
    padded = np.zeros((6 * BATCH_SIZE, 3), "<f4")
    padded[:ROWS] = logits
    (tmp_path / "padded_out").mkdir()
    for index in range(6):
        padded[index * 4 : index * 4 + 4].tofile(tmp_path / "padded_out" / contract.output_file(index))
    wanted = postprocess.evaluate(tmp_path / "padded_out", data, BATCH_SIZE, "match")
    assert (tmp_path / "eval.txt").read_text() == postprocess.guide_text(wanted)
    found = json.loads((tmp_path / "eval.json").read_text())
    for name in ("correct", "rows", "genres", "labels_predicted", "confusion"):
        value: Any = getattr(wanted, name)
        assert found[name] == json.loads(json.dumps(value, default=vars))
    assert sum(found["buckets"].values()) == ROWS and found["padding_nan_rows"] > 0 == found["nan_rows"]


def _edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def edit(bins: Path, _: Path) -> None:
        path = bins / "s64" / "match" / row_order.NAME
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def _set_nan(_: Path, outputs: Path) -> None:
    [file, *_rest] = sorted(outputs.glob("s64/match/*/input_1_*"))
    values = np.fromfile(file, "<f4")
    values[3] = np.inf  # row 1 of that file
    values.tofile(file)


BROKEN: dict[str, tuple[Callable[[Path, Path], object], int, str]] = {
    "no order": (lambda bins, _: (bins / "s64/match/order.json").unlink(), 3, "order.json is missing"),
    "no JSON": (lambda bins, _: (bins / "s64/match/order.json").write_text("{"), 5, "is not JSON"),
    "another shape": (_edited(lambda o: o.update(order=[])), 5, "does not say which row"),
    "text in it": (_edited(lambda o: o["order"][0].__setitem__(0, "1")), 5, "does not say which row"),
    "another set": (
        _edited(lambda o: o.update(buckets=[64, 256])),
        5,
        "of another run: buckets (64, 256), not (32, 64, 256)",
    ),
    "another data": (_edited(lambda o: o.update(rows=24)), 5, "of another run: rows 24, not 23"),
    "another batch size": (_edited(lambda o: o.update(batch_size=8)), 5, "of another run: batch_size 8, not 4"),
    "twice": (_edited(lambda o: o["order"][0].__setitem__(0, o["order"][0][1])), 5, "more than once (1 such rows)"),
    "beyond": (_edited(lambda o: o["order"][0].__setitem__(0, 23)), 5, "there is no row 23 in a tsv of 23 rows"),
    "missing row": (_edited(lambda o: o["order"][-1].pop()), 5, "is nowhere (1 of 23"),
    "short file": (_edited(lambda o: o["order"][0].pop()), 5, "files that are not of 4 rows"),
    "missing output": (
        lambda _, out: next(out.glob("s64/match/*/input_1_*")).unlink(),
        5,
        "1 missing (input_1_output_0.bin)",
    ),
    "no outputs": (lambda _, out: (out / "s64").rename(out / "s65"), 3, "is missing. Run: invoke infer"),
    "not finite": (_set_nan, 5, "1 of "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_is_not_counted(
    data: Path, bins: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, code, says = BROKEN[what]
    _outputs(bins, tmp_path / "out")
    row = row_order.read(bins / "s64" / "match").order[1][1]
    change(bins, tmp_path / "out")
    assert _postprocess(data, bins, tmp_path / "out", tmp_path / "eval.txt") == code
    said = capsys.readouterr().err
    assert says in said and not (tmp_path / "eval.txt").exists()
    if what == "not finite":
        assert f"input_1_output_0.bin row 1 (dev_matched.tsv line {row + 2})" in said


def test_only_pages_that_can_come_back_are_let_go(tmp_path: Path) -> None:
    """A private mapping that may have been written to is left alone."""
    path = tmp_path / "weights with a blank.bin"
    path.write_bytes(bytes(range(256)) * 64)
    with open(path, "rb") as file:
        read = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
        changed = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
    changed[:4] = b"mine"
    assert openvino_engine.release_pages(path) == 16384
    assert read[:] == path.read_bytes() and changed[:4] == b"mine"
    read.close()
    changed.close()
    assert openvino_engine.release_pages(path) == 0


def test_throughput_weighs_each_length_with_its_batches() -> None:
    """9 rows at 64 are two batches of 8, the second counted whole."""
    assert throughput.effective({32: 16, 64: 9}, {32: 10.0, 64: 30.0}, 8) == pytest.approx(
        25 * 1000 / (2 * 10 + 2 * 30)
    )
