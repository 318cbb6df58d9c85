"""Images built with the Docker SDK's classic builder: whole and tagged, or not there at all.

Nothing that a build needs from this machine (wheels, an index's URL, proxies, certificates) is left behind: only
builder stages get it, and their images, which carry a label of their own, are removed at the end, good or bad.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tarfile
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Optional
from urllib.parse import urlsplit

import docker.errors

from deberta.core.errors import ConfigError, DataError, MissingError, StageError, one_line
from deberta.host.engine.engine import explained
from deberta.host.environments import stages
from deberta.host.images import definition, pins
from deberta.host.images.definition import BuildSettings, Image

BUILD = f"{definition.REPOSITORY}.build"  # label of everything that a build makes on its way, the image itself included
NETWORK = "network"  # folder of the context that builder stages copy to /build
_INTERRUPT_SECONDS = 20.0  # for the engine to notice that nobody listens any more, and to end its containers
_SAY_SECONDS = 5.0  # between two lines about a pull

Say = Callable[[str], None]


def find(client: Any, image: Image) -> Optional[str]:
    """The id of the image if the engine has it under its tag, made of these very inputs."""
    with explained(f"looking for {image.tag}"):
        try:
            found = client.images.get(image.tag)
        except docker.errors.ImageNotFound:
            return None
    return str(found.id) if not _misfit(found.attrs, image) else None


def why(client: Any, image: Image) -> str:
    """Why there is no such image: what changed since the newest of its stage, or that none was built."""
    wanted = {"label": [f"{definition.LABEL}=image", f"{definition.STAGE}={image.stage}"]}
    with explained("listing images"):
        there = client.api.images(filters=wanted)
    if not there:
        return "not built yet"
    newest = max(there, key=lambda entry: int(entry["Created"]))
    inputs = _inputs(newest.get("Labels") or {})
    return ", ".join(definition.changes(inputs, image.inputs)) or "its tag is gone"


def build(client: Any, image: Image, settings: BuildSettings, log: Path, say: Say) -> str:
    """Build and tag an image; returns its id. The whole output goes to `log`, a line for each step to `say`.

    Raises MissingError (no base), ConfigError (a base for another machine), DataError (a file changed meanwhile) and
    StageError. A failed or interrupted build leaves no tag, no container and no image.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    base = _base(client, image, settings, say)
    with contextlib.suppress(docker.errors.DockerException):  # what builds left that were killed outright
        client.images.prune(filters={"dangling": True, "label": [BUILD], "until": "24h"})
    own = f"{BUILD}={uuid.uuid4().hex}"
    interrupted = False
    # Beside the log, not in /tmp, which may be small and in memory.
    with tempfile.TemporaryFile(dir=log.parent) as context:
        write_context(context, image, settings, own)
        context.seek(0)
        try:
            with explained(f"building {image.tag}"):
                built = _run(client, image, settings, base, context, log, say)
                attributes = client.api.inspect_image(built)
                if misfit := _misfit(attributes, image):
                    raise StageError(f"the built {image.tag} is not what was asked for: {misfit}. The log is {log}")
                repository, _, tag = image.tag.partition(":")
                client.api.tag(built, repository, tag)
                return str(attributes["Id"])
        except BaseException as error:
            interrupted = not isinstance(error, StageError)
            raise
        finally:
            _clean(client, own, _INTERRUPT_SECONDS if interrupted else 0.0)


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
    """What `--base STAGE=VALUE` means: NAME@sha256:DIGEST and `pinned` as they stand, else the id of a local image.

    Raises MissingError.
    """
    if value == pins.PINNED or "@" in value:
        return value
    with explained(f"looking for {value}"):
        try:
            return str(client.images.get(value).id)
        except docker.errors.ImageNotFound:
            raise MissingError(
                f"the engine has no image {value!r}, and a name alone is not looked up elsewhere. Run: docker pull "
                f"{value}, then the same command again; or give it as NAME@sha256:DIGEST"
            ) from None


def write_context(target: IO[bytes], image: Image, settings: BuildSettings, label: str) -> None:
    """The build context as a tar of one form: sorted names, no times, no owners. Raises DataError."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for folder in sorted({*image.folders, *((NETWORK, f"{NETWORK}/wheelhouse") if image.lock else ())}):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for file in sorted(image.files, key=lambda file: file.name):
            if file.name == "Dockerfile":
                text = file.path.read_bytes()
                _unchanged(file, hashlib.sha256(text).hexdigest())
                _add(archive, file.name, _labelled(text.decode(), label).encode())
                continue
            with open(file.path, "rb") as source:
                reader = _Hashing(source)
                entry = tarfile.TarInfo(file.name)
                entry.size, entry.mode = file.path.stat().st_size, 0o755 if file.executable else 0o644
                archive.addfile(entry, reader)
            _unchanged(file, reader.digest.hexdigest())
        if image.lock:
            for name, content in sorted(_network(settings).items()):
                _add(archive, f"{NETWORK}/{name}", content)
            for wheel in _wheels(settings.wheelhouse, image.lock):
                with open(wheel, "rb") as source:
                    entry = tarfile.TarInfo(f"{NETWORK}/wheelhouse/{wheel.name}")
                    entry.size = wheel.stat().st_size
                    archive.addfile(entry, source)


def _run(client: Any, image: Image, settings: BuildSettings, base: str, context: IO[bytes], log: Path, say: Say) -> str:
    """The id of the image that the engine built, not tagged yet."""
    built, failure, step = "", "", ""
    printed: List[str] = []  # by the present step
    with open(log, "w", encoding="utf-8", buffering=1) as kept:  # whole lines at once, for `tail -f`
        kept.write(f"{image.tag}\n{definition.canonical(dict(image.inputs))}\n")
        stream = client.api.build(
            fileobj=context,
            custom_context=True,
            buildargs={"BASE": base, **image.arguments},
            labels=definition.labels(image),
            network_mode="none" if settings.offline else settings.network or None,
            rm=True,
            forcerm=True,
            decode=True,
            use_config_proxy=False,  # proxies are a setting of ours: the SDK's own would be left in the history
        )
        with contextlib.closing(stream):  # closing the connection is what stops the engine
            for message in stream:
                text = str(message.get("stream", message.get("error", "")))
                kept.write(text if text.endswith("\n") or "stream" in message else f"{text}\n")
                built = str(message.get("aux", {}).get("ID", built))
                failure = str(message.get("error", failure))
                for line in text.splitlines():
                    if line.startswith("Step "):
                        step = line
                        printed.clear()
                        if f"LABEL {definition.REPOSITORY}" not in line:  # long, and the same each time
                            say(line)
                    elif line.strip() and not line.startswith((" --->", "Removing intermediate")):
                        printed.append(line.strip())
    if failure or not built:
        raise StageError(_failed(image, step, [line for line in printed if line != failure], failure, log))
    return built


def _failed(image: Image, step: str, printed: List[str], failure: str, log: Path) -> str:
    """The last line that speaks of an error, else the last line, else what the engine said."""
    telling = next((line for line in reversed(printed) if "error" in line.lower()), "")
    said = telling or (printed[-1] if printed else "") or failure or "the engine ended it without a word"
    hint = ". Packages come from where `images` in invoke.yaml says" if "install-packages" in step else ""
    said = re.sub(r"^error: ", "", one_line(said), flags=re.IGNORECASE).rstrip(".")
    return f"building {image.tag} failed: {said}{hint}. The whole output is in {log}"


def _base(client: Any, image: Image, settings: BuildSettings, say: Say) -> str:
    """The id of the base on the engine, pulled if need be."""
    name, _, digest = image.base.rpartition("@")
    reference = f"{pins.without_tag(name)}@{digest}" if name else digest
    other = f"or name another base: invoke images --base {image.stage}=IMAGE"
    with explained(f"looking for {reference}"):
        try:
            found = client.images.get(reference)
        except docker.errors.ImageNotFound:
            if not name:
                raise MissingError(
                    f"the base of {image.stage}, {image.base}, is not on this engine any more. Load it again, {other}"
                ) from None
            if settings.offline:
                raise MissingError(
                    f"the base {image.base} is not on this engine, and images.offline is set. Load it (docker load), "
                    f"{other}"
                ) from None
            _pull(client, image, reference, say)
            found = client.images.get(reference)
    wanted = definition.DOCKER_ARCHITECTURES[image.arch]
    if found.attrs.get("Architecture") != wanted:
        raise ConfigError(
            f"the base {image.base} is for {found.attrs.get('Architecture')}, and this machine needs {wanted}. Name "
            f"another one: invoke images --base {image.stage}=IMAGE"
        )
    return str(found.id)


def _pull(client: Any, image: Image, reference: str, say: Say) -> None:
    say(f"pulling {image.base}")
    layers: Dict[str, Dict[str, int]] = {}
    last = time.monotonic()
    try:
        for message in client.api.pull(reference, stream=True, decode=True):
            if "error" in message:
                raise docker.errors.APIError(str(message["error"]))
            detail = message.get("progressDetail") or {}
            if message.get("status") == "Downloading" and detail.get("total"):
                layers[str(message["id"])] = detail
            if layers and time.monotonic() - last > _SAY_SECONDS:
                last = time.monotonic()
                done, total = (sum(layer[key] for layer in layers.values()) / 1e6 for key in ("current", "total"))
                say(f"pulling {image.base}: {done:.0f} of {total:.0f} MB")
    except docker.errors.APIError as error:
        raise MissingError(
            f"the base {image.base} could not be pulled: {one_line(str(error.explanation or error))}. Check the "
            "network, and the proxies in the settings of the Docker engine, or name an image that the engine has: "
            f"invoke images --base {image.stage}=IMAGE"
        ) from None


def _misfit(attributes: Any, image: Image) -> str:
    """What an inspected image has that `image` has not; empty if nothing."""
    found = (attributes.get("Config") or {}).get("Labels") or {}
    for name, value in definition.labels(image).items():
        if found.get(name) != value:
            return f"its label {name} is {found.get(name)!r}"
    architecture = attributes.get("Architecture")
    return "" if architecture == definition.DOCKER_ARCHITECTURES[image.arch] else f"it is for {architecture}"


def _inputs(labels: Any) -> Dict[str, str]:
    try:
        found = json.loads(labels.get(definition.INPUTS, ""))
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _clean(client: Any, label: str, seconds: float) -> None:
    """Remove what carries a build's label, but tagged images and what they stand on.

    `seconds`: how long to look for what the engine, which was not done, still makes.
    """
    deadline, quiet = time.monotonic() + seconds, 0
    while True:
        found = 0
        with contextlib.suppress(docker.errors.DockerException, OSError):  # what is left has our label
            for container in client.containers.list(all=True, filters={"label": label}, ignore_removed=True):
                found += 1
                with contextlib.suppress(docker.errors.APIError):  # the engine is removing it, too
                    container.remove(force=True)
            made = client.api.images(all=True, filters={"label": label})
            for entry in sorted(made, key=lambda entry: int(entry["Created"]), reverse=True):
                if not set(entry.get("RepoTags") or ()) - {"<none>:<none>"}:
                    with contextlib.suppress(docker.errors.APIError):  # a tagged image stands on it
                        client.api.remove_image(entry["Id"], noprune=True)
                        found += 1
        quiet = 0 if found else quiet + 1
        # Children go before parents, but those made within one second have no order.
        if (found == 0 and not seconds) or quiet >= 4 or (seconds and time.monotonic() > deadline):
            return
        if seconds:
            time.sleep(0.5)


def _labelled(dockerfile: str, label: str) -> str:
    """The Dockerfile with a label as the first instruction of every stage."""
    name, _, value = label.partition("=")
    return re.sub(r"(?m)^FROM .*$", lambda match: f'{match[0]}\nLABEL {name}="{value}"', dockerfile)


def _network(settings: BuildSettings) -> Dict[str, bytes]:
    """The files that docker/install-packages reads."""
    conf = ["[global]", f"find-links = /build/{NETWORK}/wheelhouse"]
    if settings.offline:
        conf.append("no-index = true")
    elif settings.index_url:
        conf.append(f"index-url = {settings.index_url}")
        if settings.index_url.startswith("http://"):  # said in so many words by whoever set it
            conf.append(f"trusted-host = {urlsplit(settings.index_url).netloc.rpartition('@')[2]}")
    proxies = {name: getattr(settings, name) for name in ("http_proxy", "https_proxy", "no_proxy")}
    variables = [f"{key}={value}" for name, value in proxies.items() if value for key in (name, name.upper())]
    return {
        "pip.conf": "".join(f"{line}\n" for line in conf).encode(),
        "environment": "".join(f"{line}\n" for line in variables).encode(),
        "torch-index": b"" if settings.offline else stages.TORCH_INDEX.encode(),
        **({"ca.pem": settings.ca.read_bytes()} if settings.ca else {}),
    }


def _wheels(folder: Optional[Path], lock: Path) -> Iterator[Path]:
    """The wheels of a folder that a lock names, and no others: the folder may be a mirror."""
    locked = set(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(encoding="utf-8")))
    wanted = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in locked}
    for path in sorted(folder.glob("*.whl")) if folder else ():
        name, _, rest = path.name.partition("-")
        if (re.sub(r"[-_.]+", "-", name).lower(), rest.partition("-")[0]) in wanted:
            yield path


class _Hashing:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.digest.update(chunk)
        return chunk


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _unchanged(file: definition.File, sha256: str) -> None:
    if sha256 != file.sha256:
        raise DataError(f"{file.path} changed while it was packed. Run the same command again")
