"""With --json standard output is one document by the command's published schema, of a command that fails too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deberta.host.cli import cluster, development, explain, output, preparation, reproduce  # noqa: F401  # all commands
from deberta.host.cli.command import COMMANDS
from tests import verify_helpers
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace, error_line

SCHEMAS = REPOSITORY / "docs/schemas"
CASE = ("--bs", "8", "--version", "match", "--backend", "cpu")
ROWS = ("--bs", "8", "--rows", "4")

# task: the command line after it, and its exit code
LINES: dict[str, tuple[tuple[str, ...], int]] = {
    "acceptance": (("--backend", "cpu", "--bs", "8", "--loops", "2", "--require", "accepted"), 6),
    "check-fp16": (ROWS, 0),
    "cluster-plan": (("plan", "--fps", "5", "--bs", "8", "--devices", "1,2"), 0),
    "compare": (("onnx", "cpu", *ROWS), 0),
    "diff": (("latest", "latest", "--backend", "cpu", "--require", "no-worse"), 6),  # of two loops
    "doctor": (("--backend", "cpu"), 0),
    "evaluate": (CASE, 0),
    "explain": (("evaluate", *CASE), 0),
    "lint-onnx": ((), 0),
    "perf": (("--bs", "8", "--loops", "2", "--backend", "cpu"), 0),
    "predict": (("--premise", "A boat.", "--hypothesis", "A ship.", "--backend", "cpu"), 0),
    "status": ((), 0),
    "verify": (("--backend", "cpu"), 0),
}


@pytest.fixture(name="workspace", scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return verify_helpers.accepted(tmp_path_factory).copy(tmp_path_factory.mktemp("json") / "workspace")


def document(done: subprocess.CompletedProcess[str], task: str) -> Any:
    """The one line on standard output, by the published schema."""
    assert done.stdout.endswith("\n") and done.stdout.count("\n") == 1, done.stdout + done.stderr
    content = json.loads(done.stdout)
    schema = json.loads((SCHEMAS / f"{task}.schema.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(content)
    return content


def test_the_published_schemas_are_the_codes() -> None:
    published = {path.name: json.loads(path.read_bytes()) for path in SCHEMAS.iterdir()}
    assert published == {f"{task}.schema.json": output.json_schema(task) for task in output.DOCUMENTS}
    for schema in published.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_command_with_a_document_is_tried() -> None:
    documents = {*output.DOCUMENTS} - {"error"}
    assert {name for name, task in COMMANDS.items() if "json" in task.options} == documents - {"cluster-plan"}
    assert set(LINES) == documents - {"cluster"}  # which takes a scheduler


@pytest.mark.parametrize("task", LINES)
def test_a_document_and_nothing_else(workspace: Workspace, task: str) -> None:
    arguments, code = LINES[task]
    done = workspace.run(task.replace("-plan", ""), *arguments, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    content = document(done, task)
    if task == "acceptance":
        assert content["verdict"] == "checked" and content["summary"].startswith(
            "checked (cpu, 2 loops, small)  M 98.44"
        )
        assert error_line(done.stderr).startswith("error: --require accepted: the verdict is checked (backend cpu")
    if task == "evaluate":
        assert [(cell["rows"], cell["lengths"]) for cell in content["evaluations"]] == [(64, [256])]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("evaluate", "--version", "no", "--json"), 2, "--version 'no' is not one of"),
        (("verify", "--acceptance", "no", "--json"), 3, "has no acceptance 'no'"),
        (("evaluate", *CASE, "--json", "--dry"), 2, "--json and --dry"),
    ],
)
def test_an_error_is_a_document_too(workspace: Workspace, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = workspace.run(*arguments)
    error = document(done, "error")["error"]
    assert (done.returncode, error["exit_code"]) == (code, code) and says in error["message"]
    assert error_line(done.stderr) == f"error: {error['message']}\n"


def test_refused_by_its_gate_it_is_shown_all_the_same(workspace: Workspace, tmp_path: Path) -> None:
    done = workspace.run("compare", "onnx", "cpu", *ROWS, "--tolerance", "1e-12", "--json")
    content = document(done, "compare")
    assert done.returncode == 6 and not content["passed"] and content["problems"]
    assert error_line(done.stderr).startswith("error: onnx and cpu differ: ")
