"""How settings files are read: bounded, and with an error that names the file, never a traceback.

Importing this changes invoke's Config, which reads the project's invoke.yaml and the file of -f after tasks.py.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import Any, Callable

from invoke.config import AmbiguousMergeError, Config, merge_dicts
from invoke.exceptions import AmbiguousEnvVar, Exit, UncastableEnvVar, UnknownFileType

from deberta.core import contract, files, schema
from deberta.core.errors import ERROR_PREFIX, ConfigError, one_line

YAML: Any = importlib.import_module("invoke.vendor.yaml")  # invoke has its own copy, without types
LARGEST = 64 * 1024  # bytes; the committed invoke.yaml has 4,000
# What invoke raises for settings that contradict each other, or are of other types than its own.
_REFUSED = (AmbiguousMergeError, AmbiguousEnvVar, UncastableEnvVar, UnknownFileType, ValueError, TypeError)
# What PyYAML raises for impossible dates, keys that are lists, numbers of too many digits.
_MALFORMED = (YAML.YAMLError, ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError)


class _Loader(YAML.SafeLoader):  # type: ignore[misc]  # untyped
    """Plain data without anchors and aliases, which could make much out of little."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, YAML.AliasEvent) or getattr(event, "anchor", None):
            raise ConfigError(f"line {event.start_mark.line + 1}: anchors and aliases (& and *) are not taken")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in getattr(node, "value", ()) if isinstance(key.value, str)]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ConfigError(f"line {node.start_mark.line + 1}: {twice[0]} stands there twice")
        return super().construct_mapping(node, deep)


def load(path: str) -> dict[str, Any]:
    """The settings of a YAML or JSON file, which is YAML too. Raises ConfigError and FileNotFoundError."""
    try:
        content = YAML.load(files.read_bytes(Path(path), LARGEST).decode("utf-8"), _Loader)
        if content is not None and not isinstance(content, dict):
            raise ConfigError("is no mapping of settings")
        _check(content or {})
        merge_dicts(Config.global_defaults(), content or {})
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except AmbiguousMergeError as error:
        raise ConfigError(f"{path}: a setting of invoke's own: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except _MALFORMED as error:
        raise ConfigError(f"{path}: is not YAML that can be used: {error or type(error).__name__}") from None
    return content or {}


def _check(content: Any, depth: int = 0) -> None:
    """Raise ConfigError for too deep a nesting, keys that are no text, and endless numbers."""
    if depth > schema.DEEPEST_JSON:
        raise ConfigError(f"is nested more than {schema.DEEPEST_JSON} levels deep")
    if isinstance(content, int) and abs(content) > contract.LARGEST_WHOLE:
        raise ConfigError("a number has more than 18 digits")
    for key in content if isinstance(content, dict) else ():
        if not isinstance(key, str) or not key.isprintable():
            raise ConfigError(f"the key {key!r} is no text")
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        _check(value, depth + 1)


def _method(function: Callable[..., Any], source: str) -> Callable[..., Any]:
    """A method of Config that ends the program with our error and exit code in place of a traceback."""

    @functools.wraps(function)
    def method(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except FileNotFoundError:
            raise
        except ConfigError as error:
            problem = str(error)
        except _REFUSED as error:
            problem = f"{source}: {error}"
        raise Exit(f"{ERROR_PREFIX}{one_line(problem)}", ConfigError.exit_code)

    return method


def install() -> None:
    for name in ("_load_yaml", "_load_yml", "_load_json"):
        setattr(Config, name, _method(lambda _, path: load(path), "a settings file"))
    Config.merge = _method(Config.merge, "settings files that contradict each other")  # type: ignore[method-assign]
    Config.load_shell_env = _method(  # type: ignore[method-assign]
        Config.load_shell_env, "an environment variable whose name begins with INVOKE_"
    )


install()
