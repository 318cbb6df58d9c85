"""Every command that a message of ours names runs when it is pasted, however the program was started."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from invoke.config import Config
from invoke.context import Context
from invoke.executor import Executor
from invoke.parser.context import ParserContext
from invoke.parser.parser import Parser

import tasks as tasks_file
from deberta.host.cli import settings_file
from deberta.host.cli.command import COMMANDS, Command
from deberta.host.cli.options import Options
from deberta.host.plan import profiles
from deberta.host.plan.plan import Case, Plan
from deberta.host.program.command_line import CommandProgram
from deberta.host.run import messages

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


@functools.cache
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


# What a placeholder stands for, by the option that it follows.
VALUES = {
    "--bs": "8",
    "--version": "match",
    "--profile": "demo",
    "--backend": "cpu",
    "--base": "export=IMAGE",
    "--platform": "linux/arm64",
}
CASE = Case(Plan(profiles.load("demo", settings_file.load(str(ROOT / "invoke.yaml"))["profiles"]), "cpu"), 8, "match")
STARTED = ("./inv", "'/a b/inv'", "invoke --search-root /a -f 'my settings.yaml'", "inv")

SPOKEN_OF = {
    "add-profile",
    "cluster",
    "diff",
    "wheelhouse",
}  # as commands that there are; what they need nobody else knows


class Dispatched(Exception):
    """A command line has reached its task, with options that could be read."""


def command_line(hint: Hint) -> str:
    """The command as a user sees it: of a stage's with the options of its run."""
    words, more = [], hint.more.split()
    if hint.task == "explain":
        words.append(more.pop(0))
    kinds = {f"--{option.name}": option.kind for option in COMMANDS[hint.task].options.values()}
    while more and more[0] in kinds:
        words.append(more.pop(0))
        if kinds[words[-1]] is not bool:
            value = more.pop(0)
            words.append(VALUES.get(words[-1], value) if "{}" in value else value)
    if hint.task in COMPLETED and words in ([], ["--force"]):
        return " ".join([CASE.commands[hint.task], *words])
    return " ".join(["invoke", hint.task, *words])


def test_every_command_reaches_its_task_as_it_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Command.read

    def read_and_stop(self: Command, c: Context, typed: Mapping[str, Any]) -> Options:
        raise Dispatched(self.name, read(self, c, typed))

    monkeypatch.setattr(Command, "read", read_and_stop)
    pasted = [hint for path in SOURCES for hint in hints(path) if hint.task not in SPOKEN_OF]
    lines = {command_line(hint) for hint in pasted}
    assert len(lines) > 25
    for line in sorted(lines):
        task, arguments = line.split()[1], shlex.split(line)[1:]
        of_task = ParserContext(task, args=COMMANDS[task].get_arguments())  # of all tasks the parser takes seconds
        contexts = Parser([of_task], CommandProgram().initial_context).parse_argv(arguments)
        with pytest.raises(Dispatched) as reached:
            Executor(tasks_file.namespace, Config()).execute(*contexts[1:])
        assert reached.value.args[0].replace("_", "-") == task
        for name in STARTED:
            messages.start(name, COMMANDS)
            shown = messages.as_started(f"it is missing. Run: {line}, or see `{line}`; then {line}")
            assert shown == f"it is missing. Run: {name} {' '.join(line.split()[1:])}, or see `{name} " + (
                f"{' '.join(line.split()[1:])}`; then {name} {' '.join(line.split()[1:])}"
            )
            assert shlex.split(shown.rpartition("; then ")[2]) == [*shlex.split(name), *arguments]
    messages.start("invoke", ())


@pytest.mark.parametrize("start", ["inv", "invoke", "ci-inv"])
def test_a_pasted_hint_runs_in_a_shell(start: str, tmp_path: Path) -> None:
    """In processes: the program as a user, plain invoke and the CI image start it, from another folder."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    if start == "ci-inv":
        text = (ROOT / "docker/ci-inv").read_text().replace("/opt/deberta-ascend/inv", str(ROOT / "inv"))
        typed, name = "inv", "inv"
        (tmp_path / "inv").write_text(text)
        (tmp_path / "inv").chmod(0o755)
    elif start == "inv":
        typed = name = shlex.quote(os.path.relpath(ROOT / "inv", folder))
    else:
        (tmp_path / "invoke").symlink_to(Path(sys.executable).with_name("invoke"))
        typed = name = f"invoke --search-root {ROOT}"
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["sh", "-c", line], cwd=folder, env=path, capture_output=True, text=True, check=False)

    refused = run(f"{typed} fetch --profile demo")
    assert refused.returncode == 2
    hint = refused.stderr.rpartition("Run: ")[2].strip()
    assert hint == f"{name} demo"
    assert run(f"{hint} --dry").returncode == 0


@pytest.mark.parametrize(
    ("task", "typed", "hint", "shown"),
    [
        ("doctor", {}, ". Run: invoke doctor", ""),
        ("acceptance", {"bs": "8"}, ". Run: invoke acceptance", ". Run the same command with --force"),
        ("acceptance", {"bs": "8", "force": True}, ". Run: invoke acceptance. Or not", ". Or not"),
        ("export-onnx", {"profile": "a"}, ". Run: invoke export-onnx --profile a --force", None),
        ("export-onnx", {"profile": "a", "force": True}, ". Run: invoke export-onnx --profile a --force", ""),
        ("perf", {"bs": "8"}, ". Run: invoke evaluate --bs 8", None),
        ("fetch", {}, ". Move it away and run: invoke fetch", None),
        ("fetch", {}, ". Run: invoke fetch --accept-new", None),
        ("sign", {"key": "a"}, ". Run: invoke sign --new-key PATH", None),
    ],
)
def test_a_hint_is_never_the_command_that_has_failed(
    task: str, typed: dict[str, Any], hint: str, shown: str | None
) -> None:
    assert COMMANDS[task].another_way(typed, f"it is wrong{hint}") == f"it is wrong{hint if shown is None else shown}"
