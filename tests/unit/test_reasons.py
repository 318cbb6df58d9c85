"""Why a run is no acceptance, and that a job which says otherwise than its records and the gates is found out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from deberta.core import contract, published, records
from deberta.core.job import AllowedRows, Job, PerformanceFiles
from deberta.core.paths import Artifacts
from deberta.core.report import Report
from deberta.host.plan import profiles
from deberta.host.report import evidence, reasons
from tests import report_samples
from tests.mnli_helpers import REPOSITORY

ARTIFACTS = Artifacts("mnli", "ascend")
JOB = str(ARTIFACTS.job())
WHEN = "2026-01-01T00:00:00+00:00"
PROFILE = profiles.load(
    "mnli",
    {
        "mnli": {
            **{"checkpoint": "a.bin", "config": "c.json", "tokenizer": "spm.model", "dataset": "MNLI"},
            **{"labels": list(contract.LABELS), "rows": {"match": 9815, "mismatch": 9832}, "published": True},
        }
    },
)


def _record(step: str, parameters: Mapping[str, Any] = {}, **internal: str) -> records.Record:
    given = {"step": step, "executor": "docker", **parameters}
    subject = [records.Resource(f"results/{step}", {"sha256": "1" * 64})]
    return records.statement(subject, [], given, {"pins": "pinned", **internal}, "test", WHEN, WHEN, None)


def _job(**changes: Any) -> Job:
    """An acceptance of the published profile on an NPU that lacks nothing."""
    content = report_samples.mnli()
    measured = {name: content["measured"][name] for name in ("made", "deberta_ascend", "command", "executor", "loops")}
    measured.update(
        {name: content["measured"][name] for name in ("host", "pins", "tools", "engines", "steps", "places")}
    )
    profile = {"name": "mnli", "published": True, "labels": list(contract.LABELS), "rows": dict(PROFILE.rows)}
    job = msgspec.convert(
        {
            **{"format": 1, "purpose": "acceptance", "profile": profile, "backend": "ascend", "limit": 0, "loops": 100},
            **{"batch_sizes": [1, 4, 8, 16, 32, 64], "versions": ["match", "mismatch"], "data": {}, "sentinels": {}},
            **{"references": {}, "cells": [], "performances": [], "throughputs": [], "label_changes": []},
            **{
                "inputs": {str(path): {"sha256": "1" * 64} for path in PROFILE.inputs([])},
                "artifacts": {},
                "gates": {},
                "note": "",
                "not_accepted": [],
            },
            "published": [msgspec.to_builtins(row) for row in published.GUIDE],
            "measured": {**measured, "artifacts": {}},
        },
        Job,
    )
    return structs.replace(job, **{"gates": reasons.demands(REPOSITORY, job)[0], **changes})


def _reasons(job: Job, *step_records: records.Record) -> list[str]:
    return reasons.conclude(job, step_records, *reasons.demands(REPOSITORY, job)).not_accepted


def test_nothing_speaks_against_a_whole_run() -> None:
    assert _reasons(_job(), _record("infer")) == []
    assert _reasons(_job(not_accepted=["an old reason"]), _record("infer")) == []  # those there are not looked at


GATES = _job().gates


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"backend": "cpu", "auto": ["backend"]}, "backend cpu (taken by auto): no NPU was used"),
        ({"limit": 5}, "limited to the first 5 rows"),
        ({"loops": 99}, "99 loops of a performance run: the guide's has 100"),
        ({"versions": ["match"]}, "the published table has mismatch too"),
        ({"batch_sizes": [1, 4, 8, 16, 32]}, "the published table has batch sizes 64 too"),
        (
            {"gates": structs.replace(GATES, agreement=AllowedRows(allowed=9), fps=None)},
            "the gates are not those of deberta/gates.toml: agreement, fps (left out)",
        ),
    ],
)
def test_what_a_job_lacks(changes: Mapping[str, Any], reason: str) -> None:
    [text] = _reasons(_job(**changes), _record("infer"))
    assert text.startswith(reason)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (_record("infer", pins="not pinned: base x"), "not pinned: base x (infer)"),
        (_record("infer", {"executor": "local"}, environment="prepared by the user"), reasons.PREPARED),
        (
            _record("perf", {"executor": "local", "tool": "msame", "program": "a" * 64}, cann="5.1"),
            f"not pinned: msame of CANN 5.1 on this machine: SHA-256 {'a' * 64} is not in docker/pins.toml (perf)",
        ),
        (
            _record("build-om", {"executor": "local", "tool": "atc"}, pins="not pinned: the CI image: y"),
            "not pinned: the",
        ),
    ],
)
def test_what_a_record_tells(record: records.Record, reason: str) -> None:
    [text] = _reasons(_job(), _record("export-onnx"), record)
    assert text.startswith(reason)


def test_a_container_whose_record_lost_its_pins() -> None:
    record = _record("infer")
    del record.internal["pins"]
    assert _reasons(_job(), record) == ["not pinned: its record does not say so (infer)"]


def _findings(job: Job, *step_records: records.Record) -> list[str]:
    """What is found of a report that says accepted, made of this job."""
    tree = evidence.Evidence(Path(), ARTIFACTS, msgspec.convert(report_samples.mnli(), Report), job)
    tree.records = {f"{index}.record.json": record for index, record in enumerate(step_records)}
    evidence.check_verdict(tree, REPOSITORY, PROFILE)
    return tree.findings


def test_a_forged_acceptance_is_found() -> None:
    """A version that was left out, an image that was not pinned, gates that were changed: none of it in the job."""
    pinned, unpinned = _record("export-onnx"), _record("infer", pins="not pinned: base x")
    honest = reasons.conclude(_job(), [pinned], *reasons.demands(REPOSITORY, _job()))
    assert _findings(honest, pinned) == []
    left_out = structs.replace(honest, versions=["match"])
    assert f"{JOB}: the report says accepted, against: the published table has mismatch too" in _findings(
        left_out, pinned
    )
    hidden = _findings(structs.replace(honest, measured=structs.replace(honest.measured, steps=[])), pinned, unpinned)
    assert f"{JOB}: the report says accepted, against: not pinned: base x (infer)" in hidden
    assert f"{JOB}: measured.pins.pinned: stored true, recomputed false" in hidden
    for gates in (structs.replace(GATES, fps=None), structs.replace(GATES, near_tie_margin=5.0)):
        assert any(
            "against: the gates are not those of" in text for text in _findings(structs.replace(honest, gates=gates))
        )


def test_what_was_not_checked_before_a_run() -> None:
    """It follows from the records alone, whatever the job says and a record holds."""
    text = "device 0: no npu-smi on PATH"
    record = _record("infer")
    [subject] = record.subject
    content = {"batch_size": 8, "version": "match", "origin": "", "precision": "fp32", "pinned": True, "place": "?"}
    run = msgspec.convert({**content, "length": 256, "runner": "msame", "log": subject.name}, PerformanceFiles)
    job = _job(performances=[structs.replace(run, not_checked=["invented"])])
    for value, not_checked in (([text, text], [text]), ([], []), (text, []), ([1, "", text], [text]), (None, [])):
        summary = {"not_checked": value}
        looked = records.statement(record.subject, [], record.parameters, record.internal, "test", WHEN, WHEN, summary)
        [concluded] = reasons.conclude(job, [looked], *reasons.demands(REPOSITORY, job)).performances
        assert concluded.not_checked == not_checked


def test_times_that_are_not_the_records() -> None:
    honest = reasons.conclude(_job(), [_record("infer")], *reasons.demands(REPOSITORY, _job()))
    forged = structs.replace(honest, measured=structs.replace(honest.measured, finished="2025-01-01T00:00:00+00:00"))
    [finding] = _findings(forged, _record("infer"))
    assert finding == f'{JOB}: measured.made: stored "2025-01-01T00:00:00+00:00", recomputed "{WHEN}"'


def test_what_follows_from_the_rest_of_the_job() -> None:
    honest = reasons.conclude(_job(), [_record("infer")], *reasons.demands(REPOSITORY, _job()))
    figures = [structs.replace(published.GUIDE[0], baseline_fps=0.1), *published.GUIDE[1:]]
    measured = structs.replace(honest.measured, loops=7, engines=["a better one"], places={})
    findings = _findings(structs.replace(honest, published=figures, note="none", measured=measured), _record("infer"))
    for place in ("published[0].baseline_fps", "note", "measured.loops", "measured.engines"):
        assert any(place in text for text in findings), (place, findings)


def test_the_records_of_the_reports_own_files_measure_nothing() -> None:
    """But one that names an output beside a page is none of those."""
    page = records.Resource(str(ARTIFACTS.report("md")), {"sha256": "1" * 64})
    hidden = _record("infer", pins="not pinned: base x")
    both = structs.replace(hidden, subject=[*hidden.subject, page])
    tree = evidence.Evidence(Path(), ARTIFACTS, records={"a": structs.replace(hidden, subject=[page]), "b": both})
    assert tree.measuring == [both]
