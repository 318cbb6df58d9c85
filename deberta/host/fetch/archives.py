"""Safe reading of zips from the network, and a search by hash in an old transformers cache."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Callable, ContextManager, Dict, NamedTuple, Optional

from deberta.core import files, schema
from deberta.core.errors import DataError, some

# RuntimeError: an encrypted member, or (NotImplementedError) a method that zipfile does not know.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError)
_SIDECAR_BYTES = 1 << 20  # of the JSON file beside a cached file of transformers 2 to 4.21: its url and etag

_SHOWN = 20  # files listed when a search by hash finds nothing
Show = Callable[[str], None]  # takes a line for the user


class Limits(NamedTuple):
    """Bounds on archives and searches; MNLI.zip and a tokenizer cache stay far below them."""

    entries: int = 10_000
    total: int = 8 << 30  # uncompressed bytes of everything that is read
    ratio: int = 200  # uncompressed to compressed; text reaches about 10, a bomb 1000
    ratio_from: int = 16 << 20  # bytes; smaller files may have any ratio
    searched: int = 16 << 20  # bytes; no tokenizer's file is larger, so a search skips those that are
    searched_files: int = 2000  # of a folder with unknown contents
    depth: int = 4  # of folders in it


LIMITS = Limits()


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
            with _member(zip_file, entries[name]) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())


def sizes(archive: Path, limits: Limits = LIMITS) -> dict[str, int]:
    """Uncompressed bytes of the archive's regular files by name, as the archive declares them. Raises DataError."""
    with opened(archive) as zip_file:
        return {name: entry.file_size for name, entry in members(zip_file, limits).items()}


def find_in_archive(archive: Path, sha256: str, show: Show, limits: Limits = LIMITS) -> str | None:
    """The name of the member with this hash; if there is none, the files read are shown. Raises DataError."""
    with opened(archive) as zip_file:
        entries = members(zip_file, limits)
        names = [name for name in sorted(entries) if _may_be_searched(name, entries[name].file_size, limits)]
        _check_sizes(zip_file, [entries[name] for name in names], limits)
        return _search(archive, names, sha256, lambda name: _member(zip_file, entries[name]), show)


def find_in_folder(folder: Path, sha256: str, show: Show, limits: Limits = LIMITS) -> str | None:
    """The path of the file below `folder` with this hash; if there is none, the files read are shown."""

    def names() -> Iterator[str]:
        for parent, folders, children in os.walk(folder):
            folders.sort()
            if len(Path(parent).relative_to(folder).parts) >= limits.depth:
                folders.clear()
            for path in (os.path.join(parent, child) for child in sorted(children)):
                if os.path.isfile(path) and _may_be_searched(path, os.path.getsize(path), limits):
                    yield path

    def open_file(name: str) -> IO[bytes]:  # reading a pipe would not end
        return open(name if os.path.isfile(name) else os.devnull, "rb")

    return _search(folder, itertools.islice(names(), limits.searched_files), sha256, open_file, show)


def _search(
    place: Path, names: Iterable[str], sha256: str, open_file: Callable[[str], ContextManager[IO[bytes]]], show: Show
) -> str | None:
    """The first file with this hash; if there is none, the files read are shown."""
    lines = []
    for name in names:
        with open_file(name) as file:
            digest = files.sha256_of_stream(file)
        if digest == sha256:
            return name
        url = ""
        with contextlib.suppress(KeyError, ValueError), open_file(f"{name}.json") as file:  # it may have no sidecar
            url = schema.decode(file.read(_SIDECAR_BYTES), Dict[str, Optional[str]]).get("url") or ""
        lines.append(f"  {name}  {url or '(no url beside it)'}  sha256 {digest}")
    show(f"{place}: looked at {len(lines)} files; none is the one that was looked for")
    for line in lines[:_SHOWN]:
        show(line)
    return None


def _may_be_searched(name: str, size: int, limits: Limits) -> bool:
    return size <= limits.searched and not name.endswith((".json", ".lock", ".part", ".zip"))


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
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{zip_file.filename}: {entry.filename} is packed by method {entry.compress_type}: refused")
    return zip_file.open(entry)
