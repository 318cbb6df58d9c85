"""Make the seven hash-locked files at the top of the repository again, and show what changed for each machine.

requirements/lock.sh [--upgrade] runs this. Without --upgrade, versions that still fit are kept. It needs uv, which the
test tools have. Of pip's settings it follows PIP_INDEX_URL, PIP_CERT and PIP_FIND_LINKS: without the last, torch's +cpu
wheel is looked for on PyTorch's CPU index. It also writes deberta/host/environments/platforms.json: the glibc that the
locked wheels need, and how much there is to fetch. docker/pins.toml holds the hashes of the locks that images are built
from. Afterwards run: invoke images --lock
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec
from packaging.markers import Marker

from deberta import PROJECT
from deberta.core.errors import ConfigError, DataError, MissingError, run_stage
from deberta.core.files import write_text
from deberta.host.environments import locks, platforms, stages
from deberta.host.environments.locks import Locked
from deberta.host.environments.platforms import Needs

# Name -> the Pythons that its lock is for, the oldest first.
PYTHONS = {
    "host": ((3, 9), (3, 11)),
    "stages": ((3, 11),),
    "runtime-cpu": ((3, 11),),  # the part of the stages' that needs no PyTorch
    "cluster": ((3, 11),),  # the host's, and the engine of several hosts
    "compile": ((3, 9),),
    "dev": ((3, 11),),
    "bench": ((3, 11),),  # peers of `invoke bench`, in an environment of their own
}
# One Python and one system; the hashes are of every machine's files.
OPTIONS = {"compile": ("--no-universal", "--python-platform", "linux")}
TORCH = f"{stages.TORCH_INDEX}/torch/"

_NO_ANSWER = r"error sending request|Failed to fetch|Failed to read `--find-links`|[Nn]etwork connectivity is disabled"


class NoAnswerError(MissingError):
    """A package index or PyTorch's own index could not be reached."""


class Wheel(NamedTuple):
    """A wheel that the index has: its file name, SHA-256, and address."""

    name: str
    sha256: str
    url: str
    size: int  # bytes, 0: not told


class Package(NamedTuple):
    """What a lock resolves to on the index."""

    name: str
    version: str
    marker: str
    wheels: tuple[Wheel, ...]


def main(argv: Sequence[str]) -> None:
    if not set(argv) <= {"--upgrade"}:
        raise ConfigError(f"requirements/lock.sh takes --upgrade alone, and not {' '.join(argv)}")
    before = {name: _versions(name) for name in PYTHONS}
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda name: _lock(name, argv), ("host", "stages", "compile", "bench")))
        list(
            pool.map(lambda name: _lock(name, argv), ("runtime-cpu", "dev", "cluster"))
        )  # their constraints are of the others
        table = {lock_of(name).name: needs for name, needs in zip(PYTHONS, pool.map(needs_of, PYTHONS), strict=True)}
    write_text(Path(platforms.__file__).with_name(platforms.TABLE), table_text(table))
    for name in PYTHONS:
        for line in changes(before[name], _versions(name)) or ["no version changed"]:
            print(f"{lock_of(name).name}: {line}")
    print("docker/pins.toml has the hashes of the locks that images are built from. Run: invoke images --lock")


def lock_of(name: str) -> Path:
    return PROJECT / f"requirements-{name}.lock"


def changes(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What changed between two sets of versions by system (see `_versions`), a line each; one for all systems."""
    by_change: dict[str, list[str]] = {}
    for system, versions in after.items():
        old = before.get(system, {})
        for package in sorted({*versions, *old}):
            was, now = old.get(package, "none"), versions.get(package, "none")
            if was != now:
                by_change.setdefault(f"{package}: {was} -> {now}", []).append(system)
    return [f"{change} ({'; '.join(systems)})" for change, systems in sorted(by_change.items())]


def _versions(name: str) -> dict[str, dict[str, str]]:
    """The versions of each package by system, as in "aarch64 Python 3.11"."""
    if not lock_of(name).is_file():
        return {}
    return {
        "{} Python {}.{}".format(machine, *python): {
            package.name: package.version for package in locks.read(lock_of(name), machine, python)
        }
        for machine in locks.MACHINES
        for python in PYTHONS[name]
    }


def _lock(name: str, options: Sequence[str]) -> None:
    """requirements/NAME.in -> requirements-NAME.lock. Raises DataError if a package of it has no hash."""
    _uv(
        *("--universal", "--generate-hashes", "--custom-compile-command", "requirements/lock.sh"),
        *(*_python(name), *OPTIONS.get(name, ()), *options),
        *("--output-file", lock_of(name).name, f"requirements/{name}.in"),
    )
    packages = {package for machine in locks.MACHINES for package in locks.read(lock_of(name), machine)}
    if unhashed := sorted(package.name for package in packages if not package.sha256):
        raise DataError(f"{lock_of(name).name} has no hash for {', '.join(unhashed)}: pip would refuse the whole file")


def resolve(lock: Path, name: str) -> list[Package]:
    """What a lock resolves to on the package index, and which wheels are there.

    Raises NoAnswerError and DataError (it contradicts itself, or a package is not there).
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "pylock.toml")
        options = ("--format", "pylock.toml", "--no-build", *_python(name))
        _uv("--universal", *options, "--output-file", str(output), str(lock))
        listed = tomllib.loads(output.read_text(encoding="utf-8"))["packages"]
    return [
        Package(entry["name"], entry["version"], entry.get("marker", ""), tuple(map(_wheel, entry.get("wheels", ()))))
        for entry in listed
    ]


def _wheel(entry: Mapping[str, Any]) -> Wheel:
    url = entry.get("url") or Path(entry["path"]).absolute().as_uri()
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    return Wheel(name, entry["hashes"].get("sha256", ""), url, entry.get("size", 0))


def _python(name: str) -> tuple[str, ...]:
    return ("--python", sys.executable, "--python-version", "{}.{}".format(*PYTHONS[name][0]))


def _uv(*arguments: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    program = str(beside) if beside.is_file() else shutil.which("uv")
    if program is None:
        raise MissingError("uv is missing. It comes with the test tools. Run: invoke lint")
    own = os.environ
    command = [program, "pip", "compile", "--quiet", "--no-config"]
    for place in (own.get("PIP_FIND_LINKS") or TORCH).split():
        command += ["--find-links", place]
    command += ["--default-index", own["PIP_INDEX_URL"]] if own.get("PIP_INDEX_URL") else []
    variables = {"SSL_CERT_FILE": own["PIP_CERT"], **own} if own.get("PIP_CERT") else dict(own)
    done = subprocess.run([*command, *arguments], cwd=PROJECT, env=variables, capture_output=True, text=True)
    if done.returncode and re.search(_NO_ANSWER, done.stderr):
        raise NoAnswerError(f"no package index answered: {done.stderr.strip()}")
    if done.returncode:
        raise DataError(f"uv cannot resolve {arguments[-1]}: {done.stderr.strip()}")


def check(lock: Path, resolved: Sequence[Package], machine: str, python: tuple[int, int]) -> Iterator[str]:
    """What keeps pip from installing a lock with its hashes on a machine and Python, a line each."""
    where = "{} on {}, Python {}.{}".format(lock.name, machine, *python)
    locked = locks.read(lock, machine, python)
    wheels = {(package.name, package.version): package.wheels for package in resolved}
    environment = locks.environment(machine, python)
    for package in resolved:
        is_needed = not package.marker or Marker(package.marker).evaluate(environment)
        if is_needed and (package.name, package.version) not in {entry[:2] for entry in locked}:
            yield f"{where}: {package.name} {package.version} is needed and not in the lock"
    for entry in locked:
        fitting = [w for w in wheels.get(entry[:2], ()) if locks.glibc_of(w.name, machine, python) is not None]
        if not fitting:
            yield f"{where}: the index has no wheel of {entry.name} {entry.version}"
        elif not any(wheel.sha256 in entry.sha256 for wheel in fitting):
            yield f"{where}: no hash of {entry.name} {entry.version} is of its wheel ({fitting[0].name})"


def needs_of(name: str) -> dict[str, Needs]:
    """What a lock needs on each machine. Raises DataError if pip could not install it there."""
    return table_of(lock_of(name), resolve(lock_of(name), name), PYTHONS[name])


def table_of(lock: Path, resolved: Sequence[Package], pythons: Sequence[tuple[int, int]]) -> dict[str, Needs]:
    """What a lock needs on each machine, by the wheels that it resolves to. Raises DataError."""
    table = {}
    wheels = {(package.name, package.version): package.wheels for package in resolved}
    for machine in locks.MACHINES:
        if problems := [problem for python in pythons for problem in check(lock, resolved, machine, python)]:
            raise DataError("; ".join(problems))
        table[machine] = max(
            (_needs(locks.read(lock, machine, python), wheels, machine, python) for python in pythons),
            key=lambda needs: (platforms.as_numbers(needs.glibc), needs.megabytes),
        )
    return table


def _needs(
    locked: Sequence[Locked],
    wheels: Mapping[tuple[str, str], Sequence[Wheel]],
    machine: str,
    python: tuple[int, int],
) -> Needs:
    oldest, strictest, size, musl = (0, 0), "no package", 0, True
    for entry in locked:
        hashed = [wheel for wheel in wheels[entry[:2]] if wheel.sha256 in entry.sha256]
        musl = musl and any(locks.is_for_musl(wheel.name, machine, python) for wheel in hashed)
        versions = {wheel: locks.glibc_of(wheel.name, machine, python) for wheel in hashed}
        glibc, wheel = min((version, wheel) for wheel, version in versions.items() if version is not None)
        size += wheel.size or _size(wheel.url)
        if glibc > oldest:
            oldest, strictest = glibc, f"{entry.name} {entry.version}"
    return Needs("{}.{}".format(*oldest), strictest, musl, -(-size // 10**6))


def _size(url: str) -> int:
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as response:
        return int(response.headers["Content-Length"])


def table_text(table: Mapping[str, Mapping[str, Needs]]) -> str:
    return msgspec.json.format(msgspec.json.encode(table), indent=2).decode() + "\n"


if __name__ == "__main__":
    sys.exit(run_stage(main))
