"""Files and folders of the user's, linked or copied to their places in the workspace: all of them or none."""

from __future__ import annotations

import contextlib
import os
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
    if taken := [str(entry.target) for entry in present if not is_same(entry.source, workspace / entry.target)]:
        raise DataError(f"{', '.join(taken)}: something else is there, and is never replaced. Move it away")
    return waiting


@contextlib.contextmanager
def placed(workspace: Path, placements: Sequence[Placement], copy: bool = False) -> Iterator[list[Placement]]:
    """Within this, all are in place; yields those that were not before. If the block fails, these are removed again.

    A link leads to the file itself, and not to another link. Raises what `absent` does, before anything is made.
    """
    waiting = absent(workspace, placements)
    with undone_if_it_fails(workspace, [entry.target for entry in waiting]):
        for source, target in waiting:
            with files.staged(workspace / target) as temporary:
                if copy:
                    for name in files.files_in(source) if source.is_dir() else [""]:
                        files.link_or_copy(source / name, temporary / name, copy=True)
                else:
                    os.symlink(os.path.realpath(source), temporary)
                os.rename(temporary, workspace / target)
        yield waiting


@contextlib.contextmanager
def undone_if_it_fails(workspace: Path, targets: Sequence[PurePosixPath]) -> Iterator[None]:
    """If the block fails, remove those targets that were not there before, and the empty folders that it made."""
    paths = [workspace / target for target in targets if not os.path.lexists(workspace / target)]
    folders = {parent for path in paths for parent in path.parents if not parent.exists()}
    try:
        yield
    except BaseException:
        for path in paths:
            files.remove(path)
        for folder in sorted(folders, reverse=True):
            with contextlib.suppress(OSError):  # something else is in it by now
                folder.rmdir()
        raise


def is_same(source: Path, target: Path) -> bool:
    """Whether two are the same file, or files or folders of the same content."""
    if not target.exists() or source.is_dir() != target.is_dir():
        return False
    if os.path.samefile(source, target):
        return True
    digest = files.folder_digest if source.is_dir() else files.sha256_of
    return digest(source) == digest(target)
