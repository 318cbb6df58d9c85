"""Whether a Docker engine answers, asked in a fraction of a second and without the SDK, which is slow to import.

What it finds out about an address that does not answer is what `engine.connect` says, too.
"""

from __future__ import annotations

import os
import socket
import stat
from typing import Any, Mapping, NamedTuple, Optional
from urllib.parse import urlsplit

from deberta.core.errors import ConfigError
from deberta.host.engine import address, socket_access
from deberta.host.engine.address import Endpoint

SECONDS = 0.2  # to connect, and again for the answer
_REQUEST = b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n"
_START = "sudo systemctl start docker (rootless: systemctl --user start docker)"


class PingResult(NamedTuple):
    """`answers`: None if it is not known, or it takes the SDK to ask. `problem`: why not, and what to do.

    `is_closed`: there is an engine, or was, and this user may not use it.
    """

    answers: Optional[bool]
    problem: str = ""
    is_closed: bool = False


def answers(variables: Mapping[str, str] = os.environ) -> Optional[bool]:
    """Whether an engine of this machine answers. None: not known, or it takes the SDK (TLS) to ask it."""
    return look(variables).answers


def look(variables: Mapping[str, str] = os.environ) -> PingResult:
    """The same, with the reason."""
    try:
        where = address.endpoint(variables)
    except ConfigError as error:
        return PingResult(False, str(error))
    if where.is_remote:  # its folders would be another machine's
        return PingResult(False, f"the Docker engine at {where.text} is remote")
    return ask(where)


def ask(where: Endpoint, seconds: float = SECONDS) -> PingResult:
    """Whether an engine answers at an address of this machine. `seconds`: to connect, and again for the answer."""
    if where.tls:
        return PingResult(None, f"{where.text} takes certificates")
    family, target = _target(where)
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            connection.connect(target)
            connection.sendall(_REQUEST)
            return _judge(where, _answer(connection))
    except socket.timeout:
        return PingResult(None, f"no Docker engine answers at {where.text} within {seconds:g} s. See the engine's log")
    except PermissionError:
        reason, advice = socket_access.refusal(where.path, socket_access.caller())
        problem = f"the Docker engine's socket {where.text} may not be used: {reason}. {advice}"
        return PingResult(False, problem, is_closed=True)
    except ConnectionRefusedError:
        if not where.path:
            return _none(where, "nothing listens there", f"Start the engine, {_correct(where)}")
        if not _is_socket(where.path):
            return _none(where, "that is no socket", f"Name the engine's socket: {_correct(where)}")
        return _none(where, "the socket is there, and no engine runs behind it", f"Start it: {_START}")
    except (FileNotFoundError, NotADirectoryError):
        return _none(where, "there is no such socket", f"Start an engine: {_START}, {_correct(where)}")
    except OSError as error:
        return _none(where, error.strerror or str(error), f"Start an engine, {_correct(where)}")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _target(where: Endpoint) -> tuple[int, Any]:
    """The family and address of a socket."""
    if where.path:
        return socket.AF_UNIX, where.path
    parts = urlsplit(where.url)
    return socket.AF_INET6 if parts.hostname == "::1" else socket.AF_INET, (parts.hostname, parts.port)


def _answer(connection: socket.socket) -> bytes:
    """The first bytes, and of a refusal the reason, too."""
    answer = connection.recv(1024)
    if b" 400 " in answer[:16]:
        answer += connection.recv(1024)
    return answer


def _judge(where: Endpoint, answer: bytes) -> PingResult:
    status = answer.split(b"\r\n")[0].split(b" ")
    is_http = status[0].startswith(b"HTTP/")
    if is_http and status[1:2] == [b"200"]:
        return PingResult(True)
    if answer[:1] == b"\x15" or b"HTTPS server" in answer:  # a TLS alert, and what Go's servers say
        advice = "Set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH, or make the context with its certificates"
        return _none(where, "it speaks TLS", advice)
    code = status[1].decode("ascii", "replace")[:20] if is_http and len(status) > 1 else ""
    reason = f"it answers with status {code}" if code else "what answers there is no Docker engine"
    return _none(where, reason, f"See the engine's log, {_correct(where)}")


def _none(where: Endpoint, reason: str, advice: str) -> PingResult:
    return PingResult(False, f"no Docker engine answers at {where.text}: {reason}. {advice}")


def _correct(where: Endpoint) -> str:
    if where.context:
        return f"or correct the docker context {where.context!r}, or set DOCKER_CONTEXT=default"
    return "or correct DOCKER_HOST" if where.source else "or set DOCKER_HOST"
