"""Accuracy runs on several devices, by their records: summed up for the report, and why they are no acceptance."""

from __future__ import annotations

from datetime import datetime
from typing import Iterable, Iterator, Mapping, NamedTuple, Optional, Sequence, Union

from msgspec import structs

from deberta.core import contract
from deberta.core.job import DeviceFacts, DeviceShare, EvaluationFiles, Job, Shard, ShardedRun, Sharding
from deberta.core.records import Record
from deberta.host.shards import agreement, spans


class RecordedRun(NamedTuple):
    """A cell's run by one record: its folders of outputs by length, and its shards or why they cannot be read."""

    cell: EvaluationFiles
    record: Record
    folders: Mapping[int, str]
    sharding: Union[Sharding, ValueError]

    @property
    def text(self) -> str:
        return f"bs {self.cell.batch_size} {self.cell.version}"


class UsedTime(NamedTuple):
    """When a device ran a shard, in seconds since 1970; `what` names the shard."""

    device: str
    start: float
    end: float
    what: str


def of_job(job: Job, step_records: Iterable[Record]) -> Iterator[RecordedRun]:
    """The runs of the job's evaluations whose records have shards."""
    by_folder: dict[str, Record] = {}
    for record in step_records:
        if spans.INTERNAL in record.internal:
            by_folder.update(dict.fromkeys(record.subjects, record))
    for cell in job.cells:
        folders: dict[int, dict[int, str]] = {}
        for length, path in cell.outputs.items():
            if path in by_folder:
                folders.setdefault(id(by_folder[path]), {})[contract.whole(length)] = path
        for of_record in folders.values():
            record = by_folder[next(iter(of_record.values()))]
            yield RecordedRun(cell, record, of_record, _sharding(record))


def _sharding(record: Record) -> Union[Sharding, ValueError]:
    try:
        return spans.of_internal(record.internal) or ValueError("is null")
    except ValueError as error:
        return error


def device_of(record: Optional[Record]) -> str:
    """HOST/DEVICE of a performance run, where its record has it."""
    device = record.internal.get(spans.DEVICE) if record else None
    return device if isinstance(device, str) else ""


def not_accepted(runs: Iterable[RecordedRun]) -> list[str]:
    """Why runs on several devices are no acceptance: the devices differ, or nobody can tell."""
    different, unreadable = [], []
    for run in runs:
        if isinstance(run.sharding, ValueError):
            unreadable.append(run.text)
        elif (
            run.sharding.different
            or agreement.unlike(run.sharding.devices, {**agreement.FACTS, **agreement.ALWAYS_SAME})
            or not all(pair.same for pair in run.sharding.compared)
        ):
            different.append(run.text)
    texts = {"devices that differ ran": different, "records with shards that cannot be read": unreadable}
    return [f"{text}: {', '.join(dict.fromkeys(names))}" for text, names in texts.items() if names]


def summed_up(runs: Iterable[RecordedRun]) -> list[ShardedRun]:
    """What the report has of them; runs whose shards cannot be read are left out."""
    return [_summed_up(run, run.sharding) for run in runs if isinstance(run.sharding, Sharding)]


def _summed_up(run: RecordedRun, sharding: Sharding) -> ShardedRun:
    of_devices: dict[str, list[Shard]] = {}
    for shard in sharding.shards:
        of_devices.setdefault(shard.device, []).append(shard)
    return ShardedRun(
        batch_size=run.cell.batch_size,
        version=run.cell.version,
        precision=run.cell.precision,
        lengths=sorted(run.folders),
        devices=[
            _share(device, of_devices.get(device.name, []))
            for device in sorted(sharding.devices, key=lambda device: (device.host, device.device))
        ],
        lost=sharding.lost,
        compared=len({(pair.length, pair.batch) for pair in sharding.compared if len({*pair.devices}) > 1}),
        unlike=[pair for pair in sharding.compared if not pair.same],
        not_checked=sharding.not_checked,
        different=sharding.different,
        engine=sharding.engine,
    )


def _share(device: DeviceFacts, shards: Sequence[Shard]) -> DeviceShare:
    times = [time for shard in shards if (time := time_of(shard))]
    return DeviceShare(
        **structs.asdict(device),
        shards=len(shards),
        batches=sum(max(0, shard.last - shard.first + 1) for shard in shards),
        seconds=sum(max(0.0, time.end - time.start) for time in times),
        inference_ms=round(sum(shard.inference_ms for shard in shards), 3),
    )


def moment(text: str) -> Optional[float]:
    """Seconds since 1970; None for a text that is no time."""
    try:
        return datetime.fromisoformat(f"{text[:-1]}+00:00" if text.endswith("Z") else text).timestamp()
    except (ValueError, OverflowError):
        return None


def time_of(shard: Shard) -> Optional[UsedTime]:
    start, end = moment(shard.started), moment(shard.finished)
    return None if start is None or end is None else UsedTime(shard.device, start, end, name_of(shard))


def name_of(shard: Shard) -> str:
    return f"{spans.text(shard.length, shard.first, shard.last)} on {shard.device}"
