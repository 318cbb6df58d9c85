"""The gates of a profile, from a TOML file: `defaults` for all, and a table `profile.<name>` that goes over it.

deberta/gates.toml is the one that counts; a file of the user's own is read in its place, and has to be whole.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Mapping, Sequence

import tomlkit
from tomlkit.exceptions import TOMLKitError

from deberta.core.contract import VERSIONS
from deberta.core.errors import ConfigError, MissingError

OURS = Path("deberta", "gates.toml")  # below the project
COLUMNS = ("baseline", "ascend")  # of published throughput
_SHA256 = re.compile(r"[0-9a-f]{64}")

Check = Callable[[Any, str], None]  # a value, and where it stands; raises ConfigError


def load(path: Path, profile: str) -> dict[str, Any]:
    """The gates of one profile, as a report's job has them; a profile without its own table gets the defaults.

    Raises MissingError (no file) and ConfigError that names the file and the key.
    """
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8")).unwrap()
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Correct gates in invoke.yaml, or run: git checkout -- {OURS}") from None
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    _only(document, ("defaults", "profile"), str(path))
    defaults = _gates(document.get("defaults", {}), f"{path}: [defaults]")
    if absent := [key for key in _DEFAULTS if key not in defaults]:
        raise ConfigError(f"{path}: [defaults] has no {absent[0]}. Take it over from {OURS}")
    own = _table(document.get("profile", {}), f"{path}: [profile]")
    found = {name: _gates(table, f"{path}: [profile.{name}]") for name, table in own.items()}
    return {**defaults, **found.get(profile, {})}


def _gates(value: Any, where: str) -> dict[str, Any]:
    """A checked table of gates."""
    table = _table(value, where)
    _only(table, tuple(_KNOWN), where)
    for key, found in table.items():
        _KNOWN[key](found, f"{where}: {key}")
    return table


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is {value!r}, not a table")
    return value


def _only(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := sorted(set(table) - set(known)):
        listed = f"which is not one of: {', '.join(known)}" if known else "and takes nothing"
        raise ConfigError(f"{where} has {unknown[0]!r}, {listed}. Take it out")


def _exact(**known: Check) -> Check:
    """A table of exactly these keys."""

    def check(value: Any, where: str) -> None:
        table = _table(value, where)
        _only(table, list(known), where)
        for key, of_key in known.items():
            if key not in table:
                raise ConfigError(f"{where} has no {key}")
            of_key(table[key], f"{where}: {key}")

    return check


def _count(value: Any, where: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where} is {value!r}, not a whole number from 0")


def _number(value: Any, where: str) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ConfigError(f"{where} is {value!r}, not a number from 0")


def _column(value: Any, where: str) -> None:
    if value not in COLUMNS:
        raise ConfigError(f"{where} is {value!r}, not one of: {', '.join(COLUMNS)}")


def _correct_rows(value: Any, where: str) -> None:
    table = _table(value, where)
    _only(table, VERSIONS, where)
    for version, counts in table.items():
        _exact(expected=_count, allowed=_count, of=_count)(counts, f"{where}.{version}")
        if not counts["allowed"] <= counts["expected"] <= counts["of"]:
            raise ConfigError(f"{where}.{version} is {counts!r}, not allowed <= expected <= of")


def _inputs(value: Any, where: str) -> None:
    for name, digest in _table(value, where).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name:
            raise ConfigError(f"{where} names {name!r}, which is no path in the workspace as records have it")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ConfigError(f"{where}: {name} is {digest!r}, not 64 hexadecimal digits")


_DEFAULTS: dict[str, Check] = {
    "near_tie_margin": _number,
    "official": _exact(points=_number),
    "agreement": _exact(allowed=_count),
    "reference": _exact(allowed=_count),
    "fps": _exact(at_least=_column),
    "sentinel": _exact(),
}
_KNOWN: dict[str, Check] = {**_DEFAULTS, "correct_rows": _correct_rows, "inputs": _inputs}
