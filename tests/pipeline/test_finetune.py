"""finetune on a model of a few thousand weights: stopped and resumed, from a backbone, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deberta.core.contract import DEV_FILES
from deberta.core.errors import run_stage
from deberta.stages.demo import demo_data, demo_text
from deberta.stages.model import checkpoint, config
from deberta.stages.model.deberta import Deberta
from deberta.stages.train import finetune, training
from tests.mnli_helpers import REPOSITORY, stage_command, stage_environment
from tests.pipeline.test_demo import CORRECT

TINY = {
    **demo_data.MODEL_CONFIG,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "hidden_dropout_prob": 0.1,  # so that a resumed run needs the random numbers' state too
    "attention_probs_dropout_prob": 0.1,
}
SPM_MODEL = REPOSITORY / "models" / "demo" / "spm.model"


@dataclass(frozen=True)
class Run:
    """A folder to train in, and the command's arguments there."""

    folder: Path
    extra: tuple[str, ...] = ()

    @property
    def output(self) -> Path:
        return self.folder / "pytorch.model-test.bin"

    @property
    def state(self) -> Path:
        return self.folder / "finetune.state"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def arguments(self) -> list[str]:
        data = self.folder.parent / "data"
        given: dict[str, object] = {
            "--train": data / "train.tsv",
            "--data": data,
            "--tokenizer": SPM_MODEL,
            "--config": data / "model_config.json",
            "--output": self.output,
            "--state": self.state,
            "--summary": self.summary,
            "--steps": 12,
            "--short-steps": 4,
            "--batch-size": 8,
            "--learning-rate": "1e-3",
            "--warmup": 2,
            "--seed": 3,
        }
        given.update(zip(self.extra[::2], self.extra[1::2], strict=True))
        return [str(word) for pair in given.items() for word in pair if word is not None]

    def __call__(self) -> int:
        return run_stage(finetune.main, self.arguments)

    def with_options(self, *extra: str) -> Run:
        return replace(self, extra=(*self.extra, *extra))


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    data = tmp_path / "data"
    demo_data.write_split(data / "train.tsv", "t", 150, demo_text.MATCHED_GENRES, train=True)
    demo_data.write_split(data / DEV_FILES["match"], "d", 30, demo_text.MATCHED_GENRES, train=False)
    (data / "model_config.json").write_text(json.dumps(TINY), encoding="utf-8")
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run")


def _backbone(path: Path, **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Write a pretrained checkpoint as Microsoft's code does: backbone, position embeddings, heads of pretraining."""
    torch.manual_seed(9)
    model = Deberta(config.from_dict(TINY))
    training.initialise(model)
    state: dict[str, torch.Tensor] = {k: v for k, v in model.state_dict().items() if k.startswith("deberta.")}
    state[checkpoint.POSITION_EMBEDDINGS] = torch.zeros(512, 16)
    state["lm_predictions.lm_head.dense.weight"] = torch.zeros(16, 16)
    state["mask_predictions.classifier.weight"] = torch.zeros(1, 16)
    for key, value in changes.items():
        if value is None:
            del state[key]
        else:
            state[key] = value
    torch.save(state, path)
    return state


def test_from_scratch_to_a_checkpoint_in_microsofts_layout_the_same_bytes_each_time(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    assert "starting from scratch" in out
    assert f"{DEV_FILES['mismatch']} is missing" in out
    loaded = checkpoint.load(run.output, config.from_dict(TINY), labels=("contradiction", "neutral", "entailment"))
    assert loaded.extras == (checkpoint.POSITION_EMBEDDINGS,)
    run.state.unlink()  # invoke removes it once the record is there
    summary = json.loads(run.summary.read_text(encoding="utf-8"))
    assert summary["steps"] == 12
    assert summary["train_rows"] == 150
    assert list(summary["evaluation"]) == ["match"]
    assert summary["evaluation"]["match"]["rows"] == 30
    assert f"({summary['evaluation']['match']['correct']}/30)" in out

    first = run.output.read_bytes()
    assert run() == 0
    assert run.output.read_bytes() == first
    run.state.unlink()
    assert run.with_options("--seed", "4")() == 0
    assert run.output.read_bytes() != first


def test_a_run_stopped_by_ctrl_c_and_resumed_ends_with_the_same_bytes(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    whole = run.output.read_bytes()
    run.output.unlink()
    run.summary.unlink()
    run.state.unlink()
    rate = training.learning_rate

    def stop_at_6(step: int, steps: int, warmup: int, peak: float) -> float:
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return rate(step, steps, warmup, peak)

    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", stop_at_6)
        assert run() == 130
    assert f"stopped after step 7 of 12. The same command goes on from {run.state}" in capsys.readouterr().out
    assert run.state.is_file()
    assert not run.output.exists()
    assert not run.summary.exists()

    assert run.with_options("--learning-rate", "2e-3", "--seed", "4")() == 5
    error = capsys.readouterr().err
    assert f"error: {run.state} belongs to another run" in error
    assert "learning rate was 0.001 and is 0.002" in error
    assert "seed was 3 and is 4" in error
    train_file = run.folder.parent / "data" / "train.tsv"
    rows = train_file.read_bytes()
    train_file.write_bytes(rows.replace(b"Monday", b"Friday"))
    assert run() == 5
    assert "train.tsv was" in capsys.readouterr().err
    train_file.write_bytes(rows)

    assert run() == 0
    assert "going on after step 7" in capsys.readouterr().out
    assert run.output.read_bytes() == whole
    assert json.loads(run.summary.read_text(encoding="utf-8"))["resumed_at"] == 7


def test_ctrl_c_in_a_process_of_its_own_leaves_a_state_and_nothing_half_written(run: Run) -> None:
    long = run.with_options("--steps", "100000")
    with subprocess.Popen(
        stage_command("finetune", *long.arguments),
        env=stage_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("[progress] finetune"):
                process.send_signal(signal.SIGINT)
                break
        rest, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on" in rest
    assert all(line.startswith("[progress] ") for line in error.splitlines())
    assert sorted(path.name for path in run.folder.iterdir()) == [run.state.name]


def test_a_backbone_is_kept_its_language_model_heads_ignored_and_the_new_head_told(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    given = _backbone(run.folder / "pretrained.bin")
    assert run.with_options("--init", str(run.folder / "pretrained.bin"), "--learning-rate", "0")() == 0
    out = capsys.readouterr().out
    assert "new, drawn from seed 3: pooler.dense.weight, pooler.dense.bias, classifier.weight, classifier.bias" in out
    assert "ignored: deberta.embeddings.position_embeddings.weight, lm_predictions.lm_head.dense.weight, mask_" in out
    written = checkpoint.read_state_dict(run.output)
    for key, value in given.items():
        if key.startswith("deberta.") and key != checkpoint.POSITION_EMBEDDINGS:
            torch.testing.assert_close(written[key], value, rtol=0, atol=0)
    assert float(written["classifier.weight"].std()) > 0


def test_every_missing_and_misshapen_backbone_tensor_is_listed_in_one_error(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ("deberta.encoder.rel_embeddings.weight", "deberta.encoder.layer.1.output.dense.bias")
    broken = {"deberta.encoder.layer.0.attention.self.key_proj.weight": torch.zeros(3, 16)}
    _backbone(run.folder / "pretrained.bin", **dict.fromkeys(gone), **broken)
    assert run.with_options("--init", str(run.folder / "pretrained.bin"))() == 5
    error = capsys.readouterr().err
    assert all(key in error for key in (*gone, *broken))
    assert "(3, 16) instead of (16, 16)" in error
    assert not run.output.exists()


def test_a_loss_that_is_not_a_number_stops_before_anything_is_written(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.folder.parent / "data" / "model_config.json"
    path.write_text(json.dumps({**TINY, "initializer_range": 1e30}), encoding="utf-8")
    assert run() == 4
    error = capsys.readouterr().err
    assert "the loss is nan at step 1 of 12" in error
    assert "--learning-rate" in error
    assert not list(run.folder.iterdir())


class _Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_a_damaged_state_or_one_with_code_in_it_is_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.folder)
    torch.save({"made_with": {}, "step": 0, "code": _Code()}, run.state)
    assert run() == 5
    assert not Path("executed").exists()
    run.state.write_bytes(run.state.read_bytes()[:200])
    assert run() == 5
    run.state.write_bytes(b"")
    assert run() == 5
    error = capsys.readouterr().err
    assert error.count(f"error: {run.state} is not a saved state of finetune") == 3
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value", "code", "message"),
    [
        ("--train", "nowhere.tsv", 3, "nowhere.tsv is missing. Run: invoke fetch"),
        ("--init", "nowhere.bin", 3, "nowhere.bin is missing"),
        ("--tokenizer", "nowhere.model", 3, "nowhere.model is missing"),
        ("--config", "nowhere.json", 3, "nowhere.json is missing"),
        ("--batch-size", "0", 2, "--batch-size '0' is not"),
        ("--learning-rate", "fast", 2, "--learning-rate 'fast' is not a number from 0 to 1"),
        ("--learning-rate", "nan", 2, "--learning-rate 'nan' is not"),
        ("--max-length", "513", 2, "--max-length 513 is more than the 512 positions"),
    ],
)
def test_bad_arguments_and_missing_files(
    option: str, value: str, code: int, message: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.with_options(option, value)() == code
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not list(run.folder.iterdir())


def test_ids_beyond_the_models_vocabulary_are_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = run.folder.parent / "data" / "model_config.json"
    path.write_text(json.dumps({**TINY, "vocab_size": 90}), encoding="utf-8")
    assert run() == 5
    assert "the model's vocabulary has 90 entries" in capsys.readouterr().err


def test_batches_depend_on_the_step_alone_and_cover_each_epoch_once() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, 1003)
    batches = training.Batches(lengths, 8, 7, short_steps=100)
    short = [row for step in range(63) for row in batches.rows(step)]
    assert len(set(short)) == len(short)
    assert max(lengths[short]) <= np.median(lengths)
    epochs = [[row for step in range(100 + e * 126, 226 + e * 126) for row in batches.rows(step)] for e in (0, 1)]
    assert all(sorted(epoch) == list(range(1003)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert training.Batches(lengths, 8, 7, short_steps=100).rows(200) == batches.rows(200)
    assert training.Batches(lengths, 8, 8, short_steps=100).rows(200) != batches.rows(200)


def test_the_rate_rises_falls_and_only_weights_decay() -> None:
    rates = [training.learning_rate(step, 10, 4, 1.0) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[-1] == pytest.approx(1 / 6)
    model = Deberta(config.from_dict(TINY))
    decayed, others = training.parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.01, 0.0)
    assert {id(w) for n, w in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n} == {
        id(w) for w in others["params"]
    }


def test_the_committed_demo_model_is_as_good_as_recorded() -> None:
    """The counts that `invoke demo` must find: at the guide's length and through every backend they are the same."""
    models, data = REPOSITORY / "models" / "demo", REPOSITORY / "data" / "demo" / "MNLI"
    model_config = config.read(models / "model_config.json")
    labels = ("contradiction", "neutral", "entailment")
    model = checkpoint.load(models / "pytorch.model-demo.bin", model_config, labels).model
    for version, name in DEV_FILES.items():
        examples = training.encode(data / name, SPM_MODEL, 16, model_config.vocab_size, 256)
        assert finetune.evaluate(model, examples) == CORRECT[version]
