"""What a command prints as its result: text, or with --json one document by a published schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from deberta.core.schema import Schema
from deberta.host.cli.options import Options
from deberta.host.workflows import readiness

# By task: what --json prints. docs/schemas/<task>.schema.json are made of these by `python -m deberta.host.cli.output`.
DOCUMENTS: Mapping[str, type[Schema]] = {"doctor": readiness.Diagnosis}


def show(options: Options, document: Schema, text: str) -> None:
    """Print a command's result on standard output. Raises OSError if that is closed."""
    if options.document is None:
        print(text)
        return
    options.document.write(msgspec.json.encode(document).decode() + "\n")
    options.document.flush()


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
