"""Files and answers that somebody else made to break what reads them: one line, exit code 2 to 6, within the limit."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Optional

import pytest
import torch
from sentencepiece import sentencepiece_model_pb2
from tokenizers import normalizers

from deberta.ascend import ais_bench, npu_smi
from deberta.core import buckets, contract, files, mnli, records, schema
from deberta.core.errors import DataError, DebertaError, from_os_error, one_line, run_stage, visible
from deberta.core.report import Report
from deberta.host.fetch import checksums
from deberta.host.fetch.sources import JSON
from deberta.host.report import verification
from deberta.stages.data import convert_data, row_order, tables
from deberta.stages.lint import lint_onnx
from deberta.stages.model import checkpoint, config, tokenizer
from deberta.stages.report import cells
from deberta.stages.verify import sign
from tests import verify_helpers
from tests.fetch_helpers import Run
from tests.fetch_helpers import checkpoint as checkpoint_source
from tests.hostile_samples import ANSWERS, DOCUMENTS, PLACES, WEIGHTS
from tests.mnli_helpers import REPOSITORY
from tests.raw_server import answering

SECONDS = 20


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    def stop(number: int, frame: Optional[FrameType]) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(call: Callable[[], object]) -> str:
    """The message of the error, as the command line shows it."""
    try:
        call()
    except DebertaError as error:
        known = error
    except OSError as error:
        assert not isinstance(error, TimeoutError)
        known = from_os_error(error)
    else:
        raise AssertionError("it was not refused")
    message = one_line(str(known))
    assert 2 <= known.exit_code <= 6 and message
    assert len(message) < 4010 and visible(message) == message and "\n" not in message
    return message


def _histogram(folder: Path) -> object:
    return buckets.read_histogram(folder / "file.json")


def _order(folder: Path) -> object:
    os.rename(folder / "file.json", folder / row_order.NAME)
    return row_order.read(folder)


def _form(folder: Path) -> None:
    try:
        checksums.check_form(JSON, folder / "file.json")
    except checksums.Unfit as error:
        raise DataError(str(error)) from None


def _tokenizer_folder(folder: Path) -> object:
    (folder / "spm.model").write_bytes((REPOSITORY / "models/demo/spm.model").read_bytes())
    os.rename(folder / "file.json", folder / "tokenizer_config.json")
    return tokenizer.load(folder, 256)


READERS: dict[str, Callable[[Path], object]] = {
    "config": lambda folder: config.read(folder / "file.json"),
    "report": lambda folder: schema.read(folder / "file.json", Report, "Run: invoke report"),
    "record": lambda folder: records.read(folder / "file.json"),
    "token counts": _histogram,
    "order": _order,
    "fetched": lambda folder: checksums.read_record(folder / "file.json"),
    "downloaded": _form,
    "ais_bench": lambda folder: ais_bench.read_summary(files.read_text(folder / "file.json")),
    "tokenizer": _tokenizer_folder,
    "table": lambda folder: convert_data.columns_of(tables.read(folder / "file.json"), {}, folder),
}
TYPED = {
    "string for number": b'{"hidden_size": "8", "tokens": {"5": "1"}, "rows": "1", "_type": 1, "files": 1}',
    "arabic": '{"hidden_size": "\u0663", "tokens": {"\u0663": 1}, "rows": "\u0663"}'.encode(),
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
}


@pytest.mark.parametrize("document", DOCUMENTS)
@pytest.mark.parametrize("reader", READERS)
def test_json(reader: str, document: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(DOCUMENTS[document])
    refused(lambda: READERS[reader](tmp_path))


@pytest.mark.parametrize("document", TYPED)
@pytest.mark.parametrize("reader", [name for name in READERS if name not in ("downloaded", "tokenizer")])
def test_json_of_other_types(reader: str, document: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(TYPED[document])
    refused(lambda: READERS[reader](tmp_path))


def test_what_is_large_and_valid_is_read() -> None:
    deep: Any = json.loads("[" * schema.DEEPEST_JSON + "]" * schema.DEEPEST_JSON)
    assert schema.decode(json.dumps(deep), list[Any]) == deep
    limits = f'{{"model_max_length": {10**30}, "text": "\\\\ud83d\\\\ude00 \\\\n"}}'
    assert schema.decode(limits, dict[str, Any])["model_max_length"] == 10**30


OPENERS: dict[str, Callable[[Path], object]] = {
    "config": config.read,
    "record": records.read,
    "report": lambda path: schema.read(path, Report, "Run: invoke report"),
    "public key": sign.public_key,
    "private key": lambda path: sign.private_key(path, None),
    "checkpoint": lambda path: checkpoint.read_state_dict(path),
    "tokenizer": lambda path: tokenizer.load(path, 256),
    "tsv": lambda path: list(mnli.rows(path)),
    "table": lambda path: list(tables.read(path).rows),
    "sha256": files.sha256_of,
    "npy": lambda path: cells.read_reference(path, 1),
    "lint": lambda path: lint_onnx.main(["--model", str(path)]),
    "text": files.read_text,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("opener", OPENERS)
def test_no_regular_file(opener: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    if (opener, place) == ("record", "broken"):  # there is none
        return
    PLACES[place](path)
    refused(lambda: OPENERS[opener](path))


def test_a_large_key_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # sparse
    assert "has more than 65536 bytes" in refused(lambda: sign.public_key(path))
    assert "has more than" in refused(lambda: config.read(path))


def _holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


RECORD = "models/small/a.record.json"
TREES: dict[str, tuple[str, Callable[[Path], object]]] = {  # a path in the tree, and what is made there
    **{f"report is {name}": (verify_helpers.REPORT, place) for name, place in PLACES.items() if name != "broken"},
    **{f"report has {name}": (verify_helpers.REPORT, _holding(content)) for name, content in DOCUMENTS.items()},
    **{f"record has {name}": (RECORD, _holding(content)) for name, content in DOCUMENTS.items()},
    **{f"record is {name}": (RECORD, PLACES[name]) for name in ("fifo", "zero", "random", "loop", "folder")},
    "report is outside": (verify_helpers.REPORT, _link("/etc/passwd")),
    "job is outside": (verify_helpers.JOB, _link("/etc/passwd")),
    "job is a pipe": (verify_helpers.JOB, os.mkfifo),
    "page is zero": (verify_helpers.PAGE, _link("/dev/zero")),
    "page is outside": (verify_helpers.PAGE, _link("/etc/passwd")),
    "record is outside": (RECORD, _link("/etc/passwd")),
    "models are the root": ("models/small", _link("/")),
    "data are the root": ("data/small", _link("/")),
}


@pytest.mark.parametrize("hostile", TREES)
def test_a_tree_to_verify(hostile: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place, make = TREES[hostile]
    for name in (verify_helpers.REPORT, place):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
    if place != verify_helpers.REPORT:
        (tmp_path / "tree" / verify_helpers.REPORT).write_text("{}")
    make(tmp_path / "tree" / place)
    message = refused(lambda: verification.verify(verify_helpers.request(tmp_path / "tree")))
    streams = capfd.readouterr()
    assert "root:" not in streams.out + streams.err + message


@pytest.mark.parametrize("place", ["fifo", "zero", "folder"])
def test_a_key_to_verify_by(place: str, tmp_path: Path) -> None:
    report = tmp_path / verify_helpers.REPORT
    report.parent.mkdir(parents=True)
    report.write_text("{}")
    report.with_name("report.dsse.json").write_text("{}")
    PLACES[place](tmp_path / "key")
    request = verify_helpers.request(tmp_path, key=tmp_path / "key")
    assert "is not a regular file" in refused(lambda: verification.verify(request))


@pytest.mark.parametrize(
    "text", ["9" * 5000, "\u0663", "\u00b2", "-5", "+5", "1_0", "0x10", "", "1 0", "1\n2", "9" * 18]
)
def test_whole_numbers(text: str) -> None:
    refused(lambda: contract.parse_integer("--bs", text, 1, 1, 1024))
    refused(lambda: buckets.parse(text))


def test_numbers_of_a_device_table() -> None:
    heads = "| NPU  Name | Health | Power(W) |\n| Chip  Device | Bus-Id | AICore(%)  Memory-Usage(MB) |\n"
    table = heads + "| {n} 310P3 | OK | 1 |\n| 0 {n} | 0000:3b:00.0 | 0 1 / 2 |"
    assert npu_smi.parse(table.format(n=7))[0].device == 7
    for number in ("9" * 5000, "7\u0663"):
        [device] = npu_smi.parse(table.format(n=number))
        assert (device.npu, device.device) == (None, None) and npu_smi.find([device], 7) is None


def test_layers_of_a_config(tmp_path: Path) -> None:
    values = json.loads((REPOSITORY / "models/demo/model_config.json").read_text(encoding="utf-8"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**values, "num_hidden_layers": 100_000}), encoding="utf-8")
    assert "num_hidden_layers is 100000, not from 1 to 512" in refused(lambda: config.read(path))


def test_a_piece_of_a_tokenizer(tmp_path: Path) -> None:
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString((REPOSITORY / "models/demo/spm.model").read_bytes())
    model.pieces.add(piece="a" * 20_000_000, score=-1.0)
    path = tmp_path / "spm.model"
    path.write_bytes(model.SerializeToString())
    assert "a piece of more than 1024 characters" in refused(lambda: tokenizer.load(path, 256))
    model.pieces[-1].piece *= 2
    path.write_bytes(model.SerializeToString())
    assert "has more than" in refused(lambda: tokenizer.load(path, 256))


def test_a_failure_of_the_tokenizer_library(capfd: pytest.CaptureFixture[str]) -> None:
    character_map = normalizers.Precompiled(b"\x04\0\0\0abcd")
    assert run_stage(lambda argv: print(character_map.normalize_str("a")), []) == 5
    assert capfd.readouterr().err.splitlines()[-1].startswith("error: the tokenizer cannot be used: its library failed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights(weights: str, tmp_path: Path) -> None:
    torch.save(WEIGHTS[weights](), tmp_path / "model.bin")
    assert "state dict" in refused(lambda: checkpoint.read_state_dict(tmp_path / "model.bin"))


@pytest.mark.parametrize("name", ["model.bin", "model.safetensors"])
def test_a_pointer_in_place_of_weights(name: str, tmp_path: Path) -> None:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 738000000\n"
    (tmp_path / name).write_text(pointer)
    message = refused(lambda: checkpoint.read_state_dict(tmp_path / name))
    assert "is a Git LFS pointer (134 bytes), not the file: run git lfs pull" in message
    (tmp_path / name).write_text("no checkpoint")
    message = refused(lambda: checkpoint.read_state_dict(tmp_path / name))
    assert "is truncated or not a checkpoint" in message and "weights_only" not in message


def test_a_line_without_an_end(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes((REPOSITORY / "data/demo/MNLI/dev_matched.tsv").read_bytes() + b"a" * 100_000_000)
    assert "longer than 1048576 bytes" in refused(lambda: list(mnli.rows(path)))
    path.write_bytes(b"a" * 100_000_000)
    assert "longer than 1048576 bytes" in refused(lambda: list(mnli.rows(path)))


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_http_answer(answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with answering(ANSWERS[answer].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)) as url:
        run = Run(tmp_path)
        refused(lambda: run(checkpoint_source(url)))
    assert not run.files()


@pytest.mark.parametrize("start", ["HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", "HTTP/1.1 200 OK\r\na: "])
def test_a_server_that_sends_a_little_for_ever(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with answering(start.encode(), pause=0.05) as url:
        run = Run(tmp_path)
        run.settings = dataclasses.replace(run.settings, attempts=1, connect=0.2, read=0.2)
        assert "it came slower than 65536 bytes in 0." in refused(lambda: run(checkpoint_source(url)))


# Readers of what we, the machine or the engine wrote, and of numbers that a schema or an expression has bounded.
INT_ELSEWHERE = {
    "ascend/atc.py": "atc_options.json's expression",
    "ascend/npu_smi.py": "its expressions: at most nine ASCII digits",
    "core/buckets.py": "its expression",
    "core/contract.py": "the door",
    "core/machine.py": "the kernel's cgroup files",
    "ascend/runs.py": "its expression: at most 18 ASCII digits",
    "core/progress.py": "its expression: at most 18 ASCII digits",
    "core/files.py": "a process number in a temporary name",
    "host/engine/engine.py": "the engine's exit code",
    "host/fetch/download.py": "its expression",
    "host/images/build.py": "the engine's time",
    "host/report/bom.py": "schema.Number",
    "host/report/evidence.py": "schema.Number",
    "host/report/measurements.py": "its expression, schema.Number",
    "host/report/request.py": "schema.Number",
    "host/run/freshness.py": "its expression, of a command line of ours",
    "host/workflows/doctor.py": "the kernel's files",
    "host/workflows/evaluation.py": "the summary of a stage of ours",
    "stages/data/token_counts.py": "an array's number",
    "stages/diff/accuracy.py": "an array's number",
    "stages/fp16/emulation.py": "protobuf's number",
    "stages/inference/openvino_engine.py": "the kernel's file",
    "stages/inference/postprocess.py": "an array's number",
    "stages/lint/cost.py": "its expression",
    "stages/model/deberta.py": "a tensor's size",
    "stages/report/assess.py": "schema.Number",
    "stages/train/training.py": "our own state",
    "stages/verify/recompute.py": "a truth value",
}
OPEN_ELSEWHERE = {
    "ascend/cann.py": "the installed toolkit",
    "core/files.py": "what was just written",
    "core/machine.py": "the kernel's files",
    "host/environments/fetch_wheels.py": "our lock files, and what pip just wrote",
    "host/environments/locks.py": "our lock files",
    "host/environments/venvs.py": "our lock files, by the standard library alone",
    "host/fetch/archives.py": "regular files of an old cache",
    "host/fetch/fetch.py": "what was just copied",
    "host/images/ci.py": "the user's invoke.yaml",
    "host/images/context.py": "this checkout",
    "host/images/definition.py": "this checkout",
    "host/images/pins.py": "this checkout",
    "host/report/verification.py": "what our stage wrote",
    "host/run/source_digest.py": "this checkout",
    "host/workflows/doctor.py": "the kernel's files",
    "host/workflows/making.py": "what our stage wrote",
    "stages/inference/openvino_engine.py": "the kernel's file",
    "stages/report/page.py": "our template",
    "stages/verify/recompute.py": "what was just made again",
}


def _calls(path: Path) -> Iterator[tuple[str, str]]:
    """(kind, code) of the calls in a module that read JSON, whole numbers from text, or a whole file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name, code = ast.unparse(node.func), ast.unparse(node)
        if "__file__" in code:  # a file of the package
            continue
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        writes = len(values) > 1 and ast.unparse(values[1])[1:2] in ("w", "a", "x")
        text = bool(values) and isinstance(values[0], (ast.Name, ast.Subscript, ast.Attribute, ast.BoolOp))
        if name in ("json.load", "json.loads", "msgspec.json.decode"):
            yield "json", code
        elif (name == "int" and text) or (
            name not in ("isinstance", "schema.convert") and "int" in map(ast.unparse, values)
        ):
            yield "int", code
        elif (name.endswith((".read_text", ".read_bytes")) and not name.startswith("files.")) or (
            name == "open" and not writes and "opener" not in code
        ):
            yield "open", code


def test_there_is_no_other_door() -> None:
    package = REPOSITORY / "deberta"
    calls = {(kind, str(path.relative_to(package))) for path in package.rglob("*.py") for kind, _ in _calls(path)}
    assert {name for kind, name in calls if kind == "json"} == {"core/schema.py"}
    assert {name for kind, name in calls if kind == "int"} == set(INT_ELSEWHERE)
    assert {name for kind, name in calls if kind == "open"} == set(OPEN_ELSEWHERE)


def test_a_planted_reader_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        'json.loads(text)\nint(match[1])\nmap(int, words)\nopen(path)\nopen(path, "rb")\npath.read_text()\n'
    )
    assert [kind for kind, _ in _calls(path)] == ["json", "int", "int", "open", "open", "open"]
    path.write_text('open(path, "w")\nint(x.sum())\nfiles.read_text(path)\nisinstance(x, int)\n')
    assert not list(_calls(path))
