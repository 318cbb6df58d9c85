"""report.json to report.md and report.html, for people. Nothing is computed here that report.json does not hold."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

import jsonschema
import rfc8785

from deberta.core import files
from deberta.core.errors import DataError, MissingError, run_stage, some
from deberta.stages.report.markdown import markdown
from deberta.stages.report.page import html
from deberta.stages.report.tables import Report

FORMAT = 1
SCHEMA = Path(__file__).with_name("report.schema.json")
AGAIN = "Run: invoke report, or invoke acceptance"


def read(path: Path) -> Report:
    """A report.json whose parts are there and agree with each other. Raises MissingError and DataError.

    Refused: another format, a body that is not the one of body_sha256, and a verdict that says more than its gates.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. {AGAIN}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). {AGAIN}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise DataError(f"{path} is not a report of format {FORMAT} (its format: {found}). {AGAIN}")
    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_bytes()))
    unfit = jsonschema.exceptions.best_match(schema.iter_errors(content))
    if unfit is not None:
        raise DataError(f"{path} does not fit {SCHEMA.name}, at {unfit.json_path}: {unfit.message[:300]}. {AGAIN}")
    report: Report = content
    _check_body(path, report)
    _check_verdict(path, report)
    return report


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_body(path: Path, report: Report) -> None:
    try:
        digest = sha256(rfc8785.dumps(report["body"])).hexdigest()
    except rfc8785.CanonicalizationError as error:
        raise DataError(f"{path}: the body has no canonical form ({error}). {AGAIN}") from None
    if digest != report["body_sha256"]:
        raise DataError(f"{path}: the body's SHA-256 is {digest}, not {report['body_sha256']}: it was changed. {AGAIN}")


def _check_verdict(path: Path, report: Report) -> None:
    """Nothing below an acceptance may be shown as one."""
    verdict = report["verdict"]
    if verdict is None:
        return
    reasons = list(verdict["why_not_accepted"])
    reasons += ["it is of the first rows only"] if report["body"]["limit"] else []
    reasons += ["no NPU was used"] if report["body"]["backend"] != "ascend" else []
    failed = [f"{gate['gate']} failed" for gate in verdict["gates"] if gate["status"] == "failed"]
    against = [*failed, *(reasons if verdict["verdict"] == "accepted" else [])]
    if verdict["verdict"] != "failed" and against:
        raise DataError(f"{path} says {verdict['verdict']}, but: {some(against)}. {AGAIN}")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.report.render", description=__doc__)
    parser.add_argument("--report", type=Path, required=True, help="report.json, as the assess stage wrote it")
    parser.add_argument("--markdown", type=Path, required=True, help="report.md, to be written")
    parser.add_argument("--html", type=Path, required=True, help="report.html, to be written: one file, no script")
    parser.add_argument("--summary", type=Path, help="write what was made to this JSON file")
    options = parser.parse_args(argv)
    report = read(options.report)
    beside = options.report.resolve().parent == options.html.resolve().parent
    made = {
        options.markdown: markdown(report),
        options.html: html(report, options.report.name if beside else ""),
    }
    with contextlib.ExitStack() as both:  # none is renamed before both are written
        for path, text in made.items():
            both.enter_context(files.new_file(path)).write_text(text, encoding="utf-8", newline="\n")
    if options.summary:
        counted = {os.fspath(path): len(text.encode("utf-8")) for path, text in made.items()}
        files.write_text(options.summary, json.dumps({"bytes": counted}, indent=2) + "\n")
    verdict = report["verdict"]
    print(f"{options.html}: {verdict['verdict'] if verdict else 'no verdict'}")


if __name__ == "__main__":
    sys.exit(run_stage(main))
