"""What can run here now: the line that `./inv` and doctor begin with, and who needs which of doctor's checks."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deberta.host.engine import ping
from deberta.host.plan import profiles
from deberta.host.plan.plan import Plan
from deberta.host.workflows import doctor, readiness
from deberta.host.workflows.doctor import MISSING, HostCheck
from deberta.host.workflows.readiness import HostParts

FILES = {"checkpoint": "model.bin", "config": "config.json", "tokenizer": "spm.model", "dataset": "MNLI"}
LAPTOP = HostParts(stages=True, installed=True, cann=False, msame=False, npu=False, engine=False, images=False)
NPU_HOST = LAPTOP._replace(cann=True, msame=True, npu=True)


def plan(name: str) -> Plan:
    return Plan(profiles.load(name, {name: FILES}), "cpu")


def put(root: Path, name: str, without: str = "") -> None:
    for path in plan(name).profile.inputs(["match", "mismatch"]):
        if path.name != without:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text("content")


def line(root: Path, here: HostParts, *names: str) -> str:
    return readiness.judge(root, [plan(name) for name in names], ["broken"] if here.npu else [], here).line


def test_a_laptop(tmp_path: Path) -> None:
    put(tmp_path, "demo")
    absent = "not here: ascend (CANN, msame, NPU), containers (Docker)"
    fresh = line(tmp_path, LAPTOP, "demo", "mnli")
    assert fresh == f"can run now: demo | needs fetch: mnli on cpu | {absent}"
    put(tmp_path, "mine", without="dev_mismatched.tsv")
    assert line(tmp_path, LAPTOP, "demo", "mine").startswith("can run now: demo, mine on cpu (match alone) | not here")
    own = line(tmp_path, LAPTOP._replace(engine=None), "other")
    assert "can run now: nothing | needs its files: other on cpu (models/other/model.bin, models/" in own
    assert own.endswith("ascend (CANN, msame, NPU) | not known: containers (Docker was not asked, or was slow)")
    (tmp_path / "models/demo/model.bin").unlink()
    assert "needs demo --remake: demo |" in line(tmp_path, LAPTOP, "demo")


def test_other_machines(tmp_path: Path) -> None:
    put(tmp_path, "mnli")
    npu = line(tmp_path, NPU_HOST._replace(installed=False, engine=True), "mnli")
    assert npu.startswith("can run now: mnli on cpu and ascend; in containers, too (the first command gets 388 MB of ")
    assert npu.endswith("| not here: broken (see invoke doctor --profile broken)")
    build = line(tmp_path, LAPTOP._replace(cann=True), "mnli")
    assert "mnli on cpu | not here: ascend (msame, NPU)," in build
    none = line(tmp_path, LAPTOP._replace(stages=False), "mnli")
    assert none.startswith("can run now: nothing | not here: ascend (CANN, msame, NPU), cpu (Python 3.11), containers")
    images = LAPTOP._replace(npu=True, engine=True, images=True, stages=False)
    assert line(tmp_path, images, "mnli").startswith("can run now: mnli on cpu and ascend; in containers |")


def test_who_needs_what() -> None:
    checks = [HostCheck(key, state=MISSING, needed=check.needed) for key, check in doctor.CHECKS.items()]
    names = {"cpu local", "cpu docker", "ascend local msame", "ascend docker auto"}
    needed = {words: {check.name for check in doctor.missing(checks, words.split())} for words in names}
    common = {name for name, check in doctor.CHECKS.items() if check.needed == doctor.ALWAYS}
    environment = {name for name in doctor.CHECKS if name.startswith("stages-")} | {"wheelhouse"}
    assert needed["cpu local"] == common | environment
    assert needed["cpu docker"] == common | {"engine", "image-export"}
    devices = {"devices", "devices-closed"}
    assert needed["ascend local msame"] == common | environment | devices | {"cann", "atc", "msame"}
    images = {"engine", "image-export", "image-compile", "image-runtime"}
    assert needed["ascend docker auto"] == common | devices | images | {"npu-smi"}


@pytest.fixture(name="server")
def _server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_an_engine_that_never_answers_is_not_waited_for(server: socket.socket) -> None:
    begun = time.monotonic()
    assert ping.answers({"DOCKER_HOST": f"tcp://127.0.0.1:{server.getsockname()[1]}"}) is None
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(("answer", "is_one"), [("HTTP/1.0 200 OK", 1), ("HTTP/1.0 403 no", 0), ("SSH-2", 0)])
def test_what_answers(answer: str, is_one: int, server: socket.socket) -> None:
    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(f"{answer}\r\n\r\n".encode())

    thread = threading.Thread(target=serve)
    thread.start()
    assert ping.answers({"DOCKER_HOST": f"127.0.0.1:{server.getsockname()[1]}"}) is bool(is_one)
    thread.join()


def test_addresses(tmp_path: Path) -> None:
    for gone in ("tcp://[::1", "tcp://127.0.0.1:1", "unix:///nonexistent/docker.sock", "ssh://elsewhere", "tcp://"):
        assert ping.answers({"DOCKER_HOST": gone}) is False
    assert ping.answers({"DOCKER_HOST": "tcp://127.0.0.1:2376", "DOCKER_TLS_VERIFY": "1"}) is None
    assert ping.answers({"DOCKER_CONTEXT": "mine"}) is False
    (tmp_path / "config.json").write_text('{"currentContext": "mine"}')
    assert ping.answers({"DOCKER_CONFIG": str(tmp_path)}) is False
