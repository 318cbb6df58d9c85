"""A digest of an image's file system, which is the same whenever and wherever the image is built.

Two builds of one Dockerfile never have the same id, which covers timestamps, logs and a build's own labels. This
digest covers what a program in the image can read: every path with its type, mode, owner, link target and bytes. The
image is exported as a tar by a container that is never started, and read as a stream.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Dict, Iterator, Mapping, Sequence

import msgspec

from deberta.core import files
from deberta.core.errors import MissingError, StageError
from deberta.host.engine import engine
from deberta.host.engine.transcript import Show
from deberta.host.images import build, definition, pins
from deberta.host.images.definition import BuildSettings, Image

FORMAT = 1  # version of the digest; a change of what it covers needs another one
MEMORY = Path(".cache", "image_contents.json")
CHUNK = 1 << 20
# Folders and files that are not covered: logs and caches, which hold times (first line), and what engines put into
# containers.
LEFT_OUT = (
    *("var/log", "var/cache/ldconfig/aux-cache", "var/cache/apt"),
    *("dev", "proc", "sys", ".dockerenv", "run/.containerenv"),
    *("etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab"),
)


@dataclass(frozen=True)
class Entry:
    """One path of a file system. A hard link is the entry of its target: in layers it may become a copy."""

    kind: str  # file, folder, link, device, pipe
    mode: int
    owner: str  # uid:gid
    target: str = ""  # of a link; major:minor of a device
    sha256: str = ""  # of a file


class _Memory(msgspec.Struct):
    """The file of remembered digests, by image id."""

    format: int
    digests: Dict[str, str]


def entries(stream: IO[bytes]) -> dict[str, Entry]:
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
    return {path: entry for path, entry in by_path.items() if not _is_left_out(path)}


def digest_of(file_system: Mapping[str, Entry]) -> str:
    """SHA-256, in hexadecimal, over a JSON line for each path, sorted."""
    content = hashlib.sha256()
    for path, entry in sorted(file_system.items()):
        line = [path, entry.kind, f"{entry.mode:04o}", entry.owner, entry.target, entry.sha256]
        content.update(json.dumps(line).encode() + b"\n")
    return content.hexdigest()


def differences(first: Mapping[str, Entry], second: Mapping[str, Entry]) -> list[str]:
    """The differences between two file systems, a text for each path."""
    texts = []
    for path in sorted({*first, *second}):
        before, after = first.get(path), second.get(path)
        if before is None or after is None:
            texts.append(f"/{path} is only in the {'second' if before is None else 'first'}")
        elif before != after:
            texts.append(f"/{path}: {', '.join(_changes(before, after))}")
    return texts


def contents(client: Any, image_id: str, workspace: Path) -> dict[str, Entry]:
    """The file system of an image, exported through a container that is never started."""
    labels = engine.container_labels(workspace)
    with engine.explained(f"reading what is in {image_id}"), engine.unstarted(client, image_id, labels) as container:
        return entries(io.BufferedReader(_Chunks(container.export(chunk_size=CHUNK)), CHUNK))


def digest(client: Any, image_id: str, workspace: Path) -> str:
    """The digest of an image's file system, remembered in the workspace: the contents of an id never change."""
    known = _known(workspace)
    if image_id not in known:
        known[image_id] = digest_of(contents(client, image_id, workspace))
        text = msgspec.json.format(msgspec.json.encode(_Memory(FORMAT, known))).decode()
        files.write_text(workspace / MEMORY, text + "\n")
    return known[image_id]


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
        before, after = (contents(client, image_id, workspace) for image_id in (first, second))
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
    loaded, client = pins.load(project), engine.connect()
    by_tag: dict[str, list[str]] = {}
    for stage in stages:
        try:
            image = definition.plan(project, loaded, stage, platform.machine())
        except MissingError as error:
            if len(stages) == 1:
                raise
            show(f"image of {stage}: left out: {error}")
            continue
        by_tag[image.tag] = rebuild(client, image, settings, workspace, show)
    return by_tag


def _known(workspace: Path) -> dict[str, str]:
    """The remembered digests by image id; none if the file is damaged or of another format."""
    try:
        memory = msgspec.json.decode((workspace / MEMORY).read_bytes(), type=_Memory)
    except (OSError, msgspec.DecodeError):
        return {}
    return memory.digests if memory.format == FORMAT else {}


def _path(name: str) -> str:
    """A member's name without the leading ./ and trailing / that some tars have; empty for the root."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _is_left_out(path: str) -> bool:
    if path.endswith(".pyc") or "__pycache__" in path.split("/"):
        return True
    # The folders of logs stay, since programs need them; those that an engine mounts are not the image's.
    inside = any(path.startswith(f"{name}/") for name in LEFT_OUT)
    return inside or (path in LEFT_OUT and path not in ("var/log", "var/cache/apt"))


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, by_path: Mapping[str, Entry]) -> Entry:
    mode, owner = member.mode & 0o7777, f"{member.uid}:{member.gid}"
    if member.islnk():
        target = by_path.get(_path(member.linkname))
        if target is None:
            raise tarfile.ReadError(f"{member.name} is a hard link to {member.linkname}, which is not there")
        return target
    if member.isreg():
        content = archive.extractfile(member)
        assert content is not None
        return Entry("file", mode, owner, sha256=files.sha256_of_stream(content))
    if member.isdir():
        return Entry("folder", mode, owner)
    if member.issym():
        return Entry("link", mode, owner, member.linkname)
    if member.isfifo():
        return Entry("pipe", mode, owner)
    return Entry("device", mode, owner, f"{member.devmajor}:{member.devminor}")


def _changes(first: Entry, second: Entry) -> Iterator[str]:
    for name in ("kind", "owner", "target"):
        if getattr(first, name) != getattr(second, name):
            yield f"{name} {getattr(first, name) or 'none'} and {getattr(second, name) or 'none'}"
    if first.mode != second.mode:
        yield f"mode {first.mode:04o} and {second.mode:04o}"
    if first.sha256 != second.sha256:
        yield f"bytes (SHA-256 {first.sha256[:12] or 'none'}.. and {second.sha256[:12] or 'none'}..)"


class _Chunks(io.RawIOBase):
    """The chunks that the engine sends, as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
