"""Wheelhouses: fetched whole or not used, for machines that are not this one, and installed from without a network."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from invoke.config import Config
from invoke.context import Context

from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.host.cli import settings
from deberta.host.environments import fetch_wheels, locks, offline, stages, venvs, wheelhouse
from deberta.host.images import definition
from deberta.host.workflows import doctor
from requirements import lock as locking
from tests.bootstrap_helpers import calls, stand_in
from tests.image_helpers import locked, make_wheel

ROOT = Path(__file__).resolve().parents[2]
MACHINES = ("x86_64", "aarch64")
AARCH64 = "torch-1-cp311-cp311-manylinux_2_17_aarch64.whl"
X86_64 = "torch-2+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"


class Shop:
    """A project of small locks, the places where their wheels are, and a pip that has been asked for some."""

    def __init__(self, folder: Path) -> None:
        self.project, self.house = folder / "project", folder / "house"
        self.index, self.own_index = folder / "index", folder / "own index"
        self.commands: list[list[str]] = []
        self.project.mkdir()
        self.interrupted = False
        wheels = {"invoke": make_wheel(self.index, "invoke"), "onnx": make_wheel(self.index, "onnx")}
        for name in fetch_wheels.PYTHONS:
            self.lock(name).write_text(locked(wheels), encoding="utf-8")
        self.own_index.mkdir()
        entries = ""
        for path, machine in ((self.index / AARCH64, "aarch64"), (self.own_index / X86_64, "x86_64")):
            make_wheel(folder, "torch", version=path.name.split("-")[1]).replace(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            version = path.name.split("-")[1]
            entries += f"torch=={version} ; platform_machine == '{machine}' \\\n    --hash=sha256:{digest}\n"
        self.lock(stages.STAGES_LOCK).write_text(locked(wheels) + entries, encoding="utf-8")

    def lock(self, name: str) -> Path:
        return self.project / name

    def fill(self, *machines: str) -> None:
        fetch_wheels.fill(self.project, self.house, machines or MACHINES, False, {})

    def pip(self, folder: Path, command: Sequence[str], packages: int) -> None:
        """What `pip download` does: copy the wheels that the requirements name, or fail as it does."""
        self.commands.append(list(command))
        target, requirements = Path(command[command.index("--dest") + 1]), Path(command[-1])
        if "--extra-index-url" in command:
            requirements = Path(command[command.index("-r") + 1])
        for name, version in re.findall(r"(?m)^(\S+?)==(\S+)", requirements.read_text(encoding="utf-8")):
            places = [self.index, *([self.own_index] if "--extra-index-url" in command else [])]
            if not (sources := [path for place in places for path in place.glob(f"{name}-{version}-*")]):
                raise venvs.PipError([f"ERROR: No matching distribution found for {name}=={version}"])
            shutil.copy2(sources[0], target)
            if self.interrupted:
                raise KeyboardInterrupt

    def content(self) -> list[str]:
        return sorted(path.name for path in self.house.iterdir())


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    shop = Shop(tmp_path)
    monkeypatch.setattr(venvs, "with_progress", shop.pip)
    monkeypatch.setattr(fetch_wheels, "_require_pip", lambda: None)
    return shop


def test_each_machine_gets_its_own_wheels_whatever_this_one_is(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.fill()
    wheels = ["invoke-1-py3-none-any.whl", "onnx-1-py3-none-any.whl", AARCH64, X86_64]
    names = [name for name in fetch_wheels.PYTHONS if name != stages.DEV_LOCK]
    assert shop.content() == sorted([*wheels, *names, wheelhouse.MANIFEST])
    assert [command[command.index("--python-version") + 1] for command in shop.commands] == ["39", "311", "311", "311"]
    x86_64, again, aarch64 = shop.commands[1:]
    assert "manylinux_2_28_x86_64" in x86_64 and "manylinux2014_x86_64" in x86_64 and "--require-hashes" in x86_64
    assert again == [*x86_64, "--extra-index-url", stages.TORCH_INDEX]  # pip knew no such build
    assert "manylinux_2_35_aarch64" in aarch64 and "--extra-index-url" not in aarch64
    assert not [tag for tag in aarch64 if tag.endswith("x86_64")]
    for machine, torch in (("x86_64", X86_64), ("aarch64", AARCH64)):
        files = wheelhouse.check(shop.house, shop.lock(stages.STAGES_LOCK), machine)
        assert [path.name for path in files] == sorted(["invoke-1-py3-none-any.whl", "onnx-1-py3-none-any.whl", torch])
    [entry] = [e for e in json.loads((shop.house / wheelhouse.MANIFEST).read_text())["files"] if e["file"] == X86_64]
    assert entry["needed_by"] == [{"lock": stages.STAGES_LOCK, "machine": "x86_64", "python": "3.11"}]
    assert (entry["size"], entry["sha256"]) == (
        (shop.own_index / X86_64).stat().st_size,
        hashlib.sha256((shop.own_index / X86_64).read_bytes()).hexdigest(),
    )
    assert f"{stages.STAGES_LOCK}, aarch64, Python 3.11: 3 wheels" in capsys.readouterr().out
    shop.fill("aarch64")
    assert len(shop.commands) == 4  # nothing was missing
    assert wheelhouse.check(shop.house, shop.lock(stages.STAGES_LOCK), "x86_64")


def test_an_interrupted_run_leaves_no_half_and_the_next_goes_on(shop: Shop) -> None:
    shop.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        shop.fill()
    assert shop.content() == [wheelhouse.MANIFEST]
    with pytest.raises(MissingError, match=rf"does not have the wheels of {venvs.HOST_LOCK}\. .*--for x86_64, then"):
        wheelhouse.check(shop.house, shop.lock(venvs.HOST_LOCK), "x86_64")
    shop.interrupted = False
    shop.fill("x86_64")
    with pytest.raises(MissingError, match=r"for x86_64, and not for aarch64\. .*wheelhouse \S+ --for aarch64, then"):
        wheelhouse.check(shop.house, shop.lock(stages.STAGES_LOCK), "aarch64")


def test_what_pip_cannot_fetch_is_named_and_what_is_there_is_kept(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    (shop.own_index / X86_64).unlink()
    with pytest.raises(
        MissingError, match=rf"{stages.STAGES_LOCK}, x86_64, .*torch==2\+cpu.*so was {stages.TORCH_INDEX}"
    ):
        shop.fill()
    assert "  ERROR: No matching distribution found for torch==2+cpu" in capsys.readouterr().err
    assert wheelhouse.check(shop.house, shop.lock(venvs.HOST_LOCK), "aarch64")
    assert stages.STAGES_LOCK not in shop.content()


def test_wrong_files_are_refused_by_name(shop: Shop) -> None:
    shop.fill()
    lock = shop.lock(stages.STAGES_LOCK)
    (shop.house / AARCH64).write_bytes(b"another")
    with pytest.raises(DataError, match=rf"{AARCH64} is not the file that wheelhouse.json lists"):
        wheelhouse.check(shop.house, lock, "aarch64")
    assert wheelhouse.check(shop.house, lock, "x86_64")  # which needs another file
    with pytest.raises(DataError, match=rf"not the files that the locks name: \S*{AARCH64} \(SHA-256 "):
        shop.fill()
    assert (shop.house / AARCH64).read_bytes() == b"another"
    (shop.house / AARCH64).unlink()
    with pytest.raises(MissingError, match=rf"{AARCH64} is in wheelhouse.json, and not there"):
        wheelhouse.check(shop.house, lock, "aarch64")
    shop.fill("aarch64")
    assert wheelhouse.check(shop.house, lock, "aarch64")
    (shop.house / wheelhouse.MANIFEST).write_text('{"locks": {}, "files": [{"file": "../x"}]}')
    with pytest.raises(DataError, match=r"wheelhouse.json does not fit its schema.*Remove it"):
        wheelhouse.check(shop.house, lock, "aarch64")


def test_a_wheelhouse_of_another_lock_is_refused_until_it_is_filled_again(shop: Shop) -> None:
    shop.fill()
    lock = shop.lock(stages.STAGES_LOCK)
    wheel = make_wheel(shop.index, "onnx", version="2")
    lock.write_text(locked({"onnx": wheel}), encoding="utf-8")
    with pytest.raises(MissingError, match=f"was made for another {stages.STAGES_LOCK}"):
        wheelhouse.check(shop.house, lock, "x86_64")
    (shop.house / "of the user.whl").write_text("")
    shop.fill("x86_64")
    assert [path.name for path in wheelhouse.check(shop.house, lock, "x86_64")] == [wheel.name]
    assert AARCH64 not in shop.content() and X86_64 not in shop.content() and "of the user.whl" in shop.content()
    with pytest.raises(MissingError, match="not for aarch64"):
        wheelhouse.check(shop.house, lock, "aarch64")


def test_debian_packages_of_the_user_come_along(shop: Shop) -> None:
    deb = shop.project / "docker/debs/compile/one_1_all.deb"
    deb.parent.mkdir(parents=True)
    deb.write_bytes(b"package")
    pinned = {"compile": {deb.name: hashlib.sha256(b"package").hexdigest()}}
    fetch_wheels.fill(shop.project, shop.house, ["x86_64"], False, pinned)
    assert (shop.house / "debs/compile" / deb.name).read_bytes() == b"package"
    deb.write_bytes(b"another")
    with pytest.raises(DataError, match=r"one_1_all.deb is not the file of docker/pins.toml"):
        fetch_wheels.fill(shop.project, shop.house, ["x86_64"], False, pinned)
    deb.unlink()
    with pytest.raises(MissingError, match=r"one_1_all.deb is in docker/pins.toml, and not there"):
        fetch_wheels.fill(shop.project, shop.house, ["x86_64"], False, pinned)


def test_real_pip_fetches_for_a_machine_that_is_not_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop, mine = Shop(tmp_path), "aarch64" if platform.machine() == "aarch64" else "x86_64"
    [theirs] = {*MACHINES} - {mine}
    monkeypatch.setenv("PIP_FIND_LINKS", f"file://{shop.index} {shop.own_index.as_uri()}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(fetch_wheels, "PYTHONS", {stages.STAGES_LOCK: [(3, 11)]})
    shop.fill(theirs)
    assert (shop.house / (AARCH64 if theirs == "aarch64" else X86_64)).is_file(), capsys.readouterr()


def test_every_lock_of_a_user_is_fetched_for_every_python_that_it_is_for() -> None:
    of_users = {
        locking.lock_of(name).name: set(pythons) for name, pythons in locking.PYTHONS.items() if name != "bench"
    }
    assert {*fetch_wheels.PYTHONS} == {*of_users}
    assert not [name for name, pythons in of_users.items() if not pythons <= set(fetch_wheels.PYTHONS[name])]
    tried = re.findall(r"python3\.(\d+)", re.findall(r"for name in (.*);", (ROOT / "inv").read_text())[0])
    assert sorted((3, int(minor)) for minor in tried) == list(fetch_wheels.PYTHONS[venvs.HOST_LOCK])
    assert all(target.glibc for target in fetch_wheels.targets(ROOT, locks.MACHINES, True))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", None),
        ("wheelhouse:", None),
        ("wheelhouse: ''  # none", None),
        ("wheelhouse: ~", None),
        ("wheelhouse: wheels", "PROJECT/wheels"),
        ("wheelhouse:   /a b/c#d  # without network\r", "/a b/c#d"),
        ('wheelhouse: "/a: b/#c"', "/a: b/#c"),
        ("wheelhouse: 'a/../b'", "PROJECT/b"),
        ("images: {wheelhouse: x}", None),
    ],
)
def test_the_line_is_read_as_yaml_reads_it(
    line: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(offline.VARIABLE, raising=False)
    monkeypatch.setattr(settings, "PROJECT", tmp_path)
    (tmp_path / "invoke.yaml").write_text(f"profile: mnli\n{line}\ndevice: 0\n", encoding="utf-8")
    config = Config(project_location=tmp_path)
    config.load_project()
    folder = Path(expected.replace("PROJECT", str(tmp_path))) if expected else None
    assert settings.wheelhouse(Context(config)) == folder == offline.setting(tmp_path)
    monkeypatch.setenv(offline.VARIABLE, "/else where")
    assert offline.setting(tmp_path) == Path("/else where")
    monkeypatch.setenv(offline.VARIABLE, "")
    assert offline.setting(tmp_path) is None


def test_a_line_that_inv_cannot_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(offline.VARIABLE, raising=False)
    monkeypatch.setattr(settings, "PROJECT", tmp_path)
    for line in ("wheelhouse: >-\n  /wheels", r'wheelhouse: "/\u0061"', "wheelhouse: [x]"):
        (tmp_path / "invoke.yaml").write_text(line, encoding="utf-8")
        with pytest.raises(ConfigError, match="cannot be read before anything is installed"):
            offline.setting(tmp_path)
    (tmp_path / "invoke.yaml").write_text("{wheelhouse: /wheels}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"wheelhouse is /wheels by YAML, and empty as \./inv reads it"):
        settings.wheelhouse(Context(Config(overrides={"wheelhouse": "/wheels"})))


def test_the_stages_are_installed_from_it_alone(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    python = stand_in(tmp_path / "bin", "python3.11")
    monkeypatch.setattr(stages, "find_python", lambda: str(python))
    with pytest.raises(MissingError, match=r"the wheelhouse .*house is no folder"):
        stages.ensure(shop.project, wheels=shop.house)
    assert not calls(tmp_path / "bin", "")  # nothing was made
    assert [check.name for check in doctor.missing(tuple(doctor.wheelhouse_folder(shop.project, shop.house)))]
    monkeypatch.setattr(venvs, "with_progress", shop.pip)
    monkeypatch.setattr(fetch_wheels, "_require_pip", lambda: None)
    shop.fill(platform.machine())
    monkeypatch.undo()
    monkeypatch.setattr(stages, "find_python", lambda: str(python))
    [check] = doctor.wheelhouse_folder(shop.project, shop.house)
    assert check.state == doctor.OK and "house, 3 files of the stages' packages" in check.actual
    stages.ensure(shop.project, wheels=shop.house)
    (shop.house / stages.STAGES_LOCK).unlink()
    [check] = doctor.wheelhouse_folder(shop.project, shop.house)
    assert check.state == doctor.MISSING and not check.needed  # they are installed
    [install] = calls(tmp_path / "bin", "-m pip")
    assert f"--require-hashes --only-binary :all: --no-index --find-links {shop.house} -r " in install


def test_pip_has_no_settings_of_the_user_then() -> None:
    variables: dict[str, Any] = {"PIP_FIND_LINKS": "https://x", "HOME": "/h"}
    assert offline.without_pip_settings(variables) == {"HOME": "/h", "PIP_CONFIG_FILE": "/dev/null"}


def test_images_are_built_from_it_alone(tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    built = definition.settings({"wheelhouse": "house"}, tmp_path, house)
    assert built == definition.BuildSettings(house, offline=True)
    with pytest.raises(ConfigError, match=r"wheelhouse is \S+/house, and images.wheelhouse \S+\. Leave one"):
        definition.settings({"wheelhouse": str(tmp_path)}, tmp_path, house)
    with pytest.raises(ConfigError, match="no folder"):
        definition.settings({}, tmp_path, tmp_path / "nowhere")
