"""How pytest-xdist spreads the tests over processes, and what is the same in each of them."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from deberta.host.program.command_line import STARTED_AS
from deberta.host.run import device_locks
from tests import in_process

CONTAINER = "tests/container/"
# The container tests that share a finished demo: about half of their time. They build the export image.
WITH_A_DEMO = (f"{CONTAINER}test_ascend_containers.py", f"{CONTAINER}test_executor.py")
# Longest first, so that no process is left with a long file at the end, and those that need the export image after
# those that do not; the rest follow as they are.
FIRST = (*WITH_A_DEMO, f"{CONTAINER}test_images.py", f"{CONTAINER}test_ci_engine.py", CONTAINER, "tests/pipeline/")


class _FilesAndContainers(LoadFileScheduling):  # type: ignore[misc]  # untyped
    """A file goes to one process, which keeps its fixtures; the container tests go to two, by the images they need."""

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(CONTAINER):
            return "containers with a demo" if nodeid.startswith(WITH_A_DEMO) else "other containers"
        return str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FilesAndContainers:
    config.option.loadscopereorder = False  # as sorted below
    return _FilesAndContainers(config, log)


def pytest_configure() -> None:
    # Of this run alone: tests neither wait for each other nor for anybody else on the machine.
    device_locks.FOLDER = Path(tempfile.mkdtemp(prefix="deberta-ascend-locks-"))
    device_locks.FOLDER.chmod(0o1777)  # commands run as other users, too
    os.environ["INVOKE_NPU_LOCKS"] = str(device_locks.FOLDER)
    atexit.register(shutil.rmtree, device_locks.FOLDER, ignore_errors=True)
    os.environ.pop(STARTED_AS, None)  # what the tests start is not started as they were
    # In a shell's background SIGINT is ignored, by what is started here too; tests send it to what they start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # so is SIGHUP by nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: torch, OpenVINO and our stages get one CPU each
        os.environ["OMP_NUM_THREADS"] = "1"
        os.sched_getaffinity = lambda _: {0}


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes never name a test: those of an archive may hold the time, and then no two processes collect the same."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, name in enumerate(FIRST) if item.nodeid.startswith(name)), len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def _stages_in_process() -> Iterator[None]:
    with in_process.stages_in_process():
        yield
