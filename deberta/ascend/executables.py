"""Programs of this machine: where PATH has one, and why one that is there cannot be started."""

from __future__ import annotations

import errno
import os
import platform
import shutil
from pathlib import Path
from typing import Optional

from deberta.core import files
from deberta.core.errors import ConfigError, DebertaError, StageError

# ELF: e_machine in bytes 18 and 19, in the byte order that byte 5 names.
_MACHINES = {3: "x86", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64", 258: "loongarch64"}


def on_path(name: str, search: Optional[str] = None) -> Optional[Path]:
    """The program of that name on a PATH, the caller's unless one is given; None if none is there.

    Raises ConfigError if the only ones there cannot be started: that is not the same as none.
    """
    if program := shutil.which(name, path=search):
        return Path(program)
    folders = (os.environ.get("PATH", os.defpath) if search is None else search).split(os.pathsep)
    for path in (Path(folder, name) for folder in folders if folder):
        if os.path.lexists(path) and not path.is_dir():
            check(path)
    return None


def check(path: Path) -> None:
    """Raise ConfigError for a link that leads nowhere, a folder, or a file that this user may not start."""
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{path} is a link to {os.readlink(path)}, which is not there. Correct the link")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path} is no file, so it cannot be started. Put the program there")
    if path.exists() and not os.access(path, os.X_OK):
        raise ConfigError(f"{path} is not executable. Run: chmod a+x {path}")


def unstartable(program: Path, error: OSError) -> DebertaError:
    """Why the system did not start a program, by the system's own error and the program's first bytes."""
    try:
        check(program)
        with files.open_regular(program) as file:
            head = file.read(200)
    except ConfigError as problem:
        return problem
    except OSError:
        head = b""
    own, cannot = platform.machine(), f"{program} cannot be started"
    machine = _machine(head)
    if machine not in ("", own):
        return StageError(
            f"{cannot}: it is built for {machine}, and this machine is {own}. Use one that is built for it"
        )
    if error.errno == errno.ENOEXEC:
        return StageError(f"{cannot}: it is no program that this machine ({own}) runs (Exec format error). Use another")
    if error.errno == errno.ENOENT and program.exists():
        needed = head[2:].split(b"\n")[0].split()[:1] if head.startswith(b"#!") else []
        interpreter = needed[0].decode(errors="replace") if needed else "the loader that it names"
        return StageError(f"{cannot}: {interpreter} is not there. Install it, or use another program")
    if error.errno == errno.EACCES:
        return ConfigError(f"{cannot}: no permission. See to its mode and how its disk is mounted (noexec)")
    return StageError(f"{cannot}: {error.strerror or error}. Use another")


def _machine(head: bytes) -> str:
    """What an ELF file is built for; empty for another file."""
    if not head.startswith(b"\x7fELF") or len(head) < 20:
        return ""
    number = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    return _MACHINES.get(number, f"another machine (ELF {number})")
