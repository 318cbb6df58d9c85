"""The commands on stage images: `invoke images` builds, pins and replaces them, `invoke clean` removes them."""

from __future__ import annotations

import os
import platform
import re
import tempfile
from pathlib import Path
from typing import Any, Sequence

import docker.errors

from deberta.core import contract, files, progress
from deberta.core.errors import ConfigError, DebertaError, MissingError, StageError
from deberta.host.engine import engine
from deberta.host.images import build, context, definition, pins, registry
from deberta.host.images.definition import BuildSettings, Image

_NOT_WRITTEN = ("index_url", "http_proxy", "https_proxy", "no_proxy", "ca", "network")  # into a context
_README = """# Build contexts of deberta-ascend's stage images

Each folder is a context with all that its image is made of, its base by digest, and its labels. From this folder:

```sh
{commands}
```

The tags are those that deberta-ascend looks for: an image of such a tag, brought to its engine, is not built again.
`buildah build` takes the same options, and `--timestamp` with the same number. For kaniko: `--context dir://PWD/STAGE`,
`--custom-platform` in the place of `--platform`, and `--reproducible`. Contents are to be the same with each of them,
and ids are not; `docker build` alone was tried.

Nothing here is of the machine that wrote it, but wheels. Where packages come from is said in a context's `network/`,
which ends in no layer: `pip.conf` (pip's settings), `environment` (NAME=VALUE lines), `ca.pem` (certificates to trust),
`wheelhouse/` (wheels). Proxies may be build arguments too: `--build-arg https_proxy=...`.
"""


def lock(project: Path) -> None:
    """Rewrite docker/pins.toml; without an engine only the hashes of files."""
    client: Any = None
    try:
        client = engine.connect()
    except MissingError as error:
        progress.say(f"digests of base images are kept: {error}")
    registries = pins.Registries(lambda name: build.resolve(client, name), registry.platforms) if client else None
    changes = pins.lock(project, registries, platform.machine())
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
    project: Path,
    workspace: Path,
    settings: BuildSettings,
    stages: Sequence[str],
    machine: str,
    force: bool,
    dry: bool,
) -> None:
    """Build the images of these stages (none: of all that steps run in) for a machine (empty: this one) if missing.

    An image whose files are not here is left out with the reason; the only one that is wanted is an error.
    """
    client, failures = engine.connect(), []
    for image in definition.plans(project, _wanted(stages, settings), progress.say, machine):
        try:
            build.update(client, image, settings, workspace, f"{image.stage}: ", force, dry)
        except DebertaError as error:  # the other stages do not depend on this one
            failures.append(error)
            print(f"{image.stage}: {error}")
    if failures:
        raise type(failures[0])(f"{len(failures)} of the images could not be built. First: {failures[0]}")


def _wanted(stages: Sequence[str], settings: BuildSettings) -> Sequence[str]:
    for stage in stages:
        contract.one_of("--stage", stage, pins.IMAGES)
    return stages or settings.stages


def write_contexts(
    project: Path, settings: BuildSettings, folder: Path, stages: Sequence[str], machine: str, dry: bool
) -> None:
    """Write the build contexts of these stages' images below a new or empty folder; stages and machine as of `make`.

    It appears whole or not at all. Raises ConfigError (it holds something) and MissingError (no files for any image).
    """
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} is not a new or empty folder. Name another one")
    images = list(definition.plans(project, _wanted(stages, settings), progress.say, machine))
    if not images:
        raise MissingError("there are files for none of these images. Run: invoke doctor")
    for image in images:
        note = f" (not pinned: {'; '.join(image.unpinned)})" if image.unpinned else ""
        print(f"{image.stage}: {'would write' if dry else 'writing'} {folder / image.stage} for {image.tag}{note}")
        if "@" not in image.base:
            print(f"{image.stage}: its base is known to this engine alone; elsewhere give --build-arg BASE=IMAGE")
    if left_out := [name for name in _NOT_WRITTEN if getattr(settings, name)]:
        print(f"of `images` in invoke.yaml these are left out, as they are of this machine: {', '.join(left_out)}")
    if dry:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.tmp-") as scratch:
        unfinished = Path(scratch, folder.name)
        unfinished.mkdir()
        for image in images:
            context.write_folder(unfinished / image.stage, image, settings)
        files.write_text(unfinished / "README.md", _README.format(commands="\n".join(map(_build_command, images))))
        unfinished.rename(folder)
    print(f"{folder / 'README.md'} says how to build them")


def _build_command(image: Image) -> str:
    arguments = f"--platform {pins.PLATFORMS[image.arch]} --build-arg {definition.EPOCH}={image.epoch}"
    return f"docker build {arguments} --tag {image.tag} {image.stage}"


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
    except docker.errors.APIError as error:
        # Removed with its child; Podman then says so with the status of a refusal.
        is_gone = isinstance(error, docker.errors.ImageNotFound) or "image not known" in str(error.explanation)
        return "" if is_gone else str(error.explanation)
    return ""


def names(timeout: float) -> list[str]:
    """The images that we built and that are here. Raises MissingError, ConfigError and StageError."""
    client = engine.connect(timeout)
    with engine.explained("listing images"):
        listed = client.api.images(filters={"label": f"{engine.LABEL}=image"})
    return sorted(map(_name, listed))


def _name(entry: Any) -> str:
    tags: Sequence[str] = entry.get("RepoTags") or ()
    # Podman writes the registry before each name that has none.
    return re.sub("^(docker.io|localhost)/", "", tags[0]) if tags and "<none>" not in tags[0] else str(entry["Id"])
