"""Never two runners on a device, nor one beside a performance run, over 500 shards of which many are killed.

CAMPAIGN_SEED (0) is of the kills, CAMPAIGN_KILLS (40) their number.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from deberta.core import records
from deberta.core.contract import LABELS
from deberta.host.run import device_locks
from deberta.host.shards import spans
from tests import fake_cann
from tests.fakes import overlaps
from tests.mnli_helpers import REPOSITORY, dev_line, write_dev
from tests.pipeline.test_device import OF_310P
from tests.pipeline_helpers import GENRES, Workspace, environment, make

SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
KILLS = int(os.environ.get("CAMPAIGN_KILLS", "40"))
ROWS = 500
ASCEND = ("--bs", "1", "--version", "match", "--backend", "ascend")
INFER = ("infer", *ASCEND, "--device", "0,1,2,3")
BESIDE = (  # what another workspace does meanwhile
    ("perf", *ASCEND, "--loops", "5", "--device", "1", "--force"),
    ("infer", *ASCEND, "--device", "3,0", "--limit", "30", "--force"),
    ("infer", *ASCEND, "--device", "2", "--limit", "30", "--force"),
)


@pytest.fixture(name="workspace")
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The padded bins of 500 rows, the user's .om, msame's stand-in that counts, and an npu-smi that does, too."""
    workspace = make(tmp_path / "workspace")
    lines = [
        dev_line(f"A boat {i}.", f"Ship {i}.", GENRES["match"][i % 2], LABELS[i % 3], f"{i}n") for i in range(ROWS)
    ]
    write_dev(workspace.data("match"), lines)
    installed = fake_cann.install(tmp_path / "Ascend", python=sys.executable)
    fake_cann.force(installed, msame=f"digests,slow=0.03,count={tmp_path / 'counted'}")
    settings = {"checkpoint": workspace.checkpoint.name, "config": "model_config.json", "tokenizer": "spm.model"}
    profile = {**settings, "dataset": "MNLI", "labels": list(LABELS), "rows": {"match": ROWS}}
    workspace.configure(
        cann=str(installed / "ascend-toolkit"),
        msame=str(installed / fake_cann.MSAME),
        profiles={"tiny": profile},
        shards={"batches": 1},
    )
    om = workspace.root / "models/tiny/ascend/deberta_bs1.om"
    om.parent.mkdir()
    om.write_bytes(b"the user's")
    table, device = OF_310P.splitlines(keepends=True)[:3], OF_310P.splitlines(keepends=True)[3:5]
    for number in range(4):
        table += [
            line.replace("| 0       0 ", f"| 0       {number} ").replace("| 0       310P3", f"| {number}       310P3")
            for line in device
        ]
    (tmp_path / "table").write_text("".join(table))
    (tmp_path / "bin").mkdir()
    lock, printed, overlap = (
        shlex.quote(str(tmp_path / name)) for name in ("npu-smi.lock", "table", "npu-smi.overlaps")
    )
    (tmp_path / "bin/npu-smi").write_text(
        f"#!/bin/sh\nflock -n -E 99 {lock} cat {printed}\n[ $? != 99 ] || echo two at once >> {overlap}\n"
    )
    (tmp_path / "bin/npu-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    workspace.succeed("preprocess", "--bs", "1", "--version", "match")
    workspace.succeed("preprocess", "--bs", "1", "--version", "match", "--limit", "30")
    return workspace


def _start(workspace: Workspace, command: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(
            workspace.command(*command), cwd=REPOSITORY, env=environment(), stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _children(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{process}/task/{process}/children").read_text()
        return [int(number) for number in text.split()]
    return []


def _victim(command: int, kind: str, chance: random.Random) -> int:
    """The command itself, a device's process, or what that runs; 0 if there is none now."""
    devices = _children(command)
    runners = [runner for device in devices for runner in _children(device)]
    there = {"command": [command], "device": devices, "runner": runners}[kind]
    return chance.choice(there) if there else 0


def _beside(workspace: Workspace, log: Path, stop: threading.Event, ends: Counter[tuple[str, int]]) -> None:
    number = 0
    while not stop.is_set():
        command = BESIDE[number % len(BESIDE)]
        ends[command[0], _start(workspace, command, log).wait()] += 1
        number += 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_500_shards_and_no_two_runners_at_once(workspace: Workspace, tmp_path: Path) -> None:
    chance, kills, ends, beside = random.Random(SEED), Counter[str](), Counter[int](), Counter[tuple[str, int]]()
    stop = threading.Event()
    other = workspace.copy(tmp_path / "other")
    thread = threading.Thread(target=_beside, args=(other, tmp_path / "beside.log", stop, beside))
    thread.start()
    try:
        while 0 not in ends:
            command = _start(workspace, INFER, tmp_path / "infer.log")
            while command.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    command.wait(chance.uniform(0.5, 3.0))
                kind = chance.choice(["command", "device", "device", "runner", "runner", "runner"])
                if sum(kills.values()) < KILLS and (victim := _victim(command.pid, kind, chance)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(victim, signal.SIGKILL)
                        kills[kind] += 1
            ends[command.returncode] += 1
            assert sum(ends.values()) < 100, (tmp_path / "infer.log").read_text()[-3000:]
    finally:
        stop.set()
        thread.join()
    log = (tmp_path / "infer.log").read_text()
    begun = (tmp_path / "counted/begun").read_text().splitlines()
    alone = sum(".alone." in line for line in begun)
    print(f"{len(begun)} runs, {alone} of them alone; kills {dict(kills)}; ends {dict(ends)}, beside {dict(beside)}")
    assert not (tmp_path / "counted/overlaps").exists(), (tmp_path / "counted/overlaps").read_text()
    assert not (tmp_path / "npu-smi.overlaps").exists()
    assert len(begun) >= ROWS and alone >= 3 and sum(kills.values()) >= min(KILLS, 20)
    assert set(ends) <= {0, 4, -signal.SIGKILL} and "Traceback" not in log, log[-3000:]
    assert {code for _, code in beside} == {0}, (tmp_path / "beside.log").read_text()[-3000:]
    time.sleep(0.5)
    left = [name for name in os.listdir(tmp_path / "counted") if name.endswith(".live")]
    assert not any(overlaps._runs(str(tmp_path / "counted" / name)) for name in left)
    assert not any(device_locks.is_held(device_locks.FOLDER, number) for number in range(4))
    _check_outputs(workspace)


def _check_outputs(workspace: Workspace) -> None:
    """All rows' outputs are those of their own tokens, each batch of one shard, and what was lost is told."""
    record = records.read(workspace.root / "results/tiny/ascend/outputs_bs1_om/match.record.json")
    assert record is not None
    sharding = spans.of_internal(record.internal)
    assert sharding is not None and sharding.lost and spans.coverage(sharding.shards, {256: ROWS}) == []
    [folder] = record.subjects
    bins = workspace.root / "data/tiny/pre_mnli_bs1/match"
    for index in range(ROWS):
        tokens = [(bins / name / f"input_{index}.bin").read_bytes() for name in ("input_ids", "input_mask")]
        expected = hashlib.sha256(b"".join(tokens)).digest()[:12]
        assert (workspace.root / folder / f"input_{index}_output_0.bin").read_bytes() == expected
