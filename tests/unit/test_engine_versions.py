"""A whole step on engines of the oldest and the newest API: what is sent is known to each, what it answers is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from deberta.core.errors import MissingError, StageError
from deberta.host.engine import engine, unfinished
from deberta.host.engine.containers import Container, Mount, User
from deberta.host.engine.limits import ContainerLimits
from deberta.host.images import build, definition, pins
from deberta.host.images.definition import BuildSettings, Image
from deberta.host.run import leftovers
from tests.engine_server import EngineServer, NoReaper, Output, Version, serving
from tests.image_helpers import ARCH, make_project

VERSIONS = {"18.09": ((1, 39), (1, 12)), "20.10": ((1, 41), (1, 12)), "29": ((1, 52), (1, 44))}
LAYER = f"sha256:{'a' * 64}"


@pytest.fixture(name="server", params=list(VERSIONS))
def _server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineServer]:
    newest, oldest = VERSIONS[request.param]
    with serving(tmp_path / "engine.sock", newest, oldest) as server:
        monkeypatch.setenv("DOCKER_HOST", server.address)
        monkeypatch.setattr(engine, "ReaperProcess", NoReaper)
        yield server
    assert server.refused == []
    assert server.versions == {"{}.{}".format(*newest)}


@pytest.fixture(name="image")
def _image(tmp_path: Path) -> Image:
    project = make_project(tmp_path / "project")
    return definition.plan(project, pins.load(project), "export", ARCH)


def with_base(server: EngineServer, image: Image) -> None:
    name, _, digest = image.base.rpartition("@")
    server.add_image({}, [LAYER], f"{pins.without_tag(name)}@{digest}")


def step(workspace: Path) -> Container:
    mounts = (Mount(workspace, PurePosixPath("/workspace"), writable=True),)
    limits = ContainerLimits(memory="1g")
    return Container("image:tag", ("true",), PurePosixPath("/workspace"), User(1, 2), mounts, {"A": "b"}, limits=limits)


def test_a_step_from_the_image_to_what_it_leaves(server: EngineServer, image: Image, tmp_path: Path) -> None:
    with_base(server, image)
    server.files["/opt/x.json"] = b"{}"
    server.output = Output((b"one\ntw", b"o\n", b"three"))
    shown: list[str] = []
    with engine.DockerEngine(tmp_path, False, shown.append) as used:
        number = build.ensure(used.client, image, BuildSettings(), tmp_path)
        assert server.find_image(image.tag) == number == build.find(used.client, image)
        before = len(server.requests)
        assert build.ensure(used.client, image, BuildSettings(), tmp_path) == number
        assert server.requests[before:] == [f"GET images/{image.tag}/json"]
        assert len(server.images) == 2  # the base and this one: nothing of the build is left
        assert used.read(number, "/opt/x.json") == b"{}"
        lines, code = used.run(step(tmp_path), number, "step", tmp_path / "log", shown.append, True)
    assert (lines, code) == (["one\n", "two\n", "three\n"], 0) and shown == ["one", "two", "three"]
    assert (tmp_path / "log").read_text().endswith("one\ntwo\nthree\n")
    assert not server.containers and unfinished.left(tmp_path) == []


def test_the_containers_settings_arrive(server: EngineServer, tmp_path: Path) -> None:
    number = server.add_image({}, [LAYER], "image:tag")
    with engine.DockerEngine(tmp_path, True, lambda _: None) as used:
        used.run(step(tmp_path), number, "step", tmp_path / "log", lambda _: None, True)
    [body] = server.containers.values()
    host = body["HostConfig"]
    assert (host["Memory"], host["PidsLimit"], host["Tmpfs"]) == (1 << 30, 4096, {"/tmp": "size=2g"})
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "8m", "max-file": "2"}}
    assert host["NetworkMode"] == "none" and host["CapDrop"] == ["ALL"] and host["ReadonlyRootfs"] is True
    assert (body["User"], body["WorkingDir"], body["Env"]) == ("1:2", "/workspace", ["A=b"])
    assert host["Mounts"] == [{"Type": "bind", "Source": str(tmp_path), "Target": "/workspace", "ReadOnly": False}]


def test_failures_are_read(server: EngineServer, image: Image, tmp_path: Path) -> None:
    with_base(server, image)
    number = server.add_image({}, [LAYER], "image:tag")
    server.build_error = "E: Unable to locate package x"
    server.output = Output((b"error: it is wrong\n",), code=137, out_of_memory=True)
    with engine.DockerEngine(tmp_path, False, lambda _: None) as used:
        with pytest.raises(StageError, match=r"Unable to locate package x \(step 2/2, RUN x, exit code 7\)"):
            build.ensure(used.client, image, BuildSettings(), tmp_path)
        with pytest.raises(StageError, match="needed more memory than 1g"):
            used.run(step(tmp_path), number, "step", tmp_path / "log", lambda _: None, True)
        with pytest.raises(StageError, match="Could not find the file"):
            used.read(number, "/opt/x.json")
    assert not server.containers and len(server.images) == 2


def test_leftovers_of_a_killed_run(server: EngineServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "INTERRUPT_SECONDS", 0.0)
    number = server.add_image({}, [LAYER], "image:tag")
    label = f"{build.BUILD}=1"
    server.add_image(dict([label.split("=")]), [LAYER])
    client = engine.connect()
    for labels in (engine.container_labels(tmp_path), engine.container_labels(tmp_path / "other"), {build.BUILD: "1"}):
        client.containers.create(number, ["x"], labels=labels)
    client.close()
    (tmp_path / unfinished.BUILDS).mkdir(parents=True)
    (tmp_path / unfinished.BUILDS / f"1{unfinished.BUILD}").write_text(f"{server.address}\n{label}\n")
    unfinished.begin_containers(tmp_path)
    said: list[str] = []
    leftovers.sweep_engine(tmp_path, said.append)
    assert said[0].endswith(", which an earlier run left")
    assert said[1:] == ["removed 2 containers and images of a build that was killed"]
    [left] = server.containers.values()
    assert left["Labels"][engine.OF_WORKSPACE] == engine.workspace_label(tmp_path / "other")
    assert list(server.images) == [number] and unfinished.left(tmp_path) == []


@pytest.mark.parametrize(("newest", "says"), [((1, 38), r"API 1\.38; the oldest that can be used is Docker 18\.09")])
def test_an_older_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest: Version, says: str
) -> None:
    with serving(tmp_path / "engine.sock", newest, (1, 12)) as server:
        monkeypatch.setenv("DOCKER_HOST", server.address)
        with pytest.raises(MissingError, match=says):
            engine.connect()
    assert server.requests == ["GET _ping", "GET version"]
