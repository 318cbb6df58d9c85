from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import DebertaV2Config

from deberta.core.contract import INPUTS
from deberta.core.errors import ConfigError
from deberta.stages.compile import compile_cpu, export_onnx
from deberta.stages.inference import openvino_engine
from deberta.stages.model import config, deberta, exact
from tests import model_helpers as helpers
from tests.mnli_helpers import REPOSITORY


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
        engine = openvino_engine.load_model(tmp_path / f"bs{len(ids)}.xml", threads=1)
        helpers.assert_same(compile_cpu.compiled_logits(engine, ids, mask), wanted)


@pytest.mark.parametrize("changes", helpers.VARIANTS.values(), ids=helpers.VARIANTS)
def test_one_graph_for_every_length(changes: dict[str, Any], tmp_path: Path) -> None:
    """Folded for 64 tokens and all shorter lengths: rows without their padding give what they gave with it."""
    reference = helpers.reference(**changes)
    ids, mask = (part.numpy() for part in helpers.batch(8, 64))  # rows of 64, 10, 0 and 1 tokens
    expected = helpers.logits(reference, *helpers.batch(8, 64))
    export_onnx.export(helpers.ours(reference, **changes), tmp_path / "any.onnx", 64, any_length=True)
    export_onnx.check_graph(tmp_path / "any.onnx", forbidden=())
    session = onnxruntime.InferenceSession(str(tmp_path / "any.onnx"), providers=["CPUExecutionProvider"])
    for length in (64, 41, 10, 1):
        cut, wanted = export_onnx.cut((ids, mask), expected, length)
        helpers.assert_same(session.run(None, dict(zip(INPUTS, cut, strict=True)))[0], wanted)
        compile_cpu.save(tmp_path / "any.onnx", len(wanted), tmp_path / "any.xml", longest=64)
        engine = openvino_engine.load_model(tmp_path / "any.xml", threads=1)
        assert (engine.shape, engine.any_length) == ((len(wanted), 64), True)
        helpers.assert_same(compile_cpu.compiled_logits(engine, *cut), wanted)


def test_shift_is_the_gather_by_relative_position() -> None:
    length, heads = 7, 2
    scores = torch.randn(3, heads, length, 2 * length)
    index = torch.arange(length)[None, :] - torch.arange(length)[:, None] + length - 1  # column of key j for query i
    gathered = torch.gather(scores, 3, index.expand(3, heads, length, length))
    assert torch.equal(deberta.shift(scores, heads, length), gathered)


@pytest.mark.parametrize(("buckets", "positions"), [(256, 512), (32, 128), (8, 512)])
def test_log_buckets_are_those_of_transformers(buckets: int, positions: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = torch.arange(-positions + 1, positions)
    expected = make_log_bucket_position(distances, buckets, positions).long().tolist()
    assert [deberta.relative_bucket(d, buckets, positions) for d in distances.tolist()] == expected


def test_gradients_reach_every_weight_until_folded() -> None:
    """Fine-tuning trains the relative embeddings too: the position tables must not be constants there."""
    ours = helpers.ours(helpers.reference())
    ours(*helpers.batch(2, 16)).sum().backward()
    assert [name for name, weight in ours.named_parameters() if weight.grad is None] == []
    relative = ours.deberta.encoder.rel_embeddings.weight.grad
    assert relative is not None and relative.abs().sum() > 0


def _product_bytes(library: str, kernels: str) -> bytes:
    """What a product's float64 bytes are in a process whose BLAS uses the kernels of another CPU."""
    script = (
        "import sys, numpy as np; from deberta.stages.model import exact; draw = np.random.default_rng(0);"
        "a = draw.standard_normal((64, 768)).astype(np.float32).astype(np.float64);"
        "b = draw.standard_normal((768, 64)).astype(np.float32).astype(np.float64);"
        f"sys.stdout.buffer.write(({library}).tobytes())"
    )
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OPENBLAS_CORETYPE": kernels}
    return subprocess.run([sys.executable, "-c", script], env=settings, capture_output=True, check=True).stdout


def test_exact_products_are_the_same_bytes_on_another_cpu() -> None:
    """numpy's BLAS can be told to use an old CPU's kernels: the plain product's last bits change, ours do not."""
    assert _product_bytes("exact.matmul(a, b)", "Prescott") == _product_bytes("exact.matmul(a, b)", "")
    if _product_bytes("a @ b", "Prescott") == _product_bytes("a @ b", ""):
        pytest.skip("this machine's BLAS has one kind of kernel only, so the comparison above showed nothing")


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
    worst = torch.tensor(deberta.MASKED, dtype=torch.float16) + torch.tensor(-50000.0, dtype=torch.float16)
    assert torch.isfinite(worst)
    assert torch.exp(torch.tensor(deberta.MASKED, dtype=torch.float16)) == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 50}, ["hidden_size 50 is not num_attention_heads 4 x attention_head_size 12"]),
        ({"hidden_size": -32}, ["hidden_size is -32, not from 1"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0, not from 1"]),
        ({"vocab_size": 0, "num_hidden_layers": 2.0}, ["num_hidden_layers is 2.0, not a whole", "vocab_size is 0"]),
        ({"vocab_size": None, "type_vocab_size": "0"}, ["type_vocab_size is '0'", "vocab_size is None"]),
        ({"vocab_size": 10**30, "intermediate_size": True}, ["intermediate_size is True", "vocab_size is 10"]),
        ({"padding_idx": 99999}, ["padding_idx 99999 is not below vocab_size 300"]),
        ({"pad_token_id": 300}, ["pad_token_id 300 is not below vocab_size 300"]),
        ({"layer_norm_eps": None}, ["layer_norm_eps is None, not a number"]),
        ({"layer_norm_eps": "1e-7", "initializer_range": float("nan")}, ["initializer_range is nan", "is '1e-7'"]),
        ({"layer_norm_eps": 0}, ["layer_norm_eps is 0, not a number"]),
        ({"hidden_dropout_prob": 2, "pooler_dropout": 1}, ["hidden_dropout_prob is 2,", "pooler_dropout is 1,"]),
        ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob is -0.1"]),
        ({"pooling": "x"}, ["pooling is 'x', not an object"]),
        ({"pooling": {"dropout": "no", "hidden_act": None}}, ["pooling.dropout is 'no'", "pooling.hidden_act None is"]),
        ({"pos_att_type": 5}, ["pos_att_type is 5"]),
        ({"pos_att_type": ["c2p", None]}, ["pos_att_type is ['c2p', None]"]),
        ({"pos_att_type": "c2p|p2p"}, ["pos_att_type p2p is not c2p or p2c"]),
        ({"norm_rel_ebd": "layernorm"}, ["norm_rel_ebd layernorm is not none or layer_norm"]),
        ({"relative_attention": "false", "share_att_key": 1}, ["relative_attention is 'false'", "share_att_key is 1"]),
        ({"id2label": {"a": "neutral"}}, ["id2label is {'a': 'neutral'}"]),
        ({"id2label": {"0": "neutral", "2": "entailment"}}, ["not names by the indices"]),
        ({"id2label": ["neutral"]}, ["id2label is ['neutral']"]),
        ({"hidden_act": "mish"}, ["hidden_act 'mish'"]),
        ({"hidden_act": ["gelu"]}, ["hidden_act ['gelu']"]),
        ({"conv_kernel_size": 2, "conv_act": 1}, ["conv_kernel_size 2 is even", "conv_act 1"]),
        ({"conv_kernel_size": 3, "conv_groups": 5}, ["conv_groups 5 does not divide hidden_size 48"]),
        ({"conv_kernel_size": 3, "conv_groups": 0}, ["conv_groups is 0, not from 1"]),
        ({"position_buckets": 1}, ["position_buckets 1 is odd"]),
        ({"max_relative_positions": 129}, ["position_buckets 256 needs more than 129 positions, and has 129"]),
        ({"max_position_embeddings": 0}, ["max_position_embeddings is 0"]),
        ({"model_type": "bert"}, ["model_type is 'bert'"]),
    ],
)
def test_config_that_cannot_be_built(changes: dict[str, Any], says: list[str]) -> None:
    """One message holds each mistake once, and nothing that merely follows from one."""
    with pytest.raises(ConfigError) as caught:
        config.from_dict({**helpers.TINY, **changes})
    problems = str(caught.value).split("; ") if "bert" not in says[0] else [str(caught.value)]
    assert len(problems) == len(says)
    assert all(any(part in problem for problem in problems) for part in says)


def test_everything_missing_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_dict({})
    lacking = {problem.split(" is missing")[0] for problem in str(caught.value).split("; ")}
    sizes = {"hidden_size", "num_attention_heads", "vocab_size", "num_hidden_layers", "intermediate_size"}
    assert lacking == {*sizes, "pos_att_type"}


@pytest.mark.parametrize("changes", helpers.VARIANTS.values(), ids=helpers.VARIANTS)
def test_what_transformers_writes_is_read_alike(changes: dict[str, Any]) -> None:
    """transformers spells out every default, some of them as null."""
    values = {**helpers.TINY, **changes}
    written = DebertaV2Config.from_dict({**values, "num_labels": 3}).to_dict()
    read = config.from_dict(written)
    assert read.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert replace(read, labels=None) == config.from_dict(values)


def test_smallest_buckets_that_work() -> None:
    """Two buckets over three positions: the least that the check lets through still has a bucket for each distance."""
    made = config.from_dict({**helpers.TINY, "position_buckets": 2, "max_relative_positions": 3})
    assert set(deberta.relative_rows(made, 256)) <= {0, 1, 2, 3}
    no_types = config.from_dict({**helpers.TINY, "pos_att_type": ""})
    assert no_types.relative_attention and no_types.pos_att_type == ()


def test_both_layouts_of_a_config_are_the_same_model() -> None:
    microsoft = {**helpers.TINY, "pooling": {"dropout": 0, "hidden_act": "gelu"}, "padding_idx": 0}
    face = {
        **{key: value for key, value in helpers.TINY.items() if key != "pos_att_type"},
        **{"pos_att_type": ["p2c", "c2p"], "pooler_hidden_act": "gelu", "pooler_dropout": 0, "pad_token_id": 0},
    }
    assert config.from_dict(microsoft) == config.from_dict(face)
