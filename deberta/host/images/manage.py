"""The commands on stage images: `invoke images` builds, pins and replaces them, `invoke clean` removes them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Sequence

import docker.errors

from deberta.core import contract, progress
from deberta.core.errors import ConfigError, DebertaError, MissingError, StageError
from deberta.host.engine import engine
from deberta.host.images import build, definition, pins
from deberta.host.images.definition import BuildSettings


def lock(project: Path) -> None:
    """Rewrite docker/pins.toml; without an engine only the hashes of files."""
    client: Any = None
    try:
        client = engine.connect()
    except MissingError as error:
        progress.say(f"digests of base images are kept: {error}")
    changes = pins.lock(project, (lambda name: build.resolve(client, name)) if client else None, platform.machine())
    print("\n".join(changes) or f"{pins.PINS}: nothing changed")


def replace_bases(project: Path, assignments: Sequence[str], dry: bool) -> None:
    """`STAGE=IMAGE` for each base to replace on this machine, or `STAGE=pinned`. Raises ConfigError, MissingError."""
    client = engine.connect()
    for assignment in assignments:
        stage, _, value = assignment.partition("=")
        if not value:
            raise ConfigError(
                f"--base {assignment!r} is not STAGE=IMAGE, for example: invoke images --base export=IMAGE"
            )
        reference = build.resolve_base(client, value)
        name = f" ({value})" if value != reference else ""
        print(f"{stage}: base {'would be' if dry else 'is'} {reference}{name}")
        if not dry:
            pins.set_base(project, stage, reference, value)


def make(
    project: Path, workspace: Path, settings: BuildSettings, stages: Sequence[str], force: bool, dry: bool
) -> None:
    """Build the images of these stages (none: of all that steps run in) that are missing.

    An image whose files are not here is left out with the reason; the only one that is wanted is an error.
    """
    for stage in stages:
        contract.one_of("--stage", stage, pins.IMAGES)
    client, failures = engine.connect(), []
    for image in definition.plans(project, stages or settings.stages, progress.say):
        try:
            build.update(client, image, settings, workspace, f"{image.stage}: ", force, dry)
        except DebertaError as error:  # the other stages do not depend on this one
            failures.append(error)
            print(f"{image.stage}: {error}")
    if failures:
        raise type(failures[0])(f"{len(failures)} of the images could not be built. First: {failures[0]}")


def remove_containers(workspace: Path, dry: bool) -> None:
    """Remove our containers: this workspace's, whose lock is held, and any that has ended."""
    client = engine.connect()
    label = engine.workspace_label(workspace)
    for container in engine.labelled(client, {engine.LABEL: "container"}):
        ended = container.status in ("exited", "dead")  # "created" may be about to start
        if not ended and container.labels.get(engine.OF_WORKSPACE) != label:
            print(f"container {container.name} runs for another workspace and is left")
            continue
        print(f"{'would remove' if dry else 'removing'} container {container.name}")
        if not dry:
            with engine.explained(f"removing {container.name}"):
                engine.remove(container)


def remove_images(dry: bool) -> None:
    """Remove our images and what interrupted builds left; bases, which others built, stay. Raises StageError."""
    client = engine.connect()
    with engine.explained("listing images"):
        labels = (f"{engine.LABEL}=image", build.BUILD)
        lists = [client.api.images(all=True, filters={"label": label}) for label in labels]
    waiting = build.newest_first({entry["Id"]: entry for entries in lists for entry in entries}.values())
    for entry in waiting:
        print(f"{'would remove' if dry else 'removing'} image {_name(entry)}")
    reasons: list[str] = []
    while waiting and not dry:  # in rounds, since images of one second may be listed before their children
        refused = [(entry, reason) for entry in waiting if (reason := _remove_image(client, entry))]
        reasons = [f"{_name(entry)}: {reason}" for entry, reason in refused]
        if len(refused) == len(waiting):
            break
        waiting = [entry for entry, _ in refused]
    if reasons:
        raise StageError(
            f"not removed, because other images or containers use them: {'; '.join(reasons)}. Remove those "
            "first; ours go with: invoke clean --containers"
        )


def _remove_image(client: Any, entry: Any) -> str:
    """Why the engine refused to remove an image; empty if it is gone."""
    try:
        for tag in entry.get("RepoTags") or [entry["Id"]]:
            client.api.remove_image(tag if "<none>" not in tag else entry["Id"])
    except docker.errors.ImageNotFound:
        return ""  # removed with its child
    except docker.errors.APIError as error:
        return str(error.explanation)
    return ""


def names(timeout: float) -> list[str]:
    """The images that we built and that are here. Raises MissingError, ConfigError and StageError."""
    client = engine.connect(timeout)
    with engine.explained("listing images"):
        listed = client.api.images(filters={"label": f"{engine.LABEL}=image"})
    return sorted(map(_name, listed))


def _name(entry: Any) -> str:
    tags: Sequence[str] = entry.get("RepoTags") or ()
    return tags[0] if tags and "<none>" not in tags[0] else str(entry["Id"])
