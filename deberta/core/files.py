"""Files and folders that are written completely or not at all, and their digests.

A step that runs has an intent beside each of its outputs (`host/run/freshness.py`). `switch` notes there what it is
about to give a name, so that a kill before the step's record is told from a change by somebody else.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path, PurePath
from typing import IO, Iterator, Literal

TEMPORARY = ".tmp-"
INTENT = f"{TEMPORARY}intent"
ASIDE = ".old"  # ends the temporary name of a folder that waits until its successor has its name
BEFORE = "-"  # in an intent, the state of what was there before the run
LARGEST_TEXT = 32 * 2**20  # bytes of a file that is read as a whole; the largest that we write have some MB
LARGEST = 64 * 2**30  # bytes of a file that is hashed: minutes


LFS_POINTER = b"version https://git-lfs"
# How files of other forms begin: what they are, and what to do.
_FORMS = (
    (b"\x1f\x8b", "is compressed with gzip: unpack it with gunzip"),
    (b"\xfd7zXZ\0", "is compressed with xz: unpack it with unxz"),
    (b"BZh", "is compressed with bzip2: unpack it with bunzip2"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it with unzstd"),
    (b"PK\3\4", "is a zip archive: unpack it, and name what is in it"),
    (b"\xef\xbb\xbf", "begins with a byte order mark (BOM): save it as UTF-8 without one"),
    (b"\xff\xfe", "is UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "is UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16 -t UTF-8"),
    (b"{\0", "is UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16LE -t UTF-8"),
    (b"\0{", "is UTF-16 text: save it as UTF-8, for example with iconv -f UTF-16BE -t UTF-8"),
    (b"<!doctype", "is a web page: download the file itself, by its raw address"),
    (b"<html", "is a web page: download the file itself, by its raw address"),
    (b"PAR1", "is a parquet file"),
    (b"\x89HDF", "is an HDF5 file, of Keras or TensorFlow: save the model with PyTorch"),
    (b"GGUF", "is a GGUF file, of llama.cpp: take the model's own PyTorch checkpoint"),
)


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
    if content.startswith(LFS_POINTER):
        raise UnfitFile(errno.EINVAL, form_of(content, len(content)), os.fspath(path))
    return content


def form_of(head: bytes, size: int) -> str:
    """What a file of `size` bytes is that begins so, and what to do, if it is of a form that nothing here reads."""
    if head.startswith(LFS_POINTER):
        advice = "run git lfs pull where it was cloned, or download the file itself"
        return f"is a Git LFS pointer ({size} bytes), not the file: {advice}"
    beginning = head.lstrip(b"\r\n\t ").lower()
    return next((text for start, text in _FORMS if head.startswith(start) or beginning.startswith(start)), "")


def read_text(path: Path) -> str:
    """The same as text; what is not UTF-8 becomes U+FFFD."""
    return read_bytes(path).decode("utf-8", errors="replace")


def inside(root: Path, path: str | PurePath, follow: bool = True) -> bool:
    """Whether a path that is relative to `root` stays in it, when all links are followed or by its name alone."""
    resolve = os.path.realpath if follow else os.path.abspath
    base, real = resolve(root), resolve(root / path)
    return os.path.commonpath([base, real]) == base


def commit_point(name: Literal["begun", "noted", "aside", "switched", "recorded"]) -> None:
    """A moment between two changes that belong together; tests/campaign puts a kill in its place.

    The intents are there; one names the new content; the old content has no name; the new content has it; the record
    is there too.
    """


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
                remove_leftover(path.parent / name)


def remove_leftover(path: Path) -> None:
    """Remove what has a temporary name of this process, or of one that has ended; a folder set aside is put back."""
    name, _, rest = path.name[1:].rpartition(TEMPORARY)
    process = re.match(r"[0-9]{1,9}", rest)
    if process is None or (int(process[0]) not in (1, os.getpid()) and is_running(int(process[0]))):  # 1: a container's
        return
    if rest.endswith(ASIDE) and not os.path.lexists(path.with_name(name)):
        os.replace(path, path.with_name(name))
    else:
        remove(path)


def is_running(process: int) -> bool:
    """Whether a process of that number is here, and does not merely wait to be reaped. In containers none is seen."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    with contextlib.suppress(OSError):
        state, _, _, _, _, _, flags = read_text(Path(f"/proc/{process}/stat")).rpartition(")")[2].split()[:7]
        return state not in "ZX" and not int(flags) & 4  # PF_EXITING: its files are closed before it becomes a zombie
    return True


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
        switch(temporary, path)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `path` and all of its content if the block succeeds."""
    with staged(path) as temporary:
        temporary.mkdir()
        yield temporary
        switch(temporary, path)


def switch(temporary: Path, path: Path) -> None:
    """Give `temporary` the name `path`; a folder's old content goes.

    The old or the new content always has that name, except on a file system that cannot exchange two folders (NFS, for
    one): there the old one is set aside, and `remove_leftover` puts it back after a kill in between.
    """
    note(temporary, path)
    replaces_folder = temporary.is_dir() and os.path.lexists(path)
    old = temporary
    if not (replaces_folder and _exchange(temporary, path)):
        if replaces_folder:
            old = temporary.with_name(f"{temporary.name}{ASIDE}")
            os.replace(path, old)
            commit_point("aside")
        os.replace(temporary, path)
    commit_point("switched")
    remove(old)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names at once, if the C library and the file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE: linux/fcntl.h, linux/fs.h
    return rename is not None and rename(folder, os.fsencode(first), folder, os.fsencode(second), exchange) == 0


def note(temporary: Path, path: Path) -> None:
    """Add to the intent for `path`, if there is one, that `temporary` gets this name."""
    if (intent := intent_of(path)).is_file() or (intent := intent_of(path.parent)).is_file():
        append(intent, state(temporary), path.name)
        commit_point("noted")


def intent_of(output: Path) -> Path:
    """The file that says what a run is about to put where `output` is, or into that folder."""
    return output.parent / f".{output.name}{INTENT}"


def append(intent: Path, content: str, name: str) -> None:
    """Add to an intent that the content of this state gets this name."""
    with open(intent, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(f"{content} {name}\n")
        file.flush()
        os.fsync(file.fileno())


def intended(output: Path) -> dict[str, set[str]]:
    """Name -> states, of what the intent beside `output` names; empty without one."""
    states: dict[str, set[str]] = {}
    if (intent := intent_of(output)).is_file():
        for line in read_bytes(intent).decode("utf-8", errors="surrogateescape").splitlines():
            content, _, name = line.partition(" ")
            states.setdefault(name, set()).add(content)
    return states


def is_interrupted(path: Path) -> bool:
    """Whether a run of ours that did not get to its record left `path` as it is, or missing."""
    states = intended(path).get(path.name) or intended(path.parent).get(path.name) or set()
    return bool(states) and (not os.path.lexists(path) or (path.exists() and state(path) in states))


def link_or_copy(source: Path, target: Path, copy: bool = False) -> None:
    """Give a file a second name, or a copy where no hard link can be made (another file system or owner).

    `copy`: always a copy. Raises OSError; `target` must not be there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        with contextlib.suppress(OSError):
            os.link(os.path.realpath(source), target)
            return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target))
    shutil.copy2(source, target)
    with open(target, "rb") as written:
        os.fsync(written.fileno())


def aside(path: Path) -> Path:
    """A name beside `path` for what is to make room, which says when; nothing has it."""
    name = path.with_name(f"{path.name}.before-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}")
    while os.path.lexists(name):
        name = name.with_name(f"{name.name}-2")
    return name


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
    """SHA-256 of a regular file's bytes, in hexadecimal.

    Raises OSError; UnfitFile for a Git LFS pointer, or more than LARGEST bytes.
    """
    with open_regular(path) as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UnfitFile(errno.EINVAL, form_of(LFS_POINTER, os.fstat(file.fileno()).st_size), os.fspath(path))
        file.seek(0)
        return _sha256_of_regular(file)


def _sha256_of_regular(file: IO[bytes]) -> str:
    if (size := os.fstat(file.fileno()).st_size) > LARGEST:
        raise UnfitFile(errno.EFBIG, f"has {size} bytes, more than the {LARGEST} that are read", file.name)
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


def size_of(path: Path) -> int:
    """The bytes of a file, or of the files in a folder."""
    if path.is_dir():
        return sum((path / name).stat().st_size for name in files_in(path))
    return path.stat().st_size


def folder_digest(folder: Path) -> str:
    """The in-toto `dirHash` of a folder: SHA-256 over its sorted lines `<sha256>  <path>\\n` (Go's h1, in hex)."""
    listing = hashlib.sha256()
    for name in files_in(folder):
        if "\n" in name:  # it could stand for two files
            raise UnfitFile(errno.EINVAL, "has a line end in its name", os.fspath(folder / name))
        with open_regular(folder / name) as file:  # a pointer too: a clone may lack files that nobody reads
            listing.update(f"{_sha256_of_regular(file)}  {name}\n".encode(errors="surrogateescape"))
    return listing.hexdigest()


def state(path: Path) -> str:
    """Names, sizes, times and inodes of a file, or of the files in a folder: the same while nothing writes to them."""
    listing = hashlib.sha256()
    for name in files_in(path) if path.is_dir() else [""]:
        entry = os.stat(path / name if name else path)
        line = f"{name}\0{entry.st_size}\0{entry.st_mtime_ns}\0{entry.st_ino}\n"
        listing.update(line.encode(errors="surrogateescape"))
    return listing.hexdigest()
