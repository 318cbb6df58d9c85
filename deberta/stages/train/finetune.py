"""finetune: trains a profile's model on GLUE's train.tsv and writes a checkpoint in Microsoft's layout.

With --init it starts from a pretrained backbone, else from scratch. Ctrl-C keeps the state; the same command goes on
from there and ends with the same weights as a run that was never stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch.nn import functional

from deberta.core import contract, files, mnli
from deberta.core.errors import ConfigError, MissingError, StageError, run_stage
from deberta.core.machine import effective_cpus
from deberta.core.progress import Progress
from deberta.stages.model import checkpoint, config
from deberta.stages.model import tokenizer as tokenizers_of_guide
from deberta.stages.model.deberta import Deberta
from deberta.stages.train import training

CLIP = 1.0  # largest norm of the gradient
BETAS, EPSILON = (0.9, 0.999), 1e-6  # AdamW's, as DeBERTa was trained with
_SMOOTHING = 0.98  # of the loss that the progress line shows
_EVALUATION_BATCH = 64

_MOST = 2**31 - 1


@dataclass(frozen=True)
class TrainingSettings:
    """What the result depends on besides the files."""

    steps: int  # 0: as many as `epochs` take
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: int
    short_steps: int
    weight_decay: float
    seed: int
    max_length: int


class _Interruption:
    """Set by SIGINT or SIGTERM; the loop looks at it between steps, where the state is whole."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interruption]:
    interruption = _Interruption()
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    model: Deberta,
    examples: training.Examples,
    settings: TrainingSettings,
    state: Path,
    made_with: dict[str, object],
    save_seconds: float,
) -> dict[str, object]:
    """Train `model` in place and return what was counted. Raises StageError, DataError (state), KeyboardInterrupt.

    `state` is read if it exists, written every `save_seconds` and when interrupted, and left for the caller to remove.
    """
    batches = training.Batches(examples.lengths, settings.batch_size, settings.seed, settings.short_steps)
    steps = settings.steps or settings.short_steps + settings.epochs * batches.per_epoch
    warmup = min(settings.warmup, steps // 2)
    optimizer = torch.optim.AdamW(
        training.parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, betas=BETAS, eps=EPSILON
    )
    first = training.load_state(state, made_with, model, optimizer) if state.is_file() else 0
    print(
        f"training on {len(examples)} rows: {steps} steps of {settings.batch_size}, {batches.per_epoch} in an epoch"
        + (f", going on after step {first}" if first else ""),
        flush=True,
    )
    progress = Progress("finetune", steps, "steps")
    started = saved = time.monotonic()
    smooth = last = math.nan
    model.train()
    with _interruptible() as interruption:
        for step in range(first, steps):
            last = _step(model, optimizer, examples.batch(batches.rows(step)), step, steps, warmup, settings)
            smooth = last if math.isnan(smooth) else _SMOOTHING * smooth + (1 - _SMOOTHING) * last
            progress.update(step + 1, f"loss {smooth:.4f}")
            if interruption.wanted:
                training.save_state(state, made_with, step + 1, model, optimizer)
                print(f"stopped after step {step + 1} of {steps}. The same command goes on from {state}", flush=True)
                raise KeyboardInterrupt
            if time.monotonic() - saved >= save_seconds:
                training.save_state(state, made_with, step + 1, model, optimizer)
                saved = time.monotonic()
        training.save_state(state, made_with, steps, model, optimizer)  # should what follows be stopped
    model.eval()
    return {
        "steps": steps,
        "resumed_at": first,
        "train_rows": len(examples),
        "last_loss": last if math.isfinite(last) else None,
        "smoothed_loss": smooth if math.isfinite(smooth) else None,
        "train_seconds": round(time.monotonic() - started, 1),
    }


def _step(
    model: Deberta,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    step: int,
    steps: int,
    warmup: int,
    settings: TrainingSettings,
) -> float:
    """One update; returns the loss. Raises StageError before a loss that is not finite can reach the weights."""
    rate = training.learning_rate(step, steps, warmup, settings.learning_rate)
    for group in optimizer.param_groups:
        group["lr"] = rate
    ids, mask, labels = batch
    loss = functional.cross_entropy(model(ids, mask), labels)
    value = loss.item()
    if not math.isfinite(value):
        raise StageError(
            f"the loss is {value} at step {step + 1} of {steps} (learning rate {rate:.2g}). "
            "Try a lower --learning-rate or a longer --warmup"
        )
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    if not math.isfinite(float(norm)):
        raise StageError(
            f"the gradient is {float(norm)} at step {step + 1} of {steps}, though the loss is {value:.4f}. "
            "Try a lower --learning-rate or a longer --warmup"
        )
    optimizer.step()
    return value


def evaluate(model: Deberta, examples: training.Examples) -> int:
    """How many labels are right; batches are padded to their longest row only."""
    model.eval()
    order = examples.lengths.argsort(kind="stable").tolist()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(order), _EVALUATION_BATCH):
            ids, mask, labels = examples.batch(order[start : start + _EVALUATION_BATCH])
            correct += int((model(ids, mask).argmax(dim=1) == labels).sum())
    return correct


def starting_model(model_config: config.ModelConfig, init: Path | None, seed: int) -> tuple[Deberta, dict[str, object]]:
    """A model with new weights, or a backbone's, and what to tell of it. Raises as `training.load_backbone`."""
    torch.manual_seed(seed)
    model = Deberta(model_config, len(contract.LABELS))
    training.initialise(model)
    if init is None:
        print("starting from scratch", flush=True)
        return model, {"init": None}
    initial = training.load_backbone(model, init)
    print(f"starting from {init}", flush=True)
    if initial.head_new:
        print(f"  new, drawn from seed {seed}: {', '.join(initial.head_new)}", flush=True)
    if initial.head_found:
        print(f"  its own head is kept: {', '.join(initial.head_found)}", flush=True)
    if initial.ignored:
        print(f"  ignored: {', '.join(initial.ignored)}", flush=True)
    return model, {"init": str(init), "head_new": initial.head_new, "ignored_tensors": initial.ignored}


def finetune(
    train_file: Path,
    dev_folder: Path,
    tokenizer_path: Path,
    config_path: Path,
    output: Path,
    init: Path | None,
    settings: TrainingSettings,
    state: Path,
    save_seconds: float,
) -> dict[str, object]:
    """Train, write `output`, evaluate; returns the summary. Raises MissingError, ConfigError, DataError, StageError."""
    model_config = config.read(config_path)
    if settings.max_length > model_config.max_position_embeddings:
        raise ConfigError(
            f"--max-length {settings.max_length} is more than the {model_config.max_position_embeddings} positions "
            f"of {config_path}"
        )
    if not train_file.is_file():
        raise MissingError(f"{train_file} is missing. Run: invoke fetch")
    tokenizer = tokenizers_of_guide.load(tokenizer_path)
    tokenizers_of_guide.truncate(tokenizer, settings.max_length)
    model, origin = starting_model(model_config, init, settings.seed)
    made_with = {
        **{name.replace("_", " "): value for name, value in vars(settings).items()},
        "train.tsv": files.sha256_of(train_file),
        "tokenizer": files.sha256_of(tokenizers_of_guide.source(tokenizer_path)),
        "config": files.sha256_of(config_path),
        "initial weights": training.weights_digest(model),
    }
    dev_sets: dict[str, training.Examples] = {}
    for version, name in contract.DEV_FILES.items():
        if (dev_folder / name).is_file():
            dev_sets[version] = training.encode(dev_folder / name, tokenizer, mnli.DEV_COLUMNS, model_config.vocab_size)
        else:
            print(f"{dev_folder / name} is missing: the model is not evaluated on it", flush=True)
    examples = training.encode(train_file, tokenizer, mnli.TRAIN_COLUMNS, model_config.vocab_size)
    summary = train(model, examples, settings, state, made_with, save_seconds)
    checkpoint.save(output, model)
    print(f"{output}: {output.stat().st_size} bytes", flush=True)
    results: dict[str, object] = {}
    for version, rows in dev_sets.items():
        correct = evaluate(model, rows)
        results[version] = {"correct": correct, "rows": len(rows), "accuracy": correct / len(rows)}
        print(f"{version}: accuracy {correct / len(rows):.4f} ({correct}/{len(rows)})", flush=True)
    files.remove(state)  # the run is complete
    return {
        **summary,
        **origin,
        "settings": vars(settings),
        "labels": contract.LABELS,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "bytes": output.stat().st_size,
        "evaluation": results,
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.train.finetune", description=__doc__)
    parser.add_argument("--train", type=Path, required=True, help="GLUE's train.tsv, 12 columns")
    parser.add_argument("--data", type=Path, required=True, help="folder of the dev files to evaluate on at the end")
    parser.add_argument("--tokenizer", type=Path, required=True, help="spm.model, or a Hugging Face tokenizer folder")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    parser.add_argument(
        "--init", type=Path, help="pretrained checkpoint to start from: a file or a Hugging Face folder"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", help="default 2")
    length.add_argument("--steps", help="instead of --epochs")
    parser.add_argument("--batch-size", help="default 32")
    parser.add_argument("--learning-rate", help="its peak, default 2e-5")
    parser.add_argument("--warmup", help="steps to reach it, default 1000, at most half of all")
    parser.add_argument("--short-steps", help="at first, steps over the shorter half of the rows alone, default 0")
    parser.add_argument("--weight-decay", help="default 0.01")
    parser.add_argument("--seed", help="default 0")
    parser.add_argument("--max-length", help="tokens of a pair, default 256")
    parser.add_argument("--state", type=Path, required=True, help="where a stopped run is kept, to be resumed")
    parser.add_argument("--save-minutes", help="how often the state is written besides, default 10")
    parser.add_argument("--summary", type=Path, required=True, help="JSON file for what was counted")
    options = parser.parse_args(argv)
    integer = contract.parse_integer
    settings = TrainingSettings(
        steps=integer("--steps", options.steps, 0, 1, _MOST),
        epochs=0 if options.steps else integer("--epochs", options.epochs, 2, 1, 1000),
        batch_size=integer("--batch-size", options.batch_size, 32, 1, 1024),
        learning_rate=_decimal("--learning-rate", options.learning_rate, 2e-5, 1.0),
        warmup=integer("--warmup", options.warmup, 1000, 0, _MOST),
        short_steps=integer("--short-steps", options.short_steps, 0, 0, _MOST),
        weight_decay=_decimal("--weight-decay", options.weight_decay, 0.01, 1.0),
        seed=integer("--seed", options.seed, 0, 0, _MOST),
        max_length=integer("--max-length", options.max_length, contract.SEQUENCE_LENGTH, 8, 65536),
    )
    save_seconds = 60 * _decimal("--save-minutes", options.save_minutes, 10, 1e6)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # a setting of tokenizers: one thread per core in encode_batch
    torch.set_num_threads(effective_cpus())
    # Some gradients on the CPU are summed by racing threads otherwise, and a resumed run would end elsewhere.
    torch.use_deterministic_algorithms(True)
    summary = finetune(
        options.train,
        options.data,
        options.tokenizer,
        options.config,
        options.output,
        options.init,
        settings,
        options.state,
        save_seconds,
    )
    summary["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    files.write_text(options.summary, json.dumps(summary, indent=2) + "\n")


def _decimal(option: str, text: str | None, default: float, high: float) -> float:
    """A number from 0 to `high`. Raises ConfigError."""
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= high:
        raise ConfigError(f"{option} {text!r} is not a number from 0 to {high:g}")
    return value


if __name__ == "__main__":
    sys.exit(run_stage(main))
