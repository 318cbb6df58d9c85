"""Acceptance over several devices: what is shared out, and what each device is measured for alone."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from deberta.core import records, schema
from deberta.core.errors import GateError
from deberta.core.job import DeviceFacts
from deberta.core.report import Report
from deberta.host.cli import settings
from deberta.host.plan.plan import Step
from deberta.host.run.session import Session
from deberta.host.shards import work
from deberta.host.shards.coordinate import ShardSettings
from deberta.host.shards.pool import Event, ShardRequest
from deberta.host.shards.sharded import ShardedRuns
from tests import fake_cann
from tests.pipeline_helpers import Workspace, steps_that_ran

ACCEPT = ("acceptance", "--backend", "ascend", "--version", "match", "--bs", "4", "--loops", "2")
RESULTS = "results/tiny/ascend"
MEASURED = ["perf bs=4 match", f"perf bs=4 match on {work.name_of(1)}"]


class DirectPool:
    """A cluster's two devices, which are this process."""

    engine = "direct"

    def __init__(self, session: Session) -> None:
        self._session, self._events = session, list[Event]()

    def devices(self, step: Step) -> Sequence[DeviceFacts]:
        return [work.facts(self._session, step, device) for device in (1, 0)]

    def start(self, device: str, request: ShardRequest) -> None:
        self._events.append(work.run(self._session, request, int(device.rpartition("/")[2])))

    def wait(self, seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def drop(self, device: str) -> None:
        raise AssertionError(device)

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(name="workspace", scope="module")
def _workspace(evaluated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    workspace, installed = (
        evaluated.copy(tmp_path_factory.mktemp("devices") / "workspace"),
        tmp_path_factory.mktemp("A"),
    )
    fake_cann.install(installed, python=sys.executable)
    fake_cann.force(installed, npu_smi="sparse")
    workspace.configure(cann=str(installed / "ascend-toolkit"), msame=str(installed / fake_cann.MSAME))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{(installed / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}")
        yield workspace


def _accept(workspace: Workspace, *options: str) -> str:
    """An acceptance, at whose end a gate fails: this profile's ten rows are no data to speak of."""
    done = workspace.run(*ACCEPT, *options)
    assert done.returncode == GateError.exit_code, done.stderr
    return done.stderr


def _device(workspace: Workspace, name: str) -> Any:
    record = records.read(workspace.root / RESULTS / f"{name}.record.json")
    assert record is not None
    return record.internal.get("device")


def test_accuracy_is_shared_out_and_each_device_measured_alone(workspace: Workspace) -> None:
    assert "--device 7 is not there" in workspace.fail(2, *ACCEPT, "--device", "0,7")
    said = _accept(workspace, "--device", "0,1")
    ran = steps_that_ran(said)
    assert ran[-5:] == ["postprocess bs=4 match", *MEASURED, "assess", "render"] and "infer bs=4 match" in ran
    assert f"[infer bs=4 match] on 2 devices: {work.name_of(0)}, {work.name_of(1)}" in said
    assert f"[acceptance] 3 of 3: performance bs=4 match on {work.name_of(1)}; about " in said
    devices = [work.name_of(0), work.name_of(1)]
    logs = ("msame_bs4_match.txt", f"msame_bs4_match.device-{work.host()}-1.txt")
    assert [_device(workspace, log) for log in logs] == devices
    measured = schema.read(workspace.root / RESULTS / "report.json", Report, "").measured
    [timed], [shared] = measured.device_runs, measured.sharded
    assert [each.device for each in timed.devices] == [share.name for share in shared.devices] == devices
    assert len(measured.performances) == 1 and sum(share.batches for share in shared.devices) == 3
    assert steps_that_ran(_accept(workspace, "--device", "0,1")) == ["assess", "render"]


def test_a_clusters_device_makes_the_same_files(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The performance runs go there, too; this host's devices are not looked at."""
    cluster = ShardedRuns(DirectPool, ShardSettings(), measures=True)
    monkeypatch.setattr(settings, "sharded", lambda c, options, session, plan: replace(session, shards=cluster))
    results = workspace.root / RESULTS
    logs = sorted(results.glob("msame_bs4_match*.txt"))
    before = sorted(path.read_bytes() for path in results.glob("perf_bs4_om/*/*/*"))
    for log in logs:
        log.unlink()
        log.with_name(f"{log.name}.record.json").unlink()
    shutil.rmtree(results / "perf_bs4_om")
    assert steps_that_ran(_accept(workspace))[:2] == MEASURED
    assert sorted(results.glob("msame_bs4_match*.txt")) == logs
    assert [_device(workspace, log.name) for log in logs] == [work.name_of(1), work.name_of(0)]
    assert before == sorted(path.read_bytes() for path in results.glob("perf_bs4_om/*/*/*")) and len(before) == 2
    assert all(log.read_text().count("Inference time: ") == 2 for log in logs)
    assert not list((workspace.root / ".cache/scratch").glob("*perf*"))
