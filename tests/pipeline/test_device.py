"""What is looked at before a model runs on a device, and what becomes of that which could not be looked at."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from deberta.core import records
from tests import fake_cann
from tests.pipeline_helpers import Workspace, steps_that_ran

ASCEND = ("--backend", "ascend")
PERF = ("perf", "--bs", "4", "--loops", "5", *ASCEND)
EVALUATE = ("evaluate", "--bs", "4", "--version", "match", *ASCEND)
P3 = ("--soc-version", "Ascend310P3")
OM = "models/tiny/ascend/deberta_bs4.om"

OF_310P = """\
| NPU     Name                  | Health          | Power(W)             Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)            Memory-Usage(MB)                        |
+===============================+=================+==============================================================+
| 0       310P3                 | OK              | NA                   46                0     / 0             |
| 0       0                     | 0000:01:00.0    | 0                    1812 / 21527                            |
+===============================+=================+==============================================================+
"""
BUSY = (
    OF_310P
    + """\
| NPU     Chip    | Process id | Process name | Process memory(MB) | Process id in container |
+=================+============+==============+====================+=========================+
| 0       0       | 485946     | python3      | 150                | NA                      |
"""
)
SILENT = "".join(BUSY.splitlines(keepends=True)[:-1])
OF_910 = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     310P3               | OK            | 89.2        39                0    / 0             |
| 0                         | 0000:81:00.0  | 0           0    / 0          1460 / 44280         |
"""
BUSY_910 = OF_910 + BUSY[len(OF_310P) :]
NEITHER = "so neither its health nor whether it is idle was checked"


@pytest.fixture(name="installed", scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_cann.install(tmp_path_factory.mktemp("Ascend"), python=sys.executable)


@pytest.fixture(name="compiled", scope="module")
def _compiled(installed: Path, evaluated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = evaluated.copy(tmp_path_factory.mktemp("compiled") / "workspace")
    workspace.configure(cann=str(installed / "ascend-toolkit"), msame=str(installed / fake_cann.MSAME))
    said = workspace.succeed("build-om", "--bs", "4", *ASCEND, *P3)
    assert f"CANN 5.1.RC2: {installed / fake_cann.SET_ENV} (cann in invoke.yaml)" in said
    return workspace


@pytest.fixture(name="workspace")
def _workspace(compiled: Workspace, tmp_path: Path) -> Workspace:
    return compiled.copy(tmp_path / "copy")


@pytest.fixture(name="machine")
def _machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that npu-smi prints."""
    program, printed = tmp_path / "bin/npu-smi", tmp_path / "printed"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncat "{printed}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return printed


def _not_checked(workspace: Workspace) -> list[str]:
    record = records.read(workspace.root / "results/tiny/ascend/msame_bs4_match.txt.record.json")
    assert record is not None
    return list(record.summary.get("not_checked", []))


@pytest.mark.parametrize(
    "printed", [BUSY, BUSY_910, BUSY.replace("310P3", "310B1"), BUSY.replace("python3", "       ")]
)
def test_a_process_makes_a_device_busy(printed: str, workspace: Workspace, machine: Path) -> None:
    machine.write_text(printed)
    said = workspace.fail(4, *PERF, *P3)
    assert ": busy; AI cores 0 %, " in said and " 485946. Wait until it is idle" in said


@pytest.mark.parametrize(
    ("printed", "says"),
    [
        (OF_910, f"npu-smi info does not tell which chip that is (310P3, NPU 0 chip 0), {NEITHER}"),
        ("it works\n", f"what npu-smi info prints is not understood (it works), {NEITHER}"),
        ("", f"what npu-smi info prints is not understood (nothing), {NEITHER}"),
        (SILENT, "whether it is idle was not checked; AI cores 0 %, 1812 of 21527 MB in use, nothing is told of its"),
    ],
)
def test_what_cannot_be_read_is_said_recorded_and_reported(
    printed: str, says: str, workspace: Workspace, machine: Path
) -> None:
    machine.write_text(printed)
    said = workspace.succeed(*PERF, *P3)
    [line] = [line for line in said.splitlines() if says in line]
    assert line.startswith("[perf bs=4 match] device 0") and "--soc-version" not in said
    assert any(says in text for text in _not_checked(workspace))
    workspace.succeed("report", *ASCEND)
    report = json.loads((workspace.root / "results/tiny/ascend/report.json").read_text())
    [run] = report["measured"]["performances"]
    assert run["not_checked"] == sorted(_not_checked(workspace))
    for name in ("report.md", "report.html"):
        text = (workspace.root / "results/tiny/ascend" / name).read_text()
        assert "Not checked before the run (fps bs4 M): device 0" in text


def test_without_a_name_nothing_is_compiled(workspace: Workspace, machine: Path) -> None:
    machine.write_text("it works\n")
    said = workspace.fail(5, "evaluate", "--bs", "2", "--version", "match", *ASCEND)
    assert "what npu-smi info prints is not understood (it works). Give the chip's name with --soc-version" in said
    machine.write_text(OF_910.replace("310P3", "?    "))
    assert "Give the chip's name with --soc-version" in workspace.fail(5, "build-om", "--bs", "2", *ASCEND)
    assert not list((workspace.root / "models/tiny/ascend").glob("*bs2*"))
    machine.write_text(OF_910)  # the name is readable
    assert "soc_version: Ascend310P3 (auto; npu-smi info)" in workspace.succeed(*PERF)


def test_what_stops_a_run_stops_it_before_the_compilation(workspace: Workspace, machine: Path) -> None:
    for printed, code, says, options in (
        (BUSY, 4, "busy; AI cores 0 %", P3),
        (OF_310P.replace("OK   ", "Alarm"), 3, "is not healthy: npu-smi says Alarm", P3),
        (OF_310P, 2, "--device 3 is not there", (*P3, "--device", "3")),
        (
            BUSY,
            4,
            "Wait until it is idle, or take another one with --device; --device 3 is not there",
            (*P3, "--device", "0,3"),
        ),
        (
            OF_310P,
            5,
            "deberta_bs2.om is to be compiled for Ascend310P1, and device 0",
            ("--soc-version", "Ascend310P1"),
        ),
    ):
        machine.write_text(printed)
        done = workspace.run("evaluate", "--bs", "2", "--version", "match", *ASCEND, *options)
        assert (done.returncode, says in done.stderr) == (code, True), done.stderr
        assert steps_that_ran(done.stderr) == []
    assert "Run: invoke build-om --bs 2 --profile tiny --backend ascend --soc-version Ascend310P3, and" in done.stderr


def test_the_chip_of_a_model_and_of_the_device(workspace: Workspace, machine: Path) -> None:
    machine.write_text(OF_310P.replace("310P3", "310P1"))
    said = workspace.fail(5, *PERF, *P3)
    assert (
        f"{OM} was compiled for Ascend310P3, and device 0 (310P1, NPU 0 chip 0) is Ascend310P1. Run: invoke build"
        in said
    )
    assert "build-om --bs 4 --profile tiny --backend ascend --soc-version Ascend310P1, and leave --soc-version" in said
    machine.write_text(OF_310P.replace("310P3", "310Pvir01"))
    says = (
        "whether Ascend310P3, which the .om is for, is the chip of device 0 (310Pvir01, NPU 0 chip 0) was not checked"
    )
    assert says in workspace.succeed(*PERF, *P3) and any(says in text for text in _not_checked(workspace))
    machine.write_text(OF_310P)
    said = workspace.succeed(*PERF, *P3, "--force")
    assert "not checked" not in said and _not_checked(workspace) == []
    (workspace.root / f"{OM}.record.json").unlink()
    said = workspace.succeed(*PERF, *P3, "--force")
    assert "for the chip of device 0 (310P3, NPU 0 chip 0) was not checked: no record tells the model's" in said


def test_the_shape_of_a_model_and_of_the_run(workspace: Workspace, machine: Path) -> None:
    machine.write_text(OF_310P)
    for suffix in ("", ".record.json"):
        shutil.copy(workspace.root / f"{OM}{suffix}", workspace.root / f"{OM.replace('bs4', 'bs8')}{suffix}")
    command = ("perf", "--bs", "8", "--loops", "5", *ASCEND, *P3)
    said = workspace.fail(5, *command)
    assert (
        "deberta_bs8.om was compiled for batch size 4 and length 256, by its record, and this run is of batch" in said
    )
    assert "batch size 8 and length 256. Run: invoke build-om --bs 8 --profile tiny --backend ascend --force" in said
    workspace.succeed("build-om", "--bs", "8", *ASCEND, *P3, "--force")
    workspace.succeed(*command)
    assert list((workspace.root / "models/tiny/ascend").glob("deberta_bs8.om.before-*"))


def test_programs_of_another_machine(workspace: Workspace, machine: Path, installed: Path, tmp_path: Path) -> None:
    elf = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x02\x01" + bytes(44)  # LoongArch
    machine.write_text(OF_310P)
    msame = tmp_path / "msame"
    msame.write_bytes(elf)
    msame.chmod(0o755)
    said = workspace.fail(4, *PERF, *P3, "--msame", str(msame))
    assert f"{msame} cannot be started: it is built for loongarch64, and this machine is" in said
    msame.unlink()
    msame.symlink_to("moved")
    assert f"{msame} is a link to moved, which is not there" in workspace.fail(2, *PERF, *P3, "--msame", str(msame))
    atc, whole = installed / fake_cann.ATC, (installed / fake_cann.ATC).read_text()
    atc.write_bytes(elf)
    try:
        assert "atc cannot be started: it is built for loongarch64" in workspace.fail(
            4, "build-om", "--bs", "2", *ASCEND, *P3
        )
    finally:
        atc.write_text(whole)
    (tmp_path / "bin/npu-smi").write_bytes(elf)
    assert "npu-smi cannot be started: it is built for loongarch64" in workspace.fail(4, *PERF, *P3)


def test_a_toolkit_that_was_sourced(
    workspace: Workspace, installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workspace.configure(cann=None)
    script, command = installed / fake_cann.SET_ENV, ("build-om", "--bs", "4", "--dry", *P3)
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        monkeypatch.setenv(name, str(installed / "ascend-toolkit/latest"))
        assert f"backend: ascend (auto; CANN is here: {script} (by ${name}))" in workspace.succeed(*command)
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{(installed / fake_cann.ATC).parent}:{os.environ['PATH']}")
    said = workspace.succeed("build-om", "--bs", "4", *P3)
    assert "above " in said and f"CANN is here: {script} (above " in said
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    (tmp_path / "tools").mkdir()
    shutil.copy(installed / fake_cann.ATC, tmp_path / "tools/atc")
    said = workspace.succeed(*command)
    assert f"backend: cpu (auto; no CANN is here; atc is on PATH ({tmp_path}/tools/atc), with no set_env.sh in" in said
    assert "atc is on PATH (" in workspace.fail(3, "build-om", "--bs", "2", *ASCEND, *P3)


def test_devices_are_named_in_one_way(
    workspace: Workspace, machine: Path, installed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.write_text(OF_310P)
    with monkeypatch.context() as here:
        here.setattr("deberta.core.machine.is_container", lambda: False)
        for name in ("ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES"):
            here.setenv(name, "4,5")
            said = workspace.fail(2, "evaluate", "--bs", "2", "--version", "match", *ASCEND, *P3)
            assert (
                f"{name} is 4,5 in the environment, and --device is 0: " in said and f"Unset {name}, and name" in said
            )
            here.delenv(name)
        here.setattr("deberta.core.machine.is_container", lambda: True)
        here.setenv("ASCEND_VISIBLE_DEVICES", "4,5")
        workspace.succeed(*PERF, *P3)
    script = tmp_path / "set_env.sh"
    script.write_text(f'. "{installed / fake_cann.SET_ENV}"\nexport ASCEND_RT_VISIBLE_DEVICES=1\n')
    workspace.configure(cann=str(script))
    assert "ASCEND_RT_VISIBLE_DEVICES is 1 in the" in workspace.fail(2, *PERF, *P3, "--force")
    assert not list((workspace.root / "models/tiny/ascend").glob("*bs2*"))
