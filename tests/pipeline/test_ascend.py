"""The ascend backend as a user runs it, on the local executor, with the stand-ins of tests/fakes in place of CANN."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deberta.core import files, records
from deberta.core.errors import ConfigError
from deberta.host.cli import settings
from tests import fake_cann
from tests import pipeline_helpers as helpers
from tests.pipeline_helpers import Workspace, steps_that_ran

ASCEND = ("--backend", "ascend")
EVALUATE = ("evaluate", "--bs", "4", "--version", "match", *ASCEND)
BUILD = ("build-om", "--bs", "2", *ASCEND)
PERF = ("perf", "--bs", "4", "--loops", "5", *ASCEND)
OM = "models/tiny/ascend/deberta_bs4.om"
RESULTS = "results/tiny/ascend"


@pytest.fixture(name="installed", scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_cann.install(tmp_path_factory.mktemp("Ascend"), python=sys.executable)


@pytest.fixture(name="cann")
def _cann(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The installation with nothing forced, npu-smi on PATH, and a virtual environment that must not reach atc."""
    fake_cann.force(installed)
    _on_path(installed, monkeypatch)
    return installed


def _on_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{(installed / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("VIRTUAL_ENV", "/somewhere/.venv")


@pytest.fixture(name="finished", scope="module")
def _finished(installed: Path, evaluated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which one evaluation has run on either backend; tests copy it."""
    workspace = evaluated.copy(tmp_path_factory.mktemp("finished") / "workspace")
    workspace.configure(cann=str(installed / "ascend-toolkit"), msame=str(installed / fake_cann.MSAME))
    fake_cann.force(installed)
    with pytest.MonkeyPatch.context() as patch:
        _on_path(installed, patch)
        said = workspace.succeed(*EVALUATE)
    assert "soc_version: Ascend310P3 (auto; npu-smi info)" in said
    assert "[infer bs=4 match] device 0 (310P3, NPU 24 chip 0): idle" in said
    return workspace


@pytest.fixture(name="workspace")
def _workspace(finished: Workspace, cann: Path, tmp_path: Path) -> Workspace:
    return finished.copy(tmp_path / "copy")


def _oms(workspace: Workspace) -> set[str]:
    """Every file of an .om, half-written ones and markers included."""
    return {name for name in workspace.files() if ".om" in name and name.startswith("models/") and "_bs4." not in name}


def test_counts_equal_the_cpu_backends(workspace: Workspace) -> None:
    for name in ("eval_bs4_match.txt", "eval_bs4_match.json"):
        ours, cpus = ((workspace.root / "results/tiny" / backend / name).read_text() for backend in ("ascend", "cpu"))
        if name.endswith(".json"):
            counts = [{key: json.loads(text)[key] for key in ("correct", "rows", "genres")} for text in (ours, cpus)]
            assert counts[0] == counts[1] and counts[0]["rows"] == 10
        else:
            assert ours == cpus
    said = workspace.succeed(*EVALUATE)
    assert steps_that_ran(said) == [] and "accuracy match bs=4 on ascend: " in said
    assert not _oms(workspace)
    assert [path.name for path in (workspace.root / ".cache/scratch").iterdir()] == ["home"]  # no kernel_meta ...


def test_records_say_what_made_what(workspace: Workspace) -> None:
    built = records.read(workspace.root / f"{OM}.record.json")
    ran = records.read(workspace.root / RESULTS / "outputs_bs4_om/match.record.json")
    assert built is not None and ran is not None
    parameters = built.parameters
    assert (parameters["tool"], parameters["cann"]) == ("atc", fake_cann.VERSION)
    assert "--soc_version=Ascend310P3" in parameters["arguments"]
    assert built.summary["soc_version"] == "Ascend310P3"
    assert ran.dependencies[OM] == {"sha256": files.sha256_of(workspace.root / OM)}
    assert len(ran.parameters["program"]) == 64


def test_performance_run_and_report(workspace: Workspace, cann: Path) -> None:
    said = workspace.succeed(*PERF)
    assert "perf bs=4 match on ascend: " in said and "(5 loops" in said
    assert "p99" in said and steps_that_ran(said) == ["perf bs=4 match"]
    assert (workspace.root / RESULTS / "msame_bs4_match.txt").read_text().count("Inference time: ") == 5
    [row] = [line for line in workspace.succeed("report", *ASCEND).splitlines() if "| tiny bs4 |" in line]
    assert row.count("on ascend") == 2
    assert "CPU backend" not in (workspace.root / RESULTS / "report.md").read_text()
    fake_cann.force(cann, atc="warnings")
    workspace.succeed(*BUILD)
    built = records.read(workspace.root / "models/tiny/ascend/deberta_bs2.om.record.json")
    assert built is not None and built.summary["slow_ops"]


def test_what_makes_a_step_run_again(workspace: Workspace) -> None:
    said = workspace.succeed("build-om", "--bs", "4", *ASCEND, "--soc-version", "Ascend310P1")
    assert "[build-om bs=4] running: its arguments changed" in said
    workspace.configure(atc={"precision_mode": "force_fp32", "extra": ["--fusion_switch_file="]})
    assert "--fusion_switch_file has a key of its own" in workspace.fail(2, *EVALUATE)
    workspace.configure(atc={"precision_mode": "force_fp32"})
    assert steps_that_ran(workspace.succeed("infer", *EVALUATE[1:]))[0] == "build-om bs=4"
    # Counted again without CANN, on whatever machine; but not once the model is another one.
    workspace.configure(cann="/nowhere", msame=None)
    workspace.succeed("postprocess", *EVALUATE[1:])
    (workspace.root / OM).write_bytes(b"another")
    said = workspace.fail(5, "postprocess", *EVALUATE[1:])
    assert "are not of the present inputs" in said and "--backend ascend" in said


def test_gears(workspace: Workspace) -> None:
    """A model with several batch sizes: msame is told which, and the counts are the same."""
    before = (workspace.root / RESULTS / "eval_bs4_match.txt").read_text()
    workspace.configure(atc={"dynamic_dims": "1,1;4,4"})
    assert "the largest gear of dynamic_dims is 4 and the batch size is 2" in workspace.fail(2, *BUILD)
    assert steps_that_ran(workspace.succeed(*EVALUATE))[:2] == ["build-om bs=4", "infer bs=4 match"]
    assert (workspace.root / RESULTS / "eval_bs4_match.txt").read_text() == before
    workspace.succeed(*PERF)


def test_a_brought_model_is_used_as_it_is(workspace: Workspace, cann: Path) -> None:
    compiled = (workspace.root / OM).read_bytes()
    workspace.succeed("clean", "--profile", "tiny")
    (workspace.root / OM).parent.mkdir(parents=True)
    (workspace.root / OM).write_bytes(compiled)
    fake_cann.force(cann, atc="failed-exit0")
    said = workspace.succeed(*EVALUATE)
    assert f"{OM} was not made here and is used as it is" in said
    assert steps_that_ran(said) == ["preprocess bs=4 match", "infer bs=4 match", "postprocess bs=4 match"]
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == []
    assert "/10) (on ascend, user-supplied .om)" in workspace.succeed("report", *ASCEND)
    assert steps_that_ran(workspace.succeed(*PERF, "--force")) == ["perf bs=4 match"]
    assert steps_that_ran(workspace.succeed("infer", *EVALUATE[1:], "--force")) == ["infer bs=4 match"]
    workspace.fail(4, "build-om", "--bs", "4", *ASCEND, "--force")
    assert (workspace.root / OM).read_bytes() == compiled
    fake_cann.force(cann)
    # Ours, from a run that was killed between the rename and the record: never taken for the user's.
    intent = files.intent_of(workspace.root / OM)
    files.append(intent, files.state(workspace.root / OM), Path(OM).name)
    assert "build-om bs=4" in steps_that_ran(workspace.succeed("build-om", "--bs", "4", *ASCEND))
    assert not intent.exists() and (workspace.root / f"{OM}.record.json").exists()
    (workspace.root / f"{OM}.record.json").unlink()
    files.append(intent, files.state(workspace.root / OM), Path(OM).name)
    workspace.succeed("clean", "--profile", "tiny")
    assert not (workspace.root / OM).exists()


ATC_FAILURES = {
    "exit0-without-success": (4, "ended with exit code 0 and without its success line"),
    "success-without-om": (4, "atc printed its success line, but "),
    "empty-om": (5, "is empty"),
    "old-om": (5, "is older than the run"),
    "failed-exit0": (4, "E19999"),
    "success-exit255": (4, "ended with exit code 255"),
    "killed": (4, "most likely because memory ran out"),
    "code=EE1000": (2, "this CANN does not know that chip"),
    "code=E40001": (3, "ATC cannot import a Python module"),
    "code=E16005": (5, "Run: invoke export-onnx --profile tiny --force"),
    "code=EZ3003": (4, "CANN has no kernel for an operator"),
    "code=E40008,new-format": (3, "ATC cannot import a Python module"),
    "needs-hal": (3, "libascend_hal.so was not found"),
}


@pytest.mark.parametrize("forced", ATC_FAILURES)
def test_atc_that_does_not_do_what_it_says(workspace: Workspace, cann: Path, forced: str) -> None:
    fake_cann.force(cann, atc=forced)
    code, says = ATC_FAILURES[forced]
    assert says in workspace.fail(code, *BUILD)
    assert forced == "needs-hal" or (workspace.root / ".cache/scratch/build-om_bs2/home/ascend/log").is_dir()
    assert _oms(workspace) == set()
    fake_cann.force(cann)
    assert steps_that_ran(workspace.succeed(*BUILD)) == ["build-om bs=2"]


MSAME_FAILURES = {
    "crash=1": (4, "without its success line, after 1 inferences"),
    "fail=0": (4, "model execute failed"),
    "fail=2": (5, "some inputs were not run"),
    "stops-at-failure,fail=2": (4, "model execute failed"),
    "missing-output": (5, "1 outputs of 3 are missing from"),
    "truncated-output": (5, "have a wrong size: input_2_output_0.bin (24 bytes, not 48)"),
    "extra-output": (5, "are not expected in"),
    "error-line": (5, "aclrtFree failed"),
}


@pytest.mark.parametrize("forced", MSAME_FAILURES)
def test_msame_that_does_not_do_what_it_says(workspace: Workspace, cann: Path, forced: str) -> None:
    before = {name for name in workspace.files() if "outputs_bs4_om" in name}
    fake_cann.force(cann, msame=forced)
    code, says = MSAME_FAILURES[forced]
    said = workspace.fail(code, "infer", *EVALUATE[1:], "--force")
    assert says in said and f"its output: {RESULTS}/logs/infer_bs4_match.log)" in said
    assert {name for name in workspace.files() if "outputs_bs4_om" in name} == before


@pytest.mark.parametrize("forced", ["second-folder", "old-success", "scientific"])
def test_msame_that_only_looks_odd(workspace: Workspace, cann: Path, forced: str) -> None:
    fake_cann.force(cann, msame=forced)
    workspace.succeed(*PERF)
    [folder] = (workspace.root / RESULTS / "perf_bs4_om/match").iterdir()
    assert [path.name for path in folder.iterdir()] == ["deberta_bs4_output_0.bin"]


def test_inputs_that_msame_would_take(workspace: Workspace) -> None:
    """A larger file passes its size check and gives wrong numbers; any file in the folder is run."""
    bins = workspace.root / "data/tiny/pre_mnli_bs4/match"
    record = bins.with_name("match.record.json")

    def as_if_always_so() -> None:
        content = json.loads(record.read_text())
        content["subject"][0]["digest"]["dirHash"] = files.folder_digest(bins)
        record.write_text(json.dumps(content))

    good = (bins / "input_mask/input_1.bin").read_bytes()
    (bins / "input_mask/input_1.bin").write_bytes(good * 2)  # int64, say
    as_if_always_so()
    said = workspace.fail(5, *EVALUATE)
    assert "(8192 bytes, not 4096)" in said and "Run: invoke preprocess --bs 4 --version match --profile tiny" in said
    (bins / "input_mask/input_1.bin").write_bytes(good)
    (bins / "input_ids/notes.txt").write_text("what I did")
    as_if_always_so()
    assert "1 inputs of 3 are not expected in" in (said := workspace.fail(5, *EVALUATE)) and "notes.txt" in said


ANOTHER_CHIP = """#!/bin/sh
echo "[INFO] acl init success"
echo "[ACL ERROR] EE1001: [PID: 1] 2025-10-30-08:21:08.817.477 ModelCheckCompatibility failed, supported \
socVersion=Ascend310P3, but the model socVersion=Ascend310P1"
echo "[ERROR] load model from file failed, model file is x.om"
exit 1
"""


@pytest.mark.parametrize(
    ("program", "code", "says"),
    [
        (ANOTHER_CHIP, 5, "build-om --bs 4 --profile tiny --backend ascend --force --soc-version Ascend310P3"),
        (
            "#!/bin/sh\necho msame: error while loading shared libraries: libascendcl.so: cannot open\n",
            3,
            "library of CANN",
        ),
        ("\x7fELF no program of this machine's", 4, "cannot be started: it is built for another machine"),
        ("#!/no/such/loader\n", 4, "cannot be started: /no/such/loader is not there"),
    ],
)
def test_what_stops_msame_is_named(workspace: Workspace, tmp_path: Path, program: str, code: int, says: str) -> None:
    path = tmp_path / "my-msame"
    path.write_text(program)
    path.chmod(0o755)
    said = workspace.fail(code, *PERF, "--msame", str(path))
    assert says in said and ("its output: " in said or code == 4)


def test_models_that_msame_cannot_run(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = workspace.root / "models/tiny/ascend"
    shutil.copyfile(folder / "deberta_bs4.om", folder / "deberta_bs8.om")
    said = workspace.fail(5, "evaluate", "--bs", "8", "--version", "match", *ASCEND)
    assert "the .om is for batch size 4, not 8 (" in said and "input_0_output_0.bin (48 bytes, not 96)" in said
    shutil.copyfile(folder / "deberta_bs4.om", folder / "deberta_bs1.om")
    said = workspace.fail(5, "evaluate", "--bs", "1", "--version", "match", *ASCEND)
    assert "the .om is for batch size 4, not 1 (" in said
    assert "Run: invoke build-om --bs 1 --profile tiny --backend ascend --force, which makes another" in said
    (folder / "deberta_bs8.om").write_bytes(b"garbage")
    said = workspace.fail(4, "evaluate", "--bs", "8", "--version", "match", *ASCEND)
    assert "load model from file failed" in said and "build-om --bs 8 --profile tiny --backend ascend --force" in said
    assert "Perhaps the .om was compiled for another chip" in said and "missing" not in said
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])  # no npu-smi: nothing can be checked before
    said = workspace.succeed(*PERF, "--soc-version", "Ascend310P3")
    assert "device 0: no npu-smi on PATH, so neither its health nor whether it is idle was checked" in said
    said = workspace.fail(4, *PERF, "--device", "9", "--soc-version", "Ascend310P3")
    assert "open device 9 failed" in said and "check --device" in said


@pytest.mark.parametrize(
    ("machine", "code", "says"),
    [
        ("busy", 4, "busy; AI cores 97 %"),
        ("busy-22", 4, "busy; AI cores 88 %"),
        ("unhealthy", 3, "is not healthy"),
        ("none", 3, "the driver does not answer"),
        ("in-use", 3, "another container holds the device"),
    ],
)
def test_a_device_that_must_not_be_used(workspace: Workspace, cann: Path, machine: str, code: int, says: str) -> None:
    fake_cann.force(cann, npu_smi=machine)
    assert says in workspace.fail(code, *PERF, "--soc-version", "Ascend310P3")
    assert not list((workspace.root / RESULTS).glob("perf*/*"))


def test_what_is_missing_or_wrong_is_said(workspace: Workspace, cann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--device 9 is not there. npu-smi info shows: 0 (310P3" in workspace.fail(
        2, *PERF, "--device", "9", "--soc-version", "Ascend310P3"
    )
    assert "--device '256'" in workspace.fail(2, *PERF, "--device", "256")
    assert "--soc-version '310P3'" in workspace.fail(2, *BUILD, "--soc-version", "310P3")
    assert "none is missing. Build msame" in workspace.fail(3, *PERF, "--msame", str(workspace.root / "none"))
    with pytest.raises(ConfigError, match="not a mapping"):
        settings.atc_options(["--log=error"])
    workspace.configure(cann=str(workspace.root))
    assert "no set_env.sh is there" in workspace.fail(2, *BUILD)
    workspace.configure(cann=None)
    assert "CANN was not found" in workspace.fail(3, *BUILD)
    fake_cann.force(cann, npu_smi="vnpu")
    assert "part of a chip" in workspace.fail(2, *BUILD)
    monkeypatch.setenv("PATH", os.environ["PATH"].partition(":")[2])
    assert "no npu-smi on PATH" in workspace.fail(3, *BUILD)


def test_auto_says_what_it_took(workspace: Workspace, cann: Path) -> None:
    said = workspace.succeed("build-om", "--bs", "4")
    script = cann / "ascend-toolkit/set_env.sh"
    assert f"backend: ascend (auto; CANN is here: {script} (cann in invoke.yaml))" in said
    assert steps_that_ran(said) == []
    workspace.configure(cann=None)
    assert "backend: cpu (auto; no CANN is here, so no .om is made)" in workspace.succeed("build-om", "--bs", "4")
    assert "backend: cpu (auto; no NPU is here" in workspace.succeed("evaluate", "--bs", "4", "--version", "match")


def _appears(running: subprocess.Popen[str], workspace: Workspace, pattern: str) -> None:
    """Wait until a file shows that the tool is at work."""
    give_up = time.monotonic() + helpers.TIMEOUT
    while not list(workspace.root.glob(pattern)):
        assert running.poll() is None and time.monotonic() < give_up
        time.sleep(0.05)


AT_WORK = {
    "atc": (BUILD, {"atc": "hang"}, "models/tiny/ascend/.deberta_bs2.om.tmp-*.om"),
    "msame": (PERF, {"msame": "hang=2"}, f"{RESULTS}/perf_bs4_om/.match.tmp-*/*"),
}


@pytest.mark.parametrize("tool", AT_WORK)
def test_interrupted_at_work(workspace: Workspace, cann: Path, tool: str) -> None:
    command, forced, sign = AT_WORK[tool]
    before = workspace.files()
    fake_cann.force(cann, **forced)
    running = workspace.start(*command)
    _appears(running, workspace, sign)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=helpers.TIMEOUT)
    assert running.returncode == 130, out + err
    assert "Traceback" not in out + err and "interrupted" in err
    # The check before ATC is done, and its report true, whatever comes after it.
    assert {name for name in workspace.files() - before if "/logs/" not in name and "/lint_" not in name} == set()
    fake_cann.force(cann)
    assert len(steps_that_ran(workspace.succeed(*command))) == 1


@pytest.mark.parametrize("tool", AT_WORK)
def test_a_killed_run_leaves_nothing_that_looks_finished_and_no_process(
    workspace: Workspace, cann: Path, tool: str
) -> None:
    """We are killed, and the tool, which nobody stops then, ends with us."""
    command, forced, sign = AT_WORK[tool]
    before = workspace.files()
    fake_cann.force(cann, **forced)
    running = workspace.start(*command)
    _appears(running, workspace, sign)
    running.kill()
    running.communicate(timeout=helpers.TIMEOUT)
    deadline = time.monotonic() + 5
    while left := _processes_in(workspace.root):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    new = {name for name in workspace.files() - before if "/logs/" not in name and "/lint_" not in name}
    assert all("/." in name for name in new), new
    fake_cann.force(cann)
    assert len(steps_that_ran(workspace.succeed(*command))) == 1
    assert not [name for name in workspace.files() if files.TEMPORARY in name]


def _processes_in(folder: Path) -> list[str]:
    """The command lines of the processes that work in a folder."""
    lines = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if folder in (there := Path(os.readlink(process / "cwd")), *there.parents):
                lines.append((process / "cmdline").read_text())
    return lines


def test_dry_prints_the_guides_lines(workspace: Workspace, cann: Path) -> None:
    workspace.succeed("clean", "--profile", "tiny")
    before = workspace.files()
    said = workspace.succeed(*EVALUATE, "--dry")
    assert said == workspace.succeed("--dry", *EVALUATE) and workspace.files() == before
    commands = [shlex.split(line) for line in said.splitlines()]
    [compiling] = [words for words in commands if words[0] == "atc"]
    assert compiling == [
        "atc",
        "--framework=5",
        "--model=models/tiny/dynamic.onnx",
        "--output=models/tiny/ascend/deberta_bs4",
        "--input_format=ND",
        "--input_shape=input_ids:4,256;input_mask:4,256",
        "--soc_version=Ascend310P3",
        "--log=error",
    ]
    [running] = [words for words in commands if words[0].endswith("msame")]
    bins = "data/tiny/pre_mnli_bs4/match"
    assert running == [
        *(str(cann / "msame"), "--model", OM, "--input", f"{bins}/input_ids/,{bins}/input_mask/"),
        *("--output", f"{RESULTS}/outputs_bs4_om/match"),
    ]
    timed = workspace.succeed(*PERF[:-4], *ASCEND, "--dry")
    assert f"--input {bins}/input_ids/input_0.bin,{bins}/input_mask/input_0.bin --output " in timed
    assert timed.rstrip().endswith("--loop 100")
    script = "\n".join(line for line in said.splitlines() if not line.startswith(("executor: ", "soc_version: ")))
    bare = {"PATH": os.environ["PATH"], "HOME": str(workspace.root)}
    pasted = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, env=bare, check=False)
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    assert "eval_samples = 10" in (workspace.root / RESULTS / "eval_bs4_match.txt").read_text()


def test_what_is_finished_needs_no_device_and_no_cann(
    workspace: Workspace, cann: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Carried to another machine, a finished run is judged there; what is not finished says what it lacks."""
    workspace.succeed(*PERF)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    workspace.configure(cann=None, msame=None)
    accept = ("acceptance", *ASCEND, "--version", "match", "--loops", "5", "--bs")
    said = workspace.run(*accept, "4").stderr  # the gate on the tiny tokenizer fails
    assert [step.split()[0] for step in steps_that_ran(said)] == ["check-data", "reference", "assess", "render"]
    assert f"soc_version: Ascend310P3 (as the record of {OM} has it; nothing here tells the chip)" in said
    assert "(what ran it was not compared with what is here: CANN was not found)" in said
    assert "verified: " in workspace.succeed("verify", *ASCEND)
    assert steps_that_ran(workspace.succeed("evaluate", *EVALUATE[1:])) == []
    assert "accuracy bs=2 match: CANN was not found" in workspace.fail(3, *accept, "2,4")
    workspace.data("match").write_bytes(workspace.data("match").read_bytes().replace(b"A ship.", b"A whale.", 1))
    assert "CANN" in workspace.fail(3, *EVALUATE)


def test_the_users_bins_and_onnx_are_used_as_they_are(workspace: Workspace) -> None:
    """Their figures say so, what is judged is judged without them, and the chain leaves both where they are."""
    for name in ("models/tiny/dynamic.onnx", "data/tiny/pre_mnli_bs4/match"):
        (workspace.root / f"{name}.record.json").unlink()
    shutil.rmtree(workspace.root / RESULTS)
    said = workspace.succeed(*EVALUATE)
    assert "data/tiny/pre_mnli_bs4/match was not made here and is used as it is (invoke preprocess --bs 4" in said
    assert "models/tiny/dynamic.onnx was not made here and is used as it is (invoke export-onnx --profile tiny" in said
    assert steps_that_ran(said) == ["infer bs=4 match", "postprocess bs=4 match"]
    assert "/10) (on ascend, user-supplied ONNX and bins)" in workspace.succeed("report", *ASCEND)
    assert "verified: " in workspace.succeed("verify", *ASCEND)
    assert steps_that_ran(workspace.succeed("postprocess", *EVALUATE[1:])) == []
    assert "never replaced" in workspace.fail(5, "preprocess", *EVALUATE[1:5])
    assert steps_that_ran(workspace.succeed(*EVALUATE, "--force"))[:2] == ["export-onnx", "build-om bs=4"]
