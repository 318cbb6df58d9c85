"""Images built with the Docker SDK's classic builder: an image is complete and tagged, or not there at all.

Nothing that a build needs from this machine (wheels, an index's URL, proxies, certificates) stays in an image: only
builder stages get it, and their images, which carry a label of their own, are removed when the build ends or fails.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO, Any

import docker.errors

from deberta.core import progress, schema
from deberta.core.errors import ConfigError, DataError, MissingError, StageError, one_line
from deberta.host.engine import unfinished
from deberta.host.engine.engine import explained
from deberta.host.engine.transcript import Show
from deberta.host.images import definition, pins
from deberta.host.images.context import write_context
from deberta.host.images.definition import BuildSettings, Image
from deberta.host.images.failure import STEP, explain, of_message
from deberta.host.images.finish import finish

BUILD = f"{definition.REPOSITORY}.build"  # label of everything that a build creates but the finished image
BINFMT = Path("/proc/sys/fs/binfmt_misc")  # a file for each kind of program that the kernel runs by an interpreter
LOGS = unfinished.BUILDS  # in the workspace
INTERRUPT_SECONDS = 20.0  # for the engine to notice the closed connection and to end its containers
_PULL_SECONDS = 5.0  # between two progress lines of a pull


def ensure(
    client: Any, image: Image, settings: BuildSettings, workspace: Path, title: str = "", force: bool = False
) -> str:
    """The id of an image, which is built if the engine lacks it, or by `force`. Raises the errors of `build`."""
    existing = find(client, image)
    if existing and not force:
        return existing
    reason = "--force" if existing else why(client, image)
    progress.say(f"{title}building {image.tag}{_note(image)}: {reason}")
    log = workspace / LOGS / f"{image.stage}.log"
    return build(client, image, settings, log, lambda line: progress.say(f"  {line}"))


def update(
    client: Any, image: Image, settings: BuildSettings, workspace: Path, title: str, force: bool, dry: bool
) -> str:
    """`ensure` as a command: prints after `title` what it does. `force`: build the image even if it is up to date.

    `dry`: build nothing; the id is empty if the engine lacks the image.
    """
    existing = find(client, image)
    if existing and not force:
        print(f"{title}up to date: {image.tag}, {existing}{_note(image)}")
    elif dry:
        print(f"{title}would build {image.tag}{_note(image)}: {'--force' if existing else why(client, image)}")
    else:
        existing = ensure(client, image, settings, workspace, title, force)
        print(f"{title}done: {image.tag}, {existing}")
    return existing or ""


def _note(image: Image) -> str:
    return f" (not pinned: {'; '.join(image.unpinned)})" if image.unpinned else ""


def find(client: Any, image: Image) -> str | None:
    """The id of the image if the engine has it under its tag, built from these inputs."""
    existing = _get(client, image.tag)
    return str(existing.id) if existing and not _mismatch(existing.attrs, image) else None


def _get(client: Any, reference: str) -> Any:
    """The engine's own image of that name or id, None if it has none."""
    with explained(f"looking for {reference}"):
        try:
            return client.images.get(reference)
        except docker.errors.ImageNotFound:
            return None


def why(client: Any, image: Image) -> str:
    """Why an image is missing: the inputs that changed since the newest one of its stage, or that none was built."""
    with explained("listing images"):  # by one label: Podman 4.3 lists nothing for two
        entries = client.api.images(filters={"label": f"{definition.STAGE}={image.stage}"})
    if not entries:
        return "not built yet"
    try:
        labelled = (max(entries, key=lambda entry: _tagged_at(client, entry)).get("Labels") or {}).get(
            definition.INPUTS, ""
        )
        inputs = schema.decode(labelled, dict[str, str])
    except ValueError:
        inputs = {}
    return ", ".join(definition.changes(inputs, image.inputs)) or "its tag is gone"


def _tagged_at(client: Any, entry: Any) -> str:
    """When an image got its tag, as the engine says it: all finished images have one time of creation."""
    with explained(f"looking at {entry['Id']}"):
        return str((client.api.inspect_image(entry["Id"]).get("Metadata") or {}).get("LastTagTime", ""))


def build(client: Any, image: Image, settings: BuildSettings, log: Path, show: Show) -> str:
    """Build and tag an image; returns its id. The whole output goes to `log`, a line for each step to `show`.

    Raises MissingError (no base), ConfigError (a base for another machine), DataError (a file changed meanwhile) and
    StageError. A failed or interrupted build leaves no tag, no container and no image.
    """
    _check_emulation(client, image)
    log.parent.mkdir(parents=True, exist_ok=True)
    base = _base(client, image, settings, show)
    with contextlib.suppress(docker.errors.DockerException):  # left by builds that were killed
        client.images.prune(filters={"dangling": True, "label": [BUILD], "until": "24h"})
    label = f"{BUILD}={uuid.uuid4().hex}"
    interrupted = False
    # Beside the log, not in /tmp, which may be small and in memory.
    with tempfile.TemporaryFile(dir=log.parent) as context:
        write_context(context, image, settings, label)
        context.seek(0)
        end = unfinished.begin_build(log.parent, label)
        try:
            with explained(f"building {image.tag}"):
                built = _run(client, image, settings, base, context, log, show)
                attributes = client.api.inspect_image(built)
                if mismatch := _mismatch(attributes, image):
                    raise StageError(f"the built {image.tag} is not what was planned: {mismatch}. The log is {log}")
                finished = finish(client, attributes, image, log.parent)
                client.api.tag(finished, *image.tag.split(":"))
                return finished
        except BaseException as error:
            interrupted = not isinstance(error, StageError)
            raise
        finally:
            if clean(client, label, INTERRUPT_SECONDS if interrupted else 0.0) is not None:
                end()


def resolve(client: Any, reference: str) -> str:
    """The digest that a tag has in its registry now. Raises MissingError."""
    try:
        return str(client.images.get_registry_data(reference).id)
    except docker.errors.APIError as error:
        raise MissingError(
            f"the registry did not give the digest of {reference}: {one_line(str(error.explanation or error))}. Check "
            "the network, and the proxies in the settings of the Docker engine"
        ) from None


def resolve_base(client: Any, value: str) -> str:
    """The reference that `--base STAGE=VALUE` means: NAME@sha256:DIGEST, `pinned`, or the id of a local image.

    Raises MissingError.
    """
    if value == pins.PINNED or "@" in value:
        return value
    if (image := _get(client, value)) is None:
        raise MissingError(
            f"the engine has no image {value!r}, and a name alone is not looked up elsewhere. Run: docker pull "
            f"{value}, then the same command again; or give it as NAME@sha256:DIGEST"
        )
    return str(image.id)


def newest_first(entries: Any) -> list[Any]:
    """Images of the engine's list, the newest first: children before their parents, but for those of one second."""
    return sorted(entries, key=lambda entry: int(entry["Created"]), reverse=True)


def _run(
    client: Any, image: Image, settings: BuildSettings, base: str, context: IO[bytes], log: Path, show: Show
) -> str:
    """The id of the image that the engine built, not tagged yet."""
    built, failure, step = "", "", ""
    printed: list[str] = []  # by the current step
    with open(log, "w", encoding="utf-8", buffering=1) as copy:  # whole lines at once, for `tail -f`
        copy.write(f"{image.tag}\n{definition.canonical(dict(image.inputs))}\n")
        stream = client.api.build(
            fileobj=context,
            custom_context=True,
            buildargs={"BASE": base, definition.EPOCH: str(image.epoch), **image.arguments},
            labels=definition.labels(image),
            network_mode="none" if settings.offline else settings.network or None,
            rm=True,
            forcerm=True,
            decode=True,
            use_config_proxy=False,  # the SDK's own proxies would stay in the image's history
            platform=pins.PLATFORMS[image.arch] if image.arch != client.info().get("Architecture") else None,
        )
        with contextlib.closing(stream):  # closing the connection is what stops the engine
            for message in stream:
                failure = of_message(message) or failure
                text = str(message.get("stream", of_message(message)))
                copy.write(text if text.endswith("\n") or "stream" in message else f"{text}\n")
                built = str(message.get("aux", {}).get("ID", built))
                for line in text.splitlines():
                    if STEP.match(line):
                        step = line
                        printed.clear()
                        # Those of labels are long, and the same each time.
                        if f"LABEL {definition.REPOSITORY}" not in line.replace('"', ""):
                            show(line)
                    elif line.strip() and not line.startswith((" --->", "--> ", "Removing intermediate")):
                        printed.append(line.strip())
    if failure or not built:
        hint = ". Packages come from where `images` in invoke.yaml says" if "install-packages" in step else ""
        reason = explain(step, printed, failure)
        if "exec format error" in reason:
            hint = f". {_elsewhere(image)}"
        raise StageError(f"building {image.tag} failed: {reason}{hint}. The whole output is in {log}")
    return built


def _check_emulation(client: Any, image: Image) -> None:
    """Raise MissingError if the engine's machine is another than the image's, and is known not to emulate that."""
    information = client.info()
    machine = information.get("Architecture", "")
    if machine in ("", image.arch) or information.get("Name") != socket.gethostname():
        return  # of a virtual machine's kernel the engine itself has to say it
    with contextlib.suppress(OSError):
        handlers = [path.name for path in BINFMT.iterdir()]
        if "register" in handlers and not any(image.arch in name for name in handlers):
            raise MissingError(
                f"this machine is {machine}, and its kernel runs no programs for {image.arch}. {_elsewhere(image)}"
            )


def _elsewhere(image: Image) -> str:
    return (
        "Install an emulator (Debian: qemu-user-static and binfmt-support), or build it on such a machine: invoke "
        f"images --platform {pins.PLATFORMS[image.arch]} --context DIR writes all that it takes"
    )


def _base(client: Any, image: Image, settings: BuildSettings, show: Show) -> str:
    """The id of the base on the engine, pulled if need be.

    Raises MissingError, ConfigError (it is for another machine) and DataError (not what is pinned for this one).
    """
    name, _, digest = image.base.rpartition("@")
    reference = f"{pins.without_tag(name)}@{digest}" if name else digest
    own = f"{pins.without_tag(name)}@{image.base_digest}" if image.base_digest else ""
    replace = f"or name another base: invoke images --base {pins.base_of(image.stage)}=IMAGE"
    wanted = definition.DOCKER_ARCHITECTURES[image.arch]
    base = _get(client, reference)
    if own and (base is None or base.attrs.get("Architecture") != wanted):
        base = _get(client, own) or base
    if base is None or (name and base.attrs.get("Architecture") != wanted and not settings.offline):
        if not name:
            raise MissingError(
                f"the base of {image.stage}, {image.base}, is not on this engine any more. Load it again, {replace}"
            )
        if settings.offline:
            raise MissingError(
                f"the base {image.base} is not on this engine, and nothing is pulled without network (wheelhouse or "
                f"images.offline is set). Load it (docker load), {replace}"
            )
        with explained(f"pulling {image.base}"):
            base = _pull(client, image, reference, image.base, show)
    if base.attrs.get("Architecture") != wanted:
        raise ConfigError(
            f"the base {image.base} is for {base.attrs.get('Architecture')}, and {wanted} is needed. Load one that is, "
            f"{replace}"
        )
    if own and own not in (base.attrs.get("RepoDigests") or ()):
        _check_platform(client, image, base, own, settings, show)
    return str(base.id)


def _check_platform(client: Any, image: Image, base: Any, own: str, settings: BuildSettings, show: Show) -> None:
    """Raise DataError if the base from the list of all platforms is not the image that is pinned for this one."""
    try:
        if settings.offline:
            raise MissingError("images.offline is set")
        with explained(f"pulling {own}"):
            alone = _pull(client, image, own, own, show)
    except MissingError as error:
        return show(f"the base is not checked against its pin for {pins.PLATFORMS[image.arch]}: {error}")
    if alone.attrs["RootFS"] != base.attrs["RootFS"]:
        raise DataError(
            f"{image.base} is not {own} on {pins.PLATFORMS[image.arch]}, and {pins.PINS} says that it is. Ask the "
            "registry: invoke images --lock"
        )


def _pull(client: Any, image: Image, reference: str, title: str, show: Show) -> Any:
    """The image of a reference that the engine gets from its registry, for the image's machine. Raises MissingError."""
    show(f"pulling {title}")
    platform = pins.PLATFORMS[image.arch]
    layers: dict[str, dict[str, int]] = {}
    shown_at = time.monotonic()
    try:
        for message in client.api.pull(reference, stream=True, decode=True, platform=platform):
            if error := of_message(message):
                raise docker.errors.APIError(error)
            detail = message.get("progressDetail") or {}
            if message.get("status") == "Downloading" and detail.get("total"):
                layers[str(message["id"])] = detail
            if layers and time.monotonic() - shown_at > _PULL_SECONDS:
                shown_at = time.monotonic()
                done, total = (sum(layer[key] for layer in layers.values()) / 1e6 for key in ("current", "total"))
                show(f"pulling {title}: {done:.0f} of {total:.0f} MB")
        return client.images.get(reference)
    except docker.errors.APIError as error:
        raise MissingError(
            f"the base {image.base} could not be pulled: {one_line(str(error.explanation or error))}. Check the "
            "network, and the proxies in the settings of the Docker engine, or name an image that the engine has: "
            f"invoke images --base {pins.base_of(image.stage)}=IMAGE"
        ) from None


def _mismatch(attributes: Any, image: Image) -> str:
    """How an inspected image differs from `image` in labels or architecture; empty if it does not."""
    labels = (attributes.get("Config") or {}).get("Labels") or {}
    for name, value in definition.labels(image).items():
        if labels.get(name) != value:
            return f"its label {name} is {labels.get(name)!r}"
    architecture = attributes.get("Architecture")
    return "" if architecture == definition.DOCKER_ARCHITECTURES[image.arch] else f"it is for {architecture}"


def clean(client: Any, label: str, seconds: float) -> int | None:
    """Remove containers and images with a build's label, except tagged images and their parents.

    `seconds`: how long to watch for more of them, if the engine may still be creating some. Returns how many were
    removed, None if the engine could not be asked to the end.
    """
    deadline, quiet, total, answered = time.monotonic() + seconds, 0, 0, True
    while quiet < (4 if seconds else 1):
        removed = 0
        try:
            for container in client.containers.list(all=True, filters={"label": label}, ignore_removed=True):
                removed += 1
                with contextlib.suppress(docker.errors.APIError):  # the engine is removing it, too
                    container.remove(force=True)
            for entry in newest_first(client.api.images(all=True, filters={"label": label})):
                if not set(entry.get("RepoTags") or ()) - {"<none>:<none>"}:
                    with contextlib.suppress(docker.errors.APIError):  # a tagged image needs it
                        client.api.remove_image(entry["Id"], noprune=True)
                        removed += 1
            answered = True
        except (docker.errors.DockerException, OSError):  # what stays is known by its label
            answered = False
        quiet, total = 0 if removed else quiet + 1, total + removed
        if seconds:
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
    return total if answered else None
