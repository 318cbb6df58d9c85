"""Relative scores in blocks of queries: fewer products, and not another bit in the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from deberta.stages.compile import blocked_shift, compile_cpu, export_onnx
from tests import model_helpers as helpers


def _logits(onnx: Path, rows: int, length: int, expected: int) -> list[np.ndarray]:
    """Of the ONNX as it is, and with its shifts rewritten, which are as many as expected."""
    batch = [part.numpy() for part in helpers.batch(rows, length)]
    outputs = []
    for rewrites in (False, True):
        model = ov.Core().read_model(onnx)
        model.reshape({port.any_name: [rows, length] for port in model.inputs})
        if rewrites:
            assert blocked_shift.apply(model, length) == expected
        compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs.append(compiled(batch)[0])
    return outputs


@pytest.mark.parametrize(
    ("kind", "length", "terms"), [("v3", 256, 2), ("v3", 128, 2), ("c2p alone", 128, 1), ("v3", 64, 0)]
)
def test_the_logits_are_the_same_bytes(kind: str, length: int, terms: int, tmp_path: Path) -> None:
    changes = helpers.VARIANTS[kind]
    export_onnx.export(helpers.ours(helpers.reference(**changes), **changes), tmp_path / "m.onnx", length)
    layers = changes.get("num_hidden_layers", helpers.TINY["num_hidden_layers"])
    # The last layer computes the scores of the first position alone, which need no shift.
    before, after = _logits(tmp_path / "m.onnx", 3, length, terms * (layers - 1))
    assert before.tobytes() == after.tobytes() and np.abs(before).max() > 0


def test_products_that_are_no_shift_s_stay(tmp_path: Path) -> None:
    changes = helpers.VARIANTS["no relative attention"]
    export_onnx.export(helpers.ours(helpers.reference(**changes), **changes), tmp_path / "m.onnx", 128)
    _logits(tmp_path / "m.onnx", 2, 128, 0)
    assert compile_cpu.save(tmp_path / "m.onnx", 2, tmp_path / "m.xml") == 0
