"""A cluster's scheduler and workers as processes: what they listen on, whom they refuse, and how they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deberta.host.environments import cluster as environment
from tests.cluster import nodes
from tests.cluster.nodes import Network, Node, Process
from tests.mnli_helpers import REPOSITORY

pytestmark = [pytest.mark.slow]
USER = 4712  # of all commands: nobody's here, and not root
PORT = 8786
CLIENT = """
import sys, distributed
from distributed.security import Security
scheduler, ca, own = sys.argv[1:]
files = {f"tls_client_{kind}": f"{own}/{name}.pem" for kind, name in (("cert", "cert"), ("key", "key"))}
security = Security(tls_ca_file=f"{ca}/ca.pem", require_encryption=True, **files) if own else None
with distributed.Client(scheduler, security=security, timeout=10, set_as_default=False) as client:
    print(len(client.scheduler_info(n_workers=-1)["workers"]), "workers")
"""


@pytest.fixture(name="network")
def _network() -> Iterator[Network]:
    if environment.find(REPOSITORY) is None:
        pytest.skip(f"{environment.FOLDER} is not installed: invoke cluster show makes it")
    if reason := nodes.unavailable():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="deberta-cluster-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with nodes.network(folder) as network:
            yield network


def command(node: Node, *arguments: str) -> list[str]:
    own = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups"]
    return [*own, sys.executable, str(REPOSITORY / "tasks.py"), "-f", str(node.folder / "own.yaml"), *arguments]


def give(node: Node) -> None:
    for path in (node.folder, *node.folder.rglob("*")):
        os.chown(path, USER, USER)


def joined(network: Network, name: str, scheduler: str = "") -> Node:
    """A host with settings of a cluster whose scheduler is there, or on this host."""
    node = network.node(name)
    own = {
        "scheduler": f"tls://{scheduler or node.address}:{PORT}",
        "certificates": str(node.folder / "certificates"),
        "folder": str(node.folder / "cluster"),
    }
    settings = {"clusters": {"lab": own}, "backend": "cpu", "executor": "local", "stages_python": sys.executable}
    (node.folder / "own.yaml").write_text(json.dumps(settings))
    give(node)
    return node


def run(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    return node.run(*command(node, *arguments), folder=REPOSITORY)


def start(node: Node, *arguments: str) -> Process:
    return node.start(*command(node, *arguments), folder=REPOSITORY)


def certify(maker: Node, hosts: list[Node]) -> None:
    """One CA for all."""
    done = run(maker, "cluster", "certs", "--host", ",".join(host.name for host in hosts))
    assert done.returncode == 0, done.stderr
    for host in hosts:
        shutil.copytree(maker.folder / "certificates-ca" / host.name, host.folder / "certificates")
        give(host)


def client(node: Node, scheduler: str, ca: Path | str = "", own: Path | str = "") -> subprocess.CompletedProcess[str]:
    python = environment.find(REPOSITORY)
    return node.run(str(python), "-c", CLIENT, scheduler, str(ca), str(own), folder=REPOSITORY)


def test_nothing_listens_beyond_the_chosen_address_and_strangers_are_refused(network: Network) -> None:
    a = joined(network, "host-a")
    b, stranger = joined(network, "host-b", a.address), joined(network, "stranger", a.address)
    certify(a, [a, b])
    certify(stranger, [stranger])

    refused = node_root(b)
    assert refused.returncode == 2 and "does not run as root" in refused.stderr
    absent = run(b, "cluster", "show")
    assert absent.returncode == 3 and f"no scheduler answers at tls://{a.address}" in absent.stderr
    scheduler = start(a, "cluster", "scheduler")
    scheduler.wait_for("scheduler at tls://")
    second = run(a, "cluster", "scheduler")
    assert second.returncode == 2 and "cannot listen on" in second.stderr
    elsewhere = run(b, "cluster", "worker", "--device", "0", "--listen", a.address)
    assert elsewhere.returncode == 2 and "is no address of this host" in elsewhere.stderr
    workers = start(b, "cluster", "worker", "--device", "0,1")
    for device in (0, 1):
        workers.wait_for(f"host-b/{device} is at tls://{b.address}")

    assert {(own.address, own.port) for own in a.listening()} == {(a.address, PORT)}
    assert [own.address for own in b.listening()] == [b.address, b.address]
    assert not any(node.run("ss", "-ulnpH").stdout for node in (a, b))

    shown = run(a, "cluster", "show", "--json")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert [device["name"] for device in document["devices"]] == ["host-b/0", "host-b/1"]
    assert all(device["same_code"] and not device["busy"] for device in document["devices"])

    theirs, ours, address = stranger.folder / "certificates", a.folder / "certificates", f"{a.address}:{PORT}"
    assert client(a, f"tls://{address}", ours, ours).stdout == "2 workers\n"
    for answer in (
        client(stranger, f"tcp://{address}"),
        client(stranger, f"tls://{address}", theirs, theirs),
        client(stranger, f"tls://{address}", ours, theirs),  # it trusts our CA, and has none of its certificates
    ):
        assert answer.returncode and not answer.stdout, answer.stdout
    foreign = run(stranger, "cluster", "worker", "--device", "0")
    assert foreign.returncode == 5 and "certificates of different CAs" in foreign.stderr, foreign.stderr
    assert run(a, "cluster", "show", "--json").stdout == shown.stdout, "a stranger's worker came in"


def node_root(node: Node) -> subprocess.CompletedProcess[str]:
    """A worker that root starts."""
    return node.run(*command(node, "cluster", "worker", "--device", "0")[6:], folder=REPOSITORY)


def test_all_of_a_workers_processes_end_with_it_and_with_the_scheduler(network: Network) -> None:
    a = joined(network, "host-a")
    b = joined(network, "host-b", a.address)
    certify(a, [a, b])
    scheduler = start(a, "cluster", "scheduler")
    scheduler.wait_for("scheduler at tls://")

    def started() -> Process:
        workers = start(b, "cluster", "worker", "--device", "0,1")
        for device in (0, 1):
            workers.wait_for(f"host-b/{device} is at tls://")
        return workers

    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, 128 + signal.SIGKILL)):
        workers = started()
        workers.send(number)
        assert workers.wait() == code, workers.output
        nodes.wait_for(lambda: b.running("tasks.py") == [], f"the end after signal {number}")
    workers = started()
    scheduler.send(signal.SIGKILL)
    assert workers.wait() == 4 and "the scheduler at tls://" in workers.output, workers.output
    assert b.running("tasks.py") == []
