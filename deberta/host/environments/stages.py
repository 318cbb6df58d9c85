"""The stages' Python: `.venv-stages`, installed from the locks on first use, or an environment of the user's."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Mapping, Optional

from deberta.core import schema
from deberta.core.errors import ConfigError, MissingError
from deberta.host.environments import locks, venvs

FOLDER = ".venv-stages"
STAGES_LOCK = "requirements-stages.lock"
DEV_LOCK = "requirements-dev.lock"
PYTHON = (3, 11)  # what the stages' lock was resolved for
DOWNLOAD_MB, DISK_MB = 350, 1500  # measured on x86_64
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# The packages that the stages import: a prepared environment needs these.
IMPORTED = (
    "torch", "transformers", "tokenizers", "sentencepiece", "safetensors", "onnx", "onnxruntime", "openvino", "numpy",
    "protobuf",
)  # fmt: skip
_IS_FITTING = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != {PYTHON})"
_VERSIONS = """
import importlib.metadata, importlib.util, json, sys
versions = {"python": "%d.%d" % sys.version_info[:2]}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        continue
    if name != "protobuf" and importlib.util.find_spec(name) is None:  # installed, but its files are gone
        del versions[name]
print(json.dumps(versions))
"""


def find(project: Path, dev: bool = False) -> Optional[Path]:
    """The stages' Python if its environment is complete and of the present locks, else None."""
    folder = project / FOLDER
    return venvs.python_of(folder) if venvs.is_current(folder, _locks(project, dev)) else None


def ensure(project: Path, dev: bool = False, python: Optional[Path] = None) -> Path:
    """The stages' Python, its environment installed first if need be; with `dev`, including the test tools.

    `python` is the interpreter of an environment that the user prepared: it is checked, never changed.
    Raises MissingError (no Python 3.11, or pip failed) and ConfigError (a prepared environment that does not fit).
    """
    if python is not None:
        check(project, python)
        return python
    folder = project / FOLDER
    if find(project, dev) is None:
        with venvs.one_at_a_time(folder):
            _install(project, folder, dev)  # nothing to do if another process just did it
    return venvs.python_of(folder)


def check(project: Path, python: Path) -> None:
    """Raise ConfigError unless `python` has the packages that the stages import, at the locked versions."""
    problems = misfits(project, installed(python))
    if problems:
        raise ConfigError(
            f"{python} does not fit the stages: {'; '.join(problems)}. Install {STAGES_LOCK} in it, "
            f"or leave the setting out to have {FOLDER} made"
        )


def installed(python: Path) -> dict[str, str]:
    """Versions of "python" (3.11, say) and of those of IMPORTED that it has. Raises ConfigError if it does not run."""
    try:
        process = venvs.run([str(python), "-c", _VERSIONS, *IMPORTED])
        return {str(name): str(version) for name, version in schema.decode(process.stdout, dict[str, Any]).items()}
    except (OSError, ValueError, AttributeError):
        message = f"{python} does not run as a Python 3.11. Give the Python of a prepared environment"
        raise ConfigError(message) from None


def misfits(project: Path, versions: Mapping[str, str]) -> list[str]:
    """Which of these versions (see `installed`) are not the locked ones, one text each.

    torch's local version (+cpu) is not compared: on a machine without such a wheel another build does.
    """
    wanted = {name: version for name, version in locked_versions(project / STAGES_LOCK).items() if name in IMPORTED}
    problems = [
        f"{name} {versions.get(name, 'is missing')} (needs {version})"
        for name, version in sorted(wanted.items())
        if versions.get(name, "").partition("+")[0] != version.partition("+")[0]
    ]
    wanted_python = ".".join(map(str, PYTHON))
    if versions["python"] != wanted_python:
        problems.insert(0, f"Python is {versions['python']} (needs {wanted_python})")
    return problems


def locked_versions(lock: Path, machine: str = "") -> dict[str, str]:
    """Name and version of each package of a lock for Python 3.11 on a machine; empty: on this one."""
    return {package.name: package.version for package in locks.read(lock, machine, PYTHON)}


def find_python() -> Optional[str]:
    """A Python 3.11 that runs and has the venv module (a name on PATH may be a shim that fails), or None."""
    for name in (sys.executable, "python3.11", "python3"):
        with contextlib.suppress(OSError):
            if venvs.run([name, "-c", _IS_FITTING]).returncode == 0:
                return name
    return None


def _install(project: Path, folder: Path, dev: bool) -> None:
    stages, *more = _locks(project, dev)
    if not venvs.is_current(folder, [stages]):
        python = find_python()
        if python is None:
            raise MissingError(
                "no Python 3.11 with its venv module was found for the stages (python3.11 and python3 were tried). "
                "Install it (Debian 12, Ubuntu: apt-get install python3.11 python3.11-venv) or put it on PATH, then "
                "run the same command again"
            )
        venvs.say(
            f"installing the stages' packages in {folder} (CPU builds; about {DOWNLOAD_MB} MB to fetch, "
            f"{DISK_MB / 1000:.1f} GB on disk; once, a minute or a few) ..."
        )
        venvs.create(folder, python)
        torch = f"torch=={locked_versions(stages)['torch']}"
        venvs.install(folder, stages, _torch_index(folder, torch), show_progress=True)
    for lock in more:
        if not venvs.is_current(folder, [lock]):
            venvs.say(f"installing the test tools in {folder} (about 30 MB, once) ...")
            venvs.install(folder, lock)


def _torch_index(folder: Path, torch: str) -> tuple[str, ...]:
    """pip's option for PyTorch's own index, only if pip does not find the wheel where it is configured to look.

    This fetches only the list of torch's files, or reads the wheel's metadata if it is in a local folder.
    """
    try:
        venvs.pip(folder, ["install", "--dry-run", "--no-deps", "--only-binary", ":all:", torch])
    except venvs.PipError as error:
        if any("No matching distribution" in line for line in error.lines):
            return ("--extra-index-url", TORCH_INDEX)
        # Any other error occurs again in the installation, which reports it.
    return ()


def _locks(project: Path, dev: bool) -> list[Path]:
    return [project / STAGES_LOCK, *([project / DEV_LOCK] if dev else [])]
