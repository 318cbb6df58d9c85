"""The build context of an image: a tar of its files, and for builder stages alone the way to packages."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Callable, Iterator
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name

from deberta.core.errors import DataError
from deberta.host.environments import locks, platforms, stages, wheelhouse
from deberta.host.images.definition import EPOCH, BuildSettings, Image, labels

NETWORK = "network"  # folder of the context that builder stages copy to /build


def write_context(target: IO[bytes], image: Image, settings: BuildSettings, label: str) -> None:
    """Write the build context as a reproducible tar: sorted names, no times, no owners. Raises DataError.

    `label`: NAME=VALUE, which becomes the first instruction of every stage in the Dockerfile.
    """
    name, _, value = label.partition("=")
    _write(target, image, settings, lambda text: re.sub(r"(?m)^FROM .*$", rf'\g<0>\nLABEL {name}="{value}"', text))


def write_folder(folder: Path, image: Image, settings: BuildSettings) -> None:
    """Write the build context as a new folder, for any program that builds Dockerfiles. Raises DataError.

    Base, time and labels are in its Dockerfile. Of the settings it has the wheels, and whether there is nothing else.
    """
    settings = BuildSettings(wheelhouse=settings.wheelhouse, offline=settings.offline)
    with tempfile.TemporaryFile(dir=folder.parent) as packed:
        _write(packed, image, settings, lambda text: _whole_dockerfile(text, image))
        packed.seek(0)
        with tarfile.open(fileobj=packed) as archive:
            folder.mkdir()
            for member in archive:  # of ours alone
                archive.extract(member, folder)
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (image.epoch, image.epoch))


def _whole_dockerfile(text: str, image: Image) -> str:
    """A Dockerfile that needs no build arguments, and labels the image."""
    for name, value in (("BASE", image.base), (EPOCH, str(image.epoch))):
        text = re.sub(rf"(?m)^ARG {name}$", f"ARG {name}={value}", text)
    escaped = {name: re.sub(r'(["$\\])', r"\\\1", value) for name, value in labels(image).items()}
    return text + "".join(f'LABEL {name}="{value}"\n' for name, value in escaped.items())


def _write(target: IO[bytes], image: Image, settings: BuildSettings, dockerfile: Callable[[str], str]) -> None:
    """Write the context as a tar. `dockerfile`: its Dockerfile's text from the project's. Raises DataError."""
    folders = [*image.folders, *([NETWORK, f"{NETWORK}/wheelhouse"] if image.lock else [])]
    with tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for file in sorted(image.files, key=lambda file: file.name):
            if file.name == "Dockerfile":
                content = file.path.read_bytes()
                sha256 = hashlib.sha256(content).hexdigest()
                _add(archive, file.name, dockerfile(content.decode()).encode())
            else:
                sha256 = _add_file(archive, file.name, file.path, file.executable)
            if sha256 != file.sha256:
                raise DataError(f"{file.path} changed while it was packed. Run the same command again")
        if image.lock:
            for file_name, content in sorted({**_network(settings), **_needs(image)}.items()):
                _add(archive, f"{NETWORK}/{file_name}", content)
            for wheel in _wheels(settings.wheelhouse, image):
                _add_file(archive, f"{NETWORK}/wheelhouse/{wheel.name}", wheel)


def _network(settings: BuildSettings) -> dict[str, bytes]:
    """The files that docker/install-packages reads."""
    conf = f"[global]\nfind-links = /build/{NETWORK}/wheelhouse\n"
    if settings.offline:
        conf += "no-index = true\n"
    elif settings.index_url:
        conf += f"index-url = {settings.index_url}\n"
        if settings.index_url.startswith("http://"):  # the user chose an address without encryption
            conf += f"trusted-host = {urlsplit(settings.index_url).netloc.rpartition('@')[2]}\n"
    proxies = {name: getattr(settings, name) for name in ("http_proxy", "https_proxy", "no_proxy")}
    variables = [f"{key}={value}\n" for name, value in proxies.items() if value for key in (name, name.upper())]
    contents = {
        "pip.conf": conf.encode(),
        "environment": "".join(variables).encode(),
        "torch-index": b"" if settings.offline else stages.TORCH_INDEX.encode(),
    }
    if settings.ca:
        contents["ca.pem"] = settings.ca.read_bytes()
    return contents


def _needs(image: Image) -> dict[str, bytes]:
    """What docker/install-packages is told of the lock: the glibc it needs, and torch if PyTorch alone has it."""
    assert image.lock is not None
    needs = platforms.needs(image.lock.name, image.arch)
    own = locks.of_own_index(image.lock, image.arch)
    return {
        "glibc": f"{needs.glibc} {needs.package}\n".encode() if needs else b"",
        "torch.lock": "".join(map(locks.text, own)).encode(),
    }


def _wheels(folder: Path | None, image: Image) -> Iterator[Path]:
    """The wheels of a folder that a lock names for the image's machine; it may be a mirror with many others.

    Those of a folder that `invoke wheelhouse` filled are checked: raises its errors.
    """
    assert image.lock is not None
    if folder and (folder / wheelhouse.MANIFEST).is_file():
        yield from wheelhouse.check(folder, image.lock, image.arch)
        return
    versions = {(canonicalize_name(name), version) for name, version, _ in locks.of_any(image.lock, [image.arch])}
    for path in sorted(folder.glob("*.whl")) if folder else ():
        name, _, rest = path.name.partition("-")
        machines = path.stem.rpartition("-")[2].split(".")
        if (canonicalize_name(name), rest.partition("-")[0]) in versions and any(
            machine == "any" or machine.endswith(f"_{image.arch}") for machine in machines
        ):
            yield path


class _HashingReader:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.digest.update(chunk)
        return chunk


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _add_file(archive: tarfile.TarFile, name: str, path: Path, executable: bool = False) -> str:
    """Add a file and return the SHA-256 of the bytes that were packed."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = path.stat().st_size, 0o755 if executable else 0o644
    with open(path, "rb") as file:
        reader = _HashingReader(file)
        archive.addfile(entry, reader)
    return reader.digest.hexdigest()
