"""A digest of an image's file system, which is the same whenever and wherever the image is built.

An image's id covers how the engine cuts a file system into layers and how it writes them, and all times. This digest
covers what a program in the image can read: every path with its type, mode, owner, link target and bytes. The image is
exported as a tar by a container that is never started, and read as a stream.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from deberta.core import files
from deberta.core.errors import StageError
from deberta.core.progress import Progress
from deberta.host.engine import engine
from deberta.host.engine.transcript import Show
from deberta.host.images import build, definition, kept_digests
from deberta.host.images.definition import BuildSettings, Image

FORMAT = 1  # version of the digest; a change of what it covers needs another one
KEPT = f"image_contents_{FORMAT}"  # a folder with a file for each image id
CHUNK, MB = 1 << 20, 10**6
# What is not covered: compiled Python; logs and caches, which hold times, but for their folders, which programs need;
# what engines put into containers.
LEFT_OUT = re.compile(
    r".*\.pyc|(.*/)?__pycache__(/.*)?|(var/log|var/cache/apt)/.*|var/cache/ldconfig/aux-cache"
    r"|(dev|proc|sys)(/.*)?|\.dockerenv|run/\.containerenv|etc/(hostname|hosts|resolv\.conf|mtab)",
    re.DOTALL,
)
_KINDS = {tarfile.DIRTYPE: "folder", tarfile.SYMTYPE: "link", tarfile.FIFOTYPE: "pipe"}


class Entry(NamedTuple):
    """One path of a file system. A hard link is the entry of its target: in layers it may become a copy."""

    kind: str  # file, folder, link, device, pipe
    mode: str  # octal
    owner: str  # uid:gid
    target: str = ""  # of a link; major:minor of a device
    sha256: str = ""  # of a file


def entries(stream: Any) -> dict[str, Entry]:
    """The file system in a tar, by path; compiled Python, logs and what engines inject are left out.

    Raises StageError for a stream that is cut off or no tar.
    """
    by_path: dict[str, Entry] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            while (member := archive.next()) is not None:
                path = _path(member.name)
                if path:
                    by_path[path] = _entry(archive, member, by_path)
    except (tarfile.TarError, EOFError) as error:
        raise StageError(f"an image's file system could not be read: {error}. Run the same command again") from None
    return {path: entry for path, entry in by_path.items() if not LEFT_OUT.fullmatch(path)}


def digest_of(file_system: Mapping[str, Entry]) -> str:
    """SHA-256, in hexadecimal, over a JSON line for each path, sorted."""
    content = hashlib.sha256()
    for path, entry in sorted(file_system.items()):
        content.update(json.dumps([path, *entry]).encode() + b"\n")
    return content.hexdigest()


def differences(first: Mapping[str, Entry], second: Mapping[str, Entry]) -> list[str]:
    """The differences between two file systems, a text for each path."""
    texts = []
    for path in sorted({*first, *second}):
        before, after = first.get(path), second.get(path)
        if before is None or after is None:
            texts.append(f"/{path} is only in the {'second' if before is None else 'first'}")
        elif before != after:
            fields = zip(Entry._fields, before, after)
            changes = [f"{name} {old or 'none'} and {new or 'none'}" for name, old, new in fields if old != new]
            texts.append(f"/{path}: {', '.join(changes)}")
    return texts


def contents(client: Any, image_id: str, workspace: Path, name: str = "") -> dict[str, Entry]:
    """The file system of an image, exported through a container that is never started; `name` is for its progress."""
    labels = engine.container_labels(workspace)
    with engine.explained(f"reading what is in {image_id}"):
        size: int = client.api.inspect_image(image_id)["Size"]
        progress = Progress(f"hashing what is in {name or image_id}", size // MB, "MB")
        with engine.unstarted(client, image_id, labels) as container:
            file_system = entries(_Chunks(_counted(container.export(chunk_size=CHUNK), progress)))
    progress.update(progress.total)
    return file_system


def _counted(chunks: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    """The chunks, with their progress; a tar has headers beside the files, so the end is not told here."""
    done = 0
    for chunk in chunks:
        done += len(chunk)
        progress.update(min(done // MB, progress.total - 1))
        yield chunk


def digest(client: Any, image_id: str, workspace: Path, name: str = "") -> str:
    """The digest of an image's file system, kept for all workspaces of this machine: see `kept_digests`."""
    places = kept_digests.places(workspace, KEPT)
    sha256 = kept_digests.read(places, image_id)
    if sha256 is None:
        sha256 = digest_of(contents(client, image_id, workspace, name))
        kept_digests.write(places, image_id, sha256)
    return sha256


def rebuild(client: Any, image: Image, settings: BuildSettings, workspace: Path, show: Show) -> list[str]:
    """Build an image anew beside the existing one, which is built first if need be; returns their differences.

    The tag stays with the first.
    """
    log = workspace / build.LOGS / f"{image.stage}.log"
    first = build.find(client, image)
    if first is None:
        show(f"image {image.tag}: building it: {build.why(client, image)}")
        first = build.build(client, image, settings, log, lambda line: None)
    show(f"image {image.tag}: building it again")
    second = first
    try:
        second = build.build(client, image, settings, log, lambda line: None)
        before, after = (contents(client, image_id, workspace, image.tag) for image_id in (first, second))
    finally:
        with engine.explained(f"giving {image.tag} back its tag"):
            client.api.tag(first, *image.tag.split(":"))
            if second != first:
                client.api.remove_image(second)
    show(f"image {image.tag}: contents {digest_of(before)} and {digest_of(after)}, {len(before)} paths")
    return differences(before, after)


def rebuild_all(
    project: Path, workspace: Path, settings: BuildSettings, stages: Sequence[str], show: Show
) -> dict[str, list[str]]:
    """`rebuild` for each stage whose files are here: tag to differences. Raises MissingError if there is none."""
    images, client = definition.plans(project, stages, show), engine.connect()
    return {image.tag: rebuild(client, image, settings, workspace, show) for image in images}


def _path(name: str) -> str:
    """A member's name without the leading ./ and trailing / that some tars have; empty for the root."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, by_path: Mapping[str, Entry]) -> Entry:
    mode, owner = f"{member.mode & 0o7777:04o}", f"{member.uid}:{member.gid}"
    if member.islnk():
        target = by_path.get(_path(member.linkname))
        if target is None:
            raise tarfile.ReadError(f"{member.name} is a hard link to {member.linkname}, which is not there")
        return target
    if member.isreg():
        content = archive.extractfile(member)
        assert content is not None
        return Entry("file", mode, owner, sha256=files.sha256_of_stream(content))
    kind = _KINDS.get(member.type, "device")
    targets = {"link": member.linkname, "device": f"{member.devmajor}:{member.devminor}"}
    return Entry(kind, mode, owner, targets.get(kind, ""))


class _Chunks:
    """The chunks that the engine sends, read as tarfile reads a stream: of whatever size they are."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = filter(None, chunks)

    def read(self, size: int) -> bytes:
        return next(self._chunks, b"")
