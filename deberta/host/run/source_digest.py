"""The source files of ours that a stage depends on, and a digest of them that a moved or renamed file does not change.

A module's digest covers its text without its imports of ours, each use of an imported module replaced by that module's
digest: what the code does, and not where it is.
"""

from __future__ import annotations

import ast
import hashlib
import re
from pathlib import Path
from typing import Iterator, NamedTuple

from deberta.core import files
from deberta.core.records import Record

DATA = (".json", ".jinja", ".toml")  # files beside a module that it names and reads


class _Import(NamedTuple):
    """A name that a module imports from one of ours, in the file `path`; `name` is empty for a whole module."""

    node: ast.ImportFrom
    local: str
    path: Path
    name: str


def digest(project: Path, module: str) -> str:
    """SHA-256 of a stage's code, in hexadecimal: it changes when code that the stage uses changes."""
    return _digest(project, _file(project, module), {})


def sources(project: Path, module: str) -> dict[str, str]:
    """Path and SHA-256 of `module`, of the modules of ours that it imports, directly or not, and of their data."""
    waiting, known = [_file(project, module)], set()
    while waiting:
        path = waiting.pop()
        if path is None or path in known:
            continue
        known.add(path)
        if path.suffix == ".py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            waiting += [entry.path for entry in _imports(project, tree)]
            waiting += [data for _, data in _data(path, tree)]
    return {path.relative_to(project).as_posix(): files.sha256_of(path) for path in sorted(known)}


def changed_since(record: Record, project: Path, module: str) -> list[str]:
    """Paths of a stage's sources that changed since a step's record was written; empty if the record has no sources.

    A file that was only moved is not among them.
    """
    before = record.internal.get("sources")
    if not isinstance(before, dict):
        return []
    now = sources(project, module)
    gone = [path for path, code in before.items() if path not in now and code not in now.values()]
    return sorted(
        [path for path, code in now.items() if before.get(path) != code and code not in before.values()] + gone
    )


def _digest(project: Path, path: Path | None, known: dict[Path, str]) -> str:
    if path is None:
        return ""
    if path not in known:
        known[path] = ""  # for modules that import each other in a circle
        known[path] = hashlib.sha256(_canonical(project, path, known).encode()).hexdigest()
    return known[path]


def _canonical(project: Path, path: Path, known: dict[Path, str]) -> str:
    """The text that a module's digest covers (see above), with its imports as sorted lines at the end."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    imported, modules = [], {}
    for entry in _imports(project, tree):
        code = _digest(project, entry.path, known)
        if entry.name:
            imported.append(f"{entry.local}: {entry.name} of {code}")
        else:
            modules[entry.local] = code
        for number in range(entry.node.lineno - 1, entry.node.end_lineno or entry.node.lineno):
            lines[number] = ""
    text = "\n".join(line for line in lines if line.strip())
    for name, code in modules.items():
        text = re.sub(rf"(?<![\w.]){name}(?=\s*\.)", code, text)
    for name, data in _data(path, tree):
        text = text.replace(name, files.sha256_of(data))
    return "\n".join([text, *sorted(imported)])


def _imports(project: Path, tree: ast.AST) -> Iterator[_Import]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "deberta":
            continue
        for alias in node.names:
            whole = _file(project, f"{node.module}.{alias.name}")
            path, name = (whole, "") if whole else (_file(project, str(node.module)), alias.name)
            if path is not None:
                yield _Import(node, alias.asname or alias.name, path, name)


def _data(path: Path, tree: ast.AST) -> Iterator[tuple[str, Path]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(DATA):
            data = path.parent / node.value
            if data.is_file():
                yield node.value, data


def _file(project: Path, module: str) -> Path | None:
    path = project.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
