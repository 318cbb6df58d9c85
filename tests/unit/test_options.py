"""The tasks' options: one flag has one meaning, values are read once, and the page of commands is current."""

from __future__ import annotations

import ast
import inspect
import os
from pathlib import Path
from typing import Any

import pytest
from invoke.config import Config
from invoke.context import Context
from invoke.program import Program

import tasks
from deberta.core.errors import ConfigError
from deberta.host.cli.command import COMMANDS
from deberta.host.cli.options import OPTIONS
from tests import commands_page
from tests.in_process import run_invoke
from tests.pipeline_helpers import copy_demo

ROOT = Path(__file__).resolve().parents[2]
# Options that two fields read in two ways; no task takes both.
READ_TWICE = {"bs", "executor", "format", "model", "output", "path", "require"}


ON_ASCEND = [
    *("--dry", "perf", "--profile", "demo", "--backend", "ascend", "--soc-version", "Ascend310P3"),
    *("--executor", "local"),
]


def read(task: str, **typed: Any) -> Any:
    return COMMANDS[task].read(Context(Config()), {name.replace("_", "-"): value for name, value in typed.items()})


def test_the_collection_has_every_command_and_nothing_else() -> None:
    assert dict(tasks.namespace.tasks) == COMMANDS
    assert all(inspect.getdoc(command) for command in COMMANDS.values())


def test_a_short_flag_belongs_to_one_option_and_none_of_the_programs_own() -> None:
    own = {name for argument in Program().core_args() for name in argument.names if len(name) == 1}
    own |= {name for argument in Program().task_args() for name in argument.names if len(name) == 1}
    names: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for argument in command.get_arguments():
            flags = [name for name in argument.names if len(name) == 1 and not argument.positional]
            assert len(argument.names) <= 2 and not own.intersection(flags)
            for short in flags:
                names.setdefault(short, set()).add(argument.names[0])
    assert {short: len(options) for short, options in names.items()} == dict.fromkeys(names, 1)
    assert names["b"] == {"bs"} and names["s"] == {"version"} and names["v"] == {"verbose"}


def test_an_option_has_one_meaning_in_every_task() -> None:
    shared = [option.name for option in OPTIONS.values()]
    assert {name for name in shared if shared.count(name) > 1} == READ_TWICE
    for command in COMMANDS.values():
        names = [option.name for option in [*command.options.values(), *command.unread]]
        assert len(names) == len(set(names))
        for field, option in command.options.items():
            assert (option.meaning, option.short, option.choices) == (
                OPTIONS[field].meaning,
                OPTIONS[field].short,
                OPTIONS[field].choices,
            )


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_gives_choices_and_defaults(name: str) -> None:
    for option in COMMANDS[name].options.values():
        assert option.meaning and all(choice in option.help for choice in option.choices)
        assert option.default is None or f"(default: {option.default})" in option.help


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_task_looks_only_at_options_that_it_takes(name: str) -> None:
    nodes = ast.walk(ast.parse(inspect.getsource(COMMANDS[name].run)))
    uses = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "options"}
    assert uses <= {*COMMANDS[name].options, "typed", "surroundings"}


def test_values_are_read_once() -> None:
    options = read("infer", version="match", bs="8", buckets="32,64,256", limit="5")
    assert (options.bs, options.version, options.buckets, options.limit) == (8, "match", (32, 64, 256), 5)
    assert (options.precision, options.device, options.dry, options.force) == ("fp32", (), False, False)
    assert set(options.typed) == {"version", "bs", "buckets", "limit"}
    assert read("acceptance", bs="8, 1,8").sizes == (1, 8) and read("acceptance").sizes == ()
    assert read("reproduce").sizes == (1, 8)
    assert read("perf").version == "match" and read("preprocess").version == ""


@pytest.mark.parametrize(
    ("task", "typed", "message"),
    [
        ("infer", {}, "--version is needed: match or mismatch"),
        ("evaluate", {"version": "x"}, "--version 'x' is not one of: match, mismatch"),
        ("preprocess", {"bs": "x"}, "--bs 'x' is not a whole number from 1 to 1024"),
        ("preprocess", {"limit": "0"}, "--limit '0' is not a whole number from 1 to 1000000000"),
        ("perf", {"loops": "101"}, "--loops '101' is not a whole number from 2 to 100"),
        ("perf", {"backend": "gpu"}, "--backend 'gpu' is not one of: auto, ascend, cpu"),
        ("report", {"executor": "ssh"}, "--executor 'ssh' is not one of: auto, docker, local"),
        ("acceptance", {"bs": "1,"}, "--bs '' is not a whole number"),
        ("verify", {"seed": "-1"}, "--seed '-1' is not a whole number from 0 to 4294967295"),
        ("infer", {"version": "match", "buckets": ""}, "--buckets is given without a value"),
    ],
)
def test_a_bad_value_is_an_error_of_ours(task: str, typed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(task, **typed)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch", "--dry", "--from", "here"], "from {0}/here into"),
        (["adopt", "../nowhere"], "{1}/nowhere is no folder"),
        (["verify", "--path", "~/nowhere"], "{0}/home/nowhere is no folder"),
        (["sign", "--dry", "--new-key", "a.pem"], "would make {0}/a.pem and {0}/a.pem.pub"),
        (["reproduce", "--backend", "cpu", "--compare", "a,../b"], "{0}/a,{1}/b is not two folders"),
        (["test", "--dry", "--path", "test_a.py"], " {0}/test_a.py "),
        (["test", "--dry"], " tests "),
        (["bench", "--dry", "--lengths", "a.txt"], "--lengths {0}/a.txt"),
        (["add-profile", "mine", "--model", "m", "--data", "a.csv", "--executor", "local"], "{0}/m"),
        ([*ON_ASCEND, "--msame", "m"], "{0}/m --model"),
    ],
)
def test_a_path_is_relative_to_where_the_user_stands(tmp_path: Path, arguments: list[str], message: str) -> None:
    folder = tmp_path / "b c"
    folder.mkdir()
    copy_demo(tmp_path / "workspace")
    variables = {**os.environ, "HOME": str(folder / "home"), "INVOKE_WORKSPACE": str(tmp_path / "workspace")}
    done = run_invoke(["--search-root", str(ROOT), *arguments], folder, variables)
    output = (done.stdout + done.stderr).replace("'", "")
    assert message.format(folder, tmp_path) in output, output


@pytest.mark.parametrize("arguments", [["evaluate", "--=X"], ["evaluate", "--no-such=X"], ["--=X"]])
def test_explain_refuses_an_option_that_no_task_has(arguments: list[str]) -> None:
    done = run_invoke(["explain", *arguments], ROOT, os.environ)
    assert done.returncode != 0 and "No idea what" in done.stderr and done.stdout == ""


def test_the_page_of_commands_is_current() -> None:
    assert (ROOT / "docs/commands.md").read_text(encoding="utf-8") == commands_page.page()
