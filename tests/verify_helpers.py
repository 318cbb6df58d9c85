"""A tree with a report, and what a forger would do to it: change files, and make digests and all that follows fit."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785

from deberta.core import files, schema
from deberta.core.contract import DEV_FILES, LABELS, VERSIONS
from deberta.core.paths import Artifacts
from deberta.host.plan import profiles
from deberta.host.report import bom
from deberta.host.report.verification import VerificationRequest
from deberta.stages.inference import postprocess
from deberta.stages.report import assess, render
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace

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


def make_accepted(root: Path) -> Workspace:
    """A workspace in which acceptance has run at one batch size, with the demo's model; tests copy it."""
    (root / ARTIFACTS.models).mkdir(parents=True)
    for name in ("checkpoint", "config", "tokenizer"):
        shutil.copy(REPOSITORY / "models/demo" / str(PROFILE[name]), root / ARTIFACTS.models)
    (root / TSV).parent.mkdir(parents=True)
    for file in DEV_FILES.values():
        lines = (REPOSITORY / "data/demo/MNLI" / file).read_bytes().splitlines(keepends=True)
        (root / TSV).with_name(file).write_bytes(b"".join(lines[: ROWS + 1]))
    settings = {"workspace": str(root), "stages_python": sys.executable, "executor": "local", "profile": "small"}
    settings["buckets"] = "256"  # what the tests tamper with are the padded files
    content = json.dumps({**settings, "profiles": {"small": PROFILE}})
    (root / "settings.yaml").write_text(content, encoding="utf-8")  # JSON is YAML
    workspace = Workspace(root)
    workspace.succeed("acceptance", "--backend", "cpu", "--bs", "8", "--loops", "2")
    return workspace


def accepted(factory: pytest.TempPathFactory) -> Workspace:
    """The same, made once for all test processes; no test changes it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(base / "accepted.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "accepted/finished").exists():
            make_accepted(base / "accepted")
            (base / "accepted/finished").touch()
    return Workspace(base / "accepted")


def copy_tree(workspace: Workspace, root: Path) -> Path:
    """A copy as somebody else would get it: without .cache, in another place."""
    for kind in ("models", "data", "results"):
        shutil.copytree(workspace.root / kind, root / kind, symlinks=True)
    return root


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


def vouch(root: Path, artifacts: Artifacts = ARTIFACTS) -> None:
    """Make every digest, in the job and in all records, that of the file as it is now."""

    def digest(name: str) -> dict[str, str]:
        there = root / name
        return {"dirHash": files.folder_digest(there)} if there.is_dir() else {"sha256": files.sha256_of(there)}

    path = root / artifacts.job()
    job = read(path)
    for group in (job["inputs"], job["artifacts"], job["measured"]["artifacts"]):
        group.update({name: digest(name) for name in group if (root / name).exists()})
    write(path, job)
    for path in sorted(root.rglob("*.record.json")):
        record = read(path)
        for entry in [*record["subject"], *record["predicate"]["buildDefinition"]["resolvedDependencies"]]:
            if (root / entry["name"]).exists():
                entry["digest"] = digest(entry["name"])
        write(path, record)


def write(path: Path, content: Any) -> None:
    """JSON as our own commands write it."""
    files.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def remake(root: Path, pages: bool = True, artifacts: Artifacts = ARTIFACTS) -> None:
    """Everything that follows from outputs and job made again by our own stages, and vouched for."""
    with contextlib.chdir(root), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        vouch(root, artifacts)
        job, report = read(root / artifacts.job()), artifacts.report("json")
        for cell in job["cells"]:
            given = ["--outputs", *cell["outputs"].values(), "--data", job["data"][cell["version"]], "--bs", "8"]
            rows = ["--version", cell["version"]]
            rows += ["--rows", str(count)] if (count := job["profile"]["rows"][cell["version"]]) else []
            rows += ["--predictions", cell["predictions"]] if cell["predictions"] else []
            postprocess.main([*given, *rows, "--output", cell["evaluation"]])
        vouch(root, artifacts)
        assess.main(["--job", str(artifacts.job()), "--output", str(report)])
        if pages:
            kinds = zip(("--markdown", "--html"), map(artifacts.report, ("md", "html")), strict=True)
            render.main(["--report", str(report), *(str(part) for pair in kinds for part in pair)])
        vouch(root, artifacts)
        files.write_text(root / artifacts.bom(), schema.text(bom.of_tree(REPOSITORY, root, artifacts)))
        vouch(root, artifacts)


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
