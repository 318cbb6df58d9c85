"""Which engine is used, which is refused, what its errors become, and whose containers are removed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any, Callable

import docker
import docker.errors
import pytest
import requests

from deberta.core.errors import ConfigError, MissingError, StageError
from deberta.host.engine import engine, ping, reaper
from deberta.host.engine.containers import Container, User
from tests.pipeline_helpers import Workspace, environment


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
        ("192.0.2.1:2375", "the Docker engine at 192.0.2.1:2375 is remote"),
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
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(
        MissingError, match=r"no Docker engine answers at unix:///.*none\.sock .* or use --executor local"
    ):
        engine.connect()
    with pytest.raises(ConfigError, match="DOCKER_CERT_PATH"):
        engine.address({"DOCKER_HOST": "tcp://127.0.0.1:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/none"})
    with pytest.raises(ConfigError, match=r"no docker context 'absent' \(DOCKER_CONTEXT\)"):
        engine.address({"DOCKER_CONTEXT": "absent"})


def test_an_address_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://[::1")
    with pytest.raises(MissingError, match=r"no Docker engine answers at tcp://\[::1 \(Invalid IPv6 URL\)"):
        engine.connect()


def test_the_address_is_the_docker_commands(tmp_path: Path) -> None:
    _context(tmp_path, "mine", "unix:///home/me/engine.sock")
    assert engine.address({"DOCKER_CONTEXT": "mine"})["base_url"] == "unix:///home/me/engine.sock"
    both = {"DOCKER_HOST": "unix:///other.sock", "DOCKER_CONTEXT": "mine"}
    assert engine.address(both)["base_url"] == "unix:///other.sock"
    (tmp_path / "docker/config.json").write_text(json.dumps({"currentContext": "mine"}))
    assert engine.address({})["base_url"] == "unix:///home/me/engine.sock"
    assert engine.address({"DOCKER_CONTEXT": "default"})["base_url"] == f"unix://{ping.DEFAULT_SOCKET}"


def test_the_usual_sockets_are_tried(tmp_path: Path) -> None:
    variables = {"XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert engine.address(variables) == {"base_url": f"unix://{ping.DEFAULT_SOCKET}"}
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


@pytest.mark.parametrize("end", ["", "done"])
def test_the_reaper_ends_its_own_sessions_containers(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    left = _Container("running", session="mine", keep="no")
    kept = _Container("running", session="mine", keep="yes")
    over = _Container("exited", session="mine", keep="yes")
    other = _Container("running", session="other", keep="no")
    users = _Container("running", session="mine", keep="no")
    users.labels["deberta-ascend"] = "another"
    client = type("Client", (), {"containers": _Containers([left, kept, over, other, users])})()
    monkeypatch.setattr(engine, "connect", lambda: client)
    monkeypatch.setattr(sys, "stdin", io.StringIO(end))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
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
    def reading(_: str) -> subprocess.Popen[bytes]:
        with open(tmp_path / "told", "wb") as told:
            return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=told)

    monkeypatch.setattr(engine, "connect", _Creating)
    monkeypatch.setattr(engine, "_start_reaper", reading)
    container = Container("image", ("x",), PurePosixPath("/"), User(0, 0), (), {})
    with pytest.raises(KeyboardInterrupt), engine.DockerEngine(tmp_path, False, print) as used:
        used.run(container, "sha256:1", "step", tmp_path / "log", print, False)
    assert used._reaper is not None and used._reaper.wait(30) == 0
    assert (tmp_path / "told").read_bytes() == b""
