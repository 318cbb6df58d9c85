"""The parts of a resumable training run: batches, learning rate, initial weights, saved state."""

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
from torch import Tensor, nn

from deberta.core import files, mnli
from deberta.core.errors import DataError
from deberta.stages.data.encoding import Array, EncodedRows
from deberta.stages.model import checkpoint
from deberta.stages.model.deberta import Deberta, SelfAttention

HEAD = ("pooler.", "classifier.")
# Heads of pretraining: Microsoft's two names, and that of transformers' masked language model.
LANGUAGE_MODEL_HEADS = ("lm_predictions.", "mask_predictions.", "cls.")
_GROUP_BATCHES = 50  # batches whose rows are sorted by length together
_WIDTH_STEP = 8  # the width of a batch is a multiple of it


@dataclass(frozen=True)
class Examples:
    """Tokenized pairs in one array, with their labels as indices: `ids[starts[i]:starts[i + 1]]` is pair i."""

    ids: Array
    starts: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.diff(self.starts)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """int32 ids and mask [rows, longest row rounded up], int64 labels [rows]."""
        starts, stops = self.starts[list(rows)], self.starts[[row + 1 for row in rows]]
        lengths = stops - starts
        width = -(-int(lengths.max()) // _WIDTH_STEP) * _WIDTH_STEP
        mask = (np.arange(width) < lengths[:, None]).astype(np.int32)
        ids = np.zeros((len(rows), width), np.int32)
        for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            ids[index, : stop - start] = self.ids[start:stop]
        return torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(self.labels[list(rows)])


def encode(path: Path, tokenizer: Path, columns: int, vocabulary: int, max_length: int) -> Examples:
    """Read a tsv of so many columns and tokenize its pairs. Raises as `EncodedRows` does."""
    encoded = EncodedRows(path, tokenizer, vocabulary=vocabulary, columns=columns, max_length=max_length)
    parts = encoded.all_ids(f"encoding {path.name}")
    starts = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    labels = np.array([row.label for row in mnli.rows(path, columns)], np.int64)
    return Examples(np.concatenate(parts), starts, labels)


class Batches:
    """The rows of each step, a function of the arguments and the step alone, so that a stopped run can be resumed.

    The first `short_steps` steps use the shorter half of the rows only. Rows of similar length share a batch, which
    saves padding; the order of rows and of batches is drawn again for every epoch.
    """

    def __init__(self, lengths: npt.NDArray[np.int64], batch_size: int, seed: int, short_steps: int) -> None:
        self._lengths, self._size, self._seed, self._short_steps = lengths, batch_size, seed, short_steps
        self._pools = (np.flatnonzero(lengths <= np.median(lengths)), np.arange(len(lengths)))
        self._counts = tuple(-(-len(rows) // batch_size) for rows in self._pools)
        self.per_epoch = self._counts[1]
        self._epoch: tuple[int, int] | None = None  # the pool and epoch of `_batches`
        self._batches: list[list[int]] = []

    def rows(self, step: int) -> list[int]:
        pool = int(step >= self._short_steps)
        epoch, index = divmod(step - pool * self._short_steps, self._counts[pool])
        if self._epoch != (pool, epoch):
            self._batches, self._epoch = self._draw(pool, epoch), (pool, epoch)
        return self._batches[index]

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
    """Matrices decay; biases and the scales of normalisations do not."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def initialise(model: Deberta) -> None:
    """Draw new weights from torch's generator: N(0, initializer_range), biases 0, the padding token's embedding 0.

    Keys start equal to queries, so that a token first attends to similar tokens. Without this, a small model that has
    to compare two texts learns it only after a long plateau.
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
    """The key names of a pretrained checkpoint's head, split by origin, and of its tensors that are not used."""

    head_kept: tuple[str, ...]
    head_new: tuple[str, ...]
    ignored: tuple[str, ...]


def load_backbone(model: Deberta, path: Path) -> Initial:
    """Load a checkpoint's weights; head tensors that it lacks, or has in another shape, keep the model's own.

    Raises MissingError and DataError: missing, unexpected and misshapen backbone tensors, all in one message.
    """
    loaded = checkpoint.read_state_dict(path)
    own = model.state_dict()
    merged = {key: value for key, value in loaded.items() if not key.startswith(LANGUAGE_MODEL_HEADS)}
    head = [key for key in own if key.startswith(HEAD)]
    head_kept = [key for key in head if key in merged and merged[key].shape == own[key].shape]
    head_new = [key for key in head if key not in head_kept]
    merged.update((key, own[key]) for key in head_new)
    state, extras = checkpoint.select(merged, own, model.config, path)
    model.load_state_dict(state)
    ignored = sorted({*extras, *(loaded.keys() - merged.keys())})
    return Initial(tuple(head_kept), tuple(head_new), tuple(ignored))


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the names and float32 bytes of a state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_state(
    path: Path, identity: Mapping[str, object], step: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write everything that the rest of the run depends on, whole or not at all. `identity`: plain values only."""
    state = {
        "made_with": dict(identity),
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
    }
    with files.new_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)


def load_state(path: Path, identity: Mapping[str, object], model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Restore a saved run and return its step. Raises DataError if it is damaged or belongs to another run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved, step = dict(state["made_with"]), int(state["step"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        reason = checkpoint.first_line(error)
        raise DataError(f"{path} is not a saved state of finetune ({reason}). Remove it to start again") from None
    changes = [
        f"{name} was {saved.get(name)} and is {identity.get(name)}"
        for name in sorted({*saved, *identity})
        if saved.get(name) != identity.get(name)
    ]
    if changes:
        advice = "Run with the same, or remove it to start again"
        raise DataError(f"{path} belongs to another run: {'; '.join(changes)}. {advice}")
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = checkpoint.first_line(error)
        raise DataError(f"{path} does not fit the model ({reason}). Remove it to start again") from None
    return step
