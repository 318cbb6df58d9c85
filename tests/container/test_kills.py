"""Kills at random moments of commands whose steps run in containers: as tests/campaign/test_kills.py, less of them.

CAMPAIGN_CONTAINER_KILLS (40) kills from CAMPAIGN_SEED (0) on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import docker.errors
import pytest

from deberta.host.engine import engine
from deberta.host.run import device_locks
from tests.campaign import test_kills
from tests.campaign.kills import ACCEPT, Killed
from tests.container import container_helpers as helpers
from tests.container.bases import BOOKWORM
from tests.container.container_helpers import CALLER, Place
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace, make_small_demo

KILLS = int(os.environ.get("CAMPAIGN_CONTAINER_KILLS", "40"))


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("undisturbed") / "demo"
    root.mkdir()
    make_small_demo(root, 24, {"match": (24, 1)}).configure(executor="docker", stages_python=None)
    helpers.own(root, CALLER)
    place = Place(root, project, CALLER)
    place.succeed("evaluate", *test_kills.PADDED)
    place.succeed(*ACCEPT)
    return place


class KilledWithContainers(Killed):
    """Its steps are containers; of its processes on this machine, the one that removes them has to outlive it."""

    client: Any = None

    def containers(self) -> list[Any]:
        assert isinstance(self.workspace, Place)
        return self.workspace.containers(self.client)

    def kill_all(self, process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        for container in self.containers():
            with contextlib.suppress(docker.errors.APIError):  # it has not begun, or is gone
                container.kill()

    def running(self) -> list[str]:
        return [*super().running(), *(f"{container.name} ({container.status})" for container in self.containers())]


USE = """
import sys
from pathlib import Path, PurePosixPath
from deberta.host.engine import engine
from deberta.host.engine.containers import Container, User
from deberta.host.run import device_locks
folder, locks, image = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
with engine.DockerEngine(folder, False, print) as used, device_locks.held(locks, 3, False, print) as files:
    used.hold(files)
    container = Container(image, ("sleep", "600"), PurePosixPath("/"), User(0, 0), (), {})
    used.run(container, image, "step", folder / "log", print, False, 3)
"""


def test_a_device_is_free_when_the_container_of_a_killed_run_is_gone(engine_client: Any, tmp_path: Path) -> None:
    labels = {engine.LABEL: "container", engine.OF_WORKSPACE: engine.workspace_label(tmp_path)}
    locks = tmp_path / "locks"
    command = [sys.executable, "-c", USE, str(tmp_path), str(locks), BOOKWORM]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}) as process:
        while not any(container.status == "running" for container in engine.labelled(engine_client, labels)):
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    seen = []
    while device_locks.is_held(locks, 3):
        seen.append(len(engine.labelled(engine_client, labels)))
        time.sleep(0.01)
    assert seen[0] == 1 and engine.labelled(engine_client, labels) == []


@pytest.mark.campaign
def test_random_kills(undisturbed: Place, engine_client: Any, tmp_path: Path) -> None:
    def killed(workspace: Workspace, command: tuple[str, ...]) -> Killed:
        run = KilledWithContainers(workspace, command)
        run.client = engine_client
        return run

    seconds: dict[str, float] = {}
    wrong = test_kills.faults(KILLS, lambda number: test_kills.kill(undisturbed, tmp_path, number, seconds, killed))
    assert wrong == []
