"""An acceptance whose devices are a cluster's: the report of one device, with evidence of who ran what."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests import fake_cann
from tests.cluster import clusters, nodes
from tests.cluster.clusters import NAME, Cluster

pytestmark = pytest.mark.slow
ROWS, CORRECT = 45, 44
ACCEPT = ("acceptance", "--bs", "4", "--version", "match", "--loops", "3")
RESULTS = Path("results/demo/ascend")
OUTPUTS = RESULTS / "outputs_bs4_om/match.record.json"


def _force(cluster: Cluster, msame: str = "") -> None:
    for host in cluster.hosts:
        fake_cann.force(host.folder / "Ascend", npu_smi="sparse", msame=msame)


def _report(root: Path) -> Any:
    return json.loads((root / RESULTS / "report.json").read_text())


def _digests(root: Path) -> list[str]:
    """Of the outputs of the accuracy run."""
    return [subject["digest"]["dirHash"] for subject in json.loads((root / OUTPUTS).read_text())["subject"]]


def _forget_runs(root: Path) -> None:
    for pattern in ("outputs_*", "perf_*", "msame_*", "eval_*", "predictions_*"):
        for path in (root / RESULTS).glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_the_report_of_one_device_from_three_hosts() -> None:
    if reason := clusters.unavailable():
        pytest.skip(reason)
    with clusters.cluster(hosts=3, rows=ROWS, accepted=CORRECT) as cluster:
        root = cluster.workspace.root
        cluster.succeed(*ACCEPT)
        alone, digests = _report(root), _digests(root)
        _forget_runs(root)
        cluster.start_scheduler()
        for host in cluster.hosts:
            cluster.start_workers(host, "0,1" if host.name == "host-a" else "0")
        for node in (cluster.client, *cluster.hosts):
            assert {socket.address for socket in node.listening()} == {node.address}
        # From here on the client has neither CANN nor msame, nor a device: only the hosts need them.
        cluster.configure(cluster.client, cann="", msame="/nowhere/msame")
        cluster.client.variables["PATH"] = os.environ["PATH"]
        _is_stopped_by_ctrl_c(cluster)
        said = cluster.succeed(*ACCEPT, "--cluster", NAME)
        print(said)
        assert "[perf on 3 further devices] on host-a/1 alone" in said and "on host-a/0 alone" not in said
        together = _report(root)
        assert together["body"] == alone["body"] and _digests(root) == digests
        assert together["verdict"]["verdict"] == "checked"
        names = ["host-a/0", "host-a/1", "host-b/0", "host-c/0"]
        [run] = together["measured"]["sharded"]
        assert sorted(f"{d['host']}/{d['device']}" for d in run["devices"]) == names and run["engine"]
        [runs] = together["measured"]["device_runs"]
        assert sorted(device["device"] for device in runs["devices"]) == names
        _verify(cluster, root)


def _is_stopped_by_ctrl_c(cluster: Cluster) -> None:
    """While shards run, and while one performance run has its device, or one on each host: nothing of it is left."""
    several = "[perf on 3 further devices] on host-c/0 alone"
    for moment, seconds in (("on 4 devices", 3), ("on host-a/0 alone", 30), (several, 5)):
        _force(cluster, f"slow={seconds}")
        command = cluster.start(*ACCEPT, "--cluster", NAME)
        command.wait_for(moment, 300)
        count = len(cluster.hosts) if moment == several else 1
        nodes.wait_for(lambda: sum(bool(host.running("msame")) for host in cluster.hosts) >= count, "runners")  # noqa: B023
        command.send(signal.SIGINT)
        assert command.wait() == 130, command.output
        nodes.wait_for(lambda: not any(host.running("msame") for host in cluster.hosts), "all runners to end", 20)
        _force(cluster)
        cluster.succeed("infer", "--bs", "4", "--version", "match", "--cluster", NAME)


def _verify(cluster: Cluster, root: Path) -> None:
    """On a copy without a cluster, and with a shard that says another device, digest or range."""
    copy = cluster.client.folder / "copy"
    shutil.copytree(root, copy)
    cluster.client.own()
    assert "verified: " in cluster.succeed("verify", "--path", str(copy))
    record = copy / OUTPUTS
    content = json.loads(record.read_text())
    shards = content["predicate"]["buildDefinition"]["internalParameters"]["sharding"]["shards"]
    for key, value, finding in (
        ("device", "host-x/0", "none of its devices"),
        ("digest", "0" * 64, "expected digest"),
        ("last", shards[0]["last"] + 1, "two shards have"),
    ):
        altered = json.loads(json.dumps(content))
        altered["predicate"]["buildDefinition"]["internalParameters"]["sharding"]["shards"][0][key] = value
        record.write_text(json.dumps(altered))
        done = cluster.run("verify", "--path", str(copy))
        print(done.stdout[-1500:], done.stderr[-800:])
        assert done.returncode == 5 and finding in done.stdout + done.stderr
