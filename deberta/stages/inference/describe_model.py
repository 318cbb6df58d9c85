"""What a model of the user's is: its files, architecture, labels and tokenizer. It is loaded as a run would load it.

Nothing is written but the summary. A model that cannot be run is refused as a run would refuse it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deberta.core import schema
from deberta.core.contract import LABELS, SHARD_INDEX
from deberta.core.errors import ConfigError, DataError, MissingError, run_stage, some
from deberta.stages import arguments
from deberta.stages.model import checkpoint, config, label_words, tokenizer, weights

HUGGING_FACE, MICROSOFT = "config.json", "model_config.json"
_OTHER_FILES = {  # what a folder without weights may hold
    "adapter_model.safetensors": "an adapter (PEFT): merge it into its model, and save that",
    "adapter_model.bin": "an adapter (PEFT): merge it into its model, and save that",
    "tf_model.h5": "TensorFlow's weights: save them with PyTorch",
    "flax_model.msgpack": "Flax's weights: save them with PyTorch",
    "model.onnx": "an ONNX file: name the checkpoint that it was exported from",
    "snapshots": "the hub's cache: name the folder in snapshots/",
}


def describe(model: Path, labels: Sequence[str], tokenizer_path: Path | None) -> dict[str, Any]:
    """The summary of a folder or a file of weights. Raises MissingError, ConfigError and DataError."""
    folder = model if model.is_dir() else model.parent
    main_file = weights_of(model)
    config_path = config_of(folder, main_file)
    settings = config.read(config_path)
    state = checkpoint.read_state_dict(main_file)
    checkpoint.check_head(state, main_file)
    order = _labels(config_path, settings, labels)
    used_tokenizer = tokenizer_of(tokenizer_path or folder)
    loaded_tokenizer = tokenizer.load(used_tokenizer[0].parent if len(used_tokenizer) > 1 else used_tokenizer[0])
    pieces = tokenizer.vocabulary_size(loaded_tokenizer)
    if pieces - 1 > settings.vocab_size:  # [MASK] may be beyond the vocabulary: it stands in no text
        raise DataError(
            f"{used_tokenizer[0]} has {pieces} pieces, and the model's vocabulary {settings.vocab_size} entries. They "
            "do not belong together"
        )
    loaded = checkpoint.load(main_file, settings, order)
    values = schema.read(config_path, dict[str, Any], "Fetch it again")
    kinds = values.get("architectures")
    return {
        "kind": "Microsoft's" if config_path.name == MICROSOFT else "Hugging Face's",
        "architecture": str(kinds[0]) if isinstance(kinds, list) and kinds else "DeBERTa",
        "source": str(values.get("_name_or_path") or ""),
        "layers": settings.num_hidden_layers,
        "hidden_size": settings.hidden_size,
        "vocabulary": settings.vocab_size,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "dtypes": dict(loaded.dtypes),
        "notes": loaded.notes,
        "own_labels": list(settings.labels or ()),
        "labels": [label_words.label_word(label) for label in order],
        "config": str(config_path),
        "checkpoint": str(main_file),
        "shards": [str(path) for path in weights.shards(main_file)] if main_file.name.endswith(SHARD_INDEX) else [],
        "tokenizer": [str(path) for path in used_tokenizer],
        "pieces": pieces,
        "character_map": tokenizer.has_character_map(loaded_tokenizer),
    }


def weights_of(model: Path) -> Path:
    """The file of weights, or the index of shards, that is read of a model."""
    if model.suffix in (".onnx", ".om", ".xml", ".h5", ".msgpack", ".gguf"):
        raise ConfigError(f"{model} is no PyTorch checkpoint. Name the checkpoint that it was made from")
    microsofts = sorted(model.glob("pytorch.model-*.bin")) if model.is_dir() else []
    if len(microsofts) == 1:
        return microsofts[0]
    if microsofts:
        raise ConfigError(
            f"{model} holds {len(microsofts)} checkpoints: {some([p.name for p in microsofts])}. Name one"
        )
    kinds = [what for name, what in _OTHER_FILES.items() if (model / name).exists()]
    try:
        return weights.source(model)
    except MissingError as error:
        raise (MissingError(f"{model} holds {kinds[0]}") if kinds else error) from None


def config_of(folder: Path, main_file: Path) -> Path:
    """The config that belongs to a file of weights: the one beside it, Microsoft's for a file of Microsoft's code."""
    names = (MICROSOFT, HUGGING_FACE) if main_file.name.startswith("pytorch.model-") else (HUGGING_FACE, MICROSOFT)
    if present := [folder / name for name in names if (folder / name).is_file()]:
        return present[0]
    raise MissingError(f"{folder} holds neither {names[0]} nor {names[1]}. Put the model's config there")


def tokenizer_of(path: Path) -> list[Path]:
    """The files of a tokenizer; spm.model in a folder is read with its tokenizer_config.json."""
    if path.is_dir() and not any((path / name).is_file() for name in (tokenizer.TOKENIZER_FILE, tokenizer.MODEL_FILE)):
        raise MissingError(
            f"{path} has no tokenizer, neither {tokenizer.TOKENIZER_FILE} nor {tokenizer.MODEL_FILE}. Name the one "
            "that the model was trained with: --tokenizer FILE"
        )
    file = tokenizer.source(path)
    options = file.with_name("tokenizer_config.json")
    return [file, options] if path.is_dir() and file.name == tokenizer.MODEL_FILE and options.is_file() else [file]


def _labels(path: Path, settings: config.ModelConfig, labels: Sequence[str]) -> tuple[str, ...]:
    """The label order, by the contract's words. Raises ConfigError where it is not known, or said in two ways."""
    own = label_words.label_order((), settings)
    usual = ",".join(LABELS)
    try:
        order = label_words.label_order(labels, settings)
    except ConfigError:
        raise ConfigError(
            f"--labels says {', '.join(labels)}, and the id2label of {path} says {', '.join(own)}. Leave --labels "
            "out, or correct the one that is wrong"
        ) from None
    if sorted(map(label_words.label_word, order)) == sorted(LABELS):
        return order
    if labels:
        raise ConfigError(f"--labels {','.join(labels)} is not an order of {', '.join(LABELS)}")
    what = f"calls its labels {', '.join(own)}" if own else "has no id2label"
    raise ConfigError(f"{path} {what}. Say what its outputs mean, in their order, for example: --labels {usual}")


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv, __doc__, "model labels summary", tokenizer=arguments.file("in place of the folder's own", required=False)
    )
    for path in (options.model, options.tokenizer):
        if path is not None and not path.exists():
            raise MissingError(f"{path} is missing. Check the path")
    arguments.write_summary(options.summary, describe(options.model, options.labels, options.tokenizer))


if __name__ == "__main__":
    sys.exit(run_stage(main))
