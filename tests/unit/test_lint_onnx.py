"""lint-onnx: each rule on a small graph that breaks it and on one that does not, its outputs, costs and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, numpy_helper

from deberta.core import contract, errors
from deberta.core.contract import LABELS
from deberta.stages.compile import export_onnx
from deberta.stages.lint import checks, cost, graph, lint_onnx
from deberta.stages.lint.graph import load_graph
from deberta.stages.lint.rules import DOCUMENTED, RULES, SEVERITIES, table
from tests.mnli_helpers import REPOSITORY

DEMO = REPOSITORY / "models" / "demo"
X, Y = "float[batch, 4] x", "float[batch, 4] y"


def _model(body: str, inputs: str = X, outputs: str = Y, opset: str = '"": 12', ir: int = 7) -> onnx.ModelProto:
    """A graph in ONNX's text form; `body` may begin with <constants>."""
    constants, _, nodes = body.rpartition(">> ")
    given = f"<{constants.removeprefix('<<')}>" if constants else ""
    return onnx.parser.parse_model(
        f"<ir_version: {ir}, opset_import: [{opset}]> g ({inputs}) => ({outputs}) {given} {{ {nodes} }}"
    )


def _with(model: onnx.ModelProto, **values: Any) -> onnx.ModelProto:
    """Add constants that the text form cannot write."""
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in values.items())
    return model


def _external() -> onnx.ModelProto:
    model = _with(_model("y = Add(x, c)"), c=np.zeros(4, np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return model


def _layer_norm(variance: str, divided: str = "d") -> onnx.ModelProto:
    body = (
        "m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) e = Sub(x, m) "
        f"{variance} v = ReduceMean <axes = [-1]> (p) a = Add(v, c) s = Sqrt(a) y = Div({divided}, s)"
    )
    return _with(_model(body), c=np.float32(1e-7), two=np.float32(2))


HUGE = '"": 12, "com.microsoft": 1'
INDEX = "float[batch, 4] x, int64[batch, 2] i"
TWO = "float[batch, 2] y"
# rule: a graph that breaks it, and one that is close and does not
CASES: dict[str, tuple[onnx.ModelProto, onnx.ModelProto]] = {
    "opset": (_model("y = Relu(x)", opset='"": 14'), _model("y = Relu(x)", opset='"": 13')),
    "domain": (_model("y = com.microsoft.Gelu(x)", opset=HUGE), _model("y = Relu(x)")),
    "ir-version": (_model("y = Relu(x)", ir=8), _model("y = Relu(x)", ir=6)),
    "unknown-op": (_model("y = Bernoulli(x)", opset='"": 15'), _model("y = Erf(x)")),
    "gather-elements": (
        _model("y = GatherElements <axis = 1> (x, i)", "float[batch, 4] x, int32[batch, 4] i"),
        _model("<<int32[2] i = {0, 1}>> y = Gather <axis = 1> (x, i)", outputs=TWO),
    ),
    "copy-op": (
        _model("<<int64[2] n = {1, 2}>> y = Tile(x, n)", outputs="float[batch, 8] y"),
        _model("y = Concat <axis = 1> (x, x)", outputs="float[batch, 8] y"),
    ),
    "dynamic-shape-op": (
        _model("n = Shape(x) y = Reshape(x, n)"),
        _model("<<int64[2] n = {-1, 4}>> y = Reshape(x, n)"),
    ),
    "control-flow": (
        _model(
            "y = If (b) <then_branch = t () => (float[batch, 4] p) { p = Relu(x) },"
            " else_branch = e () => (float[batch, 4] q) { q = Neg(x) }>",
            "float[batch, 4] x, bool b",
        ),
        _model("y = Relu(x)"),
    ),
    "data-dependent-shape": (
        _model("y = NonZero(x)", outputs="int64[2, n] y"),
        _model("<<int64[2] n = {-1, 2}>> y = Reshape(x, n)", outputs="float[m, 2] y"),
    ),
    "dtype-int64": (
        _model("y = Add(x, x)", "int64[batch, 4] x", "int64[batch, 4] y"),
        _model("y = Add(x, x)", "int32[batch, 4] x", "int32[batch, 4] y"),
    ),
    "dtype-bool": (
        _model("b = Greater(x, z) y = Where(b, x, z)", "float[batch, 4] x, float[batch, 4] z"),
        _model("y = Max(x, z)", "float[batch, 4] x, float[batch, 4] z"),
    ),
    "int64-index": (
        _model("<<int64[2] i = {0, 1}>> y = Gather <axis = 1> (x, i)", outputs=TWO),
        _model("<<int64 i = {0}>> y = Gather <axis = 1> (x, i)", outputs="float[batch] y"),
    ),
    "topk-int64": (
        _model("<<int64[1] k = {2}>> y, i = TopK(x, k)", outputs="float[batch, 2] y, int64[batch, 2] i"),
        _model("y = ReduceMax <axes = [1]> (x)", outputs="float[batch, 1] y"),
    ),
    "cast-inside": (
        _model("h = Relu(x) y = Cast <to = 10> (h)", outputs="float16[batch, 4] y"),
        _model("y = Cast <to = 1> (x)", "int32[batch, 4] x"),
    ),
    "constant-fp16": (
        _model("<<float[1] c = {-65505.0}>> y = Add(x, c)"),
        _model("<<float[1] c = {-10000.0}>> y = Add(x, c)"),
    ),
    "constant-inf": (
        _with(_model("y = Add(x, c)"), c=np.array([0, -np.inf, 1, 2], np.float32)),
        _with(_model("y = Add(x, c)"), c=np.array([0, -1e4, 1, 2], np.float32)),
    ),
    "gather-negative": (
        _model("<<int64 i = {-1}>> y = Gather <axis = 1> (x, i)", outputs="float[batch] y"),
        _model("<<int64 i = {3}>> y = Gather <axis = 1> (x, i)", outputs="float[batch] y"),
    ),
    "slice-negative": (
        _model("<<int64[1] a = {-2}, int64[1] b = {4}, int64[1] c = {1}>> y = Slice(x, a, b, c)", outputs=TWO),
        _model("<<int64[1] a = {2}, int64[1] b = {4}, int64[1] c = {-1}>> y = Slice(x, a, b, c)", outputs=TWO),
    ),
    "folded-size": (
        _model("<<float[1] c = {1}, int64[2] n = {-1, 4}>> h = Shape(x) r = ConstantOfShape(h) y = Add(x, r)",
               "float[batch, 268435456] x", "float[batch, 268435456] y"),
        _model("<<float[1] c = {1}>> y = Add(x, c)", "float[batch, 268435456] x", "float[batch, 268435456] y"),
    ),
    "dynamic-axis": (_model("y = Relu(x)", "float[batch, n] x", "float[batch, n] y"), _model("y = Relu(x)")),
    "external-data": (_external(), _with(_model("y = Add(x, c)"), c=np.zeros(4, np.float32))),
    "contract-io": (
        _model("y = Relu(x)"),
        _with(
            _model(
                "a = Mul(input_ids, input_mask) b = Cast <to = 1> (a) logits = MatMul(b, w)",
                "int32[batch, 256] input_ids, int32[batch, 256] input_mask",
                "float[batch, 3] logits",
            ),
            w=np.zeros((256, 3), np.float32),
        ),
    ),
    "layernorm-form": (_layer_norm("p = Mul(d, d)"), _layer_norm("p = Pow(d, two)")),
    "gelu-form": (
        _model("<<float[1] c = {3}>> p = Pow(x, c) q = Add(x, p) y = Tanh(q)"),
        _model("q = Add(x, x) y = Tanh(q)"),
    ),
}  # fmt: skip


def _found(model: onnx.ModelProto, folder: Path, *batches: int) -> list[checks.LintFinding]:
    onnx.save(model, str(folder / "model.onnx"))
    return checks.check(load_graph(folder / "model.onnx"), batches or (1, 3), contract.SEQUENCE_LENGTH)


@pytest.mark.parametrize("rule", CASES)
def test_each_rule_finds_what_breaks_it_and_nothing_close_to_it(rule: str, tmp_path: Path) -> None:
    broken, sound = CASES[rule]
    assert rule in {finding.rule.id for finding in _found(broken, tmp_path)}
    assert rule not in {finding.rule.id for finding in _found(sound, tmp_path)}


def test_every_rule_has_a_case_and_what_is_not_documented_is_no_error() -> None:
    ids = [rule.id for rule in RULES]
    assert sorted([*CASES, "file-size"]) == sorted(ids) and len(set(ids)) == len(ids)
    assert {rule.severity for rule in RULES if rule.basis != DOCUMENTED} <= {"warning", "note"}
    assert {rule.severity for rule in RULES} == set(SEVERITIES)
    assert all(rule.source for rule in RULES if rule.basis == DOCUMENTED)
    assert {rule.basis for rule in RULES} == {DOCUMENTED, "inferred", "not established for CANN 5.1.RC2"}
    advice = {rule.id: rule.do for rule in RULES}
    assert (
        f"opset {contract.ONNX_OPSET}" in advice["opset"] and f"to {contract.ONNX_IR_VERSION}," in advice["ir-version"]
    )


@pytest.mark.parametrize(
    ("rule", "model"),
    [
        ("layernorm-form", _layer_norm("p = Pow(d, two)", "e")),
        ("layernorm-form", _model("y = LayerNormalization(x, s)", "float[batch, 4] x, float[4] s", opset='"": 17')),
        ("gelu-form", _model("q = Mul(x, x) p = Mul(x, q) r = Add(x, p) y = Tanh(r)")),
        ("gelu-form", _model("y = com.microsoft.FastGelu(x)", opset=HUGE)),
        ("data-dependent-shape", _model("y = Reshape(x, n)", f"{X}, int64[2] n", "float[a, b] y")),
        ("int64-index", _model("y = GatherElements(x, i)", INDEX, TWO)),
        ("domain", _model("y = Relu(x)", opset=HUGE)),
        (
            "constant-fp16",
            _model("<<int64[1] n = {4}>> c = ConstantOfShape <value = float[1] {1e9}> (n) y = Mul(x, c)"),
        ),
        ("constant-inf", _with(_model("y = Max(x, c)"), c=np.float32(np.nan))),
        ("slice-negative", _model("y = Slice <starts = [0], ends = [-1], axes = [1]> (x)", opset='"": 9')),
    ],
)
def test_other_ways_to_break_a_rule(rule: str, model: onnx.ModelProto, tmp_path: Path) -> None:
    assert rule in {finding.rule.id for finding in _found(model, tmp_path)}


def test_what_a_fixed_batch_makes_constant_is_no_arithmetic(tmp_path: Path) -> None:
    """Shapes computed in int64, as exporters write them: followed to the end, told apart, and counted as no int64."""
    body = (
        "<<int64 zero = {0}, int64[1] axis = {0}, int64[1] rest = {-1}>> s = Shape(x) n = Gather(s, zero) "
        "m = Mul(n, n) u = Unsqueeze <axes = [0]> (m) shape = Concat <axis = 0> (u, rest) h = Reshape(x, shape) "
        "y = Relu(h)"
    )
    findings = _found(_model(body, "float[4, 4] x", "float[16, 1] y"), tmp_path)
    assert {finding.rule.id for finding in findings} == {"dynamic-shape-op", "contract-io"}
    details = [finding.detail for finding in findings if finding.rule.id == "dynamic-shape-op"]
    assert details == ["Shape (constant once the batch is fixed)"]


def test_what_is_in_a_branch_is_not_taken_for_a_shape_that_is_not_known(tmp_path: Path) -> None:
    findings = _found(CASES["control-flow"][0], tmp_path)
    assert {finding.rule.id for finding in findings} == {"control-flow", "contract-io"}


def test_costs_are_those_of_the_shapes(tmp_path: Path) -> None:
    """int64 indices of twice 12 bytes a row, and as many floats read and written."""
    model = _model("y = GatherElements <axis = 1> (x, i)", "float[batch, 9] x, int64[batch, 3] i", "float[batch, 3] y")
    findings = {finding.rule.id: finding for finding in _found(model, tmp_path, 1, 8)}
    assert findings["gather-elements"].detail == "GatherElements, within the AI Core kernel's limits"
    assert findings["gather-elements"].cost == {1: (3, 3 * (8 + 4 + 4)), 8: (24, 24 * (8 + 4 + 4))}
    fixed = _model("y = Tile(x, n)", "float[2, 4] x, int64[2] n", "float[a, b] y")
    onnx.save(fixed, str(tmp_path / "fixed.onnx"))
    assert load_graph(tmp_path / "fixed.onnx").fixed_batch == 2


@pytest.mark.parametrize(
    ("form", "rules", "gathers"),
    [("shift", set(), 0), ("gather", {"gather-elements", "copy-op", "dynamic-shape-op", "int64-index"}, 8)],
)
def test_the_demo(form: str, rules: set[str], gathers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This project's graph has nothing to say about at any batch size; the gather form has two gathers per layer."""
    model, written = tmp_path / "demo.onnx", tmp_path / "findings.json"
    brought = ["--checkpoint", str(DEMO / "pytorch.model-demo.bin"), "--config", str(DEMO / "model_config.json")]
    export_onnx.main([*brought, "--output", str(model), "--labels", ",".join(LABELS), "--relative", form])
    asked = ["--model", str(model), "--batch-sizes", "64,1,8", "--format", "json", "--output", str(written)]
    code = errors.run_stage(lint_onnx.main, [*asked, "--severity", "warning", "--summary", str(tmp_path / "s.json")])
    report = json.loads(written.read_text())
    assert {finding["rule"] for finding in report["findings"]} == rules and report["batch_sizes"] == [1, 8, 64]
    assert code == (6 if rules else 0)
    summary = json.loads((tmp_path / "s.json").read_text())
    assert set(summary["rules"]) == rules and summary["counts"] == report["counts"]
    if gathers:
        found = report["findings"][0]
        assert (found["rule"], found["count"], len(found["nodes"])) == ("gather-elements", gathers, gathers)
        assert found["found"] == "GatherElements, beyond the AI Core kernel's limits"
        assert {size: cost["elements"] for size, cost in found["cost"].items()} == {
            str(size): gathers * size * 4 * 256 * 256 for size in (1, 8, 64)
        }
        assert "4 findings of severity warning or above" in capsys.readouterr().err


def _lint(model: onnx.ModelProto | bytes, folder: Path, *options: str) -> int:
    path = folder / "a model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return errors.run_stage(lint_onnx.main, ["--model", str(path), *options])


@pytest.mark.parametrize(("severity", "code"), [("error", 0), ("warning", 6), ("note", 6)])
def test_severity_decides_the_exit_code(severity: str, code: int, tmp_path: Path) -> None:
    assert _lint(CASES["copy-op"][0], tmp_path, "--severity", severity) == code


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"this is text", 5, "is no ONNX file"),
        (b"", 5, "is no ONNX file"),
        (_model("y = Add(x, nothing)").SerializeToString()[:-3], 5, "is no ONNX file"),
        (_model("y = Reshape(x)").SerializeToString(), 5, "is no valid ONNX"),
        (_model("y = Add(x, z) z = Relu(y)").SerializeToString(), 5, "reads z, which nothing before it makes"),
        (_model("y = Add(x, y)").SerializeToString(), 5, "reads y, which nothing before it makes"),
        (_model("y = Relu(x) y = Neg(x)").SerializeToString(), 5, "y is made twice"),
    ],
)
def test_what_is_no_onnx(
    content: bytes, code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _lint(content, tmp_path) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--batch-sizes", "1,x"], "--batch-sizes 'x'"),
        (["--batch-sizes", ","], "names none"),
        (["--batch-sizes", "0"], "1 to 1024"),
        (["--stats", "--device", "910"], "--device '910'"),
        (["--stats", "--device", "mine=0,1"], "--device 'mine=0,1'"),
    ],
)
def test_bad_options(options: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _lint(_model("y = Relu(x)"), tmp_path, *options) == 2
    assert says in capsys.readouterr().err


def test_missing_and_too_large_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert errors.run_stage(lint_onnx.main, ["--model", str(tmp_path / "none.onnx")]) == 3
    huge = tmp_path / "huge.onnx"
    with open(huge, "wb") as file:
        file.truncate(contract.ONNX_MAX_BYTES + 1)
    assert graph.too_large(huge)  # not linted: the digest of 2 GiB takes seconds
    assert "invoke export-onnx" in capsys.readouterr().err


def test_too_large_a_file_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph, "ONNX_MAX_BYTES", 10)
    assert _lint(_model("y = Relu(x)"), tmp_path, "--stats") == 6
    assert "error file-size" in capsys.readouterr().out


def test_text_says_what_it_costs_where_it_is_from_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _model("<<int64[2] n = {1, 2}>> h = Tile(x, n) y = Tile(h, n)", outputs="float[batch, 16] y")
    assert _lint(model, tmp_path, "--batch-sizes", "2") == 0
    said = capsys.readouterr().out
    assert "warning copy-op: choosing, repeating or scattering: 2 x Tile (h, y)" in said
    assert "cost: bs 2 48 elements, 0.00 MB" in said
    assert "not established for CANN 5.1.RC2" in said and "    do: " in said
    assert "\n0 errors, 1 warning, " in said


def test_sarif_has_what_2_1_0_requires(tmp_path: Path) -> None:
    output = tmp_path / "findings.sarif"
    assert _lint(CASES["constant-fp16"][0], tmp_path, "--format", "sarif", "--output", str(output), "--stats") == 6
    log = json.loads(output.read_text())
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] and len({rule["id"] for rule in driver["rules"]}) == len(driver["rules"])
    for rule in driver["rules"]:
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
        assert all(rule[key]["text"] for key in ("shortDescription", "fullDescription", "help"))
    assert run["results"]
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note", "none") and result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"].startswith("file:///")
        assert " " not in location["physicalLocation"]["artifactLocation"]["uri"]
        assert all(place["fullyQualifiedName"] for place in location.get("logicalLocations", ()))
    assert run["artifacts"][0]["hashes"]["sha-256"] and run["artifacts"][0]["length"] > 0
    assert run["properties"]["stats"]["parameters"] == 1


def test_statistics_count_what_can_be_counted_by_hand(tmp_path: Path) -> None:
    """[batch, 4] by [4, 5] with a bias, then Erf, then a gather of int32 rows: FLOP, bytes, and a device's bounds."""
    body = "h = Gemm(x, w, b) e = Erf(h) r = Gather(table, i) y = Add(e, r)"
    model = _model(body, "float[batch, 4] x, int32[batch] i", "float[batch, 5] y")
    table = np.zeros((1000, 5), np.float32)
    model = _with(model, w=np.zeros((4, 5), np.float32), b=np.zeros(5, np.float32), table=table)
    onnx.save(model, str(tmp_path / "model.onnx"))
    device = cost.parse_device("mine=0.000001,0.001,2")  # 1e6 FLOP/s, 1e6 bytes/s
    stats = cost.statistics(load_graph(tmp_path / "model.onnx"), (2,), [device])
    assert (stats["parameters"], stats["parameter_bytes"]) == (5025, 20100)
    at = stats["batches"]["2"]
    gemm, gather = at["operators"]["Gemm"], at["operators"]["Gather"]
    assert gemm == {"nodes": 1, "flop": 2 * 2 * 5 * 4 + 10, "bytes": 4 * (8 + 20 + 5 + 10), "intensity": 0.523}
    assert (gather["flop"], gather["bytes"]) == (0, 2 * 40 + 8)  # the rows that are read, not the table
    assert at["flop"] == 90 + 10 + 10
    bounds = at["devices"]["mine"]
    once = 2 * (8 + 20 + 5 + 10) + 8  # x, w, b and y as float16, i as it is
    assert bounds["least_seconds"] == pytest.approx(max(110, once) / 1e6)
    assert bounds["most_rows_per_second"] == pytest.approx(2 / bounds["least_seconds"])
    product = 2 * (8 + 20 + 5 + 10)  # bytes that the Gemm moves, which take less time than its 90 FLOP
    assert bounds["fused_seconds"] == pytest.approx(max(90, product) / 1e6)
    assert bounds["fused_rows_per_second"] == pytest.approx(2 / bounds["fused_seconds"])
    assert bounds["unfused_seconds"] == pytest.approx((90 + max(10, 40) + (2 * 20 + 8) + max(10, 60)) / 1e6)


def test_a_graph_of_too_many_nodes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph, "MOST_NODES", 1)
    assert _lint(_model("h = Relu(x) y = Relu(h)"), tmp_path) == 5
    assert "has 2 nodes, and more than 1 are not judged" in capsys.readouterr().err


def test_devices() -> None:
    given = cost.parse_device("T4=65,320,2")
    assert (given.name, given.flops, given.bandwidth, given.float_bytes) == ("T4", 65e12, 320e9, 2)
    assert cost.parse_device("310P").float_bytes == 2
    here = cost.parse_device("cpu")
    assert here.flops > 1e8 and here.bandwidth > 1e7 and here.float_bytes == 4


def test_the_documented_table_is_that_of_the_rules() -> None:
    assert table() in (REPOSITORY / "docs" / "lint-onnx.md").read_text(encoding="utf-8")
