"""Reports with realistic figures, for what is made of a report.json. Nothing in them was measured."""

from __future__ import annotations

import copy
import json
import math
from hashlib import sha256
from itertools import permutations
from pathlib import Path
from typing import Any, Callable, Sequence

import msgspec
import rfc8785

from deberta.core.contract import LABELS
from deberta.core.published import GUIDE, NOTE, SOURCE

GENRES = {
    "match": {"fiction": 1973, "government": 1945, "slate": 1955, "telephone": 1966, "travel": 1976},
    "mismatch": {"facetoface": 1974, "letters": 1977, "nineeleven": 1974, "oup": 1961, "verbatim": 1946},
}
WRONG = {"match": (176, 128, 263, 189, 180), "mismatch": (180, 131, 193, 191, 218)}  # 8879 and 8919 are correct
AVERAGES = {1: 231.4, 4: 858.7, 8: 1609.2, 16: 3240.6, 32: 6411.8, 64: 12204.5}  # ms, by batch size


def wilson(correct: int, rows: int) -> list[float]:
    """The 95 % interval of Wilson (1927), rounded as reports have it."""
    z, share = 1.959964, correct / rows
    middle, half = share + z * z / (2 * rows), z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return [round((middle - half) / scale, 6), round((middle + half) / scale, 6)]


def tally(correct: int, rows: int) -> dict[str, Any]:
    return {"rows": rows, "correct": correct, "accuracy": correct / rows, "interval": wilson(correct, rows)}


def cell(batch_size: int, version: str, genres: dict[str, int], wrong: tuple[int, ...]) -> dict[str, Any]:
    rows, errors = sum(genres.values()), sum(wrong)
    gold = [rows // 3 + (place < rows % 3) for place in range(3)]
    missed = [errors // 3 + (place < errors % 3) for place in range(3)]
    confusion = {
        LABELS[k]: {
            LABELS[k]: gold[k] - missed[k],
            LABELS[(k + 1) % 3]: missed[k] // 2,
            LABELS[(k + 2) % 3]: missed[k] - missed[k] // 2,
        }
        for k in range(3)
    }
    confusion = {row: {column: confusion[row][column] for column in LABELS} for row in LABELS}
    return {
        **{"batch_size": batch_size, "version": version, "precision": "fp32", "lengths": {"256": rows}},
        **{"origin": "", **tally(rows - errors, rows)},
        "genres": {name: tally(count - bad, count) for (name, count), bad in zip(genres.items(), wrong)},
        "labels_predicted": {label: sum(confusion[row][label] for row in LABELS) for label in LABELS},
        "labels_gold": dict(zip(LABELS, gold)),
        "confusion": confusion,
        "permutations": sorted(
            (_order(order, confusion, rows) for order in permutations(LABELS)), key=_correct, reverse=True
        ),
        "versus_reference": {
            **{"same_labels": rows - 1, "only_reference_correct": 1, "only_this_correct": 0, "p_value": 1.0},
            "flips": [
                {
                    **{"row": 17, "line": 19, "gold": "neutral", "margin": 0.003},
                    **{"reference": "neutral", "this": "entailment"},
                }
            ],
            **{"flips_total": 1, "beyond_near_ties": 0},
        },
    }


def _order(order: Sequence[str], confusion: dict[str, dict[str, int]], rows: int) -> dict[str, Any]:
    correct = sum(confusion[meant][label] for label, meant in zip(LABELS, order))
    return {"order": list(order), "correct": correct, "accuracy": correct / rows}


def _correct(one: dict[str, Any]) -> int:
    return int(one["correct"])


def performance(batch_size: int, average_ms: float, version: str = "match") -> dict[str, Any]:
    """A hundred times with a slow first one and a slow tail."""
    shape = [0.012 * math.sin(7.3 * k) + (0.05 if k % 31 == 30 else 0.0) for k in range(99)]
    scale = average_ms / (1 + sum(shape) / 99)
    times = [round(scale * (1 + part), 3) for part in shape]
    ranks = {f"p{percent}": sorted(times)[-(-percent * 99 // 100) - 1] for percent in (50, 90, 99)}
    return {
        **{
            "batch_size": batch_size,
            "version": version,
            "runner": "msame",
            "origin": "",
            "loops": 100,
            "precision": "fp32",
        },
        **{"length": 256, "place": "", "pinned": True},
        **{"fps": batch_size * 1000 / average_ms, "average_ms": average_ms, "percentiles_ms": ranks},
        "interval_ms": [round(average_ms * 0.997, 3), round(average_ms * 1.003, 3)],
        **{"spread": 0.0128, "warning": "", "times_ms": [round(1.4 * average_ms, 3), *times]},
    }


def digest(name: str) -> dict[str, str]:
    """A hash that only looks like the file's."""
    return {"sha256": sha256(name.encode()).hexdigest()}


def mnli() -> dict[str, Any]:
    """The guide's model on the ascend backend, both versions at all batch sizes: accepted."""
    sizes = list(AVERAGES)
    cells = [cell(size, version, GENRES[version], WRONG[version]) for size in sizes for version in GENRES]
    body = _body("mnli", "ascend", cells, [f"models/mnli/{name}" for name in ("pytorch.model-073631.bin", "spm.model")])
    body["published"] = True
    gates = [
        _gate("correct_rows", f"bs {size}, {version}", f"at least {least} of {rows}", f"{found} of {rows}")
        for version, least, found, rows in (("match", 8859, 8879, 9815), ("mismatch", 8899, 8919, 9832))
        for size in sizes
    ]
    gates += [
        _gate("fps", f"bs {row.batch_size}, match", f"at least {row.baseline_fps}", f"{1000 * row.batch_size / ms:.3f}")
        for row, ms in zip(GUIDE, AVERAGES.values())
    ]
    measured = _measured("mnli", "ascend", [performance(size, average) for size, average in AVERAGES.items()])
    measured["published"] = msgspec.to_builtins(GUIDE)
    measured["note"] = f"{SOURCE}. {NOTE}"
    return _sealed("mnli", "ascend", body, {"verdict": "accepted", "why_not_accepted": [], "gates": gates}, measured)


def demo() -> dict[str, Any]:
    """The demo on the cpu backend: checked."""
    genres = {version: {f"{name}": 240 for name in names} for version, names in GENRES.items()}
    wrong = {"match": (3, 2, 4, 1, 1), "mismatch": (9, 8, 10, 7, 9)}
    cells = [cell(8, version, genres[version], wrong[version]) for version in GENRES]
    cells.insert(0, cell(1, "match", genres["match"], wrong["match"]))
    body = _body("demo", "cpu", cells, [f"models/demo/{name}" for name in ("pytorch.model-demo.bin", "spm.model")])
    gates = [
        _gate("correct_rows", f"bs {one['batch_size']}, {one['version']}", "at least 1154 of 1200", f"{one['correct']}")
        for one in cells
    ]
    differ = ("at most 0 rows that differ, near ties apart", "0 rows, and 1 near tie (margin below 0.05)")
    gates.append(_gate("agreement", "match, bs 1, 8", *differ))
    why_not = "backend cpu: its fps says nothing about an NPU"
    gates.append(_gate("fps", "all", "at least the published baseline fps", "", "not judged", why_not))
    why = ["backend cpu: no NPU was used", "not judged: fps"]
    measured = _measured("demo", "cpu", [performance(1, 2.4137), performance(8, 15.622)])
    measured["engines"] = ["openvino 2026.4.1, f32, 2 threads"]
    return _sealed("demo", "cpu", body, {"verdict": "checked", "why_not_accepted": why, "gates": gates}, measured)


def failed() -> dict[str, Any]:
    """The demo with a gate that failed."""

    def change(report: dict[str, Any]) -> None:
        report["verdict"]["verdict"] = "failed"
        gate = report["verdict"]["gates"][0]
        gate.update(status="failed", found="1103 of 1200", reason="too few rows are right")

    return changed(demo(), change)


def limited() -> dict[str, Any]:
    """The first 64 rows of the demo only."""

    def change(report: dict[str, Any]) -> None:
        report["body"]["limit"] = 64
        report["body"]["cells"] = [cell(8, "match", dict.fromkeys(GENRES["match"], 12), (0, 1, 0, 0, 1))]
        report["verdict"]["why_not_accepted"] += ["limited to the first 64 rows"]

    return changed(demo(), change)


def changed(report: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A copy with a change, its body's hash made again."""
    found = copy.deepcopy(report)
    change(found)
    found["body_sha256"] = sha256(rfc8785.dumps(found["body"])).hexdigest()
    return found


def write(path: Path, report: dict[str, Any]) -> Path:
    path.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return path


def _gate(gate: str, of: str, required: str, found: str, status: str = "passed", reason: str = "") -> dict[str, str]:
    return {"gate": gate, "of": of, "required": required, "found": found, "status": status, "reason": reason}


def _body(profile: str, backend: str, cells: list[dict[str, Any]], inputs: list[str]) -> dict[str, Any]:
    versions = list(dict.fromkeys(one["version"] for one in cells))
    sizes = sorted({one["batch_size"] for one in cells})
    tsvs = [f"data/{profile}/MNLI/dev_matched.tsv", f"data/{profile}/MNLI/dev_mismatched.tsv"]
    bins = {f"data/{profile}/pre_mnli_bs{size}/match": {"dirHash": digest(f"bins {size}")["sha256"]} for size in sizes}
    texts = [
        f"results/{profile}/{backend}/eval_bs{one['batch_size']}_{one['version']}.{suffix}"
        for one in cells
        for suffix in ("txt", "json")
    ]
    labels = {f"{size}": "entailment" if size == sizes[-1] else "neutral" for size in sizes}
    near = {"row": 17, "line": 19, "margin": 0.003, "labels": labels}
    agreed = {"batch_sizes": sizes, "rows_that_differ": 1, "beyond_near_ties": 0, "near_tie_margin": 0.05}
    return {
        **{"profile": profile, "backend": backend, "published": False, "limit": 0, "labels": list(LABELS)},
        **{"versions": versions, "batch_sizes": sizes},
        "inputs": {name: digest(name) for name in (*inputs, *tsvs)},
        "artifacts": {**{name: digest(name) for name in (f"models/{profile}/dynamic.onnx", *texts)}, **bins},
        "sentinels": {one["version"]: _sentinel(one["version"], one["rows"]) for one in cells},
        "reference": {one["version"]: tally(one["correct"] + 1, one["rows"]) for one in cells},
        "cells": cells,
        "agreement": {"match": {**agreed, "differences": [near]}},
    }


def _sentinel(version: str, rows: int) -> dict[str, Any]:
    return {
        **{"format": 1, "version": version, "rows": rows, "limit": 0, "columns": 16, "expected_rows": rows},
        **{"labels": dict.fromkeys(LABELS, rows // 3), "genres": {}},
        **{"tokens": {"total": rows * 40, "unknown": 0, "unknown_rate": 0.0}},
        **{"truncated_rows": 1, "truncated_lines": [4021], "duplicate_pair_ids": {"count": 0, "lines": []}},
        **{"duplicate_pairs": 0, "empty_sentences": 0},
        **{"problems": [], "notes": ["1 row cut at 256 tokens: line 4021"]},
    }


def _measured(profile: str, backend: str, performances: list[dict[str, Any]]) -> dict[str, Any]:
    suffix = "om" if backend == "ascend" else "xml"
    models = [f"models/{profile}/{backend}/deberta_bs{run['batch_size']}.{suffix}" for run in performances]
    names = [f"{what} bs={run['batch_size']} match" for run in performances for what in ("infer", "perf")]
    image = f"sha256:{digest('image')['sha256']}" if backend == "ascend" else ""
    return {
        **{"made": "2026-01-01T00:00:00+00:00", "deberta_ascend": "0.1.0", "executor": "local", "loops": 100},
        "command": f"invoke acceptance --profile {profile} --backend {backend}",
        "host": {
            **{"system": "Linux 6.1.0 x86_64", "python": "3.11.2", "cpu": "Example CPU 2.45 GHz", "cpus": 2},
            "name": "example",
        },
        "pins": {"pinned": True, "notes": []},
        "tools": {"atc": "5.1.RC2" if backend == "ascend" else "", "msame": digest("msame")["sha256"]},
        "engines": [],
        "steps": [
            {
                **{"step": name, "executor": "local", "image": image, "seconds": 12.0 + place},
                **{"started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:00:12+00:00"},
            }
            for place, name in enumerate(names)
        ],
        "artifacts": {name: digest(name) for name in models},
        "places": {},
        **{"performances": [{**run, "place": f"on {backend}"} for run in performances]},
        **{"throughputs": [], "label_changes": [], "published": [], "note": "", "wrong_rows": [wrong_rows()]},
    }


def wrong_rows() -> dict[str, Any]:
    """Three wrong rows of match, with texts."""
    texts = (
        ("The new rights are nice enough", "Everyone really likes the newest benefits", "neutral", "entailment"),
        ("It's not that the questions weren't interesting", "No question was asked.", "contradiction", "neutral"),
        ("Fun for adults and children.", "Fun for only children.", "contradiction", "entailment"),
    )
    return {
        **{"batch_size": 1, "version": "match", "precision": "fp32", "origin": "", "total": 11},
        "rows": [
            {
                **{"row": 40 * place, "line": 40 * place + 2, "margin": 6.25 - place},
                **{"premise": premise, "hypothesis": hypothesis, "gold": gold, "label": label},
            }
            for place, (premise, hypothesis, gold, label) in enumerate(texts)
        ],
    }


def _sealed(
    profile: str, backend: str, body: dict[str, Any], verdict: dict[str, Any], measured: dict[str, Any]
) -> dict[str, Any]:
    title = f"DeBERTa on MNLI: profile {profile}, backend {backend}"
    measured["places"] = {
        f"bs{one['batch_size']}_{one['version']}": {"place": f"on {backend}", "pinned": True} for one in body["cells"]
    }
    report = {"format": 1, "title": title, "body": body, "body_sha256": "", "verdict": verdict, "measured": measured}
    return changed(report, lambda _: None)


def on_devices(report: dict[str, Any]) -> None:
    """Two accuracy runs on three devices, one of them of another chip, and performance runs beside each other."""
    facts = {"cann": "8.0.RC3", "driver": "24.1.rc3", "machine": "aarch64", "program": {}, "code": ""}
    names = [("node-1", 0, "310P3"), ("node-1", 1, "310P3"), ("node-2", 0, "310P1")]
    devices = [
        {"host": host, "device": device, "chip": chip, **facts, "shards": 4 - at, "batches": 512 - at}
        | {"seconds": 61.0, "inference_ms": 59000.5}
        for at, (host, device, chip) in enumerate(names)
    ]
    lost = {"length": 256, "first": 12, "last": 40, "device": "node-2/0", "why": "it did not answer in time"}
    run = {
        **{"version": "match", "precision": "fp32", "lengths": [256], "devices": devices, "compared": 16},
        **{"lost": [{**lost, "at": "2026-01-01T09:05:00+00:00"}], "different": True, "engine": "distributed 2026.8.0"},
        "unlike": [{"length": 256, "batch": 0, "devices": ["node-1/0", "node-2/0"], "same": False}],
        "not_checked": [
            "the driver of node-2/0 is not known, so it was not compared",
            "batches 3 to 5 at length 256 of node-2/0 did not run on a second device: none was left",
        ],
    }
    alone = {
        **run,
        "batch_size": 4,
        "lengths": [32, 256],
        "lost": [],
        "unlike": [],
        "different": False,
        "engine": "",
        "devices": devices[:1],
    }
    alone["not_checked"] = ["no batch ran on a second device: there was one"]
    report["measured"]["sharded"] = [{**run, "batch_size": 1}, alone]
    timed = {"loops": 100, "interval": [4.2, 4.4], "why_not_compared": "", "remarks": []}
    report["measured"]["device_runs"] = [
        {
            **{"batch_size": 1, "version": "match", "precision": "fp32", "length": 256, "runner": "msame"},
            **{"reference": "node-1/0", "sum": 11.9},
            "devices": [
                {
                    **timed,
                    "device": "node-1/0",
                    "fps": 4.3,
                    "change": 0.0,
                    "noise": None,
                    "conclusion": "no difference",
                },
                {
                    **timed,
                    "device": "node-1/1",
                    "fps": 4.35,
                    "change": 0.01,
                    "noise": 0.05,
                    "conclusion": "no difference",
                },
                {**timed, "device": "node-2/0", "fps": 3.25, "change": -0.25, "noise": 0.05, "conclusion": "slower"},
            ],
        }
    ]
