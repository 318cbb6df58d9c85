"""Logits of a run: read from the files that hold them, and compared with another run's.

They are float32 [rows, 3], columns as contract.LABELS, and rows are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deberta.ascend.runs import check_files
from deberta.core import contract, files
from deberta.core.errors import DataError, MissingError

Logits = npt.NDArray[np.float32]
RowNumbers = npt.NDArray[np.intp]
PerRow = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LogitsDifference:
    """How two runs of the same rows differ. A row is finite if it is in both runs.

    `max_abs` and `mean_abs` are |difference| of a logit over the finite rows, None without any. `labels` and `margins`
    have an array of each run: a row's margin is its largest logit minus its second largest.
    """

    finite: npt.NDArray[np.bool_]  # [rows]
    row_max: PerRow  # [rows], the largest |difference| in each; infinite where the row is not finite
    max_abs: float | None
    mean_abs: float | None
    labels: tuple[RowNumbers, RowNumbers]  # [rows] each, index of the predicted label
    changed: RowNumbers  # the finite rows whose label differs, in order
    margins: tuple[PerRow, PerRow]  # [rows] each

    def within(self, tolerance: float) -> bool:
        """Whether all rows are finite and no logit differs by more."""
        return not (self.row_max > tolerance).any()

    def changes(self, order: PerRow) -> Iterator[tuple[int, list[str], list[float]]]:
        """Each changed row with its label and its margin in both runs; those of the largest `order`, [rows], first."""
        for row in sorted(self.changed.tolist(), key=lambda row: (-order[row], row)):
            labels = [contract.LABELS[labels[row]] for labels in self.labels]
            yield row, labels, [float(margins[row]) for margins in self.margins]


def compare_logits(first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]) -> LogitsDifference:
    """Compare two runs' logits, [rows, 3] each, in float64."""
    finite = finite_rows(first) & finite_rows(second)
    difference = np.abs(first[finite].astype(np.float64) - second[finite])
    row_max = np.full(len(first), np.inf)
    row_max[finite] = difference.max(axis=1)
    labels = predicted(first), predicted(second)
    return LogitsDifference(
        finite=finite,
        row_max=row_max,
        max_abs=float(difference.max()) if difference.size else None,
        mean_abs=float(difference.mean()) if difference.size else None,
        labels=labels,
        changed=np.flatnonzero(finite & (labels[0] != labels[1])),
        margins=(margins(first), margins(second)),
    )


def predicted(logits: npt.NDArray[np.floating]) -> RowNumbers:
    """Each row's label, as an index into contract.LABELS; the first of equal logits, as the guide has it."""
    return np.asarray(np.argmax(logits, axis=1))


def margins(logits: npt.NDArray[np.floating]) -> PerRow:
    """Each row's largest logit minus its second largest: by how much it prefers its label."""
    ordered = np.sort(logits.astype(np.float64), axis=1)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        return np.asarray(ordered[:, -1] - ordered[:, -2])


def finite_rows(logits: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Whether each row is without NaN and infinity, bool [rows]."""
    return np.asarray(np.isfinite(logits).all(axis=1))


def read_outputs(outputs: Path, batches: int, batch_size: int) -> Logits:
    """The logits of a folder of output files by index, float32 [batches * batch_size, 3], padding rows included.

    Exactly the files of `batches` batches must be there, each with its exact size. Raises MissingError, DataError.
    """
    if not outputs.is_dir():
        raise MissingError(f"{outputs} is missing. Run: invoke infer")
    expected = {contract.output_file(index): contract.output_bytes(batch_size) for index in range(batches)}
    advice = f". Each is float32 [{batch_size}, {len(contract.LABELS)}]. Run: invoke infer --force"
    check_files(outputs.iterdir(), expected, "outputs", outputs, advice)
    content = b"".join(files.read_bytes(outputs / name) for name in expected)
    return np.frombuffer(bytearray(content), "<f4").reshape(-1, len(contract.LABELS))


def read_array(path: Path, again: str, rows: int | None = None) -> Logits:
    """The logits in a .npy file. Raises MissingError, and DataError that ends with `again`: how to make the file.

    `rows`: how many it must hold; None: any number.
    """
    if not path.is_file():
        raise MissingError(f"{path} is missing. Run: invoke acceptance")
    try:
        content: Any = np.load(path, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # of many classes: the header is read as Python's own text
        raise DataError(f"{path} is not a NumPy array ({error}). {again}") from None
    fits = isinstance(content, np.ndarray) and content.dtype == np.dtype("<f4") and content.ndim == 2
    if not fits or content.shape != (len(content) if rows is None else rows, len(contract.LABELS)):
        wanted = f"float32 [{'rows' if rows is None else rows}, {len(contract.LABELS)}]"
        raise DataError(f"{path} does not hold {wanted}. {again}")
    return np.asarray(content, np.float32)
