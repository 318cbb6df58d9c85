"""replay: rows of padded and of bucketed runs, found again in the bins and outputs, and compared with the model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deberta.core.contract import INPUTS, LABELS, input_file, output_file
from deberta.core.errors import DataError
from deberta.stages import onnx_runtime
from deberta.stages.data import row_order
from deberta.stages.model import tokenizer
from deberta.stages.verify import replay
from tests.mnli_helpers import SPM_MODEL, dev_line, write_dev

BATCH = 2


def run_model(_: object, ids: npt.NDArray[np.int32], mask: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    """Logits that tell rows apart: float32 [rows, 3] from ids and mask, int32 [rows, 256] each."""
    assert ids.shape == mask.shape == (len(ids), 256)
    return np.stack([ids.sum(axis=1) / 1e4, mask.sum(axis=1) / 300, np.zeros(len(ids))], axis=1).astype(np.float32)


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A run of five rows, at the parameter's lengths, in a replay plan; its outputs are the model's."""
    monkeypatch.setattr(onnx_runtime, "open_session", lambda *_: None)
    monkeypatch.setattr(onnx_runtime, "run", run_model)
    premises = ["A boat.", "Boats. " * 30, "Two boats.", "Boats. " * 7, "Three boats."]
    data = write_dev(tmp_path / "dev.tsv", [dev_line(premise) for premise in premises])
    model = tokenizer.load(SPM_MODEL, 256)
    tokens = [model.encode(premise, "A ship.").ids for premise in premises]
    lengths = request.param
    bins, outputs = ({str(length): str(tmp_path / f"{kind}{length}") for length in lengths} for kind in ("bins", "out"))
    for length in lengths:
        rows = [row for row, ids in enumerate(tokens) if min(size for size in lengths if size >= len(ids)) == length]
        order = [tuple(rows[first : first + BATCH]) for first in range(0, len(rows), BATCH)]
        folders = [Path(bins[str(length)], name) for name in INPUTS]
        for folder in (*folders, Path(outputs[str(length)])):
            folder.mkdir(parents=True)
        if len(lengths) > 1:
            row_order.write(folders[0].parent, row_order.Order(len(tokens), BATCH, length, lengths, tuple(order)))
        for index, batch in enumerate(order):
            padded = np.zeros((2, BATCH, 256), np.int32)  # ids and masks
            for place, row in enumerate(batch):
                padded[0, place, : len(tokens[row])], padded[1, place, : len(tokens[row])] = tokens[row], 1
            for folder, values in zip(folders, padded, strict=True):
                values[:, :length].tofile(folder / input_file(index))
            run_model(None, *padded).tofile(Path(outputs[str(length)], output_file(index)))
    return {"batch_size": BATCH, "data": str(data), "bins": bins, "outputs": outputs, "reference": ""}


def replayed(entry: dict[str, Any], size: int = 5) -> dict[str, Any]:
    plan = {"model": "dynamic.onnx", "tokenizer": str(SPM_MODEL), "runs": [entry], "limit": 0, "float16": False}
    return replay.replay(plan, size, seed=1)


@pytest.mark.parametrize("entry", [(256,), (32, 64, 256)], indirect=True, ids=["padded", "buckets"])
def test_rows_of_every_length_are_found_again(entry: dict[str, Any]) -> None:
    result = replayed(entry)
    assert (result["rows"], result["max_abs_difference"], result["differences"]) == (5, 0.0, [])


@pytest.mark.parametrize("entry", [(256,), (32, 64, 256)], indirect=True, ids=["padded", "buckets"])
def test_another_row_another_label_and_a_missing_file_are_named(entry: dict[str, Any]) -> None:
    longest = Path(entry["outputs"]["256"], output_file(0))
    logits = np.fromfile(longest, "<f4").reshape(-1, len(LABELS))
    logits[0] = [0, 0, 9]
    logits.tofile(longest)
    (difference,) = replayed(entry)["differences"]
    assert difference.startswith(f"{longest}: row 0 (bs 2, {entry['data']} line ")
    assert "label entailment, the model says" in difference
    data = Path(entry["data"])
    data.write_bytes(data.read_bytes().replace(b"A boat.", b"A raft."))
    assert any("row 0 is not what the tokenizer makes of" in text for text in replayed(entry)["differences"])
    longest.unlink()
    with pytest.raises(DataError, match="is missing"):
        replayed(entry)


@pytest.mark.parametrize("entry", [(32, 64, 256)], indirect=True)
def test_an_order_of_other_rows_is_refused(entry: dict[str, Any]) -> None:
    path = Path(entry["bins"]["32"], row_order.NAME)
    order = json.loads(path.read_bytes())
    order["order"][0][0] = order["order"][0][1]
    path.write_text(json.dumps(order))
    with pytest.raises(DataError, match="more than once"):
        replayed(entry)
