"""How a container reaches an NPU: by device nodes and the driver's files one by one, or by the vendor's own runtime.

The mounts are those of the base list of Ascend's container runtime and of MindX's documentation for Docker.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Callable, Literal

import msgspec

from deberta.core.errors import ConfigError, MissingError
from deberta.host.engine.containers import Access, Mount

MANAGERS = ("davinci_manager", "devmm_svm", "hisi_hdc")  # nodes that every container needs beside its davinci<N>
DRIVER = PurePosixPath("/usr/local/Ascend/driver")  # in a container
LOCKS = Path("/tmp/deberta-ascend-devices")  # of this machine
# Mounted if they exist; driver/lib64 has to.
DRIVER_PARTS = ("include", "version.info")
OTHERS = ("/usr/local/dcmi", "/usr/local/bin/npu-smi", "/usr/local/Ascend/firmware", "/etc/ascend_install.info")


class NpuSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`npu` of invoke.yaml. `access`: how containers reach an NPU; the folders of the device nodes and the driver.

    `locks`: the folder of the devices' locks (host.run.device_locks), the same for all users of the machine.
    """

    access: Literal["auto", "nodes", "runtime"] = "auto"
    nodes: Path = Path("/dev")
    driver: Path = Path(DRIVER)
    locks: Path = LOCKS


def access(
    npu: NpuSettings, device: int, has_runtime: Callable[[], bool], rootless: bool = False, check: bool = True
) -> Access:
    """The nodes and mounts for the container of a run on `device`.

    The Ascend Docker Runtime, which `auto` uses if the engine has it, mounts them itself. `rootless`: containers of the
    engine cannot be in groups of this machine. `check`: raise MissingError with the names of those that do not exist,
    and ConfigError with those that a rootless engine cannot open.
    """
    if npu.access == "runtime" or (npu.access == "auto" and has_runtime()):
        return Access(runtime="ascend", variables=(("ASCEND_VISIBLE_DEVICES", str(device)),))
    nodes = [npu.nodes / name for name in (f"davinci{device}", *MANAGERS)]
    library = npu.driver / "lib64"
    absent = [str(path) for path in (*nodes, library) if not path.exists()]
    if absent and check:
        names = ", ".join(sorted(path.name for path in npu.nodes.glob("davinci[0-9]*"))) or "no davinci device"
        raise MissingError(
            f"{', '.join(absent)} cannot be given to the container: not there ({npu.nodes} has {names}). Install "
            "the Ascend driver, take another device with --device, or set npu in invoke.yaml. Run: invoke doctor"
        )
    mounts = [Mount(library, DRIVER / "lib64")]
    mounts += [Mount(npu.driver / part, DRIVER / part) for part in DRIVER_PARTS if (npu.driver / part).exists()]
    mounts += [Mount(Path(path), PurePosixPath(path)) for path in OTHERS if os.path.exists(path)]
    groups = set() if rootless else {os.stat(path).st_gid for path in nodes if path.exists()} - {0}
    closed = [str(path) for path in nodes if rootless and check and not _is_open(path)]
    if closed:
        raise ConfigError(
            f"{', '.join(closed)} cannot be given to a container of a rootless engine: only members of a group may use "
            "them, and its containers are in none of this machine. Use an engine of root's "
            "(DOCKER_HOST=unix:///var/run/docker.sock), or --executor local"
        )
    return Access(
        nodes=tuple((path, f"/dev/{path.name}") for path in nodes), mounts=tuple(mounts), groups=tuple(sorted(groups))
    )


def _is_open(path: Path) -> bool:
    """Whether the caller may read and write a node without a group's help."""
    node = os.stat(path)
    return node.st_mode & 0o006 == 0o006 or (node.st_uid == os.getuid() and node.st_mode & 0o600 == 0o600)
