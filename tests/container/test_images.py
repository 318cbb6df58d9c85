"""Stage images on a real engine: what is in them, what is not, what is left when a build fails, and what rebuilds them.

CANN, msame and their Python packages are stand-ins, and but for two tests the packages are empty wheels: these tests
show how images are put together, and nothing about CANN.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import certifi
import pytest
from docker.errors import APIError

from deberta.core.errors import StageError
from deberta.host.images import build as building
from deberta.host.images import contents, definition, manage, pins
from deberta.host.images.definition import BuildSettings, Image
from deberta.host.run import leftovers
from tests import fake_cann
from tests.container.bases import BOOKWORM, BULLSEYE
from tests.container.container_helpers import until
from tests.container.workshop import Workshop
from tests.image_helpers import ARCH, locked, make_deb, make_wheel, mirror

pytestmark = pytest.mark.container
PLANTED = b"planted-"


def of_build(shop: Workshop) -> dict[str, str]:
    """The filter for what carries the label of the build whose log is here."""
    found = re.search(rf'LABEL ({building.BUILD})="(\w+)"', shop.log.read_text(encoding="utf-8"))
    assert found, "the build never began"
    return {"label": f"{found[1]}={found[2]}"}


def nothing_left(shop: Workshop, image: Image) -> None:
    """No tag, and nothing that carries the label of the build whose log is here."""
    assert building.find(shop.client, image) is None
    carry = of_build(shop)
    assert shop.client.api.images(all=True, filters=carry) == []
    assert shop.client.api.containers(all=True, filters=carry) == []


def described(shop: Workshop, image: Image) -> dict[str, str]:
    return dict(json.loads(shop.run(image, "cat", "/opt/deberta-ascend/image.json")))


def saved(shop: Workshop, image: Image) -> Iterator[bytes]:
    """All bytes of an image as the engine hands it out: layers, configuration, history. Chunks overlap."""
    tail = b""
    for chunk in shop.client.images.get(image.tag).save(chunk_size=1 << 22):
        yield tail + chunk
        tail = chunk[-100:]


def test_how_packages_were_reached_is_in_no_layer(
    shop: Workshop, build_settings: Mapping[str, str], tmp_path: Path
) -> None:
    """One package from the folder, one through the proxy from an index that wants a password."""
    wheel = make_wheel(tmp_path / "mirror", "two")
    assert shop.settings.wheelhouse
    wheels = {"one": shop.settings.wheelhouse / "one-1-py3-none-any.whl", "two": wheel}
    (shop.project / "requirements-stages.lock").write_text(locked(wheels), encoding="utf-8")
    pins.lock(shop.project, None, ARCH)
    trusted = Path(build_settings["ca"] or certifi.where()).read_text(encoding="utf-8")
    (tmp_path / "ca.pem").write_text(f"# planted-authority\n{trusted}")
    with mirror(wheel) as (address, asked):
        settings = BuildSettings(
            shop.settings.wheelhouse,
            "http://planted-user:planted-word@planted-mirror.invalid/simple",
            http_proxy=address,
            no_proxy="planted-host.invalid",
            ca=tmp_path / "ca.pem",
            network="host",
        )
        image = shop.build("export", settings)
    assert shop.run(image, "/opt/stages/bin/python", "-c", "import one, two; print('both')") == "both\n"
    credentials = base64.b64encode(b"planted-user:planted-word").decode()
    assert (f"http://planted-mirror.invalid/simple/two/{wheel.name}", f"Basic {credentials}") in asked
    kept = list(saved(shop, image))
    assert any(b"Name: one" in chunk for chunk in kept), "what was looked into holds no package"
    secrets = (PLANTED, address[len("http://") :].encode(), wheels["one"].name.encode(), str(tmp_path).encode())
    assert [secret for secret in secrets if any(secret in chunk for chunk in kept)] == []
    assert PLANTED.decode() not in json.dumps(shop.client.images.get(image.tag).history())
    assert building.BUILD not in shop.client.images.get(image.tag).labels
    assert shop.client.api.images(all=True, filters=of_build(shop)) == [], "builder stages are left"


def test_the_compile_image_from_a_package(shop: Workshop) -> None:
    image = shop.ensure("compile")
    home = "/usr/local/Ascend/ascend-toolkit"
    stub = f"{home}/5.1.RC2/{ARCH}-linux/devlib"
    assert described(shop, image) == {
        "stage": "compile", "set_env": f"{home}/set_env.sh", "home": f"{home}/latest", "cann_version": "5.1.RC2",
        "hal": f"{stub}/libascend_hal.so", "python": "3.9.2",
    }  # fmt: skip
    script = "echo $LD_LIBRARY_PATH; id -u; ls /build /out 2>&1 | wc -l; find / -name '*.run' 2>/dev/null | wc -l"
    libraries, user, *left = shop.run(image, "sh", "-c", script).splitlines()
    assert libraries.startswith("/usr/local/Ascend/driver/lib64:") and libraries.endswith(f":{stub}")
    assert "::" not in libraries and f"{home}/latest/lib64" in libraries.split(":")
    assert (user, left) == ("1000", ["2", "0"])  # ls says twice that there is no such folder
    assert "usage: atc" in shop.run(image, "atc", "--help", user="12345:12345", read_only=True)


def cann_like(shop: Workshop, tag: str, folder: str, base: str = BULLSEYE) -> str:
    """An image with the stand-in of CANN in it, as a user's own would be, and a user who is not root."""
    root = shop.project.parent / "cann-like"
    shutil.rmtree(root, ignore_errors=True)
    fake_cann.install(root, at=folder)
    packed = io.BytesIO()
    dockerfile = f'FROM {base}\nCOPY cann {folder}\nUSER 1000\nENTRYPOINT ["/bin/false"]\n'.encode()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(root, "cann")
        entry = tarfile.TarInfo("Dockerfile")
        entry.size = len(dockerfile)
        archive.addfile(entry, io.BytesIO(dockerfile))
    packed.seek(0)
    made, _ = shop.client.images.build(fileobj=packed, custom_context=True, tag=tag, rm=True)
    shop.built.append(tag)
    return str(made.id)


def test_images_from_a_base_that_has_cann(shop: Workshop) -> None:
    """With a .deb in both, and ais_bench beside ATC's packages."""
    base = cann_like(shop, "deberta-ascend-test/cann:guide", "/opt/npu/cann_5.1.rc205")
    shutil.rmtree(shop.project / pins.CANN)
    make_wheel(shop.project / pins.WHEELS, "ais_bench")
    for stage in ("compile", "runtime"):
        make_deb(shop.project / pins.DEBS / stage)
        pins.set_base(shop.project, stage, base)
        pins.lock(shop.project, None, ARCH)
        image = shop.build(stage)
        found = described(shop, image)
        assert found["set_env"] == "/opt/npu/cann_5.1.rc205/ascend-toolkit/set_env.sh"
        assert found["hal"].startswith("/opt/npu/cann_5.1.rc205/")
        assert shop.run(image, "sh", "-c", "id -u; cat /brought") == "1000\nby a package\n"
        tool = "atc" if stage == "compile" else "msame"
        assert shop.run(image, "sh", "-c", f"command -v {tool}").startswith("/")
    assert shop.run(shop.plan("compile"), "python3", "-c", "import ais_bench") == ""


def test_the_runtime_image_holds_the_users_msame_and_no_root(shop: Workshop) -> None:
    image = shop.ensure("runtime")
    assert described(shop, image)["cann_version"] == "5.1.RC2"
    script = "id -u; sha256sum /usr/local/bin/msame | cut -c1-64; test -w /usr/local/bin/msame || echo kept"
    assert shop.run(image, "sh", "-c", script).split() == ["1000", image.inputs["docker/bin/msame"], "kept"]
    assert re.fullmatch("one /usr/local/Ascend/driver/lib64:.*/devlib\n", shop.run(image, "msame"))


def without_stub(shop: Workshop) -> str:
    fake_cann.make_run(shop.project / pins.CANN, hal=False)
    return "no libascend_hal.so is below /usr/local/Ascend, and atc does not start without it"


def without_cann(shop: Workshop) -> str:
    shutil.rmtree(shop.project / pins.CANN)
    return r"no CANN is in this image.*invoke images --base compile=IMAGE"


def twice_cann(shop: Workshop) -> str:
    pins.set_base(shop.project, "compile", cann_like(shop, "deberta-ascend-test/cann:default", "/usr/local/Ascend"))
    return r"the base has CANN already \(/usr/local/Ascend/ascend-toolkit/set_env.sh\)"


def newer_python(shop: Workshop) -> str:
    pins.set_base(shop.project, "compile", building.resolve_base(shop.client, BOOKWORM))
    return r"ATC needs Python 3.7 to 3.9, and python3 of this image is 3.11"


def without_a_wheel(shop: Workshop) -> str:
    lock = shop.project / "requirements-compile.lock"
    lock.write_text(lock.read_text() + f"absent==1 --hash=sha256:{'0' * 64}\n")
    return "No matching distribution found for absent==1.*`images` in invoke.yaml"


def broken_package(shop: Workshop) -> str:
    fake_cann.make_run(shop.project / pins.CANN, before="echo '[Toolkit] [ERROR]: no space left'; exit 1")
    return r"\[Toolkit\] \[ERROR\]: no space left"


@pytest.mark.parametrize(
    "breaks", [without_stub, without_cann, twice_cann, newer_python, without_a_wheel, broken_package]
)
def test_a_failed_build_says_why_and_leaves_nothing(shop: Workshop, breaks: Any) -> None:
    says = breaks(shop)
    pins.lock(shop.project, None, ARCH)
    image = shop.plan("compile")
    with pytest.raises(StageError, match=says) as raised:
        shop.build("compile")
    assert str(shop.log) in str(raised.value)
    nothing_left(shop, image)


_BUILD = """
import sys; from pathlib import Path
from deberta.host.engine import engine; from deberta.host.images import build, definition, pins
project, house = map(Path, sys.argv[1:])
image, settings = definition.plan(project, pins.load(project), "compile", "x86_64"), (house, "", True)
build.build(engine.connect(), image, definition.BuildSettings(*settings), project / build.LOGS / "build.log", print)
"""


@pytest.mark.slow
def test_what_a_killed_build_leaves_goes_with_the_next_command(shop: Workshop) -> None:
    fake_cann.make_run(shop.project / pins.CANN, before="echo it goes on and on; sleep 600")
    pins.lock(shop.project, None, ARCH)
    command = [sys.executable, "-c", _BUILD, str(shop.project), str(shop.settings.wheelhouse)]
    building_process = subprocess.Popen(command)
    until(lambda: shop.log.exists() and "it goes on and on\n" in shop.log.read_text(encoding="utf-8"))
    building_process.kill()
    building_process.wait()
    assert shop.client.api.images(all=True, filters=of_build(shop)), "nothing was left"
    said: list[str] = []
    leftovers.sweep_engine(shop.project, said.append)
    nothing_left(shop, shop.plan("compile"))
    assert re.fullmatch(r"removed [0-9]+ containers and images of a build that was killed", said[0]) and not said[1:]
    assert os.listdir(shop.log.parent) == [shop.log.name]


def test_an_interrupted_build_leaves_nothing(shop: Workshop) -> None:
    fake_cann.make_run(shop.project / pins.CANN, before="echo it goes on and on; sleep 600")
    pins.lock(shop.project, None, ARCH)
    image, stop = shop.plan("compile"), threading.Event()
    main = threading.main_thread().ident
    assert main

    def interrupt() -> None:
        while not stop.wait(0.1):
            if shop.log.exists() and "it goes on and on\n" in shop.log.read_text(encoding="utf-8"):
                signal.pthread_kill(main, signal.SIGINT)
                return

    watching = threading.Thread(target=interrupt)
    watching.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            shop.build("compile")
    finally:
        stop.set()
        watching.join()
    nothing_left(shop, image)
    assert [name for name in os.listdir(shop.log.parent) if name != shop.log.name] == []


def test_a_changed_pin_rebuilds_exactly_what_depends_on_it(shop: Workshop) -> None:
    before = {stage: shop.ensure(stage) for stage in pins.STAGES}
    wheel = make_wheel(shop.project / "more", "extra")
    lock = shop.project / "requirements-compile.lock"
    lock.write_text(lock.read_text() + locked({"extra": wheel}), encoding="utf-8")
    (shop.project / pins.MSAME).write_text("#!/bin/sh\necho another\n", encoding="utf-8")
    pins.lock(shop.project, None, ARCH)
    planned = {stage: shop.plan(stage) for stage in pins.STAGES}
    assert {stage for stage in pins.STAGES if not building.find(shop.client, planned[stage])} == {"compile", "runtime"}
    # The newest of a stage is what it is compared with; another test may have built one since.
    for stage, name in (("compile", "requirements-compile.lock"), ("runtime", "msame")):
        assert f"{name} changed" in building.why(shop.client, planned[stage]).split(", ")
    shutil.copytree(shop.settings.wheelhouse or "", shop.project / "more", dirs_exist_ok=True)
    settings = BuildSettings(wheelhouse=shop.project / "more", offline=True)
    shop.build("compile", settings)
    assert shop.run(shop.plan("compile"), "python3", "-c", "import extra") == ""
    for image in before.values():
        assert building.find(shop.client, image), "an older image is still good for the older pins"


def test_the_same_image_again_and_by_docker_build(shop: Workshop, tmp_path: Path) -> None:
    """With a .deb in it, which changes the system's own files."""
    make_deb(shop.project / pins.DEBS / "runtime")
    pins.lock(shop.project, None, ARCH)
    image = shop.build("runtime")
    first = building.find(shop.client, image)
    shop.build("runtime")
    assert first and building.find(shop.client, image) == first
    manage.write_contexts(shop.project, shop.settings, tmp_path / "contexts", ["runtime"], "", dry=False)
    built, said = shop.client.images.build(path=str(tmp_path / "contexts/runtime"), rm=True)
    try:
        assert not building._mismatch(built.attrs, image)
        one, two = (contents.contents(shop.client, number, tmp_path) for number in (first, built.id))
        assert contents.differences(one, two) == [] and "brought" in one
    finally:
        steps = re.findall(r"^ ---> (\w+)$", "".join(line.get("stream", "") for line in said), re.MULTILINE)
        for number in (built.id, *reversed(steps)):
            with contextlib.suppress(APIError):  # a base, or gone with its child
                shop.client.images.remove(number, force=number == built.id)


def test_the_real_export_image(engine_client: Any, project: Path) -> None:
    """From a replaced base. It stays: its tag is what it is made of, and the pipeline's tests run in it."""
    shop = Workshop(engine_client, project, BuildSettings(), [])
    image = shop.plan("export")
    attributes = engine_client.images.get(image.tag).attrs
    (reason,) = json.loads(attributes["Config"]["Labels"][definition.UNPINNED])
    assert reason.startswith("base sha256:") and reason.endswith("in place of python:3.11-slim-bookworm")
    assert json.loads(attributes["Config"]["Labels"][definition.INPUTS]) == image.inputs
    code = "import deberta.stages.compile.export_onnx, torch, openvino, os; print(torch.__version__, os.getuid())"
    mount = {str(project / "deberta"): {"bind": "/opt/deberta-ascend/deberta", "mode": "ro"}}
    printed = shop.run(
        image, "/opt/stages/bin/python", "-c", code, volumes=mount, read_only=True,
        environment={"PYTHONPATH": "/opt/deberta-ascend"},
    )  # fmt: skip
    assert re.fullmatch(r"\d+\.\d+\.\d+\+cpu 1000\n", printed)
