"""Every run of msame whose exit code misleads, as observed on the unmodified tool, and what we must make of each.

`spoil` changes a working directory that holds x.om (two int32 inputs [4, 256], float32 logits [4, 3]), and three
batches in a/ and b/; the outputs go to out/.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Type

from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError

BATCH, SIZE, BATCHES = 4, 48, 3
SUCCESS = "Execute sample success"
DIRECTORIES = "--model x.om --input a/,b/ --output out"
FILES = "--model x.om --input a/input_0.bin,b/input_0.bin --output out"


def nothing(work: Path) -> None:
    """The inputs as they are."""


def gone(*names: str) -> Callable[[Path], None]:
    def spoil(work: Path) -> None:
        for name in names:
            (work / name).unlink()

    return spoil


def holds(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(work: Path) -> None:
        (work / name).write_bytes(content)

    return spoil


def only_the_first(work: Path) -> None:
    gone("a/input_1.bin", "a/input_2.bin")(work)
    holds("a/input_0.bin", b"short")(work)


def empty_first_directory(work: Path) -> None:
    (work / "e").mkdir()


def model_is_a_folder(work: Path) -> None:
    (work / "d.om").mkdir()


@dataclass(frozen=True)
class Case:
    """One observed run: its exit code, what stdout says, and which error (naming what) we make of it."""

    arguments: str
    says: str
    error: Type[DebertaError]
    names: str
    spoil: Callable[[Path], None] = nothing


SHORT = b"\1" * 3000  # more than 64 bytes less than an input's 4096
PERMISSION = "[ERROR] current user does not have permission"
FAILED = "[ERROR] Sample process failed"
# Exit code 0, nothing was done, no success line.
NOTHING_DONE = {
    "first directory missing": Case(DIRECTORIES.replace("a/", "no/"), "[ERROR] no/ doesn't exist", MissingError, "no/"),
    "second directory missing, first named": Case(
        DIRECTORIES.replace("b/", "no/"), "[ERROR] a/ doesn't exist", MissingError, "one of the input directories"
    ),
    "a model that is no .om": Case(
        "--model x.onnx --input a/,b/ --output out",
        "[ERROR] input model file type is not .om , please check your model type!",
        ConfigError,
        "--model",
    ),
    "loop 101": Case(f"{FILES} --loop 101", "[ERROR] loop must in 1 to 100", ConfigError, "--loop"),
    "loop 0": Case(f"{FILES} --loop 0", "[ERROR] loop must in 1 to 100", ConfigError, "--loop"),
    "loop -5": Case(f"{FILES} --loop -5", "[ERROR] loop must in 1 to 100", ConfigError, "--loop"),
    "loop abc": Case(f"{FILES} --loop abc", "[ERROR] loop must in 1 to 100", ConfigError, "--loop"),
    "loop 101 in directory mode": Case(f"{DIRECTORIES} --loop 101", "[ERROR] loop must in", ConfigError, "--loop"),
    "device 256": Case(f"{FILES} --device 256", "[ERROR] device id must in 0 to 255", ConfigError, "--device"),
    "directory and file": Case(
        "--model x.om --input a/,x.om --output out", "must be folder or file ending in '.bin'", ConfigError, "--input"
    ),
    "output two levels deep": Case(DIRECTORIES + "/one/two", PERMISSION, ConfigError, "output folder's parent"),
    "output is a file": Case(
        DIRECTORIES, PERMISSION, ConfigError, "output folder", holds("out", b"a file of that name")
    ),
    "unknown option": Case(f"{FILES} --loops 2", "[ERROR] unknown paramenter", ConfigError, "options"),
    "value missing": Case(f"{FILES} --loop", "[ERROR] unknown paramenter", ConfigError, "options"),
    "help": Case("--help", "Usage:", StageError, "without its success line"),
}
# Exit code 0 and the success line, but incomplete or wrong.
INCOMPLETE = {
    "empty first directory": Case(
        "--model x.om --input e,b/ --output out",
        "[ERROR] No file in the directory[e]Inference average time : -nan ms",
        DataError,
        "No file in the directory",
        empty_first_directory,
    ),
    "wrong size at index 2": Case(
        DIRECTORIES,
        "[ERROR] model execute failed",
        DataError,
        "some inputs were not run",
        holds("a/input_2.bin", SHORT),
    ),
    "a single file of a wrong size": Case(
        DIRECTORIES, "Inference average time : -nan ms", DataError, "some inputs were not run", only_the_first
    ),
    "more files in the second directory": Case(
        DIRECTORIES, SUCCESS, DataError, "2 inferences were timed, 3 were asked for", gone("a/input_2.bin")
    ),
    "one directory for two inputs": Case(
        "--model x.om --input a/ --output out", "[ERROR] model execute failed", DataError, "some inputs were not run"
    ),
}
# Exit code 1.
EXIT_1 = {
    "no model": Case(
        "--model nope.om --input a/,b/ --output out",
        "[ERROR] load model from file failed, model file is nope.om",
        StageError,
        "nope.om",
    ),
    "garbage as a model": Case(DIRECTORIES, "load model from file", StageError, "x.om", holds("x.om", b"garbage")),
    "an empty model": Case(DIRECTORIES, "load model from file failed", StageError, "x.om", holds("x.om", b"")),
    "half a model": Case(DIRECTORIES, FAILED, StageError, "x.om", lambda work: os.truncate(work / "x.om", 5000)),
    "an unreadable model": Case(
        "--model d.om --input a/,b/ --output out", FAILED, StageError, "d.om", model_is_a_folder
    ),
    "file mode, wrong size": Case(
        FILES, "Inference time: ", StageError, "model execute failed", holds("a/input_0.bin", SHORT)
    ),
    "wrong size at index 0 of several": Case(
        DIRECTORIES, FAILED, StageError, "model execute failed", holds("a/input_0.bin", SHORT)
    ),
    "wrong size at index 1": Case(
        DIRECTORIES, FAILED, StageError, "model execute failed", holds("b/input_1.bin", SHORT)
    ),
    "a file missing in the second directory": Case(
        DIRECTORIES, "[ERROR] open file b//input_1.bin failed", MissingError, "input_1.bin", gone("b/input_1.bin")
    ),
    "an empty .bin": Case(
        DIRECTORIES, "[ERROR] binfile is empty", DataError, "a//input_0.bin", holds("a/input_0.bin", b"")
    ),
    "three directories": Case("--model x.om --input a/,b/,b/ --output out", FAILED, StageError, "model execute failed"),
    "no arguments": Case("", "[ERROR] Invalid params", ConfigError, "options"),
    "dump with profiler": Case(f"{FILES} --dump true --profiler true", "can not both be true", ConfigError, "options"),
    "a broken acl.json": Case(FILES, "[ERROR] acl init failed", StageError, "acl.json", holds("acl.json", b"{")),
    "dymBatch on a static model": Case(
        f"{FILES} --dymBatch 2", "[ERROR] check dynamic batch size failed", ConfigError, "--dym"
    ),
    "dymDims on a static model": Case(
        f"{FILES} --dymDims input_ids:4,256;input_mask:4,256".replace(";", "\\;"), FAILED, ConfigError, "--dym"
    ),
    "a device that is not there": Case(
        f"{FILES} --device 9", "[ERROR] acl open device 9 failed", StageError, "npu-smi info"
    ),
}
