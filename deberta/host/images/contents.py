"""What is in an image, whenever and wherever it was built: a digest of its file system.

Two builds of the same Dockerfile never have the same id: it covers timestamps, logs and a build's own labels. This
digest covers what a program in the image can read and what a rebuild can be held to: every path with its type, mode,
owner, link target and bytes. The image is exported as a tar by a container that is never started, and read as it comes.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

from deberta.core import files
from deberta.core.errors import MissingError, StageError
from deberta.host.engine import engine
from deberta.host.images import build, definition, pins
from deberta.host.images.definition import BuildSettings, Image

FORMAT = 1  # of the digest: what is covered, and how it is written down
MEMORY = Path(".cache", "image_contents.json")
CHUNK = 1 << 20
# A folder with all below it, or a file. Engines put their own into containers (the second line); the rest are logs and
# caches, which hold times.
LEFT_OUT = (
    *("var/log", "var/cache/ldconfig/aux-cache", "var/cache/apt"),
    *("dev", "proc", "sys", ".dockerenv", "run/.containerenv"),
    *("etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One path of a file system. Of a hard link: what it leads to, since layers may part two names of a file."""

    kind: str  # file, folder, link, device, pipe
    mode: int
    owner: str  # uid:gid
    target: str = ""  # of a link; major:minor of a device
    sha256: str = ""  # of a file


def entries(stream: IO[bytes]) -> Dict[str, Entry]:
    """The file system in a tar, by path; compiled Python, logs and what engines inject are left out.

    Raises StageError for a tar that ends too early or is none.
    """
    found: Dict[str, Entry] = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            while (member := archive.next()) is not None:
                path = _path(member.name)
                if path:
                    found[path] = _entry(archive, member, found)
    except (tarfile.TarError, EOFError) as error:
        raise StageError(f"an image's file system could not be read: {error}. Run the same command again") from None
    return {path: entry for path, entry in found.items() if not _is_left_out(path)}


def digest_of(found: Mapping[str, Entry]) -> str:
    """SHA-256, in hexadecimal, over a JSON line for each path, sorted."""
    content = hashlib.sha256()
    for path in sorted(found):
        entry = found[path]
        line = [path, entry.kind, f"{entry.mode:04o}", entry.owner, entry.target, entry.sha256]
        content.update(json.dumps(line).encode() + b"\n")
    return content.hexdigest()


def differences(one: Mapping[str, Entry], other: Mapping[str, Entry]) -> List[str]:
    """What is not the same in two file systems, a text for each path."""
    said = []
    for path in sorted({*one, *other}):
        first, second = one.get(path), other.get(path)
        if first is None or second is None:
            said.append(f"/{path} is only in the {'second' if first is None else 'first'}")
        elif first != second:
            said.append(f"/{path}: {', '.join(_changes(first, second))}")
    return said


def contents(client: Any, image_id: str, workspace: Path) -> Dict[str, Entry]:
    """The file system of an image. A container is made of it for that, never started, and removed."""
    labels = {engine.LABEL: "container", engine.OF_WORKSPACE: engine.workspace_label(workspace), engine.KEPT: "no"}
    with engine.explained(f"reading what is in {image_id}"):
        made = client.containers.create(image_id, ["none"], labels=labels, network_mode="none")
        try:
            return entries(io.BufferedReader(_Chunks(made.export(chunk_size=CHUNK)), CHUNK))
        finally:
            engine.remove(made)


def digest(client: Any, image_id: str, workspace: Path) -> str:
    """The digest of what is in an image, remembered in the workspace: an id never means anything else."""
    known = _known(workspace)
    if image_id not in known:
        known[image_id] = digest_of(contents(client, image_id, workspace))
        text = json.dumps({"format": FORMAT, "digests": known}, indent=0)
        files.write_text(workspace / MEMORY, text + "\n")
    return known[image_id]


def rebuild(
    client: Any, image: Image, settings: BuildSettings, workspace: Path, say: Say, other: Optional[Say] = None
) -> List[str]:
    """Build an image anew, everything in it, beside the one that is there (or another new one): what differs.

    The tag stays with the first. `other` shows the builds' own lines.
    """
    log = workspace / ".cache" / "images" / f"{image.stage}.log"
    quiet: Say = other or (lambda line: None)
    first = build.find(client, image)
    if first is None:
        say(f"image {image.tag}: building it: {build.why(client, image)}")
        first = build.build(client, image, settings, log, quiet)
    say(f"image {image.tag}: building it again")
    second = first
    try:
        second = build.build(client, image, settings, log, quiet)
        one, two = (contents(client, number, workspace) for number in (first, second))
    finally:
        with engine.explained(f"giving {image.tag} back its tag"):
            client.api.tag(first, *image.tag.split(":"))
            if second != first:
                client.api.remove_image(second)
    say(f"image {image.tag}: contents {digest_of(one)} and {digest_of(two)}, {len(one)} paths")
    return differences(one, two)


def rebuild_all(
    project: Path, workspace: Path, settings: BuildSettings, stages: Sequence[str], say: Say
) -> Dict[str, List[str]]:
    """The same of every stage whose parts are here: tag to what differs. Raises MissingError if there is none."""
    loaded, client = pins.load(project), engine.connect()
    found: Dict[str, List[str]] = {}
    for stage in stages:
        try:
            image = definition.plan(project, loaded, stage, platform.machine())
        except MissingError as error:
            if len(stages) == 1:
                raise
            say(f"image of {stage}: left out: {error}")
            continue
        found[image.tag] = rebuild(client, image, settings, workspace, say)
    return found


def _known(workspace: Path) -> Dict[str, str]:
    """What is remembered; nothing if it is damaged or of another format."""
    try:
        memory = json.loads((workspace / MEMORY).read_text(encoding="utf-8"))
        known = memory["digests"] if memory["format"] == FORMAT else {}
        return {str(image): str(value) for image, value in known.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _path(name: str) -> str:
    """A member's name without what tars of different makers put around it; empty for the root."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _is_left_out(path: str) -> bool:
    if path.endswith(".pyc") or "__pycache__" in path.split("/"):
        return True
    # A log's folder stays: programs need it. What an engine mounts over is not the image's at all.
    inside = any(path.startswith(f"{name}/") for name in LEFT_OUT)
    return inside or (path in LEFT_OUT and path not in ("var/log", "var/cache/apt"))


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo, found: Mapping[str, Entry]) -> Entry:
    mode, owner = member.mode & 0o7777, f"{member.uid}:{member.gid}"
    if member.islnk():
        target = found.get(_path(member.linkname))
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
    """A file of the chunks that the engine sends."""

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
