"""A checkpoint's labels and their order, by the contract's names. Conversions of tables use it, without PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from deberta.core.contract import LABELS
from deberta.core.errors import ConfigError, some
from deberta.stages.model.config import ModelConfig

_SYNONYMS = {
    "contradict": "contradiction",
    "contradictory": "contradiction",
    "entail": "entailment",
    "entailed": "entailment",
}


def label_order(labels: Sequence[str], config: ModelConfig) -> tuple[str, ...]:
    """The checkpoint's label order: `labels`, the profile's, and the config's id2label, which must not contradict.

    LABEL_0 and words that are none of ours contradict nothing. Raises ConfigError naming both orders.
    """
    own = config.labels or ()
    if own and len(own) != len(LABELS):
        raise ConfigError(f"the model has {len(own)} labels ({some(own)}), and {len(LABELS)} are needed")
    pairs = [(label_word(name), label_word(label)) for name, label in zip(own, labels, strict=False)]
    if any(name in LABELS and name != label for name, label in pairs):
        raise ConfigError(
            f"the profile's labels are {', '.join(labels)}, and the config's id2label says {', '.join(own)}. "
            "Remove `labels` from the profile in invoke.yaml, or correct the one that is wrong"
        )
    return tuple(labels or own)


def label_word(label: str) -> str:
    """A label as the contract names it: public models write upper case, and shorter or other words."""
    word = label.strip().lower()
    return _SYNONYMS.get(word, word)


def label_permutation(labels: Sequence[str]) -> list[int]:
    """For each label of the contract, its index in a checkpoint's order. Raises ConfigError."""
    names = [label_word(label) for label in labels]
    if sorted(names) != sorted(LABELS):
        raise ConfigError(
            f"the checkpoint's label order is {', '.join(labels) or 'not known'}; "
            f"it must be an order of {', '.join(LABELS)}. Set `labels` in the profile (invoke.yaml)"
        )
    return [names.index(label) for label in LABELS]
