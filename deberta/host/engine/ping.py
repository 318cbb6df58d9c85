"""Whether a Docker engine answers, asked in a fraction of a second and without the SDK, which is slow to import."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any, Mapping, Optional
from urllib.parse import urlsplit

from deberta.core import schema

DEFAULT_SOCKET = "/var/run/docker.sock"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SECONDS = 0.2  # to connect, and again for the answer
_REQUEST = b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n"


def usual_sockets(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Where engines of this machine listen: Docker's, then those of this user, Docker's and Podman's, then Podman's."""
    user = variables.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    return (DEFAULT_SOCKET, f"{user}/docker.sock", f"{user}/podman/podman.sock", "/run/podman/podman.sock")


def answers(variables: Mapping[str, str] = os.environ) -> Optional[bool]:
    """Whether an engine of this machine answers. None: not known, or it takes the SDK (a context, TLS) to ask it."""
    host = variables.get("DOCKER_HOST")
    if not host:
        if _has_context(variables):
            return None
        path = next((path for path in usual_sockets(variables) if os.path.exists(path)), "")
        return _ask(socket.AF_UNIX, path) if path else False
    try:
        parts = urlsplit(host if "://" in host else f"tcp://{host}")
        if parts.scheme == "unix":
            return _ask(socket.AF_UNIX, parts.path)
        if parts.hostname not in LOOPBACK:
            return False  # its folders would be another machine's
        is_plain = parts.scheme in ("tcp", "http") and not variables.get("DOCKER_TLS_VERIFY")
        family = socket.AF_INET6 if parts.hostname == "::1" else socket.AF_INET
        return _ask(family, (parts.hostname, parts.port or 2375)) if is_plain else None
    except ValueError:  # no address
        return False


def _has_context(variables: Mapping[str, str]) -> bool:
    """Whether the docker command uses another context than the default one, as far as its settings can be read."""
    name: Any = variables.get("DOCKER_CONTEXT")
    if not name:
        folder = Path(variables.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"))
        with contextlib.suppress(OSError, ValueError):
            name = schema.read_json(folder / "config.json", dict[str, Any]).get("currentContext")
    return bool(name) and name != "default"


def _ask(family: int, address: Any) -> Optional[bool]:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(SECONDS)
            connection.connect(address)
            connection.sendall(_REQUEST)
            status = connection.recv(64).split(b"\r\n")[0].split(b" ")
            return status[0].startswith(b"HTTP/") and status[1:2] == [b"200"]
    except socket.timeout:
        return None
    except OSError:
        return False
