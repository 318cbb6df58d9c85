"""What a step's container may use at most: memory, processes, its /tmp, and how much of its output the engine keeps."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from deberta.core import contract, schema
from deberta.core.errors import ConfigError
from deberta.host.engine.traits import Traits

UNITS = {"m": 1 << 20, "g": 1 << 30}
LEAST = {"memory": "256m", "tmp": "16m"}
LEAST_PIDS = 64
# The engine keeps what a container prints, all of it by default, until the container is removed. We read the output as
# it comes; what the engine keeps is for `docker logs` on a container that --keep left.
LOG_DRIVER, LOG_OPTIONS = "json-file", {"max-size": "8m", "max-file": "2"}
Size = Annotated[str, Meta(pattern=r"^([1-9][0-9]{0,6}[mg])?\Z")]


class ContainerLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`containers` of invoke.yaml. `memory` and `tmp`, the size of /tmp, as in 512m and 8g.

    No limit: `memory` empty, which is the default, and `pids` 0.
    """

    memory: Size = ""
    pids: Annotated[int, Meta(ge=0, le=4_194_304)] = 4096
    tmp: Size = "2g"


def settings(values: Any) -> ContainerLimits:
    """The mapping `containers` of invoke.yaml. Raises ConfigError."""
    limits = schema.setting(values, ContainerLimits, "containers")
    for name, least in LEAST.items():
        size = str(getattr(limits, name))
        if size and bytes_of(size) < bytes_of(least):
            raise ConfigError(
                f"containers in invoke.yaml: {name}: {size} is less than {least}, the least that is taken"
            )
    if 0 < limits.pids < LEAST_PIDS:
        raise ConfigError(
            f"containers in invoke.yaml: pids: {limits.pids} is neither 0, no limit, nor {LEAST_PIDS} or more"
        )
    return limits


def bytes_of(size: str) -> int:
    """The bytes of a size such as 512m."""
    return contract.whole(size[:-1]) * UNITS[size[-1]]


def possible(limits: ContainerLimits, of: Traits) -> ContainerLimits:
    """The limits without those that the engine cannot set, and might fail for."""
    memory, pids = ("" if of.no_memory_limit else limits.memory), (0 if of.no_pids_limit else limits.pids)
    return msgspec.structs.replace(limits, memory=memory, pids=pids)


def notes(limits: ContainerLimits, of: Traits) -> list[str]:
    """What to say of limits that the engine cannot set."""
    kept = possible(limits, of)
    names = [name for name in ("memory", "pids") if getattr(kept, name) != getattr(limits, name)]
    if not names:
        return []
    which = " and ".join(f"containers.{name}" for name in names)
    return [f"this engine has no cgroups to limit containers with: {which} of invoke.yaml has no effect"]


def out_of_memory(name: str, limits: ContainerLimits, log: object) -> str:
    """The message of a container that was killed for memory."""
    if limits.memory:
        return (
            f"{name} was killed: it needed more memory than {limits.memory}, which is containers.memory in invoke.yaml"
            f". Raise that, or use a smaller batch size. Its output is in {log}"
        )
    return (
        f"{name} was killed: the memory of this machine, or of its engine, ran out (containers.memory in invoke.yaml "
        f"sets no limit). Close other programs, or use a smaller batch size. Its output is in {log}"
    )
