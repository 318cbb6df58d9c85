from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from deberta.core.contract import INPUTS, LABELS
from deberta.core.errors import run_stage
from deberta.stages.compile import export_onnx
from deberta.stages.data import bins, preprocess
from deberta.stages.data.bins import Rows
from deberta.stages.data.encoding import EncodedRows
from deberta.stages.fp16 import check_fp16, emulation, keep_dtype
from deberta.stages.fp16.emulation import EmulationResult, Float16Graph, Node
from deberta.stages.model import checkpoint, config, deberta
from tests import model_helpers as helpers
from tests.cpu_model_helpers import small_onnx
from tests.mnli_helpers import REPOSITORY

LENGTH = 16
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 32, "vocab_size": 40}
FIRST = "/encoder/layer.0/output/LayerNorm"
SECOND = "/encoder/layer.1/output/LayerNorm_1"


def small(**changes: Any) -> deberta.Deberta:
    return helpers.ours(helpers.reference(**SMALL, **changes), **SMALL, **changes)


def scale_layer_norm_input(made: deberta.Deberta, index: int) -> None:
    """Layer `index` makes values of a thousand or more: their squares do not fit, their LayerNorm does."""
    layer = made.deberta.encoder.layer[index]
    assert isinstance(layer, deberta.Layer)
    with torch.no_grad():
        (layer.output if index else layer.attention.output).dense.weight.mul_(2000)


def write_rows(folder: Path, batches: int = 2, batch_size: int = 4, padding: int = 1) -> Path:
    """Random rows of full length, the last `padding` of them empty, as preprocess writes them."""
    draw = np.random.default_rng(0)
    mask = np.ones((batches * batch_size, LENGTH), "<i4")
    mask[:, LENGTH - 3 :] = 0
    mask[len(mask) - padding :] = 0
    ids = draw.integers(1, SMALL["vocab_size"], mask.shape, dtype="<i4") * mask
    for name, values in zip(INPUTS, (ids, mask), strict=True):
        (folder / name).mkdir(parents=True)
        for i in range(batches):
            values[i * batch_size : (i + 1) * batch_size].tofile(folder / name / f"input_{i}.bin")
    return folder


class Workplace:
    """A folder with a model and rows, and the stage run on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keep = folder / "keep_dtype.txt"
        self.bins = folder / "bins"

    def export(self, made: deberta.Deberta) -> None:
        export_onnx.export(made, self.folder / "dynamic.onnx", LENGTH)

    def check(self, *more: object) -> int:
        given = {
            "--model": self.folder / "dynamic.onnx",
            "--bins": self.bins,
            "--bs": 4,
            "--keep": self.keep,
            "--report": self.folder / "report.json",
            "--summary": self.folder / "summary.json",
        }
        return run_stage(check_fp16.main, [str(x) for pair in given.items() for x in pair] + [str(x) for x in more])

    def report(self) -> Any:
        return json.loads((self.folder / "report.json").read_text())


@pytest.fixture(name="place")
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.setattr(check_fp16, "effective_cpus", lambda: 1)  # threads cost more than they bring at this size
    place = Workplace(tmp_path)
    write_rows(place.bins)
    return place


def nodes(prefix: str, *names: str) -> list[str]:
    return [f"{prefix}/{name}" for name in names]


def test_planted_overflow_is_found_and_cured(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    """x^2 overflows first; its mean, that plus epsilon, and the root's input are beyond the range too."""
    made = small()
    scale_layer_norm_input(made, 0)
    place.export(made)
    assert place.check() == 6
    said = capsys.readouterr().err
    assert f"{FIRST}/Pow (max " in said and "in 7 of 7 rows" in said and str(place.keep) in said
    report = place.report()
    assert [entry["name"] for entry in report["overflows"]] == [f"{FIRST}/Pow"]
    [entry] = report["overflows"]
    assert entry["max_abs"] > 65520 and entry["of_largest"] > 1 and entry["arose"] == entry["inf"] > 0
    assert entry["rows"] == list(range(7))
    needed = nodes(FIRST, "Pow", "ReduceMean_1", "Add", "Sqrt")
    assert place.keep.read_text().splitlines() == report["keep"]["nodes"] == needed
    assert report["keep"]["irreducible"]
    for wrong in (report["logits"], report["logits_saturated"]):  # x / inf is 0: nothing in the logits shows it
        assert wrong["rows_not_finite"] == [] and wrong["max_abs_difference"] > 0.5
    cured = report["keep"]["logits"]
    assert cured["rows_not_finite"] == [] and cured["max_abs_difference"] < 0.05
    assert place.check("--kept", place.keep) == 0  # what ATC gets with that file passes
    assert place.keep.read_text().splitlines() == needed


def test_an_overflow_behind_another_is_found_too(place: Workplace) -> None:
    made = small()
    scale_layer_norm_input(made, 0)
    scale_layer_norm_input(made, 1)
    place.export(made)
    assert place.check() == 6
    wanted = ("Pow", "ReduceMean_1", "Add", "Sqrt")
    assert place.keep.read_text().splitlines() == [*nodes(FIRST, *wanted), *nodes(SECOND, *wanted)]
    assert place.report()["keep"]["irreducible"]


def test_a_row_alone_overflows(place: Workplace) -> None:
    """One token's embedding is large and stands in row 5 only."""
    made = small()
    with torch.no_grad():
        made.deberta.embeddings.word_embeddings.weight[7] *= 2000
    place.export(made)
    for i in range(2):
        file = place.bins / f"input_ids/input_{i}.bin"
        values = np.fromfile(file, "<i4")
        values[values == 7] = 8
        values[LENGTH + 2] = 7 if i == 1 else 8
        values.tofile(file)
    assert place.check() == 6
    [entry] = place.report()["overflows"]
    assert (entry["name"], entry["rows"]) == ("/embeddings/LayerNorm/Pow", [5])


def test_a_divisor_that_vanishes(place: Workplace) -> None:
    """Epsilon 1e-12 is 0 in float16, and the padding token's embedding is 0: 0 / 0. Keeping the division is no cure."""
    place.export(small(layer_norm_eps=1e-12))
    assert place.check() == 6
    report = place.report()
    assert report["overflows"][0]["name"] == "/embeddings/LayerNorm/Div"
    assert report["overflows"][0]["nan"] > 0 == report["overflows"][0]["inf"]
    assert place.keep.read_text().splitlines() == nodes("/embeddings/LayerNorm", "Add", "Sqrt")
    vanishing = [entry["name"] for entry in report["weights"]["changed"] if entry["vanish"] == entry["values"] == 1]
    assert "/embeddings/LayerNorm/Constant_1" in "".join(vanishing).replace("_output_0", "")


def test_a_weight_beyond_the_range(place: Workplace) -> None:
    made = small()
    with torch.no_grad():
        made.classifier.weight[0, 0] = 1e6
    place.export(made)
    assert place.check() == 6
    report = place.report()
    assert [(entry["name"], entry["rows"]) for entry in report["overflows"]] == [("/classifier/Gemm", list(range(7)))]
    assert [e["name"] for e in report["weights"]["changed"] if e["overflow"]] == ["classifier.weight"]
    assert place.keep.read_text() == "/classifier/Gemm\n"
    assert report["logits"]["rows_not_finite"] == list(range(7))
    assert report["logits_saturated"]["rows_not_finite"] == []  # a chip that saturates says nothing


@pytest.mark.parametrize("resume_bytes", [0, keep_dtype.RESUME_BYTES])
def test_the_list_is_that_of_leaving_out_each_node_in_turn(
    resume_bytes: int, place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all nodes of two overflowing layers, and of a divisor that vanishes, whether or not runs can go on midway."""
    monkeypatch.setattr(keep_dtype, "RESUME_BYTES", resume_bytes)
    made = small(layer_norm_eps=1e-12)
    scale_layer_norm_input(made, 0)
    scale_layer_norm_input(made, 1)
    place.export(made)
    graph = emulation.load(place.folder / "dynamic.onnx")
    sample = bins.read_sample(place.bins, 4, LENGTH, graph.vocabulary, 0)
    parts = sample.rows.split(2)
    grown: list[set[str]] = []

    keep_nearest = keep_dtype._keep_producers

    def keep_producers(graph: Float16Graph, node: Node, keep: set[str]) -> set[str]:
        kept = keep_nearest(graph, node, keep)
        grown.append(set(keep))
        return kept

    monkeypatch.setattr(keep_dtype, "_keep_producers", keep_producers)
    cure = keep_dtype.find(graph, parts, parts, ())
    assert cure is not None and cure.irreducible

    def clean(keep: set[str]) -> bool:
        results: list[bool] = []

        def watch(_: Node, result: EmulationResult) -> bool:
            results.append(result.good)
            return False

        for part in parts:
            emulation.run(graph, part, keep, watch)
        return all(results)

    keep = set(cure.nodes).union(*grown)
    assert len(keep) > len(cure.nodes) and clean(keep)
    for node in graph.nodes:
        if node.name in keep and clean(keep - {node.name}):
            keep.remove(node.name)
    assert cure.nodes == [node.name for node in graph.nodes if node.name in keep]


def test_flips_count_by_their_margin(place: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    """Around 2000 float16 has whole numbers only: 2000.5 becomes 2000, and the first of equals wins."""
    made = small()
    with torch.no_grad():
        made.classifier.weight.zero_()
        made.classifier.bias.copy_(torch.tensor([2000.0, 2000.5, 0.0]))
    place.export(made)
    place.keep.write_text("left by an earlier run\n")
    assert place.check() == 6
    said = capsys.readouterr().err
    assert "7 rows change their label beyond a margin of 0.1 logits: row 0 (0.5)" in said
    flips = place.report()["logits"]["flips"]
    assert flips[6] == {"row": 6, "float32": LABELS[1], "float16": LABELS[0], "margin": 0.5}
    assert not place.keep.exists()  # no overflow, so no node to keep
    assert place.check("--margin", "0.5") == 0
    assert len(place.report()["logits"]["flips"]) == 7


def test_sound_model_and_rows(place: Workplace) -> None:
    place.export(small())
    assert place.check() == 0
    report = place.report()
    assert (report["rows"], report["padding_rows"], report["keep"], report["overflows"]) == (7, 1, None, [])
    assert 0 < report["logits"]["max_abs_difference"] < 0.05
    assert not place.keep.exists()
    summary = json.loads((place.folder / "summary.json").read_text())
    assert summary["passed"] and "nodes" not in summary
    assert place.check("--rows", 4) == 0
    assert place.report()["rows"] == 4


@pytest.mark.usefixtures("place")
def test_demo_model_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models, data = REPOSITORY / "models/demo", REPOSITORY / "data/demo/MNLI/dev_mismatched.tsv"
    read = config.read(models / "model_config.json")
    export_onnx.export(
        checkpoint.load(models / "pytorch.model-demo.bin", read, LABELS).model, tmp_path / "dynamic.onnx", 256
    )
    preprocess.preprocess(EncodedRows(data, models / "spm.model", limit=15), 8, {256: tmp_path / "demo"})
    given = ["--model", tmp_path / "dynamic.onnx", "--bins", tmp_path / "demo", "--bs", 8, "--rows", 0]
    assert run_stage(check_fp16.main, [str(x) for x in given]) == 0
    printed = capsys.readouterr().out
    assert "15 rows, 1 padding rows left out" in printed and "0 labels change" in printed


EVERY_OPERATION: dict[str, dict[str, Any]] = {
    "v3 in the gather form, gelu": {},
    "v2 convolution, relu": {
        "conv_kernel_size": 3,
        "conv_act": "gelu",
        "hidden_act": "relu",
        "pooler_hidden_act": "gelu",
    },
    "biased input, tanh": {
        "position_biased_input": True,
        "type_vocab_size": 2,
        "hidden_act": "tanh",
        "pooler_hidden_act": "tanh",
    },
    "smaller embeddings, swish": {"embedding_size": 8, "hidden_act": "swish", "pooler_hidden_act": "gelu"},
}


@pytest.mark.parametrize("changes", EVERY_OPERATION.values(), ids=EVERY_OPERATION)
def test_without_rounding_it_is_onnx_runtime(changes: dict[str, Any], tmp_path: Path) -> None:
    relative = "shift" if changes else "gather"
    export_onnx.export(small(**changes), tmp_path / "x.onnx", LENGTH, relative)
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    ids, mask = helpers.batch(5, LENGTH, SMALL["vocab_size"])
    rows = Rows(list(range(5)), ids.numpy(), mask.numpy())
    expected = session.run(None, dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True)))[0]
    graph = emulation.load(tmp_path / "x.onnx")
    plain = emulation.run(graph, rows, None)
    helpers.assert_same(plain.numpy(), expected)
    assert torch.equal(emulation.run(graph, rows, {node.name for node in graph.nodes}), plain)
    assert 0 < (emulation.run(graph, rows, set()) - plain).abs().max() < 0.1


def test_rounding_is_that_of_ieee_754() -> None:
    """numpy's conversion is the witness: ties to even, subnormals, the edge of the range."""
    special = [0.0, -0.0, 1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519.996, 65520, -1e30, 2**-24, 2**-25, 3 * 2**-26, 1e-7]
    drawn = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-9, 6).repeat(67)[:1000]
    values = np.array([*special, *drawn], np.float32)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    found = emulation.rounded(torch.from_numpy(values))
    assert found.numpy().tobytes() == expected.tobytes()
    assert emulation.overflows(torch.from_numpy(values)) == np.isinf(expected).sum() > 0


def _swap(place: Workplace) -> None:
    (place.bins / "input_ids").rename(place.bins / "x")
    (place.bins / "input_mask").rename(place.bins / "input_ids")
    (place.bins / "x").rename(place.bins / "input_mask")


def _write_nan(place: Workplace) -> None:
    np.full((4, LENGTH), np.nan, np.float32).tofile(place.bins / "input_ids/input_1.bin")


def _write_unknown_name(place: Workplace) -> None:
    (place.folder / "k").write_text("/encoder/nothing\n")


REFUSED: list[tuple[Any, Sequence[object], int, str]] = [
    (lambda place: (place.folder / "dynamic.onnx").unlink(), (), 3, "Run: invoke export-onnx"),
    (lambda place: (place.folder / "dynamic.onnx").write_bytes(b"\x00nonsense"), (), 5, "is not an ONNX file"),
    (lambda place: small_onnx(place.folder / "dynamic.onnx", names=("a", "b")), (), 5, "has the inputs a, b"),
    (lambda place: small_onnx(place.folder / "dynamic.onnx"), (), 5, "without a name"),
    (lambda place: place.bins.rename(place.folder / "moved"), (), 3, "Run: invoke preprocess"),
    (lambda place: (place.bins / "input_mask/input_0.bin").unlink(), (), 5, "must hold input_0.bin"),
    (None, ("--bs", 2), 5, "has 256 bytes, not 128"),
    (_write_nan, (), 5, "2143289344; input_ids goes from 0 to 39"),
    (_swap, (), 5, "input_mask goes from 0 to 1"),
    (None, ("--kept", "absent.txt"), 3, "absent.txt is missing"),
    (_write_unknown_name, ("--kept", "{}/k"), 5, "/encoder/nothing"),
    (None, ("--margin", "nan"), 2, "--margin 'nan'"),
    (None, ("--rows", "-1"), 2, "--rows '-1'"),
]


@pytest.mark.parametrize(("damage", "more", "code", "says"), REFUSED, ids=[entry[3] for entry in REFUSED])
def test_what_is_refused(
    damage: Any, more: Sequence[object], code: int, says: str, place: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    place.export(small())
    if damage:
        damage(place)
    assert place.check(*(str(x).format(place.folder) for x in more)) == code
    assert says in capsys.readouterr().err
    assert not (place.folder / "report.json").exists()
