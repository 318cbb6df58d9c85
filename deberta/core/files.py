"""Files and folders that are written completely or not at all, and their digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import IO, Iterator

TEMPORARY = ".tmp-"
LARGEST_TEXT = 32 * 2**20  # bytes of a file that is read as a whole; the largest that we write have some MB


class UnfitFile(OSError, ValueError):
    """Not a regular file, or too large: its content is not read."""

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(path: Path) -> IO[bytes]:
    """Open a file that anybody may have made. Raises OSError, UnfitFile for a folder, a FIFO or a device."""
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    file = os.open(path, flags | os.O_NONBLOCK)  # to open a FIFO would wait for its writer
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise UnfitFile(errno.EINVAL, "is not a regular file", path)


def read_bytes(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """The content of a file that anybody may have made. Raises OSError, UnfitFile for more than `most` bytes."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UnfitFile(errno.EFBIG, f"has more than {most} bytes", os.fspath(path))
    return content


def read_text(path: Path) -> str:
    """The same as text; what is not UTF-8 becomes U+FFFD."""
    return read_bytes(path).decode("utf-8", errors="replace")


def inside(root: Path, path: str | PurePath, follow: bool = True) -> bool:
    """Whether a path that is relative to `root` stays in it, when all links are followed or by its name alone."""
    resolve = os.path.realpath if follow else os.path.abspath
    base, real = resolve(root), resolve(root / path)
    return os.path.commonpath([base, real]) == base


def temporary_beside(path: Path) -> Path:
    """A name in the same folder (so that a rename is atomic) that no artifact has."""
    return path.with_name(f".{path.name}{TEMPORARY}{os.getpid()}")


def remove(path: Path) -> None:
    """Remove a file, link or folder; nothing happens if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that a killed process left beside `path`."""
    if path.parent.is_dir():
        for name in os.listdir(path.parent):
            if name.startswith(f".{path.name}{TEMPORARY}"):
                remove(path.parent / name)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, whose folder is made; what still has it at the end is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = temporary_beside(path)
    try:
        yield temporary
    finally:
        remove(temporary)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path; rename it to `path` if the block succeeds, remove it if it does not."""
    with staged(path) as temporary:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` and all of its content if the block succeeds."""
    with staged(path) as temporary:
        temporary.mkdir()
        yield temporary
        remove(path)
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with \\n line ends, completely or not at all."""
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write several texts: none gets its name before all are complete, and the first of them gets it last."""
    with contextlib.ExitStack() as waiting:
        for path, text in texts.items():
            temporary = waiting.enter_context(new_file(path))
            with open(temporary, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file's bytes, in hexadecimal."""
    with open_regular(path) as file:
        return sha256_of_stream(file)


def sha256_of_stream(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def files_in(folder: Path, without: str = "") -> list[str]:
    """The regular files below a folder, as sorted POSIX paths relative to it.

    Temporary names, and folders of the name `without`, are left out.
    """
    paths: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if TEMPORARY not in name and name != without]
        relative = os.path.relpath(parent, folder)
        paths += [name if relative == "." else f"{relative}/{name}" for name in names if TEMPORARY not in name]
    return sorted(paths)


def folder_digest(folder: Path) -> str:
    """The in-toto `dirHash` of a folder: SHA-256 over its sorted lines `<sha256>  <path>\\n` (Go's h1, in hex)."""
    listing = hashlib.sha256()
    for name in files_in(folder):
        if "\n" in name:  # it could stand for two files
            raise UnfitFile(errno.EINVAL, "has a line end in its name", os.fspath(folder / name))
        listing.update(f"{sha256_of(folder / name)}  {name}\n".encode(errors="surrogateescape"))
    return listing.hexdigest()
