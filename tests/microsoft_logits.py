"""Logits of Microsoft's own code for small models: tests/data/microsoft/logits.json, made once.

To make it again, in an environment with Python 3.11, torch and numpy: pip install deberta==0.1.12 (its wheel alone,
--no-deps, is enough), then python -m tests.microsoft_logits. Our own code is not used here.
"""

from __future__ import annotations

import collections.abc
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

FILE = Path(__file__).parent / "data/microsoft/logits.json"
ROWS, LENGTH, VOCABULARY = 4, 24, 60

# A config with every key that the code reads, as its releases and its run.py write them, each value not the default.
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attention_head_size": 12,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": 32,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "embedding_size": 16,
    "conv_kernel_size": 3,
    "conv_groups": 2,
    "conv_act": "relu",
    "padding_idx": 0,
    "pooling": {"hidden_size": 24, "dropout": 0.1, "hidden_act": "tanh"},
}
# Keys that may be absent, where the code or transformers then has a value of its own. vocab_size has none.
OPTIONAL = sorted(BASE.keys() - {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"})
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "relu": {"hidden_act": "relu"},
    "plain positions": {"relative_attention": False, "position_biased_input": True},
}
# What shows that a config is of this code: no other writes or reads these.
MARKS = "pooling,padding_idx"
ABSENT = ("", "pooling.hidden_act", MARKS, *OPTIONAL, *(f"{key},{MARKS}" for key in OPTIONAL if key not in MARKS))
CASES = tuple((variant, absent) for variant in VARIANTS for absent in ABSENT)


def config_of(variant: str, absent: str) -> dict[str, Any]:
    """The config of a case: `absent` names the keys that it lacks, with commas between."""
    values = json.loads(json.dumps({**BASE, **VARIANTS[variant]}))
    for key in filter(None, absent.split(",")):
        inner = values["pooling"] if key.startswith("pooling.") else values
        del inner[key.removeprefix("pooling.")]
    return values  # type: ignore[no-any-return]


def weight(name: str, shape: list[int]) -> npt.NDArray[np.float32]:
    """A tensor's values, which its name decides. RandomState's numbers are the same in every version of numpy."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape) * 0.3
    return (values + (1 if name.endswith("LayerNorm.weight") else 0)).astype(np.float32)


def batch() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Token ids and masks [ROWS, LENGTH], of several lengths."""
    mask = (np.arange(LENGTH) < np.array([[LENGTH], [17], [5], [1]])).astype(np.int32)
    return np.random.RandomState(0).randint(1, VOCABULARY, mask.shape).astype(np.int32) * mask, mask


def main() -> None:
    for module, name, value in ((collections, "Sequence", collections.abc.Sequence), (np, "int", int)):
        setattr(module, name, value)  # the code is of 2021: Python 3.9 and numpy 1.19 had them
    from DeBERTa.apps.models.sequence_classification import (  # type: ignore[import-not-found]
        SequenceClassificationModel,
    )
    from DeBERTa.deberta import ModelConfig  # type: ignore[import-not-found]

    ids, mask = (torch.from_numpy(part).long() for part in batch())
    cases: list[dict[str, Any]] = []
    for variant, absent in CASES:
        model = SequenceClassificationModel(ModelConfig.from_dict(config_of(variant, absent)), num_labels=3)
        shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
        model.load_state_dict({name: torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()})
        model.eval()
        with torch.no_grad():
            logits = model(ids, input_mask=mask)[0]
        rows = [[round(float(value), 6) for value in row] for row in logits]
        cases.append({"variant": variant, "absent": absent, "tensors": shapes, "logits": rows})
    FILE.parent.mkdir(parents=True, exist_ok=True)
    common = {
        name: shape
        for name, shape in cases[0]["tensors"].items()
        if all(case["tensors"].get(name) == shape for case in cases)
    }
    for case in cases:
        case["tensors"] = {name: shape for name, shape in case["tensors"].items() if name not in common}
    lines = ",\n".join(json.dumps(case) for case in cases)
    FILE.write_text(f'{{"tensors": {json.dumps(common)},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
