"""How a container reaches an NPU: its device nodes and the driver's files one by one, or the vendor's own runtime.

What there is to mount: the base list of Ascend's container runtime and MindX's documentation for Docker.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Callable

from deberta.core.errors import ConfigError, MissingError
from deberta.host.engine.containers import Access, Mount

AUTO, NODES, RUNTIME = "auto", "nodes", "runtime"
MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")  # every container needs them beside its davinci<N>
DRIVER = PurePosixPath("/usr/local/Ascend/driver")  # where it is in a container
# Mounted if they are there; driver/lib64 must be.
DRIVER_PARTS = ("include", "version.info")
OTHERS = ("/usr/local/dcmi", "/usr/local/bin/npu-smi", "/usr/local/Ascend/firmware", "/etc/ascend_install.info")


@dataclass(frozen=True)
class NpuSettings:
    """`npu` of invoke.yaml. `access`: auto, nodes or runtime; the folders of the device nodes and of the driver."""

    access: str = AUTO
    nodes: Path = Path("/dev")
    driver: Path = Path(DRIVER)


def settings(given: Any) -> NpuSettings:
    """The setting `npu`. Raises ConfigError."""
    values = dict(given or {}) if hasattr(given or {}, "items") else None
    if values is None or set(values) - {"access", "nodes", "driver"}:
        raise ConfigError(f"npu in invoke.yaml is {given!r}; it takes access, nodes and driver")
    access = str(values.get("access") or AUTO)
    if access not in (AUTO, NODES, RUNTIME):
        raise ConfigError(f"npu.access in invoke.yaml is {access!r}, not one of: {AUTO}, {NODES}, {RUNTIME}")
    return NpuSettings(access, Path(values.get("nodes") or "/dev"), Path(values.get("driver") or DRIVER))


def access(wanted: NpuSettings, device: int, has_runtime: Callable[[], bool], check: bool = True) -> Access:
    """What the container of a run on `device` gets. Raises MissingError naming what is not there, if asked to check.

    With the Ascend Docker Runtime, which `auto` takes where the engine has it, that mounts nodes and driver itself.
    """
    if wanted.access == RUNTIME or (wanted.access == AUTO and has_runtime()):
        return Access(runtime="ascend", variables=(("ASCEND_VISIBLE_DEVICES", str(device)),))
    nodes = [wanted.nodes / name for name in (f"davinci{device}", *MANAGERS)]
    library = wanted.driver / "lib64"
    absent = [str(path) for path in (*nodes, library) if not path.exists()]
    if absent and check:
        there = ", ".join(sorted(path.name for path in wanted.nodes.glob("davinci[0-9]*"))) or "no davinci device"
        raise MissingError(
            f"{', '.join(absent)} cannot be given to the container: not there ({wanted.nodes} has {there}). Install "
            "the Ascend driver, take another device with --device, or set npu in invoke.yaml. Run: invoke doctor"
        )
    mounts = [Mount(library, DRIVER / "lib64")]
    mounts += [Mount(wanted.driver / part, DRIVER / part) for part in DRIVER_PARTS if (wanted.driver / part).exists()]
    mounts += [Mount(Path(path), PurePosixPath(path)) for path in OTHERS if os.path.exists(path)]
    groups = {os.stat(path).st_gid for path in nodes if path.exists()} - {0}
    return Access(
        nodes=tuple((path, f"/dev/{path.name}") for path in nodes), mounts=tuple(mounts), groups=tuple(sorted(groups))
    )
