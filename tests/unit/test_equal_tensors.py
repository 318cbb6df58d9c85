"""Models whose tensors are equal, which PyTorch's exporter merges: every stage that takes a graph works on them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from deberta.core.contract import LABELS
from deberta.core.errors import run_stage
from deberta.stages.compare import compare
from deberta.stages.compile import compile_cpu, export_onnx
from deberta.stages.fp16 import check_fp16
from deberta.stages.lint import graph as lint_graph
from deberta.stages.lint import lint_onnx
from deberta.stages.model import checkpoint, deberta
from tests import model_helpers as helpers
from tests.unit.test_check_fp16 import LENGTH, SMALL, small, write_rows


def _filled(value: float) -> Callable[[deberta.Deberta], None]:
    def fill(model: deberta.Deberta) -> None:
        for weight in model.parameters():
            weight.fill_(value)

    return fill


def _equal_layers(model: deberta.Deberta) -> None:
    for layer in model.deberta.encoder.layer[1:]:
        layer.load_state_dict(model.deberta.encoder.layer[0].state_dict())


def _tied(model: deberta.Deberta) -> None:
    """Query, key and value are one in every layer, and all LayerNorms are as training begins."""
    for module in model.modules():
        if isinstance(module, deberta.SelfAttention):
            module.key_proj.load_state_dict(module.query_proj.state_dict())
            module.value_proj.load_state_dict(module.query_proj.state_dict())
        if isinstance(module, torch.nn.LayerNorm):
            module.reset_parameters()


CHANGES = {"all zero": _filled(0.0), "all 0.01": _filled(0.01), "equal layers": _equal_layers, "tied": _tied}


class Workplace:
    """A folder with a checkpoint, its config and rows, and the stages run on it."""

    def __init__(self, folder: Path, model: deberta.Deberta) -> None:
        self.folder = folder
        (folder / "config.json").write_text(json.dumps({**helpers.TINY, **SMALL}))
        checkpoint.save(folder / "checkpoint.bin", model)
        write_rows(folder / "bins")

    def run(self, main: Callable[[Any], None], **options: object) -> None:
        arguments = []
        for name, value in options.items():
            arguments += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
        assert run_stage(main, arguments) == 0

    def export(self, name: str, **options: object) -> Path:
        self.run(
            export_onnx.main,
            checkpoint=self.folder / "checkpoint.bin",
            config=self.folder / "config.json",
            labels=",".join(LABELS),
            output=self.folder / name,
            summary=self.folder / "summary.json",
            **options,
        )
        return self.folder / name


@pytest.fixture(name="place", params=CHANGES)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Workplace:
    for module in (check_fp16, compare, compile_cpu, export_onnx):
        monkeypatch.setattr(module, "effective_cpus", lambda: 1)
    model = small()
    with torch.no_grad():
        CHANGES[request.param](model)
    return Workplace(tmp_path, model)


def test_every_stage_takes_the_graph(place: Workplace) -> None:
    model = place.export("dynamic.onnx", sequence_length=LENGTH)
    nodes = json.loads((place.folder / "summary.json").read_text())["nodes"]
    linted = lint_graph.load_graph(model)
    assert "Identity" not in nodes and nodes == lint_onnx.describe_graph(linted)["nodes"]
    assert nodes == Counter(node.op_type for node in onnx.load(str(model)).graph.node if node.op_type != "Constant")
    place.run(lint_onnx.main, model=model, sequence_length=LENGTH)
    place.run(check_fp16.main, model=model, bins=place.folder / "bins", bs=4)
    for precision in ("fp32", "int8"):
        place.run(compile_cpu.main, model=model, bs=4, precision=precision, output=place.folder / f"{precision}.xml")
    for a, b in (("pytorch", "onnx"), ("onnx", "cpu"), ("transformers", "fp16")):
        kinds = {"onnx": model, "fp16": model, "cpu": place.folder / "fp32.xml"}
        place.run(
            compare.main,
            a=a,
            a_file=kinds.get(a, place.folder / "checkpoint.bin"),
            b=b,
            b_file=kinds[b],
            config=place.folder / "config.json",
            labels=",".join(LABELS),
            bins=place.folder / "bins",
            bs=4,
            sequence_length=LENGTH,
            rows=0,
            graph=model,
            report=place.folder / "report.json",
            tolerance=0.05,
        )


@pytest.mark.parametrize("place", ["all 0.01"], indirect=True)
def test_the_other_forms_of_the_graph(place: Workplace) -> None:
    gathered = place.export("gather.onnx", sequence_length=LENGTH, relative="gather")
    place.run(check_fp16.main, model=gathered, bins=place.folder / "bins", bs=4)
    lengths = place.export("lengths.onnx", any_length=True)
    assert not {"Identity"} & {node.op_type for path in (gathered, lengths) for node in onnx.load(str(path)).graph.node}
    place.run(compile_cpu.main, model=lengths, bs=2, output=place.folder / "lengths.xml", any_length=True)
