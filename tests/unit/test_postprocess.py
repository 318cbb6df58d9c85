"""Outputs to accuracy: the guide's text byte for byte, and every way in which outputs can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from deberta.core import contract, errors, files
from deberta.stages.data import preprocess, row_order
from deberta.stages.data.encoding import EncodedRows
from deberta.stages.inference import postprocess, throughput
from tests.mnli_helpers import SPM_MODEL, bucket_folders, bucketed_data, dev_line, small_disk, write_dev

GENRES = ["travel", "fiction", "travel", "a = b", "fiction", "travel", "slate"]
GOLD = [0, 1, 2, 0, 1, 2, 0]
GUESSED = [0, 1, 2, 1, 0, 0, 0]
BATCH = 4


def logits(guesses: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Rows whose greatest logit is the guess; the padding row of the last batch is zeros."""
    values = np.zeros((8, 3), np.float32)
    for row, guess in enumerate(guesses):
        values[row] = [-1.5, 0.25, -3.0]
        values[row, guess] = 2.5
    return values


def write_outputs(folder: Path, values: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Path:
    folder.mkdir()
    for index in range(len(values) // BATCH):
        batch = values[index * BATCH : (index + 1) * BATCH].astype("<f4")
        (folder / f"input_{index}_output_0.bin").write_bytes(batch.tobytes())
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [dev_line(genre=genre, label=contract.LABELS[gold]) for genre, gold in zip(GENRES, GOLD)]
    return write_dev(tmp_path / "dev_matched.tsv", rows)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return write_outputs(tmp_path / "outputs", logits(GUESSED))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return tmp_path / "results" / "eval_bs4_match.txt"


def main(outputs: Path, data: Path, text: Path, *more: object, bs: int = BATCH) -> int:
    """The stage in this process; returns its exit code."""
    arguments = ["--outputs", outputs, "--data", data, "--bs", bs, "--output", text]
    summary = ["--summary", outputs.parent / "summary.json"]
    return errors.run_stage(postprocess.main, [str(argument) for argument in [*arguments, *summary, *more]])


def test_text_is_the_guides_and_the_json_has_exact_counts(outputs: Path, data: Path, text: Path) -> None:
    assert main(outputs, data, text, "--rows", 7, "--version", "mismatch") == 0
    assert text.read_bytes() == (
        b"accuracy = 0.5714285714285714\n"
        b"accuracy_a = b = 0.0\n"
        b"accuracy_fiction = 0.5\n"
        b"accuracy_slate = 1.0\n"
        b"accuracy_travel = 0.6666666666666666\n"
        b"eval_samples = 7\n"
    )
    counts = json.loads(text.with_suffix(".json").read_bytes())
    assert counts == {
        "version": "mismatch",
        "batch_size": 4,
        "rows": 7,
        "limit": 0,
        "correct": 4,
        "accuracy": 4 / 7,
        "genres": {
            "a = b": {"correct": 0, "rows": 1, "accuracy": 0.0},
            "fiction": {"correct": 1, "rows": 2, "accuracy": 0.5},
            "slate": {"correct": 1, "rows": 1, "accuracy": 1.0},
            "travel": {"correct": 2, "rows": 3, "accuracy": 2 / 3},
        },
        "labels_predicted": {"contradiction": 4, "neutral": 2, "entailment": 1},
        "labels_gold": {"contradiction": 3, "neutral": 2, "entailment": 2},
        "confusion": {
            "contradiction": {"contradiction": 2, "neutral": 1, "entailment": 0},
            "neutral": {"contradiction": 1, "neutral": 1, "entailment": 0},
            "entailment": {"contradiction": 1, "neutral": 0, "entailment": 1},
        },
        "nan_rows": 0,
        "padding_nan_rows": 0,
        "outputs_sha256": files.folder_digest(outputs),
    }
    again = text.with_name("again.txt")
    assert main(outputs, data, again, "--version", "mismatch") == 0
    assert again.with_suffix(".json").read_bytes() == text.with_suffix(".json").read_bytes()
    assert sorted(path.name for path in text.parent.iterdir()) == [
        "again.json",
        "again.txt",
        "eval_bs4_match.json",
        "eval_bs4_match.txt",
    ]


def test_each_row_has_a_line_whose_logits_are_the_same_float32(outputs: Path, data: Path, text: Path) -> None:
    values = logits(GUESSED)
    values[1] = np.array([0.1, 1 / 3, -1e-5], np.float32)
    for file in outputs.iterdir():
        file.unlink()
    outputs.rmdir()
    rows = text.with_name("predictions_bs4_match.jsonl")
    assert main(write_outputs(outputs, values), data, text, "--predictions", rows) == 0
    lines = rows.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == [
        '{"row":0,"line":2,"gold":"contradiction","label":"contradiction","logits":[2.5,0.25,-3.0],"margin":2.25}',
        '{"row":1,"line":3,"gold":"neutral","label":"neutral","logits":[0.1,0.33333334,-0.00001],"margin":0.233333}',
    ]
    content = [json.loads(line) for line in lines]
    assert [contract.LABELS.index(entry["label"]) for entry in content] == GUESSED
    assert (np.array([entry["logits"] for entry in content], np.float32) == values[:7]).all()


def test_text_has_what_str_of_a_float64_gives() -> None:
    result = postprocess.Evaluation("match", 1, 9815, 0, 8879, 8879 / 9815, {}, {}, {}, {}, 0, 0, "")
    assert (
        postprocess.guide_text(result) == f"accuracy = {np.float64(8879) / np.float64(9815)!s}\neval_samples = 9815\n"
    )


def test_files_are_matched_by_number_and_not_by_name(tmp_path: Path, text: Path) -> None:
    guesses = [number * 7 % 3 for number in range(12)]
    rows = [dev_line(label=contract.LABELS[guess]) for guess in guesses]
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for index, guess in enumerate(guesses):
        (outputs / f"input_{index}_output_0.bin").write_bytes(np.eye(3, dtype="<f4")[guess].tobytes())
    assert main(outputs, write_dev(tmp_path / "dev.tsv", rows), text, bs=1) == 0
    assert text.read_bytes().startswith(b"accuracy = 1.0\n")


def test_limit_is_kept_in_the_json(outputs: Path, data: Path, text: Path) -> None:
    (outputs / "input_1_output_0.bin").unlink()
    assert main(outputs, data, text, "--limit", 3, "--rows", 7) == 0
    counts = json.loads(text.with_suffix(".json").read_bytes())
    assert (counts["limit"], counts["rows"], counts["correct"]) == (3, 3, 3)


def test_a_summary_is_written_only_where_asked_for(outputs: Path, data: Path, text: Path) -> None:
    arguments = ["--outputs", outputs, "--data", data, "--bs", BATCH, "--output", text]
    assert errors.run_stage(postprocess.main, [str(argument) for argument in arguments]) == 0
    assert text.exists() and not (outputs.parent / "summary.json").exists()


def test_nan_in_a_padding_row_is_only_counted(tmp_path: Path, data: Path, text: Path) -> None:
    values = logits(GUESSED)
    values[7] = np.nan
    assert main(write_outputs(tmp_path / "outputs", values), data, text) == 0
    counts = json.loads(text.with_suffix(".json").read_bytes())
    assert (counts["nan_rows"], counts["padding_nan_rows"], counts["correct"]) == (0, 1, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_or_infinity_says_where_and_why(
    tmp_path: Path, data: Path, text: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    values = logits(GUESSED)
    values[5, 1] = values[6, 2] = value
    assert main(write_outputs(tmp_path / "outputs", values), data, text) == 5
    message = capsys.readouterr().err
    for part in ("2 of 7 rows", "input_1_output_0.bin row 1", "dev_matched.tsv line 7", "fp16", "precision_mode"):
        assert part in message
    assert not text.parent.exists() and not (tmp_path / "summary.json").exists()


def remove(folder: Path) -> None:
    (folder / "input_1_output_0.bin").unlink()


def add(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(bytes(48))


def resize(size: int) -> Callable[[Path], object]:
    return lambda folder: (folder / "input_1_output_0.bin").write_bytes(bytes(size))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove, "1 outputs of 2 are missing from {folder}: input_1_output_0.bin."),
        (add("input_2_output_0.bin"), "1 outputs of 2 are not expected in {folder}: input_2_output_0.bin."),
        (add("input_01_output_0.bin"), "1 outputs of 2 are not expected in {folder}: input_01_output_0.bin."),
        (add("notes.txt"), "1 outputs of 2 are not expected in {folder}: notes.txt."),
        (
            lambda folder: (folder / "input_1_output_0.bin").rename(folder / "deberta_output_0.bin"),
            "1 outputs of 2 are missing",
        ),
        (resize(47), "have a wrong size: input_1_output_0.bin (47 bytes, not 48). Each is float32 [4, 3]. Run: "),
        (resize(96), "input_1_output_0.bin (96 bytes, not 48)"),
        (resize(0), "input_1_output_0.bin (0 bytes, not 48)"),
    ],
)
def test_wrong_outputs_are_named_and_nothing_is_written(
    outputs: Path,
    data: Path,
    text: Path,
    damage: Callable[[Path], object],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(outputs)
    assert main(outputs, data, text) == 5
    message = capsys.readouterr().err
    assert says.format(folder=outputs) in message and "invoke infer" in message and message.count("\n") == 1
    assert not text.parent.exists()


def test_many_missing_files_are_counted(
    outputs: Path, data: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(outputs, data, text, bs=1) == 5
    assert f"5 outputs of 7 are missing from {outputs}: input_2_output_0.bin, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--rows", "9815"], 5, "has 7 rows, expected 9815"),
        (["--version", "foo"], 2, "--version 'foo'"),
        (["--bs", "x"], 2, "--bs 'x'"),
        (["--outputs", "/nowhere"], 3, "/nowhere is missing. Run: invoke infer"),
        (["--data", "/nowhere/dev.tsv"], 3, "invoke fetch"),
    ],
)
def test_refusals(
    outputs: Path, data: Path, text: Path, more: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(outputs, data, text, *more) == code
    assert says in capsys.readouterr().err
    assert not text.parent.exists()


def test_full_disk_leaves_neither_file(
    outputs: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        with open(disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
            while True:
                filler.write(bytes(4096))
        assert main(outputs, data, disk / "eval_bs4_match.txt") == 4
        assert "the disk is full" in capsys.readouterr().err
        assert [path.name for path in disk.iterdir()] == ["filler"]


ROWS, LENGTHS = 23, "32,64,256"


@pytest.fixture(name="bucketed")
def _bucketed(tmp_path: Path) -> Path:
    return bucketed_data(tmp_path / "dev_matched.tsv", ROWS)


@pytest.fixture(name="bins")
def _bins(bucketed: Path, tmp_path: Path) -> Path:
    root = tmp_path / "bins"
    folders = {n: root / f"s{n}" / "match" for n in (32, 64, 256)}
    preprocess.preprocess(EncodedRows(bucketed, SPM_MODEL), BATCH, folders)
    return root


def _outputs(bins: Path, root: Path) -> np.ndarray:
    """Write outputs that name their tsv row, padding rows NaN; return the logits in the tsv's order."""
    logits = np.random.default_rng(0).normal(size=(ROWS, 3)).astype("<f4")
    for length in LENGTHS.split(","):
        folder = root / f"s{length}" / "match" / "20261123_4_4_54_1"
        folder.mkdir(parents=True)
        for index, rows in enumerate(row_order.read(bins / f"s{length}" / "match").order):
            values = np.full((BATCH, 3), np.nan, "<f4")
            values[: len(rows)] = logits[list(rows)]
            values.tofile(folder / contract.output_file(index))
    return logits


def _postprocess(bucketed: Path, bins: Path, outputs: Path, result: Path, lengths: str = LENGTHS) -> int:
    given = ["--lengths", lengths, "--bins", bucket_folders(bins, lengths), "--data", str(bucketed), "--bs", str(BATCH)]
    given += ["--outputs", bucket_folders(outputs, lengths), "--output", str(result)]
    return errors.run_stage(postprocess.main, given)


def test_merged_counts_are_the_padded_runs(bucketed: Path, bins: Path, tmp_path: Path) -> None:
    logits = _outputs(bins, tmp_path / "out")
    assert _postprocess(bucketed, bins, tmp_path / "out", tmp_path / "eval.txt") == 0
    padded = np.zeros((6 * BATCH, 3), "<f4")
    padded[:ROWS] = logits
    (tmp_path / "padded_out").mkdir()
    for index in range(6):
        padded[index * 4 : index * 4 + 4].tofile(tmp_path / "padded_out" / contract.output_file(index))
    assert main(tmp_path / "padded_out", bucketed, tmp_path / "padded.txt") == 0
    assert (tmp_path / "eval.txt").read_text() == (tmp_path / "padded.txt").read_text()
    wanted = json.loads((tmp_path / "padded.json").read_text())
    found = json.loads((tmp_path / "eval.json").read_text())
    for name in ("correct", "rows", "genres", "labels_predicted", "confusion"):
        assert found[name] == wanted[name]
    assert list(found) == [*wanted, "buckets"]
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
    "another shape": (_edited(lambda o: o.update(order=[])), 5, "order.json does not fit its schema, at $.order"),
    "text in it": (
        _edited(lambda o: o["order"][0].__setitem__(0, "1")),
        5,
        "order.json does not fit its schema, at $.order",
    ),
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
    "missing output": (lambda _, out: next(out.glob("s64/match/*/input_1_*")).unlink(), 5, "input_1_output_0.bin. "),
    "no folder": (
        lambda _, out: (out / "s64/match/20261123_4_4_54_1").rename(out / "s64/x"),
        5,
        "3 outputs of 3 are missing",
    ),
    "no outputs": (lambda _, out: (out / "s64").rename(out / "s65"), 3, "is missing. Run: invoke infer"),
    "not finite": (_set_nan, 5, "1 of "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_does_not_fit_is_not_counted(
    bucketed: Path, bins: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, code, says = BROKEN[what]
    _outputs(bins, tmp_path / "out")
    row = row_order.read(bins / "s64" / "match").order[1][1]
    change(bins, tmp_path / "out")
    assert _postprocess(bucketed, bins, tmp_path / "out", tmp_path / "eval.txt") == code
    said = capsys.readouterr().err
    assert says in said and not (tmp_path / "eval.txt").exists()
    if what == "not finite":
        assert f"input_1_output_0.bin row 1 (dev_matched.tsv line {row + 2})" in said


def test_other_lengths_than_256_alone_need_their_bins(
    outputs: Path, data: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(outputs, data, text, "--lengths", "64") == 2
    assert "--bins is needed at lengths 64" in capsys.readouterr().err
    assert main(outputs, data, text, "--lengths", "64,256") == 2
    assert "--outputs names 1 folders" in capsys.readouterr().err and not text.parent.exists()


def test_the_one_folder_inside_is_taken_for_the_outputs(outputs: Path, data: Path, text: Path) -> None:
    assert main(outputs, data, text) == 0
    nested = outputs.with_name("parent")
    nested.mkdir()
    again = text.with_name("again.txt")
    outputs.rename(nested / "20261122_1_2_3_4")
    assert main(nested, data, again) == 0
    assert again.with_suffix(".json").read_bytes() == text.with_suffix(".json").read_bytes()


def test_throughput_weighs_each_length_with_its_batches() -> None:
    """9 rows at 64 are two batches of 8, the second counted whole."""
    assert throughput.effective({32: 16, 64: 9}, {32: 10.0, 64: 30.0}, 8) == pytest.approx(
        25 * 1000 / (2 * 10 + 2 * 30)
    )
