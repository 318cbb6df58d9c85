"""A real `inv` that is killed in its work, and what has to be true afterwards, told without the product's functions."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import TIMEOUT, Workspace, environment

MARK = "CAMPAIGN_MARK"  # in the environment of whatever a run starts
POINT = "CAMPAIGN_POINT"  # name:number of the commit point at which the run is killed, counted over all its processes
POINTS = "CAMPAIGN_POINTS"  # a file that gets the name of each commit point that is reached
GRACE = 5.0  # seconds until no process of a killed run is left
ACCEPT = ("acceptance", "--backend", "cpu", "--version", "match", "--loops", "2", "--bs", "8")
SIGNALS = {"int": signal.SIGINT, "term": signal.SIGTERM, "hup": signal.SIGHUP}
HOWS = ("kill", "group", *SIGNALS)
_T = re.compile(r"\d{8}_\d+_\d+_\d+_\d+")  # a run's folder
_SITE = """
import os, signal
from deberta.core import files

def commit_point(name):
    log = os.environ["{points}"]
    with open(log, "a") as file:
        file.write(name + "\\n")
    with open(log) as file:
        count = file.read().split("\\n").count(name)
    if os.environ.get("{point}") == f"{{name}}:{{count}}":
        mark = b"{mark}=" + os.environb[b"{mark}"] + b"\\0"
        for process in [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()]:
            try:
                with open(f"/proc/{{process}}/environ", "rb") as file:
                    if mark in file.read() + b"\\0":
                        os.kill(int(process), signal.SIGKILL)
            except OSError:
                pass
        os.kill(os.getpid(), signal.SIGKILL)

if "{points}" in os.environ:
    files.commit_point = commit_point
"""


@dataclass
class Killed:
    """A run in a process group of its own, with a mark that all its processes inherit."""

    workspace: Workspace
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.workspace.command(*self.command),
            cwd=REPOSITORY,
            env={**environment(), **self.variables, MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def processes(self) -> list[int]:
        """The processes of the run that are there, those that wait to be reaped left out."""
        marked = f"{MARK}={self.mark}".encode()
        numbers = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if marked in (entry / "environ").read_bytes().split(b"\0"):
                        numbers.append(int(entry.name))
                except OSError:
                    continue
        return numbers

    def kill_all(self, process: subprocess.Popen[str]) -> None:
        """Kill the command and its steps."""
        for number in {process.pid, *self.processes()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def after(self, seconds: float, how: str) -> str:
        """Run, kill after this time, wait until nothing of it is left; returns what is wrong, or an empty text."""
        process = self.start()
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            if how in SIGNALS:
                process.send_signal(SIGNALS[how])
            else:
                process.kill() if how == "kill" else self.kill_all(process)
            output, _ = process.communicate(timeout=TIMEOUT)
            expected = 130 if how in SIGNALS else -signal.SIGKILL
            if how in SIGNALS and "[" not in output.replace("[Errno", "").partition("Traceback")[0]:
                return self.left()  # no step had begun: Python itself was still starting, and ends as it does
            if process.returncode not in (expected, 0):  # it may have come to its end in that moment
                return f"exit code {process.returncode}, expected {expected}: {output[-500:]}"
        else:
            if process.returncode:
                return f"exit code {process.returncode} without a kill: {output[-500:]}"
        return "a traceback: " + output[-800:] if "Traceback" in output else self.left()

    def left(self) -> str:
        deadline = time.monotonic() + GRACE
        while running := self.running():
            if time.monotonic() > deadline:
                for number in self.processes():
                    os.kill(number, signal.SIGKILL)
                return f"still running after {GRACE:g} s: {running}"
            time.sleep(0.05)
        return ""

    def running(self) -> list[str]:
        """Its processes, as a person would name them."""
        return [_command_line(number) for number in self.processes()]


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return f"{process}, just ended"


def patched(workspace: Workspace, folder: Path) -> dict[str, str]:
    """Make a workspace's runs count and obey commit points; returns the variables of such a run."""
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(_SITE.format(points=POINTS, point=POINT, mark=MARK))
    python = folder / "python"
    path = f"{shlex.quote(str(site))}:$PYTHONPATH"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={path} exec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    workspace.configure(stages_python=str(python))
    return {"PYTHONPATH": f"{site}:{REPOSITORY}", POINTS: str(folder / "points")}


def digest(path: Path) -> dict[str, str]:
    """A file's SHA-256, or a folder's over the sorted lines of its files: the in-toto dirHash."""
    if path.is_file():
        return {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and ".tmp-" not in p.name)
    lines = [f"{hashlib.sha256((path / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    return {"dirHash": hashlib.sha256("".join(lines).encode()).hexdigest()}


def records_of(root: Path) -> Iterator[tuple[Path, dict[str, dict[str, str]]]]:
    for path in sorted(root.rglob("*.record.json")):
        if "acceptances" not in path.parts and ".cache" not in path.parts:
            yield path, {entry["name"]: entry["digest"] for entry in json.loads(path.read_text())["subject"]}


def mismatches(root: Path, intents: bool) -> list[str]:
    """The outputs that are not what their record says; `intents`: but for those that an intent names."""
    wrong = []
    for path, subjects in records_of(root):
        for name, expected in subjects.items():
            output = root / name
            is_same = output.exists() and digest(output) == expected
            if not is_same and not (intents and _is_named(output)):
                wrong.append(f"{name} is not what {path.relative_to(root)} says")
    return wrong


def _is_named(output: Path) -> bool:
    for beside in (output, output.parent):
        intent = beside.parent / f".{beside.name}.tmp-intent"
        if intent.exists() and any(line.split(" ", 1)[1] == output.name for line in intent.read_text().splitlines()):
            return True
    return False


def listing(root: Path) -> set[str]:
    """Every file, with the times in names left out, but for logs and those of acceptances that are whole."""
    names = set()
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        is_whole = "/acceptances/" in name and "/acceptances/." not in name
        if path.is_file() and "/logs/" not in name and not is_whole:
            names.add(_T.sub("<T>", name))
    return names


def evaluations(root: Path) -> dict[str, bytes]:
    folder = root / "results/demo/cpu"
    return {path.name: path.read_bytes() for path in folder.glob("eval_*") if ".record." not in path.name}


def recovered(workspace: Workspace, undisturbed: Workspace, *commands: tuple[str, ...]) -> list[str]:
    """What is wrong after the next runs, of which the last is a plain acceptance."""
    wrong = mismatches(workspace.root, intents=True)
    for command in (*commands, ACCEPT):
        done = workspace.run(*command)
        said = done.stdout + done.stderr
        if done.returncode:
            wrong.append(f"the next {command[0]} ended with {done.returncode}: {said[-500:]}")
        wrong += [
            f"accused: {line}" for line in said.splitlines() if "was changed after" in line or "is missing" in line
        ]
    wrong += mismatches(workspace.root, intents=False)
    counted, expected_counts = evaluations(workspace.root), evaluations(undisturbed.root)
    differing = [name for name in expected_counts if counted.get(name) != expected_counts[name]]
    if differing:
        wrong.append(f"not as in a run that nothing disturbed: {differing}")
    names, expected = listing(workspace.root), listing(undisturbed.root)
    wrong += [f"left: {name}" for name in sorted(names - expected)]
    return wrong + [f"not there: {name}" for name in sorted(expected - names)]
