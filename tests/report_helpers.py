"""A small workspace with everything that a report is made of, and the report of it. The same arguments, the same bytes.

Profile demo, but of 48 and 36 rows: PyTorch has every twelfth row wrong, and row 17 of match is a near tie that falls
the other way from batch size 8 on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from deberta.core import contract, files
from deberta.core.contract import DEV_FILES, LABELS
from deberta.core.paths import Artifacts
from deberta.stages.inference import postprocess
from deberta.stages.report import assess
from tests.mnli_helpers import dev_line, write_dev

ROWS = {"match": 48, "mismatch": 36}
GENRES = {
    "match": ("fiction", "government", "slate", "telephone", "travel"),
    "mismatch": ("facetoface", "letters", "nineeleven", "oup", "verbatim"),
}
FOLDER = "2026101_9_5_0_123456"  # msame's <T>
NEAR_TIE = 17  # row of match: right by 0.003, wrong from batch size 8 on
WHEN = "2026-01-01T09:05:00+00:00"
CHECKPOINT = "models/demo/pytorch.model-demo.bin"

Logits = npt.NDArray[np.float32]


def example_job(
    folder: Path,
    *,
    backend: str = "cpu",
    rows: Mapping[str, int] = ROWS,
    batch_sizes: Sequence[int] = (1, 8),
    limit: int = 0,
    order: Sequence[int] = (0, 1, 2),
) -> Path:
    """Write the workspace and return the job's path. On ascend it is a published model's that meets all gates.

    `order`: output i of the model is label order[i].
    """
    artifacts = Artifacts("demo", backend, limit)
    (folder / artifacts.models).mkdir(parents=True)
    (folder / CHECKPOINT).write_bytes(b"a checkpoint")
    (folder / artifacts.onnx).write_bytes(b"a graph")
    data = {version: str(artifacts.data / "MNLI" / DEV_FILES[version]) for version in rows}
    (folder / artifacts.data / "MNLI").mkdir(parents=True)
    cells: list[dict[str, Any]] = []
    performances: list[dict[str, Any]] = []
    for version, count in rows.items():
        gold = [row % 3 for row in range(count)]
        lines = [
            dev_line(f"A boat {row}.", "A ship.", GENRES[version][row % 5], LABELS[label])
            for row, label in enumerate(gold)
        ]
        write_dev(folder / data[version], lines)
        logits = pytorch(gold, version)[: limit or None]
        write_reference(folder / artifacts.reference(version), logits[:, list(order)])
        write_json(folder / artifacts.data_check(version), sentinel(version, limit or count, limit))
        for size in batch_sizes:
            outputs, text = artifacts.outputs(size, version) / FOLDER, artifacts.evaluation(size, version)
            write_outputs(folder / outputs, compiled(logits, version, size)[:, list(order)], size)
            evaluate(folder, str(outputs), data[version], str(text), size, version, limit)
            log = artifacts.timing_log(size, version)
            write_timing_log(folder / log, 2.0 + 1.9 * size)
            where = {"batch_size": size, "version": version}
            stands = {"origin": "", "pinned": True, "place": f"on {backend}"}
            of_cell = {"precision": "fp32", "outputs": {"256": str(outputs)}, "bins": {}, "evaluation": str(text)}
            cells.append({**where, **of_cell, **stands})
            run = {"precision": "fp32", "length": 256, "runner": "msame", "log": str(log)}
            performances.append({**where, **run, **stands})
    brought = [CHECKPOINT, *data.values()]
    inputs = {path: {"sha256": files.sha256_of(folder / path)} for path in brought}
    made = [str(artifacts.onnx), *(cell["evaluation"] for cell in cells)]
    ascend = backend == "ascend"
    job = {
        "format": 1,
        "purpose": "acceptance",
        "profile": {"name": "demo", "published": ascend, "labels": list(LABELS), "rows": dict(rows)},
        "backend": backend,
        "limit": limit,
        "loops": contract.PERFORMANCE_LOOPS,
        "batch_sizes": list(batch_sizes),
        "versions": list(rows),
        "data": data,
        "sentinels": {version: str(artifacts.data_check(version)) for version in rows},
        "references": {version: str(artifacts.reference(version)) for version in rows},
        "cells": cells,
        "performances": performances,
        "throughputs": [],
        "label_changes": [],
        "inputs": inputs,
        "artifacts": {path: {"sha256": files.sha256_of(folder / path)} for path in made},
        "gates": {
            "correct_rows": {
                version: {"expected": count - count // 12, "allowed": 2, "of": count} for version, count in rows.items()
            },
            "near_tie_margin": 0.05,
            "agreement": {"allowed": 0},
            "reference": {"allowed": 0},
            "fps": {"at_least": "baseline"},
            "sentinel": {},
            "inputs": {path: inputs[path]["sha256"] for path in brought},
            **({"official": {"points": 2.5}} if ascend else {}),
        },
        "published": [published(size) for size in batch_sizes] if ascend else [],
        "note": "Figures of an example." if ascend else "Nothing is published for profile demo.",
        "not_accepted": [
            *([] if ascend else ["backend cpu: no NPU was used"]),
            *([f"limited to the first {limit} rows"] if limit else []),
        ],
        "measured": {
            **measured(backend, limit),
            "places": {
                f"bs{cell['batch_size']}_{cell['version']}": {"place": cell["place"], "pinned": cell["pinned"]}
                for cell in cells
            },
        },
    }
    return write_json(folder / artifacts.job(), job)


def example_report(folder: Path, backend: str = "cpu") -> dict[str, Any]:
    """The report of such a workspace: on cpu it is checked, on ascend accepted."""
    report = assess.assess(assess.read_job(example_job(folder, backend=backend)), folder)
    content: dict[str, Any] = json.loads(msgspec.json.encode(report))
    return content


def edit(path: Path, **changes: Any) -> dict[str, Any]:
    """Change a JSON object's keys; `gates` goes over those there are, and None removes one of them."""
    content: dict[str, Any] = json.loads(path.read_bytes())
    if "gates" in changes and "gates" in content:
        gates = {**content["gates"], **changes["gates"]}
        changes["gates"] = {name: gate for name, gate in gates.items() if gate is not None}
    content.update(changes)
    write_json(path, content)
    return content


def pytorch(gold: Sequence[int], version: str) -> Logits:
    """float32 [rows, 3]: every twelfth row is wrong, and one of match nearly."""
    random = np.random.default_rng(len(version))
    logits = random.uniform(-2, 0, (len(gold), 3))
    rows = np.arange(len(gold))
    guesses = np.where(rows % 12 == 11, (np.array(gold) + 1) % 3, gold)
    logits[rows, guesses] = random.uniform(1, 5, len(gold))
    if version == "match":
        logits[NEAR_TIE] = (-1.0, 0.003, 0.0)
        logits[NEAR_TIE] = np.roll(logits[NEAR_TIE], gold[NEAR_TIE] - 1)
    return logits.astype(np.float32)


def compiled(logits: Logits, version: str, batch_size: int) -> Logits:
    """What a compiled model gives instead: the last bits differ, and the near tie falls the other way."""
    made = logits + np.random.default_rng(batch_size).normal(0, 1e-5, logits.shape)
    if version == "match" and batch_size >= 8:
        made[NEAR_TIE, made[NEAR_TIE].argmax()] -= 0.006
    return made.astype(np.float32)


def write_outputs(folder: Path, logits: Logits, batch_size: int) -> None:
    """input_<i>_output_0.bin; the last one is filled with zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = contract.batch_count(len(logits), batch_size)
    whole = np.zeros((batches * batch_size, 3), "<f4")
    whole[: len(logits)] = logits
    for index, batch in enumerate(whole.reshape(batches, batch_size, 3)):
        (folder / contract.output_file(index)).write_bytes(batch.tobytes())


def evaluate(folder: Path, outputs: str, data: str, text: str, batch_size: int, version: str, limit: int = 0) -> None:
    """The accuracy text and its JSON, made as a user's are; the paths are relative to `folder`."""
    paths = ["--outputs", str(folder / outputs), "--data", str(folder / data), "--output", str(folder / text)]
    postprocess.main([*paths, "--bs", str(batch_size), "--version", version, "--limit", str(limit)])


def write_timing_log(path: Path, milliseconds: float, loops: int = 100, spread: float = 0.01) -> None:
    """A log in msame's format, file mode; the first time is half as long again. `spread`: standard deviation."""
    random = np.random.default_rng(loops)
    times = [float(f"{milliseconds * (1 + spread * x):g}") for x in random.standard_normal(loops)]
    times[0] = float(f"{milliseconds * 1.5:g}")
    runs = "".join(f"[INFO] model execute success\nInference time: {time:g}ms\n" for time in times)
    average, rest = sum(times) / loops, sum(times[1:]) / max(1, loops - 1)
    path.write_text(
        f"[INFO] acl init success\nout/{FOLDER}\n[INFO] start to process file:a/input_0.bin\n{runs}"
        f"[INFO] output data success\nInference average time: {average:.6f} ms\n"
        f"Inference average time without first time: {rest:.6f} ms\n[INFO] pid: 1 Execute sample success\n",
        encoding="utf-8",
    )


def write_reference(path: Path, logits: Logits) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.ascontiguousarray(logits, "<f4"))


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    files.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path


def sentinel(version: str, rows: int, limit: int = 0) -> dict[str, Any]:
    """What the sentinel says of data without a problem."""
    return {
        **{"format": 1, "version": version, "rows": rows, "limit": limit, "columns": 16, "expected_rows": None},
        **{"labels": dict.fromkeys(LABELS, rows // 3), "genres": {}, "truncated_rows": 0, "truncated_lines": []},
        **{"tokens": {"total": rows * 12, "unknown": 0, "unknown_rate": 0.0}, "duplicate_pairs": 0},
        **{"duplicate_pair_ids": {"count": 0, "lines": []}, "empty_sentences": 0, "problems": [], "notes": []},
    }


def published(batch_size: int) -> dict[str, float]:
    """A row of a published table that the example meets: 44 of 48 is 91.67 %, 33 of 36 too."""
    return {
        **{"batch_size": batch_size, "baseline_fps": 100.0, "ascend_fps": 150.0},
        **{"official_match": 90.5, "official_mismatch": 90.5, "ascend_match": 91.67, "ascend_mismatch": 91.67},
    }


def measured(backend: str, limit: int) -> dict[str, Any]:
    """The host's part."""
    asked = f" --limit {limit}" if limit else ""
    took = {"started": WHEN, "finished": WHEN, "seconds": 0.0}
    return {
        "made": WHEN,
        "deberta_ascend": "0.1.0",
        "command": f"invoke acceptance --profile demo --backend {backend}{asked}",
        "executor": "local",
        "loops": contract.PERFORMANCE_LOOPS,
        "host": {"system": "Linux 6.1 x86_64", "python": "3.11.2", "cpu": "Example CPU", "cpus": 2, "name": "example"},
        "pins": {"pinned": True, "notes": []},
        "tools": {"atc": "", "msame": "ab" * 32 if backend == "ascend" else ""},
        "engines": [] if backend == "ascend" else ["openvino 2026.4.1, f32, 2 threads"],
        "places": {
            f"bs{size}_{version}": {"place": f"on {backend}", "pinned": True} for size in (1, 8) for version in ROWS
        },
        "steps": [{"step": "infer_bs8_match", "executor": "local", "image": "", **took}],
        "artifacts": {f"models/demo/{backend}/deberta_bs8.xml": {"sha256": "cd" * 32}},
    }
