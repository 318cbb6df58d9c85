"""A performance run on a device of a cluster: never cut, and alone on its host from beginning to end."""

from __future__ import annotations

import time
from typing import Callable, Sequence, Union

from deberta.core import contract
from deberta.core.errors import MissingError, StageError, from_exit_code
from deberta.core.job import DeviceFacts
from deberta.host.plan.plan import Step
from deberta.host.shards import work
from deberta.host.shards.pool import DeviceGone, Pool, ShardDone, ShardFailed, ShardRequest, ShardWaits

TICK_SECONDS = 1.0
SLOWEST = 1.0  # rows of 256 tokens per s: a device that takes longer is given up


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
    [(length, whole)] = work.batches(step).items()
    rows = whole.times * work.batch_size(whole) * length / contract.SEQUENCE_LENGTH
    why = "there is none"
    for attempt, name in enumerate(names, 1):
        say(f"on {name} alone")
        pool.start(name, ShardRequest(step, length, 0, 0, attempt))
        event = _answer(pool, name, attempt, patience + rows / SLOWEST, say)
        if isinstance(event, ShardDone):
            return event
        if isinstance(event, ShardFailed):
            raise from_exit_code(event.code, f"{name}: {event.why}")
        why = f"{name}: {event.why}"
        say(why)
    raise StageError(f"no device is left for {step.title} ({why}). Run the same command again")


def _answer(
    pool: Pool, device: str, attempt: int, seconds: float, say: Callable[[str], None]
) -> Union[ShardDone, ShardFailed, DeviceGone]:
    """What a device answers; one that does not in time is given up, unless it waits for its host to be free."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        for event in pool.wait(TICK_SECONDS):
            if event.device != device or (not isinstance(event, DeviceGone) and event.attempt != attempt):
                continue
            if not isinstance(event, ShardWaits):
                return event
            say(f"{device}: {event.why}")
            give_up = time.monotonic() + seconds
    pool.drop(device)
    return DeviceGone(device, "it did not answer in time")
