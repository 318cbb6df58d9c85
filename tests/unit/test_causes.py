"""Why runs of ATC, msame and ais_bench fail, by what they printed: the table of causes, levels, codes of both forms."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Callable

import pytest

from deberta.ascend import ais_bench, atc, causes, msame, runs
from deberta.core import errors
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError

START = "[INFO] acl init success\n[INFO] open device 0 success\n"
NOT_LOADED = "[ERROR] load model from file failed, model file is models/demo/ascend/deberta_bs8.om\n"
STAMP = "[PID: 106] 2025-10-30-08:21:08.817.477"
CHIP = (
    f"[ACL ERROR] EE1001: {STAMP} The argument is invalid.Reason: ModelCheckCompatibility failed, supported "
    "socVersion=Ascend310P3, but the model socVersion=Ascend310P1\n"
)
OPP = (
    f"[ACL ERROR] E19999: Inner Error!\nE19999: {STAMP} Invalid opp version [8.3.T14.0.B101] or compiler_version [],"
    "Please check if it is within the required range[FUNC:CheckOsCpuInfoAndOppVersion][FILE:model_helper.cc]\n"
)
STREAMS = "index:0 > stream_list.size(): 0, check invalid\n"
TRACEBACK = (
    "[WARN] Check failed:processModel->LoadModelFromFile(modelPath), ret:1\nRuntimeError: [1][ACL: invalid parameter]\n"
)
NO_LIBRARY = "cannot open shared object file: No such file or directory\n"
NO_KERNEL = "Optype [TransData] of Ops kernel [AIcoreEngine] is unsupported. Reason: it is not found."
FAILED = "ATC start working now, please wait for a moment.\n....\nATC run failed, Please check the detail log\n"


def of_msame(printed: str) -> DebertaError:
    return refused(lambda: msame.judge(msame.parse(printed), Path("/nowhere"), {"input_0_output_0.bin": 96}, 1))


def of_ais_bench(printed: str) -> DebertaError:
    return refused(lambda: ais_bench.judge(ais_bench.parse(printed), Path("/nowhere/T"), {"input_0_0.bin": 96}, 1))


def of_atc(printed: str, exit_code: int = 255) -> DebertaError:
    return refused(lambda: atc.judge(atc.parse(printed), exit_code, Path("/nowhere/a.om"), 0.0, 1, Path("log")))


def refused(judge: Callable[[], None]) -> DebertaError:
    with pytest.raises(DebertaError) as raised:
        judge()
    return raised.value


RUNTIME: dict[str, tuple[str, type[DebertaError], list[str]]] = {
    "another chip": (
        CHIP,
        DataError,
        ["compiled for Ascend310P1, and the device is Ascend310P3", "--soc-version Ascend310P3"],
    ),
    "another chip, in other words": (
        "[ACL ERROR] EE1001: soc version Ascend910 of the model does not match the device's\n",
        DataError,
        ["another chip"],
    ),
    "another CANN": (OPP, DataError, ["8.3.T14.0.B101", "the CANN that runs it", "invoke build-om --force"]),
    "another chip or CANN": (STREAMS, DataError, ["stream_list.size(): 0", "perhaps it was compiled for another chip"]),
    "no memory, by its code": (
        f"[ACL ERROR] EL0004: {STAMP} Failed to do it.\n",
        StageError,
        ["EL0004", "too little free memory"],
    ),
    "no memory, in brackets": (
        f"{STAMP} Memory_Allocation_Failure(EL0004): Failed to do it.\n",
        StageError,
        ["EL0004", "too little free memory"],
    ),
    "no memory, by an inner error": (
        "[ACL ERROR] E19999: Inner Error!\n        rtMalloc execute failed, reason=[driver error:out of memory]\n",
        StageError,
        ["rtMalloc execute failed", "too little free memory"],
    ),
    "host memory": (
        "terminate called after throwing an instance of 'std::bad_alloc'\n",
        StageError,
        ["the machine's memory"],
    ),
    "driver": ("[ACL ERROR] EL0001: Device not found or invalid.\n", StageError, ["cannot reach the device"]),
    "driver's number": ("[ERROR] rtSetDevice failed, ret=507033\n", StageError, ["cannot reach the device"]),
    "old driver": ("[ACL ERROR] EE1015: rtModelLoad failed.\n", StageError, ["driver is older"]),
    "another container's": ("[ACL ERROR] EL0015: The device access is invalid.\n", ConfigError, ["another container"]),
    "after very many lines": (
        "[ERROR] again\n[ERROR] and again\n" * 2000 + CHIP,
        DataError,
        ["compiled for Ascend310P1"],
    ),
    "damaged": ("[ERROR] model file header: magic_num 0 is not right\n", DataError, ["damaged"]),
}


@pytest.mark.parametrize("case", RUNTIME)
def test_the_runtimes_own_reason_decides(case: str) -> None:
    """Beside it stands the tool's last error; nothing says that the .om is missing, which was just hashed."""
    lines, kind, says = RUNTIME[case]
    for error in (of_msame(START + lines + NOT_LOADED), of_ais_bench(START + lines + NOT_LOADED + TRACEBACK)):
        assert type(error) is kind and not isinstance(error, MissingError)
        assert all(text in str(error) for text in (*says, "last error: [ERROR] load model from file failed")), str(
            error
        )
        assert "missing" not in str(error)


def test_without_a_reason_the_possible_causes_are_named_as_possible() -> None:
    for error in (of_msame(START + NOT_LOADED), of_ais_bench(START + NOT_LOADED + TRACEBACK)):
        assert type(error) is StageError and "Perhaps the .om was compiled for another chip" in str(error)
        assert all(
            text in str(error) for text in ("a newer CANN", "memory is full", "damaged")
        ) and "missing" not in str(error)
    unknown = of_msame(f"{START}[ACL ERROR] EE1077: {STAMP} Nobody knows this.\n{NOT_LOADED}")
    assert "msame: EE1077: Nobody knows this; [ERROR] load model" in str(unknown) and "Perhaps" in str(unknown)


def test_a_warning_is_only_perhaps_the_cause_and_information_is_none() -> None:
    warned = str(of_msame(f"{START}[WARN] out of memory, taking less\n{NOT_LOADED}"))
    assert "[WARN] out of memory" in warned and "perhaps: the device has too little free memory" in warned
    for level in ("[INFO] ", "[DEBUG] RUNTIME(1,msame):", "INFO: ", "2026-01-14 06:41:59,991 - INFO - "):
        assert "memory, " not in str(of_msame(f"{START}{level}driver error:out of memory, taking less\n{NOT_LOADED}"))


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        (
            f"./msame: error while loading shared libraries: libascendcl.so: {NO_LIBRARY}",
            MissingError,
            "names its set_env.sh",
        ),
        (
            f"./msame: error while loading shared libraries: libascend_hal.so: {NO_LIBRARY}",
            MissingError,
            "the NPU's driver",
        ),
        ("bash: /x/msame: cannot execute binary file: Exec format error\n", ConfigError, "another kind of machine"),
        ("exec /usr/local/bin/msame: exec format error\n", ConfigError, "another kind of machine"),
        ("/x/msame: cannot execute: required file not found\n", ConfigError, "another kind of machine"),
        (
            "./msame: /lib64/libc.so.6: version `GLIBC_2.34' not found (required by ./msame)\n",
            ConfigError,
            "newer libraries",
        ),
        (
            "./msame: /lib64/libstdc++.so.6: version `GLIBCXX_3.4.29' not found (required\n",
            ConfigError,
            "newer libraries",
        ),
        (
            "./msame: symbol lookup error: ./msame: undefined symbol: aclmdlSetX\n",
            ConfigError,
            "another version of CANN",
        ),
        ("/x/msame: cannot execute: Permission denied\n", ConfigError, "may not execute"),
        ("write error: No space left on device\n", StageError, "the disk is full"),
    ],
)
def test_a_tool_that_cannot_start(line: str, kind: type[DebertaError], says: str) -> None:
    error = of_msame(line)
    assert type(error) is kind and says in str(error) and line.strip() in str(error)
    assert type(of_ais_bench(line)) is kind and type(of_atc(line, 126)) is kind


def test_the_last_line_is_shown_when_nothing_is_known() -> None:
    assert "after 0 inferences; last line: Segmentation fault" in str(of_msame(f"{START}Segmentation fault\n"))
    assert "after 0 inferences; it printed nothing" in str(of_msame(""))
    assert "its summary; last line: Killed" in str(of_ais_bench(f"{START}Killed\n"))
    assert "last error: [ERROR] d: " in str(of_msame("".join(f"[ERROR] {name}\n" for name in "abcd") + "[INFO] end\n"))


NEW_FORM = [
    f"{STAMP} Unsupported_Operator(EZ3002): {NO_KERNEL}",
    f"2026-01-14-06:41:59.991.811 Unsupported_Operator(EZ3002): {NO_KERNEL}",
    f"2026-01-14 06:41:59.991 Unsupported_Operator(EZ3002): {NO_KERNEL}",
    f"Unsupported_Operator(EZ3002): {NO_KERNEL}",
    f"[PID: 7] Unsupported_Operator(EZ3002): {NO_KERNEL}",
    f"[PID: 7]\nUnsupported_Operator(EZ3002):\n{NO_KERNEL}",
    f"{STAMP} Unsupported_Operator(EZ3002):\n        {NO_KERNEL}",
    f"EZ3002: {STAMP} {NO_KERNEL}",
    f"EZ3002: {NO_KERNEL}",
]


@pytest.mark.parametrize("form", NEW_FORM)
def test_codes_in_every_form(form: str) -> None:
    last = "        TraceBack (most recent call last):\n        No supported Ops kernel and engine are found for [x].\n"
    error = of_atc(f"{FAILED}{form}\n        Possible Cause: The operator type is unsupported.\n{last}")
    assert type(error) is StageError and "atc: EZ3002: " in str(error) and "no error code" not in str(error)
    assert "CANN has no kernel for an operator" in str(error)
    assert "last line: No supported Ops kernel and engine are found for [x]" in str(error)


@pytest.mark.parametrize(
    ("line", "kind", "says"),
    [
        ("Invalid_Argument(E10001): Value 5 for parameter log is invalid.", ConfigError, "does not take this value"),
        ("Invalid_Argument(E10001): Value x for parameter --soc_version is invalid.", ConfigError, "Ascend310P3"),
        ("Environment_Error_Import_Python_Module_Failed(E40020): Failed to import.", MissingError, "decorator, sympy"),
        ("Inner_Error_Compile_Fail(EB0000): Compile operator failed.", StageError, "could not compile an operator"),
        ("Device_Absent/Abnormal(EL0001): Device not found or invalid.", StageError, "atc: EL0001: Device not found"),
        ("Communication_Error_Timeout(EI0002): The wait timed out.", StageError, "atc: EI0002: The wait timed out"),
        ("Invalid_Argument(EH0001): Value x is invalid.", StageError, "atc: EH0001: Value x is invalid"),
        ("Invalid_Argument(EE1001): The argument is invalid.", StageError, "atc: EE1001: The argument is invalid"),
        (
            "Not_Supported_Shape(E60006): In op[x], the dim must be [4].",
            StageError,
            "an argument that CANN does not take",
        ),
        # The same codes say something else in older CANN.
        (
            "Directory_Operation_Error_Name_Too_Long(E13002): Directory /a/b is too long.",
            ConfigError,
            "shorter workspace",
        ),
        (
            "File_Operation_Error_Read(E13003): Failed to read file /a. Reason: x.",
            ConfigError,
            "cannot be opened or read",
        ),
        (
            "Config_Error(E40001): Value x for environment variable Y is invalid.",
            ConfigError,
            "an environment variable",
        ),
        ("Environment_Error(E40002): Unsupported Python version: 3.5. Expected: 3.7", MissingError, "decorator, sympy"),
    ],
)
def test_codes_of_newer_cann(line: str, kind: type[DebertaError], says: str) -> None:
    error = of_atc(f"{FAILED}{STAMP} {line}\n")
    assert type(error) is kind and says in str(error), str(error)
    assert "last line" not in str(error)  # which is the message itself


def test_older_wordings() -> None:
    slow = "W11001: op[Slice_3] does not hit the high-priority operator information library\n"
    outcome = atc.parse(f"...........ATC run success, welcome to the next use.\n{slow}")
    assert outcome.success and atc.summary(outcome)["slow_ops"] == ["Slice_3"]


def complete_run(folder: Path) -> tuple[Path, dict[str, int]]:
    """The outputs and the summary of a run of ais_bench."""
    outputs = folder / "T"
    outputs.mkdir()
    (outputs / "input_0_0.bin").write_bytes(bytes(96))
    summary = {"throughput": 8000.0, "npu_compute_time_list": [1.0], "NPU_compute_time": {"mean": 1.0}}
    ais_bench.summary_of(outputs).write_text(json.dumps(summary))
    return outputs, {"input_0_0.bin": 96}


@pytest.mark.parametrize(
    "line",
    [
        "[INFO] no module for plots: No module named 'matplotlib'",
        "[INFO] tried: ImportError: libfoo.so: cannot open shared object file",
        "[DEBUG] [ERROR] is how errors begin",
        "2026-01-14 06:41:59,991 - INFO - ModuleNotFoundError: No module named 'x'",
        "ModuleNotFoundError: No module named 'x', which is not needed",
        "[WARN] Check failed: nothing",
    ],
)
def test_a_complete_run_is_not_refused_for_what_a_line_quotes(tmp_path: Path, line: str) -> None:
    outputs, expected = complete_run(tmp_path)
    run = ais_bench.parse(f"{START}{line}\n[INFO] output path:{outputs}\n")
    ais_bench.judge(run, outputs, expected, 1)
    os.truncate(outputs / "input_0_0.bin", 50)  # and where an output is wrong, that is what is said
    error = refused(lambda: ais_bench.judge(run, outputs, expected, 1))
    assert type(error) is DataError and "input_0_0.bin (50 bytes, not 96)" in str(error)


def test_an_error_refuses_a_run_whose_outputs_are_there(tmp_path: Path) -> None:
    outputs, expected = complete_run(tmp_path)
    error = refused(lambda: ais_bench.judge(ais_bench.parse("[ERROR] aclrtFree failed\n"), outputs, expected, 1))
    assert "ais_bench: [ERROR] aclrtFree failed: it printed an error, though all outputs are there" in str(error)


def test_the_table() -> None:
    """Every row has sources, a class of ours, expressions that begin with plain letters, and placeholders that fit."""
    assert causes.TABLE.rows
    for row in causes.TABLE.rows:
        assert set(row.source.split()) <= set(causes.TABLE.sources) and row.source
        assert issubclass(getattr(errors, row.error), DebertaError) and (row.texts or row.codes) and row.tools
        assert row.advice == row.advice.strip(" .")
        for text in row.texts:
            assert (
                re.match(r"[a-z`'-]", text) and "|" not in re.sub(r"\(\?:[^()]*\)", "", text) and text == text.lower()
            )
            row.advice.format(*[""] * re.compile(text).groups)
        assert row.codes or row.kind or "{" not in row.advice or len(row.texts) == 1
    advice = [row.advice for row in causes.TABLE.rows if row.kind != "own"]
    assert all(advice.count(text) == 1 or "environment variable" in text for text in advice)  # written once
    assert {source for row in causes.TABLE.rows for source in row.source.split()} == set(causes.TABLE.sources)


@pytest.mark.parametrize("log", ["errors", "codes", "half texts", "one line", "details"])
def test_a_long_log_is_read_in_time_that_grows_with_its_length(log: str) -> None:
    """A twentieth of what is allowed; the whole is measured by hand: 16 MB in less than 3 s."""
    size = 2**20
    text = {
        "errors": "".join(f"[ERROR] nobody knows of {i}\n" for i in range(size // 25)),
        "codes": "".join(f"EZ{1000 + i % 9000}: op {i} fails for no reason\n" for i in range(size // 40)),
        "half texts": "".join(f"[ERROR] rtmalloc soc version open file dym loop {i}\n" for i in range(size // 50)),
        "one line": "[ERROR] " + "rtmalloc soc_version " * (size // 21),
        "details": "EZ1234: x\n" + "\t y\n" * (size // 4),
    }[log]
    started = time.process_time()
    for error in (of_msame(text), of_ais_bench(text), of_atc(text)):
        runs.cause(error, text, Path("/nowhere"), {"a": 12}, 1024)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("lines", "kind", "says"),
    [
        ("[ERROR] load the model failed, errorCode = 207001\n", StageError, "too little free memory"),
        ("[ERROR] load the model failed, ret is 207001\n", StageError, "too little free memory"),
        ("RuntimeError: [207001][ACL: no text]\n", StageError, "too little free memory"),
        ("open device 0 failed, runtime result = 507033\n", StageError, "cannot reach the device"),
        ("[ERROR] load the model failed, errorCode is 507008\n", DataError, "perhaps it was compiled for another chip"),
        ("open /dev/davinci0: Permission denied\n", ConfigError, "may not use the device"),
        ("[ERROR] driver version 22 mismatch\n", StageError, "does not fit this CANN"),
        ("[ERROR] acl init failed, errorCode = 507008\n", StageError, "perhaps the device cannot be reached"),
        ("[PID: 207001] 2026-01-14 again\n", StageError, "without its success line"),
        ("[INFO] device 3 not exist\n", StageError, "without its success line"),
    ],
)
def test_the_runtimes_numbers(lines: str, kind: type[DebertaError], says: str) -> None:
    error = of_msame(f"[INFO] acl init success\n{lines}[ERROR] Sample process failed\n")
    assert type(error) is kind and says in str(error), str(error)


def test_a_traceback_has_the_level_of_its_first_line() -> None:
    """Only one that nothing caught is the cause."""
    quoted = (
        f'Traceback (most recent call last):\n  File "x.py", line 1\nModuleNotFoundError: No module named {"x"!r}\n'
    )
    assert type(of_ais_bench(f"{START}[INFO] {quoted}[ERROR] it stopped\n")) is StageError
    assert type(of_ais_bench(f"{START}[INFO] {quoted}{quoted}")) is MissingError
    assert type(of_ais_bench(f"{START}{quoted}")) is MissingError


def test_colours_and_lines_that_are_said_once() -> None:
    coloured = f"\x1b[31mEE1001: {STAMP} The argument is invalid.\x1b[0m\n"
    assert str(of_atc(FAILED + coloured)).count("EE1001: The argument is invalid") == 1
    error = of_atc(f"{FAILED}E10001: Value [X] for parameter [--soc_version] is invalid.\n")
    assert type(error) is ConfigError and "Give the chip's name with --soc-version" in str(error)
    both = of_atc("ATC run success, welcome\nEZ9999: Inner Error!\n        why\n", 0)
    assert "printed its success line, but an error too" in str(both) and "without its success" not in str(both)


def test_how_the_system_ended_a_tool() -> None:
    assert [causes.ended("msame", code) for code in (-9, 137)] == [
        "msame was killed, most likely because memory ran out"
    ] * 2
    assert causes.ended("msame", 139) == "msame was ended by signal 11"
    assert [causes.ended("msame", code) for code in (0, 1, 127, 128, 255)] == [""] * 5
