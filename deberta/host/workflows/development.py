"""The development tools, run in the stages' environment."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Callable, Optional, Sequence

from deberta.core import machine, progress
from deberta.core.errors import MissingError, StageError
from deberta.host.environments import offline, stages
from deberta.host.run import local
from deberta.host.run.executor import check_exit

BENCH = "benchmarks.bench"
EMULATED = "tests/emulated"
TEST_MINUTES = 7  # README says so too
DURATION = f"All tests take about {TEST_MINUTES} minutes on two CPUs, once the packages are installed."


def test(project: Path, path: str, slow: bool, campaign: bool, names: Optional[str], dry: bool) -> None:
    """pytest on a file or folder, `names` as its -k, in a process for each CPU. Raises StageError if a test fails."""
    options = ["--durations", "10", "--durations-min", "1"]
    left_out = [name for name, wanted in (("slow", slow), ("campaign", campaign), ("emulated", False)) if not wanted]
    options += ["-m", " and ".join(f"not {name}" for name in left_out)]
    if names:
        options += ["-k", names]
    processes = machine.effective_cpus()
    if processes > 1 and not path.endswith(".py"):
        options += ["-n", str(processes)]
    if not dry:
        progress.say(DURATION)
    _check(project, ["pytest", path, *options], "the tests failed", dry)


def test_emulated(project: Path, names: Optional[str], dry: bool) -> None:
    """The tests that emulate another machine, their output shown as it comes. Raises StageError if one fails, or can't.

    Without this command such a test is skipped where it cannot run.
    """
    options = ["--capture=no", *(["-k", names] if names else [])]
    _check(project, ["pytest", EMULATED, *options], "the tests failed", dry, "EMULATED_TESTS")


def lint(project: Path, dry: bool) -> None:
    """ruff and mypy, strict. Raises StageError for what they find."""
    _check(project, ["ruff", "check", "."], "ruff found something", dry)
    _check(project, ["ruff", "format", "--check", "."], "run: .venv-stages/bin/python -m ruff format .", dry)
    _check(project, ["mypy"], "mypy found something", dry)


def bench(project: Path, workspace: Path, python: Callable[[], Path], arguments: Sequence[str], dry: bool) -> None:
    """Run the benchmark in the workspace; its peers run in .venv-bench, if that exists.

    Raises MissingError for an installation without benchmarks/ (an image), and the benchmark's errors.
    """
    if not (project / "benchmarks").is_dir():
        raise MissingError(
            f"{project / 'benchmarks'} is missing: the benchmark is not part of an image. "
            "Run it in a clone of the repository"
        )
    options = [*arguments, "--peers-python", str(project / ".venv-bench" / "bin" / "python")]
    if dry:
        print(f"cd {shlex.quote(str(workspace))}")
        print(shlex.join([f"PYTHONPATH={project}", "python", "-m", BENCH, *options]))
        return
    log = workspace / "results" / "bench" / "bench.log"
    variables, show = local.environment(project), partial(print, flush=True)
    lines, code = local.execute([str(python()), "-m", BENCH, *options], workspace, variables, log, show)
    check_exit(BENCH, lines, code, log)


def _check(project: Path, arguments: Sequence[str], problem: str, dry: bool, required: str = "") -> None:
    """Run a module of the development tools. `required`: the variable that makes a skipped test a failed one."""
    if dry:
        settings = [f"{required}=required"] if required else []
        print(shlex.join([*settings, str(project / stages.FOLDER / "bin" / "python"), "-m", *arguments]))
        return
    variables = {**os.environ, **({required: "required"} if required else {})}
    python = stages.ensure(project, dev=True, wheels=offline.setting(project))
    code = subprocess.run([str(python), "-m", *arguments], cwd=project, env=variables).returncode
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        raise StageError(f"{problem} (exit code {code})")
