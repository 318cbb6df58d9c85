"""A cluster's client: its own executor does all but run the model, so that it needs no device, CANN or msame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from deberta.core.job import DeviceFacts
from deberta.host.engine.transcript import Show
from deberta.host.plan.plan import Step
from deberta.host.run.executor import Executor, Provenance


@dataclass(frozen=True)
class ClientExecutor:
    """`own`: the client's. `device`: the facts of a device that is to run a step's model.

    Records name what the devices run the model with; `agreement.check_record` holds all of them to it.
    """

    own: Executor
    device: Callable[[Step], DeviceFacts]

    @property
    def name(self) -> str:
        return self.own.name

    @property
    def root(self) -> Path:
        return self.own.root

    def identity(self, step: Step) -> Mapping[str, Any]:
        if not step.on_device:
            return self.own.identity(step)
        facts = self.device(step)
        of_host = {"cann": facts.cann} if facts.cann and "image" not in facts.program else {}
        return {**of_host, **facts.program}

    def prepare(self, step: Step) -> None:
        if not step.on_device:
            self.own.prepare(step)

    def hold(self, files: Sequence[int]) -> None:
        self.own.hold(files)

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        return self.own.run(step, arguments, show)

    def provenance(self, step: Step) -> Provenance:
        if not step.on_device:
            return self.own.provenance(step)
        facts = self.device(step)
        return Provenance(internal={"cann": facts.cann, **({"image_contents": facts.image} if facts.image else {})})

    def show(self, step: Step) -> None:
        self.own.show(step)

    def sibling(self) -> Executor:
        return self.own.sibling()

    def close(self) -> None:
        self.own.close()
