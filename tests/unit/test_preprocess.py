"""The bins: byte for byte the guide's, of one length or several, whole or not at all, never mixed with older ones."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from deberta.core import contract, errors
from deberta.stages.data import encoding, preprocess, row_order, token_counts
from deberta.stages.data.encoding import EncodedRows
from deberta.stages.model import tokenizer as tokenizer_of_guide
from tests.mnli_helpers import (
    SPM_MODEL,
    bucket_folders,
    bucketed_data,
    dev_line,
    golden,
    run_stage,
    small_disk,
    stage_command,
    stage_environment,
    write_dev,
)


def main(data: Path, output: Path, bs: object, *more: object, tokenizer: Path = SPM_MODEL) -> int:
    """The stage in this process; returns its exit code."""
    arguments = ["--data", data, "--tokenizer", tokenizer, "--bs", bs, "--output", output]
    summary = ["--summary", output.parent.parent / "summary.json"]
    return errors.run_stage(preprocess.main, [str(argument) for argument in [*arguments, *summary, *more]])


def summary_of(output: Path) -> dict[str, object]:
    found = json.loads((output.parent.parent / "summary.json").read_bytes())
    assert isinstance(found, dict)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    labels = [contract.LABELS[number % 3] for number in range(10)]
    lines = [dev_line(f'the boat, no. {number} "', "a letter…", label=label) for number, label in enumerate(labels)]
    return write_dev(tmp_path / "dev_matched.tsv", lines)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "data" / "pre_mnli_bs4" / "match"


def test_bins_equal_the_guides_and_the_summary_counts_them(tmp_path: Path, output: Path) -> None:
    rows = [row for row in golden() if "\t" not in row[0] + row[1]]
    tsv = write_dev(tmp_path / "dev.tsv", [dev_line(premise, hypothesis) for premise, hypothesis, _ in rows])
    assert main(tsv, output, 16) == 0
    batches = -(-len(rows) // 16)
    ids = np.zeros((batches * 16, 256), "<i4")
    for index, (_, _, expected) in enumerate(rows):
        ids[index, : len(expected)] = expected
    assert {path.name for path in output.iterdir()} == {"input_ids", "input_mask"}
    for name, values in (
        ("input_ids", ids),
        ("input_mask", (np.cumsum(ids[:, ::-1], axis=1)[:, ::-1] > 0).astype("<i4")),
    ):
        found = {path.name: path.read_bytes() for path in (output / name).iterdir()}
        assert found == {f"input_{i}.bin": values[i * 16 : (i + 1) * 16].tobytes() for i in range(batches)}
    summary = summary_of(output)
    lengths = sorted(len(row[2]) for row in rows)
    assert summary["rows"] == len(rows) and summary["batches"] == batches
    assert summary["padding_rows"] == batches * 16 - len(rows) > 0
    assert summary["truncated_rows"] == lengths.count(256) == 10
    assert summary["tokens"] == sum(lengths)
    assert summary["unknown_tokens"] == sum(row[2].count(3) for row in rows)
    assert summary["labels"] == {"contradiction": 0, "neutral": len(rows), "entailment": 0}
    assert summary["length"] == {
        "median": lengths[-(-len(rows) // 2) - 1],
        "p90": lengths[-(-len(rows) * 9 // 10) - 1],
        "max": 256,
    }


def test_chunks_do_not_show_in_the_bins(data: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(data, output, 4) == 0
    whole = [path.read_bytes() for path in sorted(output.rglob("*.bin"))]
    monkeypatch.setattr(encoding, "_CHUNK_ROWS", 3)
    assert main(data, output, 4) == 0
    assert [path.read_bytes() for path in sorted(output.rglob("*.bin"))] == whole and len(whole) == 6


def test_bins_of_an_earlier_run_do_not_survive(data: Path, output: Path) -> None:
    assert main(data, output, 1) == 0
    assert len(list((output / "input_ids").iterdir())) == 10
    assert main(data, output, 4) == 0
    for name in contract.INPUTS:
        assert {path.name: path.stat().st_size for path in (output / name).iterdir()} == {
            f"input_{i}.bin": 4 * 256 * 4 for i in range(3)
        }
    assert [path.name for path in output.parent.iterdir()] == ["match"]


def test_limit(data: Path, output: Path) -> None:
    assert main(data, output, 4, "--limit", 5, "--rows", 10) == 0
    sizes = [path.stat().st_size for path in output.rglob("*.bin")]
    assert sizes == [4 * 256 * 4] * 4
    summary = summary_of(output)
    assert (summary["rows"], summary["limit"], summary["padding_rows"]) == (5, 5, 3)


def test_a_summary_is_written_only_where_asked_for(data: Path, output: Path) -> None:
    arguments = ["--data", data, "--tokenizer", SPM_MODEL, "--bs", 4, "--output", output]
    assert errors.run_stage(preprocess.main, [str(argument) for argument in arguments]) == 0
    assert output.is_dir() and not (output.parent.parent / "summary.json").exists()


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--rows", "9815"], 5, "has 10 rows, expected 9815"),
        (["--bs", "0"], 2, "--bs '0'"),
        (["--bs", "-1"], 2, "--bs '-1'"),
        (["--bs", "x"], 2, "--bs 'x'"),
        (["--tokenizer", "/nowhere/spm.model"], 3, "/nowhere/spm.model is missing"),
        (["--data", "/nowhere/dev.tsv"], 3, "invoke fetch"),
    ],
)
def test_refusal_leaves_the_earlier_bins(
    data: Path, output: Path, more: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(data, output, 4) == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    capsys.readouterr()
    assert main(data, output, 4, *more) == code
    message = capsys.readouterr().err
    assert says in message and message.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert [path.name for path in output.parent.iterdir()] == ["match"]


def test_ids_beyond_the_models_vocabulary_are_refused(
    data: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    config = data.with_name("model_config.json")
    config.write_text(json.dumps({**sizes, "pos_att_type": [], "vocab_size": 20}), encoding="utf-8")
    assert main(data, output, 4, "--config", str(config)) == 5
    assert "line 2), but the model's vocabulary has 20 entries" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("too\tfew", "line 12: 2 columns, expected 16"),
        (dev_line(label="-"), "unknown label '-'"),
        (dev_line().replace("A boat", "A b\udcffat"), "not UTF-8"),
    ],
)
def test_bad_row_in_a_process_of_its_own(data: Path, output: Path, line: str, says: str) -> None:
    with open(data, "ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    done = run_stage(
        "preprocess", "--data", data, "--tokenizer", SPM_MODEL, "--bs", 4, "--output", output, "--summary", "none"
    )
    assert done.returncode == 5
    assert done.stderr.startswith("error: ") and says in done.stderr and done.stderr.count("\n") == 1
    assert not output.parent.exists()


def test_lossy_tokenizer_json_is_said(data: Path, output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(tokenizer_of_guide.load(SPM_MODEL).to_str())
    del content["normalizer"]["normalizers"][1]
    folder = data.parent / "lossy"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert main(data, output, 4, tokenizer=folder) == 0
    assert "has no character map" in capsys.readouterr().out
    assert summary_of(output)["character_map"] is False


def test_full_disk_leaves_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk") as disk:
        output = disk / "data" / "pre_mnli_bs64" / "match"
        assert main(data, output, 64) == 4
        assert "the disk is full" in capsys.readouterr().err
        assert list(output.parent.iterdir()) == []


def test_interrupt_leaves_nothing(tmp_path: Path, output: Path) -> None:
    lines = [dev_line(f"the boat no. {number}", "a letter " * 20) for number in range(20000)]
    data = write_dev(tmp_path / "dev.tsv", lines)
    command = stage_command("preprocess", "--data", data, "--tokenizer", SPM_MODEL, "--bs", 1, "--output", output)
    process = subprocess.Popen(
        [*command, "--summary", str(tmp_path / "summary.json")],
        env=stage_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not list(output.parent.glob(".match.tmp-*/input_mask/input_0.bin")):
        assert process.poll() is None, "it ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == errors.INTERRUPTED
    assert b"Traceback" not in said
    assert list(output.parent.iterdir()) == []
    assert not (tmp_path / "summary.json").exists()


ROWS, BATCH_SIZE = 23, 4  # of bucketed_data


def _bucketed(data: Path, root: Path, lengths: str, *more: str) -> int:
    folders = bucket_folders(root, lengths)
    given = ["--data", str(data), "--tokenizer", str(SPM_MODEL), "--bs", str(BATCH_SIZE), "--lengths", lengths]
    return errors.run_stage(preprocess.main, [*given, "--output", folders, *more])


def _padded(data: Path, folder: Path) -> np.ndarray:
    """[2, rows, 256]: what the padded run's bins hold."""
    preprocess.preprocess(EncodedRows(data, SPM_MODEL), BATCH_SIZE, {256: folder})
    files = [[folder / name / contract.input_file(i) for i in range(6)] for name in contract.INPUTS]
    return np.array([np.concatenate([np.fromfile(file, "<i4") for file in paths]) for paths in files]).reshape(
        2, -1, 256
    )


def test_every_row_is_in_the_shortest_length_that_holds_it(tmp_path: Path) -> None:
    data = bucketed_data(tmp_path / "dev_matched.tsv", ROWS)
    assert _bucketed(data, tmp_path / "bins", "32,64,256", "--summary", str(tmp_path / "summary.json")) == 0
    padded = _padded(data, tmp_path / "padded")
    tokens = padded[1].sum(axis=1)
    seen = []
    for shorter, length in ((0, 32), (32, 64), (64, 256)):
        folder = tmp_path / "bins" / f"s{length}" / "match"
        found = row_order.read(folder)
        assert found.flat == [row for row in range(ROWS) if shorter < tokens[row] <= length]
        seen += found.flat
        assert {path.name for path in folder.iterdir()} == {*contract.INPUTS, row_order.NAME}
        for name, wanted in zip(contract.INPUTS, padded, strict=True):
            for index, rows in enumerate(found.order):
                values = np.fromfile(folder / name / contract.input_file(index), "<i4").reshape(BATCH_SIZE, length)
                assert (values[: len(rows)] == wanted[list(rows), :length]).all() and not values[len(rows) :].any()
    assert sorted(seen) == list(range(ROWS))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["truncated_rows"] == 1 and summary["tokens"] == tokens.sum()
    assert sum(part["rows"] for part in summary["lengths"].values()) == ROWS
    assert summary["run_tokens"] == sum(
        part["batches"] * BATCH_SIZE * int(length) for length, part in summary["lengths"].items()
    )
    batches = sum(part["batches"] for part in summary["lengths"].values())
    assert (summary["batches"], summary["padding_rows"]) == (batches, batches * BATCH_SIZE - ROWS)


def test_token_counts_are_those_of_the_rows(tmp_path: Path) -> None:
    data = bucketed_data(tmp_path / "dev_matched.tsv", ROWS)
    tokens = _padded(data, tmp_path / "padded")[1].sum(axis=1)[:ROWS]
    counted = token_counts.count(EncodedRows(data, SPM_MODEL))
    assert counted["tokens"] == {str(n): int((tokens == n).sum()) for n in np.unique(tokens)}
    assert counted["rows"] == ROWS
    assert token_counts.count(EncodedRows(data, SPM_MODEL, limit=3))["rows"] == 3


@pytest.mark.parametrize(
    ("lengths", "code", "says"),
    [
        ("32,64", 2, "line 7 has 256 tokens, and --buckets ends with 64"),
        ("4,64,256", 5, "needs length 4. Leave it out"),
        ("auto", 2, "takes the lengths themselves"),
    ],
)
def test_lengths_that_do_not_fit_leave_nothing(
    tmp_path: Path, lengths: str, code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bucketed_data(tmp_path / "dev_matched.tsv", ROWS)
    assert _bucketed(data, tmp_path / "none", lengths) == code
    assert says in capsys.readouterr().err
    assert not [path for path in (tmp_path / "none").rglob("*") if path.is_file()]
