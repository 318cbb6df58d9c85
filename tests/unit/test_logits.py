"""Logits: two runs compared, and files that do not hold them refused; and what ONNX Runtime does not open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deberta.core.errors import DataError, MissingError
from deberta.stages import onnx_runtime
from deberta.stages.inference.logits import compare_logits, read_array


def test_rows_that_are_not_finite_have_no_label_and_are_never_within() -> None:
    first = np.array([[3, 1, 0], [1, 1, 0], [0, 1, 2], [0, 0, 1]], np.float32)
    second = np.array([[3, 1, 0.5], [1, 1.25, 0], [np.nan, 1, 2], [np.inf, np.inf, 0]], np.float32)
    difference = compare_logits(first, second)
    assert difference.finite.tolist() == [True, True, False, False]
    assert difference.row_max.tolist() == [0.5, 0.25, np.inf, np.inf]
    assert (difference.max_abs, difference.mean_abs) == (0.5, 0.125)
    assert difference.changed.tolist() == [1]  # the first of equals
    assert [margins[1] for margins in difference.margins] == [0, 0.25]
    assert not difference.within(1e9) and compare_logits(first, first).within(0)
    assert compare_logits(first[2:], second[2:]).max_abs is None


def test_what_is_no_array_of_logits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "logits.npy"
    with pytest.raises(MissingError):
        read_array(path, "Make it again")
    np.save(path, np.zeros((2, 3), "<f4"))
    assert read_array(path, "Make it again", 2).shape == (2, 3)
    with pytest.raises(DataError, match=r"does not hold float32 \[3, 3\]\. Make it again"):
        read_array(path, "Make it again", 3)
    for wrong in (np.zeros((2, 3)), np.zeros((2, 4), "<f4"), np.zeros(6, "<f4"), np.float32(1)):
        np.save(path, wrong)
        with pytest.raises(DataError, match=r"does not hold float32 \[rows, 3\]"):
            read_array(path, "Make it again")
    for content in (b"", b"no array", b"PK\x03\x04 no zip either"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is not a NumPy array"):
            read_array(path, "Make it again")


def test_what_onnx_runtime_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="Run: invoke export-onnx"):
        onnx_runtime.open_session(tmp_path / "none.onnx", 1)
    (tmp_path / "broken.onnx").write_bytes(b"no ONNX")
    with pytest.raises(DataError, match=r"cannot be run: .*Run: invoke export-onnx --force"):
        onnx_runtime.open_session(tmp_path / "broken.onnx", 1)
