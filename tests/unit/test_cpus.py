"""The effective number of CPUs: cgroup trees as Docker, systemd and plain hosts show them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

import pytest

from deberta.core import machine
from deberta.core.errors import ConfigError


def tree(folder: Path, own: str, **files: str) -> tuple[Path, Path]:
    """A cgroup mount with the given files (`__` for `/`), and the text of /proc/self/cgroup beside it."""
    root = folder / "cgroup"
    root.mkdir()
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.replace("_max", ".max").replace("cpu_cfs", "cpu.cfs")).write_text(text)
    (folder / "own").write_text(own)
    return root, folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu_max": "150000 100000\n"}, 1.5),  # a container with a cgroup of its own, v2
        ("0::/\n", {"cpu_max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "300000 100000\n"}, 3.0),  # a limit further up
        ("0::/docker/1f\n", {"cpu_max": "200000 100000\n"}, 2.0),  # the host's path, the container's mount
        ("0::/../..\n", {"cpu_max": "200000 100000\n"}, 2.0),  # seen from another cgroup namespace
        (
            "4:memory:/x\n3:cpu,cpuacct:/docker/1f\n",
            {"cpu__cpu_cfs_quota_us": "250000\n", "cpu__cpu_cfs_period_us": "100000\n"},
            2.5,
        ),
        ("3:cpu:/\n", {"cpu__cpu_cfs_quota_us": "-1\n", "cpu__cpu_cfs_period_us": "100000\n"}, None),
        ("3:cpuacct:/\n", {"cpu__cpu_cfs_quota_us": "100000\n", "cpu__cpu_cfs_period_us": "100000\n"}, None),
        ("0::/\n", {"cpu_max": "rubbish\n"}, None),
        ("", {}, None),
    ],
)
def test_quota(tmp_path: Path, own: str, files: dict[str, str], expected: Optional[float]) -> None:
    assert machine.quota(*tree(tmp_path, own, **files)) == expected


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert machine.quota(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.parametrize(("limit", "expected"), [(None, 4), (0.5, 1), (2.9, 2), (64.0, 4)])
def test_the_smaller_of_affinity_and_quota_rounded_down(
    monkeypatch: pytest.MonkeyPatch, limit: Optional[float], expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(machine, "quota", lambda: limit)
    assert machine.effective_cpus() == expected


def test_cpu_name_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: A: first\nflags\t\t: fpu avx2\n\nmodel name\t: B\nflags\t\t: fpu\n"
    )
    assert machine.cpu_fields(cpuinfo)["model name"] == "A: first" and machine.cpu_flags(cpuinfo) == {"fpu", "avx2"}
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\n")  # aarch64 names no model
    assert machine.cpu_flags(cpuinfo) == {"fp", "asimd"}
    assert machine.cpu_fields(tmp_path / "absent") == {}
    monkeypatch.setattr(machine, "cpu_fields", dict)
    assert machine.cpu_name()


@pytest.mark.parametrize(("flags", "has"), [("avx512f avx512_bf16", True), ("avx2 amx_bf16", True), ("avx512f", False)])
def test_bf16_is_refused_on_a_cpu_without_its_instructions(
    flags: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: Some CPU\nflags\t\t: fpu {flags}\n")
    reason = machine.why_no_bf16(cpuinfo)
    assert bool(reason) != has
    monkeypatch.setattr(machine, "why_no_bf16", lambda: reason)
    machine.check_precision("int8")
    if has:
        machine.check_precision("bf16")
    else:
        with pytest.raises(ConfigError, match=r"--precision bf16: .*amx_bf16 or avx512_bf16.*take --precision int8"):
            machine.check_precision("bf16")
