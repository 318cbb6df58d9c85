"""A tree with a report, and what a forger would do to it: change files, and make digests and all that follows fit."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785

from deberta.core import files, schema
from deberta.core.contract import LABELS, VERSIONS
from deberta.core.paths import Artifacts
from deberta.host.plan import profiles
from deberta.host.report import bom
from deberta.host.report.verification import VerificationRequest
from deberta.stages.inference import postprocess
from deberta.stages.report import assess, render
from tests.mnli_helpers import REPOSITORY

ROWS = 64  # of each version: the first ones of the demo's
ARTIFACTS = Artifacts("small", "cpu")
RESULTS = str(ARTIFACTS.results)
REPORT, JOB, PAGE = (str(path) for path in (ARTIFACTS.report("json"), ARTIFACTS.job(), ARTIFACTS.report("html")))
EVALUATION, BOM = str(ARTIFACTS.evaluation(8, "match")), str(ARTIFACTS.bom())
CHECKPOINT = "models/small/pytorch.model-demo.bin"
TSV = "data/small/MNLI/dev_matched.tsv"
PROFILE = {
    **{"checkpoint": "pytorch.model-demo.bin", "config": "model_config.json", "tokenizer": "spm.model"},
    **{"dataset": "MNLI", "labels": list(LABELS), "rows": dict.fromkeys(VERSIONS, ROWS)},
}
ROW = 40  # of match: row 0 of batch 5


def request(root: Path, **options: Any) -> VerificationRequest:
    profile = profiles.load("small", {"small": PROFILE})
    return VerificationRequest(REPOSITORY, root, ARTIFACTS, lambda: Path(sys.executable), profile, **options)


def outputs(root: Path) -> Path:
    [folder] = (root / RESULTS / "outputs_bs8_om/match").iterdir()
    return folder


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def flip_byte(path: Path, at: int = -100) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def flip_logits(root: Path) -> None:
    """Row ROW of match gets the label after the one it had."""
    file = outputs(root) / "input_5_output_0.bin"
    logits = np.fromfile(file, "<f4").reshape(8, 3)
    logits[0] = np.roll(logits[0], 1)
    logits.tofile(file)


def vouch(root: Path) -> None:
    """Make every digest, in the job and in all records, that of the file as it is now."""

    def digest(name: str) -> dict[str, str]:
        there = root / name
        return {"dirHash": files.folder_digest(there)} if there.is_dir() else {"sha256": files.sha256_of(there)}

    job = read(root / JOB)
    for group in (job["inputs"], job["artifacts"], job["measured"]["artifacts"]):
        group.update({name: digest(name) for name in group if (root / name).exists()})
    (root / JOB).write_text(json.dumps(job, indent=2), encoding="utf-8")
    for path in sorted(root.rglob("*.record.json")):
        record = read(path)
        for entry in [*record["subject"], *record["predicate"]["buildDefinition"]["resolvedDependencies"]]:
            if (root / entry["name"]).exists():
                entry["digest"] = digest(entry["name"])
        files.write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def remake(root: Path, monkeypatch: pytest.MonkeyPatch, pages: bool = True) -> None:
    """Everything that follows from outputs and job made again by our own stages, and vouched for."""
    with monkeypatch.context() as here:
        here.chdir(root)
        vouch(root)
        job = read(root / JOB)
        for cell in job["cells"]:
            given = ["--outputs", *cell["outputs"].values(), "--data", job["data"][cell["version"]], "--bs", "8"]
            rows = ["--version", cell["version"], "--rows", str(ROWS)]
            postprocess.main([*given, *rows, "--output", cell["evaluation"]])
        vouch(root)
        assess.main(["--job", JOB, "--output", REPORT])
        if pages:
            render.main(["--report", REPORT, "--markdown", str(ARTIFACTS.report("md")), "--html", PAGE])
        vouch(root)
        files.write_text(root / BOM, schema.text(bom.of_tree(REPOSITORY, root, ARTIFACTS)))
        vouch(root)


def change_count(root: Path) -> None:
    report = read(root / REPORT)
    report["body"]["cells"][0]["correct"] += 1
    (root / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def change_count_and_hash(root: Path) -> None:
    change_count(root)
    report = read(root / REPORT)
    report["body_sha256"] = hashlib.sha256(rfc8785.dumps(report["body"])).hexdigest()
    (root / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def swap_gold(root: Path) -> None:
    lines = (root / TSV).read_bytes().split(b"\n")
    label = lines[1].rpartition(b"\t")[2]
    other = b"neutral" if label != b"neutral" else b"entailment"
    lines[1] = lines[1][: -len(label)] + other
    (root / TSV).write_bytes(b"\n".join(lines))


def edit_page(root: Path) -> None:
    found = re.search(r"\b6[0-3]\b", (root / PAGE).read_text(encoding="utf-8"))
    assert found is not None
    edit(root / PAGE, found[0], str(int(found[0]) + 1))


def edit_log(root: Path) -> None:
    log = root / RESULTS / "msame_bs8_match.txt"
    log.write_text(re.sub(r"(without first time: )[\d.]+", r"\g<1>0.5", log.read_text()))
