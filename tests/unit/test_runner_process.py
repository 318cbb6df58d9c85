"""A device's own process: what ends it ends its runner, what stops the runner leaves it, and it waits for locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import pytest

from deberta.core import files
from deberta.core.errors import INTERRUPTED
from deberta.core.job import DeviceFacts
from deberta.host.engine.transcript import Show
from deberta.host.plan.plan import Inference, ModelRun, Step
from deberta.host.run import device_locks, local
from deberta.host.run.executor import Provenance
from deberta.host.run.session import Session
from deberta.host.shards.local_pool import LocalPool
from deberta.host.shards.pool import DeviceGone, ShardFailed, ShardRequest, ShardWaits
from deberta.host.shards.runner_process import RunnerProcess
from tests.mnli_helpers import REPOSITORY

T = TypeVar("T")
RUN = ModelRun(PurePosixPath("results/o"), {"input_0_output_0.bin": 24}, 1, (PurePosixPath("data/a"),), 512)
STEP = Step(
    name="infer",
    title="infer",
    stage="run-cpu",
    arguments=(),
    inputs=(),
    outputs=(RUN.output,),
    log=PurePosixPath("results/logs/infer.log"),
    commands={},
    inference=Inference((RUN,)),
)


class Sleeper:
    """An executor whose runner sleeps, and says its process number in a file."""

    name = "local"

    def __init__(self, root: Path) -> None:
        self.root = root

    def identity(self, step: Step) -> dict[str, str]:
        return {}

    def prepare(self, step: Step) -> None:
        """Nothing to prepare."""

    def hold(self, files: Sequence[int]) -> None:
        """It starts nothing that would outlive it."""

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        code = f"import os, time; open({str(self.root / 'runner')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        return local.execute([sys.executable, "-c", code], self.root, dict(os.environ), self.root / step.log, show)

    def provenance(self, step: Step) -> Provenance:
        return Provenance()

    def show(self, step: Step) -> None:
        """Not asked for here."""

    def sibling(self) -> Sleeper:
        return self

    def close(self) -> None:
        """Nothing is open."""


def sleeping(workspace: Path) -> Session:
    """A session with one bin, whose runner sleeps."""
    (workspace / "data/a").mkdir(parents=True)
    (workspace / "data/a/input_0.bin").write_bytes(bytes(512))
    return Session(workspace, workspace, Sleeper(workspace), str)


def runner_of(workspace: Path) -> int:
    """The runner's process number, once it runs."""
    path = workspace / "runner"
    return int(waited(lambda: files.read_text(path) if path.exists() else ""))


def ends_and_takes_its_runner_along(tmp_path: Path, number: signal.Signals) -> None:
    session = sleeping(tmp_path)
    pool = LocalPool(session, [0])
    try:
        [facts] = pool.devices(STEP)
        pool.start(facts.name, ShardRequest(STEP, 64, 0, 0, attempt=1))
        runner = runner_of(tmp_path)
        assert pool.wait(0.0) == []
        os.kill(pool.processes[facts.name].number, number)
        assert pool.wait(10.0) == [DeviceGone(facts.name, "its process was killed")]
    finally:
        pool.close()
    waited(lambda: not files.is_running(runner))


def is_told_to_stop(tmp_path: Path) -> None:
    session = sleeping(tmp_path)
    process = RunnerProcess(session, 0)
    try:
        for attempt in (1, 2):
            process.ask(ShardRequest(STEP, 64, 0, 0, attempt))
            runner = runner_of(tmp_path)
            process.stop()
            answer = process.answer()
            assert isinstance(answer, ShardFailed) and (answer.attempt, answer.code) == (attempt, INTERRUPTED)
            assert not files.is_running(runner)
            files.remove(tmp_path / "runner")
            process.stop()  # nothing runs
    finally:
        process.end()


def waits_for_a_performance_run(tmp_path: Path) -> None:
    session = sleeping(tmp_path)
    pool = LocalPool(session, [0])
    try:
        [facts] = pool.devices(STEP)
        with device_locks.held(session.locks, None, True, print):
            pool.start(facts.name, ShardRequest(STEP, 64, 0, 0, attempt=1))
            [event] = pool.wait(10.0)
            assert isinstance(event, ShardWaits) and f"waiting for this host: process {os.getpid()} has it" in event.why
            assert not (tmp_path / "runner").exists()
        waited(lambda: (tmp_path / "runner").exists())
    finally:
        pool.close()


def alone_has_the_executor_itself(tmp_path: Path) -> None:
    """A sibling leaves it to another process to look after the engine and what killed runs left on it."""

    class Own(Sleeper):
        def sibling(self) -> Sleeper:
            raise AssertionError

    process = RunnerProcess(Session(tmp_path, tmp_path, Own(tmp_path), str), 0, alone=True)
    try:
        process.ask(STEP)
        assert isinstance(process.facts(), DeviceFacts)
    finally:
        process.end()


def in_a_process_of_its_own(check: str, *arguments: str) -> None:
    """Run a check where nothing has loaded libraries with threads, which a process that forks must not have."""
    code = f"from pathlib import Path; import signal; from tests.unit import test_runner_process as t; t.{check}"
    command = [sys.executable, "-c", f"{code}({', '.join(arguments)})"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("number", ["signal.SIGKILL", "signal.SIGINT"])
def test_a_devices_process_that_ends_takes_its_runner_along(tmp_path: Path, number: str) -> None:
    in_a_process_of_its_own("ends_and_takes_its_runner_along", f"Path({str(tmp_path)!r})", number)


def test_a_process_that_is_told_to_stop_ends_its_runner_and_stays(tmp_path: Path) -> None:
    in_a_process_of_its_own("is_told_to_stop", f"Path({str(tmp_path)!r})")


def test_a_shard_waits_for_a_performance_run_and_says_so(tmp_path: Path) -> None:
    in_a_process_of_its_own("waits_for_a_performance_run", f"Path({str(tmp_path)!r})")


def test_a_process_alone_looks_after_the_engine_itself(tmp_path: Path) -> None:
    in_a_process_of_its_own("alone_has_the_executor_itself", f"Path({str(tmp_path)!r})")


def waited(condition: Callable[[], T]) -> T:
    give_up = time.monotonic() + 10
    while not (value := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return value
