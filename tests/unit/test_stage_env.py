"""The stages' environment: made whole or not at all, from the locks and nothing else; and the locks themselves."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest

from deberta.core.errors import ConfigError, MissingError
from deberta.host.environments import locks, platforms, venvs
from deberta.host.environments import stages as stage_env
from deberta.host.workflows import doctor
from tests.bootstrap_helpers import calls, script, stand_in

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements-host.lock", "requirements-stages.lock", "requirements-dev.lock")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    project = tmp_path / "project"
    project.mkdir()
    hashed = " \\\n    --hash=sha256:00\n"
    (project / stage_env.STAGES_LOCK).write_text(f"onnx==1.2{hashed}torch==2.13.0+cpu{hashed}", encoding="utf-8")
    (project / stage_env.DEV_LOCK).write_text(f"pytest==9{hashed}", encoding="utf-8")
    return project


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of stand-in Pythons; the real one that runs the tests is not a candidate."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(folder / "python-of-the-host"))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


@pytest.fixture
def python(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = stand_in(path, "python3.11")
    monkeypatch.setattr(stage_env, "find_python", lambda: str(made))
    return path


def test_made_once_then_found(project: Path, python: Path) -> None:
    assert stage_env.find(project) is None
    made = stage_env.ensure(project)
    assert made == project / ".venv-stages" / "bin" / "python" == stage_env.find(project)
    assert stage_env.ensure(project) == made
    _, install = calls(python, "-m pip")
    assert "--require-hashes" in install and "--extra-index-url" not in install


def test_pytorch_index_is_used_only_where_pip_finds_no_torch(project: Path, python: Path) -> None:
    script(python / "no-torch", "")
    stage_env.ensure(project, dev=True)
    probe, torch, install, dev = calls(python, "-m pip")
    assert "--dry-run" in probe and probe.endswith("torch==2.13.0+cpu")
    assert f"--no-deps --extra-index-url {stage_env.TORCH_INDEX}" in torch and "--require-hashes" in torch
    assert "--extra-index-url" not in install + dev


def test_a_machine_whose_torch_is_on_the_default_index_is_not_sent_elsewhere(
    project: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = project / stage_env.STAGES_LOCK
    of_x86_64 = lock.read_text().replace("torch==2.13.0+cpu", "torch==2.13.0+cpu ; platform_machine == 'x86_64'")
    lock.write_text(of_x86_64 + "torch==2.10.0 ; platform_machine == 'aarch64' \\\n    --hash=sha256:00\n")
    script(python / "no-torch", "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    stage_env.ensure(project)
    [install] = calls(python, "-m pip")
    assert "--extra-index-url" not in install
    good = prepared(project, onnx="1.2", torch="2.10.0+cpu")
    assert stage_env.ensure(project, python=good) == good
    with pytest.raises(ConfigError, match=r"torch 2\.13\.0\+cpu \(needs 2\.10\.0\)"):
        stage_env.ensure(project, python=prepared(project, onnx="1.2", torch="2.13.0+cpu"))


@pytest.mark.parametrize(
    ("machine", "library", "reason"),
    [
        (
            "aarch64",
            "glibc 2.31",
            "openvino .* needs glibc 2.35 or newer on aarch64, and this system has glibc 2.31. .*docker",
        ),
        ("x86_64", "glibc 2.17", "needs glibc 2.28 or newer on x86_64, and this system has glibc 2.17"),
        ("x86_64", None, "and this system has a C library that is not glibc. Run the stages in containers"),
        (
            "riscv64",
            "glibc 2.39",
            "is for Linux on x86_64 or aarch64, and this system is Linux on riscv64, glibc 2.39. Take a machine",
        ),
    ],
)
def test_a_system_without_wheels_is_refused_before_anything_is_fetched(
    machine: str, library: Optional[str], reason: str, project: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(os, "confstr", lambda name: library)
    with pytest.raises(MissingError, match=f"{reason}.*stages_python"):
        stage_env.ensure(project)
    assert not calls(python, "") and not (project / stage_env.FOLDER).exists()
    [check] = doctor.missing(doctor.stage_environment(project), ["cpu", "local"])
    assert check.name == "system, stages" and re.search(reason.partition(". ")[0], check.actual)
    good = prepared(project, onnx="1.2", torch="2.13.0")  # the user knows how to get the packages there
    assert stage_env.ensure(project, python=good) == good


def test_the_hosts_own_environment_is_not_begun_on_an_unknown_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    monkeypatch.setattr(venvs, "one_at_a_time", pytest.fail)
    with pytest.raises(
        MissingError, match=r"-host\.lock is for Linux on x86_64 or aarch64, and this machine is armv7l"
    ):
        venvs.main(["python3"])


@pytest.mark.parametrize(
    ("machine", "library"), [("aarch64", "glibc 2.35"), ("aarch64", "glibc 2.36"), ("x86_64", "glibc 2.28")]
)
def test_systems_that_the_wheels_are_for(machine: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(os, "confstr", lambda name: library)
    assert doctor.stages_system().state == doctor.OK
    monkeypatch.setattr(os, "confstr", lambda name: None)  # musl: the host's own packages have wheels for it
    assert platforms.problem(venvs.HOST_LOCK) == ""


def test_test_tools_come_on_top_and_follow_their_own_lock(project: Path, python: Path) -> None:
    stage_env.ensure(project)
    assert stage_env.find(project, dev=True) is None
    stage_env.ensure(project, dev=True)
    (project / stage_env.DEV_LOCK).write_text("pytest==10\n", encoding="utf-8")
    assert stage_env.find(project) is not None
    stage_env.ensure(project, dev=True)
    assert len(calls(python, "-m venv")) == 1
    assert len(calls(python, "requirements-dev.lock")) == 2


def test_a_changed_lock_makes_it_again_from_nothing(project: Path, python: Path) -> None:
    stage_env.ensure(project, dev=True)
    with open(project / stage_env.STAGES_LOCK, "a", encoding="utf-8") as lock:
        lock.write("numpy==2 \\\n    --hash=sha256:00\n")
    assert stage_env.find(project) is None
    stage_env.ensure(project)
    assert len(calls(python, "-m venv --clear")) == 2
    assert stage_env.find(project, dev=True) is None  # its test tools went with the old one


def test_pip_failing_leaves_nothing_that_looks_finished(
    project: Path, python: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = script(python / "broken", "")
    with pytest.raises(MissingError, match=r"requirements-stages\.lock.*the network is down"):
        stage_env.ensure(project)
    assert "  ERROR: the network is down" in capfd.readouterr().err
    assert stage_env.find(project) is None
    broken.unlink()
    stage_env.ensure(project)
    assert stage_env.find(project) is not None


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("", r"has no such wheel\. Fetch its wheel where that index answers"),
        ("WARNING: Retrying (Retry(total=0\n", r"did not answer\. Fetch its wheel"),
    ],
)
def test_no_index_has_the_build_of_torch(printed: str, message: str, project: Path, python: Path) -> None:
    script(python / "no-torch", printed)
    script(python / "no-torch-anywhere", printed)
    with pytest.raises(MissingError, match=rf"torch==2\.13\.0\+cpu, .*{stage_env.TORCH_INDEX}\) {message}"):
        stage_env.ensure(project)
    assert len(calls(python, "-m pip")) == 2  # nothing else was fetched


@pytest.mark.parametrize(
    ("lines", "advice"),
    [
        (["WARNING: Retrying (Retry(total=4", "ERROR: No matching distribution found for x"], "did not answer. Check"),
        (
            ["ERROR: No matching distribution found for x"],
            f"answered, and have no wheel of it for {platform.machine()} ",
        ),
        (["ERROR: [Errno 28] No space left on device"], "Check the network, the disk and pip's own settings"),
    ],
)
def test_why_pip_failed(
    lines: list[str], advice: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(folder: Path, arguments: object, on_line: object = None, isolated: bool = False) -> None:
        raise venvs.PipError(lines)

    monkeypatch.setattr(venvs, "pip", fail)
    with pytest.raises(MissingError, match=advice):
        venvs.install(project, project / stage_env.DEV_LOCK)
    assert capsys.readouterr().err.splitlines() == [f"  {line}" for line in lines]


def test_a_python_that_went_away_makes_it_again(project: Path, python: Path) -> None:
    made = stage_env.ensure(project)
    made.unlink()
    made.symlink_to("/nonexistent/python3.11")
    assert stage_env.find(project) is None
    assert stage_env.ensure(project).read_text(encoding="utf-8").startswith("#!/bin/sh")


def test_a_link_in_the_environments_place_is_not_cleared(project: Path, python: Path, tmp_path: Path) -> None:
    precious = script(tmp_path / "home" / "file", "mine")
    (project / ".venv-stages").symlink_to(precious.parent)
    with pytest.raises(ConfigError, match="not a folder of its own"):
        stage_env.ensure(project)
    assert precious.exists()


def test_python_is_tried_before_it_is_taken(path: Path, project: Path) -> None:
    script(path / "python3.11", "#!/bin/sh\nexit 127\n")
    stand_in(path, "python3", pretend="import sys; sys.version_info = (3, 12, 0)")
    with pytest.raises(MissingError, match=r"no Python 3\.11.*apt-get install"):
        stage_env.ensure(project)
    stand_in(path, "python3", pretend="import sys; sys.version_info = (3, 11, 0)")
    assert stage_env.find_python() == "python3"


def test_what_leads_pip_astray_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/opt/cann/python")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    environment = venvs.environment()
    assert environment["PIP_FIND_LINKS"] == "/wheels"
    assert not {"PYTHONPATH", "VIRTUAL_ENV"} & set(environment)


def prepared(folder: Path, **versions: str) -> Path:
    return script(folder / "prepared", f"#!/bin/sh\ncat <<'E'\n{json.dumps({'python': '3.11', **versions})}\nE\n")


def test_a_prepared_environment_is_checked_and_left_alone(project: Path, tmp_path: Path) -> None:
    good = prepared(tmp_path, onnx="1.2", torch="2.13.0")  # another build of the same torch
    assert stage_env.ensure(project, python=good) == good
    bad = prepared(tmp_path, python="3.12", onnx="1.3")
    with pytest.raises(ConfigError) as caught:
        stage_env.ensure(project, python=bad)
    for part in ("Python is 3.12", "onnx 1.3 (needs 1.2)", "torch is missing", "requirements-stages.lock"):
        assert part in str(caught.value)
    for python in (tmp_path / "nothing", script(tmp_path / "ls", "#!/bin/sh\necho hello\n")):
        with pytest.raises(ConfigError, match="does not run"):
            stage_env.ensure(project, python=python)
    assert not (project / ".venv-stages").exists()


def test_this_environment_fits_the_stages_lock() -> None:
    stage_env.check(ROOT, Path(sys.executable))


def test_a_missing_lock_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"requirements-stages\.lock is missing"):
        stage_env.locked_versions(tmp_path / "requirements-stages.lock")


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_hash(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = re.split(r"(?m)^(?=[A-Za-z0-9])", text)[1:]
    assert len(entries) > 5
    assert not [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry]
    assert not re.search(r"(?m)^--|://", text)  # no index, no address
    assert not re.search(r"(?mi)^(nvidia|cuda|triton)", text)


def test_locks_agree_with_each_other() -> None:
    host, stages, dev = (stage_env.locked_versions(ROOT / name) for name in LOCKS)
    assert {machine: stage_env.locked_versions(ROOT / LOCKS[1], machine)["torch"] for machine in locks.MACHINES} == {
        "x86_64": "2.13.0+cpu",
        "aarch64": "2.10.0",
    }
    assert set(stage_env.IMPORTED) <= set(stages)
    for name in set(dev) & set(stages):
        assert dev[name] == stages[name]
    assert {name: dev[name] for name in ("invoke", "docker")} == {name: host[name] for name in ("invoke", "docker")}


@pytest.mark.parametrize("name", ["host", "stages", "dev"])
def test_locks_are_of_the_present_sources(name: str) -> None:
    source = (ROOT / "requirements" / f"{name}.in").read_text(encoding="utf-8")
    pins = dict(re.findall(r"(?m)^([a-z]+)==(\S+)(?: ; platform_machine == 'x86_64')?$", source))
    locked = stage_env.locked_versions(ROOT / f"requirements-{name}.lock", "x86_64")
    assert pins and {pin: locked.get(pin) for pin in pins} == pins, "run requirements/lock.sh"


def test_no_library_of_the_stages_reports_its_use(tmp_path: Path) -> None:
    """When imported, OpenVINO would load its reporter, and ONNX Runtime keep an id of the device below $HOME."""
    program = (
        "import deberta.stages, onnxruntime, openvino.tools.ovc.telemetry_utils as utils; print(utils.tm.__name__)"
    )
    # Without the variables of CI, in which ONNX Runtime reports nothing anyway.
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=variables, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("openvino.tools.ovc.telemetry_stub", "")
    assert list(tmp_path.iterdir()) == []
