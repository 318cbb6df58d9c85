"""invoke compare as a user runs it, with a tiny profile of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipeline_helpers import Workspace

BS = ("--bs", "4")


@pytest.fixture(name="workspace", scope="module")
def _workspace(evaluated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One in which the model's outputs are there already."""
    return evaluated.copy(tmp_path_factory.mktemp("compare") / "workspace")


def report(workspace: Workspace, name: str) -> Any:
    return json.loads((workspace.root / f"results/tiny/compare_{name}.json").read_text())


def test_compare_makes_what_it_needs_and_shows_what_it_knows(workspace: Workspace) -> None:
    said = workspace.succeed("compare", "pytorch", "cpu", *BS)
    assert "[compare pytorch cpu bs=4 match] running: not made yet" in said
    found = report(workspace, "pytorch_cpu_bs4_match")
    assert (found["passed"], found["rows"], found["padding_rows"]) == (True, 10, 2)
    assert found["logits"]["max_abs_difference"] <= 1e-4
    again = workspace.succeed("compare", "pytorch", "cpu", *BS, "--verbose")
    assert "up to date: results/tiny/compare_pytorch_cpu_bs4_match.json" in again
    assert all(line in said and line in again for line in found["summary"])
    few = workspace.succeed("compare", "onnx", "fp16", *BS, "--limit", "3", "--all-layers")
    assert "onnx against fp16, 3 rows of match" in few and "layer 1: " in few
    assert (workspace.root / "results/tiny/compare_onnx_fp16_bs4_limit3_match.json").exists()


def test_outputs_that_differ_fail_and_are_listed(workspace: Workspace) -> None:
    [folder] = (workspace.root / "results/tiny/cpu/outputs_bs4_om/match").iterdir()
    brought = workspace.root / "brought"
    brought.mkdir()
    for file in folder.iterdir():
        logits = np.fromfile(file, "<f4")
        if file.name == "input_1_output_0.bin":
            logits[3:6] = (0, 9, -9)
        logits.tofile(brought / file.name)
    said = workspace.fail(6, "compare", "onnx", "om", *BS, "--outputs", "brought")
    assert "onnx and om differ: max |difference|" in said and "in row 5 (line 7)" in said
    assert not report(workspace, "onnx_om_bs4_match")["passed"]
    (folder / "input_1_output_0.bin").replace(brought / "input_1_output_0.bin")
    workspace.succeed("infer", *BS, "--version", "match")
    assert "max |difference|" in workspace.succeed("compare", "onnx", "om", *BS, "--outputs", "brought")
    assert report(workspace, "onnx_om_bs4_match")["passed"]


def test_outputs_of_an_ascend_run_are_found(workspace: Workspace) -> None:
    """The guide's own, without a record: the one folder that is there."""
    [folder] = (workspace.root / "results/tiny/cpu/outputs_bs4_om/match").iterdir()
    there = workspace.root / "results/tiny/ascend/outputs_bs4_om/match" / folder.name
    assert "ascend/outputs_bs4_om/match" in workspace.fail(3, "compare", "onnx", "om", *BS)
    there.mkdir(parents=True)
    for file in folder.iterdir():
        (there / file.name).write_bytes(file.read_bytes())
    workspace.succeed("compare", "cpu", "om", *BS)
    [_, om] = report(workspace, "cpu_om_bs4_match")["sides"]
    assert om == {"kind": "om", "file": there.relative_to(workspace.root).as_posix()}


def test_what_is_refused(workspace: Workspace) -> None:
    assert "SIDE-B 'tpu' is not one of: pytorch" in workspace.fail(2, "compare", "onnx", "tpu")
    assert "would be compared with itself" in workspace.fail(2, "compare", "onnx", "onnx")
    assert "--outputs is for om" in workspace.fail(2, "compare", "onnx", "cpu", "--outputs", "x")
    missing = workspace.fail(3, "compare", "onnx", "reference", *BS)
    assert "results/tiny/reference_match.npy is missing. Run: invoke acceptance --backend cpu --profile tiny" in missing
    assert "absent.onnx is missing" in workspace.fail(3, "compare", "onnx", "onnx", "--b-file", "absent.onnx")


def test_a_dry_run_prints_the_stage(workspace: Workspace, tmp_path: Path) -> None:
    said = workspace.succeed("compare", "onnx", "om", *BS, "--dry")
    assert "-m deberta.stages.compare.compare --a-file models/tiny/dynamic.onnx" in said
    assert " --a onnx --b om --bs 4 --version match" in said
    assert 'match/"$T"' in said
