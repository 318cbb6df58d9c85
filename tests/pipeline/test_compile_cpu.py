"""build-om on the cpu backend: kept only when verified, the same bytes each time, nothing left of a failure."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deberta.core.errors import INTERRUPTED, DataError, StageError, run_stage
from deberta.stages.compile import compile_cpu
from tests.cpu_model_helpers import small_onnx


def compile_model(folder: Path, *, batch_size: str = "2", onnx: str = "dynamic.onnx", output: str = "") -> int:
    xml = folder / "cpu" / (output or f"bs{batch_size}.xml")
    arguments = ["--model", folder / onnx, "--bs", batch_size, "--output", xml, "--summary", folder / "summary.json"]
    return run_stage(compile_cpu.main, [str(argument) for argument in arguments])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_same_onnx_gives_the_same_bytes_elsewhere_under_another_name(tmp_path: Path) -> None:
    for folder, name in (("a", "x.xml"), ("b", "y.xml")):
        (tmp_path / folder).mkdir()
        small_onnx(tmp_path / folder / "dynamic.onnx")
        assert compile_model(tmp_path / folder, output=name) == 0
        assert names_in(tmp_path / folder / "cpu") == [name.replace("xml", "bin"), name]
    for suffix in ("xml", "bin"):
        assert (tmp_path / "a/cpu" / f"x.{suffix}").read_bytes() == (tmp_path / "b/cpu" / f"y.{suffix}").read_bytes()


@pytest.mark.parametrize("batch_size", ["1", "3", "16"])
def test_the_summary_says_what_was_verified(tmp_path: Path, batch_size: str) -> None:
    small_onnx(tmp_path / "dynamic.onnx")
    assert compile_model(tmp_path, batch_size=batch_size) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["precision"] == "f32"
    assert summary["batch_size"] == int(batch_size)
    assert summary["verified_rows"] >= compile_cpu.MIN_ROWS
    assert summary["max_abs_difference"] <= compile_cpu.TOLERANCE


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8, 64])
def test_whole_batches_with_a_full_and_an_empty_row_are_verified(batch_size: int) -> None:
    ids, mask = compile_cpu.verification_rows(batch_size, 256, 50)
    assert ids.shape == mask.shape
    assert len(ids) % batch_size == 0
    assert {0, 256} <= set(mask.sum(1).tolist())
    assert ids.max() < 50
    assert not ids[mask == 0].any()


def test_weights_are_stored_once_for_all_batch_sizes_until_they_differ(tmp_path: Path) -> None:
    small_onnx(tmp_path / "dynamic.onnx")
    assert compile_model(tmp_path, batch_size="1") == 0
    assert compile_model(tmp_path, batch_size="4") == 0
    one, four = tmp_path / "cpu/bs1.bin", tmp_path / "cpu/bs4.bin"
    assert os.path.samefile(one, four)
    before = four.read_bytes()
    small_onnx(tmp_path / "dynamic.onnx", seed=1)
    assert compile_model(tmp_path, batch_size="1") == 0
    assert four.read_bytes() == before != one.read_bytes()


def _interrupt(*_: object) -> np.ndarray:
    raise KeyboardInterrupt


def _no_space(_: object) -> object:
    return shutil._ntuple_diskusage(100, 100, 0)


@pytest.mark.parametrize(
    ("target", "replacement", "code", "says"),
    [
        ("reference_logits", lambda onnx, ids, mask, threads: np.zeros((len(ids), 3)), 4, "max abs difference"),
        ("reference_logits", _interrupt, INTERRUPTED, ""),
        ("shutil.disk_usage", _no_space, 4, "the disk is full"),
    ],
)
def test_a_failed_attempt_keeps_the_model_that_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    replacement: Callable[..., object],
    code: int,
    says: str,
) -> None:
    small_onnx(tmp_path / "dynamic.onnx")
    assert compile_model(tmp_path) == 0
    before = {name: (tmp_path / "cpu" / name).read_bytes() for name in names_in(tmp_path / "cpu")}
    monkeypatch.setattr(f"deberta.stages.compile.compile_cpu.{target}", replacement)
    small_onnx(tmp_path / "dynamic.onnx", seed=1)
    assert compile_model(tmp_path) == code
    assert says in capsys.readouterr().err
    assert {name: (tmp_path / "cpu" / name).read_bytes() for name in names_in(tmp_path / "cpu")} == before


@pytest.mark.parametrize(
    ("make", "changes", "code", "says"),
    [
        (small_onnx, {"batch_size": "0"}, 2, "--bs"),
        (small_onnx, {"batch_size": "-1"}, 2, "--bs"),
        (small_onnx, {"batch_size": "x"}, 2, "--bs"),
        (small_onnx, {"output": "deberta_bs2.om"}, 2, "must end in .xml"),
        (lambda path: None, {}, 3, "Run: invoke export-onnx"),
        (lambda path: path.write_bytes(b"garbage"), {}, 5, "cannot be read"),
        (lambda path: path.write_bytes(b""), {}, 5, "cannot be read"),
        (lambda path: small_onnx(path, names=("input_ids", "attention_mask")), {}, 5, "attention_mask"),
        (lambda path: small_onnx(path, batch=4), {}, 5, "any batch"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], object],
    changes: dict[str, str],
    code: int,
    says: str,
) -> None:
    make(tmp_path / "dynamic.onnx")
    assert compile_model(tmp_path, **changes) == code
    stderr = capsys.readouterr().err
    assert says in stderr
    assert stderr.count("\n") == 1
    assert names_in(tmp_path / "cpu") == []
    assert not (tmp_path / "summary.json").exists()


def test_a_fixed_length_is_not_taken_for_any(tmp_path: Path) -> None:
    small_onnx(tmp_path / "dynamic.onnx")
    with pytest.raises(DataError, match="any batch, any length"):
        compile_cpu.save(tmp_path / "dynamic.onnx", 2, tmp_path / "any.xml", longest=256)


def test_a_difference_fails_with_the_numbers() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.1, 0.0]], np.float32)
    assert compile_cpu.compare(logits, logits + np.float32(5e-5)) == pytest.approx(5e-5, rel=0.01)
    for wrong in (logits + np.float32(1e-3), logits * np.float32(np.nan), logits[:, ::-1]):
        with pytest.raises(StageError, match=r"max abs difference .* rows have another label; row \d"):
            compile_cpu.compare(logits, wrong)
    near_tie = np.array([[1.0, 1.00005, 0.0]], np.float32)
    with pytest.raises(StageError, match="1 of 1 rows have another label"):
        compile_cpu.compare(near_tie, near_tie[:, [1, 0, 2]])
