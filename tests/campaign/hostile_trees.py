"""Hostile files, first part: in a tree with a report, and in what is fetched, signed and judged."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile_samples import ANSWERS, DOCUMENTS, PLACES

ESCAPE = "a\x1b[2J\x9b31m\u202eb"


@dataclass(frozen=True)
class Surroundings:
    """`tree`: a finished workspace that the case spoils; `outside`: a folder that nothing may open or change."""

    tree: Path
    outside: Path
    made: Path  # small files that a case's command reads: keys, zips, graphs

    @property
    def canary(self) -> Path:
        return self.outside / "canary.txt"


Plant = Callable[[Surroundings], object]


@dataclass(frozen=True)
class Case:
    """A command line, with {tree}, {made} and {url} to fill in, and what is spoilt before it runs.

    `foreign`: the tree is somebody else's, read by `verify --path`, and must stay as it is. `answer`: what the server
    at {url} answers. `settings`: of invoke.yaml.
    """

    command: str
    plant: Plant
    foreign: bool = False
    answer: bytes = b""
    settings: tuple[tuple[str, Any], ...] = ()


VERIFY = "verify --path {tree} --strict"
REPORT, JOB, BOM = (f"results/tiny/cpu/{name}" for name in ("report.json", "report_job.json", "bom.cdx.json"))
PAGE, ATTESTATION = "results/tiny/cpu/report.html", "results/tiny/cpu/report.dsse.json"
GRAPH, CHECKPOINT = "models/tiny/dynamic.onnx", "models/tiny/pytorch.model-tiny.bin"
CONFIG, TOKENIZER = "models/tiny/model_config.json", "models/tiny/spm.model"
DATA, RECORD = "data/tiny/MNLI/dev_matched.tsv", "models/tiny/dynamic.onnx.record.json"
BINS, OUTPUTS = "data/tiny/pre_mnli_bs1/match", "results/tiny/cpu/outputs_bs1_om/match"
EVALUATION, TIMES = "results/tiny/cpu/eval_bs1_match.txt", "results/tiny/cpu/msame_bs1_match.txt"
REFERENCE = "results/tiny/reference_match.npy"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def holding(name: str, content: bytes, of_ours: bool = False) -> Plant:
    """The file of the tree has this content; without `of_ours` its record goes, so that it is the user's."""

    def plant(place: Surroundings) -> None:
        path = place.tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if not of_ours:
            remove(path.with_name(f"{path.name}.record.json"))

    return plant


def being(name: str, kind: str) -> Plant:
    """In place of the file or folder stands a FIFO, a link to a device, ..."""

    def plant(place: Surroundings) -> None:
        path = place.tree / name
        remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        PLACES[kind](path)

    return plant


def leading_out(name: str) -> Plant:
    """The file or folder lies outside, as it was, and a link leads there."""

    def plant(place: Surroundings) -> None:
        path = place.tree / name
        shutil.move(path, place.outside / path.name)
        path.symlink_to(place.outside / path.name)

    return plant


def edited(name: str, edit: Callable[[Any, Surroundings], object]) -> Plant:
    """A JSON document with a change."""

    def plant(place: Surroundings) -> None:
        path = place.tree / name
        content = json.loads(path.read_text(encoding="utf-8"))
        edit(content, place)
        path.write_text(json.dumps(content), encoding="utf-8")

    return plant


def dependencies(record: Any) -> Any:
    return record["predicate"]["buildDefinition"]["resolvedDependencies"]


def sparse(name: str, size: int = 1 << 40) -> Plant:
    def plant(place: Surroundings) -> None:
        with open(place.tree / name, "wb") as file:
            file.truncate(size)

    return plant


def in_made(name: str, content: bytes | Callable[[Path], object]) -> Plant:
    def plant(place: Surroundings) -> None:
        (place.made / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (place.made / name).write_bytes(content)
        else:
            content(place.made / name)

    return plant


def both(*plants: Plant) -> Plant:
    return lambda place: [plant(place) for plant in plants]


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content


NPY = {
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", b"cos\nsystem\n(S'true'\ntR."),
    "petabytes": npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40}, 3), }}"),
    "negative": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3), }"),
    "code": npy("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (1, 3), }"),
    "deep": npy("(" * 100 + ")" * 100),
    "structured": npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (10, 3), }", bytes(120)),
    "header alone": b"\x93NUMPY\x01\x00\xff\xff",
    "later version": b"\x93NUMPY\x09\x00",
}
TIMING = {
    "escape": f"[INFO] {ESCAPE}\nInference time: 1 ms\n".encode(),
    "digits": b"Inference time: " + b"9" * 5000 + b"ms\nInference average time without first time: 1 ms\n",
    "infinite": b"Inference time: 1e999ms\nInference average time without first time: inf ms\n",
    "negative": b"Inference time: -1ms\n" * 3 + b"Inference average time without first time: -1 ms\n",
    "long line": b"Inference average time " * 1_300_000,
    "digits without end": b"Inference average time without first time: " + b"1" * 30_000_000,
    "folders": b"a" * 1_000_000 + b"/1" * 3_000_000,
    "too large": b"a" * (33 << 20),
    "arabic": "Inference time: \u0661ms\nInference average time without first time: \u0661 ms\n".encode(),
    "nul": b"\0" * 1000,
}


def _verified() -> dict[str, Case]:
    plants: dict[str, Plant] = {}
    for name in (REPORT, RECORD):
        plants |= {f"{name} has {key}": holding(name, content, True) for key, content in DOCUMENTS.items()}
    for name in (JOB, BOM):
        few = ("lists", "objects", "infinity", "digits", "nul", "doubled", "escape", "too large")
        plants |= {f"{name} has {key}": holding(name, DOCUMENTS[key], True) for key in few}
    for name in (REPORT, RECORD, JOB):
        plants |= {f"{name} is {kind}": being(name, kind) for kind in ("fifo", "zero", "random", "loop", "folder")}
    read = (BOM, PAGE, GRAPH, CHECKPOINT, CONFIG, TOKENIZER, DATA, EVALUATION, TIMES, REFERENCE)
    for name in (*read, f"{BINS}/input_ids/input_3.bin", OUTPUTS):
        plants |= {f"{name} is {kind}": being(name, kind) for kind in ("fifo", "zero")}
    for name in (*read, REPORT, JOB, RECORD, BINS, OUTPUTS, "models/tiny", "data/tiny", "results/tiny"):
        plants[f"{name} leads out"] = leading_out(name)
    plants["models are the root"] = both(leading_out("models/tiny"), lambda p: _relink(p.tree / "models/tiny", "/"))
    plants["data are the user's home"] = both(leading_out("data"), lambda p: _relink(p.tree / "data", "/root"))

    def rename(record: Any, name: str) -> None:
        dependencies(record)[0]["name"] = name

    names = {
        "absolute": lambda place: str(place.canary),
        "above": lambda place: "../outside/canary.txt",
        "far above": lambda place: "models/../../outside/canary.txt",
        "of a device": lambda place: "/dev/zero",
        "of a process": lambda place: "/proc/self/environ",
        "with escapes": lambda place: ESCAPE,
        "a folder": lambda place: "models",
        "empty": lambda place: "",
        "a point": lambda place: ".",
        "long": lambda place: "a" * 5000,
        "deep": lambda place: "a/" * 3000,
    }
    for key, name_of in names.items():
        change = lambda record, place, name_of=name_of: rename(record, name_of(place))  # noqa: E731
        plants[f"a record's input is {key}"] = edited(RECORD, change)
    subject = lambda record, place: record["subject"][0].update(name=str(place.canary))  # noqa: E731
    plants["a record's output is absolute"] = edited(RECORD, subject)
    for key in ("absolute", "above", "of a device", "with escapes"):
        change = lambda job, place, of=names[key]: job["data"].update(match=of(place))  # noqa: E731
        plants[f"the job's data are {key}"] = edited(JOB, change)
        change = lambda job, place, of=names[key]: job["cells"][0].update(outputs={"256": of(place)})  # noqa: E731
        plants[f"the job's outputs are {key}"] = edited(JOB, change)
    plants |= {f"reference is {key}": holding(REFERENCE, content, True) for key, content in NPY.items()}
    plants |= {f"times have {key}": holding(TIMES, content, True) for key, content in TIMING.items()}
    plants["evaluation of 100 MB"] = holding(EVALUATION, b"1" * 100_000_000, True)
    plants["page of 100 MB"] = holding(PAGE, b"<" * 100_000_000, True)
    plants["a line of data of 100 MB"] = holding(DATA, b"a" * 100_000_000, True)
    plants["a bin of a terabyte"] = sparse(f"{BINS}/input_ids/input_3.bin")
    plants["a checkpoint of a terabyte"] = sparse(CHECKPOINT)
    plants["a graph of a terabyte"] = sparse(GRAPH)
    plants["a name with a line end"] = lambda place: (place.tree / BINS / "input_ids/a\nb.bin").write_bytes(b"")
    plants["a name with escapes"] = lambda place: (place.tree / BINS / f"input_ids/{ESCAPE}.bin").write_bytes(b"")
    plants["a name that is no text"] = lambda place: Path(
        os.fsdecode(os.fsencode(place.tree / BINS / "input_ids") + b"/\xff\xfe.bin")
    ).write_bytes(b"")
    cases = {f"verify: {key}": Case(VERIFY, plant, foreign=True) for key, plant in plants.items()}
    envelopes = {
        "no base64": {"payload": "?", "payloadType": "a", "signatures": []},
        "list": [],
        "no subject": {
            "payload": "e30=",
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": "AA=="}],
        },
        "text": {"payload": 1, "payloadType": {}, "signatures": "a"},
        "many": {"payload": "e30=", "payloadType": "a", "signatures": [{"sig": "AA==", "keyid": "a"}] * 100_000},
    }
    keyed = f"{VERIFY} --key {{made}}/key"
    for key, content in {**{k: json.dumps(v).encode() for k, v in envelopes.items()}, **DOCUMENTS}.items():
        plant = both(holding(ATTESTATION, content, True), in_made("key", PUBLIC_KEY))
        cases[f"verify: signature has {key}"] = Case(keyed, plant, foreign=True)
    signed = holding(ATTESTATION, json.dumps(envelopes["no subject"]).encode(), True)
    for kind in ("fifo", "zero", "random", "folder", "loop"):
        plant = both(signed, in_made("key", PLACES[kind]))
        cases[f"verify: key is {kind}"] = Case(keyed, plant, foreign=True)
        cases[f"sign: key is {kind}"] = Case("sign --key {made}/key", in_made("key", PLACES[kind]))
        plant = both(being(ATTESTATION, kind), in_made("key", PUBLIC_KEY))
        cases[f"verify: signature is {kind}"] = Case(keyed, plant, foreign=True)
    for key, content in KEYS.items():
        cases[f"verify: key is {key}"] = Case(keyed, both(signed, in_made("key", content)), foreign=True)
        cases[f"sign: key is {key}"] = Case("sign --key {made}/key", in_made("key", content))
    return cases


def _relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


PUBLIC_KEY = b"""-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
KEYS = {
    "empty": b"",
    "no base64": b"-----BEGIN PUBLIC KEY-----\n????\n-----END PUBLIC KEY-----\n",
    "escapes": b"-----BEGIN \x1b[2J-----\n",
    "half of another": b"-----BEGIN PRIVATE KEY-----\n"
    b"MC4CAQAwBQYDK2VvBCIEIIPckODDGoQe7luVne830a6B+bGbycEhC3CdjETcDFK1\n"
    b"-----END PRIVATE KEY-----\n",
    "large": b"-----BEGIN PUBLIC KEY-----\n" + b"A" * 70_000,
    "no point": b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n",
}


def _zip(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries:
            archive.writestr(name, content, method)
    return buffer.getvalue()


def _entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr, entry.create_system = mode << 16, 3
    return entry


_TSV = b"index\tpromptID\tgold_label\n"
_PAIR = ((("MNLI/dev_matched.tsv"), _TSV), ("MNLI/dev_mismatched.tsv", _TSV))
_WHOLE = _zip(*_PAIR)
ZIPS = {
    "above": _zip(("../outside/canary.txt", b"x"), *_PAIR),
    "absolute": _zip(("/tmp/deberta-hostile", b"x"), *_PAIR),
    "backslashes": _zip(("..\\outside\\canary.txt", b"x"), *_PAIR),
    "a link": _zip((_entry("MNLI/dev_matched.tsv", 0o120777), b"../../../../outside/canary.txt"), _PAIR[1]),
    "a fifo": _zip((_entry("MNLI/dev_matched.tsv", 0o010644), b""), _PAIR[1]),
    "twice": _zip(*_PAIR, _PAIR[0]),
    "a bomb": _zip(("MNLI/dev_matched.tsv", bytes(200_000_000)), _PAIR[1]),
    "many": _zip(*((f"a{i}", b"") for i in range(20_000)), method=zipfile.ZIP_STORED),
    "escapes": _zip(("a\x1b[2J\x9b31m", b"x")),
    "cut": _WHOLE[:-30],
    "wrong sum": _zip(*_PAIR, method=zipfile.ZIP_STORED).replace(b"index", b"xedni"),
    "encrypted": _WHOLE.replace(b"PK\x03\x04\x14\x00\x00", b"PK\x03\x04\x14\x00\x01").replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    ),
    "without end": b"PK\x03\x04" + bytes(1000),
    "another thing": b"<html>" * 100,
    "unknown method": _WHOLE.replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x08", b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63"
    ),
    "empty": b"",
    "a lone comment": b"PK\x05\x06" + bytes(18),
}


def _fetched() -> dict[str, Case]:
    """Into the profile mnli, whose folders the tree lacks."""
    cases = {}
    command = "fetch --profile mnli --only {what} --from {{made}}/from"
    for key, content in ZIPS.items():
        cases[f"fetch: zip is {key}"] = Case(command.format(what="mnli"), in_made("from/MNLI.zip", content))
    for kind in ("fifo", "zero", "random", "loop"):
        for what, name in (
            ("mnli", "MNLI.zip"),
            ("checkpoint", "pytorch.model-073631.bin"),
            ("tokenizer", "spm.model"),
        ):
            plant = in_made(f"from/{name}", PLACES[kind])
            cases[f"fetch: {name} is {kind}"] = Case(command.format(what=what), plant)
    for key, content in {"html": b"<html>" * 99, "empty": b"", "pickle": b"\x80\x02cos\nsystem\n"}.items():
        plant = in_made("from/spm.model", content)
        cases[f"fetch: spm.model is {key}"] = Case(command.format(what="tokenizer"), plant)
    for key, content in DOCUMENTS.items():
        plant = both(holding("models/mnli/fetched.json", content), in_made("from/spm.model", b"\x0a\x0e"))
        cases[f"fetch: fetched.json has {key}"] = Case(command.format(what="tokenizer"), plant)
    for key, content in ANSWERS.items():
        answer = content.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
        command_line = "fetch --profile mnli --only checkpoint --mirror {url}"
        cases[f"fetch: answer is {key}"] = Case(command_line, lambda place: None, answer=answer)
    return cases


def _judged() -> dict[str, Case]:
    cases = {}
    gates = {**{key: DOCUMENTS[key] for key in ("lists", "objects", "raw nul", "latin", "escape", "too large")}}
    gates |= {
        "types": b'[profile.tiny]\nofficial = "1"\n',
        "deep": b"a = " + b"[" * 100_000,
        "dots": b"a" + b".a" * 100_000 + b" = 1\n",
        "digits": b"a = " + b"9" * 5000,
        "escapes": f'"{ESCAPE}" = 1\n'.encode(),
    }
    for key, content in gates.items():
        plant = in_made("gates.toml", content)
        cases[f"acceptance: gates have {key}"] = Case(
            "acceptance --bs 1", plant, settings=(("gates", "{made}/gates.toml"),)
        )
    for kind in ("fifo", "zero", "folder", "loop"):
        plant = in_made("gates.toml", PLACES[kind])
        cases[f"acceptance: gates are {kind}"] = Case(
            "acceptance --bs 1", plant, settings=(("gates", "{made}/gates.toml"),)
        )
    logits = np.zeros((10, 3), "<f4").tobytes()
    outputs = {
        "short": {"input_0_output_0.bin": logits[:11]},
        "not numbers": {f"input_{i}_output_0.bin": np.full(3, np.nan, "<f4").tobytes() for i in range(10)},
        "infinite": {f"input_{i}_output_0.bin": np.full(3, np.inf, "<f4").tobytes() for i in range(10)},
        "too few": {"input_0_output_0.bin": logits[:12]},
        "others": {ESCAPE.replace("/", ""): b"x"},
        "none": {},
    }
    for key, written in outputs.items():
        plant = both(in_made("o/.keep", b""), *(in_made(f"o/{name}", data) for name, data in written.items()))
        command = "postprocess --version match --outputs {made}/o"
        cases[f"postprocess: outputs are {key}"] = Case(command, both(plant, lambda p: (p.made / "o/.keep").unlink()))
    for kind in ("fifo", "zero", "random", "loop", "folder"):
        plant = both(
            *(in_made(f"o/input_{i}_output_0.bin", logits[:12]) for i in range(9)),
            in_made("o/input_9_output_0.bin", PLACES[kind]),
        )
        cases[f"postprocess: an output is {kind}"] = Case(command, plant)
        cases[f"postprocess: outputs are {kind}"] = Case(command, in_made("o", PLACES[kind]))
    for key, content in NPY.items():
        plant = in_made("a.npy", content)
        command = "compare reference onnx --a-file {made}/a.npy"
        cases[f"compare: reference is {key}"] = Case(command, plant)
    return cases


def cases() -> dict[str, Case]:
    return {**_verified(), **_fetched(), **_judged()}
