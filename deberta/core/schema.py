"""Settings, tables and JSON files read as msgspec Structs: a mistake is an error that names the file and the entry."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Type, TypeVar, Union

import msgspec
from msgspec import Meta

from deberta.core import contract, files
from deberta.core.errors import ConfigError, DataError, MissingError, visible

T = TypeVar("T")
DEEPEST_JSON = 64  # lists and objects in each other
_PLACE = re.compile(r"(.*?)(?: - at `(?:key` in `)?\$\.?(.*)`)?\Z", re.DOTALL)


def one_of(names: tuple[str, ...]) -> Meta:
    return Meta(pattern=f"^({'|'.join(names)})$")


UNIQUE = Meta(extra_json_schema={"uniqueItems": True})
Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
NonNegative = Annotated[float, Meta(ge=0)]
AboveZero = Annotated[float, Meta(gt=0)]
Interval = Annotated[tuple[float, float], Meta(description="95 %: low, high.")]
Version = Annotated[str, one_of(contract.VERSIONS)]
Backend = Annotated[str, one_of(contract.BACKENDS)]
Executor = Annotated[str, one_of(contract.EXECUTORS)]
Runner = Annotated[str, one_of(contract.RUNNERS)]
Precision = Annotated[str, one_of(contract.PRECISIONS)]
Label = Annotated[str, one_of(contract.LABELS)]
Labels = Annotated[list[Label], Meta(description="Output i means label i.", min_length=3, max_length=3), UNIQUE]
ByLabel = Annotated[dict[Label, Count], Meta(description="Rows by label.", min_length=3)]
BatchSize = Annotated[int, Meta(ge=1, le=1024)]
BatchSizes = Annotated[list[BatchSize], UNIQUE]
Number = Annotated[str, Meta(pattern="^[1-9][0-9]{0,17}$")]  # a batch size or a length, as a key
RowsByLength = Annotated[dict[Number, Positive], Meta(description="Rows by sequence length.", min_length=1)]
Line = Annotated[int, Meta(ge=2)]


class Schema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A JSON object with exactly these keys."""


def read(path: Path, schema: Type[T], hint: str) -> T:
    """Decode a JSON file. Raises MissingError and DataError, whose messages end with `hint`: what to run."""
    try:
        return read_json(path, schema)
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. {hint}") from None
    except ValueError as error:
        raise DataError(f"{path} {error}. {hint}") from None


def read_json(path: Path, schema: Type[T]) -> T:
    """Decode a JSON file. Raises OSError, and ValueError as `decode` and `files.read_bytes` do."""
    return decode(files.read_bytes(path), schema)


def decode(document: Union[bytes, str], schema: Type[T]) -> T:
    """Decode a JSON document. Raises ValueError: not UTF-8, not JSON, a key twice, nested too deeply, other types.

    Refused too, wherever they stand: NaN and infinities, NUL and surrogates without their pair, and endless numbers.
    """
    try:
        text = document.decode() if isinstance(document, bytes) else document
        if "\\u0000" in text:
            raise ValueError("it holds a NUL character")
        _check_depth(json.loads(text, object_pairs_hook=_without_doubles, parse_int=float))
        return msgspec.json.decode(text, type=schema)
    except RecursionError:
        raise ValueError(f"is nested more than {DEEPEST_JSON} levels deep") from None
    except (msgspec.MsgspecError, ValueError) as error:
        form = files.form_of(document, len(document)) if isinstance(document, bytes) else ""
        raise ValueError(form or problem(error)) from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json and msgspec use the last of equal keys, other readers the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return content


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(DEEPEST_JSON + 1):
        containers = [value for value in level if isinstance(value, (dict, list))]
        level = [inner for value in containers for inner in (value.values() if isinstance(value, dict) else value)]
        if not containers:
            return
    raise RecursionError


def problem(error: Exception) -> str:
    """What is wrong with a file that cannot be decoded, and where in it."""
    if not isinstance(error, msgspec.ValidationError):
        return f"is not JSON ({error})"
    reason, place = _PLACE.findall(str(error))[0]
    return f"does not fit its schema, at $.{place}: {reason}" if place else f"does not fit its schema: {reason}"


def text(content: Any) -> str:
    """The content as we write JSON: indented by two, its keys in the order of the schema."""
    return visible(json.dumps(msgspec.to_builtins(content), indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def convert(content: Any, schema: Type[T], source: str, hint: str = "") -> T:
    """Plain data as a Struct or another type; `source` is the file or setting that messages name, `hint` their end.

    Raises ConfigError, for example "docker/pins.toml: base.export.digest: Expected ...".
    """
    try:
        return msgspec.convert(content, schema, dec_hook=_decode_path)
    except UnicodeEncodeError:  # "\\ud800" in YAML is a surrogate
        raise ConfigError(f"{source}: a name or value is no Unicode text{hint}") from None
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
