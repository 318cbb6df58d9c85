"""Who runs at once: each runner has a file that is locked until its end, by whatever it ends.

FOLDER/begun gets a line for each that begins, FOLDER/overlaps one for each that begins beside another of its device, or
beside a performance run or as one beside any.
"""

from __future__ import annotations

import fcntl
import os
from typing import IO, List

_held: List[IO[str]] = []  # until this process ends


def begin(folder: str, device: int, alone: bool) -> None:
    """Note a runner, and whom it runs beside. `alone`: a performance run."""
    os.makedirs(folder, exist_ok=True)
    own = f"{os.getpid()}.{device}.{'alone' if alone else 'shared'}.live"
    with open(os.path.join(folder, "mutex"), "a", encoding="utf-8") as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        for name in sorted(os.listdir(folder)):
            if name.endswith(".live") and _runs(os.path.join(folder, name)):
                _, of_device, kind, _ = name.split(".")
                if alone or kind == "alone" or of_device == str(device):
                    _append(folder, "overlaps", f"{own} beside {name}")
        file = open(os.path.join(folder, own), "w", encoding="utf-8")  # noqa: SIM115 - kept open
        fcntl.flock(file, fcntl.LOCK_EX)
        _held.append(file)
        _append(folder, "begun", own)


def _runs(path: str) -> bool:
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    os.remove(path)
    return False


def _append(folder: str, name: str, line: str) -> None:
    with open(os.path.join(folder, name), "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
