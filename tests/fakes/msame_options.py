"""msame's command line and ./acl.json, as observed on the unmodified tool (getopt_long, so prefixes of names too)."""

from __future__ import annotations

import contextlib
import getopt
import json
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Dict, List, Sequence

DEVICES = 8
LOOPS = 100
NAMES = (
    *("model", "input", "output", "outfmt", "dump", "profiler", "loop", "device", "debug"),
    *("dymBatch", "dymDims", "dymHW", "dymShape", "outputSize"),
)
USAGE = "\nUsage:\n./msame --model MODEL.om --input FILES_OR_DIRECTORIES --output FOLDER [--outfmt TXT] [--loop 2]\n"


class StopError(Exception):
    """exit(0) in the middle."""


class UsageError(Exception):
    """Exit code 1 before anything was opened."""


@dataclass
class Options:
    """`dynamic`: the dym... options that were given; `text`: .txt outputs."""

    model: str = ""
    inputs: List[str] = field(default_factory=list)
    output: str = ""
    text: bool = False
    loop: int = 1
    device: int = 0
    dynamic: Dict[str, str] = field(default_factory=dict)
    dump: bool = False
    profiler: bool = False

    @property
    def removes_acl_json(self) -> bool:
        return self.dump or self.profiler


def parse(argv: Sequence[str]) -> Options:
    """Raises StopError (exit code 0 although nothing was done) and UsageError (exit code 1)."""
    options = Options()
    try:
        pairs, _ = getopt.gnu_getopt(list(argv), "", [*(f"{name}=" for name in NAMES), "help"])
    except getopt.GetoptError as unknown:
        print(f"msame: {unknown}", file=sys.stderr)
        _refuse("unknown paramenter", "Execute sample failed", help=True)
        raise StopError from unknown
    given = set()
    for dashed, value in pairs:
        name = dashed[2:]
        if name == "help":
            print(USAGE)
            raise StopError
        if name == "model" and ".om" not in value:  # anywhere in it: x.om.onnx passes
            _refuse("input model file type is not .om , please check your model type!")
            raise StopError
        if name == "loop":
            options.loop = _in_range(_number(value), 1, LOOPS, f"loop must in 1 to {LOOPS}")
        elif name == "device":
            options.device = _in_range(_number(value), 0, 255, "device id must in 0 to 255")
        else:
            given.add(name)
            _set(options, name, value)
    if not given:
        _refuse("Invalid params", "Execute sample failed", help=True)
        raise UsageError
    if options.dump and options.profiler:
        _refuse("dump and profiler can not both be true")
        raise UsageError
    if len(options.dynamic) > 1:
        _refuse("dymBatch dymDims dymHW dymShape cannot be set at the same time")
        raise UsageError
    return options


def _set(options: Options, name: str, value: str) -> None:
    if name == "model":
        options.model = value
    elif name == "input":
        elements = value.split(",")
        options.inputs = [element.strip(" \r\n\t") for element in (elements if elements[-1] else elements[:-1])]
    elif name == "output":
        options.output = value
    elif name == "outfmt":
        options.text = value == "TXT"  # exactly; anything else means BIN
    elif name == "dump":
        options.dump = value == "true"
    elif name == "profiler":
        options.profiler = value == "true"
    elif name.startswith("dym"):
        if name == "dymBatch":
            _in_range(_number(value), 0, 2048, "dymBatch must in 1 to 2048")
        options.dynamic[name] = value


def _number(text: str) -> int:
    """The digits that it begins with; 0 if there is none, so `-5` is 0."""
    match = re.match(r"[0-9]+", text)
    return int(match[0]) if match else 0


def _in_range(number: int, low: int, high: int, text: str) -> int:
    if not low <= number <= high:
        _refuse(text)
        raise StopError
    return number


def _refuse(*lines: str, help: bool = False) -> None:
    for line in lines:
        print(f"[ERROR] {line}")
    if help:
        print(USAGE)


def prepare_acl_json(options: Options) -> None:
    """--dump and --profiler write ./acl.json over what is there, and make a folder in the output folder."""
    if not options.removes_acl_json:
        return
    what = "profiler" if options.profiler else "dump"
    with open("acl.json", "w", encoding="utf-8") as file:
        json.dump({what: {"output": f"{options.output}/{what}"}}, file)
    for folder in (options.output, f"{options.output}/{what}"):
        if not os.path.isdir(folder):
            with contextlib.suppress(OSError):  # the tool does not look
                os.mkdir(folder, 0o775)


def check_acl_json() -> bool:
    """./acl.json is read if it is there; a broken one stops the start."""
    try:
        with open("acl.json", encoding="utf-8") as file:
            json.load(file)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return True
