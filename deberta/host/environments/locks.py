"""Which lines of a hash-locked requirements file a machine needs: one lock serves all machines, by its markers.

The format is pip's requirements file as uv writes it: NAME==VERSION ; MARKER, with a --hash for each file of it.
"""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import NamedTuple, Sequence

from packaging.requirements import Requirement

from deberta.core.errors import MissingError

MACHINES = ("x86_64", "aarch64")  # as `uname -m` calls them
_ENTRY = re.compile(r"(?m)^([A-Za-z0-9][^\\\n]*?) *(?:\\\n((?: +--hash=[^\n]+\n)+)|$)")


class Locked(NamedTuple):
    """A package of a lock, with the SHA-256 of each of its files, whichever machine and Python they are for."""

    name: str
    version: str
    sha256: tuple[str, ...]


def read(lock: Path, machine: str = "", python: tuple[int, int] = (3, 11)) -> list[Locked]:
    """The packages that a lock has for Linux on this machine (empty: the present one) and this Python.

    Raises MissingError if there is no such file.
    """
    if not lock.is_file():
        raise MissingError(f"{lock} is missing. Run: git checkout -- {lock.name}")
    environment = _environment(machine or platform.machine(), python)
    packages = []
    for line, hashes in _ENTRY.findall(lock.read_text(encoding="utf-8")):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            [specifier] = requirement.specifier
            packages.append(
                Locked(requirement.name, specifier.version, tuple(re.findall(r"sha256:([0-9a-f]{64})", hashes)))
            )
    return packages


def of_any(lock: Path, machines: Sequence[str] = MACHINES) -> list[Locked]:
    """What `read` gives for any of these machines, in the lock's order."""
    return sorted({package for machine in machines for package in read(lock, machine)})


def _environment(machine: str, python: tuple[int, int]) -> dict[str, str]:
    """The variables of markers, as PEP 508 defines them, for CPython on Linux."""
    version = ".".join(map(str, python))
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{version}.0",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{version}.0",
        "python_version": version,
        "sys_platform": "linux",
        "extra": "",
    }
