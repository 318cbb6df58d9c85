"""Configs, checkpoints and files of other forms than the guide's."""

from __future__ import annotations

import gzip
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from deberta.core import files, schema
from deberta.core.errors import ConfigError, DataError
from deberta.stages import onnx_runtime
from deberta.stages.compile import export_onnx
from deberta.stages.model import checkpoint, config, label_words, tokenizer, weights
from tests import model_helpers as helpers

OURS = ("contradiction", "neutral", "entailment")


def _config(**changes: Any) -> config.ModelConfig:
    return config.from_dict({key: value for key, value in {**helpers.TINY, **changes}.items() if value != "absent"})


def _named(*names: str) -> config.ModelConfig:
    return _config(id2label={str(i): name for i, name in enumerate(names)})


@pytest.mark.parametrize(
    "names",
    [
        ("contradiction", "entailment", "neutral"),
        ("ENTAILMENT", "NEUTRAL", "CONTRADICTION"),
        ("entail", "neutral", "contradict"),
        ("neutral", "maybe", "yes"),
    ],
)
def test_labels_that_contradict_the_profile_are_refused_by_both_orders(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        label_words.label_order(OURS, _named(*names))
    assert ", ".join(OURS) in str(caught.value) and ", ".join(names) in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        OURS,
        ("CONTRADICTION", "Neutral", " entailment"),
        ("contradict", "neutral", "entail"),
        ("LABEL_0", "LABEL_1", "LABEL_2"),
        ("no", "maybe", "yes"),
        ("no", "neutral", "yes"),
        (),
    ],
)
def test_labels_that_say_the_same_or_nothing_are_no_contradiction(names: tuple[str, ...]) -> None:
    assert label_words.label_order(OURS, _named(*names)) == OURS


def test_a_two_way_model_is_refused_by_its_number_of_labels() -> None:
    with pytest.raises(ConfigError, match=r"has 2 labels \(entailment, not_entailment\), and 3 are needed"):
        label_words.label_order(OURS, _named("entailment", "not_entailment"))


def test_a_two_way_model_is_refused_at_once_without_names(tmp_path: Path) -> None:
    state = {**helpers.reference().state_dict(), "classifier.weight": torch.zeros(2, 48)}
    torch.save(state, tmp_path / "two.bin")
    with pytest.raises(ConfigError, match="the model has 2 labels, and 3 are needed"):
        checkpoint.load(tmp_path / "two.bin", _config())


ENTAILMENT_FIRST = {"entailment": 0, "neutral": 1, "contradiction": 2}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"label2id": ENTAILMENT_FIRST}, tuple(ENTAILMENT_FIRST)),
        ({"label2id": {name: str(index) for name, index in ENTAILMENT_FIRST.items()}}, tuple(ENTAILMENT_FIRST)),
        ({"id2label": dict(enumerate(ENTAILMENT_FIRST))}, tuple(ENTAILMENT_FIRST)),
        ({"id2label": {f"{i}": f"LABEL_{i}" for i in range(3)}, "label2id": ENTAILMENT_FIRST}, tuple(ENTAILMENT_FIRST)),
        ({"id2label": dict(enumerate(OURS)), "label2id": {f"LABEL_{i}": i for i in range(3)}}, OURS),
        ({"label2id": {"CONTRADICTION": 0, "neutral": 1, "entailment": 2}, "id2label": dict(enumerate(OURS))}, OURS),
    ],
)
def test_label2id_is_read_and_label_0_says_nothing(said: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert _config(**said).labels == expected
    if expected != OURS:
        with pytest.raises(ConfigError, match="the profile's labels are contradiction, neutral, entailment, and"):
            label_words.label_order(OURS, _config(**said))


@pytest.mark.parametrize("label2id", [ENTAILMENT_FIRST, {"neutral": 0, "contradiction": 1, "entailment": 2}, {"a": 0}])
def test_label2id_and_id2label_that_contradict_are_refused_by_both(label2id: dict[str, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(id2label=dict(enumerate(OURS)), label2id=label2id)
    assert f"label2id says {', '.join(label2id)}, and id2label says {', '.join(OURS)}" in str(caught.value)


def test_a_record_tells_the_order_used_from_the_configs_own(tmp_path: Path) -> None:
    torch.save(helpers.reference().state_dict(), tmp_path / "model.bin")
    facts = checkpoint.load(tmp_path / "model.bin", _named("no", "maybe", "yes"), OURS).facts
    assert facts["checkpoint_labels"] == OURS and facts["id2label"] == ("no", "maybe", "yes")


@pytest.mark.parametrize("dtype", [name for name in checkpoint.FLOATS if name != torch.float32])
def test_other_floating_point_weights_become_float32_and_a_line_says_so(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in helpers.reference().state_dict().items()}
    state["classifier.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "model.bin")
    loaded = checkpoint.load(tmp_path / "model.bin", _config(), OURS)
    name, count = str(dtype).removeprefix("torch."), len(state) - 1
    assert loaded.facts["dtypes"] == {"float32": 1, name: count}
    assert loaded.notes == [f"of {count + 1} tensors, these become float32: {count} {name}"]
    assert torch.equal(loaded.model.classifier.weight, state["classifier.weight"].to(torch.float32))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.complex32])
def test_weights_that_are_no_real_floating_point_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {**helpers.reference().state_dict(), "pooler.dense.bias": torch.zeros(48).to(dtype)}
    torch.save(state, tmp_path / "model.bin")
    with pytest.raises(DataError, match=f"pooler.dense.bias.*{str(dtype).removeprefix('torch.')}"):
        checkpoint.load(tmp_path / "model.bin", _config(), OURS)


@pytest.mark.parametrize(
    ("inner", "refused"),
    [
        ({"hidden_size": 48, "pos_att_type": ["c2p", "p2c"], "hidden_dropout_prob": 0.3}, ""),
        ({"pooling": {"hidden_act": "gelu", "dropout": 0}}, ""),
        ({"pos_att_type": "c2p"}, "pos_att_type"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-07 and 1e-05"),
        ({"position_buckets": 128}, "position_buckets 256 and 128"),
        ({"pooling": {"hidden_act": "tanh"}}, "pooler_hidden_act 'gelu' and 'tanh'"),
        ({"num_attention_heads": 5}, "num_attention_heads 5"),
    ],
)
def test_a_config_in_the_checkpoint_must_not_contradict_the_file(tmp_path: Path, inner: Any, refused: str) -> None:
    torch.save({**helpers.reference().state_dict(), "config": inner}, tmp_path / "model.bin")
    if not refused:
        assert checkpoint.load(tmp_path / "model.bin", _config(), OURS).extras == ("config",)
        return
    with pytest.raises(ConfigError, match=f"contradicts the config file: .*{refused}"):
        checkpoint.load(tmp_path / "model.bin", _config(), OURS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pooling": {"hidden_act": "tanh"}, "pooler_hidden_act": "relu"}, "is relu, and pooling.hidden_act is tanh"),
        ({"pooling": {"hidden_act": "tanh"}, "architectures": []}, "reads tanh, and transformers gelu"),
        ({"pooler_hidden_size": 24}, "pooler_hidden_size 24 is not hidden_size 48"),
        ({"pooling": {"hidden_size": 24}}, "pooling.hidden_size 24 is not hidden_size 48"),
        ({"pos_att_type": ["C2P"]}, "pos_att_type C2P is not c2p or p2c"),
    ],
)
def test_what_a_config_says_twice_or_nobody_reads(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        _config(**changes)


@pytest.mark.parametrize("size", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"])
def test_an_absent_size_is_the_familys_or_refused(size: str) -> None:
    with pytest.raises(ConfigError, match=f"{size} is missing: Microsoft's code then reads .*, and transformers"):
        _config(**{size: "absent"})
    read = _config(intermediate_size="absent", padding_idx=0)
    assert read.intermediate_size == 3072 and read.assumed == (("intermediate_size", 3072),)


@pytest.mark.parametrize(
    ("shows", "expected"),
    [
        ({"padding_idx": 0}, ("c2p",)),
        ({"pooling": {}}, ("c2p",)),
        ({"pad_token_id": 0}, ()),
        ({"architectures": []}, ()),
    ],
)
def test_an_absent_pos_att_type_has_the_default_of_its_family(shows: Any, expected: tuple[str, ...]) -> None:
    assert _config(pos_att_type="absent", **shows).pos_att_type == expected


@pytest.mark.parametrize(
    ("shows", "expected"), [({"padding_idx": 0}, "relu"), ({"pooling": {}}, "gelu"), ({"pad_token_id": 0}, "gelu")]
)
def test_an_absent_activation_of_the_pooler_has_the_default_of_its_family(shows: Any, expected: str) -> None:
    assert _config(hidden_act="relu", **shows).pooler_hidden_act == expected


@pytest.mark.parametrize("shows", [{}, {"padding_idx": 0, "transformers_version": "4.30.2"}])
def test_readings_that_differ_are_refused_where_nothing_shows_the_family(shows: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(pos_att_type="absent", hidden_act="relu", **shows)
    for part in ("pos_att_type is missing", "reads c2p", "pooler_hidden_act is missing", "reads relu", "transformers"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["spm.model", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    with pytest.raises((DataError, OSError), match=r"is a Git LFS pointer .* git lfs pull"):
        schema.read(path, dict[str, Any], "") if name == "config.json" else tokenizer.load(path)


TEXT = '{"model_type": "deberta-v2"}'


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (TEXT.encode("utf-8-sig"), "begins with a byte order mark"),
        (TEXT.encode("utf-16"), "is UTF-16 text"),
        (TEXT.encode("utf-16-le"), "is UTF-16 text"),
        (TEXT.encode("utf-16-be"), "is UTF-16 text"),
        (gzip.compress(TEXT.encode(), mtime=0), "is compressed with gzip"),
        (b"PK\3\4", "is a zip archive"),
        (b"<!DOCTYPE html>", "is a web page"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_json_of_other_forms_is_named(tmp_path: Path, name: str, content: bytes, form: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    readers: dict[str, Callable[[Path], object]] = {"config.json": config.read, "tokenizer.json": tokenizer.load}
    with pytest.raises(DataError, match=form):
        readers.get(name, weights.read)(path)


class _Reduced:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "hostile",
    [
        _Reduced(eval, ("1",)),
        _Reduced(getattr, (dict, "clear")),
        _Reduced(torch.load, ("x",)),
        _Reduced(torch.nn.Linear, (2, 2)),
        _Reduced(print, ("torch.load(weights_only=False)",)),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("archive", [True, False, None])
def test_a_hostile_pickle_gets_no_advice_to_load_it(tmp_path: Path, hostile: Any, protocol: int, archive: Any) -> None:
    path = tmp_path / "model.bin"
    if archive is None:
        path.write_bytes(pickle.dumps({"a": hostile}, protocol))
    else:
        torch.save({"a": hostile}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    with pytest.raises(DataError) as caught:
        weights.read(path)
    assert not re.search("weights_only|torch.load(?! *,)|arbitrary|add_safe_globals|trust", str(caught.value))


def test_a_torchscript_program_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "model.bin"))
    with pytest.raises(DataError, match="is a TorchScript program") as caught:
        weights.read(tmp_path / "model.bin")
    assert "weights_only" not in str(caught.value)


def test_a_graph_is_read_without_its_weights_as_protobuf_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx.export(helpers.ours(helpers.reference()), path, 32)
    whole = onnx.load(str(path))
    assert len(whole.graph.initializer) > 10
    del whole.graph.initializer[:]
    assert onnx_runtime.skeleton(path) == whole
    weights_at = path.read_bytes()
    path.write_bytes(b"\x1b\x1c" + weights_at)  # a group, which protobuf skips
    assert onnx_runtime.skeleton(path).graph.node == whole.graph.node
    for content in (weights_at[: len(weights_at) // 2], b"no onnx", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(DecodeError):
            onnx_runtime.skeleton(path)


def test_a_loop_hidden_in_an_odd_file_is_refused(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([onnx.helper.make_node("Loop", [], ["logits"])], "g", [], [])
    content = onnx.helper.make_model(graph).SerializeToString()
    for name, odd in (("plain", content), ("group", b"\x1b\x1c" + content), ("twice", content + content)):
        (tmp_path / name).write_bytes(odd)
        with pytest.raises(DataError, match="has Loop, which no DeBERTa needs"):
            onnx_runtime.open_session(tmp_path / name, 1)


@pytest.mark.parametrize(("content", "form"), [(b"PK\3\4", "zip"), (b"\x1f\x8b", "gzip"), (files.LFS_POINTER, "LFS")])
def test_a_file_of_another_form_in_place_of_an_onnx_is_named(tmp_path: Path, content: bytes, form: str) -> None:
    (tmp_path / "dynamic.onnx").write_bytes(content)
    with pytest.raises(files.UnfitFile, match=form):
        onnx_runtime.open_session(tmp_path / "dynamic.onnx", 1)
