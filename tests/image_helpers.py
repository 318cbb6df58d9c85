"""A small project to plan images in, and packages that stand in for real ones, so that no build has to fetch any."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deberta.host.images import pins
from tests.mnli_helpers import REPOSITORY

ARCH = "x86_64"
# What check-cann imports, by the names of the wheels that bring it.
ATC_MODULES = {
    "numpy": "numpy", "decorator": "decorator", "sympy": "sympy", "cffi": "cffi", "protobuf": "google/protobuf",
    "attrs": "attr", "cython": "Cython", "pyyaml": "yaml", "pathlib2": "pathlib2", "scipy": "scipy",
    "requests": "requests", "psutil": "psutil", "absl-py": "absl",
}  # fmt: skip


def make_project(folder: Path) -> Path:
    """A copy of docker/ and of one-line locks, pinned; nothing of a user's is in it."""
    (folder / "docker").mkdir(parents=True)
    for path in (REPOSITORY / "docker").iterdir():
        if path.is_file() and path.name != pins.OVERRIDES.name:
            shutil.copy2(path, folder / "docker")
    for name in ("requirements-stages.lock", "requirements-runtime-cpu.lock", "requirements-compile.lock"):
        (folder / name).write_text(f"one==1 \\\n    --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    pins.lock(folder, None, ARCH)
    return folder


def bring(project: Path, path: Path, content: bytes = b"#!/bin/sh\n", pin: bool = True) -> Path:
    """Put a user's file in its place."""
    target = project / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    if pin:
        pins.lock(project, None, ARCH)
    return target


def elf(machine: int) -> bytes:
    """The head of a 64-bit little-endian program for a machine, by its number in the ELF standard."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)


def make_wheel(folder: Path, name: str, package: str = "", version: str = "1") -> Path:
    """A wheel for any machine with one empty package in it."""
    distribution = name.replace("-", "_")
    wheel = folder / f"{distribution}-{version}-py3-none-any.whl"
    info = f"{distribution}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{package or distribution}/__init__.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def locked(wheels: dict[str, Path]) -> str:
    """The text of a lock of wheels by their packages' names."""
    return "".join(
        f"{name}=={wheel.name.split('-')[1]} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
        for name, wheel in sorted(wheels.items())
    )


def make_deb(folder: Path) -> Path:
    """A Debian package that puts one file, /brought, in place."""
    target = folder / "brought_1_all.deb"
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name, "deb")
        (root / "DEBIAN").mkdir(parents=True)
        control = "Package: brought\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: a stand-in\n"
        (root / "DEBIAN" / "control").write_text(control, encoding="utf-8")
        (root / "brought").write_text("by a package\n", encoding="utf-8")
        subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(root), str(target)], check=True)
    return target


@contextlib.contextmanager
def mirror(wheel: Path) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A proxy before a package index of one wheel: its address, and what it is asked (URL, Authorization)."""
    asked: list[tuple[str, str]] = []
    with serving(type("OneWheel", (_Mirror,), {"wheel": wheel, "asked": asked})) as address:
        yield f"http://{address}", asked


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """127.0.0.1:PORT of a server on this machine that answers as its handler does."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Mirror(http.server.BaseHTTPRequestHandler):
    wheel: Path
    asked: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization", "")))
        name = self.wheel.name
        page = f'<a href="{name}#sha256={hashlib.sha256(self.wheel.read_bytes()).hexdigest()}">{name}</a>'
        body = self.wheel.read_bytes() if self.path.endswith(".whl") else page.encode()
        self.send_response(200 if f"/{name.partition('-')[0]}/" in self.path else 404)
        self.send_header("Content-Type", "application/zip" if self.path.endswith(".whl") else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
