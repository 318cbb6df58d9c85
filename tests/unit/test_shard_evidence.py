"""Runs on several devices, by their records: what verify finds, what the job sums up, why they are no acceptance."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from deberta.core import records
from deberta.core.job import Job
from deberta.core.paths import Artifacts
from deberta.host.report import shard_findings, sharded_runs
from deberta.host.report.evidence import Evidence
from deberta.stages.report import assess
from tests import report_helpers, shard_helpers

BEGUN, ENDED = "2026-01-01T09:00:00+00:00", "2026-01-01T09:05:00+00:00"
RECORD = "results/demo/cpu/outputs_bs8_om/match.record.json"


@pytest.fixture(name="tree", scope="module")
def _tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Job]:
    root = tmp_path_factory.mktemp("tree")
    job = assess.read_job(report_helpers.example_job(root, batch_sizes=(8,)))
    return root, structs.replace(job, cells=[cell for cell in job.cells if cell.version == "match"])


def _folder(tree: tuple[Path, Job]) -> str:
    [folder] = tree[1].cells[0].outputs.values()
    return folder


def _record(tree: tuple[Path, Job], sharding: Any) -> records.Record:
    subject = [records.Resource(_folder(tree), {"dirHash": "1" * 64})]
    return records.statement(subject, [], {"step": "infer"}, {"sharding": sharding}, "test", BEGUN, ENDED, None)


def _sharding(tree: tuple[Path, Job]) -> dict[str, Any]:
    return shard_helpers.sharding(tree[0] / _folder(tree), BEGUN, ENDED)


def _found(tree: tuple[Path, Job], sharding: Any, **changes: Any) -> str:
    job = structs.replace(tree[1], **changes)
    evidence = Evidence(tree[0], Artifacts("demo"), job=job, records={RECORD: _record(tree, sharding)})
    shard_findings.check(evidence)
    return "\n".join(evidence.findings)


def _of_shard(number: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda sharding: sharding["shards"][number].update(values)


def _of_device(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda sharding: sharding["devices"][1].update(values)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a gap": (_of_shard(1, first=3), r"no shard has batch 2 at length 256"),
    "twice": (_of_shard(1, first=1), r"two shards have batch 1 at length 256"),
    "beyond": (_of_shard(2, last=9), r"a shard has batches 6 to 9 at length 256, and there are 6 batches"),
    "none": (lambda sharding: sharding.update(shards=[]), r"no shard has batches 0 to 5 at length 256"),
    "a length": (_of_shard(0, length=64), r"batches 0 to 1 at length 64 on a/0: the run has no outputs of that length"),
    "a digest": (
        _of_shard(1, digest="0" * 64),
        r"batches 2 to 3 at length 256 on b/0: expected digest 0{64}, its files",
    ),
    "a stranger": (_of_shard(1, device="c/0"), r"batches 2 to 3 at length 256 on c/0: that is none of its devices"),
    "too early": (
        _of_shard(1, started="2026-01-01T08:59:00+00:00"),
        r"2 to 3 .* on b/0: 2026-01-01T08:59:00\S+ to 2026-01-01T09:05:00\S+ is not within the step's",
    ),
    "too late": (_of_shard(1, finished="2026-01-01T09:05:01Z"), r"on b/0: .* is not within the step's"),
    "backwards": (_of_shard(1, started="2026-01-01T09:04:00Z", finished="2026-01-01T09:03:00Z"), "before it began"),
    "no time": (_of_shard(1, started="2026-13-01T09:04:00Z"), r"on b/0: 2026-13-01T09:04:00Z to .* are no times"),
    "at once": (
        _of_shard(0, finished="2026-01-01T09:01:00Z"),
        r"4 to 5 at length 256 on a/0 \(\S+\) began before batches 0 to 1 at length 256 on a/0 \(\S+\) ended",
    ),
    "another chip": (
        _of_device(chip="310P1"),
        r"its devices differ \(chip: 310P3 \(a/0\), 310P1 \(b/0\)\), and it does",
    ),
    "another CANN": (_of_device(cann="5.1"), r"its devices differ \(CANN"),
    "another driver": (_of_device(driver="22"), r"its devices differ \(driver"),
    "other code": (
        _of_device(code="1" * 64),
        r"its devices differ in what ran \(code: c0de\w+ \(a/0\), 1{64} \(b/0\)\)",
    ),
    "another msame": (_of_device(program={"program": "1"}), r"its devices differ in what ran \(program: "),
    "other bytes": (
        lambda sharding: sharding["compared"][0].update(same=False),
        r"batch 0 at length 256 is not the same on a/0, b/0, and it does not say that devices differ",
    ),
    "nothing compared": (
        lambda sharding: sharding.update(compared=[]),
        r"no batch of a/0, b/0 was compared with another device's, and it does not say why",
    ),
    "a batch that is not": (
        lambda sharding: sharding["compared"][0].update(batch=6),
        r"compared batch 6 at length 256",
    ),
    "a device twice": (lambda sharding: sharding["devices"].append(sharding["devices"][0]), "names device a/0 twice"),
    "no list": (lambda sharding: sharding.update(shards={}), r"its sharding does not fit its schema, at \$\.shards: "),
    "a negative batch": (_of_shard(0, first=-1), r"its sharding does not fit its schema"),
    "a word more": (lambda sharding: sharding.update(note="x"), r"its sharding does not fit its schema"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_and_named(tree: tuple[Path, Job], name: str) -> None:
    alter, text = WRONG[name]
    sharding = _sharding(tree)
    alter(sharding)
    found = _found(tree, sharding)
    assert re.search(text, found), found
    assert all(line.startswith((RECORD, "results/demo/cpu/report_job.json")) for line in found.splitlines())


def test_nothing_is_found_of_a_true_one(tree: tuple[Path, Job]) -> None:
    """Nor of shards that were kept from a run that was stopped, of devices that differ and say so, of one device."""
    kept, different, alone = _sharding(tree), _sharding(tree), _sharding(tree)
    kept["shards"][1].update(started="2025-12-31T09:00:00Z", finished="2025-12-31T09:05:00Z")
    different["devices"][1].update(chip="310P1")
    different["compared"][0].update(same=False)
    different.update(different=True)
    alone.update(compared=[], not_checked=["no batch ran on a second device: there was one"])
    assert [_found(tree, sharding) for sharding in (_sharding(tree), kept, different, alone)] == ["", "", "", ""]
    assert "of no accuracy run" in _found(tree, _sharding(tree), cells=[])
    assert "its sharding is null" in _found(tree, None)


def test_a_gap_hides_no_digest(tree: tuple[Path, Job]) -> None:
    sharding = _sharding(tree)
    sharding["shards"][1].update(first=3)
    sharding["shards"][2].update(digest="0" * 64)
    found = _found(tree, sharding).splitlines()
    assert [re.sub(r"\w{64}", "DIGEST", line.partition(": ")[2]) for line in found] == [
        "no shard has batch 2 at length 256",
        "batch 3 at length 256 on b/0: expected digest DIGEST, its files have DIGEST",
        "batches 4 to 5 at length 256 on a/0: expected digest DIGEST, its files have DIGEST",
    ]


def test_a_strangers_record_takes_no_time(tree: tuple[Path, Job]) -> None:
    """Lengths, devices and shards by the thousand."""
    sharding = _sharding(tree)
    one = sharding["shards"][0]
    sharding["shards"] += [{**one, "length": n, "device": f"a/{n}", "last": 10**9} for n in range(5_000)]
    sharding["shards"] += [{**one, "last": 10**9}] * 5_000
    sharding["devices"] += [shard_helpers.device("c", n) for n in range(5_000)]
    began = time.monotonic()
    found = _found(tree, sharding)
    assert time.monotonic() - began < 5 and len(found.splitlines()) <= 2 * (shard_findings.SHOWN + 1)
    job, of_records = tree[1], [_record(tree, sharding)]
    sharded_runs.summed_up(sharded_runs.of_job(job, of_records))
    assert time.monotonic() - began < 10


def test_the_job_sums_up_what_each_device_did(tree: tuple[Path, Job]) -> None:
    [run] = sharded_runs.summed_up(sharded_runs.of_job(tree[1], [_record(tree, _sharding(tree))]))
    assert (run.batch_size, run.version, run.lengths, run.compared, run.unlike) == (8, "match", [256], 1, [])
    shares = [(each.name, each.shards, each.batches, each.seconds, each.inference_ms) for each in run.devices]
    assert shares == [("a/0", 2, 4, 300.0, 50.0), ("b/0", 1, 2, 300.0, 25.0)]
    assert [(lost.device, lost.why) for lost in run.lost] == [("b/0", "it was killed")]


def test_devices_that_differ_are_no_acceptance(tree: tuple[Path, Job]) -> None:
    job, same, flag, other = tree[1], _sharding(tree), _sharding(tree), _sharding(tree)
    flag["different"] = True
    other["devices"][1]["chip"] = "310P1"

    def reasons(sharding: Any) -> list[str]:
        return sharded_runs.not_accepted(sharded_runs.of_job(job, [_record(tree, sharding)]))

    assert reasons(same) == []
    assert reasons(flag) == reasons(other) == ["devices that differ ran: bs 8 match"]
    assert reasons({"shards": 1}) == ["records with shards that cannot be read: bs 8 match"]
