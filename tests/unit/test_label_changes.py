"""A run of a lower precision beside the float32 one: counted by hand, and runs of other rows refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deberta.core import contract, errors
from deberta.stages.inference import int8, label_changes
from tests.mnli_helpers import dev_line, write_dev

GOLD = (0, 1, 2, 0, 1)
GENRES = ("fiction", "travel", "fiction", "travel", "travel")
Rows = list[list[float]]
FP32: Rows = [[3, 1, 0], [0, 2, 1], [1, 0, 1.5], [0, 1, 0], [0, 1, 0.75]]  # labels 0 1 2 1 1: 4 of 5
INT8: Rows = [[3, 1, 0], [0, 2, 1], [1.5, 0, 1], [1, 0, 0], [0, 0.5, 0.75]]  # labels 0 1 0 0 2: 3 of 5


def _outputs(folder: Path, logits: Rows) -> Path:
    """Files of 2 rows, the last one filled up."""
    folder.mkdir(parents=True)
    values = np.array([*logits, [0, 0, 0]], "<f4").reshape(-1, 2, 3)
    for index, batch in enumerate(values):
        (folder / contract.output_file(index)).write_bytes(batch.tobytes())
    return folder


def _run(tmp_path: Path, fp32: Rows, lower: Rows) -> int:
    rows = zip(GOLD, GENRES, strict=True)
    lines = [dev_line("A.", "B.", label=contract.LABELS[gold], genre=genre) for gold, genre in rows]
    data = write_dev(tmp_path / "dev_matched.tsv", lines)
    given = ["--fp32", str(_outputs(tmp_path / "a", fp32)), "--lower", str(_outputs(tmp_path / "b", lower))]
    given += ["--precision", "bf16", "--data", str(data), "--bs", "2", "--output", str(tmp_path / "made.json")]
    return errors.run_stage(label_changes.main, given)


def test_both_accuracies_and_the_changed_rows(tmp_path: Path) -> None:
    assert _run(tmp_path, FP32, INT8) == 0
    found = json.loads((tmp_path / "made.json").read_text())
    assert (found["rows"], found["fp32"]["correct"], found["lower"]["correct"]) == (5, 4, 3)
    assert found["precision"] == "bf16"
    assert found["fp32"]["accuracy"] == 0.8
    assert (found["labels_changed"], found["right_before"], found["right_now"]) == (3, 2, 1)
    assert found["genres"] == {
        "fiction": {"rows": 2, "fp32": 2, "lower": 1, "labels_changed": 1},
        "travel": {"rows": 3, "fp32": 2, "lower": 2, "labels_changed": 2},
    }
    # By fp32 margin, the most surprising first.
    assert [(row["row"], row["line"]) for row in found["changed"]] == [(3, 5), (2, 4), (4, 6)]
    assert found["changed"][1] == {
        **{"row": 2, "line": 4, "gold": "entailment", "fp32": "entailment", "lower": "contradiction"},
        **{"margin_fp32": 0.5, "margin_lower": 0.5},
    }
    assert found["largest_margin_changed"] == 1.0
    assert found["max_abs_difference"] == 1.0
    assert found["mean_abs_difference"] == pytest.approx((0.5 + 0.5 + 1 + 1 + 0.5) / 15)


@pytest.mark.parametrize(
    ("other", "said"),
    [([[float("nan"), 0, 0], *INT8[1:]], "1 of 5 rows hold NaN"), ([*INT8, *INT8[:2]], " not expected in ")],
    ids=["NaN", "more rows"],
)
def test_a_run_without_numbers_or_of_other_rows_is_refused(
    other: Rows, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path, FP32, other) == 5
    assert said in capsys.readouterr().err
    assert not (tmp_path / "made.json").exists()


def test_weights_come_back_to_half_a_step_of_their_own_output() -> None:
    drawn = np.random.default_rng(0).normal(size=(24, 40)) * np.logspace(-3, 3, 24)[:, None]
    weights = drawn.astype(np.float32)
    weights[5] = 0
    values, scales = int8.quantize(weights)
    assert values.dtype == np.int8 and scales.shape == (24, 1)
    assert (np.abs(values * scales - weights) <= scales * 0.5001).all()
    assert (np.abs(values).max(axis=1)[np.arange(24) != 5] == 127).all() and not values[5].any()
