"""Rows read back from the bins that preprocess wrote: token ids and masks, checked against the model to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deberta.core import contract
from deberta.core.contract import INPUTS
from deberta.core.errors import DataError, MissingError
from deberta.stages.arguments import Argument, whole

Ids = npt.NDArray[np.int32]
SAMPLE_ROWS = Argument("rows to run, spread evenly over the bins; 0: all", whole(0), default=256)
AGAIN = "Run: invoke preprocess --force"


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of the bins: `numbers` counts them from 0; ids and mask are int32 [rows, length]."""

    numbers: list[int]
    ids: Ids
    mask: Ids

    def __len__(self) -> int:
        return len(self.numbers)

    def split(self, size: int) -> list[Rows]:
        """The same rows, `size` at a time."""
        starts = range(0, len(self), size)
        return [Rows(self.numbers[i : i + size], self.ids[i : i + size], self.mask[i : i + size]) for i in starts]


@dataclass(frozen=True)
class Sample:
    """Rows drawn from a folder of bins; how many padding rows their bins hold, and how many bins there are."""

    rows: Rows
    padding_rows: int
    batches: int


def read_sample(bins: Path, batch_size: int, length: int, vocabulary: int, least: int) -> Sample:
    """At least `least` real rows (0: all), from bins spread evenly over the folder. Raises MissingError, DataError."""
    names = {}
    for name in INPUTS:
        if not (bins / name).is_dir():
            raise MissingError(f"{bins / name} is missing. Run: invoke preprocess")
        names[name] = {entry.name for entry in (bins / name).iterdir() if not entry.name.startswith(".")}
    count = len(names[INPUTS[0]])
    expected = {contract.input_file(i) for i in range(count)}
    if not count or any(present != expected for present in names.values()):
        raise DataError(f"{bins} must hold input_0.bin and so on, the same in {' and '.join(INPUTS)}. {AGAIN}")
    batches = min(contract.batch_count(least, batch_size) if least else count, count)
    drawn = [i * count // batches for i in range(batches)]
    ids, mask = (
        np.concatenate(
            [read(bins / name / contract.input_file(i), name, (batch_size, length), vocabulary) for i in drawn]
        )
        for name in INPUTS
    )
    real = np.flatnonzero(mask.any(axis=1))
    if not len(real):
        raise DataError(f"{bins} holds no row with a token in it. {AGAIN}")
    numbers = np.concatenate([np.arange(i * batch_size, (i + 1) * batch_size) for i in drawn])
    return Sample(Rows(numbers[real].tolist(), ids[real], mask[real]), len(ids) - len(real), count)


def read(path: Path, name: str, shape: tuple[int, int], vocabulary: int) -> Ids:
    """The bin of input `name`, int32 [batch, length]. Raises DataError for another size, and for values that cannot be
    this input: msame, whose inputs are told apart by position alone, would run swapped directories without an error."""
    values = np.fromfile(path, "<i4")
    size, expected = path.stat().st_size, contract.input_bytes(*shape)
    if size != expected:
        raise DataError(f"{path} has {size} bytes, not {expected}: it is of another batch size or length. {AGAIN}")
    limit = vocabulary if name == INPUTS[0] else 2
    if values.min() < 0 or values.max() >= limit:
        raise DataError(
            f"{path} holds values from {values.min()} to {values.max()}; {name} goes from 0 to {limit - 1}. "
            f"Give the directories in the order {', '.join(INPUTS)}, or run: invoke preprocess --force"
        )
    return values.reshape(shape)
