"""The development tools, run in the stages' environment."""

from __future__ import annotations

import shlex
import signal
import subprocess
from pathlib import Path
from typing import Optional, Sequence

from deberta.errors import StageError
from deberta.host import stage_env


def test(project: Path, path: str, slow: bool, names: Optional[str], dry: bool) -> None:
    """pytest on a file or folder, `names` as its -k. Raises StageError if a test fails."""
    marks = [] if slow else ["-m", "not slow"]
    _check(project, ["pytest", path, *marks, *(["-k", names] if names else [])], "the tests failed", dry)


def lint(project: Path, dry: bool) -> None:
    """ruff and mypy, strict. Raises StageError for what they find."""
    _check(project, ["ruff", "check", "."], "ruff found something", dry)
    _check(project, ["ruff", "format", "--check", "."], "run: .venv-stages/bin/python -m ruff format .", dry)
    _check(project, ["mypy"], "mypy found something", dry)


def _check(project: Path, arguments: Sequence[str], problem: str, dry: bool) -> None:
    if dry:
        print(shlex.join([str(project / stage_env.FOLDER / "bin" / "python"), "-m", *arguments]))
        return
    code = subprocess.run([str(stage_env.ensure(project, dev=True)), "-m", *arguments], cwd=project).returncode
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        raise StageError(f"{problem} (exit code {code})")
