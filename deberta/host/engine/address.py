"""Where the Docker engine of this machine listens: one reading of DOCKER_HOST, contexts and the usual sockets.

The SDK is not needed for it, so that `ping` and `engine` can share it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any, Mapping, NamedTuple
from urllib.parse import urlsplit

from deberta.core import schema
from deberta.core.errors import ConfigError

DEFAULT_SOCKET = "/var/run/docker.sock"
DEFAULT_CONTEXT = "default"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PORT, TLS_PORT = 2375, 2376  # of an address without one, as the docker command has it
_WRITE = "Write unix:///PATH of a socket, or tcp://127.0.0.1:PORT"


class Endpoint(NamedTuple):
    """`url`: unix:///PATH, ssh://... or tcp://HOST:PORT. `source`: what names it, empty for a usual socket.

    `tls`: it takes certificates: those of the docker command's `context`, or DOCKER_CERT_PATH's where that is empty.
    """

    url: str
    source: str = ""
    tls: bool = False
    context: str = ""

    @property
    def path(self) -> str:
        """The socket's, empty for an address of a network."""
        return self.url[len("unix://") :] if self.url.startswith("unix://") else ""

    @property
    def text(self) -> str:
        return f"{self.url} ({self.source})" if self.source else self.url

    @property
    def is_remote(self) -> bool:
        """Whether its address alone says that the engine is another machine's."""
        parts = urlsplit(self.url)
        return parts.scheme == "ssh" or (not self.path and parts.hostname not in LOOPBACK)


def endpoint(variables: Mapping[str, str] = os.environ) -> Endpoint:
    """DOCKER_HOST, else the docker command's context, else a usual socket, which may not be there. Raises ConfigError.

    Of the usual sockets the first is taken that this user may write to, else the first that is there.
    """
    if host := variables.get("DOCKER_HOST"):
        tls = bool(variables.get("DOCKER_TLS_VERIFY") or variables.get("DOCKER_CERT_PATH"))
        return parse(host, "DOCKER_HOST", tls)
    folder = Path(variables.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker"))
    name, source = variables.get("DOCKER_CONTEXT") or "", "DOCKER_CONTEXT"
    if not name:
        name, source = _current_context(folder), f"currentContext in {folder / 'config.json'}"
    if name and name != DEFAULT_CONTEXT:
        return _of_context(folder, name, source)
    present = [path for path in usual_sockets(variables) if os.path.exists(path)]
    usable = [path for path in present if os.access(path, os.W_OK)]
    return Endpoint(f"unix://{(usable or present or [DEFAULT_SOCKET])[0]}")


def usual_sockets(variables: Mapping[str, str]) -> tuple[str, ...]:
    """Where engines of this machine listen: Docker's, then those of this user, Docker's and Podman's, then Podman's."""
    user = variables.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    return (DEFAULT_SOCKET, f"{user}/docker.sock", f"{user}/podman/podman.sock", "/run/podman/podman.sock")


def parse(host: str, source: str = "", tls: bool = False, context: str = "") -> Endpoint:
    """An address in the docker command's forms; unix:/PATH and HOST:PORT are taken, too. Raises ConfigError."""
    problem = f"the Docker engine's address {host!r}{f' ({source})' if source else ''}"
    scheme, colon, rest = host.strip().partition(":")
    if colon and scheme.lower() == "unix":
        path = rest[2:] if rest.startswith("//") else rest
        if not path.startswith("/") or path.strip("/") == "":
            raise ConfigError(f"{problem} names no socket by its whole path. {_WRITE}")
        return Endpoint(f"unix://{path}", source, context=context)
    try:
        parts = urlsplit(host.strip() if "://" in host else f"tcp://{host.strip()}")
        port, name = parts.port, parts.hostname
    except ValueError as error:
        raise ConfigError(f"{problem} cannot be read: {error}. {_WRITE}") from None
    if parts.scheme == "npipe":
        raise ConfigError(f"{problem} is a pipe of Windows, and this is not Windows. {_WRITE}")
    if parts.scheme == "fd":
        raise ConfigError(f"{problem} is for dockerd, which gets it from systemd; no client can use it. {_WRITE}")
    if parts.scheme not in ("tcp", "http", "https", "ssh") or not name:
        raise ConfigError(f"{problem} is no address that is known here. {_WRITE}")
    if parts.scheme == "ssh":
        return Endpoint(host.strip(), source, context=context)
    tls = tls or parts.scheme == "https"
    if port is None:
        port = TLS_PORT if tls else PORT
    netloc = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    return Endpoint(f"tcp://{netloc}{parts.path.rstrip('/')}", source, tls, context)


def _current_context(folder: Path) -> str:
    """The context that the docker command uses; empty if its settings name none, or cannot be read, as it has it."""
    with contextlib.suppress(OSError, ValueError):
        name = schema.read_json(folder / "config.json", dict[str, Any]).get("currentContext")
        return name if isinstance(name, str) else ""
    return ""


def _of_context(folder: Path, name: str, source: str) -> Endpoint:
    """The endpoint of a context, as `docker context create` keeps it. Raises ConfigError."""
    number, another = hashlib.sha256(name.encode()).hexdigest(), "Set DOCKER_HOST, or DOCKER_CONTEXT=default"
    if source != "DOCKER_CONTEXT":
        another += ", or run: docker context use default"
    meta = folder / "contexts" / "meta" / number / "meta.json"
    try:
        content = schema.read_json(meta, dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        reason = f"there is no docker context {name!r} ({source}): {meta} is missing"
        raise ConfigError(f"{reason}. See: docker context ls. {another}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"the docker context {name!r} ({source}) cannot be read: {error}. {another}") from None
    try:
        host = content["Endpoints"]["docker"]["Host"]
    except (KeyError, TypeError):
        host = None
    if not isinstance(host, str) or not host:
        raise ConfigError(f"the docker context {name!r} ({source}) names no Docker engine, says {meta}. {another}")
    has_certificates = (folder / "contexts" / "tls" / number / "docker").is_dir()
    return parse(host, f"docker context {name!r}, {source}", has_certificates, name)
