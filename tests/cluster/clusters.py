"""A whole cluster on this machine's nodes: a host that gives commands, a scheduler there, and workers on the others.

Each host has settings, certificates, stand-ins of CANN and device locks of its own. Workers run as an ordinary user.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deberta.host.environments import cluster as environment
from tests import fake_cann
from tests.cluster import nodes
from tests.cluster.nodes import Network, Node, Process
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace, make_small_demo

NAME = "lab"
PORT = 8786
USER = 4711  # of the hosts' commands: nobody's here, and not root
STARTED = " is at tls://"


def unavailable() -> str:
    """Why there can be no cluster here; empty if there can."""
    if environment.find(REPOSITORY) is None:
        return f"{environment.FOLDER} is not installed: invoke cluster show makes it"
    return nodes.unavailable()


@dataclass
class Cluster:
    """`client`: the host that gives the commands; the scheduler runs there. `hosts`: those with devices."""

    network: Network
    client: Node
    hosts: list[Node] = field(default_factory=list)
    scheduler: Process | None = None
    workers: dict[str, Process] = field(default_factory=dict)

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.client.folder / "workspace")

    def command(self, node: Node, *arguments: str) -> list[str]:
        settings = self.workspace.root if node is self.client else node.folder
        return [sys.executable, "-m", "invoke", "-f", str(settings / "settings.yaml"), *arguments]

    def run(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command on the client to its end."""
        return self.client.run(*self.command(self.client, *arguments), folder=REPOSITORY, seconds=seconds)

    def succeed(self, *arguments: str, seconds: float = 300) -> str:
        done = self.run(*arguments, seconds=seconds)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.logs()}"
        return done.stderr + done.stdout

    def start(self, *arguments: str) -> Process:
        """Start a command on the client."""
        return self.client.start(*self.command(self.client, *arguments), folder=REPOSITORY)

    def start_scheduler(self) -> Process:
        command = self.command(self.client, "cluster", "scheduler", "--cluster", NAME)
        self.scheduler = self.client.start(*command, folder=REPOSITORY)
        self.scheduler.wait_for("scheduler at tls://")
        return self.scheduler

    def start_workers(self, host: Node, devices: str, *options: str) -> Process:
        """Start the workers of a host, and wait until each is there."""
        command = self.command(host, "cluster", "worker", "--cluster", NAME, "--device", devices, *options)
        process = host.start(*command, folder=REPOSITORY)
        self.workers[f"{host.name}/{devices}"] = process
        for device in devices.split(","):
            process.wait_for(f"{host.name}/{device}{STARTED}")
        return process

    def logs(self) -> str:
        """What the scheduler and the workers printed."""
        processes = {"scheduler": self.scheduler, **self.workers}
        return "\n".join(f"--- {name}\n{process.output}" for name, process in processes.items() if process)

    def configure(self, node: Node, **changes: Any) -> None:
        path = (self.workspace.root if node is self.client else node.folder) / "settings.yaml"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@contextlib.contextmanager
def cluster(hosts: int, rows: int, backend: str = "ascend", accepted: int = 0) -> Iterator[Cluster]:
    """A cluster that is set up and not started: a client with the demo's first rows, and hosts of 4 devices each.

    `accepted`: of the rows those that the gate expects to be right.
    """
    with tempfile.TemporaryDirectory(prefix="deberta-nodes-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the hosts' user has to get there
        with nodes.network(folder) as network:
            yield _set_up(network, hosts, rows, backend, accepted)


def _set_up(network: Network, hosts: int, rows: int, backend: str, accepted: int) -> Cluster:
    here = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    all_nodes = [network.node("client", USER, **here)]
    all_nodes += [network.node(f"host-{letter}", USER, **here) for letter in "abcdefgh"[:hosts]]
    client, *workers = all_nodes
    made = Cluster(network, client, workers)
    installed = network.folder / "Ascend"  # the same path on every host, as the same programs have
    installed.mkdir()
    make_small_demo(made.workspace.root, rows, {"match": (accepted or rows, 1)})
    for node in all_nodes:
        certificates = node.folder / "certificates"
        own = {
            "clusters": {NAME: {
                "scheduler": f"tls://{client.address}:{PORT}", "certificates": str(certificates),
                "folder": str(node.folder / "cluster"), "shard_seconds": 3,
            }},
            "npu": {"locks": str(node.folder / "locks")},
            "backend": backend,
        }  # fmt: skip
        (node.folder / "locks").mkdir()
        fake_cann.install(node.folder / "Ascend", at=str(installed), python=sys.executable)
        fake_cann.force(node.folder / "Ascend", npu_smi="sparse")
        node.mount(node.folder / "Ascend", installed)
        node.variables["PATH"] = f"{(installed / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}"
        own.update(cann=str(installed / "ascend-toolkit"), msame=str(installed / fake_cann.MSAME))
        if node is not client:
            settings = {"workspace": str(node.folder / "unused"), "stages_python": sys.executable, "executor": "local"}
            (node.folder / "settings.yaml").write_text(json.dumps({**settings, "profile": "demo"}))
        made.configure(node, **own)
        node.own()
    addresses = ",".join(node.address for node in all_nodes)
    made.succeed("cluster", "certs", "--cluster", NAME, "--host", addresses)
    for node in all_nodes:
        shutil.copytree(client.folder / "certificates-ca" / node.address, node.folder / "certificates")
        node.own()
    return made
