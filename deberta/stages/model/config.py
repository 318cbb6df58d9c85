"""The model's configuration, read from Microsoft's `model_config.json` or Hugging Face's `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deberta.core import schema
from deberta.core.errors import ConfigError

ACTIVATIONS = ("gelu", "relu", "tanh", "sigmoid", "swish", "silu", "linear")
MOST_LAYERS = 512  # ten times those of the largest published model
MICROSOFT, TRANSFORMERS = "Microsoft's code", "transformers"
# Keys that only one of the two families writes or reads.
_MICROSOFTS = ("padding_idx", "pooling")
_TRANSFORMERS = (
    "architectures",
    "transformers_version",
    "pad_token_id",
    "pooler_hidden_act",
    "pooler_dropout",
    "torch_dtype",
    "dtype",
)
_NO_NAME = re.compile(r"\s*label_[0-9]+\s*", re.IGNORECASE)  # of a label
# Fields of ModelConfig on which logits depend. padding_idx is none: it is of training alone.
_DECIDING = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "attention_head_size",
    "intermediate_size",
    "max_position_embeddings",
    "embedding_size",
    "hidden_act",
    "layer_norm_eps",
    "type_vocab_size",
    "relative_attention",
    "position_buckets",
    "max_relative_positions",
    "pos_att_type",
    "share_att_key",
    "norm_rel_ebd",
    "position_biased_input",
    "conv_kernel_size",
    "conv_groups",
    "conv_act",
    "pooler_hidden_act",
)
LARGEST = 2**24  # above every real model's sizes; the product of two of them fits PyTorch's 64-bit sizes


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
    labels: tuple[str, ...] | None  # id2label or label2id in index order, if the config has one
    # Whose code wrote it: MICROSOFT, TRANSFORMERS, or empty where its keys do not show it.
    family: str = field(default="", compare=False)
    # Absent keys that the two families read differently, and the value that this one gives them.
    assumed: tuple[tuple[str, Any], ...] = field(default=(), compare=False)

    @property
    def attention_span(self) -> int:
        """Relative embeddings cover distances [-span, span): `rel_embeddings` is [2 * span, hidden_size]."""
        return self.position_buckets or self.max_relative_positions

    @property
    def all_head_size(self) -> int:
        return self.num_attention_heads * self.attention_head_size


def read(path: Path) -> ModelConfig:
    """Read a config file. Raises MissingError, DataError (not JSON) and ConfigError (a model we can't build)."""
    values = schema.read(path, dict[str, Any], "Put the model's config there (the guide's model_config.json)")
    try:
        return from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Build a config from the keys of either layout.

    An absent key has the default that Microsoft's code and transformers share, or that of the family whose keys the
    config has.

    Raises ConfigError listing every value that is missing, out of range or not supported.
    """
    reader = _Reader(values)
    family = _family(values)
    assumed = _assume(reader, values, family)
    kind = values.get("model_type", "deberta-v2")
    if kind != "deberta-v2":
        reader.refuse("model_type", f"is {kind!r}; only deberta-v2 (DeBERTa v2 and v3) can be built")
    hidden, heads = reader.number("hidden_size"), reader.number("num_attention_heads")
    positions = reader.number("max_position_embeddings", 512)
    max_relative = reader.number("max_relative_positions", -1, low=None)
    conv = reader.number("conv_kernel_size", 0, low=None)
    config = ModelConfig(
        vocab_size=reader.number("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=reader.number("num_hidden_layers", high=MOST_LAYERS),
        num_attention_heads=heads,
        intermediate_size=reader.number("intermediate_size"),
        max_position_embeddings=positions,
        embedding_size=reader.number("embedding_size", hidden),
        attention_head_size=reader.number("attention_head_size", max(hidden // heads, 1)),
        hidden_act=reader.activation("hidden_act", "gelu"),
        # Without any, a padding row (all zeros) would become 0 / 0.
        layer_norm_eps=reader.real("layer_norm_eps", 1e-7, low=1e-12, below=1),
        type_vocab_size=max(reader.number("type_vocab_size", 0, low=None), 0),
        padding_idx=reader.number(reader.first("padding_idx", "pad_token_id"), 0, low=0),
        relative_attention=reader.flag("relative_attention", False),
        position_buckets=max(reader.number("position_buckets", -1, low=None), 0),
        max_relative_positions=max_relative if max_relative > 0 else positions,
        pos_att_type=reader.words("pos_att_type", ("c2p", "p2c")),
        share_att_key=reader.flag("share_att_key", False),
        norm_rel_ebd="layer_norm" in reader.words("norm_rel_ebd", ("none", "layer_norm")),
        position_biased_input=reader.flag("position_biased_input", True),
        conv_kernel_size=max(conv, 0),
        conv_groups=reader.number("conv_groups", 1),
        conv_act=reader.activation("conv_act", "tanh") if conv > 0 else "tanh",
        pooler_hidden_act=reader.activation(reader.first("pooler_hidden_act", "pooling.hidden_act"), "gelu"),
        pooler_dropout=reader.real(reader.first("pooling.dropout", "pooler_dropout"), 0.0, below=1),
        hidden_dropout_prob=reader.real("hidden_dropout_prob", 0.1, below=1),
        attention_probs_dropout_prob=reader.real("attention_probs_dropout_prob", 0.1, below=1),
        initializer_range=reader.real("initializer_range", 0.02, below=3e38),
        labels=_labels(reader),
        family=family,
        assumed=tuple(assumed.items()),
    )
    _check_together(config, reader)
    _check_pooler(config, values, reader)
    if reader.problems:
        raise ConfigError("; ".join(f"{key} {problem}" for key, problem in reader.problems.items()))
    return config


def _family(values: Mapping[str, Any]) -> str:
    """Whose code wrote the config: MICROSOFT, TRANSFORMERS, or empty where its keys do not show it."""
    microsoft, transformers = (any(key in values for key in keys) for keys in (_MICROSOFTS, _TRANSFORMERS))
    return "" if microsoft == transformers else MICROSOFT if microsoft else TRANSFORMERS


def _assume(reader: _Reader, values: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Give the reader the family's value of each absent key that the two read differently, and return these.

    Refuses them where nothing shows the family. Microsoft's readings are those of config.py, pooling.py and
    disentangled_attention.py in its package `deberta`, transformers' those of its DebertaV2Config.
    """
    pooling = values.get("pooling", values)  # without any, Microsoft's code looks for the pooler's keys there
    activation = pooling.get("hidden_act", "gelu") if isinstance(pooling, Mapping) else "gelu"
    activation = activation if activation in ACTIVATIONS else "gelu"  # and refused elsewhere
    is_pooling = pooling is not values and isinstance(pooling, Mapping) and "hidden_act" in pooling
    readings: dict[str, tuple[Any, Any]] = {
        "hidden_size": (768, 1536),
        "num_hidden_layers": (12, 24),
        "num_attention_heads": (12, 24),
        "intermediate_size": (3072, 6144),
        "pos_att_type": ("c2p", "none"),  # without relative attention, too, where it scales the scores
        "pooler_hidden_act": (activation, "gelu"),
    }
    assumed = {}
    for key, (microsofts, transformers) in readings.items():
        is_explicit = key in values or (key == "pooler_hidden_act" and is_pooling and family)
        if is_explicit or microsofts == transformers:
            continue
        if not family:
            reading = f"{MICROSOFT} then reads {microsofts}, and {TRANSFORMERS} {transformers}"
            reader.refuse(
                key, f"is missing: {reading}. Write it down{' (none is [])' if transformers == 'none' else ''}"
            )
        assumed[key] = microsofts if family == MICROSOFT else transformers
    reader.assume({key: None if value == "none" else value for key, value in assumed.items()})
    return assumed if family else {}


def contradictions(config: ModelConfig, values: Mapping[str, Any]) -> str:
    """What another config of the same model, such as the one in a checkpoint, says otherwise; empty if nothing.

    Keys that it does not have, and those that decide no logits, contradict nothing.
    """
    own: dict[str, Any] = {name: getattr(config, name) for name in _DECIDING}
    own["norm_rel_ebd"] = "layer_norm" if config.norm_rel_ebd else "none"
    if isinstance(values.get("pooling"), Mapping) and "hidden_act" in values["pooling"]:
        del own["pooler_hidden_act"]
    try:
        second = from_dict({**own, **{key: value for key, value in values.items() if key in (*own, "pooling")}})
    except ConfigError as error:
        return str(error)
    pairs = [(name, getattr(config, name), getattr(second, name)) for name in _DECIDING]
    return "; ".join(
        f"{name} {first!r} and {other!r}" for name, first, other in pairs if _plain(first) != _plain(other)
    )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, tuple) else value


def _labels(reader: _Reader) -> tuple[str, ...] | None:
    """id2label, or label2id turned round. Names like LABEL_0 say nothing, and contradict nothing."""
    by_index, by_name = reader.labels("id2label"), reader.labels("label2id", turned=True)
    ours, theirs = (
        names if names and not all(map(_NO_NAME.fullmatch, names)) else None for names in (by_index, by_name)
    )
    if ours and theirs and [name.strip().lower() for name in ours] != [name.strip().lower() for name in theirs]:
        reader.refuse("label2id", f"says {', '.join(theirs)}, and id2label says {', '.join(ours)}")
    return ours or theirs or by_index or by_name


class _Reader:
    """Reads typed values of a config. A bad value is noted in `problems` by its key, and a valid one returned."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.problems: dict[str, str] = {}
        self._values = dict(values)
        pooling = values.get("pooling")
        if isinstance(pooling, dict):
            self._values.update((f"pooling.{key}", value) for key, value in pooling.items())
        elif pooling is not None:
            self.refuse("pooling", f"is {pooling!r}, not an object")

    def refuse(self, key: str, problem: str) -> None:
        self.problems.setdefault(key, problem)

    def assume(self, values: Mapping[str, Any]) -> None:
        """Take these values for keys that the config does not have."""
        self._values.update(values)

    def sound(self, *keys: str) -> bool:
        """Whether none of these keys has a problem, so that relations between their values can be checked."""
        return not self.problems.keys() & set(keys)

    def first(self, key: str, alternative: str) -> str:
        """The key that the config has, of the two layouts' names for the same value."""
        return key if key in self._values else alternative

    def number(self, key: str, default: int | None = None, low: int | None = 1, high: int = LARGEST) -> int:
        """A whole number, at least `low`; None: no limit, since all values that are not positive mean the same."""
        value = self._values.get(key, default)
        if key not in self._values and default is None:
            self.refuse(key, "is missing")
        elif isinstance(value, bool) or not isinstance(value, int):
            self.refuse(key, f"is {value!r}, not a whole number")
        elif value > high or (low is not None and value < low):
            self.refuse(key, f"is {value}, not {'at most' if low is None else f'from {low} to'} {high}")
        else:
            return value
        return 1

    def real(self, key: str, default: float, below: float, low: float = 0.0) -> float:
        """A number from `low` to below `below`; NaN is refused."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < below:
            self.refuse(key, f"is {value!r}, not a number p with {low:g} <= p < {below:g}")
            return default
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, f"is {value!r}, not true or false")
            return default
        return value

    def words(self, key: str, known: Sequence[str]) -> tuple[str, ...]:
        """Some of the `known` words: a list, or a string with | between them; null means no words."""
        value = self._values.get(key)
        parts = value.split("|") if isinstance(value, str) else [] if value is None else value
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
            self.refuse(key, f"is {value!r}, not words of {', '.join(known)}")
            return ()
        # transformers takes the words of a list as they are, so upper case would be none of them.
        words = tuple(part.strip().lower() if isinstance(value, str) else part for part in parts if part.strip())
        if unknown := sorted(set(words) - set(known)):
            self.refuse(key, f"{'|'.join(unknown)} is not {' or '.join(known)}")
        return words

    def activation(self, key: str, default: str) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            self.refuse(key, f"{value!r} is not one of {', '.join(ACTIVATIONS)}")
            return default
        return value

    def labels(self, key: str, turned: bool = False) -> tuple[str, ...] | None:
        """Names in index order, from {"0": name, "1": name, ...}, turned {name: 0, ...}; None if there are none."""
        value = self._values.get(key)
        if value is None or value == {}:
            return None
        pairs = list(value.items()) if isinstance(value, dict) else []
        names = {str(index): name for name, index in pairs} if turned else {str(index): name for index, name in pairs}
        indices = [str(index) for index in range(len(pairs))]
        if not names or set(names) != set(indices) or not all(isinstance(name, str) for name in names.values()):
            self.refuse(key, f"is {value!r}, not names by the indices 0, 1, 2, ...")
            return None
        return tuple(names[index] for index in indices)


def _check_pooler(config: ModelConfig, values: Mapping[str, Any], reader: _Reader) -> None:
    """Refuse a pooler of another size, and an activation that the two layouts' keys say differently."""
    for key in ("pooling.hidden_size", "pooler_hidden_size"):
        if reader.sound("hidden_size") and reader.number(key, config.hidden_size) != config.hidden_size:
            reader.refuse(key, f"{reader.number(key)} is not hidden_size {config.hidden_size}")
    microsofts = reader.activation("pooling.hidden_act", config.pooler_hidden_act)
    if "pooler_hidden_act" in values and microsofts != config.pooler_hidden_act:
        reader.refuse("pooler_hidden_act", f"is {config.pooler_hidden_act}, and pooling.hidden_act is {microsofts}")


def _check_together(config: ModelConfig, reader: _Reader) -> None:
    """Refuse values that are valid each, but not together."""
    hidden, heads, head_size = config.hidden_size, config.num_attention_heads, config.attention_head_size
    if reader.sound("hidden_size", "num_attention_heads", "attention_head_size") and config.all_head_size != hidden:
        reader.refuse("hidden_size", f"{hidden} is not num_attention_heads {heads} x attention_head_size {head_size}")
    padding = reader.first("padding_idx", "pad_token_id")
    if reader.sound("vocab_size", padding) and config.padding_idx >= config.vocab_size:
        reader.refuse(padding, f"{config.padding_idx} is not below vocab_size {config.vocab_size}")
    if config.conv_kernel_size and config.conv_kernel_size % 2 == 0:
        reader.refuse("conv_kernel_size", f"{config.conv_kernel_size} is even")
    if config.conv_kernel_size and reader.sound("hidden_size", "conv_groups") and hidden % config.conv_groups:
        reader.refuse("conv_groups", f"{config.conv_groups} does not divide hidden_size {hidden}")
    if not config.relative_attention or not reader.sound("position_buckets"):
        return
    buckets, reach = config.position_buckets, config.max_relative_positions
    sound = reader.sound("max_position_embeddings", "max_relative_positions")
    if buckets % 2:
        reader.refuse("position_buckets", f"{buckets} is odd")
    elif buckets and sound and reach <= buckets // 2 + 1:  # log buckets are beyond buckets / 2, up to reach - 1
        reader.refuse("position_buckets", f"{buckets} needs more than {buckets // 2 + 1} positions, and has {reach}")
