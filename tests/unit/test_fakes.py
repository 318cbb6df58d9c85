"""atc's and npu-smi's stand-ins against what the real tools are known to do, and the tree made of all stand-ins."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List

import onnx
import pytest
from onnx import helper

from tests import fake_cann, in_process
from tests.cpu_model_helpers import small_onnx
from tests.fakes import atc as fake_atc
from tests.fakes import atc_codes, om
from tests.fakes import npu_smi as fake_npu_smi

FAKES = fake_cann.FAKES
START, SUCCESS, FAILED = atc_codes.STARTING, atc_codes.SUCCESS, atc_codes.FAILED
SHAPES = "input_ids:8,256;input_mask:8,256"
GUIDE = {
    **{"framework": "5", "model": "./dynamic.onnx", "output": "./deberta_bs8", "input_format": "ND"},
    **{"input_shape": SHAPES, "soc_version": "Ascend310P3", "log": "error"},
}
OPEN = "input_ids:-1,256;input_mask:-1,256"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    small_onnx(folder / "dynamic.onnx")
    return folder


def atc(work: Path, options: Dict[str, str], forced: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """A run in this process; the words that end a process by a signal need `atc_process`."""
    arguments = [f"--{name}={value}" for name, value in options.items()]
    variables = {"PATH": os.environ["PATH"], "HOME": str(work / "home"), "FAKE_ATC": forced, **more}
    return in_process.run_main(lambda: fake_atc.main(arguments), work, variables)


def atc_process(work: Path, forced: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(FAKES / "atc"), *(f"--{name}={value}" for name, value in GUIDE.items())],
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(work), "FAKE_ATC": forced},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_guides_line(work: Path) -> None:
    done = atc(work, GUIDE)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{START}\n{SUCCESS}\n", "")
    packed = om.unpack((work / "deberta_bs8.om").read_bytes())
    assert packed.inputs == tuple(om.Input(name, "int32", (8, 256)) for name in ("input_ids", "input_mask"))
    assert packed.onnx == (work / "dynamic.onnx").read_bytes()
    # It litters the working directory and the home.
    assert {"kernel_meta", "check_result.json"} <= {path.name for path in work.iterdir()}
    assert len(list((work / "home/ascend/log/debug/plog").glob("plog-*.log"))) == 1
    assert (work / "home/atc_data").is_dir()


def two_domains(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def no_output(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def newer_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "LayerNormalization"


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 14


def changed(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def spoil(work: Path) -> None:
        model = onnx.load(work / "dynamic.onnx")
        change(model)
        onnx.save(model, work / "dynamic.onnx")

    return spoil


def nothing(work: Path) -> None:
    """The model as it is."""


def cut(work: Path) -> None:
    os.truncate(work / "dynamic.onnx", 5000)


def huge(work: Path) -> None:
    os.truncate(work / "dynamic.onnx", 2**31)  # sparse: takes no room on the disk


@dataclass(frozen=True)
class Refused:
    """An error code, the guide's options with these changes (empty value: left out), and a change of the model."""

    code: str
    options: Dict[str, str]
    spoil: Callable[[Path], None] = nothing
    names: str = ""


def gears(text: str, shapes: str = OPEN) -> Dict[str, str]:
    return {"input_shape": shapes, "dynamic_dims": text}


REFUSED = [
    Refused("E10007", {"framework": ""}, names="[--framework] is required"),
    Refused("E10007", {"framework": "7"}),
    Refused("E10004", {"model": ""}, names="--model"),
    Refused("E10004", {"output": ""}, names="--output"),
    Refused("E10004", {"soc_version": ""}, names="--soc_version"),
    Refused("E10001", {"input_format": "NHWC"}, names="[--input_format]"),
    Refused("E10001", {"precision_mode": "fp16"}, names="[--precision_mode]"),
    Refused("E10001", {"op_select_implmode": "fast"}),
    Refused("E10001", {"optypelist_for_implmode": "Gelu"}),
    Refused("E10001", {"modify_mixlist": "./dynamic.onnx"}),
    Refused("E10001", {"output_type": "FP64"}),
    Refused("E10010", {"log": "loud"}),
    Refused("E10410", {"keep_dtype": "./missing.cfg"}, names="missing.cfg"),
    Refused("E10002", {"input_shape": "input_ids"}),
    Refused("E10002", {"input_shape": "input_ids:8,x;input_mask:8,256"}),
    Refused("E10014", {"input_shape": f"input_ids:{10**20},256;input_mask:8,256"}),
    Refused("E10011", {"input_shape": "input_ids:0,256;input_mask:8,256"}),
    Refused("E10011", {"input_shape": OPEN}),
    Refused("E10016", {"input_shape": f"{SHAPES};token_type_ids:8,256"}, names="token_type_ids"),
    Refused("E10009", {**gears("1,1;8,8"), "dynamic_batch_size": "1,8"}),
    Refused("E10035", gears("8,8")),
    Refused("E10036", gears(";".join(f"{size},{size}" for size in range(1, 102)))),
    Refused("E10037", gears("1,1;8")),
    Refused("E10038", gears("0,0;8,8")),
    Refused("E10039", gears("8,8;8,8")),
    Refused("E10040", gears("1,1;8,8", SHAPES)),
    Refused("E10045", gears("1;8")),
    Refused("E10001", {**gears("1,1;8,8"), "input_format": "NCHW"}),
    Refused("E10022", {"output": "./out/"}),
    Refused("E10022", {"output": "./no/folder/deberta_bs8"}),
    Refused("EE1000", {"soc_version": "Ascend310Pvir01"}, names="Ascend310Pvir01"),
    Refused("EE1000", {"soc_version": "310P3"}),
    Refused("E19000", {"model": "./nope.onnx"}, names="nope.onnx"),
    Refused("E19005", {}, cut),
    Refused("E19015", {}, huge, "2147483648"),
    Refused("E16001", {}, changed(no_output)),
    Refused("E16002", {}, changed(newer_operator), "LayerNormalization"),
    Refused("E16002", {}, changed(newer_opset), "ai.onnx::14::Gather"),
    Refused("E16005", {}, changed(two_domains)),
    Refused("E19999", {"input_shape": "input_ids:8,128;input_mask:8,256"}, names="input_ids"),
    Refused("E19999", {"input_shape": "input_ids:8,256"}, names="input_mask"),
]


@pytest.mark.parametrize("case", REFUSED, ids=[f"{case.code}-{index}" for index, case in enumerate(REFUSED)])
def test_what_atc_refuses(work: Path, case: Refused) -> None:
    case.spoil(work)
    (work / "out").mkdir()
    options = {name: value for name, value in {**GUIDE, **case.options}.items() if value}
    done = atc(work, options)
    assert (done.returncode, done.stderr) == (255, "")
    start, failed, text = done.stdout.split("\n", 2)
    assert (start, failed, text.partition(":")[0]) == (START, FAILED, case.code)
    assert case.names in text
    assert not list(work.rglob("*.om"))


@pytest.mark.parametrize(
    ("forced", "code", "printed", "size"),
    [
        ("exit0-without-success", 0, [START], "whole"),
        ("success-without-om", 0, [START, SUCCESS], "none"),
        ("empty-om", 0, [START, SUCCESS], "empty"),
        ("old-om", 0, [START, SUCCESS], "whole"),
        ("failed-exit0", 0, [START, FAILED, "E19999: Inner Error!"], "none"),
        ("success-exit255", 255, [START, SUCCESS], "whole"),
        (
            "warnings",
            0,
            [START, SUCCESS, atc_codes.warning("Gather")],
            "whole",
        ),
    ],
)
def test_what_the_exit_code_hides(work: Path, forced: str, code: int, printed: List[str], size: str) -> None:
    before = time.time()
    done = atc(work, GUIDE, forced)
    assert (done.returncode, done.stdout.splitlines()) == (code, printed)
    compiled = work / "deberta_bs8.om"
    bytes_there = compiled.stat().st_size if compiled.exists() else -1
    whole = bytes_there > (work / "dynamic.onnx").stat().st_size
    sizes = {-1: "none", 0: "empty"}
    assert sizes.get(bytes_there, "whole" if whole else "half") == size
    assert (forced == "old-om") == (compiled.exists() and compiled.stat().st_mtime < before - 60)


def test_an_old_om_stays(work: Path) -> None:
    (work / "deberta_bs8.om").write_bytes(b"of an earlier run")
    assert atc(work, GUIDE, "old-om").returncode == 0
    assert (work / "deberta_bs8.om").read_bytes() == b"of an earlier run"
    assert atc(work, GUIDE).returncode == 0
    assert len((work / "deberta_bs8.om").read_bytes()) > 1000


def test_a_killed_or_hanging_atc_leaves_half_an_om_and_dies_of_ctrl_c(work: Path) -> None:
    compiled = work / "deberta_bs8.om"
    process = atc_process(work, "killed")
    assert (process.communicate(timeout=60)[0], process.returncode) == (f"{START}\n", -signal.SIGKILL)
    assert 0 < compiled.stat().st_size < (work / "dynamic.onnx").stat().st_size
    compiled.unlink()
    process = atc_process(work, "hang")
    while not compiled.exists() or not compiled.stat().st_size:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=60)[0], process.returncode) == (f"{START}\n", -signal.SIGINT)
    assert 0 < compiled.stat().st_size < (work / "dynamic.onnx").stat().st_size


def test_gears_and_output_type_are_packed(work: Path) -> None:
    done = atc(work, {**GUIDE, **gears("1,1;8,8;4,4"), "output_type": "FP16"})
    assert done.returncode == 0, done.stdout
    packed = om.unpack((work / "deberta_bs8.om").read_bytes())
    assert packed.gears == ((1, 256, 1, 256), (8, 256, 8, 256), (4, 256, 4, 256))
    assert ([tensor.shape for tensor in packed.inputs], packed.output_type) == ([(8, 256)] * 2, "FP16")


def test_the_environment_matters(work: Path) -> None:
    assert "E40001" in atc(work, GUIDE, VIRTUAL_ENV="/project/.venv").stdout
    loader = atc(work, GUIDE, "needs-hal", LD_LIBRARY_PATH="/nowhere")
    assert (loader.returncode, loader.stdout) == (127, "") and "libascend_hal.so" in loader.stderr
    (work / "libascend_hal.so").touch()
    assert atc(work, GUIDE, "needs-hal", LD_LIBRARY_PATH=f"/nowhere:{work}").returncode == 0
    newer = atc(work, {}, "new-format").stdout
    assert "E10007: [PID: " in newer


def test_an_unknown_flag_ends_it_at_once(work: Path) -> None:
    done = atc(work, {**GUIDE, "fast": "1"})
    assert (done.returncode, done.stdout) == (1, "") and "unknown command line flag 'fast'" in done.stderr


def npu_smi(layout: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return in_process.run_main(lambda: fake_npu_smi.main(arguments), Path.cwd(), {"FAKE_NPU_SMI": layout})


# As published for 310P3 cards.
NARROW = """\
| NPU     Name      | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device    | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===================+=================+======================================================+
| 0       310P3     | OK              | 15.8         42                0    / 0              |
| 0       0         | 0000:82:00.0    | 0            1074 / 21534                            |
"""
WIDE = """\
| 24      310P3                 | OK              | NA           29                0     / 0             |
| 0       0                     | 0000:04:00.0    | 0            1832 / 21527                            |
+===============================+=================+======================================================+
"""
NOBODY = "| No running processes found in NPU 24                                                                   |\n"


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ("narrow", [NARROW]),
        ("wide", [WIDE, NOBODY]),
        ("no-processes", ["| npu-smi 22.0.4                                   Version: 22.0.4"]),
        ("busy", ["| 24      0                     | 139667          | python                   | 17500"]),
        ("busy-22", ["| 0       0                     | 0000:00:07.0    | 88           19435/ 21527"]),
        ("duo", ["| 1       1                     | 0000:01:00.0    | 0            1412 / 43693"]),
        ("sparse", ["| 32800   310P3 ", "| 0            19435/ 21527 "]),
        ("vnpu", ["| 7       310Pvir02 "]),
        ("unhealthy", ["| Alarm "]),
    ],
)
def test_layouts_of_npu_smi(layout: str, rows: List[str]) -> None:
    done = npu_smi(layout, "info")
    assert (done.returncode, done.stderr) == (0, "")
    assert [row for row in rows if row not in done.stdout] == []
    assert ("Process id" in done.stdout) == (layout in ("wide", "busy", "duo", "unhealthy"))
    assert len({len(line) for line in done.stdout.splitlines()}) == 1


def test_the_other_queries() -> None:
    assert "Total Count                    : 4" in npu_smi("sparse", "info", "-l").stdout
    mapping = [line.split() for line in npu_smi("duo", "info", "-m").stdout.splitlines()]
    assert mapping[1:] == [
        ["1", "0", "0", "Ascend", "310P3"],
        ["1", "1", "1", "Ascend", "310P3"],
        ["1", "2", "-", "Mcu"],
    ]
    assert "Software Version               : 22.0.2" in npu_smi("narrow", "info", "-t", "board", "-i", "1").stdout
    for layout, *arguments in (("narrow", "info", "-t", "board", "-i", "2"), ("none", "info"), ("in-use", "info")):
        done = npu_smi(layout, *arguments)
        assert done.returncode == 1 and done.stdout
    assert npu_smi("wider", "info").returncode == 2


def test_the_tree_runs_in_its_own_environment_alone(tmp_path: Path, work: Path) -> None:
    root = fake_cann.install(tmp_path / "As cend", python=sys.executable)
    script = f'. "{root / fake_cann.SET_ENV}" && env && command -v atc && atc "$@"'
    arguments = [f"--{name}={value}" for name, value in GUIDE.items()]
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(work / "home")}

    def shell(program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", program, "sh", *words]
        return subprocess.run(command, cwd=work, env=bare, capture_output=True, text=True, timeout=60, check=False)

    done = shell(script, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    home = str(root / "ascend-toolkit/latest")
    for line in (f"ASCEND_TOOLKIT_HOME={home}", f"ASCEND_OPP_PATH={home}/opp", f"{home}/bin/atc", SUCCESS):
        assert line in done.stdout.splitlines()
    msame = f'"{root / fake_cann.MSAME}" --model deberta_bs8.om --output out'
    assert "Execute sample success" in shell(msame).stdout
    assert "310P3" in shell(f'"{root / fake_cann.NPU_SMI}" info').stdout
    fake_cann.force(root, atc="code=E40001", msame="old-success", npu_smi="vnpu")
    assert "E40001" in shell(script, *arguments).stdout
    assert "[INFO] Execute sample success" in shell(msame).stdout
    assert "310Pvir02" in shell(f'"{root / fake_cann.NPU_SMI}" info').stdout


def test_a_tree_can_be_made_for_another_place(tmp_path: Path) -> None:
    root = fake_cann.install(tmp_path / "context", at="/usr/local/Ascend", hal=False)
    assert str(tmp_path) not in "".join(
        path.read_text(errors="replace") for path in root.rglob("*") if path.is_file() and path.suffix != ".py"
    )
    assert "version=5.1.RC2" in next(root.glob("ascend-toolkit/latest/*-linux/*.info")).read_text()
    assert not list(root.rglob("libascend_hal.so"))


def test_stand_ins_run_on_python_3_9_with_nothing_installed() -> None:
    for path in FAKES.iterdir():
        if path.is_file() and path.suffix != ".md":
            tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
            modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
            modules |= {
                str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level
            }
            outside = {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names)
            assert outside <= ({"numpy", "onnxruntime"} if path.name == "msame_model.py" else set()), path
            assert os.access(path, os.X_OK) == (path.suffix == ""), path
