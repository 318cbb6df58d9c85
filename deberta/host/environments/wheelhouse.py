"""A wheelhouse: a flat folder of wheels for machines without network, and its manifest, which is checked when used.

wheelhouse.json lists each file with its size, SHA-256, and the lock, machine and Python that need it, and the digest of
each lock. Copies of the locks are there too, so that `pip install --no-index --find-links DIR -r DIR/LOCK` works.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Dict, List, Optional

import msgspec
from msgspec import Meta

from deberta.core import files, schema
from deberta.core.errors import DataError, MissingError
from deberta.host.environments import offline

MANIFEST = "wheelhouse.json"
DEBS = "debs"  # folder of Debian packages, with a folder for each image below it
# A name in the wheelhouse itself, or of a Debian package below its own folder.
FileName = Annotated[str, Meta(pattern=rf"^({DEBS}/[a-z]+/)?[A-Za-z0-9][A-Za-z0-9._+!~%-]*\Z")]


class Need(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file is for. `lock`: its name, or docker/pins.toml; `python`: as in "3.11", empty for Debian packages."""

    lock: schema.Text
    machine: schema.Text
    python: str


class WheelhouseFile(schema.Schema):
    """A file of the wheelhouse, its size in bytes."""

    file: FileName
    size: schema.Count
    sha256: schema.Sha256
    needed_by: List[Need]


class Manifest(schema.Schema):
    """What a wheelhouse holds; a lock that all its machines have wheels for, with its SHA-256."""

    locks: Dict[str, schema.Sha256]
    files: List[WheelhouseFile]

    def machines(self, lock: str) -> list[str]:
        """The machines for which all wheels of a lock are here, for some Python."""
        return sorted({need.machine for entry in self.files for need in entry.needed_by if need.lock == lock})


def read(folder: Path) -> Optional[Manifest]:
    """The manifest of a wheelhouse; None if there is none. Raises DataError."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    return schema.read(path, Manifest, f"Remove it: files that are right are kept. {offline.hint(folder)}")


def listed(folder: Path, lock: Path, machine: str) -> list[WheelhouseFile]:
    """The files that a machine needs for a lock, all of which are there; their content is not read.

    Raises MissingError: made for another lock, not for this machine, or a file is gone.
    """
    offline.require(folder, lock)
    manifest = read(folder)
    if manifest is None or manifest.locks.get(lock.name) != files.sha256_of(lock):
        raise MissingError(
            f"{folder / MANIFEST} does not list the wheels of this {lock.name}. {offline.hint(folder, machine)}"
        )
    machines = manifest.machines(lock.name)
    if machine not in machines:
        raise MissingError(
            f"the wheelhouse {folder} has the wheels of {lock.name} for {' and '.join(machines) or 'no machine'}, and "
            f"not for {machine}. {offline.hint(folder, machine)}"
        )
    needed = [e for e in manifest.files if any((n.lock, n.machine) == (lock.name, machine) for n in e.needed_by)]
    if absent := [entry.file for entry in needed if not os.path.lexists(folder / entry.file)]:
        raise MissingError(
            f"{folder / absent[0]}{_more(absent)} is in {MANIFEST}, and not there. {offline.hint(folder, machine)}"
        )
    return needed


def check(folder: Path, lock: Path, machine: str) -> list[Path]:
    """The paths of what `listed` gives, each with the SHA-256 of the manifest. Raises its errors, and DataError."""
    needed = listed(folder, lock, machine)
    if wrong := [entry.file for entry in needed if not is_right(folder / entry.file, entry)]:
        raise DataError(
            f"{folder / wrong[0]}{_more(wrong)} is not the file that {MANIFEST} lists. Remove it. "
            f"{offline.hint(folder, machine)}"
        )
    return [folder / entry.file for entry in needed]


def is_right(path: Path, entry: WheelhouseFile) -> bool:
    """Whether a file has the size and the SHA-256 of the manifest. Raises OSError if it cannot be read."""
    try:
        return path.stat().st_size == entry.size and files.sha256_of(path) == entry.sha256
    except files.UnfitFile:
        return False


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
