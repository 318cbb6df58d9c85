"""The bill of materials of a run on an NPU in containers, which no test machine has: form, content, sameness."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from deberta.core import records, schema
from deberta.core.contract import LABELS
from deberta.core.errors import DataError, MissingError
from deberta.core.job import JobMeasured
from deberta.core.paths import Artifacts
from deberta.host.environments import locks, stages
from deberta.host.report import bom
from tests import report_samples
from tests.mnli_helpers import REPOSITORY

NAMES = ("checkpoint", "config", "spm", "tsv", "onnx", "om", "msame")
SHA = {name: f"{number:064x}" for number, name in enumerate(NAMES)}
INPUTS = {
    "models/demo/pytorch.model-demo.bin": {"sha256": SHA["checkpoint"]},
    "models/demo/model_config.json": {"sha256": SHA["config"]},
    "models/demo/spm.model": {"sha256": SHA["spm"]},
    "data/demo/MNLI/dev_matched.tsv": {"sha256": SHA["tsv"]},
}
ONNX, OM = "models/demo/dynamic.onnx", "models/demo/ascend/deberta_bs8.om"
LOG, REPORT = "results/demo/ascend/msame_bs8_match.txt", "results/demo/ascend/report.json"
WHEN = "2026-01-01T00:00:00+00:00"


@pytest.fixture(name="tree")
def _tree(tmp_path: Path) -> Path:
    """The JSON files of a report that was made with ATC and msame in containers. Nothing else is looked at."""
    artifacts = Artifacts("demo", "ascend")

    def change(report: dict[str, Any]) -> None:
        cell = report_samples.cell(8, "match", dict.fromkeys(report_samples.GENRES["match"], 240), (3, 2, 4, 1, 1))
        counts = {name: cell[name] for name in ("rows", "correct", "accuracy", "interval")}
        report["body"].update(profile="demo", cells=[cell], reference={"match": counts})
        report["measured"].update(
            performances=[{**report_samples.performance(8, 1609.2), "place": "on ascend", "fps": 4.639}],
            tools={"atc": "CANN 5.1.RC2", "msame": SHA["msame"]},
        )

    report = report_samples.changed(report_samples.mnli(), change)
    stands = {"batch_size": 8, "version": "match", "precision": "fp32", "origin": "", "pinned": True}
    measured = {
        name: report["measured"][name] for name in JobMeasured.__struct_encode_fields__ if name in report["measured"]
    }
    job = {
        **{"format": 1, "purpose": "report", "backend": "ascend", "limit": 0, "loops": 100, "batch_sizes": [8]},
        "profile": {"name": "demo", "published": False, "labels": list(LABELS), "rows": {"match": None}},
        **{"versions": ["match"], "sentinels": {}, "references": {}, "cells": [], "throughputs": []},
        **{"label_changes": [], "inputs": INPUTS, "artifacts": {}, "gates": {}, "published": [], "note": ""},
        **{"not_accepted": [], "measured": {**measured, "artifacts": {}}},
        "data": {"match": "data/demo/MNLI/dev_matched.tsv"},
        "performances": [{**stands, "length": 256, "runner": "msame", "log": LOG, "place": "on ascend"}],
    }
    for path, content in ((artifacts.report("json"), report), (artifacts.job(), job)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(content))
    given = ["--checkpoint", "models/demo/pytorch.model-demo.bin"]
    brought = ["models/demo/pytorch.model-demo.bin", "models/demo/model_config.json"]
    made = {ONNX: SHA["onnx"], OM: SHA["om"], LOG: "7" * 64, REPORT: "8" * 64}
    _record(tmp_path, REPORT, made, [LOG], {})
    _record(tmp_path, LOG, made, [OM], {"tool": "msame", "program": SHA["msame"]}, "runtime", cann="5.1.RC2")
    _record(tmp_path, OM, made, [ONNX], {"tool": "atc"}, "compile", cann="5.1.RC2")
    _record(tmp_path, ONNX, {**made, **{k: v["sha256"] for k, v in INPUTS.items()}}, brought, {"arguments": given})
    return tmp_path


def _record(
    tree: Path,
    made: str,
    known: Mapping[str, str],
    needed: Sequence[str],
    parameters: Mapping[str, Any],
    stage: str = "",
    **internal: str,
) -> None:
    resources = [records.Resource(name, {"sha256": known[name]}) for name in needed]
    images = [records.Resource(f"image deberta-ascend/{stage}:abc", {"sha256": "9" * 64})] if stage else []
    subject = [records.Resource(made, {"sha256": known[made]})]
    content = records.statement(
        subject, [*resources, *images], parameters, {"pins": "pinned", **internal}, "test", WHEN, WHEN, None
    )
    records.write(tree / f"{made}.record.json", content)


def _make(tree: Path) -> dict[str, Any]:
    return bom.of_tree(REPOSITORY, tree, Artifacts("demo", "ascend"))


def test_it_is_cyclonedx_1_6_by_its_own_schema(tree: Path) -> None:
    made = schema.text(_make(tree))
    assert (error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(made)) is None, error
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(made.replace('"library"', '"book"')) is not None


def test_it_holds_what_the_deployment_is_made_of(tree: Path) -> None:
    made = {component["bom-ref"]: component for component in _make(tree)["components"]}
    hashes = {ref: [entry["content"] for entry in component.get("hashes", ())] for ref, component in made.items()}
    for path, digest in (*((k, v["sha256"]) for k, v in INPUTS.items()), (ONNX, SHA["onnx"]), (OM, SHA["om"])):
        assert hashes[path] == [digest]
    metrics = made[OM]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert [metric["value"] for metric in metrics] == [repr(1189 / 1200), "4.639"]
    assert "1189 of 1200 rows" in metrics[0]["slice"]
    assert made["cann@5.1.RC2"]["name"] == "CANN"
    assert hashes[f"msame@{SHA['msame'][:12]}"] == [SHA["msame"]]
    assert hashes["deberta-ascend/compile:abc"] == hashes["deberta-ascend/runtime:abc"] == ["9" * 64]
    assert {"base.compile", "base.runtime"} <= set(made) and "base.export" not in made  # no step ran in that one
    needs = {entry["ref"]: entry.get("dependsOn") for entry in _make(tree)["dependencies"]}
    assert needs[OM] == ["deberta-ascend/compile:abc", ONNX]
    assert set(INPUTS) - set(needs[ONNX]) == {"models/demo/spm.model", "data/demo/MNLI/dev_matched.tsv"}


def test_packages_are_the_locks_own_with_all_hashes(tree: Path) -> None:
    found = [component for component in _make(tree)["components"] if component["type"] == "library"]
    locked = locks.of_any(REPOSITORY / stages.STAGES_LOCK)
    assert [(component["name"], component["version"]) for component in found] == [package[:2] for package in locked]
    assert all(component["externalReferences"][0]["hashes"] for component in found)
    torch = [component["purl"] for component in found if component["name"] == "torch"]
    assert torch == ["pkg:pypi/torch@2.10.0", "pkg:pypi/torch@2.13.0%2Bcpu"]  # of aarch64, and of x86_64


def test_the_same_report_gives_the_same_bytes_and_another_one_another_serial_number(tree: Path) -> None:
    before = _make(tree)
    assert schema.text(_make(tree)) == schema.text(before)
    report = tree / REPORT
    report.write_text(report.read_text().replace("1189", "1188"))
    assert _make(tree)["serialNumber"] != before["serialNumber"]


def test_without_a_report_or_with_a_damaged_one(tree: Path) -> None:
    report = tree / REPORT
    report.write_text(report.read_text().replace('"performances"', '"others"'))
    with pytest.raises(DataError, match="no bill of materials"):
        _make(tree)
    report.unlink()
    with pytest.raises(MissingError, match="invoke acceptance"):
        _make(tree)


def test_licences_are_what_the_installed_packages_say() -> None:
    """A lock that moves fails here until the table has moved with it."""
    lock = REPOSITORY / stages.STAGES_LOCK
    assert {f"{package.name}=={package.version}" for package in locks.of_any(lock)} == set(bom.LICENCES)
    for name, version in stages.locked_versions(lock).items():
        found = importlib.metadata.metadata(name)
        expression, text = ((found.get_all(key) or [""])[0] for key in ("License-Expression", "License"))
        classified = [c.split(" :: ")[-1] for c in found.get_all("Classifier") or [] if c.startswith("License ::")]
        kind, licence = bom.LICENCES[f"{name}=={version}"]
        if kind == "expression":
            assert licence == (expression or text.strip()), name
        else:
            assert not expression and licence == ("; ".join(classified) or text.strip()), name


def test_a_package_of_another_version_has_no_licence() -> None:
    for name in ("torch", "nobodys"):
        assert bom.licence_of(name, "1.0") == {"properties": [{"name": "deberta-ascend:licence", "value": "unknown"}]}
