"""Files that a shard needs where its device is: what is there already, by SHA-256, is used, and the rest is shipped.

A host keeps models by their SHA-256 for all of its devices; bins go into the workspace of the device alone. A file
gets its name once its SHA-256 is right, whoever sent it.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path, PurePosixPath
from typing import Iterator, NamedTuple, Sequence

from deberta.ascend import programs
from deberta.core import files, records
from deberta.core.errors import ConfigError, DataError
from deberta.core.paths import record_of
from deberta.host.plan.plan import Step
from deberta.host.shards import work
from deberta.host.shards.pool import ShardRequest

PIECE = 8 * 2**20  # bytes that are sent at a time
MOST_CACHED = 64 * 2**30  # bytes of a host's cache, beyond which what was not used for longest is removed
STALE_SECONDS = 3600.0  # after which a part belongs to a transfer that was broken off
_CONTENT = "content"
_PART = ".part-"
_SHA256 = re.compile("[0-9a-f]{64}")


class ShippedFile(NamedTuple):
    """A file that a step reads: the same path in the workspace of client and device.

    `size` in bytes. `source`: the client's absolute path, which a shared file system has on all hosts. `stays`: in the
    host's cache, for later shards and other devices.
    """

    path: str
    sha256: str
    size: int
    source: str
    stays: bool


class Piece(NamedTuple):
    """Bytes of an artifact, from `offset` on."""

    artifact: ShippedFile
    offset: int
    data: bytes


def of_step(workspace: Path, digests: records.Digests, step: Step) -> list[ShippedFile]:
    """The model's files and the records beside them: all that every shard of a step reads. Raises FileNotFoundError.

    Raises ConfigError for a model outside the workspace.
    """
    models = [needed.path for needed in step.inputs if not (workspace / needed.path).is_dir()]
    for path in models:
        if path.is_absolute() or not files.inside(workspace, path, follow=False):
            raise ConfigError(f"{path} is not in the workspace, and a cluster's hosts have nothing else. Move it there")
    notes = [record_of(path) for path in models if (workspace / record_of(path)).exists()]
    return [_artifact(workspace, path, digests.of(path)["sha256"], stays=True) for path in (*models, *notes)]


def of_shard(workspace: Path, request: ShardRequest) -> list[ShippedFile]:
    """The bins of a shard's batches. Raises FileNotFoundError."""
    paths = [path for paths in work.bins(request) for path in paths]
    return [_artifact(workspace, path, files.sha256_of(workspace / path), stays=False) for path in paths]


def _artifact(workspace: Path, path: PurePosixPath, sha256: str, stays: bool) -> ShippedFile:
    absolute = workspace / path
    return ShippedFile(str(path), sha256, absolute.stat().st_size, str(absolute.absolute()), stays)


def pieces(artifacts: Sequence[ShippedFile], most: int = PIECE) -> Iterator[list[Piece]]:
    """The artifacts' bytes in groups of at most `most`: many small files, or a part of a large one.

    Raises DataError for a file that has another size by now.
    """
    group: list[Piece] = []
    room = most
    for artifact in artifacts:
        with files.open_regular(Path(artifact.source)) as file:
            offset = 0
            while offset < artifact.size or artifact.size == 0:
                data = file.read(min(room, artifact.size - offset))
                if not data and artifact.size:
                    raise DataError(f"{artifact.path} was changed while it was sent. Run the same command again")
                group.append(Piece(artifact, offset, data))
                offset += len(data)
                room -= len(data)
                del data
                if room <= 0:
                    yield group
                    group, room = [], most
                if artifact.size == 0:
                    break
    if group:
        yield group


class HostFiles:
    """A device's workspace, which has the files of its present step and shard alone, and the cache of its host.

    `most`: bytes of the cache. `host`: as messages name it.
    """

    def __init__(self, workspace: Path, cache: Path, host: str, most: int = MOST_CACHED) -> None:
        self._workspace, self._cache, self._host, self._most = workspace, cache, host, most
        for folder in (workspace, cache):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._digests = records.Digests(cache)
        self._remove_stale()

    def put(self, artifacts: Sequence[ShippedFile]) -> list[ShippedFile]:
        """Put in place what this host has; returns what it lacks. Other models, or for bins other bins, are removed."""
        self._keep_only(artifacts)
        return [artifact for artifact in artifacts if not self._has(artifact)]

    def receive(self, transfer: str, group: Sequence[Piece]) -> None:
        """Take pieces, those of a file in order, and put each complete file in place. `transfer`: whose they are.

        Raises DataError for a file whose SHA-256 is not the one that was announced.
        """
        for artifact, offset, data in group:
            target = self._target(artifact)
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}{_PART}{transfer}")
            with open(part, "ab" if offset else "wb") as file:
                if file.tell() != offset:
                    raise DataError(f"{artifact.path} came to {self._host} with a gap. Run the same command again")
                file.write(data)
                size = file.tell()
                if size == artifact.size and artifact.stays:
                    file.flush()
                    os.fsync(file.fileno())
            if size == artifact.size:
                self._name(artifact, part, target)

    def _target(self, artifact: ShippedFile) -> Path:
        """Where a file is kept. Raises DataError for a path that leads out of the workspace."""
        if not files.inside(self._workspace, artifact.path, follow=False) or not _SHA256.fullmatch(artifact.sha256):
            raise DataError(f"{artifact.path} is no path in a workspace")
        return self._cache / artifact.sha256 / _CONTENT if artifact.stays else self._workspace / artifact.path

    def _has(self, artifact: ShippedFile) -> bool:
        """Put one file in place if it is here: kept, or on a file system that the client has too."""
        target = self._target(artifact)
        if self._is_whole(artifact, target) or self._copy(artifact, target):
            self._link(artifact, target)
            return True
        return False

    def _is_whole(self, artifact: ShippedFile, path: Path) -> bool:
        """Whether a file here has the SHA-256. One that does not is removed."""
        try:
            if artifact.stays:
                sha256 = self._digests.of(PurePosixPath(artifact.sha256, _CONTENT))["sha256"]
            else:
                sha256 = files.sha256_of(path)
        except FileNotFoundError:
            return False
        if sha256 != artifact.sha256:
            files.remove(path)
        return sha256 == artifact.sha256

    def _copy(self, artifact: ShippedFile, target: Path) -> bool:
        """Copy the client's own file, if this host sees it under the same path with the same SHA-256."""
        source = Path(artifact.source)
        try:
            if source.stat().st_size != artifact.size:
                return False
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with files.staged(target) as temporary:
                digest = hashlib.sha256()
                with files.open_regular(source) as file, open(temporary, "wb") as copy:
                    while data := file.read(2**20):
                        digest.update(data)
                        copy.write(data)
                if digest.hexdigest() != artifact.sha256:
                    return False
                os.replace(temporary, target)
        except (FileNotFoundError, PermissionError, files.UnfitFile):
            return False
        self._was_added(artifact)
        return True

    def _name(self, artifact: ShippedFile, part: Path, target: Path) -> None:
        """Give a complete file its name. Raises DataError, and removes it, if its SHA-256 is another one."""
        sha256 = files.sha256_of(part)
        if sha256 != artifact.sha256:
            files.remove(part)
            raise DataError(
                f"{artifact.path} came to {self._host} with SHA-256 {sha256[:12]}.. instead of "
                f"{artifact.sha256[:12]}.., and was refused: it was corrupted on its way, or changed meanwhile. Run "
                "the same command again"
            )
        os.replace(part, target)
        self._was_added(artifact)
        self._link(artifact, target)

    def _was_added(self, artifact: ShippedFile) -> None:
        if artifact.stays:
            self._trim(artifact.sha256)
            self._digests.of(PurePosixPath(artifact.sha256, _CONTENT))
            self._digests.save()

    def _link(self, artifact: ShippedFile, target: Path) -> None:
        """Let a kept file be in the workspace too: the same file where both are on one file system."""
        if not artifact.stays:
            return
        os.utime(target.parent)
        place = self._workspace / artifact.path
        if place.exists() and os.path.samefile(place, target):
            return
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.staged(place) as temporary:
            files.link_or_copy(target, temporary)
            os.replace(temporary, place)

    def _keep_only(self, artifacts: Sequence[ShippedFile]) -> None:
        """Remove what earlier steps and shards left in the workspace, where these artifacts are of its kind."""
        kinds = {PurePosixPath(artifact.path).parts[0] for artifact in artifacts} & {*programs.KINDS}
        paths = {artifact.path for artifact in artifacts}
        for kind in kinds:
            for name in files.files_in(self._workspace / kind):
                if f"{kind}/{name}" not in paths:
                    files.remove(self._workspace / kind / name)

    def _trim(self, newest: str) -> None:
        """Remove what was not used for longest, until the cache has no more than `most` bytes; `newest` stays."""
        entries = sorted(self._cache.glob(f"*/{_CONTENT}"), key=lambda path: path.parent.stat().st_mtime)
        total = sum(path.stat().st_size for path in entries)
        for path in entries:
            if total > self._most and path.parent.name != newest:
                total -= path.stat().st_size
                files.remove(path.parent)

    def _remove_stale(self) -> None:
        for folder in (self._cache, self._workspace):
            for part in folder.rglob(f".*{_PART}*"):
                if time.time() - part.stat().st_mtime > STALE_SECONDS:
                    files.remove(part)
