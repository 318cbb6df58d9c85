"""--precision int8 and bf16 as a user runs them: files of their own, and an accuracy never without float32's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from deberta.core import machine
from tests.pipeline_helpers import Workspace

EVALUATE = ("evaluate", "--bs", "4", "--version", "match", "--backend", "cpu", "--precision")
WITH_BF16 = pytest.mark.skipif(bool(machine.why_no_bf16()), reason=machine.why_no_bf16() or "-")


@pytest.fixture(name="finished", scope="module", params=["int8", pytest.param("bf16", marks=WITH_BF16)])
def _finished(
    request: pytest.FixtureRequest, tiny: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Workspace, str, str]:
    workspace = tiny.copy(tmp_path_factory.mktemp(request.param) / "workspace")
    return workspace, request.param, workspace.succeed(*EVALUATE, request.param)


def _logits(workspace: Workspace, name: str) -> np.ndarray:
    [folder] = (path for path in (workspace.root / "results/tiny/cpu" / name / "match").iterdir() if path.is_dir())
    files = [folder / f"input_{index}_output_0.bin" for index in range(3)]
    return np.concatenate([np.fromfile(file, "<f4").reshape(-1, 3) for file in files])[:10]


def test_both_runs_are_made_and_shown_beside_each_other(finished: tuple[Workspace, str, str]) -> None:
    workspace, precision, said = finished
    results, models = workspace.root / "results/tiny/cpu", workspace.root / "models/tiny/cpu"
    fp32, lower = _logits(workspace, "outputs_bs4_om"), _logits(workspace, f"outputs_bs4_{precision}_om")
    difference = np.abs(fp32 - lower).max()
    assert 1e-4 < difference < 0.3  # it is another model, and not a broken one
    found = json.loads((results / f"{precision}_bs4_match.json").read_text())
    assert found["max_abs_difference"] == pytest.approx(difference)
    assert found["labels_changed"] == (fp32.argmax(1) != lower.argmax(1)).sum()
    for name, word in (("eval_bs4_match", "fp32"), (f"eval_bs4_{precision}_match", "lower")):
        assert json.loads((results / f"{name}.json").read_text())["correct"] == found[word]["correct"]
    assert f"{precision} beside fp32, match bs=4: accuracy {found['lower']['accuracy']}" in said
    assert f"accuracy match bs=4 on cpu in {precision}: " in said and "accuracy match bs=4 on cpu: " in said
    weights = [(models / f"deberta_bs4{kind}.bin").stat().st_size for kind in ("", f"_{precision}")]
    assert weights[1] < weights[0] if precision == "int8" else weights[1] >= weights[0]
    record = json.loads((models / f"deberta_bs4_{precision}.xml.record.json").read_text())
    [summary] = record["predicate"]["runDetails"]["byproducts"]
    assert summary["annotations"]["precision"] == precision
    assert (summary["annotations"]["quantized_layers"] > 0) == (precision == "int8")


def test_a_row_s_logits_hardly_depend_on_its_batch(finished: tuple[Workspace, str, str]) -> None:
    workspace, precision, _ = finished
    allowed = {"int8": 1e-4, "bf16": 0.01}[precision]  # another order of a sum may round to another bfloat16
    workspace.succeed("infer", "--bs", "10", *EVALUATE[3:], precision)
    [folder] = (workspace.root / f"results/tiny/cpu/outputs_bs10_{precision}_om/match").iterdir()
    together = np.fromfile(folder / "input_0_output_0.bin", "<f4").reshape(-1, 3)
    assert np.abs(together - _logits(workspace, f"outputs_bs4_{precision}_om")).max() < allowed


def test_with_buckets_the_rows_are_compared_in_the_tsv_s_order(finished: tuple[Workspace, str, str]) -> None:
    workspace, precision, _ = finished
    results = workspace.root / "results/tiny/cpu"
    workspace.succeed(*EVALUATE, precision)
    padded = json.loads((results / f"{precision}_bs4_match.json").read_text())
    said = workspace.succeed(*EVALUATE, precision, "--buckets", "32,64,128")
    assert f"{precision} beside fp32, match bs=4: " in said and f"on cpu in {precision}: " in said
    bucketed = json.loads((results / f"{precision}_bs4_match.json").read_text())
    for name in ("eval_bs4_match", f"eval_bs4_{precision}_match"):
        assert sum(json.loads((results / f"{name}.json").read_text())["buckets"].values()) == 10
    assert bucketed["fp32"] == padded["fp32"] and bucketed["max_abs_difference"] < 0.3


def test_a_second_run_makes_nothing_and_perf_has_a_log_of_its_own(finished: tuple[Workspace, str, str]) -> None:
    workspace, precision, _ = finished
    workspace.succeed(*EVALUATE, precision)  # another test may have counted the rows of other lengths
    assert "] running: " not in workspace.succeed(*EVALUATE, precision)
    said = workspace.succeed("perf", "--bs", "4", "--loops", "2", "--backend", "cpu", "--precision", precision)
    assert f"perf bs=4 match on cpu in {precision}: " in said
    assert (workspace.root / f"results/tiny/cpu/msame_bs4_{precision}_match.txt").exists()
    assert not (workspace.root / "results/tiny/cpu/msame_bs4_match.txt").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--precision", "int4"), "fp32, int8, bf16"),
        (("--precision", "int8", "--backend", "ascend"), "Add --backend cpu"),
    ],
)
def test_what_is_not_there_is_refused(options: tuple[str, ...], said: str, tiny: Workspace) -> None:
    workspace = tiny
    before = workspace.files()
    assert said in workspace.fail(2, "build-om", "--bs", "4", *options)
    assert workspace.files() == before
