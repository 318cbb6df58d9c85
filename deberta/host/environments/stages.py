"""The stages' Python: `.venv-stages`, installed from the locks on first use, or an environment of the user's."""

from __future__ import annotations

import contextlib
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any, Mapping, Optional

from deberta.core import schema
from deberta.core.errors import ConfigError, MissingError
from deberta.host.environments import locks, platforms, venvs, wheelhouse

FOLDER = ".venv-stages"
STAGES_LOCK = "requirements-stages.lock"
DEV_LOCK = "requirements-dev.lock"
PYTHON = (3, 11)  # what the stages' lock was resolved for
DISK_MB = 1500  # measured on x86_64
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


def ensure(project: Path, dev: bool = False, python: Optional[Path] = None, wheels: Optional[Path] = None) -> Path:
    """The stages' Python, its environment installed first if need be; with `dev`, including the test tools.

    `python` is the interpreter of an environment that the user prepared: it is checked, never changed. `wheels`: the
    wheelhouse that is then the only place to install from. Raises MissingError (this system is none that the locks are
    for, no Python 3.11, not in the wheelhouse, or pip failed), ConfigError (a prepared environment that does not fit)
    and DataError (a file of the wheelhouse is not the right one).
    """
    if python is not None:
        check(project, python)
        return python
    folder = project / FOLDER
    if find(project, dev) is None:
        with venvs.one_at_a_time(folder):
            _install(project, folder, dev, wheels)  # nothing to do if another process just did it
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

    Those of x86_64 on a machine that the lock is not for. torch's local version (+cpu) is not compared: other builds of
    it give the same results.
    """
    machine = platform.machine() if platform.machine() in locks.MACHINES else locks.MACHINES[0]
    locked = locked_versions(project / STAGES_LOCK, machine)
    wanted = {name: version for name, version in locked.items() if name in IMPORTED}
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


def ways_out() -> str:
    """What to do where the system is none that the stages' wheels are for."""
    prepared = "or name a Python 3.11 that has the packages: stages_python in invoke.yaml"
    if platforms.needs(STAGES_LOCK) is None:
        return f"Take a machine of these, {prepared}"
    return f"Run the stages in containers (--executor docker), take a newer system, {prepared}"


def find_python() -> Optional[str]:
    """A Python 3.11 that runs and has the venv module (a name on PATH may be a shim that fails), or None."""
    for name in (sys.executable, "python3.11", "python3"):
        with contextlib.suppress(OSError):
            if venvs.run([name, "-c", _IS_FITTING]).returncode == 0:
                return name
    return None


def _install(project: Path, folder: Path, dev: bool, wheels: Optional[Path]) -> None:
    stages, *more = _locks(project, dev)
    if wheels:
        for lock in (stages, *more):
            if not venvs.is_current(folder, [lock]):
                wheelhouse.check(wheels, lock, platform.machine())
    if not venvs.is_current(folder, [stages]):
        platforms.require(STAGES_LOCK, ways_out())
        python, of_own_index = find_python(), locks.of_own_index(stages)
        if python is None:
            raise MissingError(
                "no Python 3.11 with its venv module was found for the stages (python3.11 and python3 were tried). "
                "Install it (Debian 12, Ubuntu: apt-get install python3.11 python3.11-venv) or put it on PATH, then "
                "run the same command again"
            )
        megabytes = platforms.megabytes(STAGES_LOCK)
        size = f"from {wheels}" if wheels else f"CPU builds; about {megabytes} MB to fetch"
        venvs.say(
            f"installing the stages' packages in {folder} ({size}, {DISK_MB / 1000:.1f} GB on disk; once, a minute or "
            "a few) ..."
        )
        venvs.create(folder, python)
        for package in of_own_index if wheels is None else ():
            _install_from_own_index(folder, package)
        venvs.install(folder, stages, show_progress=True, wheelhouse=wheels)
    for lock in more:
        if not venvs.is_current(folder, [lock]):
            venvs.say(f"installing the test tools in {folder} (about {platforms.megabytes(lock.name)} MB, once) ...")
            venvs.install(folder, lock, wheelhouse=wheels)


def _install_from_own_index(folder: Path, package: locks.Locked) -> None:
    """Install torch's +cpu build from PyTorch's own index if pip does not find it where it is configured to look.

    It alone is looked for there: otherwise pip would ask that index for each of the packages. The first look fetches
    only the list of torch's files, or reads the wheel's metadata if it is in a local folder.
    """
    wanted = f"{package.name}=={package.version}"
    try:
        venvs.pip(folder, ["install", "--dry-run", "--no-deps", "--only-binary", ":all:", wanted])
        return
    except venvs.PipError as error:
        if error.cause != venvs.NOT_LISTED:
            return  # it occurs again in the installation, which reports it
    venvs.say(f"fetching {wanted} from {TORCH_INDEX} ...")
    with tempfile.NamedTemporaryFile("w", suffix=".lock", encoding="utf-8") as own:
        own.write(locks.text(package))
        own.flush()
        options = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "--extra-index-url", TORCH_INDEX]
        try:
            venvs.pip(folder, ["install", *options, "-r", own.name])
        except venvs.PipError as error:
            causes = {venvs.NOT_LISTED: "has no such wheel", venvs.NO_ANSWER: "did not answer"}
            missing = causes.get(error.cause, f"could not be used ({error})")
            raise MissingError(
                f"{wanted}, the build of PyTorch without CUDA, is not where pip is configured to look, and PyTorch's "
                f"own index ({TORCH_INDEX}) {missing}. Fetch its wheel where that index answers, put it into a folder, "
                "name that by PIP_FIND_LINKS, and run the same command again"
            ) from None


def _locks(project: Path, dev: bool) -> list[Path]:
    return [project / STAGES_LOCK, *([project / DEV_LOCK] if dev else [])]
