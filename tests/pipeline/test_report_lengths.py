"""Runs of several lengths and of int8 in a report: counted again, shown apart from published figures, and verified."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.pipeline_helpers import Workspace

LENGTHS = ("--buckets", "32,64,128")
CASE = ("--bs", "4", "--version", "match", "--backend", "cpu")
RESULTS = "results/tiny/cpu"


@pytest.fixture(name="finished", scope="module")
def _finished(tiny: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The float32 and the int8 evaluation at three lengths, the performance run of both kinds, and the report."""
    workspace = tiny.copy(tmp_path_factory.mktemp("lengths") / "workspace")
    workspace.succeed("evaluate", *CASE, *LENGTHS, "--precision", "int8")
    workspace.succeed("perf", *CASE, *LENGTHS, "--loops", "2")
    workspace.succeed("report", "--backend", "cpu")
    return workspace


def _report(workspace: Workspace) -> Any:
    return json.loads((workspace.root / RESULTS / "report.json").read_text(encoding="utf-8"))


def test_they_are_cells_and_entries_of_the_report(finished: Workspace) -> None:
    report = _report(finished)
    assert [(cell["precision"], cell["origin"]) for cell in report["body"]["cells"]] == [("fp32", ""), ("int8", "")]
    for cell, name in zip(report["body"]["cells"], ("eval_bs4_match", "eval_bs4_int8_match")):
        counts = json.loads((finished.root / RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        assert (cell["lengths"], cell["correct"]) == (counts["buckets"], counts["correct"])
    measured = report["measured"]
    assert sorted(run["length"] for run in measured["performances"]) == [32, 64, 128, 256]
    [throughput], [changes] = measured["throughputs"], measured["label_changes"]
    assert throughput["lengths"] == report["body"]["cells"][0]["lengths"] and throughput["origin"] == ""
    stored = json.loads((finished.root / RESULTS / "int8_bs4_match.json").read_text(encoding="utf-8"))
    assert (changes["labels_changed"], changes["origin"]) == (stored["labels_changed"], "")
    text = (finished.root / RESULTS / "report.md").read_text(encoding="utf-8")
    assert "## Other lengths and precisions" in text and "| 4 | match | int8 | 32,64,128 |" in text


def test_they_are_counted_again_by_verify(finished: Workspace) -> None:
    assert f"verified: {RESULTS}/report.json" in finished.succeed("verify", "--backend", "cpu", "--replay", "10")


@pytest.mark.parametrize(
    ("path", "old", "new", "says"),
    [
        ("perf_bs4_match_buckets.json", '"rows": 10', '"rows": 11', "perf_bs4_match_buckets.json: rows: stored 11"),
        ("int8_bs4_match.json", '"rows": 10', '"rows": 11', "int8_bs4_match.json: rows: stored 11, recomputed 10"),
    ],
)
def test_what_was_changed_is_named(
    finished: Workspace, tmp_path: Any, path: str, old: str, new: str, says: str
) -> None:
    workspace = finished.copy(tmp_path / "copy")
    file = workspace.root / RESULTS / path
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    workspace.fail(5, "verify", "--backend", "cpu")
    assert says in workspace.run("verify", "--backend", "cpu").stdout


def test_what_an_older_model_made_is_said(finished: Workspace, tmp_path: Any) -> None:
    workspace = finished.copy(tmp_path / "copy")
    config = workspace.root / "models/tiny/model_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**content, "layer_norm_eps": 1e-5}), encoding="utf-8")
    workspace.succeed("build-om", "--bs", "4", "--backend", "cpu", *LENGTHS)
    workspace.succeed("perf", *CASE, "--buckets", "256", "--loops", "2")
    workspace.succeed("report", "--backend", "cpu")
    report = _report(workspace)
    old = "outdated: another model"
    assert [cell["origin"] for cell in report["body"]["cells"]] == [old, old]
    assert [entry["origin"] for entry in report["measured"]["throughputs"]] == [old]
    assert [entry["origin"] for entry in report["measured"]["label_changes"]] == [old]
    assert "agreement" in report["body"] and report["body"]["agreement"] == {}
    workspace.succeed("verify", "--backend", "cpu")
