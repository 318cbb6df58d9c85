"""DeBERTa v2/v3 for sequence classification, written so that it exports to a clean, static graph.

Attribute names follow Microsoft's checkpoints, so their state dicts load unchanged. The mathematics is DeBERTa's (He et
al., https://arxiv.org/abs/2006.03654, sections 3.1 and 3.2); comments give the reason for each different form.

Shapes: B batch, L length, H heads, D head size, E hidden size. Activations are [B * L, E], so that the batch appears in
the exported graph only as the -1 of a reshape.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deberta.stages.model import exact
from deberta.stages.model.config import ModelConfig

# Added to the scores of padded keys. exp(-10000) is 0 in float32 and in float16, and a score plus this stays far from
# float16's largest value (65504); -inf and -3.4e38 do not survive a conversion to float16.
MASKED = -10000.0

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,  # the erf form
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "swish": functional.silu,
    "silu": functional.silu,
    "linear": lambda x: x,
}


def relative_bucket(distance: int, buckets: int, max_position: int) -> int:
    """The bucket of a relative distance: itself up to buckets / 2, logarithmic beyond (DeBERTa v2's log buckets).

    `buckets` 0 means plain relative positions: the distance itself.
    """
    middle = buckets // 2
    if not buckets or abs(distance) <= middle:
        return distance
    ratio = math.log(abs(distance) / middle) / math.log((max_position - 1) / middle)
    return int(math.copysign(math.ceil(ratio * (middle - 1)) + middle, distance))


def relative_rows(config: ModelConfig, length: int) -> list[int]:
    """Rows of `rel_embeddings` for the distances i - j from -(length - 1) to length - 1, in that order."""
    span = config.attention_span
    buckets = (
        relative_bucket(d, config.position_buckets, config.max_relative_positions) for d in range(1 - length, length)
    )
    return [min(max(bucket + span, 0), 2 * span - 1) for bucket in buckets]


def shift(scores: Tensor, heads: int, length: int) -> Tensor:
    """From scores by distance to scores by position: out[..., i, j] = scores[..., i, length - 1 - i + j].

    [B, heads, length, 2 * length] -> [B, heads, length, length]. This is a gather by i - j, done by reshaping alone:
    in row-major order the element of row i lies 2 * length - 1 behind that of row i - 1.
    """
    flat = scores.reshape(-1, heads, 2 * length * length)
    rows = flat[:, :, length - 1 : length - 1 + length * (2 * length - 1)]
    return rows.reshape(-1, heads, length, 2 * length - 1)[:, :, :, :length]


# A layer's constants for scores by relative position: keys for c2p and queries for p2c, None where it has no such part.
Tables = tuple[Tensor | None, Tensor | None]


class Relative(NamedTuple):
    """Relative embeddings, from which the layers compute their position tables."""

    embeddings: Tensor  # [2 * span, E]
    rows: list[int]  # see relative_rows


def first_position(x: Tensor, length: int, size: int) -> Tensor:
    """[B * length, size] -> [B, size]."""
    return x.reshape(-1, length, size)[:, 0]


class Embeddings(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=config.padding_idx)
        self.position_embeddings = (
            nn.Embedding(config.max_position_embeddings, size) if config.position_biased_input else None
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size) if config.type_vocab_size else None
        self.embed_proj = nn.Linear(size, config.hidden_size, bias=False) if size != config.hidden_size else None
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, mask: Tensor, length: int) -> Tensor:
        """int [B, L] and float mask [B * L, 1] -> [B * L, E]. Every token has type 0, as in the guide."""
        x: Tensor = self.word_embeddings(input_ids)  # [B, L, size]
        if self.position_embeddings is not None:
            x = x + self.position_embeddings.weight[:length]
        if self.token_type_embeddings is not None:
            x = x + self.token_type_embeddings.weight[0]
        x = x.reshape(-1, self.word_embeddings.embedding_dim)
        if self.embed_proj is not None:
            x = self.embed_proj(x)
        return cast(Tensor, self.dropout(self.LayerNorm(x) * mask))


class SelfAttention(nn.Module):
    """Disentangled attention: content-to-content, content-to-position (c2p) and position-to-content (p2c)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.heads, self.head_size = config.num_attention_heads, config.attention_head_size
        self.query_proj = nn.Linear(config.hidden_size, config.all_head_size)
        self.key_proj = nn.Linear(config.hidden_size, config.all_head_size)
        self.value_proj = nn.Linear(config.hidden_size, config.all_head_size)
        self.c2p = config.relative_attention and "c2p" in config.pos_att_type
        self.p2c = config.relative_attention and "p2c" in config.pos_att_type
        if config.relative_attention and not config.share_att_key:
            if self.c2p:
                self.pos_key_proj = nn.Linear(config.hidden_size, config.all_head_size)
            if self.p2c:
                self.pos_query_proj = nn.Linear(config.hidden_size, config.all_head_size)
        self.scale = 1 / math.sqrt(self.head_size * (1 + len(set(config.pos_att_type) & {"c2p", "p2c"})))
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.pos_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.folded = False
        self.longest = 0  # above 0: folded for this length and all shorter ones
        self.register_buffer("c2p_table", None, persistent=False)
        self.register_buffer("p2c_table", None, persistent=False)

    @property
    def position_projections(self) -> tuple[nn.Linear | None, nn.Linear | None]:
        """The projections of relative embeddings to keys (for c2p) and to queries (for p2c)."""
        if self.config.share_att_key:
            return (self.key_proj if self.c2p else None), (self.query_proj if self.p2c else None)
        return (self.pos_key_proj if self.c2p else None), (self.pos_query_proj if self.p2c else None)

    def arrange(self, key: Tensor | None, query: Tensor | None, rows: list[int], first_only: bool) -> Tables:
        """Relative keys and queries by distance: two of [2 * span, H * D] -> two of [1, H, D, 2 * L], for `shift`.

        The last column is padding, never read: an even width suits matrix units. For the first position alone:
        [1, H, D, L] for c2p and [1, H, L, D] for p2c, by key position, because key j meets one distance only, 0 - j.
        """

        def by_head(projected: Tensor | None, order: list[int], *axes: int) -> Tensor | None:
            if projected is None:
                return None
            return projected[torch.tensor(order)].reshape(1, -1, self.heads, self.head_size).permute(*axes)

        if first_only:
            order = rows[: len(rows) // 2 + 1][::-1]
            return by_head(key, order, 0, 2, 3, 1), by_head(query, order, 0, 2, 1, 3)
        return by_head(key, [*rows[::-1], rows[0]], 0, 2, 3, 1), by_head(query, [*rows, rows[-1]], 0, 2, 3, 1)

    def project(self, relative: Relative, linear: Callable[[Tensor, nn.Linear], Tensor], first_only: bool) -> Tables:
        """The two tables, computed from the relative embeddings."""
        key, query = self.position_projections
        return self.arrange(
            None if key is None else linear(relative.embeddings, key),
            None if query is None else linear(relative.embeddings, query) * self.scale,
            relative.rows,
            first_only,
        )

    def fold(self, relative: Relative | None, first_only: bool) -> None:
        """Compute what no input changes: the position tables, and the queries' scale as part of their weights."""
        if relative is not None:
            c2p, p2c = self.project(relative, exact.linear, first_only)
            self.c2p_table = None if c2p is None else c2p.float().contiguous()
            self.p2c_table = None if p2c is None else p2c.float().contiguous()
        weight, bias = self.query_proj.weight.detach(), self.query_proj.bias.detach()
        self.query_proj.weight = nn.Parameter((weight.double() * self.scale).float(), requires_grad=False)
        self.query_proj.bias = nn.Parameter((bias.double() * self.scale).float(), requires_grad=False)
        self.folded = True

    def cut(self, length: int, first_only: bool) -> Tables:
        """The stored tables for a shorter length: the columns in the middle. The last column, which `shift` never
        reads, belongs to the next distance.
        """
        c2p, p2c = self.c2p_table, self.p2c_table
        middle = slice(self.longest - length, self.longest + length)
        if first_only:
            return None if c2p is None else c2p[..., :length], None if p2c is None else p2c[:, :, :length]
        return None if c2p is None else c2p[..., middle], None if p2c is None else p2c[..., middle]

    def tables(self, relative: Relative | None, length: int, first_only: bool) -> Tables:
        """The two tables: the stored ones once folded, else computed with gradients."""
        if self.longest:
            return self.cut(length, first_only)
        if self.folded or relative is None:
            return self.c2p_table, self.p2c_table
        dropped = Relative(self.pos_dropout(relative.embeddings), relative.rows)
        return self.project(dropped, lambda embeddings, layer: layer(embeddings), first_only)

    def split(self, x: Tensor, length: int) -> Tensor:
        """[B * length, H * D] -> [B, H, length, D]."""
        return x.reshape(-1, length, self.heads, self.head_size).permute(0, 2, 1, 3)

    def add_relative(self, scores: Tensor, query: Tensor, key: Tensor, tables: Tables, length: int) -> Tensor:
        """Add the scores by relative position to those by content, [B, H, L, L]; query and key are [B, H, L, D]."""
        c2p_table, p2c_table = tables
        if c2p_table is not None:
            scores = scores + shift(query @ c2p_table, self.heads, length)
        if p2c_table is not None:
            scores = scores + shift(key @ p2c_table, self.heads, length).permute(0, 1, 3, 2)
        return scores

    def forward(self, x: Tensor, bias: Tensor, length: int, relative: Relative | None, first_only: bool) -> Tensor:
        """x [B * L, E] and additive key bias [B, 1, 1, L] -> [B * L, H * D], or [B, H * D] for the first position."""
        tables = self.tables(relative, length, first_only)
        key = self.split(self.key_proj(x), length)  # [B, H, L, D]
        value = self.split(self.value_proj(x), length)
        if first_only:
            x = first_position(x, length, self.config.hidden_size)
        query = self.query_proj(x) if self.folded else self.query_proj(x) * self.scale
        query = self.split(query, 1 if first_only else length)  # [B, H, L or 1, D]
        scores = query @ key.permute(0, 1, 3, 2)  # [B, H, L or 1, L]
        c2p_table, p2c_table = tables
        if not first_only:
            scores = self.add_relative(scores, query, key, tables, length)
        else:
            if c2p_table is not None:
                scores = scores + query @ c2p_table
            if p2c_table is not None:
                scores = scores + (key * p2c_table).sum(dim=3).reshape(-1, self.heads, 1, length)
        context: Tensor = self.dropout(torch.softmax(scores + bias, dim=3)) @ value
        return context.permute(0, 2, 1, 3).reshape(-1, self.config.all_head_size)


class Dense(nn.Module):
    """A projection, added to its residual and normalised: the output half of attention and of the feed-forward."""

    def __init__(self, size_in: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(size_in, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return cast(Tensor, self.LayerNorm(self.dropout(self.dense(x)) + residual))


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = Dense(config.all_head_size, config)


class Intermediate(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = _ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = Dense(config.intermediate_size, config)
        self.size = config.hidden_size

    def forward(self, x: Tensor, bias: Tensor, length: int, relative: Relative | None, first_only: bool) -> Tensor:
        """[B * L, E] -> [B * L, E], or [B, E] for the first position alone."""
        context = self.attention.self(x, bias, length, relative, first_only)
        x = self.attention.output(context, first_position(x, length, self.size) if first_only else x)
        return cast(Tensor, self.output(self.intermediate(x), x))


class Convolution(nn.Module):
    """DeBERTa v2's convolution beside the first layer: over the embeddings, added to that layer's output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size, kernel = config.hidden_size, config.conv_kernel_size
        self.conv = nn.Conv1d(size, size, kernel, padding=(kernel - 1) // 2, groups=config.conv_groups)
        self.LayerNorm = nn.LayerNorm(size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.act = _ACTIVATIONS[config.conv_act]

    def forward(self, embedded: Tensor, layer_output: Tensor, mask: Tensor, length: int) -> Tensor:
        """embedded and layer_output [B * L, E], mask [B * L, 1] -> [B * L, E]."""
        size = self.conv.in_channels
        out = self.conv(embedded.reshape(-1, length, size).permute(0, 2, 1)).permute(0, 2, 1).reshape(-1, size)
        out = self.act(self.dropout(out * mask))
        joined: Tensor = self.LayerNorm(layer_output + out)
        return joined * mask


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        if config.relative_attention:
            self.rel_embeddings = nn.Embedding(2 * config.attention_span, config.hidden_size)
        if config.norm_rel_ebd:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.conv = Convolution(config) if config.conv_kernel_size else None
        self.folded_length = 0
        self.every_position = False  # compute all positions in the last layer too, see gather_attention
        self.any_length = False

    def only_first(self, index: int) -> bool:
        """Whether layer `index` computes the first position alone: the last one, unless the convolution follows it."""
        return index == len(self.layer) - 1 and not (index == 0 and self.conv is not None) and not self.every_position

    def relative(self, normalise: Callable[[Tensor, nn.LayerNorm], Tensor], length: int) -> Relative | None:
        if not self.config.relative_attention:
            return None
        embeddings = self.rel_embeddings.weight
        if self.config.norm_rel_ebd:
            embeddings = normalise(embeddings, self.LayerNorm)
        return Relative(embeddings, relative_rows(self.config, length))

    def fold(self, length: int, shorter: bool) -> None:
        relative = self.relative(exact.layer_norm, length)
        for i, layer in enumerate(self.layer):
            assert isinstance(layer, Layer)
            layer.attention.self.fold(relative, self.only_first(i))
            layer.attention.self.longest = length if shorter else 0
        self.folded_length, self.any_length = length, shorter

    def forward(self, x: Tensor, mask: Tensor, bias: Tensor, length: int) -> Tensor:
        """x [B * L, E], mask [B * L, 1], additive key bias [B, 1, 1, L] -> the first position's output [B, E]."""
        relative = None if self.folded_length else self.relative(lambda rows, norm: norm(rows), length)
        embedded = x
        for i, layer in enumerate(self.layer):
            x = layer(x, bias, length, relative, self.only_first(i))
            if i == 0 and self.conv is not None:
                x = self.conv(embedded, x, mask, length)
        return x if self.only_first(len(self.layer) - 1) else first_position(x, length, self.config.hidden_size)


class Backbone(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)


class ContextPooler(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.pooler_dropout)
        self.act = _ACTIVATIONS[config.pooler_hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(self.dropout(x)))


class Deberta(nn.Module):
    """DeBERTa with a context pooler and a classifier on the first position."""

    def __init__(self, config: ModelConfig, labels: int = 3) -> None:
        super().__init__()
        self.config = config
        self.deberta = Backbone(config)
        self.pooler = ContextPooler(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, labels)

    def fold(self, length: int, shorter: bool = False) -> None:
        """Compute everything that no input changes, for one sequence length, in place and for good.

        `shorter`: for every shorter length too; the graph then cuts the tables by the shape of its inputs. The results
        do not depend on the CPU: float64 sums that are exact in any order, rounded once to float32. Afterwards the
        model runs at these lengths only, and its state dict is no longer a checkpoint's.
        """
        self.eval()
        self.deberta.encoder.fold(length, shorter)

    def forward(self, input_ids: Tensor, input_mask: Tensor) -> Tensor:
        """int32 [B, L] token ids and mask (1 token, 0 padding) -> float32 logits [B, labels]."""
        # A plain number unless the graph is of any length: under tracing a shape's entry becomes nodes of the graph.
        encoder = self.deberta.encoder
        length = input_ids.shape[1] if encoder.any_length else encoder.folded_length or int(input_ids.shape[1])
        mask = input_mask.to(torch.float32)
        bias = ((1.0 - mask) * MASKED).reshape(-1, 1, 1, length)
        by_token = mask.reshape(-1, 1)
        embedded = self.deberta.embeddings(input_ids, by_token, length)
        x = encoder(embedded, by_token, bias, length)
        return cast(Tensor, self.classifier(self.dropout(self.pooler(x))))
