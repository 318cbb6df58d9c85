"""How long an acceptance takes on so many devices, and what bounds it: a model of its time, nothing of which is run.

Cells are measured one after another, as acceptance does. An accuracy run is cut into shards for all devices, and
simulated with what places them. A performance run has one device, and its host to itself; the shortest one is run on
each device, to be compared: on all hosts at once, one device at a time on a host. Models are compiled on one host, and
sent by one. Bins, counting and the report are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Sequence

from deberta.ascend import timing
from deberta.core import contract, published, records, schema
from deberta.core.errors import MissingError, aligned, many
from deberta.core.paths import Artifacts, record_of
from deberta.core.progress import duration
from deberta.core.schema import Schema
from deberta.host.cluster import simulation
from deberta.host.plan.profiles import Profile
from deberta.host.shards.coordinate import ShardSettings

ACCURACY, PERFORMANCE, FURTHER = "accuracy", "performance", "further devices"
COMPILATION, SHIPPING, BEFORE = "compilation", "shipping", "before"
DEVICES = (1, 2, 4, 8, 16, 64, 1000)  # of a plan, if no others are named
MODEL_MB = 739.0  # of the guide's model
GIVEN, ASSUMED = "by option", "assumed"


@dataclass(frozen=True)
class Costs:
    """What things cost. `start_seconds`: of each run of the model, before its first batch. `ship_mb`: MB per s.

    `per_host`: devices of a host. `lost`: attempts of each accuracy run that fail at their end, one a device at most.
    `shared`: all hosts see the client's files, so that nothing is sent.
    """

    start_seconds: float = 1.5
    shards: ShardSettings = ShardSettings()  # noqa: RUF009 - it cannot be changed
    ship_mb: float = 45.0
    per_host: int = 8
    lost: int = 0
    shared: bool = False


@dataclass(frozen=True)
class Workload:
    """What an acceptance measures. By batch size: `fps`, rows per s of a device; `compile_seconds`; `model_mb`.

    `rows` by version. `before_seconds`: of what runs on the client before the matrix. `sources`: where these are from.
    """

    rows: Mapping[str, int]
    loops: int
    fps: Mapping[int, float]
    compile_seconds: Mapping[int, float]
    model_mb: Mapping[int, float]
    before_seconds: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict)

    def batch_seconds(self, size: int) -> float:
        return size / self.fps[size]


class CapacityFigures(Schema):
    """An acceptance on so many devices. Times in seconds; `seconds` is the sum of `parts`, the largest is `most`.

    `shards`: attempts of all accuracy runs. `least_seconds`: no order of the same runs can take less, because of
    `least_by`.
    """

    devices: schema.Positive
    hosts: schema.Positive
    seconds: schema.NonNegative
    parts: dict[str, schema.NonNegative]
    most: str
    shards: schema.Count
    least_seconds: schema.NonNegative
    least_by: str


class CapacityDocument(Schema):
    """`fps`, `compile_seconds` and `model_mb` by batch size; `sources` says where each figure is from."""

    profile: str
    rows: dict[schema.Version, schema.Positive]
    loops: schema.Positive
    fps: dict[schema.Number, schema.AboveZero]
    compile_seconds: dict[schema.Number, schema.NonNegative]
    model_mb: dict[schema.Number, schema.NonNegative]
    before_seconds: schema.NonNegative
    start_seconds: schema.NonNegative
    shard_seconds: schema.AboveZero
    ship_mb: schema.AboveZero
    per_host: schema.Positive
    lost: schema.Count
    shared: bool
    sources: dict[str, str]
    plans: list[CapacityFigures]


def workload(
    workspace: Path,
    profile: Profile,
    sizes: Sequence[int],
    loops: int,
    fps: float = 0.0,
    compile_seconds: float = 300.0,
) -> Workload:
    """An acceptance on ascend: figures of this workspace's logs and records, else the published ones.

    `fps`: in place of both, if above 0. `compile_seconds`: of a model whose compilation no record tells. Raises
    MissingError for a batch size without fps, and for a version without a number of rows.
    """
    artifacts, sources, rates = Artifacts(profile.name, "ascend"), dict[str, str](), dict[int, float]()
    of_guide = {row.batch_size: row.ascend_fps for row in published.GUIDE if profile.published}
    seconds, sizes_mb = dict[int, float](), dict[int, float]()
    for size in sizes:
        logs = [
            workspace / artifacts.timing_log(size, version, runner)
            for runner in contract.RUNNERS
            for version in profile.rows
        ]
        log = next((path for path in logs if path.exists()), None)
        if fps or log is not None or size in of_guide:
            own = fps or (timing.read(log, size).fps if log is not None else of_guide[size])
            where = GIVEN if fps else str(log.relative_to(workspace)) if log is not None else published.SOURCE
            rates[size], sources[f"fps bs={size}"] = own, where
        else:
            raise MissingError(
                f"no fps is known of batch size {size}: profile {profile.name} has no {logs[0].name}, and nothing is "
                f"published of it. Measure it (invoke perf --bs {size} --profile {profile.name} --backend ascend), or "
                "give --fps"
            )
        model = artifacts.compiled(size)
        record = records.read(workspace / record_of(model))
        seconds[size] = record.seconds if record else compile_seconds
        sources[f"compilation bs={size}"] = str(record_of(model)) if record else ASSUMED
        path = workspace / model
        sizes_mb[size] = path.stat().st_size / 1e6 if path.exists() else MODEL_MB
    before = [
        artifacts.onnx,
        *(path for v in profile.rows for path in (artifacts.data_check(v), artifacts.reference(v))),
    ]
    known = [record for path in before if (record := records.read(workspace / record_of(path)))]
    rest = "; the rest is not counted" if len(known) < len(before) else ""
    sources[BEFORE] = f"{len(known)} of {len(before)} records of the export, data checks and PyTorch's logits{rest}"
    return Workload(
        rows=_rows(profile),
        loops=loops,
        fps=rates,
        compile_seconds=seconds,
        model_mb=sizes_mb,
        before_seconds=sum(record.seconds for record in known),
        sources=sources,
    )


def _rows(profile: Profile) -> dict[str, int]:
    rows = {version: count for version, count in profile.rows.items() if count}
    if len(rows) < len(profile.rows):
        raise MissingError(f"profile {profile.name} does not say how many rows it has: write `rows` in invoke.yaml")
    return rows


def figures(work: Workload, costs: Costs, devices: int) -> CapacityFigures:
    """An acceptance on so many devices, the hosts filled one by one."""
    hosts = -(-devices // costs.per_host)
    accuracy, shards = 0.0, 0
    for size in work.fps:
        for rows in work.rows.values():
            batches, seconds = contract.batch_count(rows, size), work.batch_seconds(size)
            run = simulation.accuracy(batches, [seconds] * devices, costs.start_seconds, costs.shards, costs.lost)
            accuracy, shards = accuracy + run.now, shards + len(run.attempts)
    performance = [_performance(work, costs, size) for size in work.fps]
    parts = {
        ACCURACY: accuracy,
        PERFORMANCE: len(work.rows) * sum(performance),
        FURTHER: _further(costs, devices) * min(performance),
        COMPILATION: sum(work.compile_seconds.values()),
        SHIPPING: hosts * sum(_shipping(work, costs, size, hosts) for size in work.fps),
        BEFORE: work.before_seconds,
    }
    least_by, least_seconds = least(work, costs, devices)
    return CapacityFigures(
        devices=devices,
        hosts=hosts,
        seconds=sum(parts.values()),
        parts=parts,
        most=max(parts, key=lambda name: parts[name]),
        shards=shards,
        least_seconds=least_seconds,
        least_by=least_by,
    )


def _shipping(work: Workload, costs: Costs, size: int, hosts: int) -> float:
    """Seconds to send a model to one host; a host alone has it."""
    return work.model_mb[size] / costs.ship_mb if hosts > 1 and not costs.shared else 0.0


def _performance(work: Workload, costs: Costs, size: int) -> float:
    return costs.start_seconds + work.loops * work.batch_seconds(size)


def _further(costs: Costs, devices: int) -> int:
    """The most devices of a host that are compared with the first one, which is none of them: they take turns."""
    return max(min(devices, costs.per_host) - 1, min(devices - costs.per_host, costs.per_host))


def accuracy_least(batches: int, batch_seconds: float, start_seconds: float, devices: int) -> float:
    """Seconds that an accuracy run takes at least: its shares of the batches, or the runs that wait for each other."""
    if devices == 1:
        return start_seconds + batches * batch_seconds
    first = start_seconds + batch_seconds
    rest = max((batches - 1) * batch_seconds / devices, min(batches - 1, 1) * first)
    return first + rest + first


def least(work: Workload, costs: Costs, devices: int) -> tuple[str, float]:
    """What no order of the same runs can go below, and why: the work spread evenly, or what waits for each other."""
    hosts = -(-devices // costs.per_host)
    beside = min(devices, costs.per_host)  # devices that a performance run keeps from work
    compilation = sum(work.compile_seconds.values())
    shortest = min(_performance(work, costs, size) for size in work.fps)
    device_seconds, chains, ends = (devices - 1) * shortest * beside, [], []
    for size in work.fps:
        batch_seconds, sent = work.batch_seconds(size), _shipping(work, costs, size, hosts)
        performance = _performance(work, costs, size)
        batches = [contract.batch_count(rows, size) for rows in work.rows.values()]
        device_seconds += sum(batches) * batch_seconds + len(batches) * performance * beside
        cell = max(accuracy_least(count, batch_seconds, costs.start_seconds, devices) for count in batches)
        chains.append((work.compile_seconds[size] + sent + performance, f"performance bs={size}"))
        ends.append(sent + max(cell, performance))
    longest, name = max(chains)
    bounds = {
        "all devices' work": device_seconds / devices,
        name: longest,
        FURTHER: _further(costs, devices) * shortest,
        COMPILATION: compilation + min(ends),
        BEFORE: work.before_seconds,
    }
    reason = max(bounds, key=lambda name: bounds[name])
    return reason, bounds[reason]


def document(profile: str, work: Workload, costs: Costs, devices: Sequence[int]) -> CapacityDocument:
    def by_size(values: Mapping[int, float]) -> dict[str, float]:
        return {str(size): value for size, value in values.items()}

    return CapacityDocument(
        profile=profile,
        rows=dict(work.rows),
        loops=work.loops,
        fps=by_size(work.fps),
        compile_seconds=by_size(work.compile_seconds),
        model_mb=by_size(work.model_mb),
        before_seconds=work.before_seconds,
        start_seconds=costs.start_seconds,
        shard_seconds=costs.shards.seconds,
        ship_mb=costs.ship_mb,
        per_host=costs.per_host,
        lost=costs.lost,
        shared=costs.shared,
        sources=dict(work.sources),
        plans=[figures(work, costs, count) for count in devices],
    )


def text(plan: CapacityDocument) -> str:
    """The document as a table, after what it rests on."""
    rows = " and ".join(f"{version} {count}" for version, count in plan.rows.items())
    sizes, fps = ", ".join(plan.fps), ", ".join(f"{value:.4g}" for value in plan.fps.values())
    seconds = ", ".join(f"{value:.0f}" for value in plan.compile_seconds.values())
    sent = "nothing is sent" if plan.shared else f"{plan.ship_mb:g} MB/s from one sender"
    largest = max(plan.model_mb.values())
    lines = [
        f"An acceptance of {plan.profile}: batch sizes {sizes}; rows {rows}; {plan.loops} loops; "
        f"hosts of {many(plan.per_host, 'device')}",
        f"  fps {fps}: {_sources(plan, 'fps')}",
        f"  compilation {seconds} s: {_sources(plan, 'compilation')}",
        f"  start of a run {plan.start_seconds:g} s; shards of {plan.shard_seconds:g} s, {plan.lost} of each accuracy "
        f"run lost; models up to {largest:.0f} MB, {sent}",
        f"  before: {duration(plan.before_seconds)}, by {plan.sources.get(BEFORE, GIVEN)}",
        "",
    ]
    shown = [name for name in plan.plans[0].parts if any(entry.parts[name] for entry in plan.plans)]
    table = [("devices", "hosts", "acceptance", *shown, "most of it", "at least", "because of")]
    for entry in plan.plans:
        times = [duration(value) for value in (entry.seconds, *(entry.parts[name] for name in shown))]
        least_time = duration(entry.least_seconds)
        table.append((str(entry.devices), str(entry.hosts), *times, entry.most, least_time, entry.least_by))
    return "\n".join([*lines, *aligned(table)])


def _sources(plan: CapacityDocument, what: str) -> str:
    return ", ".join(dict.fromkeys(where for name, where in plan.sources.items() if name.startswith(what)))
