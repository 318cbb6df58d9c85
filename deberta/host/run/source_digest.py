"""Which of our own source files a stage's result depends on."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

DATA = (".json", ".jinja")  # what a module reads besides: files of the package that it names


def sources(project: Path, module: str) -> list[Path]:
    """The files of `module` and of every module of ours that it imports, directly or not, and the data they name."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        path = project.joinpath(*waiting.pop().split(".")).with_suffix(".py")
        if path in found or not path.is_file():
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "deberta":
                waiting += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.startswith("deberta.")]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(DATA):
                named = [folder / node.value for folder in (path.parent, project / "deberta")]
                found.update(one for one in named if one.is_file())
    return sorted(found)


def digest(project: Path, module: str) -> str:
    """SHA-256 over the sources of a stage: it runs again when its own code changes, not when something else does."""
    content = hashlib.sha256()
    for path in sources(project, module):
        content.update(f"{path.relative_to(project).as_posix()}\0".encode() + path.read_bytes())
    return content.hexdigest()
