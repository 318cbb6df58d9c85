"""Configs, checkpoints and files of other forms than the guide's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from deberta.core import schema
from deberta.core.errors import ConfigError, DataError
from deberta.stages.compile import export_onnx
from deberta.stages.model import checkpoint, config, tokenizer
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
        checkpoint.label_order(OURS, _named(*names))
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
    assert checkpoint.label_order(OURS, _named(*names)) == OURS


def test_a_two_way_model_is_refused_by_its_number_of_labels() -> None:
    with pytest.raises(ConfigError, match=r"has 2 labels \(entailment, not_entailment\), and 3 are needed"):
        checkpoint.label_order(OURS, _named("entailment", "not_entailment"))


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
    for part in ("pos_att_type is missing", "reads c2p", "pooler_hidden_act is missing", "'relu'", "transformers"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["spm.model", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_named_for_what_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")
    with pytest.raises((DataError, OSError), match=r"is a Git LFS pointer .* git lfs pull"):
        schema.read(path, dict[str, Any], "") if name == "config.json" else tokenizer.load(path)


@pytest.mark.parametrize("value", [0.0, 0.01])
def test_a_model_whose_tensors_are_all_equal_has_no_identity(tmp_path: Path, value: float) -> None:
    model = helpers.ours(helpers.reference())
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(value)
    batch = helpers.batch(3, 32)
    with torch.no_grad():
        expected = model(*batch).numpy()
    export_onnx.export(model, tmp_path / "equal.onnx", 32)
    nodes = export_onnx.check_graph(tmp_path / "equal.onnx")
    assert "Identity" not in nodes
    assert nodes == Counter(node.op_type for node in onnx.load(str(tmp_path / "equal.onnx")).graph.node)
    ids, mask = (part.numpy() for part in batch)
    export_onnx.validate(tmp_path / "equal.onnx", [(ids, mask)], [expected])
