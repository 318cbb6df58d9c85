"""bench: the guide's form of the graph, for comparison.

The guide exports Microsoft's code, from which transformers' model descends. So transformers' model is traced here, with
Microsoft's attention in place of its own: scores minus their maximum, keys masked by -inf in a Where, a softmax, and a
Where that sets masked places to 0, with the mask inverted and cast anew in every layer. As in the guide, relative
scores are picked by 24 GatherElements with int64 indices (2 per layer), nothing is folded, all positions go through the
last layer, the batch is dynamic and the length 256.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from deberta.core.contract import INPUTS, ONNX_OPSET, OUTPUT, SEQUENCE_LENGTH
from deberta.core.errors import StageError


def export(model: Any, path: Path) -> dict[str, int]:
    """Trace transformers' `model`, with its attention replaced for good, and return the nodes by type.

    Raises StageError if gathers or masks of the graph are not the guide's.
    """
    encoder = model.deberta.encoder
    for layer in encoder.layer:
        layer.attention.self.forward = functools.partial(_attention, layer.attention.self)
    positions = encoder.get_rel_pos(torch.zeros(1, SEQUENCE_LENGTH, 1))
    encoder.get_rel_pos = lambda *_: positions  # a constant, as in Microsoft's code, which makes it with numpy
    zeros = torch.zeros(1, SEQUENCE_LENGTH, dtype=torch.int32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape that becomes a constant
        torch.onnx.export(
            _Logits(model).eval(),
            (zeros, zeros),
            str(path),
            dynamo=False,
            opset_version=ONNX_OPSET,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes={name: {0: "batch"} for name in (*INPUTS, OUTPUT)},
        )
    return check(path, len(encoder.layer))


def check(path: Path, layers: int) -> dict[str, int]:
    """The nodes by type, most frequent first. Raises StageError unless gathers and masks are the guide's."""
    graph = onnx.load(str(path)).graph
    nodes = Counter(node.op_type for node in graph.node)
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph.value_info
    }
    indices = Counter(types.get(node.input[1]) for node in graph.node if node.op_type == "GatherElements")
    problems = []
    if dict(indices) != {TensorProto.INT64: 2 * layers}:
        problems.append(f"GatherElements by the type of their indices: {dict(indices)}, not {2 * layers} of int64")
    if (masked := _infinities(graph)) != layers:
        problems.append(f"{masked} Where with -inf, not {layers}")
    if problems:
        raise StageError(f"{path} is not the guide's form of the graph: {'; '.join(problems)}")
    return dict(nodes.most_common())


def _infinities(graph: onnx.GraphProto) -> int:
    """The number of Where nodes with a constant of -inf."""
    constants = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    constants |= {tensor.name: tensor for tensor in graph.initializer}
    infinite = {
        name
        for name, tensor in constants.items()
        if tensor.data_type == TensorProto.FLOAT
        and numpy_helper.to_array(tensor).size == 1
        and numpy_helper.to_array(tensor).item() == -math.inf
    }
    return sum(node.op_type == "Where" and bool(infinite & set(node.input)) for node in graph.node)


class _Logits(nn.Module):
    """The guide's inputs, int32 ids and mask, and its one output."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, input_mask: Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=input_mask).logits


def _attention(
    attention: Any,
    hidden_states: Tensor,
    attention_mask: Tensor,
    output_attentions: bool = False,
    query_states: Tensor | None = None,
    relative_pos: Tensor | None = None,
    rel_embeddings: Tensor | None = None,
) -> tuple[Tensor, None]:
    """In place of the forward of transformers' attention: [B, L, E] and mask [B, 1, L, L] -> [B, L, E]."""
    heads = attention.num_attention_heads
    query, key, value = (  # [B * H, L, D]
        attention.transpose_for_scores(project(hidden_states), heads)
        for project in (attention.query_proj, attention.key_proj, attention.value_proj)
    )
    parts = 1 + len({"c2p", "p2c"} & set(attention.pos_att_type))
    scale = math.sqrt(query.shape[-1] * parts)
    scores = torch.bmm(query, key.transpose(-1, -2) / scale)
    scores = scores + attention.disentangled_attention_bias(query, key, relative_pos, rel_embeddings, parts)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    length = scores.shape[-1]
    scores = scores.view(-1, heads, length, length)
    padding = (1.0 - attention_mask.float()).to(torch.uint8).bool()
    shares = torch.softmax(scores.masked_fill(padding, -math.inf), dim=-1).masked_fill(padding, 0.0)
    context = torch.bmm(shares.view(-1, length, length), value)
    by_position = context.view(-1, heads, length, context.shape[-1]).permute(0, 2, 1, 3).contiguous()
    return by_position.view(by_position.shape[0], length, -1), None
