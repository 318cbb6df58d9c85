"""The model's configuration, read from Microsoft's `model_config.json` or Hugging Face's `config.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deberta.errors import ConfigError, DataError, MissingError

ACTIVATIONS = ("gelu", "relu", "tanh", "sigmoid", "swish", "silu", "linear")


@dataclass(frozen=True)
class ModelConfig:
    """DeBERTa v2/v3 for sequence classification. Names are the config files' own; see `from_dict` for what differs.

    `max_relative_positions` is always positive here, `position_buckets` 0 means plain relative positions and
    `conv_kernel_size` 0 means no convolution layer.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    embedding_size: int
    attention_head_size: int
    hidden_act: str
    layer_norm_eps: float
    type_vocab_size: int
    padding_idx: int
    relative_attention: bool
    position_buckets: int
    max_relative_positions: int
    pos_att_type: tuple[str, ...]
    share_att_key: bool
    norm_rel_ebd: bool
    position_biased_input: bool
    conv_kernel_size: int
    conv_groups: int
    conv_act: str
    pooler_hidden_act: str
    pooler_dropout: float
    hidden_dropout_prob: float
    attention_probs_dropout_prob: float
    initializer_range: float
    labels: tuple[str, ...] | None  # id2label in index order, if the config has one

    @property
    def attention_span(self) -> int:
        """Relative embeddings cover distances [-span, span): `rel_embeddings` is [2 * span, hidden_size]."""
        return self.position_buckets or self.max_relative_positions

    @property
    def all_head_size(self) -> int:
        return self.num_attention_heads * self.attention_head_size


def read(path: Path) -> ModelConfig:
    """Read a config file. Raises MissingError, DataError (not JSON) and ConfigError (a model we can't build)."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Put the model's config there (the guide's model_config.json)") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, not a JSON object")
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Build a config from the keys of either layout; defaults are those that Microsoft's code and transformers share.

    Raises ConfigError listing everything that is missing or not supported.
    """
    problems: list[str] = []

    def number(key: str, default: int | None = None) -> int:
        value = values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            problems.append(f"{key} is {value!r}, not a whole number" if key in values else f"{key} is missing")
            return 1
        return value

    kind = values.get("model_type", "deberta-v2")
    if kind != "deberta-v2":
        problems.append(f"model_type is {kind!r}; only deberta-v2 (DeBERTa v2 and v3) can be built")
    hidden, heads = number("hidden_size"), number("num_attention_heads")
    head_size = number("attention_head_size", hidden // max(heads, 1))
    if heads * head_size != hidden:
        problems.append(f"hidden_size {hidden} is not num_attention_heads {heads} x attention_head_size {head_size}")
    positions = number("max_position_embeddings", 512)
    max_relative = number("max_relative_positions", -1)
    parts = values.get("pos_att_type") or ()
    kinds = tuple(p.strip().lower() for p in (parts.split("|") if isinstance(parts, str) else parts) if p.strip())
    if unknown := sorted(set(kinds) - {"c2p", "p2c"}):
        problems.append(f"pos_att_type {'|'.join(unknown)} is not c2p or p2c")
    pooling = values.get("pooling") or {}
    pooler_act = pooling.get("hidden_act", values.get("pooler_hidden_act", "gelu"))
    acts = {"hidden_act": values.get("hidden_act", "gelu"), "pooler act": pooler_act}
    conv = number("conv_kernel_size", 0)
    if conv > 0:
        acts["conv_act"] = values.get("conv_act", "tanh")
        if conv % 2 == 0:
            problems.append(f"conv_kernel_size {conv} is even")
    problems += [
        f"{key} {act!r} is not one of {', '.join(ACTIVATIONS)}" for key, act in acts.items() if act not in ACTIVATIONS
    ]
    names = values.get("id2label")
    labels = tuple(str(names[k]) for k in sorted(names, key=int)) if isinstance(names, dict) and names else None
    config = ModelConfig(
        vocab_size=number("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=number("num_hidden_layers"),
        num_attention_heads=heads,
        intermediate_size=number("intermediate_size"),
        max_position_embeddings=positions,
        embedding_size=number("embedding_size", hidden),
        attention_head_size=head_size,
        hidden_act=acts["hidden_act"],
        layer_norm_eps=float(values.get("layer_norm_eps", 1e-7)),
        type_vocab_size=number("type_vocab_size", 0),
        padding_idx=number("padding_idx", number("pad_token_id", 0)),
        relative_attention=bool(values.get("relative_attention", False)),
        position_buckets=max(number("position_buckets", -1), 0),
        max_relative_positions=max_relative if max_relative > 0 else positions,
        pos_att_type=kinds,
        share_att_key=bool(values.get("share_att_key", False)),
        norm_rel_ebd="layer_norm" in [p.strip() for p in str(values.get("norm_rel_ebd", "none")).lower().split("|")],
        position_biased_input=bool(values.get("position_biased_input", True)),
        conv_kernel_size=max(conv, 0),
        conv_groups=number("conv_groups", 1),
        conv_act=acts.get("conv_act", "tanh"),
        pooler_hidden_act=acts["pooler act"],
        pooler_dropout=float(pooling.get("dropout", values.get("pooler_dropout", 0.0))),
        hidden_dropout_prob=float(values.get("hidden_dropout_prob", 0.1)),
        attention_probs_dropout_prob=float(values.get("attention_probs_dropout_prob", 0.1)),
        initializer_range=float(values.get("initializer_range", 0.02)),
        labels=labels,
    )
    if problems:
        raise ConfigError("; ".join(problems))
    return config
