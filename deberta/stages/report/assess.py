"""Report of a profile's runs: every evaluation counted again from its logits, compared, and judged by the gates.

The job, a JSON file that the host writes, names every file that is read; its paths are relative to the working
directory. `body` depends on pins and inputs alone, and its SHA-256 is of its canonical JSON (RFC 8785); times, tools
and machines are in `measured`. The same job and files give the same bytes. A failed verdict is no error here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import resource
import statistics as means
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import rfc8785

from deberta.ascend import timing
from deberta.core import files
from deberta.core.contract import RUNNERS
from deberta.core.errors import DataError, MissingError, StageError, run_stage
from deberta.core.progress import Progress
from deberta.stages.inference import postprocess
from deberta.stages.report import cells as assess_cells
from deberta.stages.report import gates, intervals
from deberta.stages.report.cells import Cell, Version

FORMAT = 1
PURPOSES = ("acceptance", "report")
SCHEMA = Path(__file__).with_name("report.schema.json")
AVERAGE_TOLERANCE = 1e-3  # the log's average beside its times, which have six digits

Json = Mapping[str, Any]
_JOB = {
    **{"format": int, "purpose": str, "profile": dict, "backend": str, "limit": int, "loops": int},
    **{"batch_sizes": list, "versions": list, "data": dict, "sentinels": dict, "references": dict, "cells": list},
    **{"performances": list, "inputs": dict, "artifacts": dict, "gates": dict, "published": list, "note": str},
    **{"not_accepted": list, "measured": dict},
}


def read_job(path: Path) -> dict[str, Any]:
    """Raises MissingError; DataError if it is not a job of this format."""
    job = _read_json(path, "Run: invoke report")
    wrong = [name for name, kind in _JOB.items() if not isinstance(job.get(name), kind)]
    if wrong or job["format"] != FORMAT or job["purpose"] not in PURPOSES:
        said = f"lacks {', '.join(wrong)}" if wrong else f"is of format {job['format']}, purpose {job['purpose']}"
        raise DataError(f"{path} is not the job of a report of format {FORMAT}: it {said}. Run: invoke report")
    return job


def assess(job: Json, root: Path = Path()) -> dict[str, Any]:
    """The report; the job's paths are relative to `root`. Reads, and writes nothing.

    Raises MissingError if nothing was measured or a named file is missing, DataError if one does not hold what it
    should, StageError if the report does not fit its own schema.
    """
    if not (job["cells"] or job["performances"] or job["measured"].get("buckets_markdown")):
        raise MissingError(f"nothing has been measured for profile {job['profile']['name']}. Run: invoke evaluate")
    for kind, keys in (("cells", ("batch_size", "version")), ("performances", ("batch_size", "version", "runner"))):
        places = [tuple(entry[key] for key in keys) for entry in job[kind]]
        if len(set(places)) < len(places):
            raise DataError(f"the job names one of its {kind} twice. Run: invoke report")
    body = make_body(job, root)
    performances = sorted(
        (performance(entry, root) for entry in job["performances"]),
        key=lambda run: (run["batch_size"], run["version"], RUNNERS.index(run["runner"])),
    )
    report = {
        "format": FORMAT,
        "title": f"DeBERTa on MNLI: profile {job['profile']['name']}, backend {job['backend']}",
        "body": body,
        "body_sha256": digest(body),
        "verdict": gates.judge(job, body, performances) if job["purpose"] == "acceptance" else None,
        "measured": {
            **job["measured"],
            "performances": performances,
            "published": job["published"],
            "note": job["note"],
        },
    }
    check(report)
    return report


def digest(body: Json) -> str:
    """SHA-256, in hexadecimal, of the body's canonical JSON: RFC 8785."""
    return hashlib.sha256(rfc8785.dumps(dict(body))).hexdigest()


def check(report: Json) -> None:
    """Raise StageError unless the report fits deberta/report.schema.json."""
    schema = json.loads(SCHEMA.read_bytes())
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(report))
    if error is not None:
        raise StageError(f"the report does not fit {SCHEMA.name}, at {error.json_path}: {error.message[:300]}")


def make_body(job: Json, root: Path) -> dict[str, Any]:
    """What depends on pins and inputs alone."""
    limit = job["limit"]
    versions = {name: _version(job, name, root) for name in _versions(job)}
    cells: list[Cell] = []
    progress = Progress("recount", len(job["cells"]), "evaluations")
    for entry in job["cells"]:
        name = entry["version"]
        cells.append(assess_cells.recount(entry, root / job["data"][name], versions[name].gold, limit, root))
        progress.update(len(cells))
    cells.sort(key=lambda cell: (cell.batch_size, cell.version))
    present = {name: [cell for cell in cells if cell.version == name and not cell.origin] for name in versions}
    return {
        "profile": job["profile"]["name"],
        "backend": job["backend"],
        "published": job["profile"]["published"],
        "limit": limit,
        "labels": job["profile"]["labels"],
        "versions": job["versions"],
        "batch_sizes": job["batch_sizes"],
        "inputs": job["inputs"],
        "artifacts": job["artifacts"],
        "sentinels": {
            name: _read_json(root / path, "Run: invoke acceptance") for name, path in job["sentinels"].items()
        },
        "reference": {
            name: assess_cells.reference_body(version.reference, version)
            for name, version in versions.items()
            if version.reference is not None
        },
        "cells": [assess_cells.cell_body(cell, versions[cell.version]) for cell in cells],
        "agreement": {name: assess_cells.agreement(found, versions[name]) for name, found in present.items() if found},
    }


def _versions(job: Json) -> list[str]:
    """Those whose rows are needed, in the job's order."""
    return [
        name
        for name in job["data"]
        if name in job["references"] or any(entry["version"] == name for entry in job["cells"])
    ]


def _version(job: Json, name: str, root: Path) -> Version:
    gold = postprocess.read_gold(root / job["data"][name], job["limit"], job["profile"]["rows"].get(name, 0))
    path = job["references"].get(name)
    reference = assess_cells.read_reference(root / path, len(gold)) if path else None
    # Without a margin nothing is a near tie.
    return Version(name, gold, reference, job["gates"].get(gates.NEAR_TIE_MARGIN, 0))


def performance(entry: Json, root: Path = Path()) -> dict[str, Any]:
    """A performance run from its log. fps and average are the log's own, without its warm-up.

    msame's first time is its warm-up; ais_bench leaves its own out. Raises MissingError; DataError if the log is not
    whole, or its average is not that of its times.
    """
    path = root / entry["log"]
    if not path.is_file():
        again = f"invoke perf --bs {entry['batch_size']} --version {entry['version']} --force"
        raise MissingError(f"{path} is missing. Run: {again}")
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        run = timing.parse(text, entry["runner"], entry["batch_size"])
        latency = intervals.latency(run.counted_ms)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    average = means.fmean(run.counted_ms)
    if not math.isclose(run.average_ms, average, rel_tol=AVERAGE_TOLERANCE):
        raise DataError(
            f"{path}: its average is {run.average_ms} ms, and {average:.6g} ms by its times: it was changed."
            f" Run: invoke perf --bs {entry['batch_size']} --version {entry['version']} --force"
        )
    return {
        **{name: entry[name] for name in ("batch_size", "version", "runner", "origin")},
        **{name: entry[name] for name in ("place", "pinned") if name in entry},
        "loops": len(run.times_ms),
        "fps": run.fps,
        "average_ms": run.average_ms,
        "percentiles_ms": latency.percentiles_ms,
        "interval_ms": list(latency.interval_ms) if latency.interval_ms else None,
        "spread": latency.spread,
        "warning": latency.warning,
        "times_ms": list(run.times_ms),
    }


def _read_json(path: Path, again: str) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(f"{path} is missing. {again}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Remove it. {again}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a JSON object. Remove it. {again}")
    return content


def _json(content: Json) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.report.assess", description=__doc__)
    parser.add_argument("--job", type=Path, required=True, help="report_job.json, which names all files to read")
    parser.add_argument("--output", type=Path, required=True, help="report.json")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    report = assess(read_job(options.job))
    files.write_text(options.output, _json(report))
    verdict = report["verdict"]["verdict"] if report["verdict"] else "no verdict was asked for"
    cells, runs = len(report["body"]["cells"]), len(report["measured"]["performances"])
    print(f"{cells} evaluations counted again, {runs} performance runs: {verdict}: {options.output}")
    if options.summary:
        summary = {
            "verdict": report["verdict"] and report["verdict"]["verdict"],
            "body_sha256": report["body_sha256"],
            "evaluations": cells,
            "performances": runs,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        files.write_text(options.summary, _json(summary))


if __name__ == "__main__":
    sys.exit(run_stage(main))
