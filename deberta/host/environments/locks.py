"""Which lines of a hash-locked requirements file a machine needs, and which wheels it takes: by markers and tags.

One lock serves all machines. The format is pip's requirements file as uv writes it: NAME==VERSION ; MARKER, with a
--hash for each file of it. Tags are those of PEP 425, 600 (manylinux) and 656 (musllinux).
"""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

from packaging import tags
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

from deberta.core import contract, machine
from deberta.core.errors import DataError, MissingError

MACHINES = machine.MACHINES
_LEGACY = {"manylinux2014": (2, 17), "manylinux2010": (2, 12), "manylinux1": (2, 5)}  # PEP 600: aliases
_OLDEST = {"x86_64": 5, "aarch64": 17}  # glibc 2.x: the oldest tag that each machine has
_ENTRY = re.compile(r"(?m)^([A-Za-z0-9].*?)[ \\]*((?:\s+--hash=\S+[ \\]*)*)$")


class Locked(NamedTuple):
    """A package of a lock, with the SHA-256 of each of its files, whichever machine and Python they are for."""

    name: str
    version: str
    sha256: tuple[str, ...]


def read(lock: Path, machine: str = "", python: tuple[int, int] = (3, 11)) -> list[Locked]:
    """The packages that a lock has for Linux on this machine (empty: the present one) and this Python.

    Raises MissingError if there is no such file, and DataError if it is no lock.
    """
    if not lock.is_file():
        raise MissingError(f"{lock} is missing. Run: git checkout -- {lock.name}")
    variables = environment(machine or platform.machine(), python)
    packages = []
    for line, hashes in _ENTRY.findall(lock.read_text(encoding="utf-8")):
        try:
            requirement = Requirement(line)
            [specifier] = requirement.specifier
        except ValueError:  # packaging's own is one, too
            raise DataError(f"{lock}: {line!r} is no entry of a lock. Run: git checkout -- {lock.name}") from None
        if requirement.marker is None or requirement.marker.evaluate(variables):
            packages.append(
                Locked(requirement.name, specifier.version, tuple(re.findall(r"sha256:([0-9a-f]{64})", hashes)))
            )
    return packages


def text(package: Locked) -> str:
    """A package as an entry of a lock."""
    return (
        " \\\n    ".join([f"{package.name}=={package.version}", *(f"--hash=sha256:{h}" for h in package.sha256)]) + "\n"
    )


def of_own_index(lock: Path, machine: str = "") -> list[Locked]:
    """Those of a machine (empty: the present one) that the default index does not have: builds with a local version.

    That is torch's +cpu build, which is on PyTorch's own index.
    """
    return list(filter(is_of_own_index, read(lock, machine)))


def is_of_own_index(package: Locked) -> bool:
    """Whether it is a build with a local version."""
    return "+" in package.version


def of_any(lock: Path, machines: Sequence[str] = MACHINES) -> list[Locked]:
    """What `read` gives for any of these machines, in the lock's order."""
    return sorted({package for machine in machines for package in read(lock, machine)})


def glibc_of(wheel: str, machine: str, python: tuple[int, int] = (3, 11)) -> Optional[tuple[int, int]]:
    """The oldest glibc that a wheel, by its file name, is for on this machine and Python; (0, 0) if it is for any.

    None: it is not for them, or for another C library alone. Raises packaging's InvalidWheelFilename.
    """
    versions = []
    for tag in parse_wheel_filename(wheel)[3]:
        version = _glibc_of(tag.platform, machine)
        if version is not None and tag in _supported(python, tag.platform):
            versions.append(version)
    return min(versions, default=None)


def is_for_musl(wheel: str, machine: str, python: tuple[int, int] = (3, 11)) -> bool:
    """Whether a wheel, by its file name, is for this machine and Python where the C library is musl."""
    return any(
        tag in _supported(python, tag.platform)
        for tag in parse_wheel_filename(wheel)[3]
        if tag.platform == "any" or (tag.platform.startswith("musllinux_") and tag.platform.endswith(f"_{machine}"))
    )


def platform_tags(machine: str, glibc: tuple[int, int]) -> list[str]:
    """The platform tags of wheels that run on this machine with this glibc, the newest first: pip's --platform."""
    platforms = []
    for minor in range(glibc[1], _OLDEST[machine] - 1, -1):
        platforms.append(f"manylinux_2_{minor}_{machine}")
        platforms += [f"{name}_{machine}" for name, version in _LEGACY.items() if version == (2, minor)]
    return [*platforms, f"linux_{machine}"]


def _glibc_of(platform_tag: str, machine: str) -> Optional[tuple[int, int]]:
    if platform_tag in ("any", f"linux_{machine}"):
        return (0, 0)
    match = re.fullmatch(rf"(manylinux(?:1|2010|2014|_([0-9]{{1,3}})_([0-9]{{1,3}})))_{machine}", platform_tag)
    if match is None:
        return None
    return _LEGACY.get(match[1]) or (contract.whole(match[2]), contract.whole(match[3]))


@functools.cache
def _supported(python: tuple[int, int], platform_tag: str) -> frozenset[Tag]:
    """The tags with this platform that CPython takes."""
    interpreter = "cp{}{}".format(*python)
    return frozenset(
        [
            *tags.cpython_tags(python, [interpreter], [platform_tag]),
            *tags.compatible_tags(python, interpreter, [platform_tag]),
        ]
    )


def environment(machine: str, python: tuple[int, int]) -> dict[str, str]:
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
