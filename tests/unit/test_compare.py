"""compare: what two sides differ by, and where they part; each kind of side on small models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper

from deberta.core.contract import INPUTS, LABELS
from deberta.core.errors import run_stage
from deberta.stages.compare import compare, layers
from deberta.stages.compare.layers import Difference
from deberta.stages.compile import compile_cpu, export_onnx
from deberta.stages.data.bins import Rows
from deberta.stages.inference.logits import compare_logits
from deberta.stages.model import checkpoint
from deberta.stages.model import deberta as model
from tests import model_helpers as helpers

LENGTH, BATCH, BATCHES = 16, 4, 3
ROWS = BATCH * BATCHES - 1  # the last one is padding
SMALL = {"num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 40}
CHANGES: dict[str, dict[str, Any]] = {"v3": {}, "v2": {"conv_kernel_size": 3, "conv_act": "gelu"}}


class Workplace:
    """A folder with one model as checkpoint, ONNX and compiled model, and rows; and the stage run on them."""

    def __init__(self, folder: Path, changes: dict[str, Any]) -> None:
        self.folder = folder
        values = {**helpers.TINY, **SMALL, **changes, "model_type": "deberta-v2"}
        (folder / "config.json").write_text(json.dumps(values))
        made = self.model(changes)
        checkpoint.save(folder / "checkpoint.bin", made)
        export_onnx.export(made, folder / "dynamic.onnx", LENGTH)
        compile_cpu.save(folder / "dynamic.onnx", BATCH, folder / "model.xml")
        draw = np.random.default_rng(0)
        mask = (np.arange(LENGTH) < draw.integers(3, LENGTH + 1, (BATCHES * BATCH, 1))).astype("<i4")
        mask[ROWS:] = 0
        ids = draw.integers(1, SMALL["vocab_size"], mask.shape, dtype="<i4") * mask
        for name, array in zip(INPUTS, (ids, mask), strict=True):
            (folder / "bins" / name).mkdir(parents=True)
            for i in range(BATCHES):
                array[i * BATCH : (i + 1) * BATCH].tofile(folder / "bins" / name / f"input_{i}.bin")

    @staticmethod
    def model(changes: dict[str, Any]) -> model.Deberta:
        return helpers.ours(helpers.reference(**SMALL, **changes), **SMALL, **changes)

    def file(self, kind: str) -> Path:
        names = {"cpu": "model.xml", "om": "outputs", "reference": "reference.npy"}
        torch_kinds = dict.fromkeys(("pytorch", "transformers"), "checkpoint.bin")
        return self.folder / {**names, **torch_kinds}.get(kind, "dynamic.onnx")

    def compare(self, a: str, b: str, *more: object, b_file: Path | None = None) -> int:
        given = {
            **{"--a": a, "--a-file": self.file(a), "--b": b, "--b-file": b_file or self.file(b)},
            **{"--config": self.folder / "config.json", "--labels": ",".join(LABELS), "--bins": self.folder / "bins"},
            **{"--bs": BATCH, "--sequence-length": LENGTH, "--rows": 0, "--graph": self.folder / "dynamic.onnx"},
            **{"--report": self.folder / "report.json"},
        }
        return run_stage(compare.main, [*(str(x) for pair in given.items() for x in pair), *map(str, more)])

    def report(self) -> Any:
        return json.loads((self.folder / "report.json").read_text())

    def layers(self) -> tuple[Any, Any, Any]:
        """The layer that was found, the one before it, and the node."""
        found = self.report()["layers"]
        return found["layer"], found["before"], found["node"] and found["node"]["name"]

    def changed(self, weight: str) -> Path:
        """The ONNX with one value of a weight changed, as a bug in an exporter would."""
        changed = onnx.load(str(self.folder / "dynamic.onnx"))
        [tensor] = [tensor for tensor in changed.graph.initializer if tensor.name == weight]
        values = numpy_helper.to_array(tensor).copy()
        values.reshape(-1)[values.size // 2 :] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, weight))
        onnx.save(changed, str(self.folder / "changed.onnx"))
        return self.folder / "changed.onnx"

    def outputs(self, logits: npt.NDArray[np.float32]) -> None:
        """As msame leaves them."""
        folder = self.folder / "outputs"
        folder.mkdir()
        padded = np.concatenate([logits, np.zeros((BATCHES * BATCH - ROWS, 3), np.float32)])
        for i in range(BATCHES):
            padded[i * BATCH : (i + 1) * BATCH].tofile(folder / f"input_{i}_output_0.bin")


@pytest.fixture(name="place")
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Workplace:
    monkeypatch.setattr(compare, "effective_cpus", lambda: 1)  # threads cost more than they bring at this size
    return Workplace(tmp_path, getattr(request, "param", {}))


# What was planted in one side's graph, and the layer, the layer before and the node that must be named for it.
PLANTED = {
    "deberta.embeddings.LayerNorm.weight": ("embeddings", None, "/embeddings/LayerNorm/Mul"),
    "deberta.encoder.layer.0.intermediate.dense.weight": (
        *("layer 0", "embeddings", "/encoder/layer.0/intermediate/dense/Gemm"),
    ),
    "deberta.encoder.layer.1.attention.self.query_proj.bias": (
        *("layer 1", "layer 0", "/encoder/layer.1/self/query_proj/Gemm"),
    ),
    "deberta.encoder.layer.2.output.LayerNorm.bias": (
        *("layer 2", "layer 1", "/encoder/layer.2/output/LayerNorm_1/Add_1"),
    ),
    "pooler.dense.bias": ("pooler", "layer 2", "/pooler/dense/Gemm"),
    "classifier.bias": ("logits", "pooler", "/classifier/Gemm"),
}


@pytest.mark.parametrize("weight", PLANTED)
def test_a_planted_difference_is_named(weight: str, place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    layer, before, node = PLANTED[weight]
    changed = place.changed(weight)
    assert place.compare("onnx", "onnx", b_file=changed) == 6
    assert place.layers() == (layer, before, node)
    report = place.report()
    assert not report["passed"] and report["layers"]["verified"]
    said = capsys.readouterr().err
    assert f"first layer that differs: {layer}, node {node} (" in said and str(place.folder / "report.json") in said
    by_name = {one["name"]: one["relative"] for one in report["layers"]["probes"]}
    assert by_name[layer] > 1e-4 and (before is None or by_name[before] == 0)
    assert len(report["layers"]["searched_in_rows"]) == 2
    assert not [path.name for path in place.folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("other", ["pytorch", "transformers", "cpu", "fp16"])
def test_a_planted_difference_is_named_by_every_pair(other: str, place: Workplace) -> None:
    """Those with a graph name the node too; transformers' and our module have layers only."""
    weight = "deberta.encoder.layer.1.attention.self.query_proj.bias"
    layer, before, node = PLANTED[weight]
    assert place.compare(other, "onnx", "--layer-tolerance", 0.02, b_file=place.changed(weight)) == 6
    assert place.layers() == (layer, before, node if other in ("cpu", "fp16") else None)
    assert place.report()["layers"]["verified"]


@pytest.mark.parametrize("place", CHANGES.values(), ids=CHANGES, indirect=True)
def test_no_layer_differs_between_sound_sides(place: Workplace) -> None:
    """Every layer of every pair, padded positions aside, and rows that are not a whole batch."""
    for a, b in (("pytorch", "cpu"), ("transformers", "onnx"), ("onnx", "fp16"), ("fp16", "pytorch")):
        assert place.compare(a, b, "--all-layers") == 0, (a, b)
        report = place.report()
        assert (report["passed"], report["rows"], report["padding_rows"]) == (True, ROWS, 1)
        assert place.layers() == (None, None, None)
        names = [one["name"] for one in report["layers"]["probes"]]
        convolution = ["convolution"] if len(names) == 7 else []
        assert names == ["embeddings", "layer 0", *convolution, "layer 1", "layer 2", "pooler", "logits"]
        assert (0 < report["logits"]["max_abs_difference"] < 0.02) and report["logits"]["flips"] == []
        assert max(one["relative"] for one in report["layers"]["probes"]) < (0.02 if "fp16" in (a, b) else 1e-5)


def test_an_overflow_in_float16_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 1's squares do not fit; x / infinity is 0 there, so that the logits look like any others."""
    made = Workplace.model({})
    layer = made.deberta.encoder.layer[1]
    assert isinstance(layer, model.Layer)
    with torch.no_grad():
        layer.output.dense.weight.mul_(2000)
    monkeypatch.setattr(Workplace, "model", staticmethod(lambda changes: made))
    place = Workplace(tmp_path, {})
    assert place.compare("onnx", "fp16") == 6
    assert place.layers() == ("layer 1", "layer 0", "/encoder/layer.1/output/LayerNorm_1/Pow")
    report = place.report()
    assert report["logits"]["rows_not_finite"] == [[], []] and report["tolerance"] == 0.1
    (place.folder / "kept").write_text(
        "".join(f"/encoder/layer.1/output/LayerNorm_1/{name}\n" for name in ("Pow", "ReduceMean_1", "Add", "Sqrt"))
    )
    assert place.compare("onnx", "fp16", "--kept", place.folder / "kept") == 0


def test_stored_logits_flips_and_near_ties(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 6 flips where both sides were sure, row 2 at a near tie; rows that were not run do not count."""
    logits = np.tile(np.array([[3, 1, 0]], np.float32), (ROWS, 1))
    logits[2] = (1, 0.98, 0)
    np.save(place.file("reference"), logits)
    other = logits + np.float32(0.01)
    other[2, 1] += 0.05
    place.outputs(other)
    assert place.compare("reference", "om") == 0
    report = place.report()
    [flip] = report["logits"]["flips"]
    assert (flip["row"], flip["line"], flip["labels"]) == (2, 4, [LABELS[0], LABELS[1]])
    assert flip["margins"] == pytest.approx([0.02, 0.03], abs=1e-6)
    assert report["logits"]["worst"]["row"] == 2 and report["logits"]["flips_beyond_near_ties"] == 0
    assert report["layers"]["not_searched"] == "not looked for, reference has none by name and om has none by name"

    other[6] = (1, 3, 0)
    np.copyto(np.memmap(place.folder / "outputs/input_1_output_0.bin", np.float32, shape=(BATCH, 3)), other[4:8])
    capsys.readouterr()
    assert place.compare("reference", "om") == 6
    said = capsys.readouterr()
    assert "max |difference| 2 in row 6 (line 8), allowed 0.1" in said.err
    assert "1 labels change beyond near ties: row 6 (2)" in said.err and "first layer" not in said.err
    assert "row 6 (line 8): contradiction -> neutral, margins 2 and 2" in said.out
    assert [flip["row"] for flip in place.report()["logits"]["flips"]] == [6, 2]
    assert place.compare("reference", "om", "--tolerance", 2) == 0
    assert place.compare("reference", "om", "--rows", 4) == 0  # the first bin alone
    assert place.report()["rows"] == 4


def test_logits_that_are_not_finite_fail(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    logits = np.ones((ROWS, 3), np.float32)
    np.save(place.file("reference"), logits)
    logits[0, 1] = np.nan
    place.outputs(logits)
    assert place.compare("om", "reference", "--tolerance", 1000) == 6
    assert "logits that are not finite in 1 rows of om" in capsys.readouterr().err
    report = place.report()
    assert report["logits"]["rows_not_finite"] == [[0], []] and report["logits"]["max_abs_difference"] == 0
    for file in (place.folder / "outputs").iterdir():
        np.full((BATCH, 3), np.inf, np.float32).tofile(file)
    assert place.compare("om", "reference") == 6
    assert place.report()["logits"]["worst"] is None


MARKS = [f"layer {i}" for i in range(13)]


@pytest.mark.parametrize("first", [*range(13), None])
def test_bisection_and_its_assumption(first: int | None) -> None:
    """Each first layer is found in few runs; where a difference heals, a layer that brings one in is found all the
    same, and looking at every layer finds the first."""
    asked: list[str] = []

    def prober(bad: Callable[[int], bool]) -> Callable[[Sequence[str]], dict[str, Difference]]:
        def probe(names: Sequence[str]) -> dict[str, Difference]:
            asked.extend(names)
            return {name: Difference(name, 1.0, 1.0 if bad(int(name.split()[1])) else 0.0) for name in names}

        return probe

    steady = prober(lambda i: first is not None and i >= first)
    assert layers.bisect(MARKS, steady, 0.5) == first
    assert len(asked) == len(set(asked)) <= 5
    assert layers.linear(MARKS, steady, 0.5) == first
    healing = prober(lambda i: i in (1, 12))
    assert layers.bisect(MARKS, healing, 0.5) == 12
    assert layers.linear(MARKS, healing, 0.5) == 1


def test_what_counts_as_a_difference() -> None:
    a = np.zeros((2, 3, 2), np.float32)
    a[0, 0] = (4, -8)
    b = a.copy()
    b[0, 2, 0] = 100  # behind the end of row 0
    mask = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
    assert layers.difference("x", a, b, mask) == Difference("x", 0.0, 0.0)
    assert layers.difference("x", a, b) == Difference("x", 100.0, 1.0)
    assert layers.difference("x", a[:, :1], b, mask) == Difference("x", 0.0, 0.0)  # the first position alone
    b[1, 1, 0] = np.inf
    for other in (b, a[:, :, :1]):
        assert layers.difference("x", a, other, mask).exceeds(1e9)
    assert not layers.difference("x", a * 0, a * 0).exceeds(0)


def test_the_worst_rows_are_searched() -> None:
    a = np.array([[3, 0, 0], [3, 0, 0], [0.1, 0, 0], [3, 0, 0]], np.float32)
    b = np.array([[3, 1, 0], [9, 0, 0], [0, 0.1, 0], [3, np.nan, 0]], np.float32)
    ids = np.arange(4, dtype=np.int32)[:, None]
    rows = Rows([10, 11, 12, 13], ids, ids)
    found = [layers.worst_rows(compare_logits(a[:k], b[:k]), rows) for k in (4, 3, 2)]
    assert [rows.numbers for rows in found] == [[12, 13], [11, 12], [10, 11]]
    assert found[0].ids.tolist() == [[2], [3]]


def _small_reference(place: Workplace) -> None:
    np.save(place.file("reference"), np.zeros((3, 3), np.float32))


def _pickle(place: Workplace) -> None:
    np.save(place.file("reference"), np.array([object()]), allow_pickle=True)


def _other_batch(place: Workplace) -> None:
    compile_cpu.save(place.folder / "dynamic.onnx", 2, place.folder / "model.xml")


REFUSED: list[tuple[str, Any, tuple[str, str], Sequence[object], int]] = [
    ("would be compared with itself", None, ("onnx", "onnx"), (), 2),
    ("--tolerance 'nan'", None, ("onnx", "fp16"), ("--tolerance", "nan"), 2),
    ("--layer-tolerance '-1'", None, ("onnx", "fp16"), ("--layer-tolerance", "-1"), 2),
    ("reference.npy is missing. Run: invoke acceptance", None, ("reference", "onnx"), (), 3),
    ("outputs is missing. Run: invoke infer", None, ("onnx", "om"), (), 3),
    ("holds logits of 3 rows, not of those in 3 bins of 4", _small_reference, ("reference", "onnx"), (), 5),
    ("is not a NumPy array", _pickle, ("reference", "onnx"), (), 5),
    ("takes inputs of 2 x 16, not of 4 x 16", _other_batch, ("onnx", "cpu"), (), 5),
    ("3 outputs of 3 are missing", lambda place: (place.folder / "outputs").mkdir(), ("onnx", "om"), (), 5),
    ("is not an ONNX file", lambda place: place.file("onnx").write_bytes(b"\0no"), ("onnx", "fp16"), (), 5),
    (
        "must hold input_0.bin",
        lambda place: (place.folder / "bins/input_ids/input_1.bin").unlink(),
        ("onnx", "fp16"),
        (),
        5,
    ),
]


@pytest.mark.parametrize(("says", "damage", "pair", "more", "code"), REFUSED, ids=[entry[0] for entry in REFUSED])
def test_what_is_refused(
    says: str,
    damage: Any,
    pair: tuple[str, str],
    more: Sequence[object],
    code: int,
    place: Workplace,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if damage:
        damage(place)
    assert place.compare(*pair, *more) == code
    assert says in capsys.readouterr().err
    assert not (place.folder / "report.json").exists()
    assert not [path.name for path in place.folder.iterdir() if path.name.startswith(".")]
