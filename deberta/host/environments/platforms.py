"""Which systems the locks' wheels run on: the machine and its C library, before anything is fetched.

platforms.json has this for each lock: `python -m requirements.lock` writes it from the wheels' tags and sizes.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Annotated, Dict, Optional, Tuple

import msgspec
from msgspec import Meta

from deberta.core import contract
from deberta.core.errors import MissingError

TABLE = "platforms.json"


class Needs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a lock needs on a machine.

    glibc: its oldest version that will do; package: NAME VERSION of the wheel that needs it; musl: whether all wheels
    are there for musl too; megabytes: to fetch (10^6 bytes, the sum of the wheels).
    """

    glibc: Annotated[str, Meta(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}\Z")]
    package: str
    musl: bool
    megabytes: int


# Name of the lock -> machine -> what it needs there.
NEEDS = msgspec.json.decode(Path(__file__).with_name(TABLE).read_bytes(), type=Dict[str, Dict[str, Needs]])


def glibc() -> Optional[str]:
    """The version of this system's glibc, as in "2.36"; None if its C library is another one."""
    try:
        text = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):  # the name is glibc's own
        return None
    version = re.search(r"[0-9]{1,3}\.[0-9]{1,3}", text)
    return version[0] if version else None


def as_numbers(version: str) -> Tuple[int, ...]:
    """A version such as 2.35 as (2, 35), which can be compared."""
    return tuple(map(contract.whole, version.split(".")))


def here() -> str:
    """This system, as in "Linux on aarch64, glibc 2.36"."""
    return f"{platform.system()} on {platform.machine()}, {_library()}"


def needs(lock: str, machine: str = "") -> Optional[Needs]:
    """What a lock needs on a machine (empty: the present system); None: it is not for that."""
    if not machine and platform.system() != "Linux":
        return None
    return NEEDS[lock].get(machine or platform.machine())


def required(lock: str) -> str:
    """What the wheels of a lock need, as in "glibc 2.35 or newer"; elsewhere, which machines they are for."""
    present = needs(lock)
    return f"glibc {present.glibc} or newer" if present else f"Linux on {' or '.join(NEEDS[lock])}"


def problem(lock: str) -> str:
    """Why this system can't install the wheels of a lock; empty if it can."""
    present = needs(lock)
    if present is None:
        return f"{lock} is for {required(lock)}, and this system is {here()}"
    version = glibc()
    if present.musl if version is None else as_numbers(version) >= as_numbers(present.glibc):
        return ""
    return f"{present.package} needs {required(lock)} on {platform.machine()}, and this system has {_library()}"


def require(lock: str, ways_out: str) -> None:
    """Raise MissingError with the ways out if this system can't install the wheels of a lock."""
    if reason := problem(lock):
        raise MissingError(f"{reason}. {ways_out}")


def megabytes(lock: str) -> int:
    """How much there is to fetch for a lock on this machine; on one that it is not for, on the first that it is for."""
    by_machine = NEEDS[lock]
    return by_machine.get(platform.machine(), next(iter(by_machine.values()))).megabytes


def _library() -> str:
    version = glibc()
    return f"glibc {version}" if version else "a C library that is not glibc"
