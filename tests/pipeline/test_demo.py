"""The demo as a user runs it, in a workspace that holds only what is committed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from deberta.core.contract import INPUTS, LABELS, SEQUENCE_LENGTH
from deberta.stages.model import checkpoint, config
from tests import demo_digests, model_helpers
from tests.mnli_helpers import run_stage
from tests.pipeline_helpers import copy_demo, invoke

# What the committed model gets right; another CPU's rounding must not change a prediction.
CORRECT = {"match": 1189, "mismatch": 1157}
ROWS = 1200


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("demo")
    copy_demo(workspace)
    invoke(workspace, "demo")
    return workspace


@pytest.mark.parametrize("version", CORRECT)
def test_exact_counts(demonstrated: Path, version: str) -> None:
    results = demonstrated / "results/demo/cpu"
    found = json.loads((results / f"eval_bs8_{version}.json").read_text())
    assert (found["correct"], found["rows"], found["nan_rows"]) == (CORRECT[version], ROWS, 0)
    assert found["accuracy"] >= 0.90
    lines = (results / f"eval_bs8_{version}.txt").read_text().splitlines()
    assert lines == sorted(lines)
    assert f"accuracy = {CORRECT[version] / ROWS}" in lines and f"eval_samples = {ROWS}" in lines
    assert sum(counts["rows"] for counts in found["genres"].values()) == ROWS and len(found["genres"]) == 5


def test_table_and_second_run(demonstrated: Path) -> None:
    report = (demonstrated / "results/demo/cpu/report.md").read_text()
    for version, correct in CORRECT.items():
        assert f"{'M' if version == 'match' else 'MM'}={100 * correct / ROWS:.2f} ({correct}/{ROWS})" in report
    assert report.count(" on cpu, 11 lengths, MM=") == 1 and report.count(" on cpu, 20 loops only |") == 2
    again = invoke(demonstrated, "demo")
    assert "] running: " not in again  # not even the report, whose job is the same
    assert again.count("up to date") == 1 and int(again.partition(" steps up to date\n")[0].splitlines()[-1]) >= 9
    head, _, _ = report.partition("\n## Performance runs\n")
    assert head in again and "## Performance runs" not in again


def test_logits_equal_those_of_transformers(demonstrated: Path, tmp_path: Path) -> None:
    """The demo's own weights: PyTorch model, exported ONNX and compiled model on batches 1, 3 and 8, 256 tokens."""
    models = demonstrated / "models/demo"
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
        model_helpers.assert_same(_compiled_logits(tmp_path / str(rows), models, inputs), expected)


def test_every_machine_makes_the_same_bytes(demonstrated: Path) -> None:
    """Graphs, bins, compiled models and eval texts have the committed SHA-256, of all rows and of the first 32."""
    assert demo_digests.digests(demonstrated) == demo_digests.table(demo_digests.DEMO)
    invoke(demonstrated, *demo_digests.LIMITED.split())
    expected = demo_digests.table(demo_digests.DEMO, demo_digests.LIMITED)
    assert demo_digests.digests(demonstrated) == expected


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
