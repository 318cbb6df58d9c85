"""The machine: its CPU, how many of its cores this process may really use, and whether a process runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

from deberta.core import contract, files
from deberta.core.errors import INTERRUPTED, ConfigError

# The machines that this project is for, as `uname -m` calls them, and as images are for them.
PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
MACHINES = tuple(PLATFORMS)
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16"}  # OpenVINO computes in bfloat16 with either; its ARM kernels do not


def cpu_fields(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """/proc/cpuinfo's fields of the first CPU; empty if this is not Linux."""
    fields: dict[str, str] = {}
    for line in _lines(cpuinfo):
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def cpu_name() -> str:
    """The CPU's model, e.g. "Intel(R) Xeon(R) CPU @ 2.20GHz"; the architecture where the kernel names no model."""
    return cpu_fields().get("model name") or platform.processor() or platform.machine()


def cpu_flags(cpuinfo: Path = CPUINFO) -> set[str]:
    """Instruction sets by their Linux names: the field is called "flags" on x86_64, "Features" on aarch64."""
    fields = cpu_fields(cpuinfo)
    return {*fields.get("flags", "").split(), *fields.get("Features", "").split()}


def why_no_bf16(cpuinfo: Path = CPUINFO) -> str:
    """Why bfloat16 has no instructions on this CPU; empty if it has."""
    if BF16_FLAGS & cpu_flags(cpuinfo):
        return ""
    return f"this CPU ({cpu_name()}) has no bfloat16 instructions ({' or '.join(sorted(BF16_FLAGS))} in /proc/cpuinfo)"


def check_precision(precision: str) -> None:
    """Raise ConfigError for a precision of the cpu backend's that this CPU has no instructions for."""
    if precision == contract.BF16 and (reason := why_no_bf16()):
        raise ConfigError(f"--precision {precision}: {reason}. Leave it out, or take --precision {contract.INT8}")


def is_container() -> bool:
    """Whether this is in a container of Docker's, Podman's or Kubernetes'."""
    files_of_engines = ("/.dockerenv", "/run/.containerenv")
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(map(os.path.exists, files_of_engines))


def is_alive(process: str) -> bool:
    """Whether a process of that number runs here; in another container it is not seen."""
    try:
        return files.is_running(contract.whole(process, 1))
    except (OverflowError, ValueError):
        return False


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a process that on Linux is killed when this one ends; `options` are Popen's, in text mode.

    An interrupt that comes meanwhile, or SIGUSR1, waits until the process is there, and ends it: raised in what Python
    runs around a fork, it would be printed and forgotten.
    """
    parent, prctl = os.getpid(), _prctl()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)

    def prepare() -> None:
        end_with(parent, prctl)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    process: Optional[subprocess.Popen[str]] = None
    try:
        try:
            process = subprocess.Popen(command, preexec_fn=prepare, text=True, errors="replace", **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except BaseException:
        if process is not None:
            process.kill()
            process.wait()
        raise
    return process


def _prctl() -> Any:
    return getattr(ctypes.CDLL(None), "prctl", None)


def end_with(parent: int, prctl: Any) -> None:
    """In a process that was just forked: on Linux the kernel kills it when its parent ends, or the thread of it did."""
    if prctl is not None:
        prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def fork(work: Callable[[], Optional[int]]) -> int:
    """Run `work` in a copy of this process, which has one thread, and return the copy's process number.

    The copy is the leader of a session of its own, so that Ctrl-C reaches this process alone, and ends with it. What
    `work` returns is its exit code, None is 0.
    """
    parent, prctl = os.getpid(), _prctl()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        end_with(parent, prctl)
        os.setsid()
        code = work() or 0
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)  # nothing of what the parent has to do at its end


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


def cgroup_folders(controller: str, root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> list[Path]:
    """The folders of this process's cgroups, v2 and v1, for `controller`, each from its own up to the mounted root.

    In a container the path in `own` can be the host's, which does not exist below `root`: the ones above it still do.
    """
    folders: list[Path] = []
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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []  # not Linux, or a file this cgroup does not have: no limit is known


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
