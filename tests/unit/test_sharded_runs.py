"""Shards of one run, placed on devices that fail in every way: the same files, or an error and nothing lost."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec
import pytest

from deberta.core import files, records
from deberta.core.errors import ConfigError, DataError, StageError
from deberta.core.job import DeviceFacts
from deberta.host.plan.plan import Inference, Input, ModelRun, Step
from deberta.host.shards import agreement, spans
from deberta.host.shards.coordinate import Coordinator, ShardSettings
from deberta.host.shards.pool import DeviceGone, Event, ShardDone, ShardFailed, ShardRequest, ShardWaits
from deberta.host.shards.store import ShardStore

BATCHES = {64: 41, 256: 13}
SIZES = {length: {f"input_{i}_output_0.bin": 24 for i in range(count)} for length, count in BATCHES.items()}
RUNS = tuple(
    ModelRun(PurePosixPath(f"results/out_{length}"), SIZES[length], count, (PurePosixPath("data/a"),), 2 * length * 4)
    for length, count in BATCHES.items()
)
STEP = Step(
    name="infer",
    title="infer",
    stage="",
    tool="msame",
    arguments=(),
    inputs=(Input(PurePosixPath("models/x.om"), ""),),
    outputs=tuple(run.output for run in RUNS),
    log=PurePosixPath("results/logs/infer.log"),
    commands={},
    inference=Inference(RUNS),
)


def content(length: int, index: int) -> bytes:
    return hashlib.sha256(f"{length} {index}".encode()).digest()[:24]


def outputs_of(request: ShardRequest) -> dict[str, bytes]:
    indexes = range(request.first, request.last + 1)
    return {f"input_{i}_output_0.bin": content(request.length, i) for i in indexes}


Behaviour = Callable[[ShardRequest, int], "Event | None"]  # the request, and how many the device had before


@dataclass
class FakePool:
    """Devices that answer at once, unless their behaviour says otherwise: None is silence."""

    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    asked: list[tuple[str, ShardRequest]] = field(default_factory=list)
    late: list[Event] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    engine: str = ""
    _events: list[Event] = field(default_factory=list)

    def devices(self, step: Step) -> list[DeviceFacts]:
        return []

    def start(self, device: str, request: ShardRequest) -> None:
        before = sum(name == device for name, _ in self.asked)
        self.asked.append((device, request))
        event = self.behaviours[device](request, before) if device in self.behaviours else finished(device, request)
        if event:
            self._events.append(event)

    def wait(self, seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def drop(self, device: str) -> None:
        self.dropped.append(device)
        self._events += self.late

    def close(self) -> None:
        """Nothing is open."""


def finished(device: str, request: ShardRequest, outputs: dict[str, bytes] | None = None) -> ShardDone:
    now = records.now()
    files = outputs_of(request) if outputs is None else outputs
    return ShardDone(device, request.attempt, files, "log", {}, 10.0 * len(files), now, now)


def coordinator(
    folder: Path, pool: FakePool, names: str = "abc", batches: int = 0, different: bool = False
) -> Coordinator:
    facts = [DeviceFacts(host=name, device=0, chip="310P3", cann="5.1.RC2", driver="22.0.2") for name in names]
    devices = {entry.name: entry for entry in facts}
    settings = ShardSettings(patience=0.05, batches=batches)
    kept = ShardStore(folder / "shards", SIZES)
    return Coordinator(pool, kept, STEP, BATCHES, devices, settings, print, print, different)


def check_whole(run: Coordinator) -> None:
    assert spans.coverage([entry.shard for entry in run.done], BATCHES) == []
    for entry in run.done:
        for name, got in run.store.outputs(entry.shard).items():
            assert got == content(entry.shard.length, int(name.split("_")[1]))


@pytest.mark.parametrize("names", ["a", "ab", "abcde"])
@pytest.mark.parametrize("batches", [1, 7, 1000, 0])
def test_every_batch_counts_once_whatever_the_devices_and_shards(tmp_path: Path, names: str, batches: int) -> None:
    run = coordinator(tmp_path, FakePool(), names, batches=batches)
    run.run()
    check_whole(run)
    assert run.lost == []
    if len(names) == 1:
        assert run.not_checked == ["no batch ran on a second device: there was one"]
    else:
        assert run.compared[0].devices == [f"{name}/0" for name in names]
        assert {device for pair in run.compared for device in pair.devices} == {f"{name}/0" for name in names}
        assert len(run.compared) >= 1 + len(names) / 100


def gone(device: str, after: int) -> Behaviour:
    return lambda request, before: DeviceGone(device, "killed") if before >= after else finished(device, request)


def test_a_device_that_goes_loses_its_shard_and_nothing_else(tmp_path: Path) -> None:
    run = coordinator(tmp_path, FakePool({"b/0": gone("b/0", 2)}), batches=3)
    run.run()
    check_whole(run)
    [lost] = run.lost
    assert (lost.device, lost.why) == ("b/0", "killed")


def test_without_devices_what_is_finished_is_kept_and_the_next_run_makes_the_rest(tmp_path: Path) -> None:
    pool = FakePool({f"{name}/0": gone(f"{name}/0", 3) for name in "ab"})
    run = coordinator(tmp_path, pool, "ab", batches=2)
    with pytest.raises(
        StageError, match=r"batches .* at length 64.* 9 of 54 batches are finished and kept: run the same"
    ):
        run.run()
    again = FakePool()
    second = coordinator(tmp_path, again, "cd")
    second.run()
    check_whole(second)
    ran_again = {(r.length, i) for _, r in again.asked for i in range(r.first, r.last + 1)}
    kept = {(e.shard.length, i) for e in run.done for i in range(e.shard.first, e.shard.last + 1)}
    compared = {(pair.length, pair.batch) for pair in second.compared}
    assert len(kept) == 9 and ran_again & kept <= compared
    assert [lost.device for lost in second.lost] == [lost.device for lost in run.lost] != []


def test_a_silent_device_is_given_up_and_its_late_answer_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = FakePool()

    def silent(request: ShardRequest, before: int) -> Event | None:
        if before < 1:
            return finished("b/0", request)
        pool.late.append(finished("b/0", request, {name: bytes(24) for name in outputs_of(request)}))
        return None

    pool.behaviours["b/0"] = silent
    run = coordinator(tmp_path, pool, batches=3)
    run.run()
    check_whole(run)
    assert pool.dropped == ["b/0"] and [lost.why for lost in run.lost] == ["it did not answer in time"]
    assert "b/0: a late answer is refused" in capsys.readouterr().out


class WaitingPool(FakePool):
    """Of its shards one waits for another run, for longer than a device may be silent."""

    def wait(self, seconds: float) -> list[Event]:
        if len(self.asked) == 4 and len(self.dropped) == 0 and self.waits:
            time.sleep(0.03)
            self.waits -= 1
            device, request = self.asked[-1]
            return [ShardWaits(device, request.attempt, "waiting for device 0: process 77 has it")]
        return super().wait(seconds)

    waits: int = 5


def test_a_shard_that_waits_for_another_run_is_not_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = coordinator(tmp_path, WaitingPool(), "a", batches=20)
    run.run()
    check_whole(run)
    assert run.lost == [] and capsys.readouterr().out.count("a/0: waiting for device 0: process 77 has it") == 5


def flipped(device: str, at: Callable[[ShardRequest], bool]) -> Behaviour:
    """A device that flips a bit of the first output of some shards."""

    def answer(request: ShardRequest, before: int) -> Event:
        outputs = outputs_of(request)
        if at(request):
            name = max(outputs)
            outputs[name] = bytes([outputs[name][0] ^ 1]) + outputs[name][1:]
        return finished(device, request, outputs)

    return answer


def test_a_device_with_other_bytes_is_refused_by_name_before_anything_else_runs(tmp_path: Path) -> None:
    pool = FakePool({"b/0": flipped("b/0", lambda request: True)})
    with pytest.raises(DataError, match=r"^b/0 and a/0, c/0 give different bytes for batch 0 at length 256"):
        coordinator(tmp_path, pool).run()
    assert {request.span for _, request in pool.asked} == {(256, 0, 0)}
    run = coordinator(tmp_path, pool, different=True)
    run.run()
    assert not all(pair.same for pair in run.compared)


def test_bytes_that_differ_later_are_found_on_a_second_device_and_nothing_of_both_is_kept(tmp_path: Path) -> None:
    pool = FakePool({"b/0": flipped("b/0", lambda request: request.last > 0 and request.first > 0)})
    run = coordinator(tmp_path, pool, "ab")
    with pytest.raises(DataError, match=r"b/0.*give different bytes for batch [1-9]"):
        run.run()
    assert run.store.load(print) == []


def test_a_shard_that_fails_runs_elsewhere_and_one_that_fails_everywhere_is_the_error(tmp_path: Path) -> None:
    def failing(device: str) -> Behaviour:
        def answer(request: ShardRequest, before: int) -> Event:
            bad = ShardFailed(device, request.attempt, "7 outputs of 8 are missing", DataError.exit_code)
            return bad if before else finished(device, request)

        return answer

    run = coordinator(tmp_path / "one", FakePool({"b/0": failing("b/0")}), batches=2)
    run.run()
    check_whole(run)
    assert {lost.device for lost in run.lost} == {"b/0"} and len(run.lost) == 2 and "b/0" not in run.devices
    everywhere = FakePool({f"{name}/0": failing(f"{name}/0") for name in "abc"})
    with pytest.raises(DataError, match=r"^[abc]/0: 7 outputs of 8 are missing"):
        coordinator(tmp_path / "all", everywhere, batches=2).run()


def test_truncated_strange_and_altered_files_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change in ({"input_0_output_0.bin": b"short"}, {"input_99_output_0.bin": bytes(24)}):
        bad = FakePool({"a/0": lambda r, n, change=change: finished("a/0", r, {**outputs_of(r), **change})})  # type: ignore[misc]
        with pytest.raises(DataError, match="a/0 sent"):
            coordinator(tmp_path, bad, "a").run()
    run = coordinator(tmp_path, FakePool(), "ab", batches=5)
    run.run()
    shards = sorted((tmp_path / "shards").glob("*_*"))
    (shards[0] / os.listdir(shards[0])[0]).write_bytes(b"{}")
    files.remove(next(path for path in shards[1].iterdir() if path.suffix == ".bin"))
    again = coordinator(tmp_path, FakePool(), "ab")
    again.run()
    check_whole(again)
    assert capsys.readouterr().out.count("is not used, and made again") == 2


def test_devices_have_the_same_facts_or_are_refused_and_what_is_unknown_is_said() -> None:
    first = DeviceFacts(host="a", device=0, chip="310P3", cann="5.1.RC2", driver="22.0.2", code="c", machine="x86_64")
    first = replace_facts(first, program={"program": "1"})
    for change, words in (
        ({"chip": "310P1"}, "b/0 has another chip than a/0: 310P1, not 310P3"),
        ({"cann": "6.0"}, "b/0 has another CANN than a/0: 6.0"),
        ({"driver": "23"}, "another driver"),
        ({"machine": "aarch64"}, "another machine"),
        ({"code": "d"}, "another version of our code"),
        ({"program": {"program": "2"}}, "another program"),
    ):
        other = replace_facts(first, host="b", **change)
        with pytest.raises(ConfigError, match=words):
            agreement.check([first, other], "", different=False)
        if change.keys() & {"code", "program"}:
            with pytest.raises(ConfigError, match=words):
                agreement.check([first, other], "", different=True)
        else:
            assert agreement.check([first, other], "", different=True) == [] and agreement.differ([first, other])
    silent = replace_facts(first, host="b", driver="")
    assert agreement.check([first, silent], "", different=False) == [
        "the driver of b/0 is not known, so it was not compared"
    ]


def replace_facts(facts: DeviceFacts, **changes: object) -> DeviceFacts:
    return msgspec.structs.replace(facts, **changes)


def test_spans_that_overlap_leave_gaps_or_go_beyond_the_end_are_named(tmp_path: Path) -> None:
    run = coordinator(tmp_path, FakePool(), "a", batches=10)
    run.run()
    shards = [entry.shard for entry in run.done]
    first = next(shard for shard in shards if shard.length == 64 and shard.first == 10)
    for change, finding in (
        ({"last": first.last + 1}, "two shards have batch 20 at length 64"),
        ({"first": first.first + 1}, "no shard has batch 10 at length 64"),
        ({"length": 32}, "a shard has batches"),
        ({"last": 3}, "goes from batch 10 to 3"),
    ):
        forged = [msgspec.structs.replace(shard, **change) if shard is first else shard for shard in shards]
        assert any(finding in problem for problem in spans.coverage(forged, BATCHES)), change
    assert spans.missing(BATCHES, [(64, 0, 9), (64, 20, 40), (256, 0, 12)]) == [(64, 10, 19)]
