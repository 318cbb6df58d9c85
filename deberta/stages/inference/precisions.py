"""The precision that a compiled model of the cpu backend is of, marked in the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deberta.core.contract import FP32, PRECISIONS
from deberta.core.errors import DataError

if TYPE_CHECKING:
    import openvino as ov

_MARK = ["deberta_ascend", "precision"]  # in the model's own runtime information


def mark(model: ov.Model, precision: str) -> None:
    """Write into a model which precision it is of; one of float32 has no mark."""
    model.set_rt_info(precision, _MARK)


def of_model(model: ov.Model, path: Path) -> str:
    """The precision that a model is marked with; float32 without a mark. Raises DataError for an unknown one."""
    precision = model.get_rt_info(_MARK).astype(str) if model.has_rt_info(_MARK) else FP32
    if precision not in PRECISIONS:
        raise DataError(f"{path} is marked {precision!r}, not as one of: {', '.join(PRECISIONS)}. Run: invoke build-om")
    return precision
