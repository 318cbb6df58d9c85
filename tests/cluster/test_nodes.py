"""The harness itself: what the tests of clusters rely on, shown with plain processes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import nodes
from tests.cluster.nodes import Network

pytestmark = [
    pytest.mark.slow,
]


@pytest.fixture(name="network")
def _network(tmp_path: Path) -> Iterator[Network]:
    if reason := nodes.unavailable():
        pytest.skip(reason)
    with nodes.network(tmp_path) as network:
        yield network


def test_hosts_of_their_own(network: Network) -> None:
    """Names, addresses, connections from one to another, ports, a power cut, and nothing is left at the end."""
    a, b = network.node("host-a"), network.node("host-b", MARK="b's")
    server = a.start(sys.executable, "-m", "http.server", "8000", "--bind", a.address)
    nodes.wait_for(lambda: bool(a.listening()), "the server")
    assert [(s.address, s.port) for s in a.listening()] == [(a.address, 8000)] and b.listening() == []
    read = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=3).status)"
    url = f"http://{a.address}:8000/"
    assert b.run(sys.executable, "-c", read, url).stdout == "200\n"
    assert b.run("sh", "-c", 'echo "$(hostname) $MARK $HOME"').stdout == f"host-b b's {b.home}\n"
    assert not Path("/proc/net/dev").read_text().count("port1"), "the machine's own network was touched"
    a.cut()
    assert "timed out" in b.run(sys.executable, "-c", read, url).stderr
    a.mend()
    assert b.run(sys.executable, "-c", read, url).stdout == "200\n"
    server.send(signal.SIGSTOP)
    nodes.wait_for(lambda: [p.state for p in a.running("http.server")] == ["T"], "the stop")
    assert "timed out" in b.run(sys.executable, "-c", read, url).stderr
    number = server.number
    a.kill()
    assert server.wait() == 128 + signal.SIGKILL and a.processes() == []
    assert not os.path.exists(f"/proc/{number}") or nodes._state(Path(f"/proc/{number}")).state == "Z"
    assert b.run("true").returncode == 0


def test_a_child_that_outlives_its_parent_is_seen(network: Network) -> None:
    """In the node's own list, also once its parent is the node's first process."""
    a = network.node("host-a")
    shell = a.start("sh", "-c", "sleep 1000 & echo started; sleep 2000")
    shell.wait_for("started")
    shell.send(signal.SIGKILL)
    assert shell.wait() == 128 + signal.SIGKILL
    assert [process.command for process in a.running("sleep 1000")] == ["sleep 1000"]
    assert a.running(f"sleep 3000|{os.getpid()}") == []
