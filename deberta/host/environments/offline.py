"""Installing without network: the folder of wheels that `invoke wheelhouse` fills, and the setting that names it.

`inv` reads this before anything is installed, so it needs nothing but the standard library. A wheelhouse holds a copy
of each lock whose wheels it has, written last: for another lock of the project nothing is installed from it.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from pathlib import Path
from typing import Mapping, Optional

from deberta.core import files
from deberta.core.errors import ConfigError, DataError, MissingError

VARIABLE = "INVOKE_WHEELHOUSE"
SETTINGS = "invoke.yaml"
LARGEST = 64 * 1024  # bytes of invoke.yaml
_LINE = re.compile(r"^wheelhouse[ \t]*:(?:[ \t]+(.*))?$", re.MULTILINE)
_PACKAGE = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
_QUOTED = re.compile(r"""(?:"([^"\\]*)"|'([^']*)')[ \t]*(?:#.*)?""")
_NO_PLAIN_TEXT = tuple("\"'|>&*!%@`[]{},?-")  # YAML has other meanings for what begins so


def setting(project: Path) -> Optional[Path]:
    """The wheelhouse to install from, an absolute path; None: the network.

    INVOKE_WHEELHOUSE (empty: none), else the line `wheelhouse: DIR` of invoke.yaml, DIR plain or in quotes. A relative
    path is relative to the project. Raises ConfigError.
    """
    text, where = os.environ.get(VARIABLE), VARIABLE
    if text is None:
        text, where = _line(project / SETTINGS), f"wheelhouse in {SETTINGS}"
    try:
        if "\0" in text:
            raise ValueError("it holds a NUL")
        return Path(os.path.abspath(project / Path(text).expanduser())) if text else None
    except (RuntimeError, ValueError) as error:  # ~ of a user that is not there
        raise ConfigError(f"{where}: {text!r} is no path: {error}") from None


def _line(path: Path) -> str:
    try:
        line = _LINE.search(files.read_bytes(path, LARGEST).decode("utf-8", errors="replace").replace("\r\n", "\n"))
    except FileNotFoundError:
        return ""
    value = (line[1] or "").strip() if line else ""
    if quoted := _QUOTED.fullmatch(value):
        return quoted[1] or quoted[2] or ""
    value = re.split(r"(?:^|\s)#", value)[0].strip()
    if value.startswith(_NO_PLAIN_TEXT):
        raise ConfigError(
            f"wheelhouse in {SETTINGS}: {value} cannot be read before anything is installed. Write the path on that "
            'line, plain or in "quotes"'
        )
    return "" if value in ("~", "null") else value


def require(wheelhouse: Path, lock: Path) -> None:
    """Raise MissingError unless the wheelhouse was made for this lock, byte for byte; for which machine is not read."""
    copy = wheelhouse / lock.name
    if not wheelhouse.is_dir():
        raise MissingError(f"the wheelhouse {wheelhouse} is no folder. {hint(wheelhouse)}")
    if not copy.is_file():
        raise MissingError(f"the wheelhouse {wheelhouse} does not have the wheels of {lock.name}. {hint(wheelhouse)}")
    if files.read_bytes(copy) != files.read_bytes(lock):
        raise MissingError(f"the wheelhouse {wheelhouse} was made for another {lock.name}. {hint(wheelhouse)}")


def refuse_wrong(wheelhouse: Path, lock: Path) -> None:
    """Raise DataError if a file has the name of a wheel of the lock, and none of the lock's SHA-256."""
    text = files.read_bytes(lock).decode("utf-8", errors="replace")
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", text))
    versions = {(name.lower(), version) for name, version in _PACKAGE.findall(text)}
    for path in sorted(wheelhouse.glob("*.whl")):
        name, _, rest = path.name.partition("-")
        package = re.sub(r"[-_.]+", "-", name).lower(), rest.partition("-")[0]
        if package in versions and files.sha256_of(path) not in hashes:
            raise DataError(f"{path} is not a file that {lock.name} names. Remove it. {hint(wheelhouse)}")


def hint(wheelhouse: Path, machine: str = "") -> str:
    """How to get what the wheelhouse lacks for a machine; empty: for the present one."""
    return (
        "Where there is a network, in a clone of this version, run: ./inv wheelhouse "
        f"{shlex.quote(str(wheelhouse))} --for {machine or platform.machine()}, then bring the folder here"
    )


def pip_options(wheelhouse: Path) -> list[str]:
    """What makes pip install from the wheelhouse alone; it also wants `without_pip_settings`."""
    return ["--no-index", "--find-links", str(wheelhouse)]


def without_pip_settings(variables: Mapping[str, str]) -> dict[str, str]:
    """An environment in which pip has no settings of the user's, which may name other places to look."""
    others = {name: value for name, value in variables.items() if not name.startswith("PIP_")}
    return {**others, "PIP_CONFIG_FILE": os.devnull}
