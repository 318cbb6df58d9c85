"""The parsers of data from outside that are fuzzed: what is almost valid for each, and how it is read."""

from __future__ import annotations

import io
import json
import socket
import struct
import tempfile
import threading
import zipfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper
from safetensors.torch import save

from deberta.ascend import ais_bench, atc, cann, msame, npu_smi, timing
from deberta.core import buckets, contract, errors, mnli, records, report, schema
from deberta.core.job import Gates, Job
from deberta.host.cli import settings as settings_of
from deberta.host.cli import settings_file
from deberta.host.fetch import archives, checksums, download
from deberta.host.plan import profiles
from deberta.host.report import gates
from deberta.stages.data import bins, row_order
from deberta.stages.lint import lint_onnx
from deberta.stages.model import checkpoint, config, tokenizer
from deberta.stages.report import cells
from deberta.stages.verify import sign
from tests import report_helpers, report_samples
from tests.mnli_helpers import REPOSITORY
from tests.unit import test_atc, test_msame, test_npu, test_timing

DEMO = REPOSITORY / "models/demo"


@dataclass(frozen=True)
class Parser:
    """Reads one input; `allowed` are the errors that its documentation names besides ours."""

    seeds: Sequence[bytes]
    read: Callable[[bytes, Path], object]
    allowed: tuple[type[Exception], ...] = ()
    name: str = "input"  # of the file in which the input is given


def of_file(read: Callable[[Path], object], name: str = "input") -> Callable[[bytes, Path], object]:
    def written(content: bytes, folder: Path) -> object:
        (folder / name).write_bytes(content)
        return read(folder / name)

    return written


def of_text(read: Callable[[str], object]) -> Callable[[bytes, Path], object]:
    return lambda content, _: read(content.decode("utf-8", errors="replace"))


def of_values(read: Callable[[Any], object]) -> Callable[[bytes, Path], object]:
    """For what invoke has read from YAML: any value that JSON can say too."""

    def parsed(content: bytes, _: Path) -> object:
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            return None
        return read(values)

    return parsed


def by_stage(main: Callable[[Sequence[str]], None], *arguments: str) -> Callable[[Path], object]:
    """A stage's own door, at which some errors get to be ours."""

    def run(path: Path) -> None:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as stderr:
            code = errors.run_stage(main, [*arguments, str(path)])
        lines = stderr.getvalue().splitlines()
        assert code == 0 or (2 <= code <= 6 and lines[-1].startswith(errors.ERROR_PREFIX)), (code, lines[-3:])

    return run


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MNLI/dev_matched.tsv", "a\tb\n" * 50)
        archive.writestr("MNLI/readme.txt", "text")
    return stream.getvalue()


def _graph() -> bytes:
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["weights", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "square"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("weights", TensorProto.FLOAT, [8, 3], [0.5] * 24),
        helper.make_tensor("square", TensorProto.FLOAT, [3, 3], [1.0] * 9),
    ]
    inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", 256])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    return bytes(model.SerializeToString())


def _weights() -> list[bytes]:
    contents = []
    state = {"bert.a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    for is_zip in (True, False):
        stream = io.BytesIO()
        torch.save(state, stream, _use_new_zipfile_serialization=is_zip)
        contents.append(stream.getvalue())
    return contents


def _record() -> bytes:
    entry = records.Resource("models/mnli/dynamic.onnx", {"sha256": "a" * 64})
    record = records.statement(
        [entry], [entry], {"bs": 8}, {"pins": "pinned"}, "export-onnx", records.now(), records.now(), {"rows": 3}
    )
    return schema.text(record).encode()


def _small_tokenizer() -> bytes:
    pieces = [[name, 0.0] for name in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁a", "b")]
    template = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    ends: list[Any] = [{"SpecialToken": {"id": "[SEP]", "type_id": 0}}]
    second = [{"Sequence": {"id": "B", "type_id": 1}}, {"SpecialToken": {"id": "[SEP]", "type_id": 1}}]
    specials = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in (("[CLS]", 1), ("[SEP]", 2))}
    document: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "post_processor": {"type": "TemplateProcessing", "single": [*template, *ends],
                           "pair": [*template, *ends, *second], "special_tokens": specials},
        "decoder": None, "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
    }  # fmt: skip
    return json.dumps(document).encode()


def _use(loaded: Any) -> object:
    return loaded.encode("a  b", "ab \u2026 b").ids


def _tokenizer_stage(argv: Sequence[str]) -> None:
    _use(tokenizer.load(Path(argv[0]), 256))


def _key_pair() -> tuple[bytes, bytes, dict[str, Any], Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "key")
        sign.new_key(path, None)
        key = sign.private_key(path, None)
        return path.read_bytes(), Path(f"{path}.pub").read_bytes(), sign.sign(b"{}", key), key.public_key()


def _private(path: Path) -> object:
    path.chmod(0o600)
    return sign.private_key(path, None)


def _profile(values: Any) -> object:
    return profiles.load("small", values)


def _settings(values: Any) -> object:
    return schema.setting(values, settings_of.InvokeSettings, "a setting")


def _npu(text: str) -> None:
    devices = npu_smi.parse(text)
    for device in devices:
        npu_smi.describe(device)
    npu_smi.soc_version(devices)


def _atc(text: str) -> None:
    outcome = atc.parse(text)
    atc.summary(outcome)
    atc.judge(outcome, 0, Path("/nowhere/a.om"), 0.0, 1, Path("log"))


def _msame(text: str) -> None:
    timing.parse(text, msame.PROGRAM, 8)
    msame.judge(msame.parse(text), Path("/nowhere"), {}, 3)


def _ais_bench(text: str) -> None:
    ais_bench.judge(ais_bench.parse(text), Path("/nowhere/a"), {}, 3)


def _answer(content: bytes, folder: Path) -> None:
    """Headers as an http.client would give them, through redirects, ranges and lengths."""
    lines = content.decode("latin-1").split("\n")
    for line in lines:
        download.redirect_target("https://host/a", line)
        download.shown(line)


class _Server(threading.Thread):
    """Answers every request with the same bytes, and hangs up."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.answer = b""
        self.start()

    def run(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            with connection, suppress(OSError):
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(4096)
                connection.sendall(self.answer)

    def fetched(self, content: bytes, folder: Path) -> None:
        """Two downloads of these bytes into one part: the second goes on where the first ended, if it can."""
        self.answer = content
        bounds = download.DownloadSettings(attempts=1, most_attempts=1, connect=1, read=1, most_bytes=4096)
        url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/a"
        for _ in range(2):
            with suppress(download.DownloadFailed):
                download.Transfer(url, folder / "part", "a", 3, lambda head: None, bounds, lambda line: None).run()


def _cann(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "version.cfg").write_text(text)
        cann.version(Path(folder))


def _bin(path: Path) -> object:
    return bins.read(path, "input_ids", (1, 256), 1000)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def parsers(folder: Path) -> dict[str, Parser]:
    private, public, envelope, key = _key_pair()
    job = report_helpers.example_job(folder / "job").read_bytes()
    tsv = b"".join((REPOSITORY / "data/demo/MNLI/dev_matched.tsv").read_bytes().splitlines(keepends=True)[:6])
    model_config = (DEMO / "model_config.json").read_bytes()
    order = _json({"rows": 3, "batch_size": 2, "sequence_length": 64, "buckets": [64, 256], "order": [[0, 2], [1]]})
    profile = {
        "small": {
            "checkpoint": "a.bin", "config": "c.json", "tokenizer": "spm.model", "dataset": "MNLI",
            "rows": {"match": 3, "mismatch": 4}, "labels": ["neutral", "entailment", "contradiction"],
        }
    }  # fmt: skip
    own_settings = {"profile": "mnli", "backend": "cpu", "device": 0, "batch_sizes": [1, 8], "buckets": 256, "atc": {}}
    atc_options = {
        "precision_mode": "allow_mix_precision", "dynamic_dims": "1,1;8,8", "extra": ["--x=y"], "output_type": "FP32"
    }  # fmt: skip
    fetched = _json({"files": {"a": {"url": "https://host/a", "sha256": "a" * 64, "bytes": 3, "fetched": "2026"}}})
    npy = io.BytesIO()
    np.save(npy, np.zeros((2, 3), np.float32))
    tables = [(table + test_npu.TABLE_OF_PROCESSES).encode() for table in (test_npu.NARROW, test_npu.WIDE)]
    tables += [text.encode() for text in (test_npu.CARDS, test_npu.ONE_LINE, test_npu.NEW + test_npu.ROW_OF_26)]
    summary = test_timing.summary
    log = f"{test_msame.START}\nInference time: 1.5 ms\nInference time: 2e-05ms\n{test_msame.END}".encode()
    ais = b"[INFO] output path:/a/2026\n[ERROR] x\na.py: error: argument\nModuleNotFoundError: No module named x\n"
    head = b'HTTP/1.1 200 OK\r\nETag: "x"\r\nLast-Modified: Sat, 28 Nov 2026 09:00:00 GMT\r\n'
    answers = [
        head + b"Content-Length: 6\r\n\r\nabcdef",
        head + b"Content-Length: 9\r\n\r\nabcdef",
        head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n",
        b'HTTP/1.1 206 Partial Content\r\nETag: "x"\r\nContent-Range: bytes 6-8/9\r\nContent-Length: 3\r\n\r\nghi',
        b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */6\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nContent-Encoding: gzip\r\n\r\n",
    ]
    yaml = (REPOSITORY / "invoke.yaml").read_bytes()
    numbers = [b"8", b"1,4,8", b"64,256", b"auto", b"-5", b"123456789012345678"]
    return {
        "json": Parser([_record(), order], lambda c, _: schema.decode(c, Any), (ValueError,)),
        "record": Parser([_record()], of_file(records.read)),
        "report": Parser([_json(report_samples.demo())], of_file(lambda p: schema.read(p, report.Report, "Run"))),
        "job": Parser([job], of_file(lambda p: schema.read(p, Job, "Run"))),
        "order": Parser([order], of_file(lambda p: row_order.read(p.parent), row_order.NAME)),
        "config": Parser(
            [model_config, (REPOSITORY / "models/mnli/model_config.json").read_bytes()], of_file(config.read)
        ),
        "gates": Parser([(REPOSITORY / "deberta/gates.toml").read_bytes()], of_file(lambda p: gates.load(p, "mnli"))),
        "gates of a job": Parser([b"{}"], of_values(lambda v: schema.convert(v, Gates, "gates"))),
        "fetched": Parser([fetched], of_file(checksums.read_record)),
        "histogram": Parser([b'{"tokens": {"12": 3, "256": 9}}'], of_file(buckets.read_histogram)),
        "whole numbers": Parser(numbers, of_text(contract.whole), (ValueError,)),
        "options": Parser(
            numbers, of_text(lambda t: (lint_onnx.parse_batches("--bs", t), contract.parse_batch_size(t)))
        ),
        "lengths": Parser(numbers, of_text(lambda t: (buckets.parse(t), buckets.lengths(t)))),
        "msame": Parser([log], of_text(_msame)),
        "ais_bench": Parser([ais, b"[INFO] output path:/a/b\n"], of_text(_ais_bench)),
        "summary of ais_bench": Parser(
            [summary([1.0, 2.0]).encode()], of_text(lambda t: timing.parse(t, ais_bench.MODULE, 1))
        ),
        "atc": Parser([test_atc.NO_KERNEL.encode(), test_atc.PYTHON.encode()], of_text(_atc)),
        "npu-smi": Parser(tables, of_text(_npu)),
        "soc version": Parser([b"Ascend310P3"], of_text(npu_smi.parse_soc_version)),
        "probe of ais_bench": Parser([b'{"ais_bench": "/a", "aclruntime": null}'], of_text(ais_bench.installed)),
        "atc options": Parser([_json(atc_options)], of_values(settings_of.atc_options)),
        "settings": Parser([_json(own_settings)], of_values(_settings)),
        "profiles": Parser([_json(profile)], of_values(_profile)),
        "tsv": Parser([tsv], of_file(lambda p: list(mnli.rows(p)))),
        "sentencepiece": Parser([(DEMO / "spm.model").read_bytes()], of_file(by_stage(_tokenizer_stage))),
        "tokenizer.json": Parser([_small_tokenizer()], of_file(by_stage(_tokenizer_stage), "tokenizer.json")),
        "checkpoint": Parser(_weights(), of_file(checkpoint.read_state_dict)),
        "safetensors": Parser(
            [save({"a": torch.ones(2, 3)})], of_file(checkpoint.read_state_dict, "model.safetensors")
        ),
        "onnx": Parser([_graph()], of_file(by_stage(lint_onnx.main, "--sequence-length", "256", "--stats", "--model"))),
        "zip": Parser([_zip()], of_file(lambda p: archives.find_in_archive(p, "a" * 64, lambda line: None))),
        "redirect": Parser(
            [b"https://host/a?b#c", b"../x", b"http://[::1]:80/a"], _answer, (download.DownloadFailed, ValueError)
        ),
        "public key": Parser([public], of_file(sign.public_key)),
        "private key": Parser([private], of_file(_private)),
        "envelope": Parser(
            [_json(envelope)],
            of_file(lambda p: sign.check(schema.read(p, Any, "Run"), key, p)),
        ),
        "reference": Parser([npy.getvalue()], of_file(lambda p: cells.read_reference(p, 2))),
        "http": Parser(answers, _Server().fetched),
        "cann": Parser([b"runtime_running_version=[5.1.2.1.231:5.1.RC2]\n"], of_text(_cann)),
        "invoke.yaml": Parser([yaml], of_file(lambda p: settings_file.load(str(p)), "invoke.yaml")),
        "bin": Parser([struct.pack("<256i", *range(256))], of_file(_bin)),
    }


NAMES = sorted(
    (
        "json", "record", "report", "job", "order", "config", "gates", "gates of a job", "fetched", "histogram",
        "whole numbers", "options", "lengths", "msame", "ais_bench", "summary of ais_bench", "atc", "npu-smi",
        "soc version", "probe of ais_bench", "atc options", "settings", "profiles", "tsv", "sentencepiece",
        "tokenizer.json", "checkpoint", "safetensors", "onnx", "zip", "redirect", "public key", "private key",
        "envelope",
        "reference", "bin", "http", "cann", "invoke.yaml",
    )
)  # fmt: skip


OF_JSON = (
    "json", "record", "report", "job", "order", "config", "gates of a job", "fetched", "histogram", "atc options",
    "settings", "profiles", "envelope", "tokenizer.json", "summary of ais_bench", "probe of ais_bench",
)  # fmt: skip
