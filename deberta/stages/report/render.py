"""report.json to report.md and report.html, for people. Nothing is computed here that report.json does not hold."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from deberta.core import files, schema
from deberta.core.contract import LANGUAGES
from deberta.core.errors import DataError, run_stage, some, visible
from deberta.core.report import Report
from deberta.stages import arguments
from deberta.stages.report import canonical
from deberta.stages.report.markdown import markdown
from deberta.stages.report.page import html
from deberta.stages.report.phrases import Phrases

AGAIN = "Run: invoke report, or invoke acceptance"


def read(path: Path) -> Report:
    """A report.json whose parts are there and agree with each other. Raises MissingError and DataError.

    Refused: another format, a body that is not the one of body_sha256, and a verdict that says more than its gates.
    """
    report = schema.read(path, Report, AGAIN)
    try:
        digest = canonical.digest(report.body)
    except ValueError as error:  # a number that canonical JSON has no form for
        raise DataError(f"{path}: its body has no canonical form: {error}. {AGAIN}") from None
    if digest != report.body_sha256:
        raise DataError(f"{path}: the body's SHA-256 is {digest}, not {report.body_sha256}: it was changed. {AGAIN}")
    _check_verdict(path, report)
    return report


def _check_verdict(path: Path, report: Report) -> None:
    """Nothing below an acceptance may be shown as one."""
    verdict = report.verdict
    if verdict is None or verdict.verdict == "failed":
        return
    against = [f"{gate.gate} failed" for gate in verdict.gates if gate.status == "failed"]
    if verdict.verdict == "accepted":
        against += ["it is of the first rows only"] if report.body.limit else []
        against += ["no NPU was used"] if report.body.backend != "ascend" else []
    if against:
        raise DataError(f"{path} says {verdict.verdict}, but: {some(against)}. {AGAIN}")


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "summary",
        report=arguments.file("report.json, as the assess stage wrote it"),
        markdown=arguments.file("report.md, to be written"),
        html=arguments.file("report.html, to be written: one file, no script"),
        language=arguments.Argument("of both", arguments.one_of(LANGUAGES), default=LANGUAGES[0]),
    )
    report = read(options.report)
    beside = options.report.resolve().parent == options.html.resolve().parent
    phrases = Phrases(options.language)
    page = html(report, options.report.name if beside else "", phrases)
    pages = {options.markdown: markdown(report, phrases), options.html: page}
    pages = {path: visible(text) for path, text in pages.items()}
    files.write_texts(pages)
    sizes = {os.fspath(path): len(text.encode("utf-8")) for path, text in pages.items()}
    arguments.write_summary(options.summary, {"bytes": sizes})
    print(f"{options.html}: {report.verdict.verdict if report.verdict else 'no verdict'}")


if __name__ == "__main__":
    sys.exit(run_stage(main))
