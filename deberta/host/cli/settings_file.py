"""How settings files are read: bounded, and with an error that names the file, never a traceback.

Importing this changes invoke's Config, which reads the project's invoke.yaml and the file of -f after tasks.py.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import tempfile
from collections.abc import Sequence
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


def prepare_profile(path: Path, name: str, lines: Sequence[str]) -> Callable[[], None]:
    """Add a profile to a settings file, which keeps every byte of what it has; returns what writes it.

    `lines`: the profile's, the one with its name among them, relative to each other. Raises ConfigError if the file has
    no place for it.
    """
    before = load(str(path))
    text = files.read_bytes(path, LARGEST).decode("utf-8")
    ends = "\r\n" if "\r\n" in text else "\n"
    present = text.splitlines(keepends=True)
    after, column = _place(text, present)
    if after and not present[after - 1].endswith("\n"):
        present[after - 1] += ends
    block = [f"{' ' * column}{line}{ends}" for line in lines]
    added = [*([] if "profiles" in before else [f"{ends}profiles:{ends}"]), *block]
    content = "".join([*present[:after], *added, *present[after:]]).encode("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder, path.name)
        trial.write_bytes(content)
        now = load(str(trial))
    known = before.get("profiles") or {}
    others = {key: value for key, value in (now.get("profiles") or {}).items() if key != name}
    if {**now, "profiles": others} != {**before, "profiles": known} or name in known or name not in now["profiles"]:
        raise ConfigError(
            f"{path} has `profiles` in a form that nothing can be added to. Write it with a line for each"
        )
    if not os.access(path, os.W_OK):
        raise ConfigError(f"no permission ({path}): it cannot be written. Check its owner and mode")
    return functools.partial(_replace, path, content)


def _place(text: str, lines: Sequence[str]) -> tuple[int, int]:
    """The number of lines before a new profile, and the column at which it begins."""
    root = YAML.compose(text, Loader=_Loader)
    for key, value in root.value if root is not None else ():
        if key.value == "profiles":
            if isinstance(value, YAML.MappingNode) and value.value and not value.flow_style:
                after = _last_line(value)
                column = value.value[0][0].start_mark.column
            else:
                after, column = key.end_mark.line + 1, key.start_mark.column + 2
            while after < len(lines) and lines[after].startswith(" " * max(column, 1)):
                after += 1  # comments, and the ends of long texts
            return after, column
    return len(lines), 2


def _last_line(node: Any) -> int:
    """The number of the last line of a node; a block's own end is where the next begins."""
    children = node.value if isinstance(node.value, list) else []
    nodes = [child for entry in children for child in (entry if isinstance(entry, tuple) else (entry,))]
    if not nodes or node.flow_style:
        line: int = node.end_mark.line
        return line + bool(node.end_mark.column)  # a text of several lines ends before the next line
    return max(map(_last_line, nodes))


def _replace(path: Path, content: bytes) -> None:
    real = Path(os.path.realpath(path))
    with files.new_file(real) as temporary:
        temporary.write_bytes(content)
        shutil.copymode(real, temporary)


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
