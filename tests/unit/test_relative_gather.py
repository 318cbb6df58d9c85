"""The gather form, made to be measured against the shift form: the same logits, and the gathers that shift removes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from deberta.core import files
from deberta.core.contract import INPUTS, LABELS
from deberta.core.errors import StageError
from deberta.stages.compile import export_onnx
from deberta.stages.lint import checks
from deberta.stages.lint.graph import load_graph
from deberta.stages.model import config, deberta
from tests import demo_digests
from tests import model_helpers as helpers
from tests.mnli_helpers import REPOSITORY

KINDS = ("v3", "c2p alone", "p2c alone, separate", "few log buckets", "v2 convolution", "no relative attention")


def _run(path: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_graph_gives_the_logits_of_shift(kind: str, tmp_path: Path) -> None:
    """Batches 1, 3 and 8 of full, short, all-zero and one-token rows, in ONNX Runtime, and as transformers does."""
    changes: dict[str, Any] = helpers.VARIANTS[kind]
    reference = helpers.reference(**changes)
    for form in export_onnx.RELATIVE:
        export_onnx.export(helpers.ours(reference, **changes), tmp_path / f"{form}.onnx", 64, form)
        export_onnx.check_graph(tmp_path / f"{form}.onnx", form)
    for rows in (1, 3, 8):
        batch = helpers.batch(rows, 64)
        ids, mask = (part.numpy() for part in batch)
        gathered = _run(tmp_path / "gather.onnx", ids, mask)
        helpers.assert_same(gathered, _run(tmp_path / "shift.onnx", ids, mask))
        helpers.assert_same(gathered, helpers.logits(reference, *batch))
    nodes = Counter(node.op_type for node in onnx.load(str(tmp_path / "gather.onnx")).graph.node)
    layers = changes.get("num_hidden_layers", helpers.TINY["num_hidden_layers"])
    terms = {"v3": 2, "few log buckets": 2, "v2 convolution": 2, "no relative attention": 0}.get(kind, 1)
    assert nodes["GatherElements"] == nodes["Expand"] == terms * layers


def test_the_stage_writes_either_form_of_the_demo(tmp_path: Path) -> None:
    """Shift is what it was, byte for byte; gather differs inside alone, and is refused where shift is expected."""
    demo = REPOSITORY / "models" / "demo"
    brought = ["--checkpoint", str(demo / "pytorch.model-demo.bin"), "--config", str(demo / "model_config.json")]
    for form in export_onnx.RELATIVE:
        written = ["--output", str(tmp_path / f"{form}.onnx"), "--labels", ",".join(LABELS), "--relative", form]
        export_onnx.main([*brought, *written])
    assert files.sha256_of(tmp_path / "shift.onnx") == demo_digests.table()["models/demo/dynamic.onnx"]
    shift, gather = (onnx.load(str(tmp_path / f"{form}.onnx")) for form in export_onnx.RELATIVE)
    assert (list(gather.graph.input), list(gather.graph.output)) == (list(shift.graph.input), list(shift.graph.output))
    assert (list(gather.opset_import), gather.ir_version) == (list(shift.opset_import), shift.ir_version)
    indexed = [node.input[1] for node in gather.graph.node if node.op_type == "GatherElements"]
    inferred = onnx.shape_inference.infer_shapes(gather).graph.value_info
    types = {value.name: value.type.tensor_type.elem_type for value in inferred}
    assert len(indexed) == 8 and {types[name] for name in indexed} == {onnx.TensorProto.INT64}
    with pytest.raises(StageError, match="8 Shape nodes; 8 GatherElements nodes; 8 Expand nodes"):
        export_onnx.check_graph(tmp_path / "gather.onnx")


def test_with_the_guides_layers_and_heads_it_gathers_as_often_as_the_guides_graph(tmp_path: Path) -> None:
    """24 times, 12 heads x 256 x 256 each; the hidden size does not matter to that."""
    small = {"hidden_size": 24, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 8}
    made = deberta.Deberta(config.from_dict({**helpers.TINY, **small}))
    export_onnx.export(made, tmp_path / "gather.onnx", 256, "gather")
    findings = checks.check(load_graph(tmp_path / "gather.onnx"), (1, 8), 256)
    (found,) = (finding for finding in findings if finding.rule.id == "gather-elements")
    assert len(found.nodes) == 24
    assert {batch: cost.elements for batch, cost in found.cost.items()} == {1: 18_874_368, 8: 8 * 18_874_368}
    assert found.cost[1].bytes == 18_874_368 * (8 + 4 + 4)  # the int64 index, and a float read and written
