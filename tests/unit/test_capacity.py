"""The model of an acceptance's time: simulated between what no order can beat and what no greedy one exceeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta.core import published
from deberta.core.contract import batch_count
from deberta.core.errors import MissingError
from deberta.host.cluster import capacity, simulation
from deberta.host.cluster.capacity import Costs, Workload
from deberta.host.plan.profiles import Profile
from deberta.host.shards import spans
from deberta.host.shards.coordinate import ShardSettings
from tests import in_process
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import environment

ROWS = {"match": 9815, "mismatch": 9832}
FPS = {row.batch_size: row.ascend_fps for row in published.GUIDE}
GUIDE = Workload(ROWS, 100, FPS, dict.fromkeys(FPS, 300.0), dict.fromkeys(FPS, capacity.MODEL_MB))
LENGTH = simulation.LENGTH
seconds = st.floats(0.01, 20)


def greedy(times: list[float], devices: int) -> float:
    """Graham: no order in which idle devices take what waits needs longer."""
    return sum(times) / devices + (1 - 1 / devices) * max(times, default=0.0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(2, 24), seconds, st.floats(0, 30), st.floats(0.5, 200), st.integers(0, 2))
def test_a_simulated_run_takes_no_less_than_its_work_and_no_more_than_a_greedy_order(
    batches: int, devices: int, batch_seconds: float, start_seconds: float, shard_seconds: float, lost: int
) -> None:
    run = simulation.accuracy(
        batches, [batch_seconds] * devices, start_seconds, ShardSettings(seconds=shard_seconds), lost
    )
    first, rest = run.attempts[:devices], run.attempts[devices:]
    done = [(LENGTH, 0, 0)]
    placed: list[simulation.Attempt] = []
    compared: list[simulation.Attempt] = []
    for attempt in rest:
        is_again = not spans.missing({LENGTH: batches}, done)
        (compared if is_again else placed).append(attempt)
        if not is_again and not attempt.lost:
            done.append(attempt.span)
    assert {attempt.span for attempt in first} == {(LENGTH, 0, 0)}
    assert sorted(index for _, low, high in done for index in range(low, high + 1)) == [*range(batches)]
    assert compared and run.now >= capacity.accuracy_least(batches, batch_seconds, start_seconds, devices) - 1e-6
    if lost:
        return
    took = [[attempt.ended - attempt.began for attempt in part] for part in (placed, compared)]
    # What is compared runs on any device but one.
    most = start_seconds + batch_seconds + greedy(took[0], devices) + sum(took[1]) / (devices - 1) + max(took[1])
    assert run.now <= most + 1e-6


@given(st.lists(seconds, min_size=2, max_size=8), st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_devices_of_different_pace_share_the_work(paces: list[float], batches: int) -> None:
    run = simulation.accuracy(batches, paces, 1.0, ShardSettings())
    assert run.now >= (batches - 1) / sum(1 / pace for pace in paces) + max(paces) + 1.0 - 1e-6
    assert len({attempt.device for attempt in run.attempts}) == len(paces)


@pytest.mark.parametrize("devices", [1, 3, 8, 9, 64])
@pytest.mark.parametrize("costs", [Costs(), Costs(per_host=2, lost=2), Costs(shared=True, start_seconds=9.0)])
def test_no_acceptance_takes_less_than_its_least(devices: int, costs: Costs) -> None:
    entry = capacity.figures(replace(GUIDE, before_seconds=100.0), costs, devices)
    assert entry.least_seconds <= entry.seconds == pytest.approx(sum(entry.parts.values()))
    assert entry.parts[entry.most] == max(entry.parts.values())
    assert (entry.parts[capacity.SHIPPING] > 0) == (entry.hosts > 1 and not costs.shared)


def test_one_device_takes_the_sum_of_its_runs() -> None:
    work = Workload({"match": 10}, 5, {4: 2.0}, {4: 60.0}, {4: 739.0}, before_seconds=7.0)
    entry = capacity.figures(work, Costs(start_seconds=1.0), 1)
    assert batch_count(10, 4) == 3
    assert entry.parts == {
        **{capacity.ACCURACY: 7.0, capacity.PERFORMANCE: 11.0, capacity.FURTHER: 0.0},
        **{capacity.COMPILATION: 60.0, capacity.SHIPPING: 0.0, capacity.BEFORE: 7.0},
    }
    assert (entry.seconds, entry.most) == (85.0, "compilation")


def test_what_bounds_it_changes_with_the_devices() -> None:
    bounds = {n: capacity.figures(GUIDE, Costs(), n).most for n in (1, 8, 64)}
    assert bounds == {1: capacity.ACCURACY, 8: capacity.PERFORMANCE, 64: capacity.PERFORMANCE}
    one_size = replace(GUIDE, fps={8: FPS[8]}, compile_seconds={8: 300.0})
    assert capacity.figures(one_size, Costs(shared=True), 200).most == capacity.FURTHER
    further = {n: capacity.figures(one_size, Costs(), n).parts[capacity.FURTHER] for n in (2, 8, 9, 15, 16, 999)}
    turn = further[2]  # of a device; on all hosts at once
    assert further == {2: turn, 8: 7 * turn, 9: 7 * turn, 15: 7 * turn, 16: 8 * turn, 999: 8 * turn}
    slow = Costs(ship_mb=5.0)
    assert capacity.figures(GUIDE, slow, 64).most == capacity.SHIPPING


@pytest.mark.parametrize("page", ["scaling.md", "scaling.zh-CN.md"])
def test_the_page_has_what_the_command_prints(page: str, printed: str) -> None:
    assert f"```text\n{printed}```" in (REPOSITORY / "docs" / page).read_text(encoding="utf-8")


@pytest.fixture(name="printed", scope="module")
def _printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    variables = {**environment(), "INVOKE_WORKSPACE": str(tmp_path_factory.mktemp("empty"))}
    done = in_process.run_invoke(["cluster", "plan", "--profile", "mnli"], REPOSITORY, variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "1,0"], "--devices '0' is not a whole number from 1 to 10000"),
        (["--fps", "1e3"], "--fps '1e3' is not a number from 0.001 to 1000000, such as 1.5"),
        (["--kubernetes"], "cluster plan takes no --kubernetes"),
        (["--cluster", "nowhere"], "there is no cluster 'nowhere' in invoke.yaml"),
    ],
)
def test_what_a_plan_cannot_take_is_refused(options: list[str], message: str) -> None:
    done = in_process.run_invoke(["cluster", "plan", *options], REPOSITORY, environment())
    assert done.returncode == 2 and message in done.stderr


def test_a_figure_that_nobody_measured_is_an_error(tmp_path: Path) -> None:
    path = PurePosixPath()
    profile = Profile("own", path, path, path, path, None, {"match": 10}, False)
    with pytest.raises(MissingError, match="invoke perf --bs 2 --profile own"):
        capacity.workload(tmp_path, profile, [2], 100)
    assert capacity.workload(tmp_path, profile, [2], 100, fps=3.0).fps == {2: 3.0}
    with pytest.raises(MissingError, match="rows"):
        capacity.workload(tmp_path, replace(profile, rows={"match": None}), [2], 100, fps=3.0)
