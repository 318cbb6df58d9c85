"""Files and folders of the user's, linked or copied to their places in the workspace: all of them or none."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from deberta.core import files
from deberta.core.errors import ConfigError, DataError, MissingError


class Placement(NamedTuple):
    """A file or folder of the user's, and its place in the workspace."""

    source: Path
    target: PurePosixPath


def absent(workspace: Path, placements: Sequence[Placement]) -> list[Placement]:
    """Those that are not in place yet. Raises MissingError, ConfigError (no file or folder), DataError (place taken).

    A place that holds the same file, or the same content, is taken as it is.
    """
    if missing := [str(entry.source) for entry in placements if not entry.source.exists()]:
        raise MissingError(f"{', '.join(missing)}: not there. Check the path")
    if special := [str(entry.source) for entry in placements if not (entry.source.is_file() or entry.source.is_dir())]:
        raise ConfigError(f"{', '.join(special)}: neither a file nor a folder")
    waiting = [entry for entry in placements if not os.path.lexists(workspace / entry.target)]
    present = [entry for entry in placements if entry not in waiting]
    if taken := [str(entry.target) for entry in present if not _is_same(entry.source, workspace / entry.target)]:
        raise DataError(f"{', '.join(taken)}: something else is there, and is never replaced. Move it away")
    return waiting


@contextlib.contextmanager
def placed(workspace: Path, placements: Sequence[Placement], copy: bool = False) -> Iterator[list[Placement]]:
    """Within this, all are in place; yields those that were not before. If the block fails, these are removed again.

    A link leads to the file itself, and not to another link. Raises what `absent` does, before anything is made.
    """
    waiting = absent(workspace, placements)
    folders = [parent for entry in waiting for parent in (workspace / entry.target).parents if not parent.exists()]
    ready: list[Path] = []
    try:
        for source, target in waiting:
            path = workspace / target
            with files.staged(path) as temporary:
                if copy:
                    _copy(source, temporary)
                else:
                    os.symlink(os.path.realpath(source), temporary)
                ready.append(path)
                os.rename(temporary, path)
        yield waiting
    except BaseException:
        for path in ready:
            files.remove(path)
        for folder in sorted(set(folders), reverse=True):
            with contextlib.suppress(OSError):  # something else is in it by now
                folder.rmdir()
        raise


def _is_same(source: Path, target: Path) -> bool:
    if not target.exists() or source.is_dir() != target.is_dir():
        return False
    if os.path.samefile(source, target):
        return True
    digest = files.folder_digest if source.is_dir() else files.sha256_of
    return digest(source) == digest(target)


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or the regular files of a folder; links are followed."""
    for name in files.files_in(source) if source.is_dir() else [""]:
        path = target / name if name else target
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.open_regular(source / name if name else source) as content, open(path, "wb") as file:
            shutil.copyfileobj(content, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
    if not target.exists():  # an empty folder
        target.mkdir()
