"""The demo as a user runs it, in a workspace that holds only what is committed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from deberta.core.contract import INPUTS, LABELS, SEQUENCE_LENGTH
from deberta.stages.model import checkpoint, config
from tests import in_process, model_helpers
from tests.mnli_helpers import REPOSITORY, run_stage
from tests.pipeline_helpers import environment

# What the committed model gets right; another CPU's rounding must not change a prediction.
CORRECT = {"match": 1189, "mismatch": 1157}
ROWS = 1200
COMMITTED = (
    "models/demo/pytorch.model-demo.bin",
    "models/demo/model_config.json",
    "models/demo/spm.model",
    "data/demo/MNLI/dev_matched.tsv",
    "data/demo/MNLI/dev_mismatched.tsv",
)


def copy_demo(workspace: Path) -> None:
    for name in COMMITTED:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, workspace / name)


def invoke(workspace: Path, *arguments: str) -> str:
    settings = {**environment(), "INVOKE_WORKSPACE": str(workspace), "INVOKE_STAGES_PYTHON": sys.executable}
    done = in_process.run_invoke(arguments, REPOSITORY, settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(name="workspace", scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("demo")
    copy_demo(workspace)
    invoke(workspace, "demo")
    return workspace


@pytest.mark.parametrize("version", CORRECT)
def test_exact_counts(workspace: Path, version: str) -> None:
    results = workspace / "results/demo/cpu"
    found = json.loads((results / f"eval_bs8_{version}.json").read_text())
    assert (found["correct"], found["rows"], found["nan_rows"]) == (CORRECT[version], ROWS, 0)
    assert found["accuracy"] >= 0.90
    lines = (results / f"eval_bs8_{version}.txt").read_text().splitlines()
    assert lines == sorted(lines)
    assert f"accuracy = {CORRECT[version] / ROWS}" in lines and f"eval_samples = {ROWS}" in lines
    assert sum(counts["rows"] for counts in found["genres"].values()) == ROWS and len(found["genres"]) == 5


def test_table_and_second_run(workspace: Path) -> None:
    report = (workspace / "results/demo/cpu/report.md").read_text()
    for version, correct in CORRECT.items():
        assert f"{'M' if version == 'match' else 'MM'}={100 * correct / ROWS:.2f} ({correct}/{ROWS})" in report
    assert report.count(" on cpu |") == 3  # one accuracy cell, two of throughput
    again = invoke(workspace, "demo")
    # The report alone is made anew each time, of the same records to the same bytes.
    assert {line.split("]")[0] for line in again.splitlines() if "] running: " in line} == {"[assess", "[render"}
    assert again.count("up to date") >= 9
    assert report in again


def test_logits_equal_those_of_transformers(workspace: Path) -> None:
    """The demo's own weights: PyTorch model, exported ONNX and compiled model on batches 1, 3 and 8, 256 tokens."""
    models = workspace / "models/demo"
    values = json.loads((models / "model_config.json").read_text())
    reference = DebertaV2ForSequenceClassification(DebertaV2Config.from_dict({**values, "num_labels": 3}))
    state = checkpoint.read_state_dict(models / "pytorch.model-demo.bin")
    reference.load_state_dict({key: state[key] for key in reference.state_dict()})
    reference.train(False)
    loaded = checkpoint.load(models / "pytorch.model-demo.bin", config.from_dict(values), LABELS).model
    session = onnxruntime.InferenceSession(str(models / "dynamic.onnx"), providers=["CPUExecutionProvider"])
    for rows in (1, 3, 8):
        batch = model_helpers.batch(rows, SEQUENCE_LENGTH, values["vocab_size"])
        expected = model_helpers.logits(reference, *batch)
        with torch.no_grad():
            model_helpers.assert_same(loaded(*batch).numpy(), expected)
        inputs = {name: part.numpy() for name, part in zip(INPUTS, batch, strict=True)}
        model_helpers.assert_same(np.asarray(session.run(None, inputs)[0]), expected)
        model_helpers.assert_same(_compiled_logits(workspace / f"compiled_bs{rows}", models, inputs), expected)


def _compiled_logits(folder: Path, models: Path, inputs: dict[str, npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
    """One batch through build-om's and infer's stages."""
    rows = len(inputs[INPUTS[0]])
    for name, values in inputs.items():
        (folder / name).mkdir(parents=True)
        values.tofile(folder / name / "input_0.bin")
    xml = folder / "deberta.xml"
    made = run_stage("compile-cpu", "--model", models / "dynamic.onnx", "--bs", rows, "--output", xml)
    assert made.returncode == 0, made.stderr
    given = ",".join(str(folder / name) for name in INPUTS)
    ran = run_stage("run-cpu", "--model", xml, "--input", given, "--output", folder / "out")
    assert ran.returncode == 0, ran.stderr
    [output] = (folder / "out").glob("*/input_0_output_0.bin")
    return np.fromfile(output, "<f4").reshape(rows, len(LABELS))
