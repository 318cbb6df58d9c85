"""ATC's stdout, as field reports and its source have it, and the outcome that each kind of run must have."""

from __future__ import annotations

import os
import time
from pathlib import Path, PurePosixPath
from typing import Any, Type

import pytest

from deberta.ascend import atc, causes
from deberta.ascend.atc import AtcOptions
from deberta.core import errors
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError, StageError

START = "ATC start working now, please wait for a moment.\n"
SUCCESS = START + "ATC run success, welcome to the next use.\n"
FAILED = START + "ATC run failed, Please check the detail log, Try 'atc --help' for more information\n"
SLOW = (
    "W11001: Op [Slice_{}] does not hit the high-priority operator information library, "
    "which might result in compromised performance.\n"
)
NO_KERNEL = """\
EZ3003: No supported Ops kernel and engine are found for [GatherElements_79], optype [GatherElements].
        Possible Cause: The operator is not supported by the system.
        Solution: 1. Check that the OPP component is installed properly.
        TraceBack (most recent call last):
        build graph failed, graph id:0, ret:-1[FUNC:BuildModel][FILE:ge_generator.cc][LINE:1484]
"""
PYTHON = """\
EC0010: [PID: 129520] 2025-07-08-10:25:28.680.962 Failed to import Python module [ModuleNotFoundError: No module named \
'decorator'.].
        Solution: Check that all required components are properly installed.
        TraceBack (most recent call last):
        AOE Failed to call InitCannKB[FUNC:Initialize][FILE:python_adapter_manager.cc][LINE:47]
"""
NO_DRIVER = (
    "/usr/local/Ascend/ascend-toolkit/8.0.0/x86_64-linux/bin/atc.bin: error while loading shared libraries: "
    "libascend_hal.so: cannot open shared object file: No such file or directory\n"
)


def judge(stdout: str, exit_code: int, om: Path, started: float = 0.0, minimum: int = 1) -> None:
    atc.judge(atc.parse(stdout), exit_code, om, started, minimum, log=Path("results/logs/build-om.log"))


@pytest.fixture
def om(tmp_path: Path) -> Path:
    """An .om as good as any: only its name, size and age are looked at."""
    path = tmp_path / "deberta_bs8.om"
    path.write_bytes(bytes(1000))
    return path


def test_a_good_run(om: Path) -> None:
    """Its warnings come after the success line, and go to the record."""
    stdout = SUCCESS + SLOW.format(30) + SLOW.format(10) + SLOW.format(30)
    started = time.time()
    om.write_bytes(bytes(1000))
    judge(stdout, 0, om, started, minimum=1000)
    summary = atc.summary(atc.parse(stdout))
    assert summary["slow_ops"] == ["Slice_10", "Slice_30"]
    assert [line[:19] for line in summary["warnings"]] == [f"W11001: Op [Slice_{i}" for i in (3, 1, 3)]
    assert atc.summary(atc.parse(SUCCESS)) == {"warnings": [], "slow_ops": []}


@pytest.mark.parametrize(
    ("stdout", "exit_code", "error", "says"),
    [
        # Exit code 0, and no success.
        ("", 0, StageError, "without its success line; it printed nothing"),
        (START, 0, StageError, "exit code 0 and without its success line; last line: ATC start working now"),
        (FAILED, 0, StageError, "atc failed with exit code 0 and gave no error code"),
        (FAILED + "E16002: No ONNX parser is registered for optype [Mod].\n", 0, DataError, "optype [Mod]"),
        # Both lines, or the success line with an error: something went wrong.
        (SUCCESS + FAILED, 0, StageError, "gave no error code"),
        (SUCCESS + NO_KERNEL, 0, StageError, "EZ3003"),
        # The success line, and another exit code.
        (SUCCESS, 255, StageError, "printed its success line, but ended with exit code 255"),
        (SUCCESS, -11, StageError, "ended by signal 11"),
        (FAILED, 255, StageError, "exit code 255 and gave no error code"),
        # The wrapper could not start atc.bin, or the system ended it.
        (NO_DRIVER, 127, MissingError, "devlib"),
        (NO_DRIVER.replace("libascend_hal.so", "libgraph.so"), 127, MissingError, "the toolkit is whole"),
        ("ERROR: unknown command line flag 'no_such'\n", 1, ConfigError, "unknown command line flag 'no_such'"),
        (FAILED + "`np.float_` was removed in the NumPy 2.0 release.\n", 255, MissingError, "numpy below 2"),
        (START + "write failed: No space left on device\n", 255, StageError, "Free some space"),
        (START, -9, StageError, "killed, most likely because memory ran out"),
        (START, 137, StageError, "killed, most likely because memory ran out"),
        (START, 134, StageError, "ended by signal 6"),
        # The code's own line is cleared of the newer builds' process and time.
        (FAILED + PYTHON, 255, MissingError, "atc: EC0010: Failed to import Python module [ModuleNotFoundError"),
        (FAILED + PYTHON, 255, MissingError, "3.7 to 3.9"),
        # Unknown codes are shown as they are, with ATC's next line.
        (FAILED + "EZ1234: New.\n        Reason: nobody knows.\n", 255, StageError, "EZ1234: New. Reason: nobody"),
        (FAILED + "EZ1234: Something new.\n", 255, StageError, "results/logs/build-om.log"),
        # Several codes: the one that says most.
        (FAILED + "E19999: Inner Error!\n        no memory at 3\n" + NO_KERNEL, 255, StageError, "EZ3003"),
        (FAILED + "E19999: Inner Error!\n" + "EZ1234: Something new.\n", 255, StageError, "EZ1234: Something new"),
        (FAILED + "E19999: Inner Error!\n        [Check] null\n", 255, StageError, "E19999: Inner Error! [Check] null"),
        (FAILED + "EZ9999: Inner Error!\nEZ9999  The opp differs.\n", 255, StageError, "EZ9999: Inner Error! The opp"),
        (FAILED + "E19999: Inner Error!\nE19999: [PID: 6] 2026-10-07 Why.\n", 255, StageError, "E19999: Why: ATC"),
        (FAILED + "E19999: Inner Error!\n        No space left on device\n", 255, StageError, "Free some space"),
        (FAILED + "E10001: Value [5] is invalid.\n" + NO_KERNEL, 255, ConfigError, "E10001"),
    ],
)  # fmt: skip
def test_what_does_not_count(om: Path, stdout: str, exit_code: int, error: Type[DebertaError], says: str) -> None:
    """The .om of an earlier, good run is there each time, and must not make a failed one good."""
    with pytest.raises(DebertaError) as raised:
        judge(stdout, exit_code, om, started=om.stat().st_mtime)
    assert type(raised.value) is error
    assert says in str(raised.value)


def test_the_success_line_without_a_good_om(om: Path) -> None:
    written = om.stat().st_mtime
    judge(SUCCESS, 0, om, written)
    with pytest.raises(DataError, match=r"older than the run: it was not written\. Its output is in results/logs"):
        judge(SUCCESS, 0, om, written + 10)
    with pytest.raises(DataError, match=r"has 1,000 bytes, too few for the model's weights \(at least 1,001\)"):
        judge(SUCCESS, 0, om, written, minimum=1001)
    om.write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        judge(SUCCESS, 0, om, written, minimum=0)
    om.unlink()
    with pytest.raises(StageError, match=r"success line, but .*deberta_bs8\.om is not there"):
        judge(SUCCESS, 0, om, written)
    om.mkdir()
    with pytest.raises(StageError, match="is not there"):
        judge(SUCCESS, 0, om, written)


def test_a_file_system_that_keeps_whole_seconds(om: Path) -> None:
    os.utime(om, (1_800_000_000, 1_800_000_000))
    judge(SUCCESS, 0, om, started=1_800_000_000.9)


# Every code that a user of 5.1 was known to meet, with the exit code that it must end with.
LISTED = {
    2: "E10001 E10002 E10004 E10007 E10009 E10011 E10014 E10016 E10022 E10035 E10036 E10037 E10038 E10039 EE1000",
    3: "E40001 E40008 EC0010",
    4: "E10044 E13002 E13003 EZ3002 EZ3003 E19015 E19022 E19023 E40005 E40006 E40007 E40009 EB0000 E90000 E19999",
    5: "E16001 E16002 E76002 E16005 E19005",
}


ADVICE_OF_CODE = {code: row for row in causes.TABLE.rows if "atc" in row.tools for code in row.codes}


@pytest.mark.parametrize(("code", "exit_code"), [(c, exits) for exits, codes in LISTED.items() for c in codes.split()])
def test_each_listed_code_is_explained(om: Path, code: str, exit_code: int) -> None:
    with pytest.raises(DebertaError) as raised:
        judge(f"{FAILED}{code}: Text of ATC's own.\n", 255, om)
    assert raised.value.exit_code == exit_code
    assert str(raised.value).startswith(f"atc: {code}: Text of ATC's own: {ADVICE_OF_CODE[code].advice}")


def test_the_table_of_codes() -> None:
    for code, row in ADVICE_OF_CODE.items():
        whole = code.ljust(6, "0")
        assert atc.parse(f"{whole}: x\n").errors[0].code == whole
        assert getattr(errors, row.error).exit_code in (2, 3, 4, 5)
        assert ". " in row.advice and not row.advice.endswith(".")  # what it means, and what to do


@pytest.mark.parametrize(
    "line",
    ["[ERROR] GE(2131,atc.bin):2022-10-10-10:10:10.100.100 [main.cc:1]E10001: x", "E1: x", "error: E10001", "ERROR: x"],
)
def test_lines_that_are_no_codes(line: str) -> None:
    assert atc.parse(f"{SUCCESS}{line}\n").errors == ()


def test_the_guides_line() -> None:
    model, om = PurePosixPath("models/mnli/dynamic.onnx"), PurePosixPath("models/mnli/ascend/deberta_bs8.om")
    assert atc.command(model, om, 8, "Ascend310P3", AtcOptions(), 256) == (
        "atc",
        "--framework=5",
        "--model=models/mnli/dynamic.onnx",
        "--output=models/mnli/ascend/deberta_bs8",
        "--input_format=ND",
        "--input_shape=input_ids:8,256;input_mask:8,256",
        "--soc_version=Ascend310P3",
        "--log=error",
    )
    shorter = atc.command(model, om, 8, "Ascend310P3", AtcOptions(), 64)
    assert "--input_shape=input_ids:8,64;input_mask:8,64" in shorter


def test_options_are_passed_through() -> None:
    values: dict[str, Any] = {
        "precision_mode": "allow_mix_precision",
        "modify_mixlist": "settings/mix.json",
        "optypelist_for_implmode": "Gelu",
        "op_select_implmode": "high_performance",
        "output_type": "Add_9:0:FP32",
        "log": "info",
        "buffer_optimize": None,  # a key that is left empty in invoke.yaml
        "extra": ["--op_debug_level=0", "--out_nodes=Add_9:0"],
    }
    chosen = atc.options(values)
    assert atc.command(PurePosixPath("m"), PurePosixPath("o.om"), 1, "Ascend310P3", chosen, 256)[7:] == (
        "--log=info",
        "--precision_mode=allow_mix_precision",
        "--op_select_implmode=high_performance",
        "--optypelist_for_implmode=Gelu",
        "--modify_mixlist=settings/mix.json",
        "--output_type=Add_9:0:FP32",
        "--op_debug_level=0",
        "--out_nodes=Add_9:0",
    )
    assert atc.option_files(chosen) == (PurePosixPath("settings/mix.json"),)
    assert atc.rooted(chosen, Path("/a b")).modify_mixlist == "/a b/settings/mix.json"
    assert atc.rooted(AtcOptions(keep_dtype="/etc/k"), Path("/w")).keep_dtype == "/etc/k"
    assert atc.options(None) == atc.options({}) == atc.options({"extra": []}) == AtcOptions()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"precision_mode": "fp16"}, "precision_mode 'fp16' is not one of: force_fp16, force_fp32"),
        ({"op_select_implmode": "fast"}, "op_select_implmode 'fast' is not one of: high_performance"),
        ({"buffer_optimize": "l3"}, "buffer_optimize 'l3' is not one of: l2_optimize"),
        ({"log": "loud"}, "log 'loud' is not one of: null"),
        ({"output_type": "FP16"}, "postprocess reads float32"),
        ({"output_type": "logits:0:FP16"}, "postprocess reads float32"),
        ({"modify_mixlist": "m.json"}, "modify_mixlist needs precision_mode allow_mix_precision"),
        ({"modify_mixlist": "m.json", "precision_mode": "force_fp16"}, "modify_mixlist needs"),
        ({"optypelist_for_implmode": "Gelu"}, "optypelist_for_implmode needs op_select_implmode"),
        ({"dynamic_dims": "8"}, "1 gears, ATC takes 2 to 100"),
        ({"dynamic_dims": ";".join(f"{i},{i}" for i in range(1, 102))}, "101 gears"),
        ({"dynamic_dims": "1,1;8,8;8,8"}, "names a gear twice"),
        ({"dynamic_dims": "1,1;8"}, "gear 8 of dynamic_dims is not 2 equal batch sizes"),
        ({"dynamic_dims": "1,1;8,4"}, "gear 8,4 of dynamic_dims"),
        ({"dynamic_dims": "0,0;8,8"}, "gear 0,0 of dynamic_dims"),
        ({"dynamic_dims": "1,1; 8,8"}, "is not like 1,1;8,8"),
        ({"extra": ["--dynamic_batch_size=1,8"]}, "use dynamic_dims, which it excludes"),
        ({"extra": ["--input_shape_range=input_ids:[1~8,256]"]}, "use dynamic_dims"),
        ({"extra": ["--insert_op_conf=a.cfg"], "dynamic_dims": "1,1;8,8"}, "exclude each other"),
        ({"extra": ["--output=/etc/x"]}, "--output is set by us"),
        ({"extra": ["--mode=1"]}, "--mode is set by us"),
        ({"extra": ["--precision_mode=force_fp32"]}, "--precision_mode has a key of its own"),
        ({"extra": ["--op_debug_level", "0"]}, "extra '--op_debug_level' is not like --name=value"),
        ({"extra": ["-op_debug_level=0"]}, "is not like --name=value"),
        ({"extra": ["--a=\n"]}, "is not like --name=value"),
        ({"extra": "--op_debug_level=0"}, "extra is not a list"),
        ({"extra": [1]}, "extra is not a list"),
        ({"keep_dtype": 1}, "keep_dtype 1 is not text"),
        ({"presicion_mode": "force_fp16"}, "unknown key 'presicion_mode'"),
    ],
)
def test_options_that_atc_or_we_would_not_take(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        atc.options(values)
    assert str(raised.value).startswith("atc in invoke.yaml: ") and says in str(raised.value)


@pytest.mark.parametrize("name", ["my models", "a+b", "a=b", "it's", "é"])
def test_a_path_that_atc_would_refuse(tmp_path: Path, name: str) -> None:
    """It looks at the real path, so a link with a good name does not help."""
    odd = tmp_path / name
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    atc.check_paths([tmp_path / "dynamic.onnx", tmp_path / "模型" / "a-b_c.onnx"])
    for folder in (odd, tmp_path / "link"):
        with pytest.raises(ConfigError, match="ATC takes only letters, digits"):
            atc.check_paths([tmp_path, folder / "dynamic.onnx"])


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"precision_mode 'x'.*; log 'y'.*; output_type 'UINT8'"):
        atc.options({"precision_mode": "x", "log": "y", "output_type": "UINT8"})


def test_gears_of_the_batch() -> None:
    """The largest gear is the batch size: msame's output files have the largest one's size."""
    chosen = atc.options({"dynamic_dims": "8,8;1,1"})
    model, om = PurePosixPath("m"), PurePosixPath("deberta_bs8.om")
    line = atc.command(model, om, 8, "Ascend310P3", chosen, 256)
    assert "--input_shape=input_ids:-1,256;input_mask:-1,256" in line and "--dynamic_dims=8,8;1,1" in line
    assert atc.dym_dims(8, chosen, 256) == ("--dymDims", "input_ids:8,256;input_mask:8,256")
    assert atc.dym_dims(8, AtcOptions(), 256) == ()
    with pytest.raises(ConfigError, match="largest gear of dynamic_dims is 8 and the batch size is 16"):
        atc.command(model, om, 16, "Ascend310P3", chosen, 256)


def test_least_bytes_of_an_om() -> None:
    """Weights in float16 are half of the ONNX file; the bound has to stay below that."""
    assert 0 < atc.least_bytes(772_492_777) < 772_492_777 / 2
