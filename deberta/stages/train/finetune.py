"""finetune: trains a profile's model on GLUE's train.tsv and writes a checkpoint in Microsoft's layout.

With --init it starts from a pretrained backbone, else from scratch. Ctrl-C keeps the state; the same command goes on
from there and ends with the same weights as a run that was never stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec
import torch
from torch.nn import functional

from deberta.core import contract, files, mnli
from deberta.core.errors import ConfigError, StageError, run_stage
from deberta.core.machine import effective_cpus
from deberta.core.progress import Progress
from deberta.stages import arguments
from deberta.stages.arguments import Argument
from deberta.stages.model import checkpoint, config, tokenizer
from deberta.stages.model.deberta import Deberta
from deberta.stages.train import training

MAX_GRADIENT_NORM = 1.0
BETAS, EPSILON = (0.9, 0.999), 1e-6  # AdamW's, as DeBERTa was trained with
_SMOOTHING = 0.98  # of the loss on the progress line
_EVALUATION_BATCH = 64


@dataclass(frozen=True)
class TrainingSettings:
    """Everything but the input files that the weights depend on."""

    steps: int  # 0: as many as `epochs` take
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: int
    short_steps: int
    weight_decay: float
    seed: int
    max_length: int


@contextlib.contextmanager
def _signals_deferred() -> Iterator[list[int]]:
    """Yield a list that the first SIGINT or SIGTERM is added to; a second one ends the process as usual."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train(
    model: Deberta,
    examples: training.Examples,
    settings: TrainingSettings,
    state: Path,
    identity: Mapping[str, object],
    save_seconds: float,
) -> dict[str, object]:
    """Train `model` in place; returns the counts for the summary.

    `state` is read if it exists, written every `save_seconds`, at the end and on a signal; the caller removes it.
    `identity` is what the run depends on: settings and hashes. Raises StageError (a loss or gradient that is not
    finite), DataError (a state of another run) and KeyboardInterrupt (after a signal).
    """
    batches = training.Batches(examples.lengths, settings.batch_size, settings.seed, settings.short_steps)
    steps = settings.steps or settings.short_steps + settings.epochs * batches.per_epoch
    warmup = min(settings.warmup, steps // 2)
    optimizer = torch.optim.AdamW(
        training.parameter_groups(model, settings.weight_decay), lr=settings.learning_rate, betas=BETAS, eps=EPSILON
    )
    first = training.load_state(state, identity, model, optimizer) if state.is_file() else 0
    print(
        f"training on {len(examples)} rows: {steps} steps of {settings.batch_size}, {batches.per_epoch} in an epoch"
        + (f", going on after step {first}" if first else ""),
        flush=True,
    )
    progress = Progress("finetune", steps, "steps")
    started = saved = time.monotonic()
    smoothed = loss = math.nan
    model.train()
    with _signals_deferred() as signals:
        for step in range(first, steps):
            rate = training.learning_rate(step, steps, warmup, settings.learning_rate)
            loss = _update(model, optimizer, rate, examples.batch(batches.rows(step)), f"step {step + 1} of {steps}")
            smoothed = loss if math.isnan(smoothed) else _SMOOTHING * smoothed + (1 - _SMOOTHING) * loss
            progress.update(step + 1, f"loss {smoothed:.4f}")
            if signals or time.monotonic() - saved >= save_seconds:
                training.save_state(state, identity, step + 1, model, optimizer)
                saved = time.monotonic()
            if signals:
                print(f"stopped after step {step + 1} of {steps}. The same command goes on from {state}", flush=True)
                raise KeyboardInterrupt
        training.save_state(state, identity, steps, model, optimizer)  # the evaluation may still be interrupted
    return {
        "steps": steps,
        "resumed_at": first,
        "train_rows": len(examples),
        "last_loss": loss if math.isfinite(loss) else None,
        "smoothed_loss": smoothed if math.isfinite(smoothed) else None,
        "train_seconds": round(time.monotonic() - started, 1),
    }


def _update(
    model: Deberta,
    optimizer: torch.optim.Optimizer,
    rate: float,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    step: str,
) -> float:
    """One optimizer step; returns the loss. Raises StageError before anything not finite reaches the weights."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    ids, mask, labels = batch
    optimizer.zero_grad()
    loss = functional.cross_entropy(model(ids, mask), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM))
    if not math.isfinite(loss.item()) or not math.isfinite(norm):
        raise StageError(
            f"the loss is {loss.item():.4g} at {step} (learning rate {rate:.2g}), the gradient's norm {norm:.4g}. "
            "Try a lower --learning-rate or a longer --warmup"
        )
    optimizer.step()
    return loss.item()


def evaluate(model: Deberta, examples: training.Examples) -> int:
    """The number of correct labels; each batch is padded to its longest row only."""
    model.eval()
    order = examples.lengths.argsort(kind="stable").tolist()
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(order), _EVALUATION_BATCH):
            ids, mask, labels = examples.batch(order[start : start + _EVALUATION_BATCH])
            correct += int((model(ids, mask).argmax(dim=1) == labels).sum())
    return correct


def starting_model(model_config: config.ModelConfig, init: Path | None, seed: int) -> tuple[Deberta, dict[str, object]]:
    """A model with new weights, or a backbone's, and its part of the summary. Raises as `training.load_backbone`."""
    torch.manual_seed(seed)
    model = Deberta(model_config, len(contract.LABELS))
    training.initialise(model)
    print(f"starting from {init or 'scratch'}", flush=True)
    if init is None:
        return model, {"init": None}
    initial = training.load_backbone(model, init)
    for meaning, names in (
        (f"new, drawn from seed {seed}", initial.head_new),
        ("its own head is kept", initial.head_kept),
        ("ignored", initial.ignored),
    ):
        if names:
            print(f"  {meaning}: {', '.join(names)}", flush=True)
    return model, {"init": str(init), "head_new": initial.head_new, "ignored_tensors": initial.ignored}


def finetune(options: argparse.Namespace, settings: TrainingSettings) -> dict[str, object]:
    """Train, write `options.output`, evaluate; returns the summary. Raises the errors of config, data and `train`."""
    model_config = config.read(options.config)
    if settings.max_length > model_config.max_position_embeddings:
        positions = f"the {model_config.max_position_embeddings} positions of {options.config}"
        raise ConfigError(f"--max-length {settings.max_length} is more than {positions}")
    model, start = starting_model(model_config, options.init, settings.seed)
    dev_sets: dict[str, training.Examples] = {}
    sizes = model_config.vocab_size, settings.max_length
    for version, name in contract.DEV_FILES.items():
        path = options.data / name
        if path.is_file():
            dev_sets[version] = training.encode(path, options.tokenizer, mnli.DEV_COLUMNS, *sizes)
        else:
            print(f"{path} is missing: the model is not evaluated on it", flush=True)
    examples = training.encode(options.train, options.tokenizer, mnli.TRAIN_COLUMNS, *sizes)
    identity: dict[str, object] = {name.replace("_", " "): value for name, value in vars(settings).items()}
    identity["train.tsv"] = files.sha256_of(options.train)
    identity["tokenizer"] = files.sha256_of(tokenizer.source(options.tokenizer))
    identity["config"] = files.sha256_of(options.config)
    identity["initial weights"] = training.weights_digest(model)
    counts = train(model, examples, settings, options.state, identity, 60 * options.save_minutes)
    checkpoint.save(options.output, model)
    print(f"{options.output}: {options.output.stat().st_size} bytes", flush=True)
    results: dict[str, object] = {}
    for version, rows in dev_sets.items():
        correct = evaluate(model, rows)
        results[version] = {"correct": correct, "rows": len(rows), "accuracy": correct / len(rows)}
        print(f"{version}: accuracy {correct / len(rows):.4f} ({correct}/{len(rows)})", flush=True)
    return {
        **counts,
        **start,
        "settings": vars(settings),
        "labels": contract.LABELS,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "bytes": options.output.stat().st_size,
        "evaluation": results,
    }


def main(argv: Sequence[str]) -> None:
    whole, decimal = arguments.whole, arguments.decimal
    options = arguments.parse(
        argv,
        __doc__,
        "tokenizer config output summary",
        train=arguments.file("GLUE's train.tsv, 12 columns"),
        data=arguments.file("folder of the dev files to evaluate on at the end"),
        init=arguments.file("pretrained checkpoint to start from: a file or a Hugging Face folder", required=False),
        epochs=Argument("default 2", whole(1, 1000)),
        steps=Argument("instead of --epochs", whole(1), default=0),
        batch_size=Argument("default 32", whole(1, 1024), default=32),
        learning_rate=Argument("its peak, default 2e-5", decimal(1.0), default=2e-5),
        warmup=Argument("steps to reach the peak, default 1000, at most half of all", whole(0), default=1000),
        short_steps=Argument("first steps, over the shorter half of the rows alone, default 0", whole(0), default=0),
        weight_decay=Argument("default 0.01", decimal(1.0), default=0.01),
        seed=Argument("default 0", whole(0), default=0),
        max_length=Argument("tokens of a pair, default 256", whole(8, 65536), default=contract.SEQUENCE_LENGTH),
        state=arguments.file("where a stopped run is kept, to be resumed"),
        save_minutes=Argument("how often the state is written besides, default 10", decimal(1e6), default=10.0),
    )
    if options.steps and options.epochs:
        raise ConfigError("--epochs and --steps say the same in two ways. Give one of them")
    options.epochs = 0 if options.steps else options.epochs or 2
    settings = msgspec.convert(options, TrainingSettings, from_attributes=True)
    torch.set_num_threads(effective_cpus())
    # Racing threads would sum some gradients in varying order, and a resumed run would end with other weights.
    torch.use_deterministic_algorithms(True)
    arguments.write_summary(options.summary, finetune(options, settings))


if __name__ == "__main__":
    sys.exit(run_stage(main))
