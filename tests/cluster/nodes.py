"""Hosts of a cluster on this machine: each node has a network, a hostname, processes and a /proc of its own.

A node is a set of Linux namespaces, a veth pair to the bridge of a switch that is one too, and a folder: its home,
workspaces and device locks. The machine's own network is not touched. A node's first process ends it with all that it
runs, as a power cut does, and ends when the test's process does, whatever ends that one. Files are shared, as on a file
system that all hosts mount; who means hosts without one uses the nodes' own folders.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from deberta.core import machine
from tests.pipeline_helpers import environment

NEEDED = ("unshare", "nsenter", "setpriv", "ip", "ss")
SUBNET = "10.77.0"
SWITCH = "switch"
SECONDS = 60.0  # until a process that a test waits for has done its part
_LISTENING = re.compile(r"^LISTEN\s+\d+\s+\d+\s+(?P<address>\S+):(?P<port>\d+)\s+\S+\s*(?P<users>.*)$")


def unavailable() -> str:
    """Why there can be no nodes here; empty if there can."""
    if os.name != "posix" or not os.path.isdir("/proc/self/ns"):
        return "namespaces are Linux's"
    if absent := [name for name in NEEDED if shutil.which(name) is None]:
        return f"{', '.join(absent)} of util-linux or iproute2 is not installed"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    command = ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--mount-proc"]
    script = "ip link add br0 type bridge && ip link add v0 type veth peer name v1"
    done = subprocess.run([*command, "sh", "-c", script], capture_output=True, text=True, check=False)
    return f"this kernel or container allows no such namespaces: {done.stderr.strip()}" if done.returncode else ""


class State(NamedTuple):
    """A process by its number on this machine. `state`: as ps has it: R, S, D, T stopped, Z zombie."""

    number: int
    state: str
    command: str

    @property
    def runs(self) -> bool:
        """Whether it holds files, locks and devices: a zombie does not."""
        return self.state not in ("Z", "X")


class Listening(NamedTuple):
    """A TCP socket that takes connections. `users`: what ss says of the processes that hold it."""

    address: str
    port: int
    users: str


@dataclass
class Process:
    """A program of a node's. Its output goes to a file, so that nobody has to read it for the program to go on."""

    popen: subprocess.Popen[str]
    log: Path

    @property
    def number(self) -> int:
        """On this machine; nsenter, which has entered the node, waits for it."""
        entered = self.popen.pid
        children = Path(f"/proc/{entered}/task/{entered}/children")
        wait_for(
            lambda: self.popen.poll() is not None or bool(children.read_text().split()), f"{self.log.name} to start"
        )
        return int(children.read_text().split()[0])

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        """Send it a signal. nsenter stops when its program does, and then does not see that end or go on."""
        os.kill(self.number, number)
        if number in (signal.SIGKILL, signal.SIGCONT):
            self.popen.send_signal(signal.SIGCONT)

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit code, or 128 and the number of the signal that ended it."""
        code = self.popen.wait(timeout=seconds)
        return code if code >= 0 else 128 - code

    def wait_for(self, text: str, seconds: float = SECONDS) -> str:
        """Its output, once that has a text. Raises AssertionError if it ends or the time does before."""

        def there() -> bool:
            ended = self.popen.poll() is not None
            return text in self.output or ended

        wait_for(there, f"{self.log.name} to print {text!r}", seconds, lambda: self.output)
        assert text in self.output, f"{self.log.name} ended without {text!r}:\n{self.output}"
        return self.output


@dataclass
class Node:
    """A host. `folder`: its own files. `variables`: of the environment of all that it runs. `user`: who runs that."""

    name: str
    address: str
    folder: Path
    first: int  # the number on this machine of its first process, which is 1 in its own namespace
    holder: subprocess.Popen[str]
    variables: dict[str, str] = field(default_factory=dict)
    user: int = 0
    started: list[Process] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def _command(self, command: Sequence[str], folder: Path | None) -> list[str]:
        user = str(self.user)
        own = ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--"] if self.user else []
        entered = ["nsenter", "--target", str(self.first), "--net", "--uts", "--pid", "--mount", "--"]
        return [*entered, *own, "env", f"--chdir={folder or self.folder}", *command]

    def _environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        return {**environment(), "HOME": str(self.home), **self.variables, **variables}

    def run(
        self, *command: str, folder: Path | None = None, seconds: float = 180, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self._command(command, folder),
            env=self._environment(variables),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )

    def start(self, *command: str, folder: Path | None = None, **variables: str) -> Process:
        """Start a program that runs beside the test, in a session of its own."""
        log = self.folder / f"{len(list(self.folder.glob('*.log')))}-{Path(command[0]).name}.log"
        with open(log, "w", encoding="utf-8") as output:
            popen = machine.start(
                self._command(command, folder),
                env=self._environment(variables),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(Process(popen, log))
        return self.started[-1]

    def processes(self) -> list[State]:
        """All of the node's but its first, whoever started them and whoever their parent is now."""
        own = os.stat(f"/proc/{self.first}/ns/pid").st_ino if os.path.exists(f"/proc/{self.first}") else 0
        states = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.first:
                with contextlib.suppress(OSError):  # it has just ended
                    state = _state(entry)
                    # A zombie has no namespaces any more: it is its parent's or none's.
                    if state.runs and os.stat(entry / "ns/pid").st_ino == own:
                        states.append(state)
        return states

    def running(self, pattern: str) -> list[State]:
        """The processes whose command lines have a match, by state: what waits to be reaped runs no more."""
        return [process for process in self.processes() if re.search(pattern, process.command)]

    def listening(self) -> list[Listening]:
        """What `ss -tlnp` prints in the node."""
        done = self.run("ss", "-tlnpH")
        assert done.returncode == 0, done.stderr
        matches = filter(None, map(_LISTENING.match, done.stdout.splitlines()))
        return [Listening(m["address"].strip("[]"), int(m["port"]), m["users"]) for m in matches]

    def cut(self) -> None:
        """Pull the network cable."""
        _ip(self.first, "link", "set", "eth0", "down")

    def mend(self) -> None:
        _ip(self.first, "link", "set", "eth0", "up")

    def mount(self, source: Path, target: Path) -> None:
        """Have a folder of the node's at another path, in the node alone."""
        command = ["nsenter", "--target", str(self.first), "--mount", "mount", "--bind", str(source), str(target)]
        subprocess.run(command, check=True)

    def own(self) -> None:
        """Give the node's files to its user."""
        for folder, _, names in os.walk(self.folder):
            for path in (folder, *(os.path.join(folder, name) for name in names)):
                os.chown(path, self.user, self.user, follow_symlinks=False)

    def kill(self) -> None:
        """Cut the power: all that runs in the node ends with its first process, and nothing is told to anybody."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        for process in self.started:  # nsenter, which may be stopped: the node waits until it has let go
            process.popen.kill()
        self.holder.wait(timeout=SECONDS)


@dataclass
class Network:
    """A switch, and the nodes that are connected to it."""

    folder: Path
    switch: Node
    nodes: list[Node] = field(default_factory=list)

    def node(self, name: str, user: int = 0, **variables: str) -> Node:
        """Connect a new host; its address is the next of the subnet's."""
        node = _hold(name, f"{SUBNET}.{len(self.nodes) + 1}", self.folder, variables)
        node.user = user
        node.own()
        port = f"port{len(self.nodes) + 1}"
        _ip(self.switch.first, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(node.first))
        _ip(self.switch.first, "link", "set", port, "master", "br0", "up")
        _ip(node.first, "address", "add", f"{node.address}/24", "dev", "eth0")
        _ip(node.first, "link", "set", "eth0", "up")
        self.nodes.append(node)
        return node


@contextlib.contextmanager
def network(folder: Path) -> Iterator[Network]:
    """A network of no nodes yet, whose files are in `folder`; it ends with all that its nodes run."""
    switch = _hold(SWITCH, "", folder, {})
    network = Network(folder, switch)
    try:
        _ip(switch.first, "link", "add", "br0", "type", "bridge")
        _ip(switch.first, "link", "set", "br0", "up")
        yield network
    finally:
        for node in (*network.nodes, switch):
            node.kill()


def wait_for(condition: Callable[[], bool], what: str, seconds: float = SECONDS, more: Callable[[], str] = str) -> None:
    """Wait until a condition holds. Raises AssertionError when the time is up; `more` says what is there instead."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}. {more()}"
        time.sleep(0.05)


def _hold(name: str, address: str, folder: Path, variables: Mapping[str, str]) -> Node:
    own = folder / name
    (own / "home").mkdir(parents=True)
    command = ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    script = f"hostname {name} && ip link set lo up && echo ready && exec sleep infinity"
    # Some versions of unshare complain of a signal mask when their child is there.
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    holder = machine.start([*command, "sh", "-c", script], **pipes)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n", f"no node {name}: {unavailable()}"
    first = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0])
    return Node(name, address, own, first, holder, dict(variables))


def _ip(first: int, *arguments: str) -> None:
    command = ["nsenter", "--target", str(first), "--net", "ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _state(entry: Path) -> State:
    status = (entry / "stat").read_text(encoding="utf-8", errors="replace")
    state = status.rpartition(")")[2].split()[0]  # the name before it may hold anything
    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return State(int(entry.name), state, command)
