"""Settings and tables that people write, read as msgspec Structs: a mistake is a ConfigError that names its entry."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Type, TypeVar

import msgspec

from deberta.core.errors import ConfigError

T = TypeVar("T")
_PLACE = re.compile(r"(.*?)(?: - at `(?:key` in `)?\$\.?(.*)`)?\Z", re.DOTALL)


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
