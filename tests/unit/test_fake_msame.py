"""msame's stand-in against what was observed on the unmodified tool, and our verdict on every such run.

Model and sizes are those of the observation: two int32 inputs [4, 256], float32 logits [4, 3].
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, Optional, Tuple, Type

import numpy as np
import onnxruntime
import pytest

from deberta.ascend import msame as judged
from deberta.core.errors import ConfigError, DataError, DebertaError, StageError
from tests.cpu_model_helpers import LENGTH, small_onnx, write_bins
from tests.fakes import msame, om
from tests.msame_cases import (
    BATCH,
    BATCHES,
    DIRECTORIES,
    EXIT_1,
    FILES,
    INCOMPLETE,
    NOTHING_DONE,
    SHORT,
    SIZE,
    SUCCESS,
    Case,
)

FAKES = Path(msame.__file__).parent
OM_INPUTS = tuple(om.Input(name, "int32", (BATCH, LENGTH)) for name in ("input_ids", "input_mask"))


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_onnx(tmp_path_factory.mktemp("model") / "x.onnx")


@pytest.fixture
def work(tmp_path: Path, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: x.om, and three batches in a/ (ids) and b/ (masks)."""
    (tmp_path / "x.om").write_bytes(om.pack(om.Om(OM_INPUTS, onnx_file.read_bytes())))
    make_batches(tmp_path, BATCHES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_batches(work: Path, count: int) -> Tuple[np.ndarray, np.ndarray]:
    ids, mask = write_bins(work, count, BATCH)
    (work / "input_ids").rename(work / "a")
    (work / "input_mask").rename(work / "b")
    return ids, mask


def run(capsys: pytest.CaptureFixture[str], arguments: str, forced: str = "") -> Tuple[int, str]:
    code = msame.run(shlex.split(arguments), forced)
    return code, capsys.readouterr().out


def expected(batches: int) -> Dict[str, int]:
    return {f"input_{index}_output_0.bin": SIZE for index in range(batches)}


def verdict(stdout: str, outputs: Dict[str, int], times: int) -> Optional[DebertaError]:
    """What our judge raises on a run, None if it takes it for complete."""
    found = judged.parse(stdout)
    try:
        judged.judge(found, Path(found.folder or "no-folder"), outputs, times)
    except DebertaError as error:
        return error
    return None


def logits(onnx_file: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"input_ids": ids, "input_mask": mask})[0]
    return found


@pytest.mark.parametrize(
    ("code", "success", "case"),
    [pytest.param(0, False, case, id=name) for name, case in NOTHING_DONE.items()]
    + [pytest.param(0, True, case, id=name) for name, case in INCOMPLETE.items()]
    + [pytest.param(1, False, case, id=name) for name, case in EXIT_1.items()],
)
def test_what_the_exit_code_hides(
    work: Path, capsys: pytest.CaptureFixture[str], code: int, success: bool, case: Case
) -> None:
    case.spoil(work)
    found, stdout = run(capsys, case.arguments)
    assert (found, SUCCESS in stdout) == (code, success), stdout
    assert case.says in stdout
    one_file = case.arguments.startswith(FILES)
    error = verdict(stdout, {"x_output_0.bin": SIZE} if one_file else expected(BATCHES), 1 if one_file else BATCHES)
    assert type(error) is case.error, stdout
    assert case.names in str(error)


def test_directory_mode_line_by_line(work: Path, onnx_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout = run(capsys, "--model x.om --input a/,b/ --output out/")
    shown = re.sub(r"\d+(\.\d+)?(e-\d+)? ?ms", "Nms", re.sub(r"pid: \d+", "pid: N", stdout))
    shown = re.sub(r"^out//\d{6,8}(_\d{1,2}){3}_\d{1,6}$", "out//T", shown, flags=re.MULTILINE)
    per_file = """\
[INFO] start to process file:a//input_{0}.bin
[INFO] start to process file:b//input_{0}.bin
[INFO] model execute success
Inference time: Nms
[INFO] get max dynamic batch size success
[INFO] output data success
[INFO] destroy model input success
"""
    assert code == 0
    assert shown == (
        """\
[INFO] acl init success
[INFO] open device 0 success
[INFO] create context success
[INFO] create stream success
[INFO] get run mode success
[INFO] load model x.om success
[INFO] create model description success
[INFO] get input dynamic gear count success
[INFO] create model output success
out//T
"""
        + "".join(per_file.format(index) for index in range(BATCHES))
        + """\
Inference average time : Nms
Inference average time without first time: Nms
[INFO] unload model success, model Id is 1
[INFO] pid: N Execute sample success
[INFO] end to destroy stream
[INFO] end to destroy context
[INFO] end to reset device is 0
[INFO] end to finalize acl
"""
    )
    assert verdict(stdout, expected(BATCHES), BATCHES) is None
    ids = np.fromfile("a/input_2.bin", np.int32).reshape(BATCH, LENGTH)
    mask = np.fromfile("b/input_2.bin", np.int32).reshape(BATCH, LENGTH)
    written = np.fromfile(Path(str(judged.parse(stdout).folder)) / "input_2_output_0.bin", np.float32)
    assert np.allclose(written.reshape(BATCH, 3), logits(onnx_file, ids, mask), atol=1e-6)


def test_files_run_in_plain_string_order(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for inputs in (work / "a", work / "b"):
        for index in range(BATCHES, 12):
            (inputs / f"input_{index}.bin").write_bytes((inputs / "input_0.bin").read_bytes())
        (inputs / ".hidden").write_bytes(b"")
        (inputs / "input_0.bin").rename(inputs / "input_0.any.ext")
    code, stdout = run(capsys, DIRECTORIES)
    assert (code, re.findall(r"file:a//(\S+)", stdout)) == (
        0,
        ["input_0.any.ext", "input_1.bin", "input_10.bin", "input_11.bin", *(f"input_{i}.bin" for i in range(2, 10))],
    )
    folder = Path(str(judged.parse(stdout).folder))
    assert (folder / "input_0.any_output_0.bin").stat().st_size == SIZE
    assert len(list(folder.iterdir())) == 12


def test_file_mode_of_100_loops(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, stdout = run(capsys, f"{FILES} --loop 100")
    assert (code, stdout.count("\n"), stdout.count("Inference time:")) == (0, 223, 100)
    assert re.search(r"^Inference average time: \d+\.\d{6} ms$", stdout, re.MULTILINE)
    assert verdict(stdout, {"x_output_0.bin": SIZE}, 100) is None


@pytest.mark.parametrize(
    ("arguments", "file"),
    [
        ("--model x.om --output out", "x_output_0.bin"),  # zeros
        (f"{FILES} --outfmt TXT", "x_output_0.txt"),
        (f"{FILES} --outfmt txt", "x_output_0.bin"),
        ("--model x.om --input a.bin/,b/ --output out", ""),  # `.bin` in a directory's name: file mode, which fails
        ("--model x.om.onnx --input a/input_0.bin,b/input_0.bin --output out", "x.om_output_0.bin"),
    ],
)
def test_names_of_file_mode(work: Path, capsys: pytest.CaptureFixture[str], arguments: str, file: str) -> None:
    (work / "x.om.onnx").write_bytes((work / "x.om").read_bytes())
    (work / "a.bin").mkdir()
    code, stdout = run(capsys, arguments)
    written = [path.name for path in (work / str(judged.parse(stdout).folder)).iterdir()]
    assert (code, written) == ((0, [file]) if file else (1, []))
    if file.endswith(".txt"):
        rows = (work / str(judged.parse(stdout).folder) / file).read_text().splitlines()
        assert [len(row.split()) for row in rows] == [3] * BATCH


def swap(work: Path) -> None:
    (work / "a").rename(work / "c")
    (work / "b").rename(work / "a")
    (work / "c").rename(work / "b")


def widen(work: Path) -> None:
    for path in (work / "a").iterdir():
        path.write_bytes(np.fromfile(path, np.int32).astype(np.int64).tobytes())


def shorten(work: Path) -> None:
    for path in (work / "a").iterdir():
        os.truncate(path, BATCH * LENGTH * 4 - 64)


@pytest.mark.parametrize("spoil", [swap, widen, shorten])
def test_wrong_inputs_that_run_without_a_word(
    work: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    """No judge can see these: names, sizes and contents of the inputs must be checked before the run."""
    for path in (work / "b").iterdir():
        path.write_bytes(np.ones((BATCH, LENGTH), np.int32).tobytes())  # so that no token is without effect
    right = (work / str(judged.parse(run(capsys, DIRECTORIES)[1]).folder) / "input_0_output_0.bin").read_bytes()
    spoil(work)
    code, stdout = run(capsys, DIRECTORIES)
    assert (code, verdict(stdout, expected(BATCHES), BATCHES)) == (0, None)
    assert (work / str(judged.parse(stdout).folder) / "input_0_output_0.bin").read_bytes() != right


def test_one_directory_gives_every_second_file_a_wrong_output(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, stdout = run(capsys, "--model x.om --input a/ --output out")
    assert [path.name for path in (work / str(judged.parse(stdout).folder)).iterdir()] == ["input_1_output_0.bin"]


def test_all_files_after_a_wrong_size_fail_too(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("a", "b"):
        (work / folder / "input_3.bin").write_bytes((work / folder / "input_0.bin").read_bytes())
    (work / "a/input_2.bin").write_bytes(SHORT)
    code, stdout = run(capsys, DIRECTORIES)
    assert (code, stdout.count("Inference time:"), stdout.count("] model execute failed")) == (0, 2, 2)


def test_an_empty_folder_stays_of_a_refused_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, stdout = run(capsys, DIRECTORIES.replace("b/", "no/"))
    assert list((work / str(judged.parse(stdout).folder)).iterdir()) == []
    assert "end to" not in stdout


@pytest.mark.parametrize(
    ("forced", "code", "error", "names"),
    [
        ("old-success", 0, None, ""),
        ("scientific", 0, None, ""),
        ("second-folder", 0, None, ""),
        ("truncated-output", 0, DataError, "(24 bytes, not 48)"),
        ("missing-output", 0, DataError, "1 outputs of 3 are missing"),
        ("extra-output", 0, DataError, "not expected in"),
        ("error-line", 0, DataError, "aclrtFree failed"),
        ("fail=2", 0, DataError, "some inputs were not run"),
        ("fail=2,stops-at-failure", 1, StageError, "model execute failed"),
        ("crash=2", -signal.SIGSEGV, StageError, "after 2 inferences"),
    ],
)
def test_forced_failures(work: Path, forced: str, code: int, error: Optional[Type[DebertaError]], names: str) -> None:
    done = execute(DIRECTORIES, forced)
    assert done.returncode == code, done.stdout + done.stderr
    found = verdict(done.stdout, expected(BATCHES), BATCHES)
    assert (type(found) if found else None) is error
    assert names in str(found or "")
    if forced == "second-folder":
        assert len(list((work / "out").iterdir())) == 2


def execute(arguments: str, forced: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FAKES / "msame"), *shlex.split(arguments)],
        env={**os.environ, "FAKE_MSAME": forced, "FAKE_MSAME_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_name_without_a_dot_aborts(work: Path) -> None:
    for folder in ("a", "b"):
        (work / folder / "input_0.bin").rename(work / folder / "input_0")
    done = subprocess.run(
        ["sh", "-c", f'"$0" "$1" {DIRECTORIES}; exit $?', sys.executable, str(FAKES / "msame")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 134, done.stderr
    assert isinstance(verdict(done.stdout, expected(BATCHES), BATCHES), StageError)


def test_dynamic_dims_need_a_gear_and_pad_to_the_largest(
    work: Path, onnx_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gears = ((2, LENGTH, 2, LENGTH), (BATCH, LENGTH, BATCH, LENGTH))
    (work / "x.om").write_bytes(om.pack(om.Om(OM_INPUTS, onnx_file.read_bytes(), gears, "FP16")))
    code, stdout = run(capsys, FILES)
    assert code == 1 and isinstance(verdict(stdout, {}, 1), ConfigError)
    code, stdout = run(capsys, f"{FILES} --dymDims 'input_ids:2,256;input_mask:2,256'")
    assert (code, verdict(stdout, {"x_output_0.bin": SIZE // 2}, 1)) == (0, None)
    values = np.fromfile(work / str(judged.parse(stdout).folder) / "x_output_0.bin", np.float16).reshape(BATCH, 3)
    assert values[:2].all() and not values[2:].any()
