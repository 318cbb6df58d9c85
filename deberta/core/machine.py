"""How many CPUs this process may really use: its affinity and its cgroup's quota, not the machine's count."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def effective_cpus() -> int:
    """CPUs that threads of this process can keep busy: the smaller of affinity and quota, rounded down, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None  # not on macOS
    allowed = affinity or os.cpu_count() or 1
    limit = quota()
    return max(1, allowed if limit is None else min(allowed, int(limit)))


def quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Optional[float]:
    """The tightest CPU quota, in CPUs, of this process's cgroup and those above it; None without one.

    cgroup v2 has `cpu.max` ("<quota>|max <period>"), v1 `cpu.cfs_quota_us` (-1: none) and `cpu.cfs_period_us`, all in
    microseconds: Linux Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst.
    """
    limits = []
    for folder in cgroup_folders("cpu", root, own):
        words = _words(folder / "cpu.max")
        if not words:
            words = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def cgroup_folders(controller: str, root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> List[Path]:
    """The folders of this process's cgroups, v2 and v1, for `controller`, each from its own up to the mounted root.

    In a container the path in `own` can be the host's, which does not exist below `root`: the ones above it still do.
    """
    folders: List[Path] = []
    for line in _lines(own):
        identifier, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if identifier == "0" and not controllers:
            mount = root
        elif controller in controllers.split(","):
            mount = root / controller  # a link to, e.g., cpu,cpuacct where controllers share a mount
        else:
            continue
        inside = Path(path.strip().lstrip("/"))
        folders += [mount / part for part in (inside, *inside.parents)]
    return [folder for folder in folders if ".." not in folder.parts and folder.is_dir()]


def _lines(path: Path) -> List[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []  # not Linux, or a file this cgroup does not have: no limit is known


def _words(path: Path) -> List[str]:
    return " ".join(_lines(path)).split()
