"""Small models of every kind that a config can describe, made by transformers, and batches to run them on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

from deberta.stages.model import config, deberta

TINY: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "position_buckets": 256,
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "initializer_range": 0.3,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "v3": {},
    "separate position projections": {"share_att_key": False},
    "c2p alone": {"pos_att_type": "c2p"},
    "p2c alone, separate": {"pos_att_type": "p2c", "share_att_key": False},
    "few log buckets": {"position_buckets": 16},
    "plain relative positions": {"position_buckets": -1},
    "plain relative positions, clamped": {"position_buckets": -1, "max_relative_positions": 20},
    "v2 convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "convolution beside the only layer": {"conv_kernel_size": 3, "num_hidden_layers": 1},
    "relative embeddings as they are": {"norm_rel_ebd": "none"},
    "token types": {"type_vocab_size": 2},
    "position-biased input": {"position_biased_input": True},
    "no relative attention": {"relative_attention": False, "pos_att_type": None, "norm_rel_ebd": "none"},
    "smaller embeddings": {"embedding_size": 32},
}


def reference(**changes: Any) -> DebertaV2ForSequenceClassification:
    """transformers' model with random weights, biases included, so that no term can hide."""
    values = {**TINY, **changes}
    torch.manual_seed(0)
    made = DebertaV2ForSequenceClassification(DebertaV2Config.from_dict({**values, "num_labels": 3}))
    made.train(False)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() == 1:
                weight.normal_(1.0 if name.endswith("LayerNorm.weight") else 0.0, 0.2)
    return made


def ours(made: DebertaV2ForSequenceClassification, **changes: Any) -> deberta.Deberta:
    """Our model of the same weights."""
    copied = deberta.Deberta(config.from_dict({**TINY, **changes}))
    copied.load_state_dict(made.state_dict())
    return copied.eval()


def batch(rows: int, length: int, vocabulary: int = 300) -> tuple[Tensor, Tensor]:
    """int32 ids and masks [rows, length]: full, short, empty and one-token rows, in turn."""
    random = np.random.default_rng(rows)
    mask = np.zeros((rows, length), dtype=np.int32)
    for row in range(rows):
        mask[row, : (length, length // 6, 0, 1)[row % 4]] = 1
    ids = random.integers(1, vocabulary, mask.shape, dtype=np.int32) * mask
    return torch.from_numpy(ids), torch.from_numpy(mask)


def logits(made: DebertaV2ForSequenceClassification, ids: Tensor, mask: Tensor) -> npt.NDArray[np.float32]:
    with torch.no_grad():
        out: npt.NDArray[np.float32] = made(input_ids=ids.long(), attention_mask=mask.long()).logits.numpy()
    return out


def assert_same(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    """Equal to 1e-4, and the same predictions."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).all()
