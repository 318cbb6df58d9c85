"""`inv`: whatever Python it meets, it runs invoke from a whole .venv or says what to do. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.bootstrap_helpers import calls, script, stand_in

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("sh", "cat", "dirname", "mkdir", "cp", "rm", "touch", "sleep")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what a first `./inv` needs, with a lock of its own."""
    project = tmp_path / "a project"
    shutil.copytree(ROOT / "deberta", project / "deberta", ignore=shutil.ignore_patterns("__pycache__", "stages"))
    shutil.copy2(ROOT / "inv", project / "inv")
    (project / "requirements-host.lock").write_text("invoke==1\n", encoding="utf-8")
    return project


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The only folder on PATH: the tools that `inv` uses, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


def start(project: Path, path: Path, *arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    environment = {"PATH": str(path), "HOME": str(project), "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    return subprocess.Popen(
        [str(project / "inv"), *arguments], cwd=cwd or project, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def inv(project: Path, path: Path, *arguments: str, cwd: Path | None = None) -> tuple[int, str, str]:
    process = start(project, path, *arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(condition: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition.exists():
        assert time.monotonic() < deadline, f"{condition} never came"
        time.sleep(0.02)


def test_no_python_at_all(project: Path, path: Path) -> None:
    code, out, err = inv(project, path, "-l")
    assert (code, out) == (3, "")
    assert "no Python >= 3.9" in err and "install" in err.lower() and len(err.splitlines()) == 1
    assert not (project / ".venv").exists()


def test_pythons_that_do_not_fit_are_named(project: Path, path: Path) -> None:
    stand_in(path, "python3", pretend="import sys; sys.version_info = (3, 6, 9)")
    script(path / "python3.11", "#!/bin/sh\necho 'python3.11: command not found' >&2\nexit 127\n")
    code, _, err = inv(project, path, "-l")
    assert code == 3
    assert f"too old: {path}/python3" in err and "command not found" not in err


def test_a_python_without_venv_is_told_apart(project: Path, path: Path) -> None:
    stand_in(path, "python3", pretend='import sys; sys.modules["ensurepip"] = None')
    code, _, err = inv(project, path, "-l")
    assert code == 3
    assert "venv module" in err and "apt-get install python3-venv" in err


def test_a_failing_shim_is_passed_over(project: Path, path: Path) -> None:
    script(path / "python3", "#!/bin/sh\nexit 127\n")
    stand_in(path, "python3.12")
    assert inv(project, path, "-l")[0] == 0


def test_first_use_makes_the_environment_once_from_any_folder(project: Path, path: Path, tmp_path: Path) -> None:
    stand_in(path)
    elsewhere = tmp_path / "elsewhere"
    script(elsewhere / "deberta" / "__init__.py", "raise SystemExit('the caller\\'s folder was imported')\n")
    code, out, err = inv(project, path, "demo", "--bs", "8 9", cwd=elsewhere)
    assert code == 0, err
    assert out == f"invoke: {project}/tasks.py demo --bs 8 9\n"
    assert "installing invoke" in err and len(err.splitlines()) == 1
    (install,) = calls(path, "-m pip")
    assert "--require-hashes" in install and "requirements-host.lock" in install

    assert inv(project, path, "-l", cwd=elsewhere)[::2] == (0, "")
    assert len(calls(path, "deberta.host.environments.venvs")) == 1


def test_a_changed_lock_is_installed(project: Path, path: Path) -> None:
    stand_in(path)
    assert inv(project, path, "-l")[0] == 0
    (project / "requirements-host.lock").write_text("invoke==2\n", encoding="utf-8")
    code, _, err = inv(project, path, "-l")
    assert code == 0 and "installing invoke" in err
    assert len(calls(path, "-m venv --clear")) == len(calls(path, "-m pip")) == 2


def test_a_wheelhouse_is_the_only_place_to_install_from(project: Path, path: Path, tmp_path: Path) -> None:
    stand_in(path)
    house = tmp_path / "my wheels"
    (project / "invoke.yaml").write_text(f"profile: demo\nwheelhouse: '{house}'  # no network\n", encoding="utf-8")
    code, _, err = inv(project, path, "-l")
    assert code == 3 and f"the wheelhouse {house} is no folder" in err and f"./inv wheelhouse '{house}' --for" in err
    house.mkdir()
    (house / "requirements-host.lock").write_text("invoke==0\n", encoding="utf-8")
    code, _, err = inv(project, path, "-l")
    assert code == 3 and "was made for another requirements-host.lock" in err
    shutil.copy2(project / "requirements-host.lock", house)
    (house / "invoke-1-py3-none-any.whl").write_text("damaged", encoding="utf-8")
    code, _, err = inv(project, path, "-l")
    assert code == 5 and f"{house}/invoke-1-py3-none-any.whl is not a file that requirements-host.lock names" in err
    assert not calls(path, "-m venv") and not (project / ".venv").exists()
    (house / "invoke-1-py3-none-any.whl").unlink()
    code, _, err = inv(project, path, "-l")
    assert code == 0 and f"from {house}" in err
    [install] = calls(path, "-m pip")
    assert f"--no-index --find-links {house} -r " in install


def test_a_killed_first_run_is_repaired(project: Path, path: Path) -> None:
    stand_in(path)
    hold = script(path / "hold", "")
    first = start(project, path, "-l")
    wait_for(path / "held")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    hold.unlink()
    assert (project / ".venv" / "bin" / "python").exists()  # what looks like an environment, and is none yet

    code, out, err = inv(project, path, "-l")
    assert code == 0 and out.startswith("invoke: "), err
    assert len(calls(path, "-m venv")) == 2


def test_two_first_uses_at_once_make_one_environment(project: Path, path: Path) -> None:
    stand_in(path)
    hold = script(path / "hold", "")
    first = start(project, path, "-l")
    wait_for(path / "held")
    second = start(project, path, "-l")
    assert second.stderr is not None and "waiting" in second.stderr.readline()
    hold.unlink()
    assert [process.communicate(timeout=60)[0][:7] for process in (first, second)] == ["invoke:", "invoke:"]
    assert len(calls(path, "-m venv")) == len(calls(path, "-m pip")) == 1


def test_pip_failing_is_said_and_leaves_nothing_that_looks_finished(project: Path, path: Path) -> None:
    stand_in(path)
    broken = script(path / "broken", "")
    code, out, err = inv(project, path, "-l")
    assert (code, out) == (3, "")
    assert "  ERROR: the network is down" in err and "error: pip could not install requirements-host.lock" in err
    assert "Traceback" not in err
    broken.unlink()
    assert inv(project, path, "-l")[0] == 0


def test_real_pip_installs_a_wheel_with_the_locked_hash_only(project: Path, path: Path) -> None:
    """The one test with a real environment and a real pip, on a wheel made here; the project is moved afterwards."""
    script(path / "python3", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    script(project / "tasks.py", "import invoke\n\ninvoke.main()\n")
    wheel = project / "invoke-7-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("invoke.py", "import sys\ndef main():\n    print('argv', sys.argv[1:])\n")
        archive.writestr("invoke-7.dist-info/METADATA", "Metadata-Version: 2.1\nName: invoke\nVersion: 7\n")
        archive.writestr("invoke-7.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("invoke-7.dist-info/entry_points.txt", "[console_scripts]\ninvoke = invoke:main\n")
        archive.writestr("invoke-7.dist-info/RECORD", "")
    lock = project / "requirements-host.lock"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for hash_in_lock, expected in (("0" * 64, 3), (digest, 0)):
        lock.write_text(f"invoke @ {wheel.as_uri()} --hash=sha256:{hash_in_lock}\n", encoding="utf-8")
        code, out, err = inv(project, path, "-l")
        assert code == expected, err
        assert out == ("" if expected else "argv ['-l']\n")
    moved = project.rename(project.with_name("moved"))
    assert inv(moved, path, "-l") == (0, "argv ['-l']\n", "")
