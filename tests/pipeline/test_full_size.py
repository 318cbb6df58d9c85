"""The guide's config at full size, 184 M parameters with random weights: minutes, so only with `./inv test --slow`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from deberta.core.contract import INPUTS, LABELS, SEQUENCE_LENGTH
from deberta.stages.compile import compile_cpu
from deberta.stages.inference import openvino_engine
from deberta.stages.model import checkpoint, config, deberta
from tests import model_helpers as helpers
from tests.mnli_helpers import REPOSITORY, run_stage, stage_command, stage_environment

CONFIG = REPOSITORY / "models/mnli/model_config.json"


@pytest.mark.slow
def test_logits_at_full_size(tmp_path: Path) -> None:
    """Batches 1, 3 and 8 with full, short, one-token and all-zero rows: PyTorch, ONNX and the compiled model."""
    values = json.loads(CONFIG.read_text())
    torch.manual_seed(0)
    reference = DebertaV2ForSequenceClassification(DebertaV2Config.from_dict({**values, "num_labels": 3}))
    reference.train(False)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    state = {**reference.state_dict(), checkpoint.POSITION_EMBEDDINGS: torch.zeros(512, 768)}
    assert sum(tensor.numel() for tensor in state.values()) == 184_817_667  # the guide's file: 184.8 M in 203 tensors
    assert len(state) == 203
    torch.save(state, tmp_path / "model.bin")
    batches = [helpers.batch(rows, SEQUENCE_LENGTH, values["vocab_size"]) for rows in (1, 3, 8)]
    expected = [helpers.logits(reference, *batch) for batch in batches]
    del reference, state
    ours = checkpoint.load(tmp_path / "model.bin", config.read(CONFIG), LABELS).model
    with torch.no_grad():
        for batch, wanted in zip(batches, expected, strict=True):
            helpers.assert_same(ours(*batch).numpy(), wanted)
    del ours
    options = ["--checkpoint", tmp_path / "model.bin", "--config", CONFIG, "--output", tmp_path / "dynamic.onnx"]
    done = run_stage("export-onnx", *options, "--labels", ",".join(LABELS), "--summary", tmp_path / "summary.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["peak_rss_bytes"] < 4 * 2**30
    session = onnxruntime.InferenceSession(str(tmp_path / "dynamic.onnx"), providers=["CPUExecutionProvider"])
    for batch, wanted in zip(batches, expected, strict=True):
        ids, mask = (part.numpy() for part in batch)
        helpers.assert_same(np.asarray(session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0]), wanted)
    del session
    for batch, wanted in zip(batches, expected, strict=True):
        ids, mask = (part.numpy() for part in batch)
        compile_cpu.save(tmp_path / "dynamic.onnx", len(ids), tmp_path / "model.xml")
        engine = openvino_engine.load_model(tmp_path / "model.xml", threads=2)
        helpers.assert_same(compile_cpu.compiled_logits(engine, ids, mask), wanted)


@pytest.mark.slow
def test_one_model_runs_all_lengths_in_little_memory(tmp_path: Path) -> None:
    """The rows of every length as when they are padded to 256, and a peak below 2.2 times the weights."""
    values = config.read(CONFIG)
    torch.manual_seed(0)
    made = deberta.Deberta(values)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    checkpoint.save(tmp_path / "model.bin", made)
    lengths, batches = (16, 32, 64, 256), {}
    for length in lengths:
        ids, mask = (part.numpy() for part in helpers.batch(8, length, values.vocab_size))
        batches[length] = [np.pad(part, ((0, 0), (0, SEQUENCE_LENGTH - length))) for part in (ids, mask)]
        for name, part in zip(INPUTS, (ids, mask), strict=True):
            folder = tmp_path / f"s{length}" / name
            folder.mkdir(parents=True)
            (folder / "input_0.bin").write_bytes(part.astype("<i4").tobytes())
    with torch.no_grad():
        expected = {length: made.eval()(*map(torch.from_numpy, batch)).numpy() for length, batch in batches.items()}
    del made
    options = ["--checkpoint", tmp_path / "model.bin", "--config", CONFIG, "--labels", ",".join(LABELS), "--any-length"]
    assert run_stage("export-onnx", *options, "--output", tmp_path / "any.onnx").returncode == 0
    options = ["--model", tmp_path / "any.onnx", "--bs", 8, "--output", tmp_path / "any.xml", "--any-length"]
    assert run_stage("compile-cpu", *options).returncode == 0
    options = ["--model", tmp_path / "any.xml", "--lengths", ",".join(map(str, lengths))]
    for length in lengths:
        options += ["--input", ",".join(str(tmp_path / f"s{length}" / name) for name in INPUTS)]
        options += ["--output", tmp_path / f"out{length}"]
    command = stage_command("run-cpu", *options, "--summary", tmp_path / "summary.json")
    # Through a shell: the kernel counts what the process that starts a program takes as that program's peak.
    done = subprocess.run(
        ["sh", "-c", '"$@"; exit $?', "sh", *command],
        env=stage_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for length in lengths:
        [output] = (tmp_path / f"out{length}").glob("*/input_0_output_0.bin")
        helpers.assert_same(np.fromfile(output, "<f4").reshape(8, 3), expected[length])
    weights = (tmp_path / "model.bin").stat().st_size
    assert json.loads((tmp_path / "summary.json").read_text())["peak_rss_bytes"] < 2.2 * weights
