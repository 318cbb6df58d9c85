"""What a report's job refuses before anything is counted."""

from __future__ import annotations

import pytest

from deberta.core import records
from deberta.core.errors import DataError
from deberta.host.report import request

EXPORT, COMPILE = "image deberta-ascend/export:aa", "image deberta-ascend/compile:bb"


def _record(**images: str) -> records.Record:
    names = {"export": EXPORT, "compile": COMPILE}
    now = records.now()
    return records.statement(
        subjects=[],
        dependencies=[records.Resource(names[stage], {"sha256": digest}) for stage, digest in images.items()],
        parameters={},
        internal={},
        builder="",
        started=now,
        finished=now,
        summary=None,
    )


def test_one_image_that_two_records_tell_differently_is_named() -> None:
    recorded = {
        "models/demo/dynamic.onnx.record.json": _record(export="1" * 64),
        "models/demo/ascend/deberta_bs8.om.record.json": _record(compile="2" * 64),
        "results/demo/cpu/eval_bs8_match.txt.record.json": _record(export="1" * 64),
        "elsewhere.record.json": _record(),  # made by a process
    }
    request.one_build_of_each(recorded)
    recorded["results/demo/cpu/eval_bs8_mismatch.txt.record.json"] = _record(export="3" * 64)
    with pytest.raises(DataError) as caught:
        request.one_build_of_each(recorded)
    said = str(caught.value)
    for part in ("eval_bs8_mismatch.txt.record.json says", EXPORT, "3" * 64, "dynamic.onnx.record.json", "1" * 64):
        assert part in said
