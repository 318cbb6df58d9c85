"""Every command that a message of ours names can be run: the task is there, and takes the options."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Iterator, NamedTuple

import pytest

import tasks as tasks_file

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "deberta").rglob("*.py"))
COMMAND = re.compile(r"\binvoke (?P<task>[a-z][a-z0-9-]*)(?P<more>[^;.,()`\n]*)")
OPTION = re.compile(r"(?<= )--[a-z][a-z-]*")

# The host completes a stage's hints with the options of the run, so these stand there as they are or with --force.
COMPLETED = {"export-onnx", "preprocess", "build-om", "infer", "postprocess", "evaluate", "perf", "report"}
UNCOMPLETED = {"diff", "fetch", "doctor", "acceptance", "verify", "sign"}
# A stage about many runs says which one, of int8 too; one that makes a key says how to.
OF_RUN = ["--bs", "--version", "--force"]
OF_INT8 = ["--bs", "--version", "--precision", "--force"]
OF_THEIR_OWN = {"assess.py": (OF_RUN, OF_INT8), "cells.py": (OF_RUN,), "sign.py": (["--new-key"],)}
SHOWN_BY_STAGES = [
    *(ROOT / "deberta" / name for name in ("core/mnli.py", "ascend/msame.py")),
    *sorted(ROOT.glob("deberta/stages/*/*.py")),
]


class Hint(NamedTuple):
    where: str
    task: str
    more: str  # what follows in the same sentence; a placeholder of an f-string is {}


def tasks() -> dict[str, set[str]]:
    """Each task with its options, as a user writes them."""
    return {
        name: {f"--{option.name}" for option in task.get_arguments()}
        for name, task in tasks_file.namespace.tasks.items()
    }


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Each string of a file with its line, an f-string as one text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            pieces = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, "".join(pieces)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.lineno, node.value


def hints(path: Path) -> list[Hint]:
    return [
        Hint(f"{path.relative_to(ROOT)}:{line}", match["task"], match["more"])
        for line, text in texts(path)
        for match in COMMAND.finditer(text)
    ]


def test_there_is_something_to_look_at() -> None:
    known = tasks()
    assert COMPLETED | UNCOMPLETED | {"demo", "finetune", "perf"} <= set(known)
    assert {"--from", "--accept-new"} <= known["fetch"] and "--force" not in known["fetch"]
    found = [hint for path in SOURCES for hint in hints(path)]
    assert len(found) > 20 and any(OPTION.search(hint.more) for hint in found)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_named_can_be_run(path: Path) -> None:
    known = tasks()
    for hint in hints(path):
        assert hint.task in known, f"{hint.where}: there is no task {hint.task}"
        unknown = set(OPTION.findall(hint.more)) - known[hint.task]
        assert not unknown, f"{hint.where}: {hint.task} has no option {', '.join(unknown)}"


@pytest.mark.parametrize("path", SHOWN_BY_STAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_stages_leave_the_options_of_the_run_to_the_host(path: Path) -> None:
    for hint in hints(path):
        assert hint.task in COMPLETED | UNCOMPLETED, f"{hint.where}: the host cannot complete invoke {hint.task}"
        options = OPTION.findall(hint.more)
        allowed = ([], ["--force"]) if hint.task in COMPLETED else ([],)
        if path.name in OF_THEIR_OWN:
            allowed = (*allowed, *OF_THEIR_OWN[path.name])
        assert options in allowed, f"{hint.where}: {hint.task} with {' '.join(options)}"
