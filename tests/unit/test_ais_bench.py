"""ais_bench: what we make of every kind of run of its stand-in, started as the real one is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Callable, Dict, Optional, Tuple, Type

import numpy as np
import onnxruntime
import pytest

from deberta.ascend import ais_bench, timing
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError
from tests import fake_cann
from tests.cpu_model_helpers import LENGTH, small_onnx, write_bins
from tests.fakes import om
from tests.unit.test_timing import summary

BATCH, SIZE, BATCHES, LOOPS = 4, 48, 12, 5
FOLDERS = (PurePosixPath("input_ids"), PurePosixPath("input_mask"))
FIRST = tuple(folder / "input_0.bin" for folder in FOLDERS)
MODEL, OUT = PurePosixPath("x.om"), PurePosixPath("results/out")
INFER = ais_bench.command(MODEL, FOLDERS, OUT, BATCH)
PERF = ais_bench.command(MODEL, FIRST, OUT, BATCH, loops=LOOPS)
OM_INPUTS = tuple(om.Input(name, "int32", (BATCH, LENGTH)) for name in ("input_ids", "input_mask"))
GEARS = ((2, LENGTH, 2, LENGTH), (BATCH, LENGTH, BATCH, LENGTH))


@pytest.fixture(name="cann", scope="module")
def _cann(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = fake_cann.install(tmp_path_factory.mktemp("As cend"))
    fake_cann.add_ais_bench(root, sys.executable)
    return root


@pytest.fixture(name="onnx_file", scope="module")
def _onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_onnx(tmp_path_factory.mktemp("model") / "x.onnx")


@pytest.fixture(name="work")
def _work(tmp_path: Path, onnx_file: Path) -> Path:
    (tmp_path / MODEL).write_bytes(om.pack(om.Om(OM_INPUTS, onnx_file.read_bytes())))
    write_bins(tmp_path, BATCHES, BATCH)
    return tmp_path


def start(cann: Path, work: Path, arguments: Tuple[str, ...], forced: str = "") -> Tuple[int, str]:
    """The exit code and all output of `python3 -m ais_bench` in an environment made by set_env.sh alone."""
    fake_cann.force(cann, ais_bench=forced)
    script = f'. "{cann / fake_cann.SET_ENV}" && exec python3 -m {ais_bench.MODULE} "$@"'
    done = subprocess.run(
        ["bash", "-c", script, "bash", *arguments],
        cwd=work,
        env={"PATH": os.defpath, "HOME": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def judged(work: Path, stdout: str, expected: Dict[str, int], times: int) -> Tuple[ais_bench.AisBenchRun, Path]:
    run = ais_bench.parse(stdout)
    folder = work / (run.folder or OUT)
    ais_bench.judge(run, folder, expected, times)
    return run, folder


def outputs(batches: int) -> Dict[str, int]:
    return {ais_bench.output_file(index): SIZE for index in range(batches)}


def gone(*names: str) -> Callable[[Path], None]:
    def spoil(work: Path) -> None:
        for path in (work / name for name in names):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def holds(content: bytes, *names: str) -> Callable[[Path], None]:
    def spoil(work: Path) -> None:
        for name in names:
            (work / name).write_bytes(content)

    return spoil


def halves(work: Path) -> None:
    """Bins of half the batch size: the tool runs two of them at once, and says nothing."""
    for folder in FOLDERS:
        for path in (work / folder).iterdir():
            os.truncate(path, path.stat().st_size // 2)


def stale(work: Path) -> None:
    """A bin too many; hidden ones are run too."""
    for folder in FOLDERS:
        shutil.copy(work / folder / "input_0.bin", work / folder / ".input_12.bin")


def geared(work: Path) -> None:
    packed = om.unpack((work / MODEL).read_bytes())
    (work / MODEL).write_bytes(om.pack(om.Om(packed.inputs, packed.onnx, GEARS)))


def out_is_a_file(work: Path) -> None:
    (work / OUT.parent).write_bytes(b"a file of that name")


@dataclass(frozen=True)
class Case:
    """A run that must not count: its exit code, and the error that we make of it."""

    code: int
    error: Type[DebertaError]
    says: str
    forced: str = ""
    spoil: Optional[Callable[[Path], None]] = None
    arguments: Tuple[str, ...] = INFER


CASES = {
    # It says what is wrong, and exits with 1 or 2.
    "no model": Case(1, StageError, "invoke build-om", spoil=gone("x.om")),
    "half a model": Case(1, StageError, "invoke build-om", spoil=lambda work: os.truncate(work / MODEL, 5000)),
    "no input": Case(1, MissingError, "invoke preprocess", spoil=gone("input_ids")),
    "no second input": Case(1, MissingError, "not a real dir path", spoil=gone("input_mask")),
    "no second file": Case(
        1, MissingError, "input_mask/input_0.bin not exist", spoil=gone("input_mask/input_0.bin"), arguments=PERF
    ),
    "fewer files in the second": Case(1, DataError, "list index out", spoil=gone("input_mask/input_3.bin")),
    "one folder": Case(1, DataError, "dir num:1", arguments=ais_bench.command(MODEL, FOLDERS[:1], OUT, BATCH)),
    "empty first file": Case(1, DataError, "filesize: 0", spoil=holds(b"", "input_ids/input_0.bin")),
    "odd size": Case(1, DataError, "filesize: 4095 not match", spoil=holds(bytes(4095), "input_ids/input_0.bin")),
    "short later": Case(1, DataError, "in size:4000", spoil=holds(bytes(4000), "input_mask/input_7.bin")),
    "long later": Case(1, DataError, "in size:4160", spoil=holds(bytes(4160), "input_ids/input_7.bin")),
    "device taken": Case(1, StageError, "npu-smi info", arguments=ais_bench.command(MODEL, FOLDERS, OUT, BATCH, 9)),
    "device 256": Case(2, ConfigError, "[0, 255]", arguments=ais_bench.command(MODEL, FOLDERS, OUT, BATCH, 256)),
    "no loops": Case(2, ConfigError, "--loop", arguments=ais_bench.command(MODEL, FIRST, OUT, BATCH, loops=0)),
    "no gear": Case(1, ConfigError, "--dym", spoil=geared),
    "gear of none": Case(1, ConfigError, "--dym", arguments=(*INFER, "--dymDims", "input_ids:4,256;input_mask:4,256")),
    "no such gear": Case(1, ConfigError, "--dym", spoil=geared, arguments=(*INFER, "--dymDims", "a:8,256;b:8,256")),
    "refused": Case(1, StageError, "execute model failed", "fail=11"),
    "no folder can be made": Case(1, ConfigError, "output folder", spoil=out_is_a_file),
    # It ends without a word.
    "crash": Case(-signal.SIGSEGV, StageError, "stopped before it wrote its summary", "crash=7"),
    "no summary": Case(0, StageError, "stopped before it wrote its summary", "no-summary"),
    "half a summary": Case(0, DataError, "not whole", "half-summary"),
    # It says that all went well.
    "halves": Case(0, DataError, "6 inferences were timed, 12 were asked for", spoil=halves),
    "a time too few": Case(0, DataError, "11 inferences were timed", "times=-1"),
    "a loop too many": Case(0, DataError, "6 inferences were timed, 5 were", "times=1", arguments=PERF),
    "truncated": Case(0, DataError, "input_11_0.bin (24 bytes, not 48)", "truncated-output"),
    "missing": Case(0, DataError, "1 outputs of 12 are missing", "missing-output"),
    "extra": Case(0, DataError, "not expected in", "extra-output"),
    "stale bin": Case(0, DataError, "13 inferences were timed", spoil=stale),
    "another's run": Case(0, DataError, "2022_12_17-07_37_18", "second-folder"),
    "an error": Case(0, StageError, "aclrtFree failed", "error-line"),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_a_run_that_must_not_count(cann: Path, work: Path, case: Case) -> None:
    if case.spoil:
        case.spoil(work)
    code, stdout = start(cann, work, case.arguments, case.forced)
    assert code == case.code, stdout
    batches, times = (1, LOOPS) if case.arguments is PERF else (BATCHES, BATCHES)
    with pytest.raises(DebertaError) as raised:
        judged(work, stdout, outputs(batches), times)
    assert type(raised.value) is case.error, stdout
    assert case.says in str(raised.value)


def test_every_input_gives_its_own_output_under_our_name(cann: Path, work: Path, onnx_file: Path) -> None:
    code, stdout = start(cann, work, INFER)
    assert code == 0, stdout
    run, folder = judged(work, stdout, outputs(BATCHES), BATCHES)
    assert folder.parent == work / OUT and run.errors == ()
    ais_bench.settle(folder)
    assert {path.name for path in folder.iterdir()} == {f"input_{index}_output_0.bin" for index in range(BATCHES)}
    feed = {folder.name: np.fromfile(work / folder / "input_10.bin", np.int32).reshape(4, -1) for folder in FOLDERS}
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    written = np.fromfile(folder / "input_10_output_0.bin", np.float32).reshape(BATCH, 3)
    assert np.allclose(written, session.run(None, feed)[0], atol=1e-6)


def test_a_performance_run_keeps_its_summary(cann: Path, work: Path) -> None:
    code, stdout = start(cann, work, PERF, "slow=0.002")
    assert code == 0, stdout
    _, folder = judged(work, stdout, outputs(1), LOOPS)
    kept = ais_bench.read_summary(ais_bench.summary_of(folder).read_text())
    assert len(kept.times_ms) == LOOPS and min(kept.times_ms) > 2
    log = ais_bench.summary_of(folder)
    assert timing.read(log, BATCH).fps == pytest.approx(BATCH * 1000 / (sum(kept.times_ms) / LOOPS))
    with pytest.raises(DataError, match=r"_summary\.json: its throughput is .* at batch size 8"):
        timing.read(log, 8)


def test_an_exit_code_alone_is_left_to_the_caller(cann: Path, work: Path) -> None:
    code, stdout = start(cann, work, INFER, "exit=3")
    assert code == 3
    judged(work, stdout, outputs(BATCHES), BATCHES)


def test_a_gear_has_outputs_of_its_own_size(cann: Path, work: Path) -> None:
    """Unlike msame, which writes those of the largest."""
    geared(work)
    halves(work)
    code, stdout = start(cann, work, (*INFER, "--dymDims", "input_ids:2,256;input_mask:2,256"))
    assert code == 0, stdout
    judged(work, stdout, dict.fromkeys(outputs(BATCHES), SIZE // 2), BATCHES)


def probe(cann: Path, work: Path) -> str:
    script = f'. "{cann / fake_cann.SET_ENV}" && exec python3 -c "$0"'
    found = subprocess.run(["bash", "-c", script, ais_bench.PROBE], cwd=work, stdout=subprocess.PIPE, text=True)
    return found.stdout


def test_both_packages_are_looked_for_without_loading_them(cann: Path, work: Path) -> None:
    found = ais_bench.installed(probe(cann, work))
    assert {Path(path).name for path in found.values()} == {"__main__.py", "aclruntime.py"}
    without = fake_cann.install(work / "without")
    with pytest.raises(MissingError, match=r"no ais_bench and no aclruntime: .*docker/ais_bench"):
        ais_bench.installed(probe(without, work))
    code, stdout = start(without, work, INFER)  # and if nobody looked
    with pytest.raises(MissingError, match=r"No module named ais_bench.*docker/ais_bench"):
        judged(work, stdout, outputs(BATCHES), BATCHES)
    assert code == 1
    with pytest.raises(StageError, match="printed nothing"):
        ais_bench.installed("")


TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    raise RuntimeError()\n'


@pytest.mark.parametrize(
    ("stdout", "error", "says"),
    [
        (f"{TRACEBACK}ModuleNotFoundError: No module named 'aclruntime'\n", MissingError, "aclruntime"),
        (f"{TRACEBACK}ImportError: libascendcl.so: cannot open shared object file\n", MissingError, "libascendcl"),
        (f"{TRACEBACK}PermissionError: [Errno 13] Permission denied: 'results/x'\n", ConfigError, "output folder"),
        (f"{TRACEBACK}OSError: [Errno 28] No space left on device\n", StageError, "Free some space"),
        (f"{TRACEBACK}RuntimeError\n", StageError, "RuntimeError"),  # nothing else was said
        # A progress bar stands before the line's own text.
        ("\rInference array Processing:  8%|█| 1/12[ERROR] acl init failed\n", StageError, "ais_bench: [ERROR] acl"),
        ("[INFO] acl init success\n", StageError, "stopped before"),
    ],
)
def test_lines_that_no_stand_in_prints(tmp_path: Path, stdout: str, error: Type[DebertaError], says: str) -> None:
    with pytest.raises(DebertaError) as raised:
        judged(tmp_path, stdout, outputs(1), 1)
    assert type(raised.value) is error
    assert says in str(raised.value)


def test_a_warning_is_no_error() -> None:
    said = "[WARNING] aclruntime version:0.0.1 is lower please update aclruntime\n[INFO] output path:out/T \n"
    run = ais_bench.parse(said)
    assert (run.errors, run.folder) == ((), "out/T")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", summary([1.0], throughput="fast"), summary([1.0], npu_compute_time_list=3)]
)
def test_a_summary_of_something_else(text: str) -> None:
    with pytest.raises(DataError, match="not one of ais_bench's"):
        ais_bench.read_summary(text)


@pytest.mark.parametrize("name", ["input_12.bin", "input_12_0.txt", "_0.bin"])
def test_a_file_of_another_name_is_no_output(cann: Path, work: Path, name: str) -> None:
    _, stdout = start(cann, work, INFER)
    folder = work / str(ais_bench.parse(stdout).folder)
    (folder / ais_bench.output_file(1)).rename(folder / name)
    with pytest.raises(DataError, match=r"1 outputs of .* missing from"):
        judged(work, stdout, outputs(BATCHES), BATCHES)


def test_a_comma_cannot_be_in_a_path() -> None:
    with pytest.raises(ConfigError, match="comma"):
        ais_bench.command(MODEL, [PurePosixPath("a,b/input_ids")], OUT, 1)
