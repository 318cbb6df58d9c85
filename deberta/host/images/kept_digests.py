"""Digests of image contents, kept by image id for all workspaces of this user on this machine.

The contents of an id never change. The digests are evidence in records, so a file is believed only if nobody but its
owner can have written it. Where the user has no cache folder that fits, the workspace keeps them.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Mapping, NamedTuple, Optional, Sequence

from deberta.core import files, progress

NAME = "deberta-ascend"  # in the user's cache folder
_LARGEST = 1024  # bytes of a kept digest
_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class DigestFolder(NamedTuple):
    """A folder of digests, and the users who are trusted to write there."""

    folder: Path
    owners: Sequence[int]


def places(workspace: Path, folder: str, variables: Mapping[str, str] = os.environ) -> list[DigestFolder]:
    """Where to look and to write, in this order: the user's cache folder, if there is one, and the workspace's.

    root gives what it writes in a workspace to the workspace's owner.
    """
    setting, user = Path(variables.get("XDG_CACHE_HOME", "")), os.geteuid()
    here = DigestFolder(workspace / ".cache" / folder, (user, workspace.stat().st_uid))
    try:  # by the XDG rules a relative path is no setting
        home = setting if setting.is_absolute() else Path(os.path.expanduser("~")).resolve(strict=True) / ".cache"
    except (OSError, RuntimeError):
        return [here]
    return [DigestFolder(home / NAME / folder, (user,)), here]


def read(where: Sequence[DigestFolder], image_id: str) -> Optional[str]:
    """The digest of an image, or None if no place has it in a file that only its owner can have written."""
    expected = re.compile(rb"([0-9a-f]{64}) " + re.escape(image_id.encode()) + rb"\n")  # a renamed file is another's
    for place in where:
        try:
            with files.open_regular(place.folder / image_id) as file:
                status, match = os.fstat(file.fileno()), expected.fullmatch(file.read(_LARGEST))
        except OSError:
            continue
        if match and status.st_uid in place.owners and not status.st_mode & _OTHERS:
            return match[1].decode()
    return None


def write(where: Sequence[DigestFolder], image_id: str, sha256: str) -> None:
    """Keep a digest in the first place that takes it; a line says why if none does."""
    reasons = []
    for place in where:
        try:
            place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = place.folder.stat()
            if status.st_uid not in place.owners or status.st_mode & _OTHERS:
                raise PermissionError(f"others can write in {place.folder}")
            with files.new_file(place.folder / image_id) as temporary:
                temporary.touch(mode=0o600)
                temporary.write_text(f"{sha256} {image_id}\n", encoding="utf-8")
            return
        except OSError as error:
            reasons.append(str(error))
    progress.say(f"the digest of image {image_id} is computed again next time; it cannot be kept: {'; '.join(reasons)}")
