"""Which engine is used, which is refused, what its errors become, and whose containers are removed."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterator

import docker
import docker.errors
import pytest
import requests

from deberta.core.errors import ConfigError, MissingError, StageError
from deberta.host.cli import auto
from deberta.host.engine import address, api_version, engine, ping, reaper, reaper_process, socket_access
from deberta.host.engine.containers import Container, User
from tests.engine_server import NoReaper
from tests.pipeline_helpers import Workspace, environment

ROOT = type("Group", (), {"gr_name": "root"})


@pytest.fixture(autouse=True)
def _no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A caller with no settings of Docker's, on a machine without any of the usual sockets."""
    for name in [name for name in os.environ if name.startswith("DOCKER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("HOME", str(tmp_path))
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: not str(path).startswith(("/var/run", "/run")) and exists(path))


def _context(tmp_path: Path, name: str, host: str) -> None:
    folder = tmp_path / "docker/contexts/meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    content = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}
    (folder / "meta.json").write_text(json.dumps(content))
    (tmp_path / "docker/config.json").write_text("{}")


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("tcp://192.0.2.1:2375", "the Docker engine at tcp://192.0.2.1:2375 is remote"),
        ("192.0.2.1:2375", "the Docker engine at tcp://192.0.2.1:2375 is remote"),
        ("ssh://me@there", "is remote"),
        ("ssh://localhost", "is remote"),
        ("https://engine.invalid:2376", "the workspace is on this one"),
    ],
)
def test_a_remote_engine_is_refused_and_not_asked(monkeypatch: pytest.MonkeyPatch, host: str, says: str) -> None:
    def called(*_: Any, **__: Any) -> None:
        raise AssertionError("it was asked")

    monkeypatch.setenv("DOCKER_HOST", host)
    monkeypatch.setattr(docker, "DockerClient", called)
    with pytest.raises(ConfigError, match=says) as raised:
        engine.connect()
    assert raised.value.exit_code == 2 and "Use --executor local" in str(raised.value)


def test_the_command_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "settings.yaml").write_text(json.dumps({"workspace": str(tmp_path)}))
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    assert environment()["DOCKER_HOST"] == "tcp://192.0.2.1:2375"
    said = Workspace(tmp_path).fail(2, "images", "--dry")
    assert "remote" in said and "DOCKER_HOST=unix:///var/run/docker.sock" in said


def test_a_loopback_address_that_leads_to_another_machine_is_refused() -> None:
    for host in ("tcp://localhost:2375", "127.0.0.1:2375", "tcp://127.0.0.1:2375", "tcp://[::1]:2375"):
        with pytest.raises(ConfigError, match="is the Docker engine of the machine 'elsewhere'"):
            engine.check_local(host, lambda: "elsewhere")
        engine.check_local(host, socket.gethostname)
    engine.check_local("unix:///tmp/any.sock", lambda: "is not asked")


def test_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix:{tmp_path}/none.sock")
    says = (
        r"answers at unix:///.*none\.sock \(DOCKER_HOST\): there is no such socket\. Start .* or use --executor local"
    )
    with pytest.raises(MissingError, match=says):
        engine.connect()
    with pytest.raises(ConfigError, match="DOCKER_CERT_PATH"):
        engine.address({"DOCKER_HOST": "tcp://127.0.0.1:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/none"})


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"DOCKER_HOST": "tcp://[::1"}, "cannot be read: Invalid IPv6 URL"),
        ({"DOCKER_HOST": "tcp://127.0.0.1:99999"}, "cannot be read: Port out of range"),
        ({"DOCKER_HOST": "npipe:////./pipe/docker_engine"}, r"\(DOCKER_HOST\) is a pipe of Windows"),
        ({"DOCKER_HOST": "fd://"}, "is for dockerd"),
        ({"DOCKER_HOST": "/var/run/docker.sock"}, "no address that is known here. Write unix:///PATH of a socket"),
        ({"DOCKER_HOST": "unix://run/docker.sock"}, "names no socket by its whole path"),
        ({"DOCKER_HOST": "unix://"}, "names no socket by its whole path"),
        ({"DOCKER_CONTEXT": "absent"}, r"no docker context 'absent' \(DOCKER_CONTEXT\): .*meta.json is missing"),
        ({"currentContext": "gone"}, r"context 'gone' \(currentContext in .*config.json\).*docker context use default"),
        ({"DOCKER_CONTEXT": "empty"}, "names no Docker engine, says .*meta.json"),
    ],
)
def test_a_wrong_address_is_told_with_where_it_comes_from(tmp_path: Path, variables: dict[str, str], says: str) -> None:
    """The fast look and the SDK's connection read it by the same function."""
    _context(tmp_path, "empty", "")
    variables = {"DOCKER_CONFIG": str(tmp_path / "docker"), **variables}
    if name := variables.pop("currentContext", ""):
        (tmp_path / "docker/config.json").write_text(json.dumps({"currentContext": name}))
    with pytest.raises(ConfigError, match=says) as raised:
        engine.address(variables)
    assert ping.look(variables) == (False, str(raised.value), False)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("unix:/run/Me/docker.sock", "unix:///run/Me/docker.sock"),
        ("unix:///run/Me/docker.sock", "unix:///run/Me/docker.sock"),
        ("127.0.0.1:2375", "tcp://127.0.0.1:2375"),
        ("tcp://localhost", "tcp://localhost:2375"),
        ("https://[::1]", "tcp://[::1]:2376"),
    ],
)
def test_forms_of_an_address(written: str, read: str) -> None:
    assert address.endpoint({"DOCKER_HOST": written}).url == read


@pytest.mark.parametrize(
    ("mode", "group", "user", "says"),
    [
        (0o660, 999, ({1000}, {1000}), "for the group 999, which me is not in. Run: sudo usermod -aG 999 me, and log"),
        (0o660, 999, ({1000}, {999}), "was put into its group 999 after this session began. Log in again, or run"),
        (0o660, 999, ({999}, {999}), "the system refuses it, though me is in its group 999. See whether SELinux"),
        (0o660, 0, ({1000}, {1000}), r"it is root's alone \(mode 660, group root\). Run this command as root, or use"),
        (0o600, 999, ({999}, {999}), r"it is root's alone \(mode 600, group 999\)"),
    ],
)  # fmt: skip
def test_a_socket_that_may_not_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int, group: int, user: tuple[set[int], set[int]], says: str
) -> None:
    class Refusing(socket.socket):
        def connect(self, _: Any) -> None:
            raise PermissionError(13, "Permission denied")

    path = tmp_path / "docker.sock"
    path.touch()
    status = os.stat_result((mode, 0, 0, 1, 0, group, 0, 0, 0, 0))
    me = socket_access.Caller("me", frozenset(user[0]), frozenset(user[1]))
    monkeypatch.setattr(socket_access, "status_of", lambda _: status)
    monkeypatch.setattr(socket_access, "caller", lambda: me)
    monkeypatch.setattr(socket, "socket", Refusing)
    monkeypatch.setattr(grp, "getgrgid", lambda number: (_ for _ in ()).throw(KeyError) if number else ROOT)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with pytest.raises(MissingError, match=rf"socket unix://{path} \(DOCKER_HOST\) may not be used: .*{says}"):
        engine.connect()
    assert auto.pick_executor(auto.AUTO) == ("local", "this user may not use the Docker engine: doctor says why")


def test_a_socket_without_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "docker.sock"))
    (tmp_path / "file").touch()
    for name, says in (("docker.sock", "and no engine runs behind it. Start it: sudo"), ("file", "that is no socket")):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/{name}")
        with pytest.raises(MissingError, match=says):
            engine.connect()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", "it speaks TLS. Set"),
        (b"\x15\x03\x01\x00\x02\x02\x50", "it speaks TLS"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "it answers with status 503"),
        (b"SSH-2.0-OpenSSH_9\r\n", "what answers there is no Docker engine"),
        (b"", "what answers there is no Docker engine"),
    ],
)  # fmt: skip
def test_what_answers_is_no_engine(monkeypatch: pytest.MonkeyPatch, answer: bytes, says: str) -> None:
    with _one_answer(answer) as port:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        with pytest.raises(MissingError, match=rf"at tcp://127.0.0.1:{port} \(DOCKER_HOST\): {says}"):
            engine.connect()


def test_tls_spoken_to_a_plain_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("DOCKER_TLS_VERIFY", ""), ("DOCKER_CERT_PATH", str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(docker.utils, "kwargs_from_env", lambda **_: {"tls": True})
    with _one_answer(b"HTTP/1.0 400 Bad Request\r\n\r\n") as port:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        assert ping.answers() is None
        with pytest.raises(MissingError, match=r"it speaks no TLS\. Unset DOCKER_TLS_VERIFY"):
            engine.connect()


@contextlib.contextmanager
def _one_answer(answer: bytes) -> Iterator[int]:
    """The port of a server that sends this to the first that asks."""

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


@pytest.mark.parametrize(
    ("newest", "oldest", "picked"),
    [("1.39", "1.12", "1.39"), ("1.41", "1.24", "1.41"), ("1.52", "1.44", "1.52"), ("1.70", "1.44", "1.52"),
     ("1.70", "1.60", "1.60"), ("1.45", None, "1.45")],
)  # fmt: skip
def test_the_version_that_is_spoken(newest: str, oldest: str | None, picked: str) -> None:
    assert api_version.pick({"ApiVersion": newest, "MinAPIVersion": oldest}, "x") == picked


def test_an_engine_that_is_too_old() -> None:
    with pytest.raises(
        MissingError, match=r"at x is 18\.06\.3-ce with API 1\.38; the oldest .* Docker 18\.09 with API 1\.39"
    ):
        api_version.pick({"Version": "18.06.3-ce", "ApiVersion": "1.38"}, "x")
    with pytest.raises(MissingError, match="does not say which version"):
        api_version.pick({"ApiVersion": "new"}, "x")


def test_the_address_is_the_docker_commands(tmp_path: Path) -> None:
    _context(tmp_path, "mine", "unix:///home/me/engine.sock")
    own = {"DOCKER_CONFIG": str(tmp_path / "docker")}
    assert engine.address({**own, "DOCKER_CONTEXT": "mine"})["base_url"] == "unix:///home/me/engine.sock"
    both = {"DOCKER_HOST": "unix:///other.sock", "DOCKER_CONTEXT": "mine"}
    assert engine.address({**own, **both})["base_url"] == "unix:///other.sock"
    (tmp_path / "docker/config.json").write_text(json.dumps({"currentContext": "mine"}))
    assert engine.address(own)["base_url"] == "unix:///home/me/engine.sock"
    assert engine.address({**own, "DOCKER_CONTEXT": "default"})["base_url"] == f"unix://{address.DEFAULT_SOCKET}"


def test_the_usual_sockets_are_tried(tmp_path: Path) -> None:
    variables = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert engine.address(variables) == {"base_url": f"unix://{address.DEFAULT_SOCKET}"}
    (tmp_path / "run/podman").mkdir(parents=True)
    (tmp_path / "run/podman/podman.sock").touch()
    assert engine.address(variables) == {"base_url": f"unix://{tmp_path}/run/podman/podman.sock"}
    (tmp_path / "run/docker.sock").touch()
    assert engine.address(variables) == {"base_url": f"unix://{tmp_path}/run/docker.sock"}


def _refused(explanation: str) -> docker.errors.APIError:
    return docker.errors.APIError("500 Server Error", requests.Response(), explanation)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (_refused("invalid mount config: bind source path does not exist: /x"), ConfigError, "does not see a folder"),
        (_refused("error gathering device information"), StageError, "refused trying: error gathering device"),
        (requests.exceptions.ConnectionError("gone"), StageError, "stopped answering while trying .gone."),
        (ConnectionResetError("reset"), StageError, "Start it again, then run the same command"),
    ],
)  # fmt: skip
def test_an_engines_errors_are_explained(error: Exception, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says), engine.explained("trying"):
        raise error


def test_an_error_that_is_not_the_engines_stays_as_it_is() -> None:
    with pytest.raises(FileNotFoundError), engine.explained("trying"):
        raise FileNotFoundError("ours")


class _Container:
    """One of the engine's, with what was done to it."""

    name = "container-1"

    def __init__(self, status: str, **labels: str) -> None:
        self.status, self.done = status, [""]
        self.labels = {
            "deberta-ascend": "container",
            **{f"deberta-ascend.{key}": value for key, value in labels.items()},
        }

    def remove(self, force: bool, v: bool) -> None:
        self.done.append("removed" if force and v else "")

    def kill(self) -> None:
        self.done.append("killed")


class _Containers:
    def __init__(self, there: list[_Container]) -> None:
        self.there = there

    def list(self, all: bool, filters: dict[str, list[str]], ignore_removed: bool) -> list[_Container]:
        wanted = {tuple(label.split("=", 1)) for label in filters["label"]}
        return [one for one in self.there if all and ignore_removed and wanted <= set(one.labels.items())]


@pytest.mark.parametrize("end", [b"", reaper_process.DONE])
def test_the_reaper_ends_its_own_sessions_containers(monkeypatch: pytest.MonkeyPatch, end: bytes) -> None:
    left = _Container("running", session="mine", keep="no")
    kept = _Container("running", session="mine", keep="yes")
    over = _Container("exited", session="mine", keep="yes")
    other = _Container("running", session="other", keep="no")
    users = _Container("running", session="mine", keep="no")
    users.labels["deberta-ascend"] = "another"
    client = type("Client", (), {"containers": _Containers([left, kept, over, other, users])})()
    monkeypatch.setattr(engine, "connect", lambda: client)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(os, "dup", lambda _: theirs.detach())
    ours.sendall(end)
    ours.close()
    reaper.main("mine")
    did = [set(one.done) - {""} for one in (left, kept, over, other, users)]
    assert did == ([set()] * 5 if end else [{"removed"}, {"killed"}, set(), set(), set()])


@pytest.mark.parametrize(
    "error", [docker.errors.NotFound("gone"), _refused("removal of container 1 is already in progress")]
)
def test_a_container_that_goes_by_itself_is_no_error(error: Exception) -> None:
    def gone(**_: Any) -> None:
        raise error

    engine.remove(type("Gone", (), {"remove": staticmethod(gone)})())
    stays: Callable[..., None] = lambda **_: (_ for _ in ()).throw(_refused("device or resource busy"))  # noqa: E731
    with pytest.raises(docker.errors.APIError):
        engine.remove(type("Stays", (), {"remove": staticmethod(stays)})())


def test_a_container_that_was_left_on_a_device_goes_before_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    labels = {engine.OF_WORKSPACE: engine.workspace_label(tmp_path), engine.OF_DEVICE: "3"}
    left, elsewhere, over = (_Container(status, session="x", keep="no") for status in ("running", "running", "exited"))
    for container, device in ((left, "3"), (elsewhere, "4"), (over, "3")):
        container.labels.update(labels, **{engine.OF_DEVICE: device})
    there = [left, elsewhere, over]
    used = engine.DockerEngine(tmp_path, False, print)
    used.client = type("Client", (), {"containers": _Containers(there)})()
    used._clear(3)
    assert [container.done[1:] for container in there] == [["removed"], [], []]
    left.labels[engine.OF_WORKSPACE] = "another"
    with pytest.raises(StageError, match=r"of another workspace is on device 3, .* docker rm --force"):
        used._clear(3)


class _Creating:
    """A client that is interrupted while the engine creates a container."""

    def __init__(self) -> None:
        self.containers = self

    def list(self, **_: Any) -> list[Any]:
        return []

    def create(self, **_: Any) -> None:
        raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_the_reaper_looks_for_a_container_that_was_just_being_created(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "connect", _Creating)
    monkeypatch.setattr(engine, "ReaperProcess", NoReaper)
    container = Container("image", ("x",), PurePosixPath("/"), User(0, 0), (), {})
    with pytest.raises(KeyboardInterrupt), engine.DockerEngine(tmp_path, False, print) as used:
        used.run(container, "sha256:1", "step", tmp_path / "log", print, False)
    reaper_of: object = used._reaper
    assert isinstance(reaper_of, NoReaper) and reaper_of.told == ["leave"]
