"""order.json beside a length's bins: which tsv row each row of each file is, so that outputs find their way back.

    {"rows": 9815, "batch_size": 8, "sequence_length": 64, "buckets": [32, 64, 256], "order": [[3, 5, ...], ...]}

`rows` are those of the tsv (of the first ones, in a limited run), `buckets` the lengths that share them among each
other. order[i][j] is the tsv row (from 0, the header not counted) of row j of input_<i>.bin; what a last list lacks
are padding rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deberta.core import files
from deberta.core.errors import DataError, MissingError

NAME = "order.json"
AGAIN = "Run: invoke preprocess --force"
_NUMBERS = ("rows", "batch_size", "sequence_length")


@dataclass(frozen=True)
class Order:
    rows: int
    batch_size: int
    sequence_length: int
    buckets: tuple[int, ...]
    order: tuple[tuple[int, ...], ...]

    @property
    def flat(self) -> list[int]:
        """The tsv rows in the order of files and rows, padding rows left out: only the last file has any."""
        return [row for batch in self.order for row in batch]


def write(folder: Path, order: Order) -> None:
    files.write_text(folder / NAME, json.dumps(asdict(order)) + "\n")


def read(folder: Path) -> Order:
    """Raises MissingError, and DataError for a file that is not one of these."""
    path = folder / NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Run: invoke preprocess") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). {AGAIN}") from None
    if not _is_order(values):
        raise DataError(f"{path} does not say which row is where. {AGAIN}")
    placed = tuple(tuple(batch) for batch in values["order"])
    return Order(**{name: values[name] for name in _NUMBERS}, buckets=tuple(values["buckets"]), order=placed)


def _is_order(values: Any) -> bool:
    def whole(found: Any) -> bool:
        return isinstance(found, list) and all(type(value) is int for value in found)

    return (
        isinstance(values, dict)
        and set(values) == {*_NUMBERS, "buckets", "order"}
        and all(type(values[name]) is int for name in _NUMBERS)
        and whole(values["buckets"])
        and isinstance(values["order"], list)
        and values["order"] != []
        and all(whole(batch) and batch for batch in values["order"])
    )


def read_all(folders: Mapping[int, Path], rows: int, batch_size: int) -> dict[int, Order]:
    """The orders of a run's lengths, which together have each of the `rows` tsv rows once.

    Raises MissingError, and DataError for a folder of another run: other rows, batch size or lengths; and for rows that
    are twice there or not at all.
    """
    orders = {length: read(folder) for length, folder in folders.items()}
    for length, found in orders.items():
        wanted = Order(rows, batch_size, length, tuple(folders), found.order)
        names = [field.name for field in fields(Order) if getattr(found, field.name) != getattr(wanted, field.name)]
        if names:
            wrong = [f"{name} {getattr(found, name)}, not {getattr(wanted, name)}" for name in names]
            raise DataError(f"{folders[length] / NAME} is of another run: {'; '.join(wrong)}. {AGAIN}")
        sizes = [len(batch) for batch in found.order]
        if any(size != batch_size for size in sizes[:-1]) or not 0 < sizes[-1] <= batch_size:
            raise DataError(f"{folders[length] / NAME} has files that are not of {batch_size} rows. {AGAIN}")
    _check_rows([row for found in orders.values() for row in found.flat], rows, list(folders.values()))
    return orders


def _check_rows(placed: Sequence[int], rows: int, folders: Sequence[Path]) -> None:
    where = f"{NAME} of {', '.join(map(str, folders))}"
    if outside := sorted({row for row in placed if not 0 <= row < rows}):
        raise DataError(f"{where}: there is no row {outside[0]} in a tsv of {rows} rows. {AGAIN}")
    if len(set(placed)) < len(placed):
        twice = sorted(row for row, times in Counter(placed).items() if times > 1)
        raise DataError(f"{where}: row {twice[0]} is there more than once ({len(twice)} such rows). {AGAIN}")
    if lacking := sorted(set(range(rows)) - set(placed)):
        raise DataError(f"{where}: row {lacking[0]} is nowhere ({len(lacking)} of {rows} are not there). {AGAIN}")
