"""The source files of ours that a stage depends on, and a digest of them that a moved or renamed file does not change.

A module's digest covers its text without its imports of ours, each use of an imported module replaced by that module's
digest: what the code does, and not where it is.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

from deberta.core import files
from deberta.core.records import Digests, Record
from deberta.host.environments import cluster, stages, venvs

# Of the environments in which a worker and its stages run; the CI image has these, and no others.
LOCKS = (venvs.HOST_LOCK, stages.STAGES_LOCK, cluster.CLUSTER_LOCK)
DATA = (".json", ".jinja", ".toml")  # files beside a module that it names and reads


class _Import(NamedTuple):
    """A name that a module imports from one of ours, in the file `path`; `name` is empty for a whole module."""

    node: ast.ImportFrom
    local: str
    path: Path
    name: str


class _Parsed(NamedTuple):
    """A module's imports of ours, and the texts in it that may name files beside it."""

    imports: tuple[ast.ImportFrom, ...]
    data: tuple[str, ...]


def digest(project: Path, module: str) -> str:
    """SHA-256 of a stage's code, in hexadecimal: it changes when code that the stage uses changes."""
    return _digest(project, _file(project, module), {})


def remembered(digests: Digests, project: Path, module: str) -> str:
    """The same, of the memory of `digests` while no file of the stage's changed, nor this one, which makes it."""

    def paths() -> list[str]:
        own = Path(__file__).resolve()
        mine = [own.relative_to(project).as_posix()] if project in own.parents else [str(own)]
        return [*(path.relative_to(project).as_posix() for path in _reached(project, module)), *mine]

    return digests.of_code(module, paths, lambda paths: _state(project, paths), lambda: digest(project, module))


def _state(root: Path, paths: Sequence[str]) -> str:
    """Sizes, times and inodes of files below `root` and of the folders that they are in; empty if one is gone."""
    listing = hashlib.sha256()
    for path in [*paths, *sorted({os.path.dirname(path) for path in paths})]:
        try:
            entry = os.stat(os.path.join(root, path))
        except OSError:
            return ""
        line = f"{path}\0{entry.st_size}\0{entry.st_mtime_ns}\0{entry.st_ino}\n"
        listing.update(line.encode(errors="surrogateescape"))
    return listing.hexdigest()


def sources(project: Path, module: str) -> dict[str, str]:
    """Path and SHA-256 of `module`, of the modules of ours that it imports, directly or not, and of their data."""
    return {path.relative_to(project).as_posix(): files.sha256_of(path) for path in _reached(project, module)}


def _reached(project: Path, module: str) -> list[Path]:
    waiting, known = [_file(project, module)], set[Path]()
    while waiting:
        path = waiting.pop()
        if path is None or path in known:
            continue
        known.add(path)
        if path.suffix == ".py":
            parsed = _parse(path.read_text(encoding="utf-8"))
            waiting += [entry.path for entry in _imports(project, parsed)]
            waiting += [data for _, data in _data(path, parsed)]
    return sorted(known)


def of_package(project: Path) -> str:
    """SHA-256 over all of our package's files and `LOCKS`: what has to be the same on every host of a run.

    A lock that is absent, as in an image that has no use for it, is not the same as one that is there.
    """
    names = [name for name in files.files_in(project / "deberta") if "__pycache__" not in name]
    lines = [f"{files.sha256_of(project / 'deberta' / name)}  {name}\n" for name in names]
    paths = [project / name for name in LOCKS]
    lines += [f"{files.sha256_of(path) if path.exists() else 'absent'}  {path.name}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
    parsed, lines = _parse(text), text.splitlines()
    imported, modules = [], {}
    for entry in _imports(project, parsed):
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
    for name, data in _data(path, parsed):
        text = text.replace(name, files.sha256_of(data))
    return "\n".join([text, *sorted(imported)])


@functools.cache
def _parse(text: str) -> _Parsed:
    """What matters here of a module's text; remembered, since stages share most of their modules."""
    nodes = list(ast.walk(ast.parse(text)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    ours = tuple(node for node in imports if str(node.module).split(".")[0] == "deberta")
    return _Parsed(ours, tuple(text for text in texts if text.endswith(DATA)))


def _imports(project: Path, parsed: _Parsed) -> Iterator[_Import]:
    for node in parsed.imports:
        for alias in node.names:
            whole = _file(project, f"{node.module}.{alias.name}")
            path, name = (whole, "") if whole else (_file(project, str(node.module)), alias.name)
            if path is not None:
                yield _Import(node, alias.asname or alias.name, path, name)


def _data(path: Path, parsed: _Parsed) -> Iterator[tuple[str, Path]]:
    for name in parsed.data:
        data = path.parent / name
        if data.is_file():
            yield name, data


def _file(project: Path, module: str) -> Path | None:
    path = project.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
