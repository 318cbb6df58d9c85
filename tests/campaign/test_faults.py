"""Faults of the environment: streams, terminals, settings, workspaces, disks and permissions.

An exit code from 2 to 6 (130 for a terminal that went), one line that names what is wrong, nothing half-written.
"""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invoke.config import Config

from deberta.ascend import runs
from deberta.core import files
from deberta.core.errors import DataError
from deberta.host.cli.settings import InvokeSettings
from tests import fake_cann, in_process, pipeline_helpers
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace

CASE = ("--bs", "4", "--version", "match")
SECONDS = 3.0  # that a command may take to refuse something


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return pipeline_helpers.make(tmp_path_factory.mktemp("faults") / "workspace")


# Streams


@pytest.mark.parametrize(
    ("redirection", "code", "problem"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (
            ">/dev/full",
            4,
            "error: the disk is full (standard output). Free some space, then run the same command again\n",
        ),
        ("| head -c 1 >/dev/null", 4, "error: nobody reads the output any more (standard output). "),
    ],
)
def test_a_stream_that_is_closed_full_or_gone(tiny: Workspace, redirection: str, code: int, problem: str) -> None:
    line = f"set -o pipefail; {shlex.join(tiny.command('export-onnx', '--dry'))} {redirection}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=REPOSITORY, env=pipeline_helpers.environment(), capture_output=True, text=True
    )
    # A pipe may take all before its reader goes.
    assert done.returncode in ({code, 0} if "|" in redirection else {code}), done.stderr
    assert done.stderr.startswith(problem if done.returncode else "") and done.stderr.count("\n") <= 1


def test_a_terminal_that_goes_ends_a_run_with_130(tiny: Workspace, tmp_path: Path) -> None:
    workspace = tiny.copy(tmp_path / "copy")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(REPOSITORY)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        command = workspace.command("evaluate", *CASE)
        os.execvpe(command[0], command, pipeline_helpers.environment())
    with open(terminal, "rb", buffering=0) as output:
        seen = b""
        while b"running" not in seen:
            seen += output.read(4096)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert not list(workspace.root.rglob("*.tmp-*"))
    assert "accuracy match" in workspace.succeed("evaluate", *CASE)


# Settings

WRONG: tuple[Any, ...] = (
    *(None, True, 5, -1, 1e300, float("inf"), 10**30, "x", "", "\0", "~nobody/x", "a\nb", "9" * 5000),
    *([], [1], ["x"], [[1]], {}, {"a": 1}, {"a": {"b": [{}]}}),
)
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(12)
)
MALFORMED = (
    *(BOMB, "&a [*a]", "x" * 100_000, "[", "a: b: c", "- 1", "'", "\0", "a: 2001-99-99", "? [1]\n: 2", "{[1]: 2}"),
    *("!!python/object/apply:os.system [ls]", f"a: {'[' * 70}{']' * 70}", "[" * 30_000, "- " * 20_000, "<<: 5"),
    *("a: 1\na: 2", "1: 2", "a: !!int x", "a: !!binary x", "a: !!bool x", "a: !!timestamp x", "%YAML 9", "a:\tb"),
    *("---\na: 1\n---\nb: 2", f"device: 1{':59' * 5000}", f"device: {'9' * 5000}", "profile: \udcff"),
)
SECTIONS = {
    "profiles": ("tiny",),
    "atc": ("precision_mode", "extra", "dynamic_dims", "keep_dtype", "no_such"),
    "images": ("wheelhouse", "offline", "ca"),
    "containers": ("memory", "pids", "tmp"),
    "npu": ("access", "nodes"),
    "run": ("echo",),
    "tasks": ("auto_dash_names", "dedupe"),
}


def refused(workspace: Workspace, text: str) -> str:
    """What a command says of these settings, if it refuses them; it may also take them."""
    path = workspace.root / "faulty.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    started = time.monotonic()
    done = in_process.run_invoke(
        ("-f", str(path), "evaluate", *CASE, "--backend", "ascend", "--dry"), REPOSITORY, pipeline_helpers.environment()
    )
    assert time.monotonic() - started < SECONDS
    assert done.returncode in (0, 2, 3, 5) and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert not done.returncode or pipeline_helpers.error_line(done.stderr)
    return done.stderr


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: ascii(text[:20]))
def test_a_malformed_settings_file_is_named(tiny: Workspace, text: str) -> None:
    assert f"error: {tiny.root / 'faulty.yaml'}: " in refused(tiny, text)


def wrong_settings(settings: dict[str, Any]) -> list[dict[str, Any]]:
    keys = (*InvokeSettings.__struct_fields__, *Config.global_defaults(), "no_such")
    wrong = [{**settings, key: value} for key in keys for value in WRONG]
    for section, names in SECTIONS.items():
        wrong += [{**settings, section: {name: value}} for name in names for value in WRONG]
    for name in settings["profiles"]["tiny"]:
        wrong += [{**settings, "profiles": {"tiny": {**settings["profiles"]["tiny"], name: value}}} for value in WRONG]
    return wrong


def test_a_setting_of_a_wrong_type_is_no_traceback(tiny: Workspace) -> None:
    wrong = wrong_settings(json.loads((tiny.root / "settings.yaml").read_text(encoding="utf-8")))
    for settings in wrong[:: len(wrong) // 50]:
        refused(tiny, json.dumps(settings))


@pytest.mark.campaign
def test_any_setting_of_any_wrong_type_is_no_traceback(tiny: Workspace) -> None:
    wrong = wrong_settings(json.loads((tiny.root / "settings.yaml").read_text(encoding="utf-8")))
    for settings in wrong:
        refused(tiny, json.dumps(settings))


@pytest.mark.parametrize("variable", ["INVOKE_DEVICE=x", "INVOKE_BATCH_SIZES=1"])
def test_a_variable_that_is_no_setting(tiny: Workspace, variable: str) -> None:
    name, _, value = variable.partition("=")
    variables = {**pipeline_helpers.environment(), name: value}
    done = in_process.run_invoke(tiny.arguments("export-onnx", "--dry"), REPOSITORY, variables)
    assert done.returncode == 2 and pipeline_helpers.error_line(done.stderr)


# Workspaces


@pytest.mark.parametrize("kind", ["loop", "file", "nobody", "long"])
def test_a_workspace_that_is_none(tiny: Workspace, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "loop":
        place.symlink_to(place)
    if kind == "file":
        place.write_text("the user's")
    variables = {**pipeline_helpers.environment(), "INVOKE_WORKSPACE": str(place)}
    if kind in ("nobody", "long"):
        variables["INVOKE_WORKSPACE"] = {"nobody": "~nobody-here/x", "long": "x" * 5000}[kind]
    for command in (("export-onnx",), ("doctor",), ("verify",), ("clean", "--dry")):
        done = in_process.run_invoke(command, REPOSITORY, variables)
        assert done.returncode == 2 and pipeline_helpers.error_line(done.stderr)
    assert kind != "file" or place.read_text() == "the user's"


def test_a_workspace_of_any_name_works(tiny: Workspace, tmp_path: Path) -> None:
    workspace = tiny.copy(tmp_path / "a'b\"c $HOME\nend %s{}*?\u4e2d;x|y&z")
    assert "accuracy match" in workspace.succeed("evaluate", *CASE)


@pytest.mark.parametrize(
    ("code", "command", "problem"),
    [
        (2, ("postprocess", *CASE, "--outputs", "../.."), "--outputs ../.. leads out of the workspace"),
        (2, ("postprocess", *CASE, "--outputs", "/"), "--outputs / is no folder of input_<i>_output_0.bin"),
        (2, ("postprocess", *CASE, "--outputs", "."), "--outputs . is no folder of input_<i>_output_0.bin"),
        (2, ("postprocess", *CASE, "--outputs", "/dev/null"), "--outputs /dev/null is no folder"),
        (3, ("postprocess", *CASE, "--outputs", "nowhere"), "nowhere"),
        (2, ("compare", "om", "onnx", "--outputs", ".."), "--outputs .. leads out of the workspace"),
        (2, ("compare", "om", "onnx", "--a-file", "/usr"), "/usr is no folder of input_<i>_output_0.bin"),
        (2, ("compare", "pytorch", "onnx", "--b-file", "/usr"), "/usr is no file, nor a folder with config.json"),
        (2, ("compare", "pytorch", "onnx", "--b-file", "/dev/zero"), "/dev/zero is no file"),
        (2, ("lint-onnx", "--model", ".."), "--model .. is no regular file"),
        (2, ("lint-onnx", "--output", "{root}/models"), "--output models is a folder or a link"),
        (2, ("lint-onnx", "--output", "{root}/models", "--force"), "--output models is a folder or a link"),
        (5, ("lint-onnx", "--output", "{root}/models/tiny/spm.model"), "was not made here, and is never replaced"),
        (2, ("finetune", "--init", "/usr"), "--init /usr is no file, nor a folder with config.json"),
    ],
)
def test_a_path_that_is_not_what_an_option_means(
    tiny: Workspace, code: int, command: tuple[str, ...], problem: str
) -> None:
    before = tiny.files()
    named = [word.replace("{root}", str(tiny.root)) for word in command]
    assert problem.replace("{root}", str(tiny.root)) in tiny.fail(code, *named)
    assert tiny.files() >= before


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path, leave: int) -> Path:
    """Fill a file system but for `leave` bytes; returns the file to remove."""
    filler = place / "filler"
    with open(filler, "wb") as file:
        file.write(bytes(max(os.statvfs(place).f_bavail * os.statvfs(place).f_frsize - leave, 0)))
    return filler


def check_refused(workspace: Workspace, filler: Path, *command: str) -> str:
    """A command ends with 4 and one line on a full disk; once there is room it does what it should."""
    message = workspace.fail(4, *command)
    assert "the disk is full" in message
    filler.unlink()
    workspace.succeed(*command)
    left = [path for path in workspace.root.rglob("*") if files.TEMPORARY in path.name]
    assert not left
    return message


STEPS = (
    ("export-onnx", "--force"),
    ("preprocess", *CASE, "--force"),
    ("build-om", "--bs", "4", "--force"),
    ("infer", *CASE, "--force"),
    ("postprocess", *CASE, "--force"),
    ("evaluate", *CASE, "--force"),
    ("report",),
)


FULL = [pytest.param(step, leave, marks=pytest.mark.campaign) for step in STEPS for leave in (0, 8_000)]


@pytest.mark.parametrize(("command", "leave"), [(("infer", *CASE, "--force"), 0), *FULL])
def test_a_full_disk(tiny: Workspace, small_disk: Path, command: tuple[str, ...], leave: int) -> None:
    workspace = tiny.copy(small_disk / "workspace")
    workspace.succeed("evaluate", *CASE)
    check_refused(workspace, fill(small_disk, leave), *command)


@pytest.mark.campaign
def test_a_disk_that_fills_under_msame(
    tiny: Workspace, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cann = fake_cann.install(tmp_path / "Ascend", python=sys.executable)
    monkeypatch.setenv("PATH", f"{(cann / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}")
    workspace = tiny.copy(tmp_path / "workspace")
    workspace.configure(cann=str(cann / "ascend-toolkit"), msame=str(cann / fake_cann.MSAME))
    outputs = workspace.root / "results/tiny/ascend/outputs_bs4_om"
    outputs.parent.mkdir(parents=True)
    outputs.symlink_to(small_disk)
    filler = fill(small_disk, 0)
    message = check_refused(workspace, filler, "evaluate", *CASE, "--backend", "ascend")
    assert f"{os.sep}outputs_bs4_om{os.sep}" in message and " 0 bytes free, and 3 outputs need 12288" in message


def test_why_outputs_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """msame's folder after writes that failed, and after a run of an .om of another batch size."""
    expected = {"input_0_output_0.bin": 96, "input_1_output_0.bin": 96}
    wrong = DataError("2 outputs have a wrong size")

    def cause(*sizes: int, printed: str = "") -> str:
        for name, size in zip(expected, sizes, strict=False):
            (tmp_path / name).write_bytes(bytes(size))
        return str(runs.cause(wrong, printed, tmp_path, expected, 8192))

    assert cause(0, 0) == cause(96, 50) == "None"
    assert cause(12, 12).startswith("the .om is for batch size 1, not 8 (2 outputs have a wrong size). Run: invoke ")
    assert "batch size 16, not 8" in cause(96, 96, printed="[ERROR] i:0 in size:8192 needsize:16384 not match")
    disk = os.statvfs(tmp_path)
    full = os.statvfs_result((4096, 4096, *disk[2:4], 1, *disk[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert cause(0, 0) == (
        f"the disk is full: {tmp_path} has 4096 bytes free, and 2 outputs need 8192. Free some space, then run the "
        "same command again"
    )


# Permissions


def test_a_folder_that_cannot_be_written(tiny: Workspace, small_disk: Path) -> None:
    workspace = tiny.copy(small_disk / "workspace")
    workspace.succeed("export-onnx")
    before = workspace.files()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for command in (("export-onnx", "--force"), ("evaluate", *CASE), ("clean", "--yes")):
        assert "no permission" in workspace.fail(2, *command)
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert workspace.files() == before
    workspace.succeed("evaluate", *CASE)
