"""Virtual environments with the packages of hash-locked requirements: complete and current, or installed again.

`inv` runs `python -m deberta.host.environments.venvs PYTHON` to install the host's `.venv`, so this needs nothing but
the standard library. An environment holds a copy of each lock whose packages it has, written last: an environment
without that copy, or with another, is not complete or not current.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence

from deberta import PROJECT
from deberta.core import machine
from deberta.core.errors import ConfigError, MissingError, run_stage
from deberta.core.files import write_text
from deberta.core.progress import Progress
from deberta.host.environments import offline

HOST_FOLDER = ".venv"
HOST_LOCK = "requirements-host.lock"
_TAIL = 15  # lines of pip's output that are shown when it fails
# Variables that make pip install packages elsewhere, or Python import them from elsewhere.
_LEAKS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT")


NO_ANSWER, NOT_LISTED, OTHER = "no answer", "not listed", "other"
_TROUBLE = re.compile(r"Retrying \(Retry\(|Could not fetch URL|Max retries exceeded|ReadTimeoutError|ConnectionError")


class PipError(Exception):
    """pip ended with an error; `lines` are the last ones it printed.

    cause: NO_ANSWER (an index could not be reached), NOT_LISTED (the places where pip looks have no such file for this
    machine and Python) or OTHER.
    """

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        errors = [line for line in lines if line.startswith("ERROR:")]
        message = errors[-1] if errors else (lines[-1] if lines else "no output")
        trouble = [line for line in lines if _TROUBLE.search(line)]
        self.cause = NO_ANSWER if trouble else NOT_LISTED if "No matching distribution" in message else OTHER
        super().__init__(message)


def say(line: str) -> None:
    """Tell the user what is going on; standard output is left to the command's own results."""
    print(line, file=sys.stderr, flush=True)


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def is_current(folder: Path, locks: Sequence[Path]) -> bool:
    """Whether `folder` is a complete environment of exactly these locks, on a Python that still exists."""
    copies = [(lock, folder / lock.name) for lock in locks]
    whole = all(path.is_file() for pair in copies for path in pair)
    return whole and os.access(python_of(folder), os.X_OK) and all(a.read_bytes() == b.read_bytes() for a, b in copies)


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep other processes from installing in `folder` too. The kernel frees the lock when its holder dies."""
    path = folder.parent / ".cache" / f"{folder.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another command is making {folder}; waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def create(folder: Path, python: str) -> None:
    """Create an empty environment in place of `folder`; it is not current until `install` has finished."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} is not a folder of its own. Remove it, then run the same command again")
    if folder.is_dir():
        for stamp in folder.glob("*.lock"):
            stamp.unlink()  # first, so that a killed run can't leave them in a folder that is half cleared
    process = run([python, "-m", "venv", "--clear", str(folder)])
    if process.returncode:
        for line in (process.stdout + process.stderr).splitlines()[-_TAIL:]:
            say(f"  {line}")
        raise MissingError(
            f"{python} -m venv {folder} failed. Check the space on the disk, and that Python's venv module is whole "
            f"(Debian, Ubuntu: apt-get install python3-venv), then run the same command again"
        )


def install(folder: Path, lock: Path, show_progress: bool = False, wheelhouse: Optional[Path] = None) -> None:
    """Install the wheels of a hash-locked requirements file, then write its copy to `folder`: that says it is complete.

    `wheelhouse`: the only place to take them from. Raises MissingError if it was made for another lock, or if pip
    fails, after showing pip's last lines.
    """
    text = lock.read_text(encoding="utf-8")
    arguments = ["install", "--require-hashes", "--only-binary", ":all:"]
    if wheelhouse:
        offline.require(wheelhouse, lock)
        arguments += offline.pip_options(wheelhouse)
    arguments += ["-r", str(lock)]
    try:
        if show_progress:
            with_progress(folder, arguments, len(re.findall(r"(?m)^[A-Za-z0-9]", text)), wheelhouse is not None)
        else:
            pip(folder, arguments, isolated=wheelhouse is not None)
    except PipError as error:
        for line in error.lines:
            say(f"  {line}")
        advice = _advice(error, wheelhouse)
        raise MissingError(f"pip could not install {lock.name} in {folder}: {error}. {advice}") from None
    write_text(folder / lock.name, text)


def _advice(error: PipError, wheelhouse: Optional[Path]) -> str:
    again = "then run the same command again"
    if wheelhouse and error.cause == NOT_LISTED:
        return (
            f"The wheelhouse {wheelhouse} has no wheel of it for {platform.machine()} and this Python. "
            f"{offline.hint(wheelhouse)}"
        )
    if wheelhouse:
        return f"Check the disk and the wheelhouse. {offline.hint(wheelhouse)}"
    if error.cause == NO_ANSWER:
        settings = "PIP_INDEX_URL, PIP_CERT, a proxy; for a machine without network: docs/offline.md"
        return f"The package index did not answer. Check the network and pip's own settings ({settings}), {again}"
    if error.cause == NOT_LISTED:
        return (
            "The places where pip looks (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) answered, and have no "
            f"wheel of it for {platform.machine()} and this Python: name an index or a folder that has it, {again}"
        )
    settings = "PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT"
    return f"Check the network, the disk and pip's own settings ({settings}), {again}"


def pip(
    folder: Path,
    arguments: Sequence[str],
    on_line: Optional[Callable[[str], None]] = None,
    isolated: bool = False,
) -> None:
    """Run the environment's pip, with the user's own pip settings unless it is `isolated`. Raises PipError."""
    command = [str(python_of(folder)), "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    tail: deque[str] = deque(maxlen=_TAIL)
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    variables = offline.without_pip_settings(environment()) if isolated else environment()
    process = machine.start(command, env=variables, **streams)
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if not line.startswith("WARNING: Location"):  # pip's remark on each index folder without a package
                    tail.append(line.rstrip())
                if on_line:
                    on_line(line)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise PipError(tail)


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a Python in `environment()` and keep its output. Raises OSError if it does not start."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with machine.start(command, env=environment(), **streams) as process:
        try:
            output, error = process.communicate()
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, error)


def environment() -> dict[str, str]:
    """This process's environment without the variables that redirect Python or pip."""
    return {name: value for name, value in os.environ.items() if name not in _LEAKS}


def main(argv: Sequence[str]) -> None:
    """Install the host's environment with the interpreter in argv[0], unless another process just did."""
    folder, lock = PROJECT / HOST_FOLDER, PROJECT / HOST_LOCK
    if sys.platform == "linux" and platform.machine() not in machine.MACHINES:
        known = " or ".join(machine.MACHINES)
        raise MissingError(
            f"{HOST_LOCK} is for Linux on {known}, and this machine is {platform.machine()}. Take one of these"
        )
    with one_at_a_time(folder):
        if not is_current(folder, [lock]):
            wheelhouse = offline.setting(PROJECT)
            if wheelhouse:
                offline.require(wheelhouse, lock)
                offline.refuse_wrong(wheelhouse, lock)
            source = f" from {wheelhouse}" if wheelhouse else ""
            say(f"installing invoke, docker and what they need in {folder}{source} (about 1 MB, once) ...")
            create(folder, argv[0])
            install(folder, lock, wheelhouse=wheelhouse)


def with_progress(folder: Path, arguments: Sequence[str], packages: int, isolated: bool = False) -> None:
    """`pip` with a count of the packages that it has looked at, on standard error. Raises PipError."""
    progress = Progress("reading" if isolated else "fetching", packages, "packages", sys.stderr)
    seen = 0

    def count(line: str) -> None:
        nonlocal seen
        if line.startswith(("Collecting ", "Processing ", "Requirement already satisfied")):
            seen = min(seen + 1, packages - 1)  # a lock names some packages of other platforms too
            progress.update(seen)
        elif line.startswith("Successfully downloaded"):
            progress.update(packages)
        elif line.startswith("Installing collected"):
            progress.update(packages)
            say("unpacking (pip says nothing meanwhile; about half a minute) ...")

    pip(folder, arguments, count, isolated)


if __name__ == "__main__":
    sys.exit(run_stage(main))
