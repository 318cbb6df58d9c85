"""Hostile files, second part: checkpoints, configs, tokenizers, data, bins and compiled models that a stage reads."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentencepiece import sentencepiece_model_pb2

from deberta.core.contract import LABELS
from tests.campaign.hostile_trees import (
    BINS,
    CHECKPOINT,
    CONFIG,
    DATA,
    ESCAPE,
    TIMES,
    TIMING,
    TOKENIZER,
    Case,
    Plant,
    Surroundings,
    being,
    both,
    edited,
    holding,
    in_made,
    npy,
    remove,
    sparse,
)
from tests.hostile_samples import DOCUMENTS, PLACES, WEIGHTS


class _Code:
    """What it does when it is unpickled: it writes where the canary is."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._path), "w")


def saving(weights: Callable[[Surroundings], Any], **options: Any) -> Plant:
    def plant(place: Surroundings) -> None:
        torch.save(weights(place), place.tree / CHECKPOINT, **options)

    return plant


def changed_weights(change: Callable[[dict[str, Any]], object]) -> Plant:
    def plant(place: Surroundings) -> None:
        state = torch.load(place.tree / CHECKPOINT, weights_only=True)
        change(state)
        torch.save(state, place.tree / CHECKPOINT)

    return plant


def _ignoring(make: Callable[[], Any]) -> Callable[[Surroundings], Any]:
    return lambda place: make()


def _updated(update: dict[str, Any]) -> Plant:
    return edited(CONFIG, lambda content, place: content.update(update))


def _shape(state: dict[str, Any]) -> None:
    name = next(iter(state))
    state[name] = torch.zeros(1).expand(2**40)


def _checkpoints() -> dict[str, Plant]:
    plants: dict[str, Plant] = {key: saving(_ignoring(make)) for key, make in WEIGHTS.items()}
    plants |= {f"is {kind}": being(CHECKPOINT, kind) for kind in ("fifo", "zero", "random", "loop", "folder")}
    plants["code"] = saving(lambda place: {"a": _Code(place.canary)})
    plants["old code"] = saving(lambda place: {"a": _Code(place.canary)}, _use_new_zipfile_serialization=False)
    plants["bare code"] = lambda place: (place.tree / CHECKPOINT).write_bytes(pickle.dumps(_Code(place.canary)))
    plants["a module"] = saving(lambda place: torch.nn.Linear(2, 2))
    plants["deep"] = holding(CHECKPOINT, b"\x80\x02" + b"]" * 1_000_000 + b".")
    plants["memo"] = holding(CHECKPOINT, b"\x80\x02r\xff\xff\xff\x7f.")
    plants["long text"] = holding(CHECKPOINT, b"\x80\x02X\xff\xff\xff\x7f.")
    plants["bomb of lists"] = holding(CHECKPOINT, b"\x80\x02]q\x00" + b"(h\x00h\x00h\x00h\x00lq\x00" * 1000 + b".")
    plants["empty"] = holding(CHECKPOINT, b"")
    plants["text"] = holding(CHECKPOINT, f"no checkpoint {ESCAPE}".encode())
    plants["terabyte"] = sparse(CHECKPOINT)
    plants["expanded"] = changed_weights(_shape)
    plants["escapes"] = changed_weights(lambda state: state.update({ESCAPE: torch.zeros(1)}))
    plants["many"] = changed_weights(lambda state: state.update({f"a{i}": torch.zeros(1) for i in range(20_000)}))
    plants["a long name"] = changed_weights(lambda state: state.update({"a" * 10_000_000: torch.zeros(1)}))
    plants["not finite"] = changed_weights(lambda state: [value.fill_(float("nan")) for value in state.values()])
    plants["whole numbers"] = changed_weights(lambda state: state.update({"deberta.a": torch.zeros(1).char()}))
    plants["none left"] = changed_weights(lambda state: state.clear())
    plants["cut"] = lambda place: (place.tree / CHECKPOINT).write_bytes((place.tree / CHECKPOINT).read_bytes()[:5000])
    for key, header, length in (
        ("deep header", b"[" * 100_000, 0),
        ("long header", b"{}", 2**60),
        ("header of twice", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', 0),
        ("far offsets", b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}', 0),
        ("negative offsets", b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', 0),
        ("other type", b'{"a":{"dtype":"C64","shape":[1],"data_offsets":[0,8]}}' + bytes(8), 0),
    ):
        content = struct.pack("<Q", length or len(header)) + header

        def plant(place: Surroundings, content: bytes = content) -> None:
            folder = place.tree / CHECKPOINT
            remove(folder)
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(content)

        plants[f"safetensors: {key}"] = plant
    return plants


def _configs() -> dict[str, Plant]:
    plants = {key: holding(CONFIG, content) for key, content in DOCUMENTS.items()}
    plants |= {f"is {kind}": being(CONFIG, kind) for kind in ("fifo", "zero", "random", "loop", "folder")}
    values: dict[str, Any] = {
        "layers": {"num_hidden_layers": 100_000},
        "sizes": {"hidden_size": 2**24, "embedding_size": 2**24, "num_attention_heads": 2, "vocab_size": 2**24},
        "a product": {"vocab_size": 2**24, "hidden_size": 2**16, "intermediate_size": 2**24, "num_attention_heads": 1},
        "heads": {"num_attention_heads": 0},
        "negative": {"hidden_size": -8},
        "a text": {"hidden_size": "32"},
        "a fraction": {"hidden_size": 32.5},
        "truth": {"hidden_size": True},
        "digits": {"hidden_size": 10**17},
        "arabic": {"hidden_size": "\u0663\u0662"},
        "buckets": {"position_buckets": 2**24, "max_relative_positions": 2**24},
        "positions": {"max_position_embeddings": 2**25, "max_relative_positions": 2**24},
        "a kernel": {"conv_kernel_size": 2**24 - 1},
        "groups": {"conv_kernel_size": 3, "conv_groups": 2**20},
        "an activation": {"hidden_act": ESCAPE},
        "labels": {"id2label": {ESCAPE: ESCAPE}},
        "labels of others": {"id2label": {"0": "entailment", "1": "neutral", "2": "contradiction"}},
        "another model": {"model_type": ESCAPE},
        "words": {"pos_att_type": ["c2p"] * 100_000 + ["x"]},
        "types": {"type_vocab_size": 2**24},
    }
    for key, update in values.items():
        plants[f"of {key}"] = _updated(update)
    return plants


def changed_pieces(change: Callable[[Any], object]) -> Plant:
    def plant(place: Surroundings) -> None:
        model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
        model.ParseFromString((place.tree / TOKENIZER).read_bytes())
        change(model)
        (place.tree / TOKENIZER).write_bytes(model.SerializeToString())

    return plant


def character_map(content: bytes) -> Plant:
    return changed_pieces(lambda model: setattr(model.normalizer_spec, "precompiled_charsmap", content))


def _tokenizer_json(change: Callable[[Any], object]) -> Plant:
    """A folder with a tokenizer.json of the same pieces, changed."""

    def plant(place: Surroundings) -> None:
        from deberta.stages.model import tokenizer

        content = json.loads(tokenizer.load(place.tree / TOKENIZER).to_str())
        change(content)
        remove(place.tree / TOKENIZER)
        (place.tree / TOKENIZER).mkdir()
        (place.tree / TOKENIZER / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

    return plant


def add(text: str, score: float = -1.0) -> Plant:
    return changed_pieces(lambda model: model.pieces.add(piece=text, score=score))


def _tokenizers() -> dict[str, Plant]:
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000}
    slow = {"type": "Replace", "pattern": {"Regex": "(a|a|b|.)*(x+x+)+y"}, "content": "a"}
    nested: dict[str, Any] = {"type": "Lowercase"}
    for _ in range(100):
        nested = {"type": "Sequence", "normalizers": [nested]}
    plants: dict[str, Plant] = {
        "a long piece": add("a" * 20_000_000),
        "a longer piece": add("a" * 50_000_000),
        "a piece twice": add("[UNK]"),
        "a score of no number": add("\u2581zz", float("nan")),
        "an infinite score": add("\u2581zz", float("-inf")),
        "pieces with escapes": changed_pieces(lambda model: setattr(model.pieces[1], "piece", ESCAPE)),
        "no unknown": changed_pieces(lambda model: setattr(model.trainer_spec, "unk_id", -1)),
        "far unknown": changed_pieces(lambda model: setattr(model.trainer_spec, "unk_id", 2**31 - 1)),
        "bytes": changed_pieces(lambda model: setattr(model.trainer_spec, "byte_fallback", True)),
        "another kind": changed_pieces(lambda model: setattr(model.trainer_spec, "model_type", 2)),
        "a map of four bytes": character_map(b"\x04\0\0\0abcd"),
        "a short map": character_map(b"\x01"),
        "a large map": character_map(b"\xff\xff\xff\x7f" + b"a" * 1000),
        "a map of noise": character_map(struct.pack("<I", 4096) + bytes(range(256)) * 17),
        "a map of ones": character_map(struct.pack("<I", 4096) + b"\xff" * 5000),
        "no pieces": holding(TOKENIZER, b"\x0a\x00"),
        "text": holding(TOKENIZER, ESCAPE.encode()),
        "empty": holding(TOKENIZER, b""),
        "long": sparse(TOKENIZER),
        "json: growth": _tokenizer_json(lambda content: content.update(normalizer=grow)),
        "json: a slow expression": _tokenizer_json(lambda content: content.update(normalizer=slow)),
        "json: nested": _tokenizer_json(lambda content: content.update(normalizer=nested)),
        "json: no model": _tokenizer_json(lambda content: content.pop("model")),
        "json: another model": _tokenizer_json(lambda content: content["model"].update(type=ESCAPE)),
        "json: no template": _tokenizer_json(lambda content: content.update(post_processor=None)),
        "json: a bad map": _tokenizer_json(
            lambda content: content.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAGFiY2Q="})
        ),
        "json: a far id": _tokenizer_json(lambda content: content["added_tokens"][0].update(id=2**31)),
    }
    plants |= {f"is {kind}": being(TOKENIZER, kind) for kind in ("fifo", "zero", "random", "loop", "folder")}
    for key in ("lists", "objects", "nan", "latin", "cut"):
        plants[f"json: {key}"] = both(
            being(TOKENIZER, "folder"), holding(f"{TOKENIZER}/tokenizer.json", DOCUMENTS[key])
        )
    return plants


def _data() -> dict[str, Plant]:
    def lines(change: Callable[[list[bytes]], list[bytes]]) -> Plant:
        def plant(place: Surroundings) -> None:
            path = place.tree / DATA
            path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

        return plant

    plants: dict[str, Plant] = {
        "a line of 100 MB": lines(lambda rows: [*rows, b"a" * 100_000_000]),
        "a header of 100 MB": holding(DATA, b"a\t" * 50_000_000),
        "a field of 100 MB": lines(lambda rows: [rows[0], rows[1][:-1] + b"a" * 100_000_000 + b"\n"]),
        "tabs": lines(lambda rows: [*rows, b"\t" * 1_000_000 + b"\n"]),
        "half a million lines": lines(lambda rows: [*rows, *[rows[1]] * 500_000]),
        "empty lines": lines(lambda rows: [*rows, b"\n" * 10_000_000]),
        "no lines": lines(lambda rows: rows[:1]),
        "no header": lines(lambda rows: rows[1:]),
        "latin": lines(lambda rows: [*rows[:-1], rows[-1].replace(b"\t", b"\t\xff", 1)]),
        "nul": lines(lambda rows: [*rows[:-1], rows[-1].replace(b"\t", b"\t\0", 1), b"\0"]),
        "wide": lines(lambda rows: [row.decode().encode("utf-16") for row in rows]),
        "escapes": lines(lambda rows: [*rows[:-1], rows[-1].rpartition(b"\t")[0] + f"\t{ESCAPE}\n".encode()]),
        "a header with escapes": lines(lambda rows: [rows[0].replace(b"sentence1", ESCAPE.encode()), *rows[1:]]),
        "a column twice": lines(lambda rows: [rows[0].replace(b"sentence1", b"sentence2"), *rows[1:]]),
        "fewer": lines(lambda rows: rows[:-1]),
        "a terabyte": sparse(DATA),
        "compressed": holding(DATA, b"\x1f\x8b\x08" + bytes(1000)),
    }
    plants |= {f"is {kind}": being(DATA, kind) for kind in ("fifo", "zero", "random", "loop", "folder")}
    return plants


XML = b'<?xml version="1.0"?><net name="a" version="11"><layers>%s</layers><edges>%s</edges></net>'


def _bins() -> dict[str, Case]:
    name, wide = f"{BINS}/input_ids/input_3.bin", 256
    compiled = "models/tiny/cpu/deberta_bs1.xml"
    bomb = b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">%s]>' % b"".join(
        b'<!ENTITY %c "%s">' % (letter, b"&%c;" % (letter - 1) * 10) for letter in range(ord("b"), ord("j"))
    )
    plants: dict[str, Plant] = {
        "short": holding(name, b"\0" * 5),
        "empty": holding(name, b""),
        "far ids": holding(name, np.full(wide, 2**31 - 1, "<i4").tobytes()),
        "negative ids": holding(name, np.full(wide, -(2**31), "<i4").tobytes()),
        "a terabyte": sparse(name),
        **{f"is {kind}": being(name, kind) for kind in ("fifo", "zero", "random", "loop", "folder")},
    }
    foreign = lambda place: remove(place.tree / f"{BINS}.record.json")  # noqa: E731
    cases = {f"infer: bin {key}": Case("infer --version match", both(plant, foreign)) for key, plant in plants.items()}
    models: dict[str, Plant] = {
        "a bomb": holding(compiled, bomb + XML % (b"<layer>&i;</layer>", b"")),
        "a file": holding(compiled, b'<!DOCTYPE a [<!ENTITY a SYSTEM "/dev/zero">]>' + XML % (b"&a;", b"")),
        "deep": holding(compiled, b"<a>" * 300_000),
        "empty": holding(compiled, b""),
        "no layers": holding(compiled, XML % (b"", b"")),
        "far edges": holding(compiled, XML % (b"", b'<edge from-layer="99999999999999999999" to-layer="-1"/>')),
        "no weights": holding("models/tiny/cpu/deberta_bs1.bin", b""),
        "zero": being("models/tiny/cpu/deberta_bs1.bin", "zero"),
    }
    own = lambda place: remove(place.tree / f"{compiled}.record.json")  # noqa: E731
    for key, plant in models.items():
        cases[f"infer: model {key}"] = Case("infer --version match --force", both(plant, own))
    return cases


def _brought() -> dict[str, Case]:
    """A guide's folder, and a model and data for a profile of their own."""
    adopted = "adopt {made}/g --profile tiny --backend ascend"
    names = ("deberta_bs1.om", "dynamic.onnx", "spm.model", "model_config.json", "dev_matched.tsv")
    folders = ("pre_mnli_bs1/match/input_ids", "outputs_bs1_om/match")
    cases = {}
    for name in (*names, "pytorch.model-073631.bin", "msame_bs1_match.txt", "eval_bs1_match.txt", *folders):
        for kind in ("fifo", "zero", "random", "loop"):
            cases[f"adopt: {name} is {kind}"] = Case(adopted, in_made(f"g/{name}", PLACES[kind]))
    for key, content in TIMING.items():
        cases[f"adopt: log has {key}"] = Case(adopted, in_made("g/msame_bs1_match.txt", content))
    named = in_made(f"g/{ESCAPE.replace('/', '')}", b"x")
    cases["adopt: names with escapes"] = Case(adopted, named)
    profile = "add-profile own --model {tree}/models/tiny --data {made}/d.csv --labels " + ",".join(LABELS)
    tables = {
        "escapes": f"premise,hypothesis,label\n{ESCAPE},a,{ESCAPE}\n".encode(),
        "a line": b"premise,hypothesis,label\n" + b"a" * 100_000_000,
        "quotes": b'premise,hypothesis,label\n"' + b"a\n" * 10_000_000,
        "columns": b"a," * 1_000_000 + b"\n",
        "nul": b"premise,hypothesis,label\n\0,\0,\0\n",
        "a bomb": gzip.compress(bytes(500_000_000), 9),
        "json": b'{"premise": ' + b"[" * 1_000_000,
        "digits": b'{"premise": "a", "hypothesis": "b", "label": ' + b"9" * 5000 + b"}\n",
        "latin": b"premise,hypothesis,label\n\xe9,\xe9,neutral\n",
    }
    for key, content in tables.items():
        cases[f"add-profile: data have {key}"] = Case(profile, in_made("d.csv", content))
    for kind in ("fifo", "zero", "random", "loop", "folder"):
        cases[f"add-profile: data are {kind}"] = Case(profile, in_made("d.csv", PLACES[kind]))
        model = profile.replace("{tree}/models/tiny", "{made}/m")
        table = in_made("d.csv", b"premise,hypothesis,label\na,b,neutral\n")
        cases[f"add-profile: config is {kind}"] = Case(profile, both(table, being(CONFIG, kind)))
        cases[f"add-profile: model is {kind}"] = Case(model, both(table, in_made("m", PLACES[kind])))
    return cases


def _others() -> dict[str, Case]:
    cases = {}
    arrays = {"large": npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**33}, 3), }}", bytes(12))}
    for key, content in arrays.items():
        cases[f"compare: reference {key}"] = Case(
            "compare reference onnx --a-file {made}/a.npy", in_made("a.npy", content)
        )
    for kind in ("fifo", "zero", "random", "loop"):
        plant = in_made("a.npy", PLACES[kind])
        cases[f"compare: reference is {kind}"] = Case("compare reference onnx --a-file {made}/a.npy", plant)
        plant = in_made("start.bin", PLACES[kind])
        train = holding("data/tiny/MNLI/train.tsv", b"a\n")
        cases[f"finetune: init is {kind}"] = Case("finetune --steps 1 --init {made}/start.bin", both(plant, train))
        plant = being("data/tiny/MNLI/train.tsv", kind)
        cases[f"finetune: data are {kind}"] = Case("finetune --steps 1", plant)
    for key, content in {
        "a line": b"a" * 100_000_000,
        "latin": b"\xff\t\n" * 9,
        "empty": b"",
        "escapes": ESCAPE.encode(),
    }.items():
        cases[f"finetune: data have {key}"] = Case("finetune --steps 1", holding("data/tiny/MNLI/train.tsv", content))
    for key, content in TIMING.items():
        command = "perf --version match"
        cases[f"perf: times have {key}"] = Case(command, holding(TIMES, content))
    return cases


def cases() -> dict[str, Case]:
    table = {f"export-onnx: checkpoint {key}": Case("export-onnx", plant) for key, plant in _checkpoints().items()}
    table |= {f"export-onnx: config {key}": Case("export-onnx", plant) for key, plant in _configs().items()}
    table |= {f"preprocess: tokenizer {key}": Case("preprocess", plant) for key, plant in _tokenizers().items()}
    table |= {f"preprocess: data {key}": Case("preprocess", plant) for key, plant in _data().items()}
    return {**table, **_bins(), **_brought(), **_others()}
