"""Shards of a tree's records, held against the files that they left; none of it takes a device or a cluster.

A record's `sharding` may be anybody's: whatever is wrong with it is a finding.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from typing import Collection, Iterable, Iterator, Mapping, Sequence

from deberta.core import contract, files
from deberta.core.errors import some
from deberta.core.job import Shard, Sharding
from deberta.core.records import Record
from deberta.host.report import sharded_runs
from deberta.host.report.evidence import Evidence
from deberta.host.report.sharded_runs import RecordedRun, UsedTime, name_of
from deberta.host.shards import agreement, spans

SHOWN = 20  # findings of one record that are named; the others are counted


def check(evidence: Evidence) -> None:
    """Find what is wrong with the shards of the report's runs; `evidence` has all files hashed."""
    if evidence.job is None:
        return
    paths = {id(record): path for path, record in evidence.records.items()}
    runs = {paths[id(run.record)]: run for run in sharded_runs.of_job(evidence.job, evidence.measuring)}
    for path, record in sorted(evidence.records.items()):
        if spans.INTERNAL in record.internal and path not in runs:
            evidence.add(path, "has shards, and is of no accuracy run of the report")
    used: list[UsedTime] = []
    for path, run in runs.items():
        if isinstance(run.sharding, ValueError):
            evidence.add(path, f"its {spans.INTERNAL} {run.sharding}")
            continue
        _add(evidence, path, _wrong(evidence, run, run.sharding))
        times = (time for shard in run.sharding.shards if (time := sharded_runs.time_of(shard)))
        used += [time._replace(what=f"{time.what} ({path})") for time in times]
    _add(evidence, evidence.artifacts.job(), _overlapping(used))


def _add(evidence: Evidence, where: object, texts: Iterable[str]) -> None:
    """The first SHOWN of these findings, and how many more there are."""
    every = list(texts)
    for text in every[:SHOWN]:
        evidence.add(where, text)
    if len(every) > SHOWN:
        evidence.add(where, f"and {len(every) - SHOWN} more of its shards")


def _wrong(evidence: Evidence, run: RecordedRun, sharding: Sharding) -> Iterator[str]:
    """What is wrong with one run's shards."""
    names = Counter(device.name for device in sharding.devices)
    yield from (f"names device {name} twice" for name, count in names.items() if count > 1)
    yield from _differences(sharding)
    outputs = {length: _names(evidence, path) for length, path in run.folders.items()}
    batches = {length: len(of_length) for length, of_length in outputs.items()}
    for shard in sharding.shards:
        if shard.device not in names:
            yield f"{name_of(shard)}: that is none of its devices"
        if shard.length not in batches:
            yield f"{name_of(shard)}: the run has no outputs of that length"
    of_run = [shard for shard in sharding.shards if shard.length in batches]
    yield from spans.coverage(of_run, batches)
    left = sum(batches.values())  # of batches to read: shards of a stranger's may name each file often
    for shard in of_run:
        left -= max(0, shard.last - shard.first + 1)
        if left < 0:
            break
        if (actual := _digest(evidence, run, shard, outputs[shard.length])) != shard.digest:
            yield f"{name_of(shard)}: expected digest {shard.digest}, its files have {actual}"
    yield from _times(run.record, sharding)
    yield from _comparisons(sharding, batches)


def _differences(sharding: Sharding) -> Iterator[str]:
    """Devices that differ where they may not, or without a word."""
    if always := agreement.unlike(sharding.devices, agreement.ALWAYS_SAME):
        yield f"its devices differ in what ran ({'; '.join(always)})"
    if not sharding.different and (facts := agreement.unlike(sharding.devices, agreement.FACTS)):
        yield f"its devices differ ({'; '.join(facts)}), and it does not say so"


def _names(evidence: Evidence, folder: str) -> set[str]:
    """The files of a folder of the tree; none of one that leads out of it."""
    return set(files.files_in(evidence.root / folder)) if evidence.holds(folder) else set()


def _digest(evidence: Evidence, run: RecordedRun, shard: Shard, names: Collection[str]) -> str:
    """The digest of a shard by its files, or why there is none."""
    folder, digests = PurePosixPath(run.folders[shard.length]), {}
    for name in map(contract.output_file, range(shard.first, shard.last + 1)):
        if name not in names:
            return f"none: {name} is missing"
        if evidence.unsafe or not evidence.holds(folder / name):
            return "none: they are not opened"
        digests[name] = files.sha256_of(evidence.root / folder / name)
    return spans.digest_of(digests)


def _times(record: Record, sharding: Sharding) -> Iterator[str]:
    """Shards that ended before they began, or ran beyond the step. Those of a run that was stopped ended before it."""
    start, end = sharded_runs.moment(record.started), sharded_runs.moment(record.finished)
    for shard in sharding.shards:
        time = sharded_runs.time_of(shard)
        if time is None or start is None or end is None:
            yield f"{name_of(shard)}: {shard.started} to {shard.finished} are no times"
        elif time.end < time.start:
            yield f"{name_of(shard)}: it ended at {shard.finished}, before it began at {shard.started}"
        elif time.end > end or time.start < start < time.end:
            step = f"{record.started} to {record.finished}"
            yield f"{name_of(shard)}: {shard.started} to {shard.finished} is not within the step's {step}"


def _comparisons(sharding: Sharding, batches: Mapping[int, int]) -> Iterator[str]:
    """Batches that were not the same without a word, and devices that were compared with no other."""
    compared: set[str] = set()
    for pair in sharding.compared:
        what, devices = spans.text(pair.length, pair.batch, pair.batch), {*pair.devices}
        if pair.batch >= batches.get(pair.length, 0):
            yield f"compared {what}, which the run has not"
        if not pair.same and not sharding.different:
            yield f"{what} is not the same on {some(pair.devices)}, and it does not say that devices differ"
        compared |= devices if len(devices) > 1 else set()
    alone = sorted({shard.device for shard in sharding.shards} - compared)
    if alone and not sharding.not_checked:
        yield f"no batch of {some(alone)} was compared with another device's, and it does not say why"


def _overlapping(used: Sequence[UsedTime]) -> Iterator[str]:
    """Shards that one device ran at the same time."""
    last: dict[str, UsedTime] = {}
    for time in sorted(used):
        before = last.get(time.device)
        if before and time.start < before.end:
            yield f"{time.what} began before {before.what} ended, and a device runs one shard at a time"
        if before is None or time.end > before.end:
            last[time.device] = time
