"""What the container tests share: an engine with the base images, a registry, and a copy of the project to work in."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Iterator, NoReturn

import pytest

from deberta.host.images import build as building
from deberta.host.images import definition, pins
from deberta.host.images.definition import BuildSettings
from tests import fake_cann
from tests.container.bases import BOOKWORM, BULLSEYE
from tests.container.container_helpers import CALLER, Place, invoke, make_place
from tests.container.workshop import BASES, Workshop
from tests.image_helpers import ARCH, ATC_MODULES, locked, make_project, make_wheel
from tests.mnli_helpers import REPOSITORY

HERE = Path(__file__).parent
CANN_AT = "/usr/local/Ascend"
FORCED = "/workspace/models/forced.sh"  # a test writes it into its workspace
REGISTRY_PROGRAM = "/usr/bin/docker-registry"
START = "Run as root: .ci/engine start DIR; export DOCKER_HOST=unix://DIR/docker.sock"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.container)


def unavailable(reason: str) -> NoReturn:
    """Skip; or fail where .ci/run has promised an engine, so that CI never loses these tests silently."""
    if os.environ.get("CONTAINER_TESTS") == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def locks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def _own_cache(locks: Path) -> Iterator[None]:
    """What our commands keep of images for all workspaces is kept for this run alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(locks / "cache"))
        yield


@pytest.fixture(scope="session")
def engine_client(locks: Path) -> Iterator[Any]:
    """A client of DOCKER_HOST's engine. The last process of a run that uses it checks that no container of ours is left
    that was not there before.
    """
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client: Any = docker.from_env(timeout=120)
    except DockerException as error:  # it asks for the version at once
        unavailable(f"no Docker engine answers ({str(error)[:200]}). {START}")
    try:
        for base in (BOOKWORM, BULLSEYE):
            client.images.get(base)
    except ImageNotFound:
        client.close()
        unavailable(f"the engine lacks the base image {base}. {START}")
    before = _containers(client)
    with open(locks / "engine.lock", "w") as in_use:
        fcntl.flock(in_use, fcntl.LOCK_SH)
        yield client
        with contextlib.suppress(BlockingIOError):  # another process still runs containers, and checks after its own
            fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = [text for number, text in _containers(client).items() if number not in before]
            assert not left, f"containers were left behind: {left}"
    client.close()


def _containers(client: Any) -> dict[str, str]:
    """Containers labelled as ours, running or not: id to a line for a reader."""
    found = client.api.containers(all=True, filters={"label": "deberta-ascend"})
    return {one["Id"]: f"{one['Id'][:12]} {one['Image']} {one['Command']} ({one['Status']})" for one in found}


@pytest.fixture(scope="session")
def shared_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's files without what git ignores, for all tests that change nothing in them.

    To run its commands: `python -m invoke --search-root COPY TASK`, with PYTHONPATH=COPY.
    """
    return copy_project(tmp_path_factory.mktemp("shared") / "project")


@pytest.fixture(scope="session")
def project(shared_copy: Path, engine_client: Any, build_settings: dict[str, str], locks: Path) -> Path:
    """The shared copy on the base image that is here, with its export image, which is built if need be and stays."""
    with one_at_a_time(locks, "export"):
        invoke(shared_copy, build_settings, "images", "--base", f"export={BOOKWORM}")
    return shared_copy


@pytest.fixture(scope="session")
def has_cann(engine_client: Any, locks: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base of the compile image with CANN's stand-in, the same one in all processes: of equal files the engine makes
    one image. So the compile image on it, with its real packages, is built once.
    """
    folder, name = tmp_path_factory.mktemp("has-cann"), "deberta-ascend-test/has-cann:compile"
    tree = fake_cann.install(folder / "cann", at=CANN_AT, forced=FORCED)
    (tree / "with-stages").write_text('#!/bin/sh\nunset PYTHONPATH\nexec /opt/stages/bin/python "$@"\n')
    (tree / "with-stages").chmod(0o755)
    text = f"FROM {BULLSEYE}\nLABEL {definition.LABEL}=test-base\nCOPY cann {CANN_AT}\n"
    (folder / "Dockerfile").write_text(text, encoding="utf-8")
    with one_at_a_time(locks, "has-cann"):
        engine_client.images.build(path=str(folder), tag=name, rm=True)
    return name


@contextlib.contextmanager
def one_at_a_time(locks: Path, image: str) -> Iterator[None]:
    """One process of this run builds the image; the others wait, and find it."""
    with open(locks / f"{image}-image.lock", "w") as building:
        fcntl.flock(building, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def finished(project: Path, engine_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The demo, run in containers by somebody who is not root, in a workspace of theirs; tests copy it."""
    place = make_place(tmp_path_factory.mktemp("finished") / "demo", project, CALLER)
    said = place.succeed("demo", "--executor", "docker")
    assert "you are root" not in said
    shutil.rmtree(place.root / "data/demo/pre_mnli_bs1")  # thousands of files in every copy
    place.succeed("infer", "--bs", "8", "--version", "match", "--backend", "cpu", "--limit", "480")
    return place


def copy_project(copy: Path) -> Path:
    # The repository may belong to somebody else than root, who runs these tests.
    listing = ["git", "-c", f"safe.directory={REPOSITORY}", "ls-files", "-z", "-co", "--exclude-standard"]
    done = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        unavailable(f"git cannot list the project's files: {done.stderr.strip()}")
    for name in done.stdout.split("\0"):
        source, target = REPOSITORY / name, copy / name
        if name and source.is_file():  # a deleted file is listed until that is committed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    return copy


@pytest.fixture(scope="session")
def build_settings() -> dict[str, str]:
    """What image builds need to reach the package registries from here: for the setting `images`."""
    wheelhouse = os.environ.get("PIP_FIND_LINKS", "")
    return {"ca": os.environ.get("SSL_CERT_FILE", ""), "wheelhouse": wheelhouse if os.path.isdir(wheelhouse) else ""}


@pytest.fixture(scope="session")
def shop_of(engine_client: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("images")
    house = folder / "wheelhouse"
    wheels = {name: make_wheel(house, name, package) for name, package in ATC_MODULES.items()}
    project = make_project(folder / "project")
    (project / "requirements-compile.lock").write_text(locked(wheels), encoding="utf-8")
    wheels = {"one": make_wheel(house, "one")}
    (project / "requirements-stages.lock").write_text(locked(wheels), encoding="utf-8")
    fake_cann.make_run(project / pins.CANN)
    (project / pins.MSAME).parent.mkdir()
    (project / pins.MSAME).write_text("#!/bin/sh\necho one $LD_LIBRARY_PATH\n", encoding="utf-8")
    for stage, base in BASES.items():
        pins.set_base(project, stage, building.resolve_base(engine_client, base), base)
    pins.lock(project, None, ARCH)
    shop = Workshop(engine_client, project, BuildSettings(wheelhouse=house, offline=True), [])
    yield shop
    for tag in set(shop.built):
        if any(tag in (entry.get("RepoTags") or ()) for entry in engine_client.api.images()):
            engine_client.images.remove(tag)


@pytest.fixture
def shop(shop_of: Workshop, tmp_path: Path) -> Workshop:
    """The shared images in a project of one's own."""
    project = tmp_path / "shop"
    shutil.copytree(shop_of.project, project)
    return Workshop(shop_of.client, project, shop_of.settings, shop_of.built)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image registry on this machine's loopback (engines take such without TLS): 127.0.0.1:PORT."""
    if not os.access(REGISTRY_PROGRAM, os.X_OK):
        unavailable(f"{REGISTRY_PROGRAM} is missing. Run: apt-get install --no-install-recommends docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\nhttp:\n  addr: 127.0.0.1:{port}\n",
        encoding="utf-8",
    )
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [REGISTRY_PROGRAM, "serve", str(folder / "config.yml")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_until_served(server, port, folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wait_until_served(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(200):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            if connection.getresponse().status == 200:
                return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.05)
        finally:
            connection.close()
    pytest.fail(f"docker-registry does not answer:\n{log.read_text(encoding='utf-8')[-2000:]}", pytrace=False)
