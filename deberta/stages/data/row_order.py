"""order.json beside a length's bins: which tsv row each row of each file is, so that outputs find their way back.

    {"rows": 9815, "batch_size": 8, "sequence_length": 64, "buckets": [32, 64, 256], "order": [[3, 5, ...], ...]}

`rows` are those of the tsv (of the first ones, in a limited run), `buckets` the lengths that share them among each
other. order[i][j] is the tsv row (from 0, the header not counted) of row j of input_<i>.bin; rows of the last file
that have no entry are padding.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from deberta.core import buckets, files, schema
from deberta.core.errors import DataError

NAME = "order.json"
AGAIN = "Run: invoke preprocess --force"

Filled = msgspec.Meta(min_length=1)


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rows: int
    batch_size: int
    sequence_length: int
    buckets: tuple[int, ...]
    order: Annotated[tuple[Annotated[tuple[int, ...], Filled], ...], Filled]

    @property
    def flat(self) -> list[int]:
        """The tsv rows in the order of files and rows, padding rows left out: only the last file has any."""
        return [row for batch in self.order for row in batch]


def is_needed(lengths: Sequence[int]) -> bool:
    """Whether bins of these lengths have an order.json: all but the padded run's, which are the guide's files."""
    return tuple(lengths) != buckets.PADDED


def write(folder: Path, order: Order) -> None:
    files.write_text(folder / NAME, json.dumps(msgspec.to_builtins(order)) + "\n")


def read(folder: Path) -> Order:
    """Raises MissingError, and DataError for a file that is not one of these."""
    return schema.read(folder / NAME, Order, AGAIN)


def read_all(folders: Mapping[int, Path], rows: int, batch_size: int) -> dict[int, Order]:
    """The orders of a run's lengths, which together have each of the `rows` tsv rows once.

    Raises MissingError, and DataError for a folder of another run: other rows, batch size or lengths; and for rows that
    are twice there or not at all.
    """
    orders = {length: read(folder) for length, folder in folders.items()}
    for length, order in orders.items():
        path = folders[length] / NAME
        expected = {"rows": rows, "batch_size": batch_size, "sequence_length": length, "buckets": tuple(folders)}
        present = {name: getattr(order, name) for name in expected}
        wrong = [f"{name} {present[name]}, not {value}" for name, value in expected.items() if present[name] != value]
        if wrong:
            raise DataError(f"{path} is of another run: {'; '.join(wrong)}. {AGAIN}")
        sizes = [len(batch) for batch in order.order]
        if any(size != batch_size for size in sizes[:-1]) or sizes[-1] > batch_size:
            raise DataError(f"{path} has files that are not of {batch_size} rows. {AGAIN}")
    placed = [row for order in orders.values() for row in order.flat]
    where = f"{NAME} of {', '.join(map(str, folders.values()))}"
    if outside := sorted({row for row in placed if not 0 <= row < rows}):
        raise DataError(f"{where}: there is no row {outside[0]} in a tsv of {rows} rows. {AGAIN}")
    if repeated := sorted(row for row, times in Counter(placed).items() if times > 1):
        raise DataError(f"{where}: row {repeated[0]} is there more than once ({len(repeated)} such rows). {AGAIN}")
    if lacking := sorted(set(range(rows)) - set(placed)):
        raise DataError(f"{where}: row {lacking[0]} is nowhere ({len(lacking)} of {rows} are not there). {AGAIN}")
    return orders
