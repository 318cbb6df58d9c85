"""Reads and writes checkpoints: Microsoft's `.bin` files and Hugging Face folders. Pickled code is never executed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from deberta.core import files
from deberta.core.contract import LABELS
from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.stages.model.config import ModelConfig
from deberta.stages.model.deberta import Deberta

POSITION_EMBEDDINGS = "deberta.embeddings.position_embeddings.weight"
_V1_PARTS = ("in_proj", "q_bias", "v_bias", "pos_proj", "pos_q_proj")
_LANGUAGE_MODEL_HEADS = ("lm_predictions.", "mask_predictions.")
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model whose logits are in the contract's label order, and its checkpoint's label order and unused entries."""

    model: Deberta
    labels: tuple[str, ...]
    extras: tuple[str, ...]


def load(path: Path, config: ModelConfig, labels: Sequence[str] = ()) -> LoadedCheckpoint:
    """Load a checkpoint into a model of `config`, every key and shape checked, logits in the contract's order.

    `labels` is the checkpoint's label order, by default the config's id2label. Raises MissingError, DataError (all
    missing, unexpected and misshapen tensors in one message) and ConfigError (label order).
    """
    order = tuple(labels or config.labels or ())
    permutation = label_permutation(order)
    with torch.device("meta"):
        model = Deberta(config, len(LABELS))
    tensors, unused = _read(path)
    state, extras = select(tensors, model.state_dict(), config, path)
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][permutation]
    model.load_state_dict(state, assign=True)
    return LoadedCheckpoint(model.eval(), order, tuple(sorted({*extras, *unused})))


def label_permutation(labels: Sequence[str]) -> list[int]:
    """For each label of the contract, its index in a checkpoint's order. Raises ConfigError."""
    names = [label.strip().lower() for label in labels]
    if sorted(names) != sorted(LABELS):
        raise ConfigError(
            f"the checkpoint's label order is {', '.join(labels) or 'not known'}; "
            f"it must be an order of {', '.join(LABELS)}. Set `labels` in the profile (invoke.yaml)"
        )
    return [names.index(label) for label in LABELS]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a .bin, a .safetensors or a Hugging Face folder, prefixes resolved as Microsoft's code does.

    A leading `module.` is dropped and `bert.` becomes `deberta.`; a top-level `config` dict is left out.
    Raises MissingError and DataError.
    """
    return _read(path)[0]


def select(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: ModelConfig, path: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors that a model needs, as float32, and the names of known extras. Raises DataError for all faults."""
    v1 = sorted(key for key in state if any(part in key.split(".") for part in _V1_PARTS))
    if v1:
        raise DataError(
            f"{path} is a DeBERTa v1 checkpoint ({', '.join(v1[:3])} and the like: {len(v1)} tensors). "
            "A v2 or v3 checkpoint is needed"
        )
    extras = tuple(sorted(key for key in state if key not in expected and is_known_extra(key, config)))
    missing = [key for key in expected if key not in state]
    unexpected = sorted(key for key in state if key not in expected and key not in extras)
    misshapen = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise DataError(f"{path} does not fit its config: {'; '.join(problems)}")
    selected = {key: state[key].to(torch.float32) for key in expected}
    if broken := [key for key, value in selected.items() if not torch.isfinite(value).all()]:
        raise DataError(f"{path} holds NaN or infinite weights: {', '.join(broken)}")
    return selected, extras


def is_known_extra(key: str, config: ModelConfig) -> bool:
    """Whether a key is that of a tensor in published checkpoints which this model does not use."""
    return (
        key.startswith(_LANGUAGE_MODEL_HEADS)
        or (key == POSITION_EMBEDDINGS and not config.position_biased_input)
        or key == "deberta.embeddings.position_ids"  # a buffer that older transformers saved
    )


def save(path: Path, model: Deberta) -> None:
    """Write a model's state dict in Microsoft's layout; the same weights give the same bytes.

    Microsoft's code always saves position embeddings: zeros for a model without any.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if POSITION_EMBEDDINGS not in state:
        state[POSITION_EMBEDDINGS] = torch.zeros(model.config.max_position_embeddings, model.config.embedding_size)
    with files.new_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)  # torch stores the name of a path, and none for a file object


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """`read_state_dict`, and the names of accepted entries that are not tensors."""
    if path.is_dir():
        file = next((path / name for name in _FOLDER_FILES if (path / name).is_file()), None)
        if file is None:
            raise MissingError(
                f"{path} holds none of: {', '.join(_FOLDER_FILES)} (a checkpoint in shards is not supported)"
            )
        path = file
    if not path.is_file():
        raise MissingError(f"{path} is missing. Run: invoke fetch, or put the checkpoint there")
    values = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    state: dict[str, Tensor] = {}
    unused: list[str] = []
    for key, value in values.items():
        if key == "config" and isinstance(value, Mapping):
            unused.append(key)
            continue
        if not isinstance(value, Tensor):
            raise DataError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor; this is no plain state dict")
        name = key.removeprefix("module.")
        name = "deberta." + name.removeprefix("bert.") if name.startswith("bert.") else name
        if name in state:
            raise DataError(f"{path}: two tensors are called {name} once prefixes are resolved")
        state[name] = value
    return state, tuple(unused)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is truncated or not a safetensors file ({error}). Fetch it again") from None


def _read_torch(path: Path) -> Mapping[str, Any]:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        if forbidden := re.search(r"GLOBAL (\S+)", str(error)):  # torch names what is not a tensor
            raise DataError(
                f"{path} holds {forbidden[1]}, so loading it would run code from the file, and it was not loaded. "
                "Save it again as a plain state dict: torch.save(model.state_dict(), FILE)"
            ) from None
        raise _damaged(path, error) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise _damaged(path, error) from None
    if not isinstance(values, Mapping):
        raise DataError(f"{path} holds a {type(values).__name__}, not a state dict")
    return values


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} is truncated or not a checkpoint ({first_line(error)}). Fetch it again")


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class name: torch's messages go on for many lines."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
