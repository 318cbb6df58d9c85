"""Performance runs on the devices of a cluster: never cut, and each alone on its host from beginning to end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, NamedTuple, Sequence

from deberta.core import contract, records
from deberta.core.errors import MissingError, StageError, from_exit_code
from deberta.core.job import DeviceFacts
from deberta.host.plan.plan import Step
from deberta.host.shards import work
from deberta.host.shards.pool import DeviceGone, Outcome, Pool, ShardDone, ShardFailed, ShardRequest, ShardWaits

TICK_SECONDS = 1.0
SLOWEST = 1.0  # rows of 256 tokens per s: a device that takes longer is given up
LATE = "it did not answer in time"


class MeasuredDevice(NamedTuple):
    """What came of a device's run. `begun`: when it was asked for, by this host's clock; ISO 8601 in UTC."""

    device: str
    begun: str
    outcome: Outcome


@dataclass
class _MeasuredNow:
    """The run that a device was asked for, given up at `deadline` unless it waits for its host to be free."""

    attempt: int
    begun: str
    seconds: float
    deadline: float


def run(
    pool: Pool,
    step: Step,
    facts: Sequence[DeviceFacts],
    device: str,
    patience: float,
    say: Callable[[str], None],
) -> ShardDone:
    """Run a performance step on a device, or on the first one that is there if none is named; `facts` are of those.

    After a device that goes comes the next, and begins anew. `patience`: seconds for all but the inference. Raises
    MissingError if the device that is named is not there, StageError if none is left, and the run's own error.
    """
    names = [entry.name for entry in sorted(facts, key=lambda entry: (entry.host, entry.device))]
    if device:
        if device not in names:
            raise MissingError(f"{device} is none of the devices: {', '.join(names)}. See: invoke cluster show")
        names = [device]
    why = "there is none"
    for attempt, name in enumerate(names, 1):
        [(_, _, event)] = run_each(pool, {name: step}, facts, patience, say, attempt)
        if isinstance(event, ShardDone):
            return event
        if isinstance(event, ShardFailed):
            raise from_exit_code(event.code, f"{name}: {event.why}")
        why = f"{name}: {event.why}"
        say(why)
    raise StageError(f"no device is left for {step.title} ({why}). Run the same command again")


def run_each(
    pool: Pool,
    steps: Mapping[str, Step],
    facts: Sequence[DeviceFacts],
    patience: float,
    say: Callable[[str], None],
    attempt: int = 1,
) -> Iterator[MeasuredDevice]:
    """Run the performance step of each device: on all hosts at once, and on a host one device after another.

    `steps` by device, of those that `facts` are of. Yields what came of each run as soon as it is known: a device that
    fails or goes keeps no other from its run. `attempt`: the number of the first request. `patience`: as of `run`.
    """
    hosts = {entry.name: entry.host for entry in facts}
    waiting: dict[str, list[str]] = {}  # devices by host
    for name in steps:
        waiting.setdefault(hosts[name], []).append(name)
    asked: dict[str, _MeasuredNow] = {}
    while asked or any(waiting.values()):
        for host in [host for host, names in waiting.items() if names and not _is_busy(host, hosts, asked)]:
            name = waiting[host].pop(0)
            say(f"on {name} alone")
            seconds = patience + _seconds_at_most(steps[name])
            asked[name] = _MeasuredNow(attempt, records.now(), seconds, time.monotonic() + seconds)
            [length] = work.batches(steps[name])
            pool.start(name, ShardRequest(steps[name], length, 0, 0, attempt))
            attempt += 1
        for event in pool.wait(TICK_SECONDS):
            own = asked.get(event.device)
            if isinstance(event, DeviceGone):
                if own is None and event.device not in waiting.get(hosts.get(event.device, ""), ()):
                    continue
                if own is None:
                    waiting[hosts[event.device]].remove(event.device)
                yield MeasuredDevice(event.device, asked.pop(event.device).begun if own else records.now(), event)
            elif own is None or event.attempt != own.attempt:
                continue
            elif isinstance(event, ShardWaits):
                say(f"{event.device}: {event.why}")
                own.deadline = time.monotonic() + own.seconds
            else:
                yield MeasuredDevice(event.device, asked.pop(event.device).begun, event)
        now = time.monotonic() if asked else 0.0
        for name in [name for name, own in asked.items() if now >= own.deadline]:
            pool.drop(name)
            yield MeasuredDevice(name, asked.pop(name).begun, DeviceGone(name, LATE))


def _is_busy(host: str, hosts: Mapping[str, str], asked: Mapping[str, _MeasuredNow]) -> bool:
    return any(hosts[name] == host for name in asked)


def _seconds_at_most(step: Step) -> float:
    """Of the inference alone, on the slowest device."""
    [(length, whole)] = work.batches(step).items()
    return whole.times * work.batch_size(whole) * length / contract.SEQUENCE_LENGTH / SLOWEST
