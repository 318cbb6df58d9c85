"""What the simulation of an accuracy run predicts, beside runs of msame's stand-in that waits in each inference."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from deberta.core import records
from deberta.host.cluster import simulation
from deberta.host.shards import spans
from deberta.host.shards.coordinate import ShardSettings
from tests import fake_cann
from tests.pipeline_helpers import Workspace, make_small_demo

ROWS, BATCHES = 120, 60
RECORD = Path("results/demo/ascend/outputs_bs2_om/match.record.json")


@pytest.fixture(name="workspace", scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace = make_small_demo(tmp_path_factory.mktemp("simulated") / "workspace", ROWS, {"match": (ROWS, ROWS)})
    cann = fake_cann.install(tmp_path_factory.mktemp("cann"), python=sys.executable)
    fake_cann.force(cann, msame="slow=0.5", npu_smi="sparse")
    workspace.configure(backend="ascend", cann=str(cann / fake_cann.SET_ENV), msame=str(cann / fake_cann.MSAME))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{(cann / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}")
        yield workspace


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["0,1", "0,1,2,3"])
def test_a_run_takes_as_long_as_is_predicted(workspace: Workspace, devices: str) -> None:
    done = workspace.run_process("infer", "--version", "match", "--bs", "2", "--device", devices, "--force")
    assert done.returncode == 0, done.stderr
    record = records.read(workspace.root / RECORD)
    assert record is not None
    sharding = spans.of_internal(record.internal)
    assert sharding is not None
    took = [
        (datetime.fromisoformat(shard.finished) - datetime.fromisoformat(shard.started)).total_seconds()
        for shard in sharding.shards
    ]
    batch_seconds = sum(shard.inference_ms for shard in sharding.shards) / 1000 / BATCHES
    starts = [seconds - shard.inference_ms / 1000 for seconds, shard in zip(took, sharding.shards)]
    count, start_seconds = len(sharding.devices), statistics.fmean(starts)
    predicted = simulation.accuracy(BATCHES, [batch_seconds] * count, start_seconds, ShardSettings())
    ratio = record.seconds / predicted.now
    print(
        f"{count} devices, {len(sharding.shards)} shards, {batch_seconds:.2f} s a batch, {start_seconds:.2f} s a start"
        f": predicted {predicted.now:.1f} s, measured {record.seconds:.1f} s, ratio {ratio:.3f}"
    )
    assert 0.85 < ratio < 1.2
