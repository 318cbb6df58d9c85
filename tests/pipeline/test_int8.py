"""--precision int8 as a user runs it: files of its own, and its accuracy never without float32's."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.pipeline_helpers import Workspace

EVALUATE = ("evaluate", "--bs", "4", "--version", "match", "--backend", "cpu", "--precision", "int8")


@pytest.fixture(name="finished", scope="module")
def _finished(tiny: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    workspace = tiny.copy(tmp_path_factory.mktemp("int8") / "workspace")
    return workspace, workspace.succeed(*EVALUATE)


def _logits(workspace: Workspace, name: str) -> np.ndarray:
    [folder] = (path for path in (workspace.root / "results/tiny/cpu" / name / "match").iterdir() if path.is_dir())
    files = [folder / f"input_{index}_output_0.bin" for index in range(3)]
    return np.concatenate([np.fromfile(file, "<f4").reshape(-1, 3) for file in files])[:10]


def test_both_runs_are_made_and_shown_beside_each_other(finished: tuple[Workspace, str]) -> None:
    workspace, said = finished
    results, models = workspace.root / "results/tiny/cpu", workspace.root / "models/tiny/cpu"
    fp32, int8 = _logits(workspace, "outputs_bs4_om"), _logits(workspace, "outputs_bs4_int8_om")
    difference = np.abs(fp32 - int8).max()
    assert 1e-4 < difference < 0.3  # it is another model, and not a broken one
    found = json.loads((results / "int8_bs4_match.json").read_text())
    assert found["max_abs_difference"] == pytest.approx(difference)
    assert found["labels_changed"] == (fp32.argmax(1) != int8.argmax(1)).sum()
    for name, word in (("eval_bs4_match", "fp32"), ("eval_bs4_int8_match", "int8")):
        assert json.loads((results / f"{name}.json").read_text())["correct"] == found[word]["correct"]
    assert f"int8 beside fp32, match bs=4: accuracy {found['int8']['accuracy']}" in said
    assert "accuracy match bs=4 on cpu in int8: " in said and "accuracy match bs=4 on cpu: " in said
    weights = [(models / f"deberta_bs4{kind}.bin").stat().st_size for kind in ("", "_int8")]
    assert weights[1] < weights[0]
    record = json.loads((models / "deberta_bs4_int8.xml.record.json").read_text())
    [summary] = record["predicate"]["runDetails"]["byproducts"]
    assert summary["annotations"]["precision"] == "int8" and summary["annotations"]["quantized_layers"] > 0


def test_a_row_s_logits_do_not_depend_on_its_batch(finished: tuple[Workspace, str]) -> None:
    workspace, _ = finished
    workspace.succeed("infer", "--bs", "10", *EVALUATE[3:])
    [folder] = (workspace.root / "results/tiny/cpu/outputs_bs10_int8_om/match").iterdir()
    together = np.fromfile(folder / "input_0_output_0.bin", "<f4").reshape(-1, 3)
    assert np.abs(together - _logits(workspace, "outputs_bs4_int8_om")).max() < 1e-4


def test_with_buckets_the_rows_are_compared_in_the_tsv_s_order(finished: tuple[Workspace, str]) -> None:
    workspace, _ = finished
    results = workspace.root / "results/tiny/cpu"
    workspace.succeed(*EVALUATE)
    padded = json.loads((results / "int8_bs4_match.json").read_text())
    said = workspace.succeed(*EVALUATE, "--buckets", "32,64,128")
    assert "int8 beside fp32, match bs=4: " in said and "on cpu in int8: " in said
    bucketed = json.loads((results / "int8_bs4_match.json").read_text())
    for name in ("eval_bs4_match", "eval_bs4_int8_match"):
        assert sum(json.loads((results / f"{name}.json").read_text())["buckets"].values()) == 10
    assert bucketed["fp32"] == padded["fp32"] and bucketed["max_abs_difference"] < 0.3


def test_a_second_run_makes_nothing_and_perf_has_a_log_of_its_own(finished: tuple[Workspace, str]) -> None:
    workspace, _ = finished
    workspace.succeed(*EVALUATE)  # another test may have counted the rows of other lengths
    assert "] running: " not in workspace.succeed(*EVALUATE)
    said = workspace.succeed("perf", "--bs", "4", "--loops", "2", "--backend", "cpu", "--precision", "int8")
    assert "perf bs=4 match on cpu in int8: " in said
    assert (workspace.root / "results/tiny/cpu/msame_bs4_int8_match.txt").exists()
    assert not (workspace.root / "results/tiny/cpu/msame_bs4_match.txt").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [(("--precision", "int4"), "fp32, int8"), (("--precision", "int8", "--backend", "ascend"), "Add --backend cpu")],
)
def test_what_is_not_there_is_refused(options: tuple[str, ...], said: str, tiny: Workspace) -> None:
    workspace = tiny
    before = workspace.files()
    assert said in workspace.fail(2, "build-om", "--bs", "4", *options)
    assert workspace.files() == before
