"""The environment of commands that work with several hosts: `.venv-cluster`, which one host never installs.

It has the host's packages too. A command that needs it replaces itself by the same command in its Python.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Optional

from deberta.core.errors import MissingError
from deberta.host.environments import platforms, stages, venvs, wheelhouse

FOLDER = ".venv-cluster"
CLUSTER_LOCK = "requirements-cluster.lock"
REPLACED = "DEBERTA_CLUSTER_PYTHON"  # says that this command has replaced itself


def find(project: Path) -> Optional[Path]:
    """The environment's Python if it is complete and of the present lock, else None."""
    folder = project / FOLDER
    return venvs.python_of(folder) if venvs.is_current(folder, [project / CLUSTER_LOCK]) else None


def ensure(project: Path, wheels: Optional[Path] = None) -> Path:
    """The environment's Python, installed first if need be. `wheels`: the only place to install from.

    Raises MissingError (no Python 3.11, not in the wheelhouse, or pip failed) and DataError (a wrong file in it).
    """
    folder, lock = project / FOLDER, project / CLUSTER_LOCK
    if find(project) is None:
        with venvs.one_at_a_time(folder):
            if not venvs.is_current(folder, [lock]):
                _install(folder, lock, wheels)
    return venvs.python_of(folder)


def _install(folder: Path, lock: Path, wheels: Optional[Path]) -> None:
    if wheels:
        wheelhouse.check(wheels, lock, platform.machine())
    platforms.require(CLUSTER_LOCK, "Take a newer system")
    python = stages.find_python()
    if python is None:
        raise MissingError(
            "no Python 3.11 with its venv module was found for a cluster's commands (python3.11 and python3 were "
            "tried). Install it (Debian 12, Ubuntu: apt-get install python3.11 python3.11-venv) or put it on PATH, "
            "then run the same command again"
        )
    source = f"from {wheels}" if wheels else f"about {platforms.megabytes(CLUSTER_LOCK)} MB to fetch"
    venvs.say(f"installing what several hosts need in {folder} ({source}, once) ...")
    venvs.create(folder, python)
    venvs.install(folder, lock, wheelhouse=wheels)


def is_inside(project: Path) -> bool:
    """Whether this process runs in the environment."""
    return Path(sys.prefix).resolve() == (project / FOLDER).resolve()


def enter(project: Path, wheels: Optional[Path] = None) -> None:
    """Return in the environment: this process is replaced by the same command in its Python, which comes here again.

    Raises what `ensure` raises.
    """
    if is_inside(project):
        os.environ.pop(REPLACED, None)
        return
    python = ensure(project, wheels)
    if os.environ.get(REPLACED) == str(python):
        raise MissingError(f"{python} does not run as the Python of {project / FOLDER}. Remove that folder")
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ[REPLACED] = str(python)
    os.execv(python, [str(python), str(project / "tasks.py"), *sys.argv[1:]])
