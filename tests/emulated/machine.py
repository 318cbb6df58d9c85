"""An aarch64 Debian 12 in a folder under QEMU's user-mode emulation: a user's Kunpeng host, but for its speed.

debootstrap makes the system once; it stays in the user's cache folder, and each test runs in a copy. Commands run in
namespaces of their own (users, mounts, processes, network: there is none), where qemu-aarch64-static is registered for
aarch64's programs: when a command ends, no mount and no registration is left. Linux gives a user namespace its own
binfmt_misc since 6.7; before that the package binfmt-support must have registered QEMU for the whole machine.

QEMU passes x86's /proc/cpuinfo on, by which ONNX Runtime and OpenVINO would go, and OpenVINO needs /sys.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deberta.core import files

SUITE = "bookworm"
PACKAGES = ("python3", "python3-venv", "ca-certificates")
PROGRAMS = ("debootstrap", "qemu-aarch64-static", "unshare", "nsenter", "mount", "chroot")
INSTALL = "apt-get install debootstrap qemu-user-static"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "deberta-ascend", "emulated")
WHEELS = CACHE / "wheels"
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
CPUINFO = """\
processor\t: 0
BogoMIPS\t: 200.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma dcpop asimddp
CPU implementer\t: 0x48
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd01
CPU revision\t: 0

"""
# ELF of 64 bits, little endian, machine 183; F: the kernel keeps QEMU open, so that it need not be in the folder.
REGISTRATION = (
    r":deberta-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:{qemu}:F"
)
ENTER = r"""
set -eu
root=$1 cpuinfo=$2 wheels=$3 registration=$4
shift 4
if [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
    mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    printf %s "$registration" > /proc/sys/fs/binfmt_misc/register
fi
mount -t proc proc "$root/proc"
mount --bind "$cpuinfo" "$root/proc/cpuinfo"
mount --rbind /sys "$root/sys"
mkdir -p "$root/wheels"
mount --bind "$wheels" "$root/wheels"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Machine:
    """A system's folder. `wheels`: a folder here that is /wheels in there."""

    root: Path
    wheels: Path

    def run(self, line: str, folder: str = "/root", path: str = "") -> subprocess.CompletedProcess[str]:
        """Run a line of sh in there as root; its output, both streams as one, is shown as it comes, and returned."""
        print(f"\n$ {line}", flush=True)
        variables = {
            "HOME": "/root",
            "PATH": f"{path}/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "INVOKE_WHEELHOUSE": "/wheels",
        }
        settings = [f"{name}={value}" for name, value in variables.items()]
        started, lines = time.monotonic(), []
        command = ["/usr/bin/env", "-i", *settings, "/bin/sh", "-c", f"cd {shlex.quote(folder)} && {line}"]
        with self._start(command) as process:
            assert process.stdout is not None
            for text in process.stdout:
                lines.append(text)
                print(text, end="", flush=True)
            code = process.wait()
        print(f"=> exit code {code} after {time.monotonic() - started:.0f} s", flush=True)
        return subprocess.CompletedProcess(line, code, "".join(lines))

    @contextmanager
    def _start(self, command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
        cpuinfo = self.root.with_name("cpuinfo")
        cpuinfo.write_text(CPUINFO, encoding="ascii")
        registration = REGISTRATION.format(qemu=shutil.which("qemu-aarch64-static"))
        enter = ["/bin/sh", "-c", ENTER, "sh", *map(str, (self.root, cpuinfo, self.wheels)), registration, *command]
        # The holder keeps the user namespace until it can be entered, and ends with this process: its input does.
        with subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE) as holder:
            _map_all_users(holder.pid)
            entering = ["nsenter", "--user", "--target", str(holder.pid), "-S", "0", "-G", "0"]
            spaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"]
            with subprocess.Popen(
                [*entering, *spaces, *enter],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            ) as process:
                try:
                    yield process
                finally:
                    process.kill()


def _map_all_users(process: int) -> None:
    """Map every user and group to itself, once the process is in its own user namespace."""
    deadline = time.monotonic() + 10
    while os.readlink(f"/proc/{process}/ns/user") == os.readlink("/proc/self/ns/user"):
        assert time.monotonic() < deadline, "unshare --user does nothing here"
        time.sleep(0.01)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{process}/{name}").write_text("0 0 4294967295\n", encoding="ascii")


def lacking() -> str:
    """Why this machine cannot emulate aarch64; empty if it can."""
    if os.geteuid():
        return "only root can make and enter another machine's system"
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        return f"{', '.join(missing)} missing. Run: {INSTALL}"
    probe = "mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || test -e /proc/sys/fs/binfmt_misc/qemu-aarch64"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return (
            "this kernel has no binfmt_misc of a user namespace's own (Linux 6.7 or newer), and QEMU is not registered "
            f"(apt-get install binfmt-support): {done.stderr.strip()}"
        )
    return ""


@contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """A copy in `folder` of the cached system, which is made first if need be; the copy is removed at the end."""
    base = CACHE / f"{SUITE}-arm64"
    WHEELS.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            _make(base)
    root = folder / "system"
    try:
        subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
        yield Machine(root, WHEELS)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _make(base: Path) -> None:
    """debootstrap's two stages: the first unpacks here, the second configures under emulation."""
    print(f"\nmaking an arm64 {SUITE} in {base}, once; about 8 minutes", flush=True)
    with files.new_folder(base) as root:
        first = ["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        subprocess.run([*first, SUITE, str(root)], check=True)
        if (root / "proc").is_symlink():  # as it does in a container
            (root / "proc").unlink()
            (root / "proc").mkdir()
        for name, (major, minor) in DEVICES.items():
            if not (root / "dev" / name).exists():
                os.mknod(root / "dev" / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
                os.chmod(root / "dev" / name, 0o666)
        # The second stage tries mknod, which no user namespace may; the devices are there.
        stub = root / "debootstrap/stub/mknod"
        stub.parent.mkdir()
        stub.symlink_to("/bin/true")
        machine = Machine(root, WHEELS)
        done = machine.run("/debootstrap/debootstrap --second-stage", "/", "/debootstrap/stub:")
        assert done.returncode == 0, "debootstrap's second stage failed"
        shutil.rmtree(root / "debootstrap", ignore_errors=True)
