"""Files in a workspace that tell, after a kill, what may be left on an engine, so that none is asked in vain.

One says that containers may be there, and belongs to the holder of the workspace's lock. One for each build holds the
build's label, and is locked as long as the building process lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from pathlib import Path
from typing import Callable, NamedTuple

from deberta.core import files
from deberta.host.engine import address

CONTAINERS = Path(".cache", "containers.begun")
BUILDS, BUILD = Path(".cache", "images"), ".begun"  # their folder, and the end of their names


class Unfinished(NamedTuple):
    """What a killed process began on the engine at `url`; `label`: of everything that a build makes, else empty."""

    file: Path
    url: str
    label: str = ""


def begin_containers(workspace: Path) -> None:
    files.write_text(workspace / CONTAINERS, f"{address.endpoint().url}\n")


def end_containers(workspace: Path) -> None:
    (workspace / CONTAINERS).unlink(missing_ok=True)


def begin_build(folder: Path, label: str) -> Callable[[], None]:
    """Note that a build begins; returns what notes that nothing is left of it."""
    path = folder / f"{uuid.uuid4().hex}{BUILD}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, f"{address.endpoint().url}\n{label}\n".encode())

    def end() -> None:
        path.unlink(missing_ok=True)
        os.close(descriptor)

    return end


def left(workspace: Path) -> list[Unfinished]:
    """What killed processes have begun, the containers' entry first. The workspace's lock must be held."""
    entries = []
    with contextlib.suppress(OSError, ValueError):
        entries.append(Unfinished(workspace / CONTAINERS, files.read_text(workspace / CONTAINERS).strip()))
    for path in sorted((workspace / BUILDS).glob(f"*{BUILD}")):
        with contextlib.suppress(OSError, ValueError):  # it has ended meanwhile, or is still at work
            lines = files.read_text(path).splitlines()
            if len(lines) == 2 and _is_abandoned(path):
                entries.append(Unfinished(path, *lines))
    return entries


def _is_abandoned(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
