"""Shards on hosts that are killed, stopped, cut off, corrupted or not the same: the bytes of one device, or an error.

What runs the model is a stand-in; everything else is ours and Dask's.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import nodes, pool_processes
from tests.cluster.nodes import Network, Node, Process
from tests.mnli_helpers import REPOSITORY

pytestmark = [pytest.mark.slow]
PYTHON = REPOSITORY / ".venv-cluster/bin/python"
BATCHES, PORT = 120, "8786"
RUNNER, INFER = "pool_processes runner", "pool_processes infer"


@dataclass
class Cluster:
    """Two hosts with three devices, one with the scheduler, and one from which runs are started."""

    network: Network
    control: Node
    first: Node
    second: Node
    client: Node
    certificates: Path
    workspace: Path
    right: str
    scheduler: Process
    workers: dict[str, Process]

    def program(self, node: Node, *arguments: str, **variables: str) -> Process:
        command = (str(PYTHON), "-m", "tests.cluster.pool_processes", *arguments)
        return node.start(*command, folder=None, PYTHONPATH=str(REPOSITORY), **variables)

    def start_scheduler(self) -> None:
        own = str(self.certificates / self.control.name)
        self.scheduler = self.program(self.control, "scheduler", self.control.address, PORT, own)
        self.scheduler.wait_for("scheduler at")

    def start_worker(self, node: Node, device: int, **variables: str) -> None:
        name = f"{node.name}/{device}"
        arguments = (self.address, node.address, str(self.certificates / node.name), str(device), str(node.home))
        self.workers[name] = self.program(node, "worker", *arguments, UNSHARED="1", **variables)
        self.workers[name].wait_for("its process")

    @property
    def address(self) -> str:
        return f"tls://{self.control.address}:{PORT}"

    def infer(self, **variables: str) -> Process:
        own = str(self.certificates / self.client.name)
        return self.program(self.client, "infer", self.address, own, str(self.workspace), str(BATCHES), **variables)

    def result(self, run: Process) -> tuple[int, dict[str, Any], str]:
        """Exit code, what it says at its end, and what it printed."""
        code = run.wait(180)
        return code, json.loads(run.output.splitlines()[-1]), run.output

    def midway(self, run: Process) -> None:
        """Wait until shards are finished and others run."""
        run.wait_for("on 3 devices")
        nodes.wait_for(lambda: len(list(self.workspace.glob(".cache/shards/*/256_*"))) > 4, "shards", 60)

    def runners(self) -> list[str]:
        """What runs the model anywhere."""
        return [state.command for node in self.network.nodes for state in node.running(RUNNER)]


@pytest.fixture(name="cluster")
def _cluster(tmp_path: Path) -> Iterator[Cluster]:
    if reason := nodes.unavailable():
        pytest.skip(reason)
    if not PYTHON.exists():
        pytest.skip("a cluster's environment is not installed: ./inv cluster show")
    with nodes.network(tmp_path) as network:
        control, first, second, client = (network.node(name) for name in ("control", "h1", "h2", "client"))
        folder = tmp_path / "certificates"
        make = "import sys; from pathlib import Path; from deberta.host.cluster import certificates as c; "
        make += "c.make(Path(sys.argv[1]), sys.argv[2:], 1)"
        hosts = [node.address for node in network.nodes]
        done = client.run(str(PYTHON), "-c", make, str(folder), *hosts, PYTHONPATH=str(REPOSITORY))
        assert done.returncode == 0, done.stderr
        for node in network.nodes:
            (folder / node.address).rename(folder / node.name)
        workspace = client.home / "workspace"
        right = pool_processes.make_workspace(workspace, BATCHES, 20_000_000)
        cluster = Cluster(
            network, control, first, second, client, folder, workspace, right, None, {}  # type: ignore[arg-type]
        )  # fmt: skip
        cluster.start_scheduler()
        cluster.start_worker(first, 0)
        cluster.start_worker(first, 1)
        cluster.start_worker(second, 0)
        yield cluster


def lost(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(attempt["device"], attempt["why"]) for attempt in document["sharding"].get("lost", [])]


def test_the_bytes_of_one_device_whatever_is_killed_stopped_or_cut_off(cluster: Cluster) -> None:
    # A model goes to each host once.
    code, document, printed = cluster.result(cluster.infer())
    assert (code, document["dirHash"], lost(document)) == (0, cluster.right, []), printed
    assert printed.count("sending models/p/x.om (20 MB) to") == 2
    assert {shard["device"] for shard in document["sharding"]["shards"]} == {"h1/0", "h1/1", "h2/0"}

    # Another run of ours has a device: it is waited for, and is not silent.
    cluster.second.start("flock", str(cluster.second.home / "locks/device0"), "sleep", "12", folder=None)
    code, document, printed = cluster.result(cluster.infer(PATIENCE="5"))
    assert (code, document["dirHash"], lost(document)) == (0, cluster.right, []), printed
    assert "h2/0: waiting for device 0" in printed

    # kill -9 of a worker: what it ran ends at once, and its shard runs elsewhere.
    run = cluster.infer()
    cluster.midway(run)
    cluster.workers["h1/1"].send(signal.SIGKILL)
    nodes.wait_for(lambda: len(cluster.first.running(RUNNER)) <= 1, "its runner to end", 5)
    code, document, printed = cluster.result(run)
    assert (code, document["dirHash"]) == (0, cluster.right), printed
    assert lost(document) == [("h1/1", "its worker ended, or its host does not answer")]
    assert "sending" not in printed and cluster.runners() == []

    # Another worker of that device; it is stopped past its limit, and what it says later is refused.
    cluster.start_worker(cluster.first, 1)
    run = cluster.infer(PATIENCE="5")
    cluster.midway(run)
    cluster.workers["h1/1"].send(signal.SIGSTOP)
    code, document, printed = cluster.result(run)
    assert (code, document["dirHash"], lost(document)) == (
        (0, cluster.right, [("h1/1", "it did not answer in time")])
    ), printed
    cluster.workers["h1/1"].send(signal.SIGCONT)
    nodes.wait_for(lambda: cluster.runners() == [], "all runners to end")
    code, document, _ = cluster.result(cluster.infer())
    assert (code, document["dirHash"]) == (0, cluster.right)

    # A host without power, and one without network.
    for end in (cluster.second.kill, cluster.first.cut):
        run = cluster.infer()
        run.wait_for("devices:")
        nodes.wait_for(lambda: len(list(cluster.workspace.glob(".cache/shards/*/256_*"))) > 4, "shards", 60)
        end()
        code, document, printed = cluster.result(run)
    assert code == 4 and "no device is left to run batch" in document["error"], printed


def test_without_scheduler_or_driver_what_is_finished_is_kept(cluster: Cluster) -> None:
    run = cluster.infer()
    cluster.midway(run)
    run.send(signal.SIGKILL)
    nodes.wait_for(lambda: cluster.runners() == [], "what it had started to end", 10)
    kept = len(list(cluster.workspace.glob(".cache/shards/*/256_*")))
    run = cluster.infer()
    run.wait_for("batches are there from a run that was stopped")
    nodes.wait_for(lambda: len(list(cluster.workspace.glob(".cache/shards/*/256_*"))) > kept + 2, "shards", 60)
    cluster.scheduler.send(signal.SIGKILL)
    code, document, printed = cluster.result(run)
    assert code == 4 and "no device is left to run batches" in document["error"], printed
    assert "the scheduler at tls://10.77.0.1:8786 does not answer: start it again with" in document["error"]
    assert "are finished and kept: run the same command again" in document["error"]
    nodes.wait_for(lambda: cluster.runners() == [], "all runners to end", 30)
    for worker in cluster.workers.values():
        worker.wait_for("ended", 30)
    code, document, printed = cluster.result(cluster.infer())
    assert code == 3 and "no scheduler answers at tls://10.77.0.1:8786" in document["error"], printed
    cluster.start_scheduler()
    code, document, printed = cluster.result(cluster.infer())
    assert code == 3 and "no device is at tls://10.77.0.1:8786" in document["error"], printed
    for node, device in ((cluster.first, 0), (cluster.second, 0)):
        cluster.start_worker(node, device)
    code, document, printed = cluster.result(cluster.infer())
    assert (code, document["dirHash"]) == (0, cluster.right), printed
    run = cluster.infer()
    run.wait_for("on 2 devices")
    nodes.wait_for(lambda: cluster.runners() != [], "a runner")
    run.send(signal.SIGINT)
    assert run.wait(30) == 130 and cluster.runners() == []
    code, document, printed = cluster.result(cluster.infer())
    assert (code, document["dirHash"]) == (0, cluster.right), printed


def test_a_device_or_a_file_that_is_not_the_same_is_refused_by_name(cluster: Cluster) -> None:
    for variable, code, words in (
        ("CODE", 2, "h2/0 has other code or locks than this host: 1, not "),
        ("CORRUPT", 5, "models/p/x.om came to h2 with SHA-256"),
        ("CANN", 2, "h2/0 has another CANN than h1/0: 1, not 5.1.RC2"),
        ("FLIP", 5, "h2/0 and h1/"),
    ):
        cluster.workers["h2/0"].send(signal.SIGTERM)
        cluster.workers["h2/0"].wait()
        cluster.start_worker(cluster.second, 0, **{variable: "1"})
        got, document, printed = cluster.result(cluster.infer())
        assert got == code and words in document["error"], printed
        assert cluster.runners() == []
        assert (cluster.second.home / "h2-0/models/p/x.om").exists() == (variable in ("CANN", "FLIP"))
    assert "give different bytes for batch 0 at length 256" in document["error"]


def test_a_model_of_real_size_takes_little_memory_on_its_way(cluster: Cluster) -> None:
    with open(cluster.workspace / pool_processes.MODEL, "wb") as file:
        for _ in range(739):
            file.write(os.urandom(10**6))
    code, document, printed = cluster.result(cluster.infer())
    assert (code, document["dirHash"]) == (0, cluster.right), printed
    peaks = {name: _peak_mb(worker) for name, worker in cluster.workers.items()}
    print([line for line in printed.splitlines() if "models/p/x.om" in line])
    print(f"MB at most: client {document['peak_mb']}, scheduler {_peak_mb(cluster.scheduler)}, workers {peaks}")
    assert max(document["peak_mb"], *peaks.values()) < 150


def _peak_mb(process: Process) -> int:
    status = Path(f"/proc/{process.number}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1000
