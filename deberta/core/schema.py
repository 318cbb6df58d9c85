"""Settings, tables and JSON files read as msgspec Structs: a mistake is an error that names the file and the entry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Type, TypeVar

import msgspec

from deberta.core.errors import ConfigError, DataError, MissingError

T = TypeVar("T")
_PLACE = re.compile(r"(.*?)(?: - at `(?:key` in `)?\$\.?(.*)`)?\Z", re.DOTALL)


class Schema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON object with exactly these keys."""


def read(path: Path, schema: Type[T], hint: str) -> T:
    """Decode a JSON file. Raises MissingError and DataError, whose messages end with `hint`: what to run."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. {hint}") from None
    try:
        return msgspec.json.decode(content, type=schema)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} {problem(error)}. {hint}") from None


def problem(error: Exception) -> str:
    """What is wrong with a file that cannot be decoded, and where in it."""
    if not isinstance(error, msgspec.ValidationError):
        return f"is not JSON ({error})"
    reason, place = _PLACE.findall(str(error))[0]
    return f"does not fit its schema, at $.{place}: {reason}" if place else f"does not fit its schema: {reason}"


def text(content: Any) -> str:
    """The content as we write JSON: indented by two, its keys in the order of the schema."""
    return json.dumps(msgspec.to_builtins(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def convert(content: Any, schema: Type[T], source: str, hint: str = "") -> T:
    """Plain data as a Struct or another type; `source` is the file or setting that messages name, `hint` their end.

    Raises ConfigError, for example "docker/pins.toml: base.export.digest: Expected ...".
    """
    try:
        return msgspec.convert(content, schema, dec_hook=_decode_path)
    except msgspec.ValidationError as error:
        reason, place = _PLACE.findall(str(error))[0]
        if "unknown field" in reason and not place:
            reason += f", which is not one of: {', '.join(getattr(schema, '__struct_encode_fields__', ()))}"
        raise ConfigError(f"{source}: {f'{place}: ' if place else ''}{reason}{hint}") from None


def setting(values: Any, schema: Type[T], name: str) -> T:
    """A mapping of invoke.yaml as a Struct; empty values are its defaults. Raises ConfigError."""
    if values and not hasattr(values, "items"):
        raise ConfigError(f"{name} in invoke.yaml: {values!r} is not a mapping of settings")
    filled = {key: value for key, value in dict(values or {}).items() if value not in (None, "")}
    return convert(filled, schema, f"{name} in invoke.yaml")


def _decode_path(schema: type, value: Any) -> Path:
    if schema is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(f"Expected `{schema.__name__}`, got `{type(value).__name__}`")
