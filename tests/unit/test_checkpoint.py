from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deberta.core.contract import LABELS
from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.stages.model import checkpoint, config
from tests import model_helpers as helpers

CONFIG = config.from_dict(helpers.TINY)
State = dict[str, Any]


@pytest.fixture(name="state")
def _state() -> State:
    """A state dict as Microsoft's code saves it: position embeddings always there."""
    state = dict(helpers.reference().state_dict())
    state[checkpoint.POSITION_EMBEDDINGS] = torch.ones(512, 48)
    return state


def _saved(path: Path, state: State) -> Path:
    torch.save(state, path)
    return path


def _logits(path: Path, labels: tuple[str, ...] = LABELS) -> Tensor:
    with torch.no_grad():
        logits: Tensor = checkpoint.load(path, CONFIG, labels).model(*helpers.batch(3, 32))
    return logits


def test_microsofts_layouts_load_alike(state: State, tmp_path: Path) -> None:
    """A plain state dict; prefixes, a config and language-model heads beside it; torch's old format."""
    plain = _logits(_saved(tmp_path / "plain.bin", state))
    renamed: State = {"module." + key.replace("deberta.", "bert.", 1): value for key, value in state.items()}
    renamed["config"] = {"hidden_size": 48}
    renamed["lm_predictions.lm_head.bias"] = torch.zeros(300)
    loaded = checkpoint.load(_saved(tmp_path / "renamed.bin", renamed), CONFIG, LABELS)
    assert loaded.extras == ("config", checkpoint.POSITION_EMBEDDINGS, "lm_predictions.lm_head.bias")
    with torch.no_grad():
        assert torch.equal(loaded.model(*helpers.batch(3, 32)), plain)
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(_logits(tmp_path / "old.bin"), plain)


def test_hugging_face_folder_with_its_own_label_order(state: State, tmp_path: Path) -> None:
    """MNLI models of Hugging Face often have entailment first: logits come out in the contract's order."""
    plain = _logits(_saved(tmp_path / "plain.bin", state))
    del state[checkpoint.POSITION_EMBEDDINGS]
    turned = [2, 1, 0]  # the checkpoint's own order: entailment, neutral, contradiction
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][turned].contiguous()
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    values = {**helpers.TINY, "id2label": {"0": "ENTAILMENT", "1": "neutral", "2": "contradiction"}}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    loaded = checkpoint.load(folder, config.read(folder / "config.json"))
    assert loaded.labels == ("ENTAILMENT", "neutral", "contradiction")
    with torch.no_grad():
        assert torch.equal(loaded.model(*helpers.batch(3, 32)), plain)


def test_every_problem_is_listed_in_one_error(state: State, tmp_path: Path) -> None:
    layer = "deberta.encoder.layer.1"
    gone = [key for key in state if key.startswith(f"{layer}.attention")]
    for key in gone:
        del state[key]
    state["pooler.dense.weight"] = torch.zeros(48, 47)
    state["surprise.weight"] = torch.zeros(1)
    with pytest.raises(DataError) as caught:
        _logits(_saved(tmp_path / "broken.bin", state))
    message = str(caught.value)
    assert f"{len(gone)} missing" in message and all(key in message for key in gone)
    assert "1 unexpected: surprise.weight" in message
    assert "1 misshapen: pooler.dense.weight (48, 47) instead of (48, 48)" in message


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_pickled_code_is_refused_and_not_run(state: State, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    with pytest.raises(DataError, match=r"holds \w+\.system, so loading it would run code"):
        _logits(_saved(tmp_path / "evil.bin", {**state, "extra": _Payload(marker)}))
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0, 3, 1000, 0.5, 0.99])
def test_truncated_file(state: State, tmp_path: Path, kept: float) -> None:
    path = _saved(tmp_path / "cut.bin", state)
    size = path.stat().st_size
    os.truncate(path, int(kept if kept >= 3 or kept == 0 else size * kept))
    with pytest.raises(DataError, match="truncated or not a checkpoint"):
        _logits(path)


@pytest.mark.parametrize("entry", [{"config": "deberta"}, {"optimizer": {"lr": 1e-5}}])
def test_only_a_config_may_be_no_tensor(state: State, tmp_path: Path, entry: State) -> None:
    with pytest.raises(DataError, match=f"'{next(iter(entry))}' is a .*, not a tensor"):
        _logits(_saved(tmp_path / "more.bin", {**state, **entry}))


def test_v1_is_refused_by_name(state: State, tmp_path: Path) -> None:
    state["deberta.encoder.layer.0.attention.self.in_proj.weight"] = torch.zeros(144, 48)
    with pytest.raises(DataError, match=r"DeBERTa v1 checkpoint.*in_proj"):
        _logits(_saved(tmp_path / "v1.bin", state))


def test_not_a_number_among_the_weights(state: State, tmp_path: Path) -> None:
    state["classifier.bias"] = torch.tensor([0.0, float("nan"), 0.0])
    with pytest.raises(DataError, match=r"NaN or infinite weights: classifier\.bias"):
        _logits(_saved(tmp_path / "nan.bin", state))


def test_what_is_not_there_or_not_known(state: State, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="invoke fetch"):
        _logits(tmp_path / "nothing.bin")
    with pytest.raises(MissingError, match=r"model\.safetensors"):
        _logits(tmp_path)
    path = _saved(tmp_path / "plain.bin", state)
    for labels in ((), ("LABEL_0", "LABEL_1", "LABEL_2"), ("entailment", "neutral")):
        with pytest.raises(ConfigError, match="order of contradiction, neutral, entailment"):
            _logits(path, labels)


def test_saved_in_microsofts_layout_the_same_bytes_anywhere(tmp_path: Path) -> None:
    ours = helpers.ours(helpers.reference())
    checkpoint.save(tmp_path / "a.bin", ours)
    checkpoint.save(tmp_path / "elsewhere" / "b.bin", ours)
    assert (tmp_path / "a.bin").read_bytes() == (tmp_path / "elsewhere" / "b.bin").read_bytes()
    assert checkpoint.POSITION_EMBEDDINGS in checkpoint.read_state_dict(tmp_path / "a.bin")
    with torch.no_grad():
        assert torch.equal(_logits(tmp_path / "a.bin"), ours(*helpers.batch(3, 32)))
