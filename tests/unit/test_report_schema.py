"""The published JSON Schema is that of the Structs, and says what they enforce by code."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest

from deberta.core import report as report_format
from deberta.core.report import Report
from tests import report_samples
from tests.mnli_helpers import REPOSITORY

SCHEMA = REPOSITORY / "deberta" / "stages" / "report" / "report.schema.json"


def test_the_published_schema_is_current() -> None:
    """If it is not: python -m deberta.core.report > deberta/stages/report/report.schema.json."""
    assert json.loads(SCHEMA.read_bytes()) == report_format.json_schema()
    jsonschema.Draft202012Validator.check_schema(report_format.json_schema())


def _accept(report: dict[str, Any]) -> None:
    report["verdict"].update(verdict="accepted", why_not_accepted=[])


def _no_reason(report: dict[str, Any]) -> None:
    report["verdict"]["why_not_accepted"] = []


def _same_size(report: dict[str, Any]) -> None:
    report["body"]["batch_sizes"] = [8, 8]


def _two_digests(report: dict[str, Any]) -> None:
    report["body"]["inputs"]["a"] = {"sha256": "0" * 64, "dirHash": "0" * 64}


def _absolute_path(report: dict[str, Any]) -> None:
    report["body"]["inputs"]["/a"] = {"sha256": "0" * 64}


def _other_version(report: dict[str, Any]) -> None:
    report["body"]["reference"]["train"] = report["body"]["reference"]["match"]


def _two_labels(report: dict[str, Any]) -> None:
    del report["body"]["cells"][0]["labels_gold"]["neutral"]


def _unknown_key(report: dict[str, Any]) -> None:
    report["measured"]["weather"] = "fine"


@pytest.mark.parametrize(
    "spoil",
    [_accept, _no_reason, _same_size, _two_digests, _absolute_path, _other_version, _two_labels, _unknown_key],
)
def test_both_refuse_the_same(spoil: Any) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_bytes()))
    report = report_samples.demo()
    assert not list(validator.iter_errors(report))
    msgspec.convert(report, Report)
    spoil(report)
    assert list(validator.iter_errors(report))
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(report, Report)
