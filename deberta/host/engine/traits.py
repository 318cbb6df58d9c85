"""What an engine tells of itself that decides how a container runs: whose ids are in it, SELinux, and its cgroups."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, NamedTuple
from urllib.parse import urlsplit

from deberta.core.errors import ConfigError

SELINUX = Path("/sys/fs/selinux/enforce")  # on a machine with SELinux


class Traits(NamedTuple):
    """Of one engine."""

    rootless: bool = False  # root in a container is the engine's own user outside
    remapped: bool = False  # user-namespace remapping: ids in a container are others outside
    selinux: bool = False  # containers may only touch files with a container's label
    # The engine has no cgroups for a limit: rootless without version 2 or systemd, old kernels.
    no_memory_limit: bool = False
    no_pids_limit: bool = False


def of(info: Mapping[str, Any]) -> Traits:
    """The traits in the engine's answer to `docker info`.

    Docker lists them as security options. Podman (4.3) does not: it has a field of its own for being rootless, and
    gives containers labels wherever this machine has SELinux.
    """
    options = {field for option in info.get("SecurityOptions") or () for field in str(option).split(",")}
    rootless = "name=rootless" in options or info.get("Rootless") is True
    no_limits = info.get("CgroupDriver") == "none" or (rootless and str(info.get("CgroupVersion")) == "1")
    return Traits(
        rootless=rootless,
        remapped="name=userns" in options,
        selinux="name=selinux" in options or ("BuildahVersion" in info and SELINUX.exists()),
        no_memory_limit=no_limits or info.get("MemoryLimit") is False,
        no_pids_limit=no_limits or info.get("PidsLimit") is False,
    )


def check_owner(base_url: str, uid: int) -> None:
    """Raise ConfigError if a rootless engine is not of this user, who is to own what containers write.

    An engine that does not listen on a socket of this machine is taken to be the user's.
    """
    parts = urlsplit(base_url)
    path = Path(parts.netloc + parts.path)
    if parts.scheme in ("unix", "http+unix") and path.exists() and path.stat().st_uid != uid:
        raise ConfigError(
            f"the rootless engine at {base_url} belongs to the user {path.stat().st_uid}, and so would the files "
            f"that it writes, not to {uid}. Set DOCKER_HOST to an engine of your own, or use --executor local"
        )
