"""Rules of a tokenizer that its library would fail at, or never finish: refused before they are applied."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from deberta.stages.model import tokenizer_rules
from tests.mnli_helpers import REPOSITORY


def _real() -> bytes:
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString((REPOSITORY / "models/demo/spm.model").read_bytes())
    return bytes(model.normalizer_spec.precompiled_charsmap)


def _with_unit(index: int, unit: int) -> bytes:
    content = bytearray(_real())
    content[4 + 4 * index : 8 + 4 * index] = int(unit).to_bytes(4, "little")
    return bytes(content)


def test_the_map_that_sentencepiece_writes_is_taken() -> None:
    assert tokenizer_rules.map_problem(_real()) == ""


@pytest.mark.parametrize(
    ("unit", "what"),
    [(0xFFFFFC00 >> 1, "an offset"), (1 << 31 | 10**8, "a value"), (0x100, "a value where none is")],
)
def test_a_map_that_leads_out_of_itself_is_refused(unit: int, what: str) -> None:
    units = np.frombuffer(_real()[4:], "<u4", int.from_bytes(_real()[:4], "little") // 4)
    index = int(np.flatnonzero(units >> 31)[0]) if what == "a value" else 0
    assert "leads out" in tokenizer_rules.map_problem(_with_unit(index, unit))


@pytest.mark.parametrize("content", [b"", b"\x04\0\0\0abcd", b"\x03\0\0\0abc\0", _real()[:-1] + b"a"])
def test_a_damaged_map_is_refused(content: bytes) -> None:
    assert "damaged" in tokenizer_rules.map_problem(content)
    document = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}}
    assert "damaged" in tokenizer_rules.problem(document)


@pytest.mark.parametrize(
    ("pattern", "is_taken"), [(" {2,}", True), (r"\+a+", True), ("(a+)+b", False), (".*.*x", False)]
)
def test_an_expression_that_may_run_for_ever_is_refused(pattern: str, is_taken: bool) -> None:
    document = {"pre_tokenizer": {"pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}}]}}
    assert (tokenizer_rules.problem(document) == "") is is_taken
