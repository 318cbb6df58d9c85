"""What `invoke wheelhouse` does: every wheel that machines without network need, fetched by pip and checked by hash.

pip evaluates markers for the Python that runs it, not for the one that the wheels are for. So it gets the lines that a
machine and a Python need, without markers, and each platform tag by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import sys
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple, Sequence

import msgspec
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from deberta.core import contract, files, schema
from deberta.core.errors import ConfigError, DataError, MissingError, some
from deberta.host.environments import cluster, locks, platforms, stages, venvs, wheelhouse
from deberta.host.environments.locks import Locked
from deberta.host.environments.wheelhouse import DEBS, MANIFEST, Manifest, Need, WheelhouseFile

COMPILE_LOCK, RUNTIME_CPU_LOCK = "requirements-compile.lock", "requirements-runtime-cpu.lock"
PINS = "docker/pins.toml"  # has the hashes of the user's Debian packages
# The Pythons that each lock is fetched for; the host's are those that `inv` tries by name.
PYTHONS: Mapping[str, Sequence[tuple[int, int]]] = {
    venvs.HOST_LOCK: ((3, 9), (3, 10), (3, 11), (3, 12), (3, 13)),
    stages.STAGES_LOCK: (stages.PYTHON,),
    RUNTIME_CPU_LOCK: (stages.PYTHON,),
    COMPILE_LOCK: ((3, 9),),
    cluster.CLUSTER_LOCK: (stages.PYTHON,),
    stages.DEV_LOCK: (stages.PYTHON,),
}
_PIP_VERSION = (20, 3)  # the first whose `download` takes several platforms


class Target(NamedTuple):
    """One set of wheels: of a lock, for a machine and a Python."""

    lock: Path
    machine: str
    python: tuple[int, int]

    @property
    def need(self) -> Need:
        return Need(lock=self.lock.name, machine=self.machine, python="{}.{}".format(*self.python))

    @property
    def glibc(self) -> tuple[int, ...]:
        """The oldest that the lock as a whole runs with on this machine: newer wheels are not taken."""
        needs = platforms.needs(self.lock.name, self.machine)
        assert needs is not None  # of both machines, as a test says
        return platforms.as_numbers(needs.glibc)

    def __str__(self) -> str:
        return "{}, {}, Python {}.{}".format(self.lock.name, self.machine, *self.python)


class Wheel(NamedTuple):
    """A wheel in the folder, by its file name, with the SHA-256 of its content."""

    path: Path
    name: str
    version: Version
    sha256: str


def targets(project: Path, machines: Sequence[str], dev: bool) -> list[Target]:
    """What is fetched for these machines; `dev`: the test tools too."""
    names = [name for name in PYTHONS if dev or name != stages.DEV_LOCK]
    return [
        Target(project / name, machine, python) for name in names for machine in machines for python in PYTHONS[name]
    ]


def describe(target: Target) -> str:
    """A target with the number and size of its wheels."""
    count = len(locks.read(target.lock, target.machine, target.python))
    needs = platforms.needs(target.lock.name, target.machine)
    return f"{target}: {count} wheels{f', about {needs.megabytes} MB' if needs else ''}"


def fill(
    project: Path, folder: Path, machines: Sequence[str], dev: bool, debs: Mapping[str, Mapping[str, str]]
) -> None:
    """Fetch what the folder lacks, and write its manifest; prints a line for each set that is complete.

    `debs`: the Debian packages of docker/debs, image -> file name -> SHA-256. Files that are right are kept; those of
    an earlier lock that nothing needs any more are removed. Raises MissingError (a package cannot be fetched),
    DataError (a file of the folder is not the one that a lock names) and ConfigError.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder. Name another one")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        files.remove_leftovers(folder / MANIFEST)
        manifest = wheelhouse.read(folder) or Manifest(locks={}, files=[])
        present = list(_wheels(folder))
        wanted = targets(project, machines, dev)
        _refuse_wrong(wanted, present)
        for lock in dict.fromkeys(target.lock for target in wanted):
            _begin(folder, lock, manifest)
            for target in wanted:
                if target.lock == lock:
                    present += _fetch(folder, target, present)
                    _note(folder, manifest, target.need, {w.path.name: w.sha256 for w in _right(target, present)})
                    print(f"{target}: {len(locks.read(*target))} wheels")
            _write(folder, manifest)
            files.write_text(folder / lock.name, lock.read_text(encoding="utf-8"))
        _note(folder, manifest, Need(lock=PINS, machine="any", python=""), _copy_debs(project, folder, debs))
        _write(folder, manifest)
        _remove_unneeded(folder, manifest)
        _write(folder, manifest)
    size = sum(entry.size for entry in manifest.files)
    print(f"done: {folder}, {len(manifest.files)} files, {size / 1e6:.0f} MB, listed in {MANIFEST}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other processes from filling the folder too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(
            f"another command is filling {folder}. Wait for it, then run the same command again"
        ) from None
    finally:
        os.close(descriptor)


def _wheels(folder: Path) -> Iterator[Wheel]:
    for path in sorted(folder.glob("*.whl")):
        with contextlib.suppress(InvalidWheelFilename, InvalidVersion):
            name, version, _, _ = parse_wheel_filename(path.name)
            yield Wheel(path, name, version, files.sha256_of(path))


def _begin(folder: Path, lock: Path, manifest: Manifest) -> None:
    """Say that the folder does not have the wheels of this lock yet, if it was made for another one."""
    digest = files.sha256_of(lock)
    if manifest.locks.get(lock.name) != digest:
        (folder / lock.name).unlink(missing_ok=True)
        for entry in manifest.files:
            entry.needed_by = [need for need in entry.needed_by if need.lock != lock.name]
        manifest.locks[lock.name] = digest
        _write(folder, manifest)


def _fits(wheel: Wheel, package: Locked, target: Target) -> bool:
    """Whether a wheel, by its file name, is one of this package that the target can install."""
    if (wheel.name, wheel.version) != (canonicalize_name(package.name), Version(package.version)):
        return False
    glibc = locks.glibc_of(wheel.path.name, target.machine, target.python)
    return glibc is not None and glibc <= target.glibc


def _right(target: Target, present: Sequence[Wheel]) -> list[Wheel]:
    """The wheels of the folder that the target takes."""
    packages = locks.read(*target)
    return [w for w in present if any(_fits(w, package, target) and w.sha256 in package.sha256 for package in packages)]


def _missing(target: Target, present: Sequence[Wheel]) -> list[Locked]:
    """The packages of which the folder has no wheel for the target."""
    right = {(wheel.name, wheel.version) for wheel in _right(target, present)}
    packages = locks.read(*target)
    return [p for p in packages if (canonicalize_name(p.name), Version(p.version)) not in right]


def _refuse_wrong(wanted: Sequence[Target], present: Sequence[Wheel]) -> None:
    """Raise DataError if a file has the name of a wheel that a lock names, and not its content."""
    wrong = [
        f"{wheel.path} (SHA-256 {wheel.sha256})"
        for wheel in present
        if any(
            _fits(wheel, package, target) and wheel.sha256 not in package.sha256
            for target in wanted
            for package in locks.read(*target)
        )
    ]
    if wrong:
        raise DataError(
            f"not the files that the locks name: {some(wrong, 3)}. Remove them, then run the same command again"
        )


def _fetch(folder: Path, target: Target, present: Sequence[Wheel]) -> list[Wheel]:
    """The wheels that pip fetched into the folder. Raises MissingError."""
    missing = _missing(target, present)
    if not missing:
        return []
    _require_pip()
    venvs.say(f"{target}: fetching {len(missing)} of {len(locks.read(*target))} wheels ...")
    own = list(filter(locks.is_of_own_index, missing))
    others = [package for package in missing if package not in own]
    with files.staged(folder / "fetched") as scratch:
        scratch.mkdir()
        for packages, index in ((own, stages.TORCH_INDEX), (others, "")):
            if packages:
                _download(scratch, target, packages, index)
        fetched = list(_wheels(scratch))
        if absent := _missing(target, [*present, *fetched]):
            names = some([f"{package.name}=={package.version}" for package in absent], 3)
            raise MissingError(f"pip did not fetch {names} for {target}. Run the same command again")
        return [_keep(folder, wheel) for wheel in fetched]


def _keep(folder: Path, wheel: Wheel) -> Wheel:
    """Move a complete wheel to its place."""
    with open(wheel.path, "rb") as written:
        os.fsync(written.fileno())
    os.replace(wheel.path, folder / wheel.path.name)
    return wheel._replace(path=folder / wheel.path.name)


def _download(scratch: Path, target: Target, packages: Sequence[Locked], own_index: str) -> None:
    """`own_index`: where to look too if the places that pip knows have no such build. Raises MissingError."""
    requirements = scratch / "requirements.txt"
    files.write_text(requirements, "".join(map(locks.text, packages)))
    python = "{}{}".format(*target.python)
    glibc = (target.glibc[0], target.glibc[1])
    command = ["download", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", str(scratch)]
    command += ["--python-version", python, "--implementation", "cp", "--abi", f"cp{python}"]
    for tag in locks.platform_tags(target.machine, glibc):
        command += ["--platform", tag]
    command += ["-r", str(requirements)]
    environment = Path(sys.prefix)
    try:
        try:
            venvs.with_progress(environment, command, len(packages))
        except venvs.PipError as error:
            if not own_index or error.cause != venvs.NOT_LISTED:
                raise
            venvs.say(f"looking for {some([p.name for p in packages], 3)} on {own_index} ...")
            venvs.with_progress(environment, [*command, "--extra-index-url", own_index], len(packages))
    except venvs.PipError as error:
        for line in error.lines:
            venvs.say(f"  {line}")
        reason = str(error).rstrip(".")
        where = f", and so was {own_index}" if own_index else ""
        raise MissingError(
            f"pip could not fetch the wheels of {target}: {reason}. The places where pip looks (PIP_INDEX_URL, "
            f"PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) were asked{where}. What is there already is kept: see to them and "
            "the network, then run the same command again"
        ) from None


def _require_pip() -> None:
    """Raise MissingError if this Python's pip cannot fetch for other machines."""
    process = venvs.run([str(venvs.python_of(Path(sys.prefix))), "-m", "pip", "--version"])
    version = re.match(r"pip ([0-9]{1,4})\.([0-9]{1,4})", process.stdout)
    if version is None:
        raise MissingError(f"the pip of {sys.executable} does not run. Run this in a clone of the project, with ./inv")
    if (contract.whole(version[1]), contract.whole(version[2])) < _PIP_VERSION:
        raise MissingError(
            f"{version[0]} of Python {platform.python_version()} cannot fetch for other machines. Put a newer Python "
            f"on PATH as python3, remove {sys.prefix}, then run the same command again"
        )


def _note(folder: Path, manifest: Manifest, need: Need, digests: Mapping[str, str]) -> None:
    """Write into the manifest which files a need has, by their SHA-256, in place of what was there of it."""
    by_file = {entry.file: entry for entry in manifest.files}
    for entry in manifest.files:
        entry.needed_by = [known for known in entry.needed_by if known != need]
    for name, sha256 in digests.items():
        needed_by = [*(by_file[name].needed_by if name in by_file else []), need]
        size = (folder / name).stat().st_size
        by_file[name] = WheelhouseFile(
            file=name, size=size, sha256=sha256, needed_by=sorted(needed_by, key=msgspec.structs.astuple)
        )
    manifest.files = list(by_file.values())


def _write(folder: Path, manifest: Manifest) -> None:
    manifest.files.sort(key=lambda entry: entry.file)
    files.write_text(folder / MANIFEST, schema.text(manifest))


def _remove_unneeded(folder: Path, manifest: Manifest) -> None:
    """Remove the files that the manifest lists, and that nothing needs any more."""
    for entry in [entry for entry in manifest.files if not entry.needed_by]:
        venvs.say(f"removing {entry.file}: nothing needs it any more")
        (folder / entry.file).unlink(missing_ok=True)
        manifest.files.remove(entry)


def _copy_debs(project: Path, folder: Path, debs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Copy the Debian packages that the user pinned for images; returns their names in the folder, and SHA-256."""
    digests = {}
    for image, packages in debs.items():
        for name, sha256 in packages.items():
            source, target = project / "docker" / DEBS / image / name, f"{DEBS}/{image}/{name}"
            if not source.is_file():
                raise MissingError(f"{source} is in {PINS}, and not there. Put it back, or run: invoke images --lock")
            if files.sha256_of(source) != sha256:
                raise DataError(f"{source} is not the file of {PINS}. Put that back, or run: invoke images --lock")
            with files.new_file(folder / target) as temporary:
                files.link_or_copy(source, temporary, copy=True)
            digests[target] = sha256
    return digests
