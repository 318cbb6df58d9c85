"""`doctor`: what is not there is told with what it blocks; nothing that is wrong with a machine may break it."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Callable, Iterator

import pytest

from deberta.host.environments import stages
from deberta.host.plan import profiles
from deberta.host.plan.plan import Plan
from deberta.host.workflows import doctor
from deberta.host.workflows.doctor import GIB, MISSING, OK, UNKNOWN, HostCheck
from tests.mnli_helpers import small_disk

ROOT = Path(__file__).resolve().parents[2]


class Engine(http.server.BaseHTTPRequestHandler):
    """As much of a Docker engine's API as a ping takes."""

    def do_GET(self) -> None:
        body = json.dumps({"Version": "99.1", "ApiVersion": "1.44", "Name": socket.gethostname()}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the tests' output."""


@pytest.fixture
def engine_address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_answering_engine(engine_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine_address)
    check = doctor.engine()
    assert check.state == OK and "99.1" in check.actual


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "unix:///nonexistent/docker.sock", "nonsense://x", "tcp://"])
def test_no_engine_is_told_and_does_not_block_local_runs(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    check = doctor.engine()
    assert check.state == MISSING and "no Docker engine answers" in check.actual
    assert "local runs need no engine" in check.blocks
    assert doctor.missing([check]) == ()


def test_an_engine_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(doctor, "ENGINE_TIMEOUT", 0.2)
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        assert doctor.engine().state == MISSING


def test_all_checks_are_made_and_the_missing_input_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    monkeypatch.setattr(doctor, "FULL_DISK", 1)
    monkeypatch.setattr(doctor, "FULL_MEMORY", 1)
    files = {"checkpoint": "pytorch.model-073631.bin", "config": "config.json", "tokenizer": "spm.model"}
    plan = Plan(profiles.load("mnli", {"mnli": {**files, "dataset": "MNLI", "rows": {"match": None}}}), "cpu")
    checkpoint, *others = (tmp_path / path for path in plan.profile.inputs(["match"]))
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"model")
    checks = doctor.run(ROOT, tmp_path, plan, python=Path(sys.executable))
    assert [check.name for check in doctor.missing(checks)] == ["models/mnli/pytorch.model-073631.bin"]
    by_name = {check.name: check for check in checks}
    assert by_name["models/mnli/spm.model"].actual == "5 bytes"
    text = doctor.render(checks)
    assert "get: invoke fetch --profile mnli" in text
    assert text.splitlines()[-1] == "cpu backend, local executor: missing models/mnli/pytorch.model-073631.bin"
    checkpoint.write_bytes(b"model")
    assert doctor.missing(doctor.run(ROOT, tmp_path, plan, Path(sys.executable))) == ()


def test_render_aligns_and_explains_only_what_is_not_ok() -> None:
    checks = [
        HostCheck("disk", "9 GiB", "8 GiB", OK, blocks="everything", get="free some"),
        HostCheck("memory, free", "?", "", UNKNOWN, blocks="export"),
    ]
    assert doctor.render(checks).splitlines() == [
        "ok       disk          9 GiB (8 GiB)",
        "unknown  memory, free  ?",
        "                       blocks: export",
        "",
        "cpu backend, local executor: ready",
    ]


def test_old_python_and_a_full_disk_are_missing(tmp_path: Path) -> None:
    assert doctor.host_python((3, 8, 10)).state == MISSING
    assert doctor.host_python((3, 9, 0)).state == OK
    assert doctor.disk(tmp_path / "not" / "made" / "yet", 1).state == OK
    full = doctor.disk(tmp_path, 1 << 60)
    assert doctor.missing([full]) == (full,)


def test_memory_is_what_the_cgroup_allows(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    8388608 kB\nHugePages_Total:       0\n")
    assert doctor.memory(4 * GIB, meminfo, []).actual == "8.0 GiB"
    (tmp_path / "memory.max").write_text("2147483648\n")
    limited = doctor.memory(4 * GIB, meminfo, [tmp_path])
    assert (limited.state, limited.actual) == (MISSING, "2.0 GiB")
    (tmp_path / "memory.max").write_text("max\n")
    assert doctor.memory(4 * GIB, meminfo, [tmp_path]).state == OK
    assert doctor.memory(4 * GIB, tmp_path / "nothing", []).state == UNKNOWN


def test_vector_units(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu avx2 avx512f avx512_bf16\nflags\t\t: fpu avx2\n")
    assert doctor.cpu_features(cpuinfo).actual.startswith("avx2 avx512f avx512_bf16; bf16 is there, and not used")
    cpuinfo.write_text("flags\t\t: fpu sse2 notavx2\n")
    assert doctor.cpu_features(cpuinfo).state == UNKNOWN


def test_ascend_is_seen_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    looks: dict[str, Callable[[], HostCheck]] = {
        "cann": lambda: doctor.cann("", [tmp_path / "nothing", tmp_path / "set_env.sh"]),
        "atc": lambda: doctor.on_path("atc"),
        "msame": lambda: doctor.msame(tmp_path / "docker/bin/msame"),
        "devices": lambda: doctor.devices(tmp_path),
        "npu-smi": lambda: doctor.on_path("npu-smi"),
    }
    before = {name: look() for name, look in looks.items()}
    assert {check.state for check in before.values()} == {MISSING}
    assert all(check.blocks and check.get and not check.needed for check in before.values())
    for name in ("set_env.sh", "atc", "npu-smi", "davinci0", "davinci1", "davinci_manager", "docker/bin/msame"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o644)
    assert doctor.msame(tmp_path / "docker/bin/msame").actual == "not executable"
    for name in ("atc", "npu-smi", "docker/bin/msame"):
        (tmp_path / name).chmod(0o755)
    assert {check.state for check in (look() for look in looks.values())} == {OK}
    assert doctor.devices(tmp_path).actual == "davinci0 davinci1"
    assert doctor.cann(str(tmp_path)).state == OK
    wrong = doctor.cann(str(tmp_path / "docker"), [tmp_path / "set_env.sh"])  # a wrong setting never falls back
    assert wrong.state == MISSING and "no set_env.sh is there" in wrong.actual


def test_a_device_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "davinci0").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions say nothing to root
    check = doctor.devices(tmp_path)
    assert check.state == MISSING and "no permission: davinci0" in check.actual and "group" in check.get


def test_the_stages_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "find_python", lambda: None)
    assert doctor.missing(doctor.stage_environment(tmp_path))
    monkeypatch.setattr(stages, "find_python", lambda: "python3.11")
    [check] = doctor.stage_environment(tmp_path)
    assert check.state == OK and "will be made" in check.actual
    monkeypatch.setattr(stages, "DISK_MB", 10**12)
    assert "free where it goes" in doctor.missing(doctor.stage_environment(tmp_path))[0].actual


def test_a_prepared_python_is_asked_for_its_packages(tmp_path: Path) -> None:
    interpreter, packages = doctor.stage_environment(ROOT, Path(sys.executable))
    assert interpreter.state == packages.state == OK
    assert interpreter.actual.endswith(sys.executable) and "openvino 20" in packages.actual
    (tmp_path / stages.STAGES_LOCK).write_text("onnx==0.1 \\\n    --hash=sha256:00\n", encoding="utf-8")
    [check] = doctor.missing(doctor.stage_environment(tmp_path, Path(sys.executable)))
    assert check.actual.startswith("onnx 1.") and check.actual.endswith("(needs 0.1)")
    assert "or leave it out" in check.get
    other = tmp_path / "python3.12"
    other.write_text('#!/bin/sh\necho \'{"python": "3.12", "onnx": "0.1"}\'\n', encoding="utf-8")
    other.chmod(0o755)
    assert "3.12 at" in doctor.missing(doctor.stage_environment(tmp_path, other))[0].actual
    [check] = doctor.missing(doctor.stage_environment(ROOT, tmp_path / "nothing"))
    assert "does not run" in check.actual


def test_our_own_environment_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its locks are the present ones, and a package is gone from it all the same."""
    monkeypatch.setattr(stages, "find", lambda project: Path(sys.executable))
    monkeypatch.setattr(stages, "installed", lambda python: {"python": "3.11", "torch": "2.0"})
    [check] = doctor.missing(doctor.stage_environment(ROOT))
    assert "onnx is missing (needs " in check.actual and f"remove {ROOT / '.venv-stages'}" in check.get


def test_a_workspace_that_cannot_be_written(tmp_path: Path) -> None:
    assert doctor.writable(tmp_path / "not" / "made" / "yet").state == OK
    (tmp_path / "file").touch()
    assert doctor.missing([doctor.writable(tmp_path / "file")])
    assert doctor.missing([doctor.writable(tmp_path / "file" / "below")])
    with small_disk(tmp_path / "results") as results:
        assert doctor.writable(tmp_path).state == OK
        subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
        [check] = doctor.missing([doctor.writable(tmp_path)])  # not even root can write there
        assert check.actual == f"cannot be written: {results}"
