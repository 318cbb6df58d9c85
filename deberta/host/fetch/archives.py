"""Safe reading of zips from the network, and a search by hash in an old transformers cache."""

from __future__ import annotations

import contextlib
import errno
import itertools
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Callable, ContextManager

import msgspec

from deberta.core import files, schema
from deberta.core.errors import DataError, some

_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_SIDECAR_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Bounds on archives and searches; MNLI.zip and a tokenizer cache stay far below them."""

    entries: int = 10_000
    total: int = 8 << 30  # uncompressed bytes of everything that is read
    ratio: int = 200  # uncompressed to compressed; text reaches about 10, a bomb 1000
    ratio_from: int = 16 << 20  # bytes; smaller files may have any ratio
    searched: int = 16 << 20  # bytes; no tokenizer's file is larger, so a search skips those that are
    searched_files: int = 2000  # of a folder with unknown contents


LIMITS = Limits()


@dataclass(frozen=True)
class Seen:
    """A file that a search by hash read; `url` is from its sidecar."""

    name: str
    url: str
    sha256: str


@contextlib.contextmanager
def opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip; an error in it, also while the block reads it, becomes one DataError."""
    try:
        with zipfile.ZipFile(archive) as zip_file:
            yield zip_file
    except _ZIP_ERRORS as error:
        raise DataError(f"{archive} is a corrupt or unsupported zip: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to an offset in the zip that lies before the file's start
            raise
        raise DataError(f"{archive} is a corrupt zip: it points outside of itself") from error


def members(zip_file: zipfile.ZipFile, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    """Regular files by normalised name; links and special files are left out.

    Raises DataError if any name leads out of the folder or occurs twice, or there are too many.
    """
    archive = zip_file.filename
    entries = zip_file.infolist()
    if len(entries) > limits.entries:
        raise DataError(f"{archive} has {len(entries)} entries, more than {limits.entries}: refused")
    by_name: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in entry.orig_filename:
            raise DataError(f"{archive} holds the unsafe name {entry.orig_filename!r}: refused, nothing was unpacked")
        mode = entry.external_attr >> 16
        if name.endswith("/") or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            continue
        name = "/".join(parts)
        if name in by_name:
            raise DataError(f"{archive} holds {name} twice: refused, nothing was unpacked")
        by_name[name] = entry
    return by_name


def extract(archive: Path, targets: Mapping[str, Path], limits: Limits = LIMITS) -> None:
    """Write each named member to its path, which the caller renames or removes. Raises DataError."""
    with opened(archive) as zip_file:
        entries = members(zip_file, limits)
        missing = [name for name in targets if name not in entries]
        if missing:
            raise DataError(f"{archive} has no regular file {', '.join(missing)}; it has: {some(sorted(entries), 10)}")
        _check_sizes(zip_file, [entries[name] for name in targets], limits)
        for name, path in targets.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _member(zip_file, entries[name]) as source, open(path, "wb") as target:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
                target.flush()
                os.fsync(target.fileno())


def sizes(archive: Path, limits: Limits = LIMITS) -> dict[str, int]:
    """Uncompressed bytes of the archive's regular files by name, as the archive declares them. Raises DataError."""
    with opened(archive) as zip_file:
        return {name: entry.file_size for name, entry in members(zip_file, limits).items()}


def find_in_archive(archive: Path, sha256: str, limits: Limits = LIMITS) -> tuple[str | None, list[Seen]]:
    """The name of the member with this hash, None if there is none, and the files read. Raises DataError."""
    with opened(archive) as zip_file:
        entries = members(zip_file, limits)
        names = [name for name in sorted(entries) if _may_be_searched(name, entries[name].file_size, limits)]
        _check_sizes(zip_file, [entries[name] for name in names], limits)
        by_size = {name: entry.file_size for name, entry in entries.items()}
        return _search(names, sha256, lambda name: _member(zip_file, entries[name]), lambda name: by_size.get(name, -1))


def find_in_folder(folder: Path, sha256: str, depth: int = 4, limits: Limits = LIMITS) -> tuple[str | None, list[Seen]]:
    """The path of the file below `folder` with this hash, None if there is none, and the files read."""

    def size(name: str) -> int:
        return os.path.getsize(name) if os.path.isfile(name) else -1

    def names() -> Iterator[str]:
        for parent, folders, children in os.walk(folder):
            folders.sort()
            if len(Path(parent).relative_to(folder).parts) >= depth:
                folders.clear()
            for path in (os.path.join(parent, child) for child in sorted(children)):
                if size(path) >= 0 and _may_be_searched(path, size(path), limits):
                    yield path

    return _search(itertools.islice(names(), limits.searched_files), sha256, lambda name: open(name, "rb"), size)


def _search(
    names: Iterable[str], sha256: str, open_file: Callable[[str], ContextManager[IO[bytes]]], size: Callable[[str], int]
) -> tuple[str | None, list[Seen]]:
    """The first file with this hash, and the files read until then. `size` is -1 for a file that does not exist."""
    seen = []
    for name in names:
        with open_file(name) as file:
            digest = files.sha256_of_stream(file)
        url = ""
        if 0 <= size(f"{name}.json") <= _SIDECAR_BYTES:
            with open_file(f"{name}.json") as file:
                url = _sidecar_url(file.read())
        seen.append(Seen(name, url, digest))
        if digest == sha256:
            return name, seen
    return None, seen


class _Sidecar(msgspec.Struct):
    """The JSON file beside a cached file of transformers 2 to 4.21; its other key is `etag`."""

    url: str = ""


def _may_be_searched(name: str, size: int, limits: Limits) -> bool:
    return size <= limits.searched and not name.endswith((".json", ".lock", ".part", ".zip"))


def _sidecar_url(content: bytes) -> str:
    try:
        return schema.decode(content, _Sidecar).url
    except ValueError:
        return ""


def _check_sizes(zip_file: zipfile.ZipFile, entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    total = sum(entry.file_size for entry in entries)
    if total > limits.total:
        raise DataError(f"{zip_file.filename} unpacks to {total} bytes, more than {limits.total}: refused")
    for entry in entries:
        if entry.file_size > limits.ratio_from and entry.file_size > limits.ratio * max(1, entry.compress_size):
            raise DataError(
                f"{zip_file.filename}: {entry.filename} unpacks from {entry.compress_size} to {entry.file_size} "
                f"bytes, more than {limits.ratio} times: refused as a zip bomb"
            )


def _member(zip_file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> IO[bytes]:
    """A member, opened: zipfile stops at the declared size and checks the CRC at the end. Raises DataError."""
    if entry.flag_bits & 0x1:
        raise DataError(f"{zip_file.filename}: {entry.filename} is encrypted: refused")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{zip_file.filename}: {entry.filename} is packed by method {entry.compress_type}: refused")
    return zip_file.open(entry)
