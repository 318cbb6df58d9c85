"""Files of tensors, whole or in shards, recognised by their content. Pickled code is never executed."""

from __future__ import annotations

import errno
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file

from deberta.core import files, schema
from deberta.core.contract import SHARD_INDEX
from deberta.core.errors import DataError, MissingError, some

# What a folder is searched for, in the order of transformers.
FOLDER_FILES = (
    "model.safetensors",
    f"model.safetensors{SHARD_INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{SHARD_INDEX}",
)
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_SAVE_AGAIN = "Save it again as a plain state dict: torch.save(model.state_dict(), FILE)"


class Index(msgspec.Struct):
    """The part of an index that says which shard holds a tensor."""

    weight_map: dict[str, str]


def source(path: Path) -> Path:
    """The file that `read(path)` reads: `path` itself, or a folder's weights or index. Raises MissingError."""
    if not path.is_dir():
        if not path.is_file():
            raise MissingError(f"{path} is missing. Run: invoke fetch, or put the checkpoint there")
        return path
    if present := [path / name for name in FOLDER_FILES if (path / name).is_file()]:
        return present[0]
    shards = sorted(name for name in files.files_in(path) if _SHARD.fullmatch(name))
    lacking = f" ({shards[0]} needs its index, {_SHARD.sub('model', shards[0])}.*{SHARD_INDEX})" if shards else ""
    raise MissingError(f"{path} holds none of: {', '.join(FOLDER_FILES)}{lacking}")


def shards(index: Path) -> dict[Path, set[str]]:
    """The shards that an index names, each with the names of its tensors.

    Raises MissingError, and DataError for an index that is none or names files outside its folder.
    """
    weight_map = schema.read(index, Index, "Fetch it again").weight_map
    names = sorted(set(weight_map.values()))
    if not names:
        raise DataError(f"{index} names no tensors. Fetch it again")
    # Links of the user's own folder may lead anywhere, as those of Hugging Face's cache do.
    if outside := [name for name in names if not name or not files.inside(index.parent, name, follow=False)]:
        raise DataError(f"{index} names shards outside its folder: {some(outside)}")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise MissingError(f"{index} names shards that are missing: {some(missing)}. Fetch them, beside the index")
    return {index.parent / name: {key for key, shard in weight_map.items() if shard == name} for name in names}


def read(path: Path) -> Mapping[Any, Any]:
    """The content of a checkpoint: tensors, and what else a pickle holds, by name.

    `path`: a .bin or .safetensors file, an index with its shards beside it, or a folder that holds one of them.
    Raises MissingError and DataError.
    """
    file = source(path)
    if not file.name.endswith(SHARD_INDEX):
        return read_file(file)
    content: dict[Any, Any] = {}
    for shard, names in shards(file).items():
        held = read_file(shard)
        strange = sorted(str(key) for key in held if key not in names)
        lacking = sorted(names - held.keys())
        if strange or lacking:
            parts = [f"it does not give {some(strange)} to this shard"] if strange else []
            parts += [f"the shard lacks {some(lacking)}"] if lacking else []
            raise DataError(f"{file} and {shard.name} contradict: {'; '.join(parts)}. Fetch both again")
        content.update(held)
    return content


def read_file(path: Path) -> Mapping[Any, Any]:
    """The content of one file, by its bytes and not by its name."""
    with files.open_regular(path) as file:
        head = file.read(64)
    is_safetensors, is_zip = head[8:9] == b"{", head.startswith(b"PK")  # after its length, the header's JSON
    if not (is_safetensors or is_zip) and (form := files.form_of(head, path.stat().st_size)):
        raise DataError(f"{path} {form}")
    try:
        if is_safetensors:
            return load_file(path)
        if path.suffix == ".safetensors":  # by a path of that name torch.load would not look for a pickle
            with files.open_regular(path) as file:
                values = torch.load(file, map_location="cpu", weights_only=True)
        else:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)
    except MemoryError:
        raise
    except Exception as error:  # torch and pickle raise errors of many classes for damaged bytes
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: an offset before the file
            raise
        forbidden = re.search(r"GLOBAL (\S+)", str(error))  # torch names what is not a tensor
        if forbidden and isinstance(error, pickle.UnpicklingError):
            raise DataError(
                f"{path} holds {forbidden[1]}, so loading it would run code from the file, and it was not loaded. "
                f"{_SAVE_AGAIN}"
            ) from None
        if "TorchScript" in str(error):
            raise DataError(f"{path} is a TorchScript program, not a checkpoint. {_SAVE_AGAIN}") from None
        # No text of torch's: its advice would be to load the file without a check.
        raise DataError(f"{path} is truncated or not a checkpoint ({_reason(error)}). Fetch it again") from None
    if not isinstance(values, Mapping):
        raise DataError(f"{path} holds a {type(values).__name__}, not a state dict")
    return values


def _reason(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "no pickle of tensors"
    text = str(error)
    if type(error).__name__ == "SafetensorError":
        return text.splitlines()[0]
    if "PytorchStreamReader" not in text:
        return type(error).__name__
    return "a zip archive that torch.save did not write" if "locating file" in text else "its zip archive is damaged"
