"""What CI counts on: .ci/run keeps the tests' outcome and ends its engine; the bases and the registry are usable."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bootstrap_helpers import script
from tests.container.bases import BOOKWORM, BULLSEYE
from tests.mnli_helpers import REPOSITORY

# Notes what it is asked to do in `calls`; its folder is on record as long as it runs.
ENGINE = """#!/bin/sh
echo "engine $1" >> calls
case "$1" in
start) echo "$2" > folder; [ ! -e no-engine ] || { echo "error: no engine here" >&2; exit 3; } ;;
stop) [ "$2" = "$(cat folder)" ] && rm -r "$2" ;;
esac
"""


@pytest.fixture
def ci(tmp_path: Path) -> Path:
    """A project of .ci/run, a stand-in for .ci/engine, and no inv yet."""
    (tmp_path / ".ci").mkdir()
    shutil.copy2(REPOSITORY / ".ci" / "run", tmp_path / ".ci" / "run")
    script(tmp_path / ".ci" / "engine", ENGINE)
    return tmp_path


def run(ci: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ci / ".ci" / "run")],
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def clean_environment() -> dict[str, str]:
    ours = ("DOCKER_HOST", "CONTAINER_TESTS", "CI_WITHOUT_ENGINE")
    return {name: value for name, value in os.environ.items() if name not in ours}


def calls(ci: Path) -> list[str]:
    return (ci / "calls").read_text(encoding="utf-8").splitlines()


def test_the_tests_outcome_and_last_line_are_the_runs(ci: Path) -> None:
    line = 'echo "inv $1 $DOCKER_HOST $CONTAINER_TESTS" >> calls'
    script(ci / "inv", f'#!/bin/sh\n[ "$1" = test ] || exit 0\n{line}\necho "1 failed"\nexit 4\n')
    done = run(ci)
    folder = (ci / "folder").read_text(encoding="utf-8").strip()
    assert (done.returncode, done.stdout, done.stderr) == (4, "1 failed\n", "")
    assert calls(ci) == ["engine start", f"inv test unix://{folder}/docker.sock required", "engine stop"]
    assert not Path(folder).exists()


def test_an_engine_that_does_not_start_fails_the_run(ci: Path) -> None:
    (ci / "no-engine").touch()
    script(ci / "inv", '#!/bin/sh\n[ "$1" = lint ] || echo inv >> calls\n')
    done = run(ci)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "error: no engine here\n")
    assert calls(ci) == ["engine start", "engine stop"]


def test_the_engine_is_left_out_only_on_demand(ci: Path) -> None:
    script(ci / "inv", '#!/bin/sh\necho "inv $1 ${DOCKER_HOST-} ${CONTAINER_TESTS-}" >> calls\n')
    assert run(ci, CI_WITHOUT_ENGINE="1").returncode == 0
    assert sorted(calls(ci)) == ["inv lint  ", "inv test  "]


def test_a_linters_finding_fails_the_run_and_ends_the_engine_that_is_starting(ci: Path) -> None:
    script(ci / ".ci" / "engine", ENGINE.replace("> folder; [", "> folder; sleep 20 >/dev/null 2>&1 & wait; ["))
    script(ci / "inv", '#!/bin/sh\nwhile [ ! -e folder ]; do sleep 0.05; done\necho "inv $1" >> calls\nexit 4\n')
    assert run(ci).returncode == 4
    assert calls(ci) == ["engine start", "inv lint", "engine stop"]


@pytest.mark.parametrize("early", [True, False])
def test_the_linters_run_beside_the_tests_and_a_finding_of_theirs_is_the_runs_outcome(ci: Path, early: bool) -> None:
    """Early: the tests go on, and are ended. Late: they have passed."""
    until, tests = ("up", "while :; do sleep 0.1; done") if early else ("passed", "sleep 0.3; touch passed")
    script(
        ci / "inv",
        f'#!/bin/sh\nif [ "$1" = lint ]; then while [ ! -e {until} ]; do sleep 0.05; done; exit 4; fi\n'
        f'trap "echo inv ended >> calls; exit 1" TERM\ntouch up\n{tests}\n',
    )
    assert run(ci).returncode == 4
    assert calls(ci) == ["engine start", *(["inv ended"] if early else []), "engine stop"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_ends_its_tests_and_then_its_engine(ci: Path, number: int, code: int) -> None:
    script(
        ci / "inv",
        '#!/bin/sh\n[ "$1" = test ] || exit 0\n'
        'trap "echo inv ended >> calls; exit 1" TERM\ntouch up\nwhile :; do sleep 0.1; done\n',
    )
    with subprocess.Popen(
        [str(ci / ".ci" / "run")],
        env=clean_environment(),
    ) as process:
        deadline = time.monotonic() + 30
        while not (ci / "up").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=30) == code
    assert calls(ci) == ["engine start", "inv ended", "engine stop"]


def test_the_engine_needs_root(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "id", "#!/bin/sh\necho 1000\n")
    done = subprocess.run(
        [str(REPOSITORY / ".ci" / "engine"), "start", str(tmp_path / "engine")],
        env={**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3 and "CI_WITHOUT_ENGINE=1" in done.stderr
    assert not (tmp_path / "engine").exists()


def test_only_an_engines_folder_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = subprocess.run(
        [str(REPOSITORY / ".ci" / "engine"), "stop", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3 and "left alone" in done.stderr
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize(("base", "version"), [(BOOKWORM, "3.11"), (BULLSEYE, "3.9")])
def test_a_base_image_has_its_python(engine_client: Any, base: str, version: str) -> None:
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    printed = engine_client.containers.run(base, ["python3", "-c", code], network_mode="none", remove=True)
    assert printed.decode().strip() == version


def test_an_image_goes_through_the_registry(engine_client: Any, registry: str) -> None:
    """Push, and pull by the digest, as a pin names it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    name = f"{registry}/tiny"
    engine_client.api.import_image_from_data(packed.getvalue(), repository=name, tag="1")
    made = engine_client.images.get(f"{name}:1").id
    pushed = engine_client.images.push(name, tag="1", stream=True, decode=True)
    digest = next(line["aux"]["Digest"] for line in pushed if "aux" in line)
    engine_client.images.remove(made, force=True)
    try:
        assert engine_client.images.pull(f"{name}@{digest}").id == made
    finally:
        engine_client.images.remove(made, force=True)
