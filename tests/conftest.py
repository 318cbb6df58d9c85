"""How pytest-xdist spreads the tests over processes, and what is the same in each of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests import in_process

# Longest first, so that no process is left with a long file at the end; the rest follow as they are.
FIRST = ("tests/container/", "tests/pipeline/")


class _FilesAndContainers(LoadFileScheduling):  # type: ignore[misc]  # untyped
    """A file goes to one process, which keeps its fixtures; so do all container tests, which share an engine."""

    def _split_scope(self, nodeid: str) -> str:
        return FIRST[0] if nodeid.startswith(FIRST[0]) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FilesAndContainers:
    config.option.loadscopereorder = False  # as sorted below
    return _FilesAndContainers(config, log)


def pytest_configure() -> None:
    # In a shell's background SIGINT is ignored, by what is started here too; tests send it to what they start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if "PYTEST_XDIST_WORKER" in os.environ:  # one of several: torch, OpenVINO and our stages get one CPU each
        os.environ["OMP_NUM_THREADS"] = "1"
        os.sched_getaffinity = lambda _: {0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((i for i, name in enumerate(FIRST) if item.nodeid.startswith(name)), len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def _stages_in_process() -> Iterator[None]:
    with in_process.stages_in_process():
        yield
