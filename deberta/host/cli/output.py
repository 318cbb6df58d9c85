"""What a command prints as its result: text, or with --json one document by a published schema."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import Any, Optional

import msgspec

from deberta.core.differences import ReportDifference
from deberta.core.errors import ConfigError
from deberta.core.progress import GREEN, RED, YELLOW, write
from deberta.core.schema import Schema
from deberta.host.cli.options import Options
from deberta.host.cluster.capacity import CapacityDocument
from deberta.host.cluster.show import ClusterDocument
from deberta.host.prediction import prediction
from deberta.host.report import figures, findings, verification
from deberta.host.run.messages import as_started
from deberta.host.workflows import conclusion, explain, readiness, status


class Failure(Schema):
    """The line that standard error has too, and the exit code."""

    message: str
    exit_code: int


class ErrorDocument(Schema):
    """What --json prints of any command that fails before it has a result."""

    error: Failure


COLOURS = {
    **dict.fromkeys(("accepted", "verified", "ok"), GREEN),
    **dict.fromkeys(("checked", "not judged"), YELLOW),
    **dict.fromkeys(("failed", "missing", "wrong"), RED),
}
_STATE = re.compile(rf" *(?:verdict: )?({'|'.join(COLOURS)})(?=[ :]|$)")

# By task: what --json prints. docs/schemas/<task>.schema.json are made of these by `python -m deberta.host.cli.output`.
DOCUMENTS: Mapping[str, type[Schema]] = {
    "acceptance": conclusion.AcceptanceDocument,
    "cluster": ClusterDocument,
    "cluster-plan": CapacityDocument,
    "check-fp16": findings.CheckFp16Document,
    "compare": findings.CompareDocument,
    "diff": ReportDifference,
    "doctor": readiness.Diagnosis,
    "error": ErrorDocument,
    "evaluate": figures.EvaluateDocument,
    "explain": explain.ExplainDocument,
    "lint-onnx": findings.LintDocument,
    "perf": figures.PerfDocument,
    "predict": prediction.PredictDocument,
    "status": status.Status,
    "verify": verification.VerifyDocument,
}


def refuse_two_forms(options: Options) -> None:
    """Raise ConfigError for --json together with --format."""
    if options.json and "format" in options.typed:
        raise ConfigError("--json and --format say in two ways what to print. Give one of them")


def show(options: Options, document: Schema, text: str) -> None:
    """Print a command's result on standard output. Raises OSError if that is closed."""
    if options.document is None:
        for line in as_started(text).split("\n"):
            write(sys.stdout, (f"{line}\n", _style(line)))
        sys.stdout.flush()
        return
    stream, options.document.shown = options.document.stream or sys.stdout, True
    stream.write(_line(document))
    stream.flush()


def add(options: Options, document: Optional[Schema]) -> None:
    """Print a document with --json, where the text was printed as it came about; none in a dry run."""
    if options.document is not None and document is not None:
        show(options, document, "")


def _style(line: str) -> str:
    """The colour of a line that begins with a verdict or a state, on a terminal."""
    words = _STATE.match(line)
    return COLOURS[words[1]] if words else ""


def error(message: str, code: int) -> str:
    """The document of a command that failed."""
    return _line(ErrorDocument(error=Failure(message=message, exit_code=code)))


def _line(document: Schema) -> str:
    return msgspec.json.encode(document).decode() + "\n"


def json_schema(task: str) -> dict[str, Any]:
    """The schema of a task's document, JSON Schema draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:deberta-ascend:{task}:v1",
        "title": f"What {task} --json prints",
        **msgspec.json.schema(DOCUMENTS[task]),
    }


if __name__ == "__main__":
    for name in DOCUMENTS:
        with open(f"docs/schemas/{name}.schema.json", "w", encoding="utf-8") as file:
            file.write(json.dumps(json_schema(name), indent=2) + "\n")
