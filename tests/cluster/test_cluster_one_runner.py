"""Never two runners on a cluster's device, nor one beside a performance run on its host, while workers are killed.

CAMPAIGN_SEED (0) is of the kills, CAMPAIGN_KILLS (12) their number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter

import pytest

from deberta.core import records
from deberta.host.shards import spans
from tests import fake_cann
from tests.cluster import clusters, nodes
from tests.cluster.clusters import NAME, Cluster
from tests.cluster.nodes import Node, Process
from tests.mnli_helpers import REPOSITORY

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
KILLS = int(os.environ.get("CAMPAIGN_KILLS", "12"))
ROWS = 300
CASE = ("--bs", "1", "--version", "match", "--buckets", "256")
PERF = ("perf", "--bs", "1", "--version", "match", "--loops", "3", "--device", "1", "--force")


def _prepare(cluster: Cluster) -> None:
    """Bins and the user's .om, and a stand-in on each host that counts runners and computes nothing."""
    root = cluster.workspace.root
    cluster.succeed("preprocess", "--bs", "1", "--version", "match")
    compiled = root / "models/demo/ascend/deberta_bs1.om"
    compiled.parent.mkdir(parents=True)
    compiled.write_bytes(b"the user's")
    cluster.client.own()
    cluster.configure(cluster.client, clusters=_with_short_shards(cluster))
    for host in cluster.hosts:
        counted = host.folder / "counted"
        fake_cann.force(host.folder / "Ascend", npu_smi="sparse", msame=f"digests,slow=0.1,count={counted}")
    beside = cluster.hosts[0].folder / "beside"  # a workspace of somebody else's on a host with workers
    shutil.copytree(root, beside)
    cluster.configure(cluster.hosts[0], workspace=str(beside), profiles={"demo": {"rows": {"match": ROWS}}})
    cluster.hosts[0].own()


def _with_short_shards(cluster: Cluster) -> object:
    settings = json.loads((cluster.workspace.root / "settings.yaml").read_text())["clusters"]
    settings[NAME]["shard_seconds"] = 0.4
    return settings


def _start(cluster: Cluster, host: Node, device: str) -> Process:
    command = cluster.command(host, "cluster", "worker", "--cluster", NAME, "--device", device)
    return host.start(*command, folder=REPOSITORY)


def _wait_for_shards(command: Process) -> None:
    nodes.wait_for(lambda: " device" in command.output or command.popen.poll() is not None, "shards", 120)


def test_kills_of_workers_of_their_devices_processes_and_of_runners() -> None:
    if reason := clusters.unavailable():
        pytest.skip(reason)
    chance, kills, ends, beside = random.Random(SEED), Counter[str](), Counter[int](), Counter[int]()
    with clusters.cluster(hosts=2, rows=ROWS) as cluster:
        _prepare(cluster)
        cluster.start_scheduler()
        places = [(host, device) for host in cluster.hosts for device in "01"]
        workers = {(host.name, device): cluster.start_workers(host, device) for host, device in places}
        perf = None
        while 0 not in ends:
            for (name, device), worker in workers.items():
                worker.wait_for(f"{name}/{device}{clusters.STARTED}", 120)
            command = cluster.start("infer", *CASE, "--cluster", NAME)
            _wait_for_shards(command)
            while command.popen.poll() is None:
                time.sleep(chance.uniform(1.0, 4.0))
                kind = chance.choice(["cluster worker", "msame"])
                there = chance.choice(cluster.hosts).running(kind)
                if sum(kills.values()) < KILLS and there and command.popen.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(chance.choice(there).number, signal.SIGKILL)
                        kills[kind] += 1
                if perf is None or perf.popen.poll() is not None:
                    if perf is not None:
                        beside[perf.popen.returncode] += 1
                    perf = cluster.hosts[0].start(*cluster.command(cluster.hosts[0], *PERF), folder=REPOSITORY)
                for host, device in places:
                    if workers[host.name, device].popen.poll() is not None:
                        workers[host.name, device] = _start(cluster, host, device)
            ends[command.wait()] += 1
            print(command.output[-2500:])
            assert sum(ends.values()) < 40, command.output[-3000:]
        begun = {host.name: _begun(host) for host in cluster.hosts}
        alone = sum(".alone." in line for lines in begun.values() for line in lines)
        runs = {name: len(lines) for name, lines in begun.items()}
        print(f"runs {runs}, {alone} of them alone; kills {dict(kills)}; ends {dict(ends)}, beside {dict(beside)}")
        for host in cluster.hosts:
            overlaps = host.folder / "counted/overlaps"
            assert not overlaps.exists(), overlaps.read_text()
        assert set(ends) <= {0, 3, 4} and alone >= 1 and sum(kills.values()) >= 3 and set(beside) <= {0}
        _check_outputs(cluster)
        assert cluster.scheduler is not None
        cluster.scheduler.send(signal.SIGINT)
        nodes.wait_for(lambda: not any(host.running("msame|worker") for host in cluster.hosts), "all to end", 40)


def _begun(host: Node) -> list[str]:
    begun = host.folder / "counted/begun"
    return begun.read_text().splitlines() if begun.exists() else []


def _check_outputs(cluster: Cluster) -> None:
    """Each row's outputs are those of its tokens, each batch is of one shard, and lost attempts are told."""
    root = cluster.workspace.root
    record = records.read(root / "results/demo/ascend/outputs_bs1_om/match.record.json")
    assert record is not None
    sharding = spans.of_internal(record.internal)
    assert sharding is not None and spans.coverage(sharding.shards, {256: ROWS}) == []
    print(f"{len(sharding.shards)} shards, lost: {[(lost.device, lost.why) for lost in sharding.lost]}")
    [folder] = record.subjects
    for index in range(ROWS):
        bins = root / "data/demo/pre_mnli_bs1/match"
        tokens = [(bins / name / f"input_{index}.bin").read_bytes() for name in ("input_ids", "input_mask")]
        expected = hashlib.sha256(b"".join(tokens)).digest()[:12]
        assert (root / folder / f"input_{index}_output_0.bin").read_bytes() == expected
