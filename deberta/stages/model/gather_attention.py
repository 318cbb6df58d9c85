"""The attention with relative scores picked by GatherElements, as in the guide's own graph, for comparison.

It is measured on a device against `deberta.shift`, so it keeps what shift replaces: in each layer an Expand of int64
indices and a GatherElements for c2p and for p2c each, in the shapes of Microsoft's code ([B * H, L, 2 * span] by
[B * H, L, L]), and all positions in the last layer. Everything else is that of deberta.py, so that the two graphs
differ in this alone: relative keys and queries are constants, and the mask is finite (the guide's is -inf in a Where).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deberta.stages.model.config import ModelConfig
from deberta.stages.model.deberta import Deberta, Layer, SelfAttention, Tables, relative_rows


class GatherAttention(SelfAttention):
    """SelfAttention whose tables hold one row per bucket, [1, H, D, 2 * span], and whose scores are gathered."""

    c2p_index: Tensor
    p2c_index: Tensor

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__(config)
        rows = torch.tensor(relative_rows(config, length))  # by i - j, from -(length - 1) up
        distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        index = rows[distance + length - 1].unsqueeze(0)  # int64 [1, L, L]: the row of query i and key j
        self.register_buffer("c2p_index", index, persistent=False)
        self.register_buffer("p2c_index", index.permute(0, 2, 1).contiguous(), persistent=False)

    def arrange(self, key: Tensor | None, query: Tensor | None, rows: list[int], first_only: bool) -> Tables:
        """Relative keys and queries as they are: two of [2 * span, H * D] -> two of [1, H, D, 2 * span]."""
        assert not first_only

        def by_head(projected: Tensor) -> Tensor:
            return projected.reshape(1, -1, self.heads, self.head_size).permute(0, 2, 3, 1)

        return None if key is None else by_head(key), None if query is None else by_head(query)

    def add_relative(self, scores: Tensor, query: Tensor, key: Tensor, tables: Tables, length: int) -> Tensor:
        c2p_table, p2c_table = tables
        # The batch is dynamic, so the Expand takes its size from a tensor: the scores by content.
        by_content = scores.reshape(-1, length, length)
        if c2p_table is not None:
            scores = scores + self.gather(query @ c2p_table, self.c2p_index.expand_as(by_content))
        if p2c_table is not None:
            by_key = self.gather(key @ p2c_table, self.p2c_index.expand_as(by_content))
            scores = scores + by_key.permute(0, 1, 3, 2)
        return scores

    def gather(self, by_row: Tensor, index: Tensor) -> Tensor:
        """out[b, h, i, j] = by_row[b, h, i, index[b * H + h, i, j]]: [B, H, L, 2 * span] -> [B, H, L, L]."""
        length = self.c2p_index.shape[1]
        gathered = torch.gather(by_row.reshape(-1, length, 2 * self.config.attention_span), 2, index)
        return gathered.reshape(-1, self.heads, length, length)


def fold(model: Deberta, length: int) -> None:
    """`Deberta.fold` into the gathered form: in place and for good."""
    encoder = model.deberta.encoder
    encoder.every_position = True
    for layer in encoder.layer:
        assert isinstance(layer, Layer)
        gathering = GatherAttention(model.config, length)
        gathering.load_state_dict(layer.attention.self.state_dict())
        layer.attention.self = gathering
    model.fold(length)
