"""bench: the rows that the engines run, and how each engine puts them into batches.

Only a row's number of tokens decides how long it takes, so rows are random ids of real lengths.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deberta.core import buckets, mnli
from deberta.core.contract import SEQUENCE_LENGTH
from deberta.core.errors import DataError, MissingError

SHORTEST = 4  # [CLS], [SEP], [SEP] and one token

Array = npt.NDArray[np.int32]


class RowBatch(NamedTuple):
    """Rows of the sample, by index, cut or filled to `length` tokens."""

    rows: tuple[int, ...]
    length: int


def read_lengths(path: Path) -> list[int]:
    """Tokens per row, specials included: whole numbers between blanks or line ends. Raises MissingError, DataError."""
    if not path.is_file():
        raise MissingError(f"{path} is missing. Give --lengths a file with the number of tokens of each row")
    words = path.read_text(encoding="utf-8", errors="replace").split()
    refused = [word for word in words if not re.fullmatch(r"\d{1,5}", word, re.ASCII) or int(word) < SHORTEST]
    if refused or not words:
        content = repr(refused[0][:20]) if refused else "nothing"
        raise DataError(
            f"{path} holds {content}; --lengths takes whole numbers from {SHORTEST}, the tokens of each row"
        )
    return [min(int(word), SEQUENCE_LENGTH) for word in words]


def lengths_of(data: Path, tokenizer: Path) -> list[int]:
    """Tokens per row of a dev tsv, cut to 256 as the guide does. Raises MissingError and DataError."""
    from deberta.stages.model import tokenizer as tokenizers_of_guide

    loaded = tokenizers_of_guide.load(tokenizer, SEQUENCE_LENGTH)
    pairs = [(row.premise, row.hypothesis) for row in mnli.rows(data)]
    return [len(encoding.ids) for encoding in loaded.encode_batch(pairs)]


def sample(lengths: Sequence[int], rows: int) -> list[int]:
    """`rows` lengths at evenly spaced quantiles, shuffled: as close to the whole as so few rows can be."""
    ordered = np.sort(np.asarray(lengths))
    picked = ordered[((np.arange(rows) + 0.5) / rows * len(ordered)).astype(int)]
    return [int(length) for length in np.random.default_rng(0).permutation(picked)]


def make(lengths: Sequence[int], vocabulary: int) -> tuple[Array, Array]:
    """Random ids and masks, int32 [rows, 256], of these numbers of tokens; the same for the same arguments."""
    mask = (np.arange(SEQUENCE_LENGTH) < np.asarray(lengths)[:, None]).astype(np.int32)
    return np.random.default_rng(1).integers(1, vocabulary, mask.shape, dtype=np.int32) * mask, mask


def as_they_come(lengths: Sequence[int], batch_size: int) -> list[RowBatch]:
    """Every row filled to 256, in order: the guide's way."""
    return [RowBatch(rows, SEQUENCE_LENGTH) for rows in _chunks(range(len(lengths)), batch_size)]


def choose(lengths: Sequence[int], batch_size: int) -> tuple[int, ...]:
    """The lengths that `--buckets auto` runs rows of these numbers of tokens at on the cpu backend."""
    return buckets.choose(Counter(lengths), batch_size, "cpu")


def by_length(lengths: Sequence[int], batch_size: int) -> list[RowBatch]:
    """Rows sorted by length, each batch filled to its longest row: as little padding as there can be."""
    ordered = sorted(range(len(lengths)), key=lambda row: lengths[row])
    return [RowBatch(rows, lengths[rows[-1]]) for rows in _chunks(ordered, batch_size)]


def by_bucket(lengths: Sequence[int], batch_size: int, bucket_lengths: Sequence[int]) -> list[RowBatch]:
    """Rows sorted by length, each batch filled to the smallest of `bucket_lengths` that holds its longest row.

    A run of all rows has a batch of each length that is not full. So that a sample does not have as many of them, a
    batch here may hold rows that belong to two lengths.
    """
    fitted = [next(bucket for bucket in bucket_lengths if bucket >= length) for length in lengths]
    return [RowBatch(batch.rows, fitted[batch.rows[-1]]) for batch in by_length(lengths, batch_size)]


def fill(values: Array, batch: RowBatch, batch_size: int) -> Array:
    """[rows, 256] -> the batch's, [batch_size, length]; a last batch that is not full gets all-zero rows."""
    picked = values[list(batch.rows), : batch.length]
    missing = np.zeros((batch_size - len(picked), batch.length), values.dtype)
    return np.ascontiguousarray(np.concatenate([picked, missing]))


def _chunks(rows: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(rows[first : first + size]) for first in range(0, len(rows), size)]
