from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from deberta.core import errors
from deberta.core.contract import LABELS, ONNX_MAX_BYTES, ONNX_PRODUCER
from deberta.core.errors import StageError
from deberta.stages.compile import export_onnx
from deberta.stages.model import checkpoint, exact
from tests import model_helpers as helpers
from tests.mnli_helpers import stage_command, stage_environment


@pytest.fixture(name="brought")
def _brought(tmp_path: Path) -> Path:
    """A folder with a checkpoint and its config."""
    checkpoint.save(tmp_path / "model.bin", helpers.ours(helpers.reference()))
    (tmp_path / "config.json").write_text(json.dumps(helpers.TINY), encoding="utf-8")
    return tmp_path


def _arguments(brought: Path, output: Path) -> list[str]:
    files = ["--checkpoint", str(brought / "model.bin"), "--config", str(brought / "config.json")]
    return [*files, "--output", str(output), "--labels", ",".join(LABELS), "--summary", str(brought / "summary.json")]


def test_same_bytes_elsewhere_and_on_a_cpu_without_wide_vectors(brought: Path) -> None:
    narrow = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OMP_NUM_THREADS": "1"}
    made = []
    for name, settings in (("here", {}), ("some/other/place", narrow)):
        output = brought / name / "dynamic.onnx"
        command = stage_command("export-onnx", *_arguments(brought, output))
        subprocess.run(command, env={**stage_environment(), **settings}, check=True, capture_output=True)
        made.append(output.read_bytes())
    assert made[0] == made[1]
    graph = onnx.load_from_string(made[0])
    assert (graph.producer_name, graph.producer_version) == ONNX_PRODUCER and b"pytorch" not in made[0]
    summary = json.loads((brought / "summary.json").read_text())
    assert summary["extra_tensors"] == [checkpoint.POSITION_EMBEDDINGS]
    assert summary["max_logit_difference"] <= export_onnx.TOLERANCE


def test_a_graph_that_differs_is_not_kept(
    brought: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exactly = exact.linear

    def slightly_off(x: Tensor, layer: nn.Linear) -> Tensor:
        return exactly(x, layer) * 1.01

    monkeypatch.setattr(exact, "linear", slightly_off)
    output = brought / "models" / "dynamic.onnx"
    output.parent.mkdir()
    output.write_bytes(b"the one before")
    assert errors.run_stage(export_onnx.main, _arguments(brought, output)) == 4
    said = capsys.readouterr().err
    assert "differs from PyTorch: max |logit difference|" in said and "allowed 1e-04" in said
    assert output.read_bytes() == b"the one before"
    assert os.listdir(output.parent) == ["dynamic.onnx"]


def test_a_graph_that_atc_could_not_take_is_refused(tmp_path: Path) -> None:
    class Dynamic(nn.Module):
        def forward(self, input_ids: Tensor, input_mask: Tensor) -> Tensor:
            rows = torch.where(input_mask > 0, input_ids, 0).to(torch.float32)
            return rows.reshape(input_ids.shape[0], -1)[:, :3].to(torch.float64).to(torch.float32)

    zeros = torch.zeros(2, 8, dtype=torch.int32)
    torch.onnx.export(
        Dynamic(),
        (zeros, zeros),
        str(tmp_path / "bad.onnx"),
        dynamo=False,
        opset_version=13,
        input_names=["input_ids", "input_mask"],
        output_names=["logits"],
        dynamic_axes={"input_ids": {0: "batch"}},
    )
    bad = onnx.load(str(tmp_path / "bad.onnx"))
    bad.graph.node[0].doc_string = "exported today"
    onnx.save(bad, str(tmp_path / "bad.onnx"))
    expected = (
        r"1 Shape nodes; 1 Where nodes; opset .* 13.*; producer pytorch \S+ instead of deberta-ascend 1; "
        r"fields that depend on the exporter: doc_string; .*casts inside the graph"
    )
    with pytest.raises(StageError, match=expected):
        export_onnx.check_graph(tmp_path / "bad.onnx")

    with open(tmp_path / "huge.onnx", "wb") as file:
        file.truncate(ONNX_MAX_BYTES + 1)
    with pytest.raises(StageError, match=f"at most {ONNX_MAX_BYTES}"):
        export_onnx.check_graph(tmp_path / "huge.onnx")


def test_a_producer_that_cannot_be_replaced_is_an_error(tmp_path: Path) -> None:
    """Protobuf allows any order of fields; what an exporter writes begins with the producer."""
    path, graph = tmp_path / "odd.onnx", onnx.ModelProto()
    graph.graph.name = "main_graph"
    header = onnx.ModelProto(ir_version=7, producer_name="pytorch", producer_version="9")
    path.write_bytes(graph.SerializeToString() + header.SerializeToString())
    with pytest.raises(StageError, match="does not begin with its producer, 'pytorch'"):
        export_onnx._write_producer(path)


def test_batch_is_dynamic_and_length_is_not(brought: Path) -> None:
    output = brought / "dynamic.onnx"
    assert errors.run_stage(export_onnx.main, _arguments(brought, output)) == 0
    graph = onnx.load(str(output)).graph
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {"input_ids": ["batch", 256], "input_mask": ["batch", 256], "logits": ["batch", 3]}
    wide = [tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT64]
    readers = {node.op_type for node in graph.node if set(node.input) & set(wide)}
    assert readers <= {"Reshape", "Slice", "Gather"}
