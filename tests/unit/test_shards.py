"""Checkpoints in shards, and files of tensors whose name, place or content is not what it should be."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deberta.core import files
from deberta.core.contract import LABELS, SHARD_INDEX
from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.core.records import Digests
from deberta.host.plan import evaluation, profiles
from deberta.host.plan.plan import Plan
from deberta.host.report import archive
from deberta.stages.model import checkpoint, config, weights
from tests import model_helpers as helpers

CONFIG = config.from_dict(helpers.TINY)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
SAFETENSORS, PICKLES = "model.safetensors.index.json", "pytorch_model.bin.index.json"


def sharded(folder: Path, index: str = SAFETENSORS, parts: int = 3) -> dict[str, Tensor]:
    """A tiny model as save_pretrained(max_shard_size=...) leaves it; its state."""
    state = {name: value.contiguous() for name, value in helpers.reference().state_dict().items()}
    stem, suffix = index.removesuffix(SHARD_INDEX).split(".")
    names, folder_map = sorted(state), {}
    for part in range(parts):
        file = f"{stem}-{part + 1:05}-of-{parts:05}.{suffix}"
        held = {name: state[name] for name in names[part::parts]}
        folder_map.update(dict.fromkeys(held, file))
        folder.mkdir(exist_ok=True)
        if suffix == "bin":
            torch.save(held, folder / file)
        else:
            save_file(held, folder / file, metadata={"format": "pt"})
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": folder_map}))
    return state


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    sharded(tmp_path / "model")
    return tmp_path / "model"


def _change(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / SAFETENSORS).read_text())
    change(content["weight_map"])
    (folder / SAFETENSORS).write_text(json.dumps(content))


def _message(path: Path) -> str:
    with pytest.raises((DataError, MissingError, OSError)) as caught:
        checkpoint.load(path, CONFIG, LABELS)
    return str(caught.value)


@pytest.mark.parametrize("index", [SAFETENSORS, PICKLES])
def test_shards_load_by_their_folder_and_by_their_index(tmp_path: Path, index: str) -> None:
    state = sharded(tmp_path / "model", index)
    for path in (tmp_path / "model", tmp_path / "model" / index):
        read = checkpoint.read_state_dict(path)
        assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
        assert checkpoint.load(path, CONFIG, LABELS).extras == ()


def test_links_to_shards_elsewhere_are_followed(folder: Path, tmp_path: Path) -> None:
    """Hugging Face's cache keeps the files of a snapshot in another folder."""
    for shard in folder.glob("*.safetensors"):
        shard.rename(tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    checkpoint.load(folder, CONFIG, LABELS)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "names shards that are missing: model-00002-of-00003.safetensors" in _message(folder)


@pytest.mark.parametrize("outside", ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", ""])
def test_a_shard_outside_the_folder_is_refused(folder: Path, outside: str) -> None:
    _change(folder, lambda weight_map: weight_map.update({"classifier.bias": outside}))
    assert "names shards outside its folder" in _message(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    name = "model-00001-of-00003.safetensors"
    other = weights.read_file(folder / "model-00002-of-00003.safetensors")
    key = sorted(other)[0]
    save_file({**weights.read_file(folder / name), key: torch.zeros(1)}, folder / "new")
    (folder / "new").rename(folder / name)
    assert f"and {name} contradict: it does not give {key} to this shard" in _message(folder)


def test_a_tensor_that_its_shard_lacks_is_refused(folder: Path) -> None:
    _change(folder, lambda weight_map: weight_map.update({"more": "model-00001-of-00003.safetensors"}))
    assert "the shard lacks more" in _message(folder)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"weight_map": {}}', "names no tensors"),
        ("[]", "does not fit its schema"),
        ('{"weight_map": {"a": 1}}', "does not fit its schema"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "a key occurs twice"),
        (POINTER, "is a Git LFS pointer"),
        ("\ufeff{}", "begins with a byte order mark"),
    ],
)
def test_an_index_that_is_none(folder: Path, content: str, expected: str) -> None:
    (folder / SAFETENSORS).write_text(content, encoding="utf-8")
    assert expected in _message(folder)


def test_a_shard_that_is_a_pointer_and_shards_without_an_index(folder: Path) -> None:
    (folder / "model-00001-of-00003.safetensors").write_text(POINTER)
    assert "model-00001-of-00003.safetensors is a Git LFS pointer" in _message(folder)
    (folder / SAFETENSORS).unlink()
    assert "model-00001-of-00003.safetensors needs its index" in _message(folder)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in helpers.reference().state_dict().items()}
    save_file(state, tmp_path / "pytorch_model.bin")
    torch.save(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    for name in ("pytorch_model.bin", "model.safetensors", "old.safetensors"):
        assert checkpoint.read_state_dict(tmp_path / name).keys() == state.keys()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (gzip.compress(b"x", mtime=0), "is compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"GGUF\3\0\0\0", "is a GGUF file"),
        (POINTER.encode(), "is a Git LFS pointer"),
    ],
)
def test_other_forms_are_named(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in _message(tmp_path / name)


def _profile(checkpoint_name: str) -> profiles.Profile:
    values = {"checkpoint": checkpoint_name, "config": "nli/config.json", "tokenizer": "nli", "dataset": "MNLI"}
    return profiles.load("own", {"own": values})


def test_a_record_pins_the_index_and_every_shard(folder: Path, tmp_path: Path) -> None:
    """Named by its index, the step reads that file, and its folder is hashed."""
    [read, _] = evaluation.export_onnx(Plan(_profile(f"nli/{SAFETENSORS}"), "cpu")).inputs
    step = evaluation.export_onnx(Plan(_profile(f"nli/{SAFETENSORS}"), "cpu"))
    assert step.arguments[:2] == ("--checkpoint", f"models/own/nli/{SAFETENSORS}")
    assert read.path == PurePosixPath("models/own/nli")
    before = Digests(tmp_path).of(PurePosixPath("model"))
    with open(folder / "model-00003-of-00003.safetensors", "ab") as shard:
        shard.write(b" ")
    assert Digests(tmp_path).of(PurePosixPath("model")) != before == {"dirHash": before["dirHash"]}


def test_an_index_needs_a_folder_of_its_own() -> None:
    with pytest.raises(ConfigError, match="put the index and its shards into one of their own"):
        _profile(SAFETENSORS)


def test_a_folder_and_a_file_in_it_are_kept_together(folder: Path, tmp_path: Path) -> None:
    """As an acceptance keeps a Hugging Face folder that is checkpoint and tokenizer, and the config in it."""
    (folder / "config.json").write_text("{}")
    for name in ("", "config.json", ""):
        archive._keep(folder / name, tmp_path / "kept" / name)
    assert files.folder_digest(tmp_path / "kept") == files.folder_digest(folder)


def test_a_pointer_is_refused_where_inputs_are_hashed(tmp_path: Path) -> None:
    for name in ("dynamic.onnx", "deberta_bs8.om", "dev_matched.tsv", "model.safetensors"):
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(files.UnfitFile, match="is a Git LFS pointer"):
            Digests(tmp_path).of(PurePosixPath(name))
    assert files.folder_digest(tmp_path)  # a clone may lack what nobody reads
