from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from deberta.contract import INPUTS
from deberta.errors import ConfigError
from deberta.stages import compile_cpu, config, exact, export_onnx, model, run_cpu
from tests import model_helpers as helpers


@pytest.mark.parametrize("changes", helpers.VARIANTS.values(), ids=helpers.VARIANTS)
def test_logits_equal_those_of_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    """As a module, folded, exported and compiled: batches 1, 3 and 8 with full, short, one-token and all-zero masks."""
    reference = helpers.reference(**changes)
    ours = helpers.ours(reference, **changes)
    batches = [helpers.batch(rows, 64) for rows in (1, 3, 8)]
    expected = [helpers.logits(reference, *batch) for batch in batches]
    with torch.no_grad():
        for batch, wanted in zip(batches, expected, strict=True):
            helpers.assert_same(ours(*batch).numpy(), wanted)
        export_onnx.export(ours, tmp_path / "dynamic.onnx", 64)
        for batch, wanted in zip(batches, expected, strict=True):
            helpers.assert_same(ours(*batch).numpy(), wanted)
    export_onnx.check_graph(tmp_path / "dynamic.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "dynamic.onnx"), providers=["CPUExecutionProvider"])
    for batch, wanted in zip(batches, expected, strict=True):
        ids, mask = (part.numpy() for part in batch)
        helpers.assert_same(session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))[0], wanted)
        compile_cpu.save(tmp_path / "dynamic.onnx", len(ids), tmp_path / f"bs{len(ids)}.xml")
        engine = run_cpu.load_model(tmp_path / f"bs{len(ids)}.xml", threads=1)
        helpers.assert_same(compile_cpu.compiled_logits(engine, ids, mask), wanted)


def test_shift_is_the_gather_by_relative_position() -> None:
    length, heads = 7, 2
    scores = torch.randn(3, heads, length, 2 * length)
    index = torch.arange(length)[None, :] - torch.arange(length)[:, None] + length - 1  # column of key j for query i
    gathered = torch.gather(scores, 3, index.expand(3, heads, length, length))
    assert torch.equal(model.shift(scores, heads, length), gathered)


@pytest.mark.parametrize(("buckets", "positions"), [(256, 512), (32, 128), (8, 512)])
def test_log_buckets_are_those_of_transformers(buckets: int, positions: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(-positions + 1, positions)
    expected = make_log_bucket_position(distances, buckets, positions).long().tolist()
    assert [model.relative_bucket(d, buckets, positions) for d in distances.tolist()] == expected


def test_gradients_reach_every_weight_until_folded() -> None:
    """Fine-tuning trains the relative embeddings too: the position tables must not be constants there."""
    ours = helpers.ours(helpers.reference())
    ours(*helpers.batch(2, 16)).sum().backward()
    assert [name for name, weight in ours.named_parameters() if weight.grad is None] == []
    relative = ours.deberta.encoder.rel_embeddings.weight.grad
    assert relative is not None and relative.abs().sum() > 0


def test_exact_products_do_not_depend_on_the_order_of_sums() -> None:
    random = np.random.default_rng(0)
    a = random.standard_normal((40, 500)).astype(np.float32).astype(np.float64)
    b = (random.standard_normal((500, 30)) * 10.0 ** random.integers(-6, 6, (500, 1))).astype(np.float64)
    order = random.permutation(500)
    product = exact.matmul(a, b)
    assert np.array_equal(exact.matmul(a[:, order], b[order]), product)
    assert not np.array_equal(a[:, order] @ b[order], a @ b)  # what it is for: the plain product does depend
    scale = np.abs(a) @ np.abs(b)
    assert (np.abs(product - a @ b) <= scale * 2.0**-30).all()


def test_float16_keeps_the_mask_finite() -> None:
    worst = torch.tensor(model.MASKED, dtype=torch.float16) + torch.tensor(-50000.0, dtype=torch.float16)
    assert torch.isfinite(worst)
    assert torch.exp(torch.tensor(model.MASKED, dtype=torch.float16)) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 50}, "hidden_size 50 is not num_attention_heads 4 x"),
        ({"pos_att_type": "c2p|p2p"}, "pos_att_type p2p"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'"),
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"vocab_size": None}, "vocab_size is None"),
    ],
)
def test_config_that_cannot_be_built(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config.from_dict({**helpers.TINY, **changes})


def test_both_layouts_of_a_config_are_the_same_model() -> None:
    microsoft = {**helpers.TINY, "pooling": {"dropout": 0, "hidden_act": "gelu"}, "padding_idx": 0}
    face = {
        **{key: value for key, value in helpers.TINY.items() if key != "pos_att_type"},
        **{"pos_att_type": ["p2c", "c2p"], "pooler_hidden_act": "gelu", "pooler_dropout": 0, "pad_token_id": 0},
    }
    assert config.from_dict(microsoft) == config.from_dict(face)
