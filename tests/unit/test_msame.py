"""msame's stdout, as it was seen from the unmodified tool, and the outcome that each kind of run must have."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Type

import pytest

from deberta.ascend import msame
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError

START = """\
[INFO] acl init success
[INFO] open device 0 success
[INFO] create context success
[INFO] create stream success
[INFO] get run mode success
"""
LOADED = (
    START
    + """\
[INFO] load model x.om success
[INFO] create model description success
[INFO] get input dynamic gear count success
[INFO] create model output success
out1//20261122_22_1_58_100122
"""
)
SUCCESS = "[INFO] pid: 4711 Execute sample success\n"
END = """\
[INFO] end to destroy stream
[INFO] end to destroy context
[INFO] end to reset device is 0
[INFO] end to finalize acl
"""
UNLOADED = "[INFO] unload model success, model Id is 1\n"
FAILED = "[ERROR] Sample process failed\n"
SIZE = 48  # float32 [4, 3]


def batch(index: int, milliseconds: str) -> str:
    return f"""\
[INFO] start to process file:a//input_{index}.bin
[INFO] start to process file:b//input_{index}.bin
[INFO] model execute success
Inference time: {milliseconds}ms
[INFO] get max dynamic batch size success
[INFO] output data success
[INFO] destroy model input success
"""


def directory_run(*times: str, success: str = SUCCESS, middle: str = "") -> str:
    batches = "".join(batch(index, time) for index, time in enumerate(times))
    averages = "Inference average time : 0.17 ms\nInference average time without first time: 0.18 ms\n"
    return LOADED + batches + middle + averages + UNLOADED + success + END


def outputs(folder: Path, count: int) -> Dict[str, int]:
    folder.mkdir()
    names = [f"input_{index}_output_0.bin" for index in range(count)]
    for name in names:
        (folder / name).write_bytes(bytes(SIZE))
    return dict.fromkeys(names, SIZE)


def test_a_directory_run(tmp_path: Path) -> None:
    run = msame.parse(directory_run("0.165", "0.18", "0.174"))
    assert run.folder == "out1//20261122_22_1_58_100122"
    assert run.times_ms == (0.165, 0.18, 0.174)
    assert (run.average_ms, run.average_without_first_ms) == (0.17, 0.18)
    assert run.errors == ()
    msame.judge(run, tmp_path / "T", outputs(tmp_path / "T", 3), 3)


def test_a_file_run_of_100_loops(tmp_path: Path) -> None:
    loops = "".join(f"[INFO] model execute success\nInference time: {0.01 + i / 1000:g}ms\n" for i in range(100))
    averages = "Inference average time: 0.013050 ms\nInference average time without first time: 0.007566 ms\n"
    files = "[INFO] start to process file:a/input_0.bin\n[INFO] start to process file:b/input_0.bin\n"
    written = "[INFO] get max dynamic batch size success\n[INFO] output data success\n"
    run = msame.parse(LOADED + files + loops + written + averages + UNLOADED + SUCCESS + END)
    assert (run.average_ms, run.average_without_first_ms) == (0.01305, 0.007566)
    (tmp_path / "T").mkdir()
    (tmp_path / "T/x_output_0.bin").write_bytes(bytes(SIZE))
    msame.judge(run, tmp_path / "T", {"x_output_0.bin": SIZE}, 100)


@pytest.mark.parametrize(
    ("line", "times"),
    [
        ("Inference time: 5251.2ms", (5251.2,)),
        ("Inference time: 1.23457e+06ms", (1234570.0,)),
        ("Inference time: 7e-05ms", (7e-05,)),
        ("Inference time: 12ms", (12.0,)),
        ("Inference time: 12", ()),  # cut off by a kill: not a measured time
        ("[progress] infer: 3/8 batches 12 s left", ()),
    ],
)
def test_times_as_a_cpp_stream_prints_them(line: str, times: tuple[float, ...]) -> None:
    assert msame.parse(LOADED + line + "\n").times_ms == times


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("out1//202615_0_1_2_7", "out1//202615_0_1_2_7"),
        ("/data/a b/out/20261122_22_1_58_100122", "/data/a b/out/20261122_22_1_58_100122"),
        ("out//20211222_104250", "out//20211222_104250"),  # an older build's form
        ("[INFO] start to process file:a//20261122_22_1_58_100122", None),
        ("out1/results", None),
    ],
)
def test_the_folder_is_a_bare_line(line: str, folder: object) -> None:
    assert msame.parse(START + line + "\n" + END).folder == folder


def test_older_builds_print_no_pid() -> None:
    assert msame.parse(directory_run("1", success="[INFO] Execute sample success\n")).success
    assert not msame.parse(directory_run("1", success="[ERROR] Execute sample failed\n")).success
    assert not msame.parse("").success


@pytest.mark.parametrize(
    ("stdout", "error", "says"),
    [
        # Exit code 0 although nothing was done.
        (LOADED + "[ERROR] a/ doesn't exist\n" + END, MissingError, "invoke preprocess"),
        ("[ERROR] input model file type is not .om , please check your model type!\n", ConfigError, "--model"),
        ("[ERROR] loop must in 1 to 100\n", ConfigError, "--loop"),
        ("[ERROR] device id must in 0 to 255\n", ConfigError, "--device"),
        ("[ERROR] unknown paramenter\n[ERROR] Execute sample failed.\n", ConfigError, "options"),
        (LOADED + "[ERROR] current user does not have permission\n", ConfigError, "output folder"),
        # Exit code 0 and the success line, but incomplete or wrong.
        (
            f"{LOADED}[ERROR] No file in the directory[e/a]Inference average time : -nan ms\n{UNLOADED}{SUCCESS}{END}",
            DataError,
            "No file in the directory",
        ),
        (directory_run("1", "2", middle="[ERROR] execute model failed\n" + FAILED), DataError, "all outputs"),
        (directory_run("1"), DataError, "1 inferences were timed, 2 were asked for"),
        (directory_run("1", "2", "3"), DataError, "3 inferences were timed, 2 were asked for"),
        (directory_run("1", "2").replace("0.17 ms", "-nan ms"), DataError, "no numbers"),
        (directory_run("1", "2").replace("Inference average", "average"), DataError, "no numbers"),
        # Exit code 1.
        (
            START + "[ERROR] load model from file failed, model file is nope.om\n" + FAILED,
            StageError,
            "invoke build-om",
        ),
        (LOADED + batch(0, "1") + "[ERROR] open file d1/b/input_5.bin failed\n" + FAILED, MissingError, "input_5.bin"),
        (LOADED + batch(0, "1") + "[ERROR] something of a newer CANN\n" + FAILED, StageError, "newer CANN"),
        # Killed, aborted, or nothing at all.
        (LOADED + batch(0, "1") + batch(1, "2"), StageError, "after 2 inferences"),
        ("", StageError, "after 0 inferences"),
    ],
)
def test_the_cause_decides_the_error(tmp_path: Path, stdout: str, error: Type[DebertaError], says: str) -> None:
    expected = outputs(tmp_path / "T", 2)  # files of an earlier run must not make a failed one good
    with pytest.raises(DebertaError) as raised:
        msame.judge(msame.parse(stdout), tmp_path / "T", expected, 2)
    assert type(raised.value) is error
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (["input_1_output_0.bin", None], "1 outputs of 3 are missing"),
        (["input_1_output_0.bin", b""], "input_1_output_0.bin (0 bytes, not 48)"),
        (["input_1_output_0.bin", bytes(SIZE + 1)], "(49 bytes, not 48)"),
        (["input_3_output_0.bin", bytes(SIZE)], "not expected in"),
        (["input_1_output_1.bin", bytes(SIZE)], "not expected in"),
    ],
)
def test_every_output_is_there_with_its_size_and_no_other(tmp_path: Path, spoil: List[object], says: str) -> None:
    folder = tmp_path / "T"
    expected = outputs(folder, 3)
    name, content = spoil
    if isinstance(content, bytes):
        (folder / str(name)).write_bytes(content)
    else:
        (folder / str(name)).unlink()
    with pytest.raises(DataError) as raised:
        msame.judge(msame.parse(directory_run("1", "2", "3")), folder, expected, 3)
    assert says in str(raised.value)


def test_a_missing_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"output folder .* is missing"):
        msame.judge(msame.parse(directory_run("1", "2")), tmp_path / "T", {}, 2)
