"""Length buckets: the sequence lengths at which rows run, chosen by how many rows have how many tokens.

A row runs at the smallest length that holds it; the batches of each length are filled up with all-zero rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional, Union

import msgspec

from deberta.core import schema
from deberta.core.contract import SEQUENCE_LENGTH, batch_count, whole
from deberta.core.errors import ConfigError, DataError

AUTO = "auto"
SHORTEST = 4  # [CLS], [SEP], [SEP] and one token
# What auto weighs, in tokens (one token of one row in a batch): a batch costs its tokens and this, and a length costs
# as much as its first batch takes longer. From the cpu backend, at full size and batch size 8 (docs/buckets.md).
BATCH_TOKENS = 20
LENGTH_TOKENS = 500
# Backend -> what auto's lengths are multiples of, and how many there are at most. On ascend each length is a model of
# its own, and the chip's matrix unit works on 16 x 16 tiles; on cpu one model has all lengths.
AUTO_STEP = {"ascend": 16, "cpu": 8}
AUTO_MOST = {"ascend": 8, "cpu": 16}

Histogram = Mapping[int, int]  # number of tokens, specials included -> rows
Lengths = tuple[int, ...]  # increasing sequence lengths
Choice = Union[Lengths, str]  # what --buckets says: () for nothing, lengths or auto
PADDED: Lengths = (SEQUENCE_LENGTH,)  # the guide's padded run


def parse(value: Optional[str]) -> Choice:
    """`--buckets`: increasing lengths, "auto", or () if not given. Raises ConfigError."""
    if value is None:
        return ()
    text = value.strip()
    if text == AUTO:
        return AUTO
    example = f"Give increasing lengths like 32,64,96,128,{SEQUENCE_LENGTH}, or auto"
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not re.fullmatch("[0-9]{1,9}", part)]
    if wrong:
        raise ConfigError(f"--buckets {value!r}: {wrong[0]!r} is not a whole number. {example}")
    lengths = tuple(map(int, parts))
    outside = [length for length in lengths if not SHORTEST <= length <= SEQUENCE_LENGTH]
    if outside:
        raise ConfigError(f"--buckets {value!r}: {outside[0]} is not within {SHORTEST} to {SEQUENCE_LENGTH}. {example}")
    if list(lengths) != sorted(set(lengths)):
        raise ConfigError(f"--buckets {value!r}: the lengths do not increase. {example}")
    return lengths


def lengths(value: str) -> Lengths:
    """`--buckets` of a stage, which takes the lengths themselves. Raises ConfigError."""
    parsed = parse(value)
    if isinstance(parsed, str) or not parsed:
        raise ConfigError(f"--lengths {value!r}: a stage takes the lengths themselves")
    return parsed


def folders(lengths: Sequence[int], listed: str, option: str) -> dict[int, Path]:
    """Length -> folder, of a list with commas between that has one folder for each length. Raises ConfigError.

    The only folder of one length may have commas in its name.
    """
    paths = listed.split(",") if len(lengths) > 1 else [listed]
    if len(paths) != len(lengths) or not all(paths):
        raise ConfigError(f"{option} names {len(paths)} folders, and --lengths has {len(lengths)} lengths")
    return dict(zip(lengths, map(Path, paths)))


def text(lengths: Sequence[int]) -> str:
    """The lengths as `parse` takes them."""
    return ",".join(map(str, lengths))


class _TokenCounts(msgspec.Struct):
    tokens: dict[schema.Number, schema.Positive]


def read_histogram(path: Path) -> Histogram:
    """The tokens that token_counts counted. Raises DataError."""
    try:
        tokens = schema.read_json(path, _TokenCounts).tokens
    except ValueError:
        tokens = {}
    histogram = {whole(length): rows for length, rows in tokens.items()}
    if not histogram or max(histogram) > SEQUENCE_LENGTH:
        raise DataError(f"{path} does not hold counts of tokens. Remove it and run the same command again")
    return histogram


def rows_by_length(histogram: Histogram, lengths: Sequence[int], what: str) -> dict[int, int]:
    """Rows of each length, of those that any row needs. Raises ConfigError where the last is too short for a row."""
    longest = max(histogram)
    if longest > lengths[-1]:
        raise ConfigError(
            f"--buckets {text(lengths)}: the longest row of {what} has {longest} tokens, and rows are not cut. "
            f"Add a last length of {longest} or more: {SEQUENCE_LENGTH} always fits"
        )
    counted = dict.fromkeys(lengths, 0)
    for tokens, rows in histogram.items():
        counted[next(length for length in lengths if length >= tokens)] += rows
    return {length: rows for length, rows in counted.items() if rows}


def cost(counted: Mapping[int, int], batch_size: int) -> int:
    """What a run costs, in tokens: all batches' tokens, padding included, and the constants for batches and lengths."""
    batches = {length: batch_count(rows, batch_size) for length, rows in counted.items()}
    running = sum(count * (batch_size * length + BATCH_TOKENS) for length, count in batches.items())
    return running + LENGTH_TOKENS * len(counted)


def choose(histogram: Histogram, batch_size: int, backend: str) -> Lengths:
    """The cheapest lengths for these rows by `cost`; of equally cheap ones those with the fewest lengths.

    Dynamic programming: best[j] are the cheapest lengths for the rows up to the j-th candidate, with one length more
    in every round.
    """
    step, most = AUTO_STEP[backend], AUTO_MOST[backend]
    candidates = [0, *(length for length in range(step, SEQUENCE_LENGTH + 1, step) if length >= SHORTEST)]
    last = next(j for j, length in enumerate(candidates) if length >= max(histogram))
    rows_up_to = [sum(rows for tokens, rows in histogram.items() if tokens <= length) for length in candidates]
    best: list[tuple[float, Lengths]] = [(0.0 if j == 0 else math.inf, ()) for j in range(last + 1)]
    for _ in range(most):
        best = [_extended(best, j, candidates, rows_up_to, batch_size) for j in range(last + 1)]
    return best[-1][1]


def _extended(
    best: Sequence[tuple[float, Lengths]], j: int, candidates: Sequence[int], rows_up_to: Sequence[int], batch_size: int
) -> tuple[float, Lengths]:
    """The cheapest of best[j] and of best[i], i < j, with candidate j behind it."""
    options = [best[j]]
    for i in range(j):
        rows = rows_up_to[j] - rows_up_to[i]
        more = cost({candidates[j]: rows}, batch_size) if rows else 0
        options.append((best[i][0] + more, (*best[i][1], candidates[j]) if rows else best[i][1]))
    return min(options, key=lambda entry: (entry[0], len(entry[1]), entry[1]))
