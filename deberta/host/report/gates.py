"""The gates of a profile, from a TOML file: `defaults` for all, and a table `profile.<name>` that goes over it.

deberta/gates.toml is the one that counts; a file of the user's own is read in its place, and has to be whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomlkit
from msgspec import field
from tomlkit.exceptions import TOMLKitError

from deberta.core import files, schema
from deberta.core.errors import ConfigError, MissingError
from deberta.core.job import Gates
from deberta.core.schema import Schema

OURS = Path("deberta", "gates.toml")  # below the project
LARGEST = 65_536  # bytes
OF_PROFILES = ("correct_rows", "inputs")  # gates that have no default


class GatesFile(Schema):
    """The two tables of the file, before their content is read."""

    defaults: dict[str, Any]
    profile: dict[str, dict[str, Any]] = field(default_factory=dict)


def load(path: Path, profile: str) -> Gates:
    """The gates of one profile; a profile without its own table gets the defaults.

    Raises MissingError (no file) and ConfigError that names the file and the key; every profile's table is checked.
    """
    try:
        document = tomlkit.parse(files.read_bytes(path, LARGEST).decode()).unwrap()
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Correct gates in invoke.yaml, or run: git checkout -- {OURS}") from None
    except files.UnfitFile as error:
        raise ConfigError(f"{path} {error}") from None
    except (TOMLKitError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    tables = schema.convert(document, GatesFile, str(path))
    schema.convert(tables.defaults, Gates, f"{path}: [defaults]")
    for name in Gates.__struct_fields__:
        if name not in tables.defaults and name not in OF_PROFILES:
            raise ConfigError(f"{path}: [defaults] has no {name}. Take it over from {OURS}")
    for name, table in tables.profile.items():
        schema.convert(table, Gates, f"{path}: [profile.{name}]")
    return schema.convert({**tables.defaults, **tables.profile.get(profile, {})}, Gates, f"{path}: [profile.{profile}]")
