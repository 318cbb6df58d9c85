"""One accuracy run on devices that only count time: a discrete-event simulation of the placing of shards.

What places them is the coordinator of every run; what is simulated is a pool of devices with a clock of their own.
Nothing is run or written.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Callable, Mapping, Sequence

from deberta.core import contract
from deberta.core.job import DeviceFacts, LostAttempt, Shard
from deberta.host.plan.plan import Step
from deberta.host.shards.coordinate import Coordinator, ShardSettings
from deberta.host.shards.pool import Event, ShardDone, ShardFailed, ShardRequest
from deberta.host.shards.spans import Span
from deberta.host.shards.store import ShardStore, StoredShard

LENGTH = contract.SEQUENCE_LENGTH
_NEVER = "2000-01-01T00:00:00Z"
_DIGEST = hashlib.sha256().hexdigest()
_STEP = Step("infer", "infer", "", (), (), (), PurePosixPath("infer.log"), {})


@dataclass(frozen=True)
class Attempt:
    """A request of the coordinator: when it began and ended, in seconds, and whether it was lost at its end."""

    device: str
    span: Span
    began: float
    ended: float
    lost: bool = False


@dataclass
class SimulatedPool:
    """See `host.shards.pool.Pool`. `batch_seconds`: of each device by its name. `start_seconds`: of each request.

    `lost`: so many requests fail when they would have ended, of a shard and of a device one at most.
    """

    batch_seconds: Mapping[str, float]
    start_seconds: float
    lost: int = 0
    now: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    engine: str = "simulation"
    _events: list[tuple[float, int, Event]] = field(default_factory=list)
    _failed: dict[str, Span] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def devices(self, step: Step) -> Sequence[DeviceFacts]:
        return [DeviceFacts(host=name.rpartition("/")[0], device=0) for name in self.batch_seconds]

    def start(self, device: str, request: ShardRequest) -> None:
        seconds = self.batch_seconds[device] * (request.last - request.first + 1)
        end = self.now + self.start_seconds + seconds
        is_first = len(self.attempts) < len(self.batch_seconds)  # batch 0, which all devices run
        is_known = device in self._failed or request.span in self._failed.values()
        is_lost = not is_first and not is_known and len(self._failed) < self.lost
        self.attempts.append(Attempt(device, request.span, self.now, end, is_lost))
        event: Event = ShardDone(device, request.attempt, {}, "", {}, 1000 * seconds, _NEVER, _NEVER)
        if is_lost:
            self._failed[device] = request.span
            event = ShardFailed(device, request.attempt, "lost", 4)
        heapq.heappush(self._events, (end, next(self._numbers), event))

    def wait(self, seconds: float) -> list[Event]:
        """What happens next, at once: it is the clock that goes on."""
        self.now, _, event = heapq.heappop(self._events)
        events = [event]
        while self._events and self._events[0][0] == self.now:
            events.append(heapq.heappop(self._events)[2])
        return events

    def drop(self, device: str) -> None:
        """No simulated device is silent."""

    def close(self) -> None:
        """Nothing is open."""


class _Counted(ShardStore):
    """Finished shards that leave nothing."""

    def __init__(self) -> None:
        super().__init__(Path(), {})

    def load(self, say: Callable[[str], None]) -> list[StoredShard]:
        return []

    def lost(self) -> list[LostAttempt]:
        return []

    def keep_lost(self, lost: Sequence[LostAttempt]) -> None:
        """They are counted as attempts."""

    def keep(self, span: Span, done: ShardDone, device: DeviceFacts) -> StoredShard:
        length, first, last = span
        shard = Shard(
            length=length,
            first=first,
            last=last,
            device=done.device,
            digest=_DIGEST,
            started=done.started,
            finished=done.finished,
            inference_ms=done.inference_ms,
        )
        return StoredShard(shard=shard, device=device, summary={}, not_checked=[])

    def outputs(self, shard: Shard) -> Mapping[str, bytes]:
        return {"": b""}


class _Unwatched(Coordinator):
    def _progress(self) -> None:
        """To say how far it is takes longer than to place shards."""


def accuracy(
    batches: int, batch_seconds: Sequence[float], start_seconds: float, settings: ShardSettings, lost: int = 0
) -> SimulatedPool:
    """An accuracy run of so many batches on devices, each with its seconds of a batch; `now` of the pool is its end.

    One device has no shards: it starts once, and runs all batches.
    """
    names = {f"{number}/0": seconds for number, seconds in enumerate(batch_seconds)}
    pool = SimulatedPool(names, start_seconds, lost)
    if len(names) == 1:
        [name] = names
        pool.start(name, ShardRequest(_STEP, LENGTH, 0, batches - 1, 1))
        pool.wait(0)
        return pool
    facts = {device.name: device for device in pool.devices(_STEP)}
    _Unwatched(pool, _Counted(), _STEP, {LENGTH: batches}, facts, settings, _ignore, _ignore).run()
    return pool


def _ignore(line: str) -> None:
    """Nobody watches."""
