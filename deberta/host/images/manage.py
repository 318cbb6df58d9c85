"""The stage images as `invoke images` and `invoke clean` see them: made if they are missing, told apart, removed."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Optional, Sequence

import docker.errors

from deberta.core.errors import ConfigError, DebertaError, MissingError, StageError
from deberta.host.engine import engine
from deberta.host.images import build, definition, pins
from deberta.host.images.definition import BuildSettings

LOGS = Path(".cache", "images")  # in the workspace


def lock(project: Path) -> None:
    """Rewrite docker/pins.toml; without an engine only hashes of files."""
    client: Any = None
    try:
        client = engine.connect()
    except MissingError as error:
        print(f"digests of base images are kept: {error}")
    changed = pins.lock(project, (lambda name: build.resolve(client, name)) if client else None, platform.machine())
    print("\n".join(changed) or f"{pins.PINS}: nothing changed")


def replace_bases(project: Path, given: Sequence[str], dry: bool) -> None:
    """`STAGE=IMAGE` for each base to replace on this machine, or `STAGE=pinned`. Raises ConfigError, MissingError."""
    client = engine.connect()
    for text in given:
        stage, separator, value = text.partition("=")
        if not separator or not value:
            raise ConfigError(f"--base {text!r} is not STAGE=IMAGE, for example: invoke images --base export=IMAGE")
        found = build.resolve_base(client, value)
        print(f"{stage}: base {'would be' if dry else 'is'} {found}{f' ({value})' if value != found else ''}")
        if not dry:
            pins.set_base(project, stage, found, value)


def make(project: Path, workspace: Path, settings: BuildSettings, force: bool, dry: bool) -> None:
    """Build every stage image that is missing; one whose parts are not here is left out with the reason."""
    loaded, client = pins.load(project), engine.connect()
    failures = []
    for stage in pins.STAGES:
        try:
            image = definition.plan(project, loaded, stage, platform.machine())
        except MissingError as error:
            print(f"{stage}: left out: {error}")
            continue
        found = build.find(client, image)
        unpinned = f" (not pinned: {'; '.join(image.unpinned)})" if image.unpinned else ""
        if found and not force:
            print(f"{stage}: up to date: {image.tag}, {found}{unpinned}")
            continue
        why = "--force" if found else build.why(client, image)
        print(f"{stage}: {'would build' if dry else 'building'} {image.tag}{unpinned}: {why}", flush=True)
        if dry:
            continue
        try:
            made = build.build(client, image, settings, workspace / LOGS / f"{stage}.log", _say)
        except DebertaError as error:  # the other stages do not depend on this one
            failures.append(error)
            print(f"{stage}: {error}")
            continue
        print(f"{stage}: done: {image.tag}, {made}")
    if failures:
        raise type(failures[0])(f"{len(failures)} of the images could not be built. First: {failures[0]}")


def remove_containers(workspace: Path, dry: bool) -> None:
    """Remove our containers: this workspace's, whose lock is held, and any that has ended."""
    client = engine.connect()
    own = engine.workspace_label(workspace)
    for container in engine.labelled(client, {engine.LABEL: "container"}):
        ended = container.status in ("exited", "dead")  # and not about to start
        if not ended and container.labels.get(engine.OF_WORKSPACE) != own:
            print(f"container {container.name} runs for another workspace and is left")
            continue
        print(f"{'would remove' if dry else 'removing'} container {container.name}")
        if not dry:
            with engine.explained(f"removing {container.name}"):
                engine.remove(container)


def remove_images(dry: bool) -> None:
    """Remove our images, and what an interrupted build left; bases, which we did not make, stay."""
    client = engine.connect()
    with engine.explained("listing images"):
        found = {entry["Id"]: entry for label in (f"{engine.LABEL}=image", build.BUILD)
                 for entry in client.api.images(all=True, filters={"label": label})}  # fmt: skip
    waiting = sorted(found.values(), key=lambda entry: int(entry["Created"]), reverse=True)
    for entry in waiting:
        print(f"{'would remove' if dry else 'removing'} image {_name(entry)}")
    kept: dict[str, str] = {}
    while waiting and not dry:  # children first; those made within one second have no order, hence the rounds
        kept = {}
        for entry in waiting:
            if reason := _remove_image(client, entry):
                kept[entry["Id"]] = f"{_name(entry)}: {reason}"
        if len(kept) == len(waiting):
            break
        waiting = [entry for entry in waiting if entry["Id"] in kept]
    if kept:
        raise StageError(
            f"not removed, because other images or containers use them: {'; '.join(kept.values())}. Remove those "
            "first; ours go with: invoke clean --containers"
        )


def _remove_image(client: Any, entry: Any) -> str:
    """Why the engine would not remove an image; empty if it is gone."""
    try:
        for tag in entry.get("RepoTags") or [entry["Id"]]:
            client.api.remove_image(tag if "<none>" not in tag else entry["Id"])
    except docker.errors.ImageNotFound:
        return ""  # it went with the one that stood on it
    except docker.errors.APIError as error:
        return str(error.explanation)
    return ""


def _name(entry: Any) -> str:
    tags: Optional[Sequence[str]] = entry.get("RepoTags")
    return tags[0] if tags and "<none>" not in tags[0] else str(entry["Id"])


def _say(line: str) -> None:
    print(f"  {line}", flush=True)
