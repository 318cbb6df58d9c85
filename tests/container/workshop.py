"""A project of stand-ins whose images are built on the real engine, and left there for the other tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deberta.host.images import build as building
from deberta.host.images import definition, pins
from deberta.host.images.definition import BuildSettings, Image
from tests.container.bases import BOOKWORM, BULLSEYE
from tests.image_helpers import ARCH

BASES = {"export": BOOKWORM, "compile": BULLSEYE, "runtime": BULLSEYE}
CONTAINER = {definition.LABEL: "container"}


@dataclass
class Workshop:
    """A project of stand-ins, and how its images are built without a network. `built`: tags to remove at the end."""

    client: Any
    project: Path
    settings: BuildSettings
    built: list[str]

    def plan(self, stage: str) -> Image:
        return definition.plan(self.project, pins.load(self.project), stage, ARCH)

    def build(self, stage: str, settings: BuildSettings | None = None) -> Image:
        image = self.plan(stage)
        self.built.append(image.tag)
        building.build(self.client, image, settings or self.settings, self.log, self.said.append)
        return image

    def ensure(self, stage: str) -> Image:
        image = self.plan(stage)
        return image if building.find(self.client, image) else self.build(stage)

    def run(self, image: Image, *command: str, **options: Any) -> str:
        printed: bytes = self.client.containers.run(
            image.tag, list(command), remove=True, network_mode="none", labels=CONTAINER, **options
        )
        return printed.decode()

    @property
    def log(self) -> Path:
        return self.project / ".cache" / "images" / "build.log"

    @property
    def said(self) -> list[str]:
        lines: list[str] = self.__dict__.setdefault("_said", [])
        return lines
