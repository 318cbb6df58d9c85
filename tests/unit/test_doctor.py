"""`doctor`: what is not there is told with what it blocks; nothing that is wrong with a machine may break it."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

from deberta.host.environments import stages
from deberta.host.plan import profiles
from deberta.host.plan.plan import Plan
from deberta.host.workflows import doctor
from deberta.host.workflows.doctor import GIB, MISSING, OK, UNKNOWN, HostCheck
from tests.image_helpers import serving
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
    with serving(Engine) as address:
        yield f"tcp://{address}"


def test_an_answering_engine(engine_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine_address)
    check = doctor.engine()
    assert check.state == OK and "99.1" in check.actual


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "unix:///nonexistent/docker.sock", "nonsense://x", "tcp://"])
def test_no_engine_is_told_and_does_not_block_local_runs(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    check = doctor.engine()
    assert check.state == MISSING and "Docker engine" in check.actual
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
    assert doctor.cpu_features(cpuinfo).actual.startswith("avx2 avx512f avx512_bf16; --precision bf16 can use them")
    cpuinfo.write_text("flags\t\t: fpu sse2 notavx2\n")
    assert doctor.cpu_features(cpuinfo).state == UNKNOWN


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without anything of Ascend's; a folder to put it into, whose bin is on PATH."""
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def _toolkit(folder: Path, *programs: str) -> None:
    (folder / "latest/bin").mkdir(parents=True)
    text = f"export ASCEND_TOOLKIT_HOME={folder}/latest\nexport PATH={folder}/latest/bin:$PATH\n"
    (folder / "set_env.sh").write_text(text)
    for name in programs:
        _program(folder / "latest/bin" / name, "")


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)


def test_nothing_of_ascends(bare: Path) -> None:
    absent = [*doctor.toolkit("", [bare / "nothing"]), doctor.msame(bare / "docker/bin/msame"), doctor.devices(bare)]
    absent += doctor.npus()
    assert [(check.name, check.state) for check in absent] == [
        (name, MISSING) for name in ("CANN toolkit", "atc", "msame", "NPU devices", "npu-smi")
    ]
    assert all(check.blocks and check.get for check in absent) and not doctor.missing(absent)
    assert absent[0].actual.startswith(f"there is no {bare}/nothing and no {bare}/home/Ascend/ascend-toolkit/set_env")
    assert absent[1].actual == "no CANN to take it from"


def test_the_cann_that_a_run_takes(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _toolkit(bare / "own", "atc")
    _toolkit(bare / "known")
    own, known = bare / "own/set_env.sh", bare / "known/set_env.sh"
    toolkit, atc = doctor.toolkit(str(bare / "own"), [known])
    assert (toolkit.state, toolkit.actual) == (OK, f"CANN of an unknown version: {own} (cann in invoke.yaml)")
    assert (atc.state, atc.actual) == (OK, f"{bare}/own/latest/bin/atc")
    toolkit, atc = doctor.toolkit("", [known])  # that one has no compiler
    assert toolkit.actual.endswith(f"{known} (a known place)")
    assert atc.state == MISSING and "atc is not on the PATH that" in atc.actual
    monkeypatch.setenv("ASCEND_HOME_PATH", f"{bare}/own/latest")
    toolkit, atc = doctor.toolkit("", [known])
    assert toolkit.actual.endswith(f"{own} (by $ASCEND_HOME_PATH)") and atc.state == OK
    toolkit, atc = doctor.toolkit(str(bare / "wrong"), [known])  # a wrong setting never falls back
    assert (toolkit.state, atc.state) == (MISSING, MISSING) and "no set_env.sh is there" in toolkit.actual


def test_programs_that_are_there_and_cannot_be_used(bare: Path) -> None:
    msame = bare / "docker/bin/msame"
    _program(msame, "")
    assert doctor.msame(msame).state == OK
    msame.unlink()
    msame.symlink_to("moved")
    assert doctor.msame(msame).actual == f"{msame} is a link to moved, which is not there. Correct the link"
    (bare / "davinci0").touch()
    (bare / "davinci_manager").touch()
    assert (doctor.devices(bare).state, doctor.devices(bare).actual) == (OK, "davinci0")
    _program(bare / "bin/npu-smi", "")
    (bare / "bin/npu-smi").write_bytes(b"\x7fELF")
    [check] = doctor.npus()
    assert check.state == MISSING and f"{bare}/bin/npu-smi cannot be started" in check.actual


HEADINGS = """\
| NPU     Name  | Health   | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device| Bus-Id   | AICore(%)    Memory-Usage(MB)                        |
"""
CHIP = "| 7  310P3  | OK | NA 28 0 / 0 |\n| 0  0 | 0000:00:07.0 | 0  1805 / 21527 |\n"


@pytest.mark.parametrize(
    ("printed", "checks"),
    [
        (HEADINGS + CHIP, [("NPU, device 0", OK, "idle; AI cores 0 %")]),
        (HEADINGS + CHIP.replace("0  1805", "97 1805"), [("NPU, device 0", MISSING, "busy; AI cores 97 %")]),
        (HEADINGS + CHIP.replace("OK", "Alarm"), [("NPU, device 0", MISSING, "idle; health Alarm")]),
        (HEADINGS + CHIP.replace("1805", "9805"), [("NPU, device 0", UNKNOWN, "whether it is idle was not checked")]),
        (
            HEADINGS.replace("Device", "Phy-ID") + CHIP,
            [
                (
                    "NPU, device of unknown number",
                    UNKNOWN,
                    "of unknown number (310P3, NPU 7 chip 0): neither its health nor whether it is idle was",
                )
            ],
        ),
        ("nobody knows\n", [("npu-smi", UNKNOWN, "not checked: what npu-smi info prints is not understood (nobody")]),
        ("dcmi module initialize failed. ret is -8005\n", [("npu-smi", MISSING, "the driver does not answer")]),
    ],
)
def test_what_npu_smi_says(printed: str, checks: list[tuple[str, str, str]], bare: Path) -> None:
    _program(bare / "bin/npu-smi", f"while IFS= read -r line; do echo \"$line\"; done <<'END'\n{printed}END\n")
    rows = [check for check in doctor.npus() if check.actual != f"{bare}/bin/npu-smi"]
    assert [(check.name, check.state) for check in rows] == [(name, state) for name, state, _ in checks]
    assert [check.actual for check, (*_, says) in zip(rows, checks) if says not in check.actual] == []


def test_a_device_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "davinci0").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # permissions say nothing to root
    check = doctor.devices(tmp_path)
    assert check.state == MISSING and "no permission: davinci0" in check.actual and "group" in check.get


def test_the_stages_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "find_python", lambda: None)
    assert doctor.missing(doctor.stage_environment(tmp_path))
    monkeypatch.setattr(stages, "find_python", lambda: "python3.11")
    system, check = doctor.stage_environment(tmp_path)
    assert system.state == check.state == OK and "will be made" in check.actual
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
