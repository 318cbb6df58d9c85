"""The devices of this host: a process for each, see `runner_process`."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import wait
from typing import Sequence

from deberta.core.errors import from_exit_code
from deberta.core.job import DeviceFacts
from deberta.host.plan.plan import Step
from deberta.host.run.session import Session
from deberta.host.shards import work
from deberta.host.shards.pool import DeviceGone, Event, ShardDone, ShardFailed, ShardRequest, ShardWaits
from deberta.host.shards.runner_process import RunnerProcess


class LocalPool:
    engine = ""

    def __init__(self, session: Session, devices: Sequence[int]) -> None:
        self.processes = {work.name_of(device): RunnerProcess(session, device) for device in devices}

    def devices(self, step: Step) -> list[DeviceFacts]:
        for process in self.processes.values():
            process.ask(step)
        facts = []
        for process in self.processes.values():
            answer = process.facts()
            if isinstance(answer, ShardFailed):
                raise from_exit_code(answer.code, answer.why)
            facts.append(answer)
        return facts

    def start(self, device: str, request: ShardRequest) -> None:
        with contextlib.suppress(OSError):  # it has ended, which `wait` will say
            self.processes[device].ask(request)

    def wait(self, seconds: float) -> list[Event]:
        by_connection = {process.connection: name for name, process in self.processes.items()}
        events: list[Event] = []
        for ready in wait(list(by_connection), seconds):
            name = by_connection[ready]  # type: ignore[index]
            try:
                answer = self.processes[name].read()
                assert isinstance(answer, (ShardDone, ShardFailed, ShardWaits))
                events.append(answer)
            except EOFError:
                self.drop(name)
                events.append(DeviceGone(name, "its process was killed"))
        return events

    def drop(self, device: str) -> None:
        self.processes.pop(device).end(grace=0)

    def close(self) -> None:
        while self.processes:
            self.processes.popitem()[1].end()
