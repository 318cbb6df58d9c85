"""How a container reaches an NPU: its device nodes and the driver's files one by one, or the vendor's own runtime.

What there is to mount: the base list of Ascend's container runtime and MindX's documentation for Docker.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Literal

import msgspec

from deberta.core import schema
from deberta.core.errors import MissingError
from deberta.host.engine.containers import Access, Mount

MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")  # every container needs them beside its davinci<N>
DRIVER = PurePosixPath("/usr/local/Ascend/driver")  # where it is in a container
# Mounted if they are there; driver/lib64 must be.
DRIVER_PARTS = ("include", "version.info")
OTHERS = ("/usr/local/dcmi", "/usr/local/bin/npu-smi", "/usr/local/Ascend/firmware", "/etc/ascend_install.info")


class NpuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`npu` of invoke.yaml. `access`: how containers reach an NPU; the folders of the device nodes and the driver."""

    access: Literal["auto", "nodes", "runtime"] = "auto"
    nodes: Path = Path("/dev")
    driver: Path = Path(DRIVER)


def settings(values: Any) -> NpuSettings:
    """The setting `npu`. Raises ConfigError."""
    return schema.setting(values, NpuSettings, "npu")


def access(wanted: NpuSettings, device: int, has_runtime: Callable[[], bool], check: bool = True) -> Access:
    """What the container of a run on `device` gets. Raises MissingError naming what is not there, if asked to check.

    With the Ascend Docker Runtime, which `auto` takes where the engine has it, that mounts nodes and driver itself.
    """
    if wanted.access == "runtime" or (wanted.access == "auto" and has_runtime()):
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
