"""The cpu backend's runner: msame's files and lines when all is well, an error and nothing left when it is not."""

from __future__ import annotations

import json
import mmap
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest

from deberta.ascend import msame
from deberta.core import contract, machine
from deberta.core.errors import INTERRUPTED, run_stage
from deberta.stages.compile import compile_cpu
from deberta.stages.inference import openvino_engine, precisions, run_cpu
from tests.cpu_model_helpers import VOCABULARY, any_length_onnx, small_onnx, stage_process, write_bins
from tests.mnli_helpers import small_disk

BATCH_SIZE = 2
BATCHES = 12  # past 10, so that plain string order differs from the order of the indices
TIME_FOLDER = r"\d{6,8}(_\d{1,2}){3}_\d{1,6}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    small_onnx(folder / "dynamic.onnx")
    arguments = ["--model", folder / "dynamic.onnx", "--bs", BATCH_SIZE, "--output", folder / "deberta_bs2.xml"]
    compile_cpu.main([str(argument) for argument in arguments])
    return folder


@pytest.fixture
def workspace(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model and bins in it, which is the working directory."""
    for suffix in ("xml", "bin"):
        (tmp_path / f"deberta_bs2.{suffix}").write_bytes((models / f"deberta_bs2.{suffix}").read_bytes())
    write_bins(tmp_path / "in", BATCHES, BATCH_SIZE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(**changes: str) -> list[str]:
    given = {"model": "deberta_bs2.xml", "input": "in/input_ids/,in/input_mask/", "output": "out", **changes}
    return [word for name, value in given.items() for word in (f"--{name}", value)]


def reference(models: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(models / "dynamic.onnx"), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input_ids": ids, "input_mask": mask})[0])


def test_directory_mode_leaves_what_msame_leaves(
    workspace: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage(run_cpu.main, arguments(output="out1/", summary="summary.json")) == 0
    stdout, stderr = capsys.readouterr()
    run = msame.parse(stdout)
    assert stderr == ""
    assert re.fullmatch(rf"out1//{TIME_FOLDER}", str(run.folder))  # the option, a slash and T, as msame prints it
    assert run.folder is not None
    expected = {f"input_{index}_output_0.bin": BATCH_SIZE * 3 * 4 for index in range(BATCHES)}
    msame.judge(run, Path(run.folder), expected, BATCHES)

    ids, mask = write_bins(workspace / "same", BATCHES, BATCH_SIZE)
    for index in range(BATCHES):
        logits = np.fromfile(Path(run.folder, f"input_{index}_output_0.bin"), np.float32).reshape(BATCH_SIZE, 3)
        np.testing.assert_allclose(logits, reference(models, ids[index], mask[index]), atol=1e-5)

    started = re.findall(r"start to process file:(.*)", stdout)
    names = sorted(f"input_{index}.bin" for index in range(BATCHES))
    assert started == [f"in/input_{what}//{name}" for name in names for what in ("ids", "mask")]
    assert len(re.findall(r"^Inference time: \d+(\.\d{1,6})?ms$", stdout, re.MULTILINE)) == BATCHES
    assert re.search(r"^Inference average time : \d+\.\d\d ms$", stdout, re.MULTILINE)
    assert re.search(r"^Inference average time without first time: \d+\.\d\d ms$", stdout, re.MULTILINE)
    assert re.search(r"^\[INFO\] pid: \d+ Execute sample success$", stdout, re.MULTILINE)
    summary = json.loads(Path("summary.json").read_text())
    assert summary["batches"] == BATCHES
    assert summary["precision"] == "f32"


def test_file_mode_loops_and_names_the_output_after_the_model(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = "in/input_ids/input_0.bin,in/input_mask/input_0.bin"
    assert run_stage(run_cpu.main, arguments(input=files, loop="7")) == 0
    stdout = capsys.readouterr().out
    run = msame.parse(stdout)
    assert run.folder is not None
    msame.judge(run, Path(run.folder), {"deberta_bs2_output_0.bin": BATCH_SIZE * 3 * 4}, 7)
    assert re.search(r"^Inference average time: \d+\.\d{6} ms$", stdout, re.MULTILINE)
    assert re.search(r"^Inference average time without first time: \d+\.\d{6} ms$", stdout, re.MULTILINE)
    # The averages are those of the times above them, to the six digits that these have.
    assert run.average_ms == pytest.approx(sum(run.times_ms) / 7, rel=1e-4)
    assert run.average_without_first_ms == pytest.approx(sum(run.times_ms[1:]) / 6, rel=1e-4)
    assert "[progress]" not in stdout


def test_one_inference_has_no_average_without_the_first(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = "in/input_ids/input_0.bin,in/input_mask/input_0.bin"
    assert run_stage(run_cpu.main, arguments(input=files)) == 0
    assert "without first" not in capsys.readouterr().out


def test_times_are_printed_like_a_cpp_stream_and_names_like_msame() -> None:
    from datetime import datetime

    assert contract.run_folder(datetime(2026, 1, 5, 0, 1, 2, 7)) == "202615_0_1_2_7"
    assert [f"{time:g}" for time in (5251.23, 0.165, 1234567.0, 378.9)] == ["5251.23", "0.165", "1.23457e+06", "378.9"]


def _swap(workspace: Path) -> None:
    (workspace / "in/input_ids").rename(workspace / "in/x")
    (workspace / "in/input_mask").rename(workspace / "in/input_ids")
    (workspace / "in/x").rename(workspace / "in/input_mask")


def _empty(workspace: Path) -> None:
    for file in workspace.glob("in/*/*.bin"):
        file.unlink()


def _unknown_token(workspace: Path) -> None:
    (workspace / "in/input_ids/input_3.bin").write_bytes(np.full((BATCH_SIZE, 256), VOCABULARY, np.int32).tobytes())


def _too_long(workspace: Path) -> None:
    """int64 token files: msame runs them, with wrong logits."""
    (workspace / "in/input_ids/input_5.bin").write_bytes(bytes(BATCH_SIZE * 256 * 8))


def _truncate_weights(workspace: Path) -> None:
    weights = workspace / "deberta_bs2.bin"
    weights.write_bytes(weights.read_bytes()[:1000])


def _nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("break_it", "changes", "code", "says"),
    [
        (_nothing, {"loop": "0"}, 2, "--loop"),
        (_nothing, {"loop": "101"}, 2, "--loop"),
        (_nothing, {"loop": "abc"}, 2, "--loop"),
        (_nothing, {"device": "1"}, 2, "--device"),
        (_nothing, {"device": "256"}, 2, "--device"),
        (_nothing, {"threads": "0"}, 2, "--threads"),
        (_nothing, {"lengths": "64"}, 5, "takes inputs of 256 tokens, not of 64. Run: invoke build-om"),
        (_nothing, {"lengths": "0"}, 2, "0 is not within 4 to 256"),
        (_nothing, {"lengths": "64,256"}, 2, "--input is given 1 times and --output 1, for 2 lengths"),
        (_nothing, {"input": "in/input_ids/"}, 2, "2 directories or files"),
        (_nothing, {"input": "in/input_ids/,in/input_mask/,in/input_mask/"}, 2, "2 directories or files"),
        (_nothing, {"input": "in/input_ids/,in/input_mask/input_0.bin"}, 2, "mixes"),
        (_nothing, {"output": "deberta_bs2.xml"}, 2, "is not a folder"),
        (_nothing, {"output": "no/such/folder"}, 3, "mkdir -p no/such"),
        (_nothing, {"input": "in/input_ids/,in/none/"}, 3, "in/none/ is missing. Run: invoke preprocess"),
        (_nothing, {"model": "deberta_bs4.xml"}, 3, "deberta_bs4.xml is missing. Run: invoke build-om"),
        (lambda w: (w / "deberta_bs2.bin").unlink(), {}, 3, "deberta_bs2.bin is missing"),
        (lambda w: (w / "deberta_bs2.xml").write_text("<net>"), {}, 5, "can load"),
        (_truncate_weights, {}, 5, "can load"),
        (_empty, {}, 5, "holds no file"),
        (lambda w: (w / "in/input_mask/input_5.bin").unlink(), {}, 5, "only one has input_5.bin"),
        (lambda w: (w / "in/input_mask/input_12.bin").touch(), {}, 5, "only one has input_12.bin"),
        (lambda w: (w / "in/input_ids/notes.txt").touch(), {}, 5, "notes.txt"),
        (lambda w: (w / "in/input_ids/input_5.bin").write_bytes(b""), {}, 5, "input_5.bin (0 bytes)"),
        (_too_long, {}, 5, "input_5.bin (4096 bytes)"),
        (_swap, {}, 5, "input_mask goes from 0 to 1"),
        (_unknown_token, {}, 5, "input_ids goes from 0 to 49"),
    ],
)
def test_mistakes_stop_the_run_and_leave_nothing(
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], None],
    changes: dict[str, str],
    code: int,
    says: str,
) -> None:
    break_it(workspace)
    assert run_stage(run_cpu.main, arguments(**changes)) == code
    stdout, stderr = capsys.readouterr()
    assert says in stderr
    assert stderr.count("\n") == 1
    assert "Execute sample success" not in stdout
    out = workspace / "out"
    assert not out.exists() or list(out.iterdir()) == []


LENGTHS = (16, 64, 256)


@pytest.fixture(name="of_lengths")
def _of_lengths(workspace: Path) -> Path:
    """A model of any length, and three batches of bins for each length."""
    model = openvino.Core().read_model(any_length_onnx(workspace / "any.onnx"))
    model.reshape({name: [BATCH_SIZE, (1, 256)] for name in ("input_ids", "input_mask")})
    openvino.save_model(model, workspace / "any.xml", compress_to_fp16=False)
    for length in LENGTHS:
        write_bins(workspace / f"s{length}", 3, BATCH_SIZE, length)
    return workspace


def _arguments_of_lengths(lengths: Sequence[int] = LENGTHS) -> list[str]:
    folders = [("--input", f"s{n}/input_ids/,s{n}/input_mask/", "--output", f"out{n}") for n in lengths]
    model = ["--model", "any.xml", "--lengths", ",".join(map(str, lengths)), "--summary", "summary.json"]
    return [*model, *(word for words in folders for word in words)]


def _mark(precision: str) -> None:
    model = openvino.Core().read_model("deberta_bs2.xml")
    precisions.mark(model, precision)
    openvino.save_model(model, "marked.xml", compress_to_fp16=False)


def test_a_precision_that_is_not_known_or_not_of_this_cpu_is_refused(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _mark("fp8")
    assert run_stage(run_cpu.main, arguments(model="marked.xml")) == 5
    assert "marked.xml is marked 'fp8', not as one of: fp32, int8, bf16" in capsys.readouterr().err
    _mark("bf16")
    monkeypatch.setattr(machine, "why_no_bf16", lambda: "this CPU (Some) has none")
    assert run_stage(run_cpu.main, arguments(model="marked.xml")) == 2
    assert "--precision bf16: this CPU (Some) has none" in capsys.readouterr().err
    assert not (workspace / "out").exists()


def test_every_length_has_a_log_and_outputs_of_its_own(of_lengths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_stage(run_cpu.main, _arguments_of_lengths()) == 0
    logs = re.split(r"(?m)^(?=\[INFO\] load model )", capsys.readouterr().out)[1:]
    expected = {f"input_{index}_output_0.bin": BATCH_SIZE * 3 * 4 for index in range(3)}
    session = onnxruntime.InferenceSession("any.onnx", providers=["CPUExecutionProvider"])
    for length, log in zip(reversed(LENGTHS), logs, strict=True):
        run = msame.parse(log)
        assert run.folder is not None and Path(run.folder).parent.name == f"out{length}"
        msame.judge(run, Path(run.folder), expected, 3)
        for index, name in enumerate(expected):
            feeds = {
                part: np.fromfile(f"s{length}/{part}/input_{index}.bin", np.int32).reshape(BATCH_SIZE, length)
                for part in ("input_ids", "input_mask")
            }
            logits = np.fromfile(Path(run.folder, name), np.float32).reshape(BATCH_SIZE, 3)
            np.testing.assert_allclose(logits, session.run(["logits"], feeds)[0], atol=1e-5)
    summary = json.loads(Path("summary.json").read_text())
    assert (summary["batches"], summary["length"], summary["batch_size"]) == (9, 256, BATCH_SIZE)
    assert {length: part["batches"] for length, part in summary["lengths"].items()} == {"16": 3, "64": 3, "256": 3}
    total = sum(3 * part["average_ms"] for part in summary["lengths"].values())
    assert 0 < summary["inference_ms"] <= total * 1.001 and summary["peak_rss_bytes"] > 0


def test_no_length_gets_its_name_before_all_are_complete(of_lengths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shortest comes last."""
    unknown = np.full((BATCH_SIZE, 16), VOCABULARY, np.int32)
    (of_lengths / "s16/input_ids/input_2.bin").write_bytes(unknown.tobytes())
    assert run_stage(run_cpu.main, _arguments_of_lengths()) == 5
    stdout, stderr = capsys.readouterr()
    assert "input_ids goes from 0 to 49" in stderr and stdout.count("Execute sample success") == 2
    assert not list(of_lengths.glob("out*/*")) and not (of_lengths / "summary.json").exists()


def test_bins_of_another_length_stop_before_anything_runs(of_lengths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (of_lengths / "s16").rename(of_lengths / "s17")
    (of_lengths / "s64").rename(of_lengths / "s16")
    (of_lengths / "s17").rename(of_lengths / "s64")
    assert run_stage(run_cpu.main, _arguments_of_lengths()) == 5
    stdout, stderr = capsys.readouterr()
    assert "The bins are of another batch size, length or type" in stderr and "Inference time" not in stdout


def test_files_run_at_one_length(of_lengths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of_files(*lengths: int) -> list[str]:
        words = _arguments_of_lengths(lengths)
        return [word.replace("ids/,", "ids/input_0.bin,").replace("mask/", "mask/input_0.bin") for word in words]

    assert run_stage(run_cpu.main, of_files(*LENGTHS)) == 2
    assert "--lengths has more" in capsys.readouterr().err
    assert run_stage(run_cpu.main, [*of_files(64), "--loop", "3"]) == 0
    assert len(list(of_lengths.glob("out64/*/any_output_0.bin"))) == 1


def test_only_pages_that_can_come_back_are_released(tmp_path: Path) -> None:
    """A private mapping that may have been written to is left alone."""
    path = tmp_path / "weights with a blank.bin"
    path.write_bytes(bytes(range(256)) * 64)
    with open(path, "rb") as file:
        read = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)
        changed = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE)
    changed[:4] = b"mine"
    assert openvino_engine.release_pages(path) == 16384
    assert read[:] == path.read_bytes() and changed[:4] == b"mine"
    read.close()
    changed.close()
    assert openvino_engine.release_pages(path) == 0


def test_ctrl_c_in_the_middle_removes_the_unfinished_folder(workspace: Path) -> None:
    """Nobody reads on after the first inference, so the runner waits for the full pipe when the signal comes."""
    write_bins(workspace / "many", 1500, BATCH_SIZE)
    (workspace / "out/20261122_1_2_3_4").mkdir(parents=True)
    process = stage_process("run-cpu", arguments(input="many/input_ids/,many/input_mask/"), workspace)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("Inference time"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert "Execute sample success" not in stdout
    assert stderr == ""
    assert [path.name for path in (workspace / "out").iterdir()] == ["20261122_1_2_3_4"]


def test_a_full_disk_is_named_and_leaves_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(workspace / "out", 16) as out:
        assert run_stage(run_cpu.main, arguments()) == 4
        assert "the disk is full" in capsys.readouterr().err
        assert list(out.iterdir()) == []


@pytest.mark.parametrize("at_once", [2, 3])
def test_batches_at_once_give_the_files_and_lines_of_one_at_a_time(
    at_once: int, of_lengths: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs, logs = [], []
    for count in (1, at_once):
        assert run_stage(run_cpu.main, [*_arguments_of_lengths(), "--at-once", str(count), "--threads", "2"]) == 0
        said = capsys.readouterr().out
        logs.append(re.sub(r"\d+(\.\d+)?( ?ms)|/\d+(_\d+){4}|pid: \d+", "", said).splitlines())
        folders = [folder for length in LENGTHS for folder in sorted((of_lengths / f"out{length}").iterdir())]
        outputs.append([(path.name, path.read_bytes()) for folder in folders for path in sorted(folder.iterdir())])
        assert json.loads((of_lengths / "summary.json").read_text())["at_once"] == count
        for folder in folders:
            shutil.rmtree(folder)
    assert outputs[0] == outputs[1] and len(outputs[0]) == 9
    assert logs[0] == logs[1]


def test_a_bad_bin_behind_good_ones_stops_batches_at_once(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = workspace / "in" / "input_ids" / "input_7.bin"
    np.full((BATCH_SIZE, 256), VOCABULARY, "<i4").tofile(bad)
    assert run_stage(run_cpu.main, arguments(**{"at-once": "3", "threads": "2"})) == 5
    captured = capsys.readouterr()
    assert f"holds values from {VOCABULARY}" in captured.err and "input_7.bin" in captured.err
    # In string order it is the tenth of the twelve.
    assert captured.out.count("[INFO] output data success") == 9
    assert not any((workspace / "out").iterdir())


def test_how_many_batches_at_once(tmp_path: Path) -> None:
    def request(tokens: int, by_directory: bool = True) -> run_cpu.RunRequest:
        file = tmp_path / f"{tokens}.bin"
        file.write_bytes(bytes(4 * tokens))
        return run_cpu.RunRequest({"input_0": (str(file), str(file))}, 1, by_directory, "out")

    small, large = request(8 * 64), request(64 * 256)
    assert [run_cpu.batches_at_once([small], threads) for threads in (1, 2, 16)] == [1, 2, run_cpu.AT_ONCE]
    assert run_cpu.batches_at_once([small, large], 16) == 1
    assert run_cpu.batches_at_once([request(256, by_directory=False)], 16) == 1
