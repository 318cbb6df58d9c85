"""The stages' command lines: an argument that several stages share has one name, one meaning and one reader, here."""

from __future__ import annotations

import argparse
import functools
import json
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deberta.core import buckets, contract, files
from deberta.core.errors import ConfigError

LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Argument:
    """One option of a stage. `read` turns its name (for messages) and its text into a value, or raises ConfigError.

    `repeats`: it may be given several times, and its value is the list of them.
    """

    help: str
    read: Callable[[str, str], Any] = lambda _, text: text
    default: Any = None
    required: bool = False
    is_flag: bool = False
    many: bool = False  # one value or more, each read by `read`
    repeats: bool = False


def whole(low: int, high: int = LARGEST) -> Callable[[str, str], int]:
    """A reader of whole numbers within `low` to `high`."""
    return lambda option, text: contract.parse_integer(option, text, low, low, high)


def decimal(high: float) -> Callable[[str, str], float]:
    """A reader of numbers from 0 to `high`."""

    def read(option: str, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= high:
            raise ConfigError(f"{option} {text!r} is not a number from 0 to {high:g}")
        return value

    return read


def one_of(words: Sequence[str]) -> Callable[[str, str], str]:
    """A reader of one of a few words."""
    return lambda option, text: contract.one_of(option, text, words)


def flag(help: str) -> Argument:
    return Argument(help, is_flag=True)


def file(help: str, required: bool = True) -> Argument:
    """The path of a file or folder."""
    return Argument(help, lambda _, text: Path(text), required=required)


SHARED: Mapping[str, Argument] = {
    "bins": file("folder with input_ids/ and input_mask/"),
    "bs": Argument(
        "rows in a bin or in an output file", lambda _, text: contract.parse_batch_size(text), required=True
    ),
    "checkpoint": file("a .bin state dict, or a Hugging Face folder"),
    "config": file("the model's config.json"),
    "data": file("GLUE's dev tsv, 16 columns"),
    "kept": file("nodes that stay in float32, a name per line, as ATC's --keep_dtype takes them"),
    "labels": Argument(
        "the checkpoint's label order, commas between; default: the config's id2label",
        lambda _, text: tuple(text.split(",")) if text else (),
        default=(),
    ),
    "lengths": Argument(
        "the sequence lengths, increasing, commas between",
        lambda _, text: buckets.lengths(text),
        default=(contract.SEQUENCE_LENGTH,),
    ),
    "limit": Argument("the first N rows only", whole(0), default=0),
    "model": file("the model to run"),
    "output": file("where the result goes"),
    "precision": Argument(", ".join(contract.PRECISIONS), one_of(contract.PRECISIONS), default=contract.FP32),
    "rows": Argument("rows that the whole tsv must have", whole(1), default=0),
    "sequence_length": Argument("tokens in a row", whole(1, 2**20), default=contract.SEQUENCE_LENGTH),
    "summary": file("write what was counted to this JSON file", required=False),
    "threads": Argument("default: as many as the container's CPU quota allows", whole(1, 1024)),
    "tokenizer": file("spm.model, or a Hugging Face tokenizer folder"),
    "version": Argument("match or mismatch", one_of(contract.VERSIONS), default="match"),
}


def parse(
    argv: Sequence[str],
    description: str | None,
    *shared: str,
    optional: Sequence[str] = (),
    **own: Argument,
) -> argparse.Namespace:
    """Read a stage's command line. `shared` names arguments of SHARED, blanks between; `own` are the stage's alone.

    `optional` names shared arguments that are not required. Exits with code 2 for an unknown or missing
    option; raises ConfigError for a bad value.
    """
    arguments = {name: SHARED[name] for name in " ".join(shared).split()}
    arguments.update({name: replace(SHARED[name], required=False) for name in optional})
    arguments.update(own)
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    for name, argument in arguments.items():
        option = f"--{name.strip('_').replace('_', '-')}"
        if argument.is_flag:
            parser.add_argument(option, dest=name, action="store_true", help=argument.help)
        else:
            parser.add_argument(
                option,
                dest=name,
                action="append" if argument.repeats else "store",
                help=argument.help,
                default=argument.default,
                required=argument.required,
                nargs="+" if argument.many else None,
                type=functools.partial(argument.read, option),
            )
    return parser.parse_args(argv)


def write_summary(path: Path | None, summary: Mapping[str, Any]) -> None:
    """Keep what a stage counted, with the most memory that this process has had, in bytes; nothing without a path."""
    if path is not None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        files.write_text(path, json.dumps({**summary, "peak_rss_bytes": peak}, indent=2) + "\n")
