"""What a container gets to reach an NPU, and what is said when it cannot be had."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest

from deberta.core import schema
from deberta.core.errors import ConfigError, MissingError
from deberta.host.engine import npu_access
from deberta.host.engine.containers import Access, Mount
from deberta.host.engine.npu_access import NpuSettings

NODES = ("davinci1", "davinci_manager", "devmm_svm", "hisi_hdc")


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NpuSettings:
    """Device 1 and a driver, with two of its parts."""
    for name in (*NODES, "davinci4"):
        path = tmp_path / "dev" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "driver/lib64").mkdir(parents=True)
    (tmp_path / "driver/version.info").touch()
    monkeypatch.setattr(npu_access, "OTHERS", (str(tmp_path / "npu-smi"), "/nowhere/firmware"))
    (tmp_path / "npu-smi").touch()
    return NpuSettings(nodes=tmp_path / "dev", driver=tmp_path / "driver")


def never() -> bool:
    raise AssertionError("the engine was asked")


def test_what_is_missing_is_named(wanted: NpuSettings) -> None:
    with pytest.raises(MissingError) as raised:
        npu_access.access(wanted, 0, lambda: False)
    said = str(raised.value)
    assert f"{wanted.nodes}/davinci0 cannot be given" in said and "davinci_manager," not in said
    assert f"({wanted.nodes} has davinci1, davinci4)" in said and "--device" in said
    os.remove(wanted.nodes / "hisi_hdc")
    (wanted.driver / "lib64").rmdir()
    with pytest.raises(MissingError, match=f"{wanted.nodes}/hisi_hdc, {wanted.driver}/lib64 cannot be given"):
        npu_access.access(wanted, 1, lambda: False)
    # A dry run shows what would be.
    assert len(npu_access.access(wanted, 0, lambda: False, check=False).nodes) == 4


def test_nodes_and_driver_one_by_one(wanted: NpuSettings, tmp_path: Path) -> None:
    there = PurePosixPath("/usr/local/Ascend/driver")
    expected = Access(
        nodes=tuple((wanted.nodes / name, f"/dev/{name}") for name in NODES),
        mounts=(
            Mount(wanted.driver / "lib64", there / "lib64"),
            Mount(wanted.driver / "version.info", there / "version.info"),
            Mount(tmp_path / "npu-smi", PurePosixPath(tmp_path / "npu-smi")),
        ),
        groups=tuple({os.stat(wanted.nodes).st_gid} - {0}),
    )
    assert npu_access.access(wanted, 1, lambda: False) == expected
    nodes = NpuSettings("nodes", wanted.nodes, wanted.driver)
    assert npu_access.access(nodes, 1, never) == expected


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_the_groups_of_the_nodes_and_never_roots(wanted: NpuSettings) -> None:
    for name, group in zip(NODES, (4321, 4321, 1234, 0), strict=True):
        os.chown(wanted.nodes / name, 0, group)
    assert npu_access.access(wanted, 1, lambda: False).groups == (1234, 4321)


def test_a_rootless_engine_gives_no_groups(wanted: NpuSettings) -> None:
    assert npu_access.access(wanted, 1, lambda: False, rootless=True).groups == ()
    (wanted.nodes / "hisi_hdc").chmod(0o060)
    with pytest.raises(
        ConfigError, match=r"hisi_hdc cannot be given to a container of a rootless engine: only members"
    ):
        npu_access.access(wanted, 1, lambda: False, rootless=True)
    npu_access.access(wanted, 1, lambda: False, rootless=True, check=False)


@pytest.mark.parametrize("how", ["auto", "runtime"])
def test_ascends_own_runtime_mounts_everything_itself(tmp_path: Path, how: Literal["auto", "runtime"]) -> None:
    has_runtime = (lambda: True) if how == "auto" else never
    found = npu_access.access(NpuSettings(how, tmp_path, tmp_path), 3, has_runtime)
    assert found == Access(runtime="ascend", variables=(("ASCEND_VISIBLE_DEVICES", "3"),))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"acess": "auto"}, "`acess`, which is not one of: access, nodes, driver"),
        ({"access": "privileged"}, "access: Invalid enum value 'privileged'"),
        (["nodes"], "not a mapping"),
        ("nodes", "'nodes' is not a mapping"),
    ],
)
def test_a_setting_that_is_not_understood(values: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"npu in invoke.yaml: .*{reason}"):
        schema.setting(values, NpuSettings, "npu")


def test_settings() -> None:
    assert schema.setting(None, NpuSettings, "npu") == NpuSettings() == schema.setting({}, NpuSettings, "npu")
    given = {"access": "runtime", "nodes": "/d", "driver": "/e"}
    assert schema.setting(given, NpuSettings, "npu") == NpuSettings("runtime", Path("/d"), Path("/e"))
