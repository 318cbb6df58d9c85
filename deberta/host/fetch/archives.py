"""Safe reading of zips that came over the network, and finding a file by its hash in an old transformers cache."""

from __future__ import annotations

import contextlib
import errno
import json
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Optional

from deberta.core import files
from deberta.core.errors import DataError, some

_BROKEN = (
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
    """What an archive may ask for; MNLI.zip and a tokenizer cache stay far below."""

    entries: int = 10_000
    total: int = 8 << 30  # uncompressed bytes of everything that is read
    ratio: int = 200  # uncompressed to compressed; text reaches about 10, a bomb 1000
    ratio_from: int = 16 << 20  # bytes below which the ratio is let be
    searched: int = 16 << 20  # a file above this is not a tokenizer's, so a search by hash skips it
    searched_files: int = 2000  # of a folder that may hold anything


LIMITS = Limits()


@dataclass(frozen=True)
class Seen:
    """A file that a search by hash looked at; `url` is from its sidecar."""

    name: str
    url: str
    sha256: str


@contextlib.contextmanager
def opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """An open zip; whatever is broken in it, in the block too, becomes one DataError."""
    try:
        with zipfile.ZipFile(archive) as opened_zip:
            yield opened_zip
    except _BROKEN as error:
        raise DataError(f"{archive} is a corrupt or unsupported zip: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to where the zip says, before the file's start
            raise
        raise DataError(f"{archive} is a corrupt zip: it points outside of itself") from error


def members(opened_zip: zipfile.ZipFile, limits: Limits) -> dict[str, zipfile.ZipInfo]:
    """Regular files by normalised name. Raises DataError if any name leads out of the folder, or there are too many.

    Links and special files are left out: nothing follows them, and asking for one finds it missing.
    """
    where = opened_zip.filename
    entries = opened_zip.infolist()
    if len(entries) > limits.entries:
        raise DataError(f"{where} has {len(entries)} entries, more than {limits.entries}: refused")
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in entry.orig_filename:
            raise DataError(f"{where} holds the unsafe name {entry.orig_filename!r}: refused, nothing was unpacked")
        mode = entry.external_attr >> 16
        if name.endswith("/") or (stat.S_IFMT(mode) and not stat.S_ISREG(mode)):
            continue
        name = "/".join(parts)
        if name in found:
            raise DataError(f"{where} holds {name} twice: refused, nothing was unpacked")
        found[name] = entry
    return found


def extract(archive: Path, wanted: Mapping[str, Path], limits: Limits = LIMITS) -> None:
    """Write each wanted member to its path, which the caller renames or removes. Raises DataError."""
    with opened(archive) as opened_zip:
        found = members(opened_zip, limits)
        missing = [name for name in wanted if name not in found]
        if missing:
            raise DataError(f"{archive} has no regular file {', '.join(missing)}; it has: {some(sorted(found), 10)}")
        _check_sizes(opened_zip, [found[name] for name in wanted], limits)
        for name, path in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with _member(opened_zip, found[name]) as source, open(path, "wb") as target:
                while chunk := source.read(1 << 20):
                    target.write(chunk)
                target.flush()
                os.fsync(target.fileno())


def size_of(archive: Path, names: list[str], limits: Limits = LIMITS) -> int:
    """Uncompressed bytes of those of the named members that are there, as the archive declares them."""
    with opened(archive) as opened_zip:
        found = members(opened_zip, limits)
        return sum(found[name].file_size for name in names if name in found)


def names_in(archive: Path, limits: Limits = LIMITS) -> list[str]:
    """The names of the archive's regular files. Raises DataError."""
    with opened(archive) as opened_zip:
        return sorted(members(opened_zip, limits))


def find_in_archive(
    archive: Path,
    sha256: str,
    limits: Limits = LIMITS,
) -> tuple[Optional[str], list[Seen]]:
    """The member that has this hash, whatever its name, and what was seen until then. Raises DataError."""
    seen = []
    with opened(archive) as opened_zip:
        found = members(opened_zip, limits)
        looked_at = [name for name in sorted(found) if _may_be_searched(name, found[name].file_size, limits)]
        _check_sizes(opened_zip, [found[name] for name in looked_at], limits)
        for name in looked_at:
            with _member(opened_zip, found[name]) as source:
                digest = files.sha256_of_stream(source)
            url = ""
            if name + ".json" in found and found[name + ".json"].file_size <= _SIDECAR_BYTES:
                with _member(opened_zip, found[name + ".json"]) as source:
                    url = _sidecar_url(source.read())
            seen.append(Seen(name, url, digest))
            if digest == sha256:
                return name, seen
    return None, seen


def find_in_folder(
    folder: Path,
    sha256: str,
    depth: int = 4,
    limits: Limits = LIMITS,
) -> tuple[Optional[Path], list[Seen]]:
    """The file below `folder` that has this hash, whatever its name, and what was seen until then."""
    seen: list[Seen] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        if len(Path(parent).relative_to(folder).parts) >= depth:
            folders.clear()
        for name in sorted(names):
            path = Path(parent, name)
            if not path.is_file() or not _may_be_searched(name, path.stat().st_size, limits):
                continue
            digest = files.sha256_of(path)
            sidecar = Path(parent, name + ".json")
            small = sidecar.is_file() and sidecar.stat().st_size <= _SIDECAR_BYTES
            seen.append(Seen(str(path), _sidecar_url(sidecar.read_bytes()) if small else "", digest))
            if digest == sha256:
                return path, seen
            if len(seen) >= limits.searched_files:
                return None, seen
    return None, seen


def _may_be_searched(name: str, size: int, limits: Limits) -> bool:
    return size <= limits.searched and not name.endswith((".json", ".lock", ".part", ".zip"))


def _sidecar_url(content: bytes) -> str:
    """`url` of a transformers 2-4.21 cache sidecar: {"url": ..., "etag": ...}."""
    try:
        sidecar = json.loads(content)
    except ValueError:  # UnicodeDecodeError too
        return ""
    return str(sidecar.get("url", "")) if isinstance(sidecar, dict) else ""


def _check_sizes(opened_zip: zipfile.ZipFile, entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    total = sum(entry.file_size for entry in entries)
    if total > limits.total:
        raise DataError(f"{opened_zip.filename} unpacks to {total} bytes, more than {limits.total}: refused")
    for entry in entries:
        if entry.file_size > limits.ratio_from and entry.file_size > limits.ratio * max(1, entry.compress_size):
            raise DataError(
                f"{opened_zip.filename}: {entry.filename} unpacks from {entry.compress_size} to {entry.file_size} "
                f"bytes, more than {limits.ratio} times: refused as a zip bomb"
            )


@contextlib.contextmanager
def _member(opened_zip: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    """A member's bytes: zipfile stops at the declared size and checks the CRC at the end."""
    if entry.flag_bits & 0x1:
        raise DataError(f"{opened_zip.filename}: {entry.filename} is encrypted: refused")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{opened_zip.filename}: {entry.filename} is packed by method {entry.compress_type}: refused")
    with opened_zip.open(entry) as source:
        yield source
