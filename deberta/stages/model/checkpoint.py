"""Reads and writes checkpoints: Microsoft's `.bin` files and Hugging Face folders. Pickled code is never executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deberta.core import files
from deberta.core.contract import LABELS
from deberta.core.errors import ConfigError, DataError, many, some
from deberta.stages.model import config as config_module
from deberta.stages.model import label_words, weights
from deberta.stages.model.config import ModelConfig
from deberta.stages.model.deberta import Deberta

POSITION_EMBEDDINGS = "deberta.embeddings.position_embeddings.weight"
FLOATS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
_V1_PARTS = ("in_proj", "q_bias", "v_bias", "pos_proj", "pos_q_proj")
_LANGUAGE_MODEL_HEADS = ("lm_predictions.", "mask_predictions.")


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model whose logits are in the contract's label order, and its checkpoint's label order and unused entries.

    `dtypes`: how many of the tensors used have which dtype in the files.
    """

    model: Deberta
    labels: tuple[str, ...]
    extras: tuple[str, ...]
    dtypes: Mapping[str, int]

    @property
    def facts(self) -> dict[str, Any]:
        """What a record has of it. `id2label` is the config's own; checkpoint_labels, the order used, may differ."""
        config = self.model.config
        return {
            "checkpoint_labels": self.labels,
            "id2label": config.labels or (),
            "extra_tensors": self.extras,
            "dtypes": dict(self.dtypes),
            "config_family": config.family,
            "config_assumed": dict(config.assumed),
        }

    @property
    def notes(self) -> list[str]:
        """Lines to be shown: what was taken otherwise than the files have it."""
        config, others = self.model.config, {name: n for name, n in self.dtypes.items() if name != "float32"}
        lines = [f"the config has no {key}: read as {value}, as {config.family} does" for key, value in config.assumed]
        if others:
            counts = ", ".join(f"{count} {name}" for name, count in others.items())
            lines.append(f"of {sum(self.dtypes.values())} tensors, these become float32: {counts}")
        return lines


def load(path: Path, config: ModelConfig, labels: Sequence[str] = ()) -> LoadedCheckpoint:
    """Load a checkpoint into a model of `config`, every key and shape checked, logits in the contract's order.

    `labels` is the checkpoint's label order, by default the config's id2label. Raises MissingError, DataError (all
    missing, unexpected and misshapen tensors in one message) and ConfigError (label order).
    """
    tensors, unused = _read(path)
    check_head(tensors, path)
    order = label_words.label_order(labels, config)
    permutation = label_words.label_permutation(order)
    for values in unused.values():
        if problem := config_module.contradictions(config, values):
            raise ConfigError(f"{path} holds a config that contradicts the config file: {problem}")
    with torch.device("meta"):
        model = Deberta(config, len(LABELS))
    state, extras = select(tensors, model.state_dict(), config, path)
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][permutation]
    model.load_state_dict(state, assign=True)
    dtypes = Counter(dtype_name(tensors[key]) for key in state)
    return LoadedCheckpoint(model.eval(), order, tuple(sorted({*extras, *unused})), dict(sorted(dtypes.items())))


def check_head(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise ConfigError for a model of another number of labels, or one that was only pretrained."""
    head = state.get("classifier.weight")
    if head is not None and head.dim() == 2 and len(head) != len(LABELS):
        raise ConfigError(f"{path}: the model has {many(len(head), 'label')}, and {len(LABELS)} are needed")
    if head is None and any(key.startswith(("deberta.", *_LANGUAGE_MODEL_HEADS)) for key in state):
        raise DataError(f"{path} has no classifier.weight: a pretrained model, which has to be fine-tuned on NLI first")


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
    unknown = sorted(state.keys() - expected.keys())
    # Tensors of published checkpoints that this model does not use; older transformers saved the buffer position_ids.
    unused = ("deberta.embeddings.position_ids", "" if config.position_biased_input else POSITION_EMBEDDINGS)
    extras = tuple(key for key in unknown if key.startswith(_LANGUAGE_MODEL_HEADS) or key in unused)
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in unknown if key not in extras]
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
    if whole := [f"{key} {dtype_name(state[key])}" for key in expected if state[key].dtype not in FLOATS]:
        quantized = "a quantized model, of which the one that it was made from is needed"
        raise DataError(f"{path} holds weights that are no floating-point numbers ({quantized}): {some(whole)}")
    selected = {key: state[key].to(torch.float32) for key in expected}
    if broken := [key for key, value in selected.items() if not torch.isfinite(value).all()]:
        raise DataError(f"{path} holds NaN or infinite weights: {', '.join(broken)}")
    return selected, extras


def save(path: Path, model: Deberta) -> None:
    """Write a model's state dict in Microsoft's layout; the same weights give the same bytes.

    Microsoft's code always saves position embeddings: zeros for a model without any.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if POSITION_EMBEDDINGS not in state:
        state[POSITION_EMBEDDINGS] = torch.zeros(model.config.max_position_embeddings, model.config.embedding_size)
    with files.new_file(path) as temporary, open(temporary, "wb") as file:
        torch.save(state, file)  # torch stores the name of a path, and none for a file object


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Mapping[str, Any]]]:
    """`read_state_dict`, and the accepted entries that are not tensors: a config."""
    values: Mapping[Any, Any] = weights.read(path)
    state: dict[str, Tensor] = {}
    unused: dict[str, Mapping[str, Any]] = {}
    for key, value in values.items():
        if key == "config" and isinstance(value, Mapping):
            unused[key] = value
            continue
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise DataError(f"{path}: {key!r} is a {type(value).__name__}, not a tensor; this is no plain state dict")
        plain = value.layout == torch.strided and value.device.type == "cpu" and not value.is_complex()
        if not plain or value.is_quantized or value.is_nested:
            kind = f"{value.layout}, {value.dtype}, {value.device}".replace("torch.", "")
            raise DataError(f"{path}: {key} is no dense tensor of real numbers ({kind}); this is no plain state dict")
        name = key.removeprefix("module.")
        name = "deberta." + name.removeprefix("bert.") if name.startswith("bert.") else name
        if name in state:
            raise DataError(f"{path}: two tensors are called {name} once prefixes are resolved")
        state[name] = value
    return state, unused


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its class name: torch's messages go on for many lines."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
