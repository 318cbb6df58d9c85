"""Devices that run shards, and what passes between them and the coordinator.

A device is asked for one shard at a time. Whoever it is, this host's own process (`local_pool`) or a worker of a
cluster's, it runs the shard with the same function, `work.run`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Protocol, Sequence, Union

from deberta.core.job import DeviceFacts
from deberta.host.plan.plan import Step


@dataclass(frozen=True)
class ShardRequest:
    """A run of the model over whole batches: `first` to `last`, both of them among it, of the step's run at a length.

    `step`: of the whole run; paths are relative to the workspace of whoever runs it. `attempt`: no other request of
    the run has this number. `runs_beside`: how many devices of the same host run shards, which share its cores on cpu.
    """

    step: Step
    length: int
    first: int
    last: int
    attempt: int
    runs_beside: int = 1

    @property
    def span(self) -> tuple[int, int, int]:
        return self.length, self.first, self.last


@dataclass(frozen=True)
class ShardDone:
    """`outputs`: the content of each output file by its name, judged where it ran. `log`: what the runner printed.

    `started`, `finished`: ISO 8601 in UTC. `summary`: what the cpu backend's stage counted; empty for a tool.
    """

    device: str
    attempt: int
    outputs: Mapping[str, bytes]
    log: str
    summary: Mapping[str, object]
    inference_ms: float
    started: str
    finished: str
    not_checked: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardFailed:
    """A run that failed where it ran. `code`: the exit code of its error (deberta.core.errors)."""

    device: str
    attempt: int
    why: str
    code: int


@dataclass(frozen=True)
class ShardWaits:
    """A shard whose device, or host, another run of ours has (host.run.device_locks); said again while it waits."""

    device: str
    attempt: int
    why: str


@dataclass(frozen=True)
class DeviceGone:
    """A device that answers no more; what it was asked for is lost."""

    device: str
    why: str


Outcome = Union[ShardDone, ShardFailed, DeviceGone]
Event = Union[Outcome, ShardWaits]


class Pool(Protocol):
    """Implemented by `local_pool.LocalPool` and by cluster's `dask_pool.DaskPool`; a context manager ends it all."""

    @property
    def engine(self) -> str:
        """As of Sharding: empty, or what places the shards and its version."""

    def devices(self, step: Step) -> Sequence[DeviceFacts]:
        """Who can run shards of this step now. Raises the errors of a device that cannot: busy, ill, no msame."""

    def start(self, device: str, request: ShardRequest) -> None:
        """Ask an idle device for a shard. Returns at once."""

    def wait(self, seconds: float) -> list[Event]:
        """What has happened, as soon as something has; nothing after so many seconds."""

    def drop(self, device: str) -> None:
        """Give up a device that did not answer in time: end what it does, if it can be reached."""

    def close(self) -> None:
        """End everything everywhere."""
