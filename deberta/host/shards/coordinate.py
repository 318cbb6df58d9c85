"""Places the shards of one run on devices: what is missing, a shard at a time, again elsewhere where one is lost.

All devices run batch 0 first, and some batches run on a second device at the end: the bytes have to be the same.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Annotated, Callable, Mapping, Optional, Sequence

import msgspec
from msgspec import Meta

from deberta.core import records
from deberta.core.errors import DataError, StageError, from_exit_code, many, some
from deberta.core.job import DeviceFacts, LostAttempt, SameBatch, Shard
from deberta.core.progress import duration
from deberta.host.plan.plan import Step
from deberta.host.shards import agreement, spans
from deberta.host.shards.pool import DeviceGone, Outcome, Pool, ShardDone, ShardFailed, ShardRequest, ShardWaits
from deberta.host.shards.spans import Span
from deberta.host.shards.store import ShardStore, StoredShard

COMPARED = 100  # one batch of so many runs on a second device
TICK_SECONDS = 1.0
STRIKES = 2  # failures in a row after which a device gets no more shards


class ShardSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`shards` of invoke.yaml.

    `seconds`: of work in a shard; `batches`: of a shard, in place of seconds. `retries`: of a shard elsewhere.
    `patience`: seconds that a device may be silent beyond five times what a shard should take; the first shard of a
    device has `first_patience` instead.
    """

    seconds: Annotated[float, Meta(gt=0, le=86400)] = 60.0
    batches: Annotated[int, Meta(ge=0, le=10**6)] = 0
    retries: Annotated[int, Meta(ge=0, le=100)] = 2
    patience: Annotated[float, Meta(gt=0, le=86400)] = 120.0
    first_patience: Annotated[float, Meta(gt=0, le=86400)] = 900.0


@dataclass(frozen=True)
class _Asked:
    """A shard that a device was asked for. `compared`: it is compared with stored bytes, and is none of the result.

    `seconds`: that it has, which end at `deadline`. `begun`: when, by this host's clock, so that the times of all
    devices can be compared.
    """

    request: ShardRequest
    device: str
    deadline: float
    seconds: float
    begun: str
    compared: bool = False


@dataclass
class Coordinator:
    """One run. `devices`: those that are of use still, by name; `say` and `show` take messages and progress.

    `different`: devices that differ are allowed, and recorded.
    """

    pool: Pool
    store: ShardStore
    step: Step
    batches: Mapping[int, int]
    devices: dict[str, DeviceFacts]
    settings: ShardSettings
    say: Callable[[str], None]
    show: Callable[[str], None]
    different: bool = False
    done: list[StoredShard] = field(default_factory=list)
    lost: list[LostAttempt] = field(default_factory=list)
    compared: list[SameBatch] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    logs: list[tuple[Span, str]] = field(default_factory=list)
    _asked: dict[int, _Asked] = field(default_factory=dict)
    _ms: dict[str, float] = field(default_factory=dict)  # device -> ms of a batch by token of its length
    _strikes: dict[str, int] = field(default_factory=dict)
    _failed_on: dict[Span, list[str]] = field(default_factory=dict)
    _attempts: int = 0
    _facts: dict[str, DeviceFacts] = field(default_factory=dict)

    def run(self) -> None:
        """Have every batch run once, and what is to be compared a second time.

        Raises StageError if no device is left, the error of a shard that failed everywhere, and DataError for devices
        that give different bytes. What is finished stays in the store.
        """
        self._facts = dict(self.devices)
        self.done, self.lost = self.store.load(self.say), self.store.lost()
        kept = sum(entry.shard.last - entry.shard.first + 1 for entry in self.done)
        if kept:
            self.say(f"{kept} of {self._total} batches are there from a run that was stopped")
        if len(self.devices) > 1:
            self._agree()
        self._run_missing()
        if len(self.devices) > 1 or len({entry.shard.device for entry in self.done} | {*self.devices}) > 1:
            self._compare_again()
        else:
            self.not_checked.append("no batch ran on a second device: there was one")

    @property
    def _total(self) -> int:
        return sum(self.batches.values())

    def _agree(self) -> None:
        """Every device runs batch 0 at the longest length; one that gives other bytes is refused by name."""
        length = max(length for length, count in self.batches.items() if count)
        span = (length, 0, 0)
        for device in self.devices:
            self._ask(device, span, self.settings.first_patience, compared=True)
        answers: dict[str, ShardDone] = {}
        while self._asked:
            for event in self._events():
                asked = self._settle(event)
                if isinstance(event, ShardFailed) and asked:
                    raise from_exit_code(event.code, f"{event.device}: {event.why}")
                if isinstance(event, ShardDone) and asked:
                    answers[event.device] = _timed_here(asked, event)
        if not answers:
            raise self._nobody_left()
        known = [stored for stored in self.done if stored.shard.length == length and stored.shard.first == 0]
        contents = {device: b"".join(done.outputs.values()) for device, done in answers.items()}
        if known:
            device, kept = known[0].shard.device, next(iter(self.store.outputs(known[0].shard).values()))
            if contents.setdefault(device, kept) != kept:
                raise DataError(
                    f"{device} gives other bytes for batch 0 at length {length} than in the run that "
                    "this goes on from. Leave it out"
                )
        same = agreement.check_bytes(contents, length, 0, self.different)
        self.compared.append(SameBatch(length=length, batch=0, devices=list(contents), same=same))
        if not known:
            name = next(iter(answers))
            self._keep(span, answers[name])

    def _run_missing(self) -> None:
        waiting = self._missing()
        while waiting or self._asked:
            busy = {asked.device for asked in self._asked.values()}
            for device in [device for device in self.devices if device not in busy]:
                if span := self._next(device, waiting):
                    self._ask(device, span, self._limit(device, span))
            if not self._asked:
                raise self._nobody_left()
            for event in self._events():
                asked = self._settle(event)
                if asked is None:
                    continue
                if isinstance(event, ShardDone):
                    self._keep(asked.request.span, _timed_here(asked, event))
                else:
                    self._again(asked, event, waiting)
            self._progress()

    def _missing(self) -> list[Span]:
        """Spans that are to be run, the longest length first."""
        have = [(s.shard.length, s.shard.first, s.shard.last) for s in self.done]
        return sorted(spans.missing(self.batches, have), key=lambda span: (-span[0], span[1]))

    def _next(self, device: str, waiting: list[Span]) -> Optional[Span]:
        """Take a shard for a device from what is waiting: about a minute of work, or its part of what is left."""
        for number, (length, first, last) in enumerate(waiting):
            tried = self._failed_on.get((length, first, last), ())
            if device in tried and any(other not in tried for other in self.devices):
                continue
            most = self._most(device, length, waiting)
            # What failed somewhere stays as it is, so that its failures are counted.
            end = last if tried else min(last, first + most - 1)
            waiting[number : number + 1] = [(length, end + 1, last)] if end < last else []
            return length, first, end
        return None

    def _most(self, device: str, length: int, waiting: Sequence[Span]) -> int:
        """How many batches of a length a shard of a device has."""
        if self.settings.batches:
            return self.settings.batches
        own = self._ms.get(device) or max(self._ms.values(), default=0.0)
        left = sum((last - first + 1) * of for of, first, last in waiting) / len(self.devices)
        part = math.ceil(left / length)
        if not own:  # nothing is known of its pace
            return max(1, min(part, 8))
        return max(1, min(part, int(self.settings.seconds * 1000 / (own * length))))

    def _limit(self, device: str, span: Span) -> float:
        """Seconds after which a device is given up."""
        own = self._ms.get(device)
        length, first, last = span
        if own is None:
            return self.settings.first_patience
        return self.settings.patience + 5 * own * length * (last - first + 1) / 1000

    def _ask(self, device: str, span: Span, seconds: float, compared: bool = False) -> None:
        self._attempts += 1
        host = self.devices[device].host
        beside = [facts.host for facts in self.devices.values()].count(host)
        request = ShardRequest(self.step, *span, attempt=self._attempts, runs_beside=beside)
        self._asked[self._attempts] = _Asked(
            request, device, time.monotonic() + seconds, seconds, records.now(), compared
        )
        self.pool.start(device, request)

    def _events(self) -> list[Outcome]:
        """What has happened, among it devices whose time is up; none is while another run of ours has the device."""
        first = min(asked.deadline for asked in self._asked.values())
        events: list[Outcome] = []
        for event in self.pool.wait(max(0.0, min(TICK_SECONDS, first - time.monotonic()))):
            if not isinstance(event, ShardWaits):
                events.append(event)
            elif waiting := self._asked.get(event.attempt):
                self.say(f"{event.device}: {event.why}")
                self._asked[event.attempt] = replace(waiting, deadline=time.monotonic() + waiting.seconds)
        now = time.monotonic()
        answered = {event.attempt for event in events if not isinstance(event, DeviceGone)}
        for attempt, asked in self._asked.items():
            if now >= asked.deadline and attempt not in answered:
                self.pool.drop(asked.device)
                events.append(DeviceGone(asked.device, "it did not answer in time"))
        return events

    def _settle(self, event: Outcome) -> Optional[_Asked]:
        """What an event answers; None for a late one, which is refused. A device that is gone is of no more use."""
        if isinstance(event, DeviceGone):
            self.devices.pop(event.device, None)
            number = next((n for n, asked in self._asked.items() if asked.device == event.device), 0)
            asked = self._asked.pop(number, None)
            self.say(f"{event.device}: {event.why}")
            if asked:
                self._lose(asked, event.why)
            return asked
        asked = self._asked.get(event.attempt)
        if asked is None or asked.device != event.device:
            self.say(f"{event.device}: a late answer is refused, its shard was given to another device")
            return None
        del self._asked[event.attempt]
        if isinstance(event, ShardFailed):
            self.say(f"{event.device}: {spans.text(*asked.request.span)} failed: {event.why}")
            self._lose(asked, event.why)
            self._strikes[event.device] = self._strikes.get(event.device, 0) + 1
            return asked
        self._strikes.pop(event.device, None)
        length, first, last = asked.request.span
        self._ms[event.device] = event.inference_ms / (length * (last - first + 1))
        return asked

    def _lose(self, asked: _Asked, why: str) -> None:
        length, first, last = asked.request.span
        self.lost.append(
            LostAttempt(length=length, first=first, last=last, device=asked.device, why=why, at=records.now())
        )
        self.store.keep_lost(self.lost)

    def _again(self, asked: _Asked, event: Outcome, waiting: list[Span]) -> None:
        """Put a lost shard back. Raises its error if it failed too often."""
        span = asked.request.span
        if isinstance(event, ShardFailed):
            failed = self._failed_on.setdefault(span, [])
            failed.append(event.device)
            others = [device for device in self.devices if device not in failed]
            if len(failed) > self.settings.retries or not others:
                raise from_exit_code(event.code, f"{event.device}: {event.why}")
            if self._strikes.get(event.device, 0) >= STRIKES:
                self.say(f"{event.device} gets no more shards: {many(STRIKES, 'shard')} in a row failed there")
                del self.devices[event.device]
        waiting.insert(0, span)

    def _keep(self, span: Span, done: ShardDone) -> None:
        entry = self.store.keep(span, done, self._facts[done.device])
        self.done.append(entry)
        self.logs.append((span, done.log))
        self.not_checked += [line for line in done.not_checked if line not in self.not_checked]

    def _compare_again(self) -> None:
        """Of each device's batches one in COMPARED, and at least one, run on another device."""
        wanted: list[tuple[Span, Shard]] = []
        of_device: dict[str, list[Shard]] = {}
        for entry in self.done:
            of_device.setdefault(entry.shard.device, []).append(entry.shard)
        for _, own in sorted(of_device.items()):
            left = -(-sum(shard.last - shard.first + 1 for shard in own) // COMPARED)
            for shard in sorted(own, key=lambda shard: (shard.first - shard.last, shard.length, shard.first)):
                first = max(shard.first, shard.last - left + 1)
                if left > 0:
                    wanted.append(((shard.length, first, shard.last), shard))
                left -= shard.last - first + 1
        origins = dict(wanted)
        waiting = [span for span, _ in wanted]
        while waiting or self._asked:
            busy = {asked.device for asked in self._asked.values()}
            for device in [device for device in self.devices if device not in busy]:
                of_others = [span for span in waiting if origins[span].device != device]
                if of_others:
                    waiting.remove(of_others[0])
                    self._ask(device, of_others[0], self._limit(device, of_others[0]), compared=True)
            if not self._asked:
                self.not_checked += [
                    f"{spans.text(*span)} of {origins[span].device} did not run on a second device: none was left"
                    for span in waiting
                ]
                return
            for event in self._events():
                asked = self._settle(event)
                if asked is not None and isinstance(event, ShardDone):
                    self._compare(event, asked.request.span, origins[asked.request.span])
                elif asked is not None:
                    waiting.append(asked.request.span)
                    if isinstance(event, ShardFailed):
                        self.devices.pop(event.device, None)

    def _compare(self, again: ShardDone, span: Span, origin: Shard) -> None:
        stored = self.store.outputs(origin)
        length, first, _ = span
        for index, (name, content) in enumerate(again.outputs.items()):
            contents = {origin.device: stored[name], again.device: content}
            try:
                same = agreement.check_bytes(contents, length, first + index, self.different)
            except DataError:
                # Which of the two is wrong is not known, so nothing of either stays.
                both = (origin.device, again.device)
                self.store.forget([entry.shard for entry in self.done if entry.shard.device in both])
                raise
            self.compared.append(SameBatch(length=length, batch=first + index, devices=list(contents), same=same))

    def _progress(self) -> None:
        finished = sum(entry.shard.last - entry.shard.first + 1 for entry in self.done)
        work = sum((last - first + 1) * length for length, first, last in self._missing())
        paces = {device: self._ms[device] for device in self.devices if self._ms.get(device)}
        left = f", {duration(work / sum(1 / ms for ms in paces.values()) / 1000)} left" if paces else ""
        longest = max(self.batches)
        rates = ", ".join(f"{device} {1000 / (ms * longest):.3g}" for device, ms in sorted(paces.items()))
        each = f" ({rates} batches per s at length {longest})" if rates else ""
        self.show(
            f"[progress] infer: {finished}/{self._total} batches on {many(len(self.devices), 'device')}{each}{left}"
        )

    def _nobody_left(self) -> StageError:
        """No device is left."""
        missing = [spans.text(*span) for span in sorted(self._missing())]
        finished = sum(entry.shard.last - entry.shard.first + 1 for entry in self.done)
        why = f" (the last: {self.lost[-1].device}: {self.lost[-1].why})" if self.lost else ""
        return StageError(
            f"no device is left to run {some(missing, 4)}{why}. {finished} of {self._total} batches are finished and "
            "kept: run the same command again, which runs what is missing"
        )


def _timed_here(asked: _Asked, done: ShardDone) -> ShardDone:
    """With this host's times: the clocks of other hosts may be hours apart."""
    return replace(done, started=asked.begun, finished=records.now())
