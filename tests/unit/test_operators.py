"""The cpu backend's time by kind of operator, as OpenVINO counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import operators
from deberta.core.errors import run_stage
from deberta.stages.compile import compile_cpu
from tests.cpu_model_helpers import small_onnx


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("FullyConnected /encoder/layer.3/output/dense_1/Gemm", "feed-forward products, GELU"),
        ("FullyConnected /encoder/layer.3/output/dense/Gemm", "query, key, value and output products"),
        ("MatMul /encoder/layer.0/self/MatMul_1", "products with the tables of relative positions"),
        ("Slice unnamed_77", "shift: slices and reshapes"),
        ("Subgraph /encoder/layer.3/self/Transpose_5", "attention: scores, Softmax, values"),
        ("Subgraph /encoder/layer.3/output/Add", "LayerNorm and residuals"),
        ("Gather /embeddings/word_embeddings/Gather", "all others"),
    ],
)
def test_an_operator_has_a_kind(operator: str, kind: str) -> None:
    assert operators.kind_of(operator) == kind


def test_the_shares_make_a_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_onnx(tmp_path / "dynamic.onnx")
    compile_cpu.save(tmp_path / "dynamic.onnx", 2, tmp_path / "model.xml")
    assert run_stage(operators.main, ["--model", str(tmp_path / "model.xml"), "--repeats", "2"]) == 0
    rows = [line.split("|")[1:4] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows[-1][0].strip() == "together" and rows[-1][2].strip() == "100 %"
    shares = [float(share.strip(" %")) for _, _, share in rows[:-1]]
    assert len(shares) > 2 and sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    assert run_stage(operators.main, ["--model", str(tmp_path / "none.xml")]) == 3
