"""What the command line says around the tasks: the name as it was typed, the list, help, suggestions, completion."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from invoke.exceptions import ParseError

from deberta import __version__
from deberta.host.cli.command import COMMANDS
from deberta.host.program import command_line, completion
from deberta.host.program.command_line import STARTED_AS, typed_name
from deberta.host.run import messages
from tests.in_process import run_invoke
from tests.mnli_helpers import REPOSITORY

OURS = {**os.environ, STARTED_AS: "./inv"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_invoke(arguments, REPOSITORY, OURS)


def refused(*arguments: str) -> str:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr.strip()


def test_every_task_is_in_one_group_and_fits_a_line() -> None:
    grouped = [name for names in command_line.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(COMMANDS)
    assert len(grouped) == len(set(grouped))
    for name in grouped:
        assert len(command_line.summary(COMMANDS[name])) <= 80 - 15, name


@pytest.mark.parametrize("arguments", [[], ["-l"], ["--list"], ["-l", "--list-format", "nested"]])
def test_the_list_of_tasks(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    if not arguments:  # what runs here is said too
        assert lines[0].startswith("can run now: ") and lines[1] == ""
        del lines[:2]
    assert lines[0] == "set up:" and lines[-1].endswith("To begin with: ./inv demo")
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(COMMANDS)


def test_the_version_is_ours_and_a_task_may_have_one_of_its_own() -> None:
    assert run("--version").stdout.startswith(f"deberta-ascend {__version__} (invoke ")
    assert "dev_mismatched.tsv" in run("--dry", "preprocess", "--version", "mismatch", "--profile", "demo").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evalute"], "No idea what 'evalute' is! Did you mean evaluate? See: ./inv --list"),
        (["--help", "evalute"], "No idea what 'evalute' is! Did you mean evaluate? See: ./inv --list"),
        (["perf", "--lops", "5"], "No idea what '--lops' is! Did you mean --loops? See: ./inv --help perf"),
        (["--vershon"], "No idea what '--vershon' is! Did you mean --version? See: ./inv --list"),
        (["xyzzy\x1b[1m"], "No idea what 'xyzzy\\x1b[1m' is! See: ./inv --list"),
        (["-T", "x"], "invalid literal for int() with base 10: 'x'"),
        (["--print-completion-script", "csh"], "there is no completion for 'csh', only for: bash, zsh, fish"),
    ],
)
def test_a_command_line_that_is_refused(arguments: list[str], message: str) -> None:
    assert refused(*arguments) == message


def test_a_settings_file_that_is_missing_is_named() -> None:
    done = run("-f", "nowhere.yaml", "doctor")
    assert (done.returncode, done.stdout) == (3, "") and done.stderr.startswith("error: nowhere.yaml is missing")


def test_an_option_without_its_value_and_a_missing_argument_name_what_they_are() -> None:
    assert "Flag --loops needed value" in refused("perf", "--loops")
    assert "'side-b'" in refused("compare", "pytorch")


def test_help_has_what_is_required_first_and_every_default() -> None:
    lines = run("--help", "add-profile").stdout.splitlines()
    assert lines[0] == "Usage: ./inv add-profile NAME --model MODEL [options]"
    required, options = lines.index("Required:"), lines.index("Options:")
    assert required < options and any("--model MODEL" in line for line in lines[required:options])
    text = " ".join(run("--help", "perf").stdout.split())
    for entry in COMMANDS["perf"].options.values():
        assert not entry.default or f"(default: {entry.default})" in text
    assert run("compare", "--help").stdout == run("--help", "compare").stdout
    assert run("explain", "-h").stdout.startswith("Usage: ./inv explain TASK [options]\n")


def test_the_name_as_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a project"
    folder.mkdir()
    script = folder / "inv"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert typed_name("./inv") == "./inv" and typed_name("inv") == "./inv"  # the second is `sh inv`
    assert typed_name(str(script)) == shlex.quote(str(script)) != str(script)
    assert typed_name("invoke") == typed_name("/x/invoke/__main__.py") == "invoke"
    monkeypatch.setenv("PATH", str(folder))
    assert typed_name(str(script)) == typed_name("./inv") == typed_name("inv") == "inv"
    script.chmod(0o644)
    assert typed_name("./inv") == "sh ./inv"


def test_a_hint_begins_as_the_program_was_started(tmp_path: Path) -> None:
    settings = tmp_path / "my settings.yaml"
    settings.write_text("profile: demo\n")
    hint = "nothing to fetch. Run: {} demo\n"
    for name in ("./inv", "inv", "/a/b/inv"):
        line = ["--search-root", str(REPOSITORY), "fetch", "--profile", "demo"]
        done = run_invoke(line, tmp_path, {**os.environ, STARTED_AS: name})
        assert done.stderr.endswith(hint.format(name))
    done = run_invoke(["--search-root", ".", "-f", str(settings), "fetch"], REPOSITORY, os.environ)
    assert done.stderr.endswith(hint.format(f"invoke --search-root . -f '{settings}'"))


def test_only_commands_are_taken_for_hints() -> None:
    messages.start("./inv", COMMANDS)
    try:
        same = "invoke.yaml, INVOKE_X, invoke and docker, invoke demos, reinvoke demo"
        assert messages.as_started(same) == same
        assert messages.as_started("Run: invoke build-om --force; `invoke demo`, invoke --help TASK") == (
            "Run: ./inv build-om --force; `./inv demo`, ./inv --help TASK"
        )
    finally:
        messages.start("invoke", ())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("evalu", ["evaluate"]),
        ("./inv evalu", ["evaluate"]),
        ("-f x.yaml ex", ["explain", "export-onnx"]),
        ("--vers", ["--version"]),
        ("evaluate --versi", ["--version"]),
        ("evaluate --version ", ["match", "mismatch"]),
        ("evaluate -s mis", ["mismatch"]),
        ("evaluate --profile ", ["demo", "mnli"]),
        ("evaluate --msame ", []),
        ("compare py", ["pytorch"]),
        ("explain per", ["perf"]),
        ("explain perf --loo", ["--loops"]),
        ("adopt ", []),
    ],
)
def test_completion(line: str, wanted: list[str]) -> None:
    assert completion.candidates(line, ["--version", "--help"], ["mnli", "demo"]) == wanted


ASKED = {
    "bash": """
        eval "$(./inv --print-completion-script bash)"
        complete -p inv >/dev/null
        for words in "./inv evaluate --version mis" "inv compare pytor"; do
            read -ra COMP_WORDS <<<"$words"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _deberta_ascend; echo "${COMPREPLY[*]}"
        done""",
    "zsh": """
        compdef() { : }; compadd() { print -r -- ${(P)2} }
        eval "$SCRIPT"
        words=(./inv evaluate --version mis); CURRENT=4; _deberta_ascend""",
    "fish": """
        printf %s $SCRIPT | source
        complete --do-complete './inv evaluate --version mis'""",
}


@pytest.mark.parametrize("shell", ASKED)
def test_a_shell_completes_with_its_script(shell: str) -> None:
    """In a process, which sources the script; bash's as the program prints it."""
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    variables = {"PATH": f"{REPOSITORY}:{os.environ['PATH']}", "SCRIPT": completion.script(shell)}
    done = subprocess.run(
        [shell, "-c", ASKED[shell]], cwd=REPOSITORY, env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert (done.stdout.split(), done.stderr) == (["mismatch", "pytorch"][: 1 + (shell == "bash")], "")


def test_there_is_a_script_for_each_shell() -> None:
    assert {*completion.SCRIPTS} == {*ASKED}
    with pytest.raises(ParseError):
        completion.script("csh")
