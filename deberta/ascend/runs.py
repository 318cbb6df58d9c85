"""What runs of msame and ais_bench are judged by in the same way: inferences, output files, room on the disk."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Optional

from deberta.ascend.causes import lines_of
from deberta.core import contract
from deberta.core.errors import DataError, DebertaError, StageError, many, some

_NO_SPACE = re.compile("No space left|disk is full")


def check_complete(
    times_ms: Sequence[float], expected_times: int, question: str, folder: Path, expected: Mapping[str, int]
) -> None:
    """Raise DataError unless all inferences were timed and the folder holds the expected files (name -> bytes) alone.

    `question` hints at the reason why inferences are missing.
    """
    if len(times_ms) != expected_times:
        raise DataError(f"{len(times_ms)} inferences were timed, {expected_times} were asked for. {question}")
    if not folder.is_dir():
        raise DataError(f"the run's output folder {folder} is missing")
    check_files(folder.iterdir(), expected, "outputs", folder)


def check_files(paths: Iterable[Path], expected: Mapping[str, int], kind: str, folder: Path, advice: str = "") -> None:
    """Raise DataError unless the paths are exactly the expected files (name -> bytes)."""
    sizes = {path.name: path.stat().st_size if path.is_file() else -1 for path in paths}
    for problem, names in (
        ("missing from", sorted(set(expected) - set(sizes))),
        ("not expected in", sorted(set(sizes) - set(expected))),
    ):
        if names:
            total = f"{len(names)} {kind} of {len(expected)}"
            raise DataError(f"{total} are {problem} {folder}: {some(names, 3)}{advice}")
    wrong = [f"{name} ({sizes[name]} bytes, not {size})" for name, size in expected.items() if sizes[name] != size]
    if wrong:
        raise DataError(f"{len(wrong)} {kind} in {folder} have a wrong size: {some(sorted(wrong), 3)}{advice}")


def cause(
    error: DebertaError, printed: str, folder: Path, expected: Mapping[str, int], bin_bytes: int
) -> Optional[DebertaError]:
    """What led to a run's error, if its files or lines show it: a full disk, an .om of another batch size.

    `bin_bytes`: of an input file.
    """
    sizes = {name: (folder / name).stat().st_size for name in expected if (folder / name).is_file()}
    lacking = [size for name, size in expected.items() if sizes.get(name, 0) < size]
    if lacking and (isinstance(error, DataError) or _NO_SPACE.search(str(error))):
        full = _full_disk(folder, lacking)
        if full is not None:
            return full
    batch_size = max(expected.values()) // contract.output_bytes(1)
    compiled_for = _batch_size(printed, sizes.values() if len(sizes) == len(expected) else (), bin_bytes, batch_size)
    if compiled_for in (None, batch_size):
        return None
    return DataError(
        f"the .om is for batch size {compiled_for}, not {batch_size} ({error}). Run: invoke build-om --force, which "
        "makes another"
    )


def _full_disk(folder: Path, lacking: Sequence[int]) -> Optional[DebertaError]:
    """The error if the disk of `folder` has no room for files of these sizes; None if it has.

    msame ignores writes that fail, and prints success; ais_bench and the cpu backend do not say how much they need.
    """
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    disk = os.statvfs(place)
    block, free = disk.f_frsize, disk.f_bavail * disk.f_frsize
    needed = sum(-(-size // block) * block for size in lacking)
    if free >= needed and disk.f_favail >= (len(lacking) if disk.f_files else 0):
        try:
            with tempfile.TemporaryFile(dir=place) as file:  # a quota shows itself only then
                file.write(bytes(min(needed, 2**20)))
                file.flush()
            return None
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                return None
    return StageError(
        f"the disk is full: {folder} has {free} bytes free, and {many(len(lacking), 'output')} need {needed}. "
        "Free some space, then run the same command again"
    )


def _batch_size(printed: str, output_sizes: Iterable[int], bin_bytes: int, batch_size: int) -> Optional[int]:
    """The batch size that a model must have been compiled for, by its outputs or by the input sizes in its messages.

    A runtime that checks sizes as GE 1.8.0 does runs an .om of a smaller batch size, and leaves outputs of that one.
    """
    of_outputs = {divmod(size, contract.output_bytes(1)) for size in output_sizes}
    if len(of_outputs) == 1:
        (rows, rest), *_ = of_outputs
        if rows and not rest and rows != batch_size:
            return rows
    of_a_row = bin_bytes // batch_size
    for line in lines_of(printed):
        if "size" not in line and "bytes" not in line:
            continue
        numbers = [int(number) for number in re.findall(r"\b[0-9]{1,18}\b", line)]
        fitting = {number // of_a_row for number in numbers if number and number % of_a_row == 0}
        if bin_bytes in numbers and len(fitting) == 2:
            return (fitting - {batch_size}).pop()
    return None
