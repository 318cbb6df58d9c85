"""Parts of a training run that can be stopped and resumed: batches, learning rate, first weights, saved state."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from deberta.core import files, mnli
from deberta.core.errors import DataError
from deberta.core.progress import Progress
from deberta.stages.model import checkpoint
from deberta.stages.model.deberta import Deberta, SelfAttention

HEAD = ("pooler.", "classifier.")
# Heads of pretraining: Microsoft's two names, and that of transformers' masked language model.
LANGUAGE_MODEL_HEADS = ("lm_predictions.", "mask_predictions.", "cls.")
_CHUNK_ROWS = 1024  # encoded at a time
_GROUP_BATCHES = 50  # rows of so many batches are sorted by length together
_WIDTH_STEP = 8  # batches are padded to a multiple of it

Array = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Examples:
    """Encoded pairs, one after the other: `ids[starts[i]:starts[i + 1]]` is pair i."""

    ids: Array
    starts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.starts)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """int32 ids and mask [rows, longest of them rounded up], int64 labels [rows]."""
        longest = max(int(self.starts[row + 1] - self.starts[row]) for row in rows)
        width = -(-longest // _WIDTH_STEP) * _WIDTH_STEP
        ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.int32)
        for index, row in enumerate(rows):
            pair = self.ids[self.starts[row] : self.starts[row + 1]]
            ids[index, : len(pair)], mask[index, : len(pair)] = pair, 1
        return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(self.labels[list(rows)])


def encode(path: Path, tokenizer: Tokenizer, columns: int, vocabulary: int) -> Examples:
    """Read a tsv of so many columns and encode its pairs. Raises MissingError and DataError."""
    texts: list[tuple[str, str]] = []
    labels: list[int] = []
    for row in mnli.rows(path, columns):
        texts.append((row.premise, row.hypothesis))
        labels.append(row.label)
    progress = Progress(f"encoding {path.name}", len(texts), "rows")
    parts: list[Array] = []
    for start in range(0, len(texts), _CHUNK_ROWS):
        chunk = texts[start : start + _CHUNK_ROWS]
        parts += [np.array(encoding.ids, np.int32) for encoding in tokenizer.encode_batch(chunk)]
        progress.update(start + len(chunk))
    ids = np.concatenate(parts)
    if int(ids.max()) >= vocabulary:
        raise DataError(
            f"the tokenizer gives id {int(ids.max())} for {path}, but the model's vocabulary has {vocabulary} entries. "
            "They do not belong together"
        )
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(part) for part in parts], dtype=np.int64)])
    return Examples(ids, starts, np.array(labels, np.int64))


class Batches:
    """Which rows each step takes: a function of the arguments and the step alone, so that a stopped run can go on.

    The first `short_steps` steps take the shorter half of the rows only. Rows of similar length share a batch, which
    saves padding; the order of rows and of batches is drawn again for every epoch.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], batch_size: int, seed: int, short_steps: int) -> None:
        self._lengths, self._size, self._seed, self._short_steps = lengths, batch_size, seed, short_steps
        self._pools = (np.flatnonzero(lengths <= np.median(lengths)), np.arange(len(lengths)))
        self._drawn: tuple[int, int] | None = None
        self._batches: list[list[int]] = []

    @property
    def per_epoch(self) -> int:
        return self._count(1)

    def rows(self, step: int) -> list[int]:
        pool = int(step >= self._short_steps)
        epoch, index = divmod(step - pool * self._short_steps, self._count(pool))
        if self._drawn != (pool, epoch):
            self._batches, self._drawn = self._draw(pool, epoch), (pool, epoch)
        return self._batches[index]

    def _count(self, pool: int) -> int:
        return -(-len(self._pools[pool]) // self._size)

    def _draw(self, pool: int, epoch: int) -> list[list[int]]:
        random = np.random.default_rng([self._seed, pool, epoch])
        order = random.permutation(self._pools[pool])
        batches: list[list[int]] = []
        for start in range(0, len(order), self._size * _GROUP_BATCHES):
            group = order[start : start + self._size * _GROUP_BATCHES]
            group = group[np.argsort(self._lengths[group], kind="stable")]
            batches += [group[i : i + self._size].tolist() for i in range(0, len(group), self._size)]
        return [batches[i] for i in random.permutation(len(batches))]


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear from 0 to `peak` over the first `warmup` steps, then linear to 0; `step` counts from 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (steps - step) / max(1, steps - warmup)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay; biases and the scales of normalisations do not."""
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def initialise(model: Deberta) -> None:
    """Draw new weights from torch's generator: N(0, initializer_range), biases 0, the padding token's embedding 0.

    Keys start equal to queries, so that a token first attends to its like. A small model that has to compare two texts
    finds that only after a long plateau otherwise.
    """
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d):
            nn.init.normal_(module.weight, 0.0, model.config.initializer_range)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        model.deberta.embeddings.word_embeddings.weight[model.config.padding_idx].zero_()
        for module in model.modules():
            if isinstance(module, SelfAttention):
                module.key_proj.weight.copy_(module.query_proj.weight)


@dataclass(frozen=True)
class Initial:
    """What a pretrained checkpoint gave; key names in all three."""

    head_found: tuple[str, ...]
    head_new: tuple[str, ...]
    ignored: tuple[str, ...]


def load_backbone(model: Deberta, path: Path) -> Initial:
    """Replace `model`'s weights by a checkpoint's; what its head lacks, or has in another shape, keeps the model's own.

    Raises MissingError and DataError: missing, unexpected and misshapen backbone tensors, all in one message.
    """
    found = checkpoint.read_state_dict(path)
    own = model.state_dict()
    given = {key: value for key, value in found.items() if not key.startswith(LANGUAGE_MODEL_HEADS)}
    head = [key for key in own if key.startswith(HEAD)]
    head_found = [key for key in head if key in given and given[key].shape == own[key].shape]
    head_new = [key for key in head if key not in head_found]
    given.update((key, own[key]) for key in head_new)
    state, extras = checkpoint.select(given, own, model.config, path)
    model.load_state_dict(state)
    ignored = sorted({*extras, *(key for key in found if key not in given)})
    return Initial(tuple(head_found), tuple(head_new), tuple(ignored))


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names and float32 bytes of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_state(
    path: Path, made_with: Mapping[str, object], step: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write everything that the rest of the run depends on, whole or not at all. `made_with`: plain values only."""
    state = {
        "made_with": dict(made_with),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    with files.new_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)


def load_state(path: Path, made_with: Mapping[str, object], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a saved run back and return its step. Raises DataError if it is damaged or was made with something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before, step = dict(state["made_with"]), int(state["step"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} is not a saved state of finetune ({reason}). Remove it to start again") from None
    changed = [
        f"{name} was {before.get(name)} and is {made_with.get(name)}"
        for name in sorted({*before, *made_with})
        if before.get(name) != made_with.get(name)
    ]
    if changed:
        raise DataError(
            f"{path} belongs to another run: {'; '.join(changed)}. Run with the same, or remove it to start again"
        )
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} does not fit the model ({reason}). Remove it to start again") from None
    return step
