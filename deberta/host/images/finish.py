"""The last step of a build: an image whose id follows from its content, in the place of the one that the engine made.

An image's id is the hash of its configuration. The engine writes there when, by which container and with which label of
the build it was made; its layers do not differ (docker/settle gives their files one time). So the same layers get a
configuration of ours: an archive with it and without the layers, which the engine has, is loaded.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any, Iterable, List, Mapping, Sequence

import docker.errors
import msgspec

from deberta.core import schema
from deberta.core.errors import StageError, one_line
from deberta.host.engine.engine import explained
from deberta.host.images import definition
from deberta.host.images.definition import Image
from deberta.host.images.failure import of_message

# Of an inspected image's Config, what says how a container of it runs. The rest is of the build.
_KEPT = (
    "User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "StopSignal", "Shell", "OnBuild",
    "Healthcheck",
)  # fmt: skip
_LOADED = re.compile("Loaded image ID: (sha256:[0-9a-f]{64})")
# Labels: of the build (images.build.BUILD), and what the base says of itself.
_NOT_INHERITED = (f"{definition.REPOSITORY}.build", definition.ANNOTATION)


class _Saved(msgspec.Struct):
    """An image in manifest.json of an archive that an engine saved."""

    Config: str
    Layers: List[str]


def configuration(attributes: Mapping[str, Any], image: Image) -> bytes:
    """The configuration (OCI image spec) of `image` on the layers of the image that the engine built and inspected."""
    built = attributes["Config"] or {}
    layers, time = list(attributes["RootFS"]["Layers"]), definition.created(image)
    values: dict[str, Any] = {
        "architecture": attributes["Architecture"],
        "os": attributes["Os"],
        "created": time,
        "config": {name: built[name] for name in _KEPT if built.get(name)},
        "rootfs": {"type": "layers", "diff_ids": layers},
        "history": [{"created": time, "created_by": f"{image.stage}.Dockerfile on {image.base}"} for _ in layers],
    }
    inherited = {
        name: text for name, text in (built.get("Labels") or {}).items() if not name.startswith(_NOT_INHERITED)
    }
    values["config"]["Labels"] = {**inherited, **definition.labels(image)}
    if attributes.get("Variant"):
        values["variant"] = attributes["Variant"]
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()


def finish(client: Any, attributes: Mapping[str, Any], image: Image, scratch: Path) -> str:
    """The id of the image with the configuration of ours, which the engine has then, not tagged yet.

    An engine that takes no archive without layers (Podman) gets them back as it hands them out, by way of two files in
    the folder `scratch`, each as large as the image. Raises StageError.
    """
    content = configuration(attributes, image)
    sha256 = hashlib.sha256(content).hexdigest()
    layers = [f"{layer.partition(':')[2]}/layer.tar" for layer in attributes["RootFS"]["Layers"]]
    with explained(f"loading the configuration of {image.tag}"):
        with tempfile.TemporaryFile(dir=scratch) as packed:
            _pack(packed, content, layers, ())
            number, reason = _load(client, packed)
            if reason:
                with tempfile.TemporaryFile(dir=scratch) as saved:
                    for chunk in client.api.get_image(attributes["Id"]):
                        saved.write(chunk)
                    saved.seek(0)
                    _repack(saved, packed, content)
                number, reason = _load(client, packed)
                if reason:
                    raise StageError(f"the engine did not load {image.tag} with its configuration: {reason}")
        return str(client.api.inspect_image(number or f"sha256:{sha256}")["Id"])


def _load(client: Any, packed: IO[bytes]) -> tuple[str, str]:
    """The id that the engine says it gave to the image of an archive, and why it did not load it; both may be empty.

    An engine whose images are containerd's, as Docker 29's are, takes a manifest of its own for the id.
    """
    packed.seek(0)
    number = ""
    try:
        for message in client.api.load_image(packed) or ():
            if reason := of_message(message) or message.get("message"):
                return "", one_line(str(reason))
            if match := _LOADED.search(str(message.get("stream", ""))):
                number = match[1]
    except docker.errors.APIError as error:
        return "", one_line(str(error.explanation or error))
    return number, ""


def _repack(saved: IO[bytes], packed: IO[bytes], content: bytes) -> None:
    """Write the archive that the engine saved, with another configuration."""
    with tarfile.open(fileobj=saved) as archive:
        manifest = archive.extractfile("manifest.json")
        (entry,) = schema.decode(manifest.read() if manifest else b"", list[_Saved])
        left_out = {"manifest.json", "index.json", "oci-layout", "repositories", entry.Config}
        members = [member for member in archive if member.name not in left_out]
        packed.seek(0)
        packed.truncate()
        _pack(
            packed,
            content,
            entry.Layers,
            ((member, archive.extractfile(member)) for member in members if not member.isdir()),
        )


def _pack(
    target: IO[bytes],
    content: bytes,
    layers: Sequence[str],
    members: Iterable[tuple[tarfile.TarInfo, IO[bytes] | None]],
) -> None:
    """Write an archive of one image as `docker save` does. `layers`: the names of the members that are its layers."""
    name = f"{hashlib.sha256(content).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": None, "Layers": list(layers)}]).encode()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for file_name, data in ((name, content), ("manifest.json", manifest)):
            entry = tarfile.TarInfo(file_name)
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
        for member, file in members:
            archive.addfile(member, file)
