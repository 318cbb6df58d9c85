"""Performance runs of a cluster's devices: never cut, on one device from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import msgspec
import pytest

from deberta.core.errors import ConfigError, DataError, MissingError, StageError
from deberta.core.job import DeviceFacts
from deberta.host.plan import profiles
from deberta.host.plan.evaluation import build_om, perf
from deberta.host.plan.plan import Case, Input, Plan, Step
from deberta.host.run.executor import Provenance
from deberta.host.run.session import Session
from deberta.host.shards import agreement, performance, work
from deberta.host.shards.client import ClientExecutor
from deberta.host.shards.coordinate import ShardSettings
from deberta.host.shards.pool import DeviceGone, Event, ShardDone, ShardFailed, ShardRequest, ShardWaits
from deberta.host.shards.sharded import ShardedRuns

PROFILE = profiles.load("demo", {"demo": {"checkpoint": "p.bin", "config": "c.json", "tokenizer": "spm.model",
    "dataset": "MNLI", "labels": ["contradiction", "neutral", "entailment"], "rows": {"match": 10}}})  # fmt: skip
CASE = Case(Plan(PROFILE, "ascend"), 8, "match")
STEP = perf(CASE, 5)
KNOWN = {"cann": "5.1.RC2", "program": "1"}  # of each device


@dataclass
class Pool:
    """Devices that answer at once. `answers`: of those that do not do what they are told; None never answers."""

    names: Sequence[str]
    answers: dict[str, Callable[[int], Event | None]] = field(default_factory=dict)
    engine: str = "distributed 1"
    asked: list[ShardRequest] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    closed: int = 0
    looked: list[Sequence[Input]] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)

    def devices(self, step: Step) -> list[DeviceFacts]:
        self.looked.append(step.inputs)
        parts = [name.split("/") for name in self.names]
        known = [DeviceFacts(host=host, device=int(number), cann="5.1.RC2") for host, number in parts]
        return [msgspec.structs.replace(facts, program={"program": "1"}) for facts in known]

    def start(self, device: str, request: ShardRequest) -> None:
        self.asked.append(request)
        told = self.answers.get(device)
        event = told(request.attempt) if told else done(device, request.attempt)
        self._events += [done(device, request.attempt - 1), *([event] if event else [])]

    def wait(self, seconds: float) -> list[Event]:
        events, self._events = self._events, []
        return events

    def drop(self, device: str) -> None:
        self.dropped.append(device)

    def close(self) -> None:
        self.closed += 1


def done(device: str, attempt: int) -> ShardDone:
    return ShardDone(device, attempt, {"deberta_bs8_output_0.bin": bytes(96)}, "log", {}, 1.0, "", "")


def run(pool: Pool, device: str = "", patience: float = 60) -> ShardDone:
    return performance.run(pool, STEP, pool.devices(STEP), device, patience, print)


def test_it_runs_whole_on_the_first_device_or_on_the_one_that_is_named() -> None:
    pool = Pool(["b/1", "b/0", "a/10", "a/2"])
    assert run(pool).device == "a/2" and run(pool, "b/1").device == "b/1"
    first, second = pool.asked
    assert first == ShardRequest(STEP, 256, 0, 0, attempt=1) == second
    names = [PurePosixPath(f"data/demo/pre_mnli_bs8/match/{name}/input_0.bin") for name in ("input_ids", "input_mask")]
    assert work.bins(first) == [[name] for name in names]
    assert work.outputs(first) == {"deberta_bs8_output_0.bin": 96}
    with pytest.raises(MissingError, match=r"c/0 is none of the devices: a/2, a/10, b/0, b/1"):
        run(pool, "c/0")


def test_a_device_that_goes_or_falls_silent_is_followed_by_the_next_and_an_error_is_the_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(performance, "SLOWEST", 1e9)
    gone = Pool(["a/0", "b/0"], {"a/0": lambda _: DeviceGone("a/0", "its worker was killed")})
    assert run(gone).device == "b/0" and run(gone).attempt == 2
    silent = Pool(["a/0", "b/0"], {"a/0": lambda _: None})
    assert run(silent, patience=0.01).device == "b/0" and silent.dropped == ["a/0"]
    assert "a/0: it did not answer in time" in capsys.readouterr().out
    with pytest.raises(StageError, match=r"no device is left for perf bs=8 match \(a/0: its worker was killed\)"):
        run(gone, "a/0")
    bad = Pool(["a/0"], {"a/0": lambda n: ShardFailed("a/0", n, "7 outputs of 8", DataError.exit_code)})
    with pytest.raises(DataError, match="a/0: 7 outputs of 8"):
        run(bad)


def test_a_run_that_waits_for_its_host_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(performance, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(performance, "SLOWEST", 1e9)
    pool, told = Pool(["a/0"]), iter([ShardWaits("a/0", 1, "another run has the host")] * 5)
    monkeypatch.setattr(pool, "wait", lambda _: [next(told, done("a/0", 1))])
    assert run(pool, patience=3).device == "a/0" and pool.dropped == []
    assert capsys.readouterr().out.count("a/0: another run has the host") == 5


@dataclass
class Rounds(Pool):
    """What was asked for ends when the pool is waited for; `rounds`: which devices ran at the same time."""

    rounds: list[set[str]] = field(default_factory=list)
    running: dict[str, int] = field(default_factory=dict)

    def start(self, device: str, request: ShardRequest) -> None:
        self.asked.append(request)
        self.running[device] = request.attempt

    def wait(self, seconds: float) -> list[Event]:
        running, self.running = self.running, {}
        self.rounds.append({*running})
        told = {name: self.answers[name](n) if name in self.answers else done(name, n) for name, n in running.items()}
        return [DeviceGone("c/1", "its host lost power"), *(event for event in told.values() if event)]


def test_further_devices_run_on_all_hosts_at_once_and_one_that_fails_is_named_once_the_others_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(performance, "SLOWEST", 1e9)
    places = ["a/1", "a/2", "a/3", "b/0", "b/1", "c/0", "c/1"]
    bad = ShardFailed("b/0", 3, "7 outputs of 8", DataError.exit_code)
    pool = Rounds(["a/0", *places], {"b/0": lambda n: replace(bad, attempt=n), "c/0": lambda _: None})
    cluster = ShardedRuns(lambda _: pool, ShardSettings(first_patience=0.01), measures=True)
    session = Session(tmp_path, tmp_path, SimpleNamespace(identity=lambda step: KNOWN), str)
    steps = [perf(CASE, 5, place) for place in places]
    recorded: dict[str, str] = {}

    def record(step: Step) -> None:
        assert step.inference is not None
        recorded[step.inference.place] = cluster.begun(step)
        if step is steps[1]:
            raise DataError("2 bytes of 96")

    with pytest.raises(StageError) as error:
        cluster.measure(session, steps, record)
    why, _, kept = str(error.value).removeprefix("no performance of ").partition(". ")
    assert why.startswith("c/1: its host lost power; b/0: 7 outputs of 8; ")
    assert sorted(why.split("; ")[2:]) == ["a/2: 2 bytes of 96", "c/0: it did not answer in time"]
    assert kept.startswith("The runs of the other 3 devices are kept. Run the same command again")
    assert [devices for devices in pool.rounds if devices] == [
        {"a/1", "b/0", "c/0"},
        {"a/2", "b/1"},
        {"a/3"},
    ] and pool.dropped == ["c/0"]
    assert [*recorded] == ["a/1", "a/2", "b/1", "a/3"] and all(recorded.values())
    assert not any(cluster.begun(step) for step in steps) and pool.closed == 1
    assert capfd.readouterr().err.index("b/0: 7 outputs of 8") > 0
    with pytest.raises(MissingError, match=r"^z/9: none of the devices a/0, a/1"):
        cluster.measure(session, [perf(CASE, 5, "z/9")], record)


def test_devices_that_are_compared_are_all_others_and_on_cpu_one_of_each_other_host(tmp_path: Path) -> None:
    pool = Pool(["b/1", "b/0", "a/1", "a/0"])
    session = Session(tmp_path, tmp_path, None, str)  # type: ignore[arg-type]
    cluster = ShardedRuns(lambda _: pool, ShardSettings(), measures=True)
    assert cluster.others(session, STEP, (0,)) == {"a/1": 1, "b/0": 0, "b/1": 1} and pool.closed == 1
    on_cpu = perf(Case(Plan(PROFILE, "cpu"), 8, "match"), 5)
    assert cluster.others(session, on_cpu, (0,)) == {"b/0": 0}
    here = ShardedRuns(lambda _: pool, ShardSettings())
    assert here.others(session, STEP, (2, 0, 3)) == {work.name_of(0): 0, work.name_of(3): 3}
    assert here.others(session, on_cpu, (0, 1, 2)) == {}


def test_a_record_names_what_ran_and_not_what_the_client_has() -> None:
    device = DeviceFacts(host="a", device=0, cann="5.1.RC2", program={"program": "1" * 64})
    agreement.check_record(device, {"cann": "5.1.RC2", "program": "1" * 64})
    for identity, words in (
        ({"cann": "6.0", "program": "1" * 64}, "a/0 has another CANN than this host, .*: 5.1.RC2, not 6.0"),
        ({"cann": "5.1.RC2", "program": "2" * 64}, "a/0 has another program than this host"),
        ({"cann": "5.1.RC2", "image": "runtime:1"}, "a/0 has another image than this host, .*: none, not runtime:1"),
    ):
        with pytest.raises(ConfigError, match=words):
            agreement.check_record(device, identity)


def test_a_client_needs_nothing_of_what_runs_the_model(tmp_path: Path) -> None:
    """Its own executor is not asked for it; of everything else it is."""

    class Own:
        def identity(self, step: Step) -> dict[str, str]:
            assert not step.on_device
            return {"cann": "of atc"}

    pool = Pool(["b/0", "a/0"])
    session = ShardedRuns(lambda _: pool, ShardSettings(), measures=True).client(
        Session(tmp_path, tmp_path, Own(), str)  # type: ignore[arg-type]
    )
    assert session.executor.identity(STEP) == {"cann": "5.1.RC2", "program": "1"}
    assert session.executor.provenance(STEP).internal == {"cann": "5.1.RC2"}
    session.executor.prepare(STEP)
    assert session.executor.identity(build_om(CASE)) == {"cann": "of atc"} and pool.closed == 1
    assert pool.looked == [()]  # no model is sent for it


def test_devices_that_run_it_in_containers_have_images_of_the_same_content_and_the_record_says_which(
    tmp_path: Path,
) -> None:
    """An image's tag says what it was built from. What came of that on each host is its content, CANN among it."""

    class Docker:
        def identity(self, step: Step) -> dict[str, str]:
            return {"image": "deberta-ascend/runtime:1"}

        def provenance(self, step: Step) -> Provenance:
            return Provenance(internal={"cann": "5.1.RC2", "image_contents": "c" * 64, "pins": "pinned"})

    on_cpu = replace(STEP, tool="", stage="run-cpu")
    session = Session(tmp_path, tmp_path, Docker(), str)  # type: ignore[arg-type]
    first = msgspec.structs.replace(work.facts(session, on_cpu, 0), host="a")
    assert (first.cann, first.image, first.program) == ("5.1.RC2", "c" * 64, {"image": "deberta-ascend/runtime:1"})
    other = msgspec.structs.replace(first, host="b", image="d" * 64)
    with pytest.raises(ConfigError, match=r"b/0 has another content of its image than a/0: dddddddddddd, not cccccccc"):
        agreement.check([first, other], "", different=True)
    agreement.check_record(first, session.executor.identity(on_cpu))  # of several devices of one host
    client = ClientExecutor(session.executor, lambda _: first)
    assert client.identity(STEP) == session.executor.identity(STEP)  # as of one device: switching makes nothing stale
    assert client.provenance(STEP).internal == {"cann": "5.1.RC2", "image_contents": "c" * 64}


def test_its_log_and_output_never_have_the_names_of_the_first_devices() -> None:
    other = perf(CASE, 5, "host.example/12")
    log, folder = other.outputs
    assert str(log) == "results/demo/ascend/msame_bs8_match.device-host.example-12.txt"
    assert str(folder) == "results/demo/ascend/perf_bs8_om/match.device-host.example-12"
    assert {*other.outputs}.isdisjoint(STEP.outputs) and other.name != STEP.name and other.log != STEP.log
    assert other.task == "perf" and other.title == "perf bs=8 match on host.example/12"
