"""CANN on this machine: where its set_env.sh is, the environment that it sets, and its version.

ATC needs a Python of its own (3.7 to 3.9) and msame CANN's libraries: both run in the environment that set_env.sh sets
in an empty one, so that nothing of the caller's (a .venv, PYTHONPATH, another CANN) gets into them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from deberta.ascend import executables
from deberta.core.errors import ConfigError, MissingError, StageError

SET_ENV = "set_env.sh"
SCRIPTS = (  # the guide's path, then the default installation's, of CANN before 8.5 and from 8.5 on
    Path("/opt/npu/cann_5.1.rc205/ascend-toolkit", SET_ENV),
    Path("/usr/local/Ascend/ascend-toolkit", SET_ENV),
    Path("/usr/local/Ascend/cann", SET_ENV),
)
_OF_USER = ("Ascend/ascend-toolkit", "Ascend/cann")  # below $HOME: where an installation by another user than root goes
_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")  # that set_env.sh sets, in the order in which they are asked
_LEVELS = 5  # folders above atc that are looked at: <toolkit>/latest/<arch>-linux/bin/atc
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT_SECONDS = 60  # set_env.sh only sets variables
_BASH, _ENV = "/bin/bash", "/usr/bin/env"

# The script's path is an argument, never part of the shell's text. Its status does not count, since set_env.sh may end
# with a test that fails; the variables that it leaves do. Its own output goes to stderr.
_SOURCE = f"""unset VIRTUAL_ENV PYTHONPATH PYTHONHOME
set_env=$1; shift
. "$set_env" 1>&2
exec {_ENV} -0"""
_BASHS_OWN = ("_", "SHLVL", "PWD", "OLDPWD")

# Files below ASCEND_TOOLKIT_HOME with the product's version (5.1.RC2). `Version=` of a component's version.info is
# another number (1.83.10.1.238) and is not read.
_VERSIONS = (
    ("*-linux/ascend_*_install.info", re.compile(r"(?m)^version=(\S+)\s*$")),
    ("version.cfg", re.compile(r"(?m)^(?:toolkit|runtime)_(?:running|installed)_version=\[[^:\]]*:([^\]]+)\]")),
    ("*/version.info", re.compile(r"(?m)^version_dir=(\S+)\s*$")),
)
_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_NNRT_HOME")


class Location(NamedTuple):
    """A set_env.sh, and what led to it."""

    script: Path
    source: str

    @property
    def text(self) -> str:
        return f"{self.script} ({self.source})"


class Cann(NamedTuple):
    """An installation. `environment` is all that atc and msame get; `version` is empty if no file has it."""

    location: Location
    version: str
    environment: Mapping[str, str]

    @property
    def text(self) -> str:
        return f"CANN {self.version or 'of an unknown version'}: {self.location.text}"


def load(setting: str, scratch: Path, scripts: Sequence[Path] = SCRIPTS) -> Cann:
    """The installation that `find` finds. `scratch`: a folder for HOME.

    Raises ConfigError, MissingError (no CANN) or StageError (its script fails).
    """
    location = find(setting, scripts)
    scratch.mkdir(parents=True, exist_ok=True)
    variables = environment(location.script, scratch)
    home = next((Path(variables[name]) for name in _HOMES if variables.get(name)), location.script.parent / "latest")
    return Cann(location, version(home), variables)


def find(setting: str, scripts: Sequence[Path] = SCRIPTS, variables: Optional[Mapping[str, str]] = None) -> Location:
    """The set_env.sh to source, as `search` finds it.

    Raises ConfigError for a setting that names no script, MissingError naming all places if none has one.
    """
    location, looked = search(setting, scripts, variables)
    if location is None:
        raise MissingError(
            f"CANN was not found: {'; '.join(looked)}. Install the CANN toolkit, or name its set_env.sh under cann in "
            "invoke.yaml; without an NPU use --backend cpu"
        )
    return location


def search(
    setting: str, scripts: Sequence[Path] = SCRIPTS, variables: Optional[Mapping[str, str]] = None
) -> tuple[Optional[Location], list[str]]:
    """The set_env.sh of the setting `cann` alone, or else the first of these, and what was looked at without one.

    The folder that $ASCEND_TOOLKIT_HOME or $ASCEND_HOME_PATH names, the known places, $HOME/Ascend, the folders above
    atc on PATH. `setting`: the script, one of your own that sources it, or its folder. `variables`: the caller's.
    Raises ConfigError for a setting that names no script.
    """
    if setting:
        path = Path(setting).absolute()
        above = [path.parent] if (path / "bin").is_dir() else []  # ASCEND_TOOLKIT_HOME itself: <toolkit>/latest
        folders = [path, path / "ascend-toolkit", path / "cann", *above]
        script = _first([path, *(folder / SET_ENV for folder in folders)])
        if script is None:
            raise ConfigError(f"cann in invoke.yaml is {setting!r}: no set_env.sh is there. Correct it, or empty it")
        return Location(script, "cann in invoke.yaml"), []
    own: Mapping[str, str] = os.environ if variables is None else variables
    looked: list[str] = []
    for name in (name for name in _VARIABLES if own.get(name)):
        home = Path(own[name]).absolute()
        if script := _first(folder / SET_ENV for folder in (home, home.parent, home.parent.parent)):
            return Location(script, "; ".join([f"by ${name}", *looked])), looked
        looked.append(f"${name} is {home}, with no set_env.sh in it or in the two folders above")
    aside = "".join(f"; {text}" for text in looked)
    of_user = [Path(own["HOME"], folder, SET_ENV) for folder in _OF_USER] if own.get("HOME") else []
    if script := _first([*scripts, *of_user]):
        return Location(script, f"a known place{aside}"), looked
    if atc := shutil.which("atc", path=own.get("PATH", "")):
        program = Path(atc).absolute()
        above = [*program.parents[:_LEVELS], *program.resolve().parents[:_LEVELS]]
        if script := _first(folder / SET_ENV for folder in above):
            return Location(script, f"above {atc} on PATH{aside}"), looked
        looked.append(f"atc is on PATH ({atc}), with no set_env.sh in the folders above it: name it under cann")
    return None, [*looked, f"there is no {' and no '.join(map(str, [*scripts, *of_user]))}"]


def _first(scripts: Iterable[Path]) -> Optional[Path]:
    return next((path for path in scripts if path.is_file()), None)


def environment(script: Path, scratch: Path) -> dict[str, str]:
    """All variables after `source script` in an empty environment whose HOME is `scratch`.

    Raises MissingError (no bash) and StageError (the script stops the shell, hangs, or sets nothing of CANN's).
    """
    bare = {"HOME": str(scratch), "PATH": PATH, "LANG": "C.UTF-8"}
    command = [_BASH, "--noprofile", "--norc", "-c", _SOURCE, "bash", str(script.absolute())]
    try:
        # Its own session: a script that hangs ends with all that it started.
        process = subprocess.Popen(
            command, cwd=scratch, env=bare, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise MissingError(f"{_BASH} is missing, and CANN's {script} needs it. Install bash") from None
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise StageError(f"{script} did not end in {TIMEOUT_SECONDS} s. Correct it, or cann in invoke.yaml") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    variables = dict(entry.partition("=")[::2] for entry in os.fsdecode(stdout).split("\0") if "=" in entry)
    if not any(name.startswith("ASCEND_") for name in variables):
        lines = os.fsdecode(stderr).strip().splitlines()
        reason = f": {lines[-1]}" if lines else ""
        raise StageError(f"{script} stops, or sets nothing of CANN's{reason}. Correct it, or cann in invoke.yaml")
    return {name: value for name, value in variables.items() if name not in _BASHS_OWN}


def version(home: Path) -> str:
    """CANN's version by the files below ASCEND_TOOLKIT_HOME, e.g. 5.1.RC2; empty if none has it."""
    for pattern, expression in _VERSIONS:
        for path in sorted(home.glob(pattern)):
            if match := expression.search(path.read_text(encoding="utf-8", errors="replace")):
                return match[1]
    return ""


def tool(cann: Cann, name: str) -> Path:
    """The program of that name on the PATH that set_env.sh sets. Raises MissingError; ConfigError: it cannot start."""
    program = executables.on_path(name, cann.environment.get("PATH", PATH))
    if program is None:
        raise MissingError(
            f"{name} is not on the PATH that {cann.location.text} makes. Is it the toolkit's? The run-time package "
            "alone has no compiler. Install the CANN toolkit, or name its set_env.sh under cann in invoke.yaml"
        )
    return program
