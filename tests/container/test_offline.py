"""With the network cut off and a wheelhouse: the demo as processes, the export image, and the demo in containers.

The commands run in a network namespace that has loopback alone; a Docker engine is reached through its socket, which is
a file. Fetching needs the package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.container.bases import BOOKWORM
from tests.container.conftest import copy_project
from tests.mnli_helpers import REPOSITORY

pytestmark = pytest.mark.slow
ALONE = ("unshare", "--net", "--", "sh", "-c", 'ip link set lo up; exec "$@"', "sh")
REACHED = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"  # RFC 5737: nobody's
EXPECTED = "accuracy match bs=8 on cpu: 0.9908333333333333 = 1189/1200"


@pytest.fixture(scope="module", autouse=True)
def _alone() -> None:
    done = subprocess.run([*ALONE, "python3", "-c", REACHED], capture_output=True, text=True)
    if "unshare failed" in done.stderr or "ip:" in done.stderr:
        pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}. Run the tests as root")
    assert "Network is unreachable" in done.stderr


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clean clone fetches for this machine, some hundred MB."""
    folder = tmp_path_factory.mktemp("fetching")
    project = copy_project(folder / "project")
    done = run(project, "wheelhouse", str(folder / "wheels of mine"))
    if "did not answer" in done.stderr or "NewConnectionError" in done.stderr:
        pytest.skip(f"the package index does not answer: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(project)
    return folder / "wheels of mine"


@pytest.fixture
def project(house: Path, tmp_path: Path) -> Path:
    """A clean clone on a machine without network, with the setting."""
    project = copy_project(tmp_path / "project")
    text = (REPOSITORY / "invoke.yaml").read_text(encoding="utf-8")
    assert '\nwheelhouse: ""\n' in text
    (project / "invoke.yaml").write_text(
        text.replace('\nwheelhouse: ""\n', f"\nwheelhouse: {house}\n"), encoding="utf-8"
    )
    return project


def run(project: Path, *arguments: str, alone: bool = False) -> subprocess.CompletedProcess[str]:
    command = [*(ALONE if alone else ()), "./inv", *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INVOKE_")}
    return subprocess.run(command, cwd=project, env=kept, capture_output=True, text=True)


def succeed(project: Path, *arguments: str) -> str:
    done = run(project, *arguments, alone=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_demo_needs_no_network(project: Path, house: Path) -> None:
    said = succeed(project, "demo")
    assert said.count(f"from {house}") == 2 and EXPECTED in said  # .venv and .venv-stages
    with open(project / "requirements-stages.lock", "a", encoding="utf-8") as lock:
        lock.write("# another lock\n")
    done = run(project, "evaluate", "--profile", "demo", "--executor", "local", alone=True)
    assert done.returncode == 3 and "was made for another requirements-stages.lock" in done.stderr


@pytest.mark.usefixtures("engine_client")
def test_images_and_the_demo_in_containers_need_none(project: Path) -> None:
    assert "Step " in succeed(project, "images", "--stage", "export", "--base", f"export={BOOKWORM}", "--force")
    assert EXPECTED in succeed(project, "demo", "--executor", "docker")
    assert not (project / ".venv-stages").exists()
