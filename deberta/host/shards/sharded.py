"""Accuracy runs on several devices: a Session's `shards`. The merged outputs are those of a run on one device."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterator, Mapping, Optional, Sequence

import msgspec

from deberta.ascend import programs, runs
from deberta.core import contract, files, schema
from deberta.core.errors import DataError, DebertaError, MissingError, StageError, from_exit_code, many, some
from deberta.core.job import DeviceFacts, Sharding
from deberta.core.progress import duration
from deberta.host.plan.plan import Step
from deberta.host.run import freshness
from deberta.host.run.console import Console
from deberta.host.run.executor import Judged
from deberta.host.run.session import Session
from deberta.host.shards import agreement, performance, spans, store, work
from deberta.host.shards.client import ClientExecutor
from deberta.host.shards.coordinate import Coordinator, ShardSettings
from deberta.host.shards.performance import MeasuredDevice
from deberta.host.shards.pool import DeviceGone, Outcome, Pool, ShardDone, ShardFailed, ShardRequest
from deberta.host.shards.store import ShardStore, StoredShard


@dataclass(frozen=True)
class ShardedRuns:
    """`open`: makes the devices ready for a session's run; who calls it closes them. `different`: as of Coordinator.

    `measures`: performance runs are the pool's too, a cluster's; if not, this process runs them itself.
    """

    open: Callable[[Session], Pool]
    settings: ShardSettings
    different: bool = False
    measures: bool = False
    _last: dict[str, tuple[Sharding, Path]] = field(default_factory=dict, compare=False)  # by the step's name
    _measured: dict[str, str] = field(default_factory=dict, compare=False)  # performance step -> HOST/DEVICE
    _ready_runs: dict[str, MeasuredDevice] = field(default_factory=dict, compare=False)  # performance step -> its run

    def infer(
        self, session: Session, step: Step, temporary: Mapping[PurePosixPath, Path], summary: Path, console: Console
    ) -> list[Judged]:
        """Run the step's batches on the devices, each once; fill the temporary folders, and write a summary.

        Raises the errors of devices that do not fit or do not agree, and those of Coordinator.run.
        """
        if work.is_performance(step):
            return [self._measure(session, step, temporary, summary, console)]
        assert step.inference is not None
        by_length = work.batches(step)
        for run in by_length.values():
            programs.check_bins(session.workspace, run.bins, run.bin_bytes, run.times)
        sizes = {
            length: {contract.output_file(i): size for i, size in enumerate(run.expected.values())}
            for length, run in by_length.items()
        }
        counts = {length: len(names) for length, names in sizes.items()}
        started = time.monotonic()
        with self._ready(session, step) as (pool, facts, not_checked):
            kept = ShardStore(_folder(session, step, facts), sizes)
            if session.forces(step.task):
                kept.clear()
            console.say(f"on {many(len(facts), 'device')}: {', '.join(device.name for device in facts)}")
            devices = {device.name: device for device in facts}
            run_all = Coordinator(
                pool,
                kept,
                step,
                counts,
                devices,
                self.settings,
                console.say,
                console.line,
                self.different,
                not_checked=not_checked,
            )
            run_all.run()
        if problems := spans.coverage([entry.shard for entry in run_all.done], counts):
            raise DataError(f"the shards do not make up the run: {'; '.join(problems)}. Run the same command again")
        judged = [
            _merge(kept, run_all.done, length, sizes[length], temporary[run.output])
            for length, run in by_length.items()
        ]
        seconds = time.monotonic() - started
        console.say(f"{sum(counts.values())} batches in {many(len(run_all.done), 'shard')}: {duration(seconds)}")
        _write_logs(session, step, run_all.logs)
        used = {entry.device.name: entry.device for entry in run_all.done}
        sharding = Sharding(
            devices=[*used.values(), *(device for name, device in devices.items() if name not in used)],
            shards=sorted((e.shard for e in run_all.done), key=lambda shard: (shard.length, shard.first)),
            lost=run_all.lost,
            compared=run_all.compared,
            not_checked=run_all.not_checked,
            different=agreement.differ([*used.values(), *facts]) or not all(pair.same for pair in run_all.compared),
            engine=pool.engine,
        )
        self._last[step.name] = (sharding, kept.folder)
        counted = _summary(run_all.done, counts)
        if run_all.not_checked:
            counted["not_checked"] = run_all.not_checked
        files.write_text(summary, schema.text(counted))
        return judged

    @contextlib.contextmanager
    def _ready(self, session: Session, step: Step) -> Iterator[tuple[Pool, list[DeviceFacts], list[str]]]:
        """The devices, which may share the step's run, their facts, and what could not be compared of them."""
        pool = self.open(session)
        try:
            facts = list(pool.devices(step))
            not_checked = agreement.check(facts, "" if step.tool else "cpu", self.different)
            agreement.check_record(facts[0], session.executor.identity(step))
            yield pool, facts, not_checked
        finally:
            pool.close()

    def _measure(
        self, session: Session, step: Step, temporary: Mapping[PurePosixPath, Path], summary: Path, console: Console
    ) -> Judged:
        """Have a device of the cluster run a performance step, and put its output in place."""
        assert step.inference is not None
        if step.name in self._ready_runs:
            done = self._ready_runs[step.name].outcome
            assert isinstance(done, ShardDone)
        else:
            with self._ready(session, step) as (pool, facts, _):
                patience = self.settings.first_patience
                done = performance.run(pool, step, facts, step.inference.place, patience, console.say)
        [place] = temporary.values()
        folder = place / contract.run_folder(datetime.now())
        folder.mkdir(parents=True)
        for name, content in done.outputs.items():
            (folder / name).write_bytes(content)
        [length] = work.batches(step)
        request = ShardRequest(step, length, 0, 0, done.attempt)
        runs.check_files(folder.iterdir(), work.outputs(request), "outputs", folder)
        files.write_text(session.workspace / step.log, done.log)
        counted = {**done.summary, **({"not_checked": [*done.not_checked]} if done.not_checked else {})}
        if counted:
            files.write_text(summary, schema.text(counted))
        self._measured[step.name] = done.device
        return Judged(folder, done.log, ())

    def measure(self, session: Session, steps: Sequence[Step], record: Callable[[Step], object]) -> None:
        by_device = {step.inference.place: step for step in steps if step.inference}
        console, failed = Console(f"perf on {many(len(by_device), 'further device')}"), list[ShardFailed]()
        with self._ready(session, steps[0]) as (pool, facts, _):
            names = [entry.name for entry in facts]
            if absent := [name for name in by_device if name not in names]:
                raise MissingError(f"{some(absent)}: none of the devices {', '.join(names)}. See: invoke cluster show")
            for run in performance.run_each(pool, by_device, facts, self.settings.first_patience, console.say):
                problem = _problem(run.outcome) or self._record(by_device[run.device], run, record)
                if problem:
                    failed.append(problem)
                    console.say(f"{run.device}: {problem.why}")
        if failed:
            why = "; ".join(f"{each.device}: {each.why}" for each in failed)
            kept = f"The runs of the other {many(len(by_device) - len(failed), 'device')} are kept. "
            raise from_exit_code(
                failed[0].code,
                f"no performance of {why}. {kept if len(failed) < len(by_device) else ''}"
                "Run the same command again, without a device that stays bad",
            )

    def _record(self, step: Step, run: MeasuredDevice, record: Callable[[Step], object]) -> Optional[ShardFailed]:
        """Have a run recorded that is there. What it left may be none of a performance run: the device failed then."""
        self._ready_runs[step.name] = run
        try:
            record(step)
        except DebertaError as error:
            return ShardFailed(run.device, 0, str(error), error.exit_code)
        finally:
            del self._ready_runs[step.name]
        return None

    def begun(self, step: Step) -> str:
        return self._ready_runs[step.name].begun if step.name in self._ready_runs else ""

    def others(self, session: Session, step: Step, devices: Sequence[int]) -> dict[str, int]:
        present = {work.name_of(number): number for number in devices}
        hosts = dict.fromkeys(present, work.host())
        if self.measures:
            in_order = self.present(session, step)
            present, hosts = {d.name: d.device for d in in_order}, {d.name: d.host for d in in_order}
        if not step.tool:  # one of each host
            present = {name: present[name] for name in dict(zip(reversed(hosts.values()), reversed(hosts))).values()}
        first = next(iter(hosts))
        return {name: number for name, number in present.items() if name != first}

    def present(self, session: Session, step: Step) -> list[DeviceFacts]:
        """The devices that can run a step's model now, by host and number. Sends them nothing; raises their errors."""
        pool = self.open(session)
        try:
            facts = pool.devices(replace(step, inputs=()))
        finally:
            pool.close()
        return sorted(facts, key=lambda entry: (entry.host, entry.device))

    def client(self, session: Session) -> Session:
        """The session of a cluster's client: what runs the model there is asked for once."""
        known: dict[str, DeviceFacts] = {}

        def device(step: Step) -> DeviceFacts:
            if step.tool not in known:
                known[step.tool] = self.present(session, step)[0]
            return known[step.tool]

        return replace(session, shards=self, executor=ClientExecutor(session.executor, device))

    def internal(self, step: Step) -> Mapping[str, Any]:
        if step.inference is not None and work.is_performance(step):
            return {spans.DEVICE: self._measured.get(step.name) or work.name_of(step.inference.device)}
        if step.name not in self._last:
            return {}
        return {spans.INTERNAL: msgspec.to_builtins(self._last[step.name][0])}

    def recorded(self, session: Session, step: Step) -> None:
        if step.name in self._last:
            files.remove(self._last.pop(step.name)[1])


def _problem(outcome: Outcome) -> Optional[ShardFailed]:
    """Why there is no run of a device's; None if there is one."""
    if isinstance(outcome, DeviceGone):
        return ShardFailed(outcome.device, 0, outcome.why, StageError.exit_code)
    return outcome if isinstance(outcome, ShardFailed) else None


def _folder(session: Session, step: Step, facts: Sequence[DeviceFacts]) -> Path:
    """Where a run's finished shards are kept: another model, bins, program, CANN or chip have another place."""
    kinds = sorted({(d.chip, d.cann, d.driver, d.machine, d.code, str(sorted(d.program.items()))) for d in facts})
    parts = {
        "step": freshness.own_parameters(session, step),
        "executor": session.executor.name,
        "inputs": {resource.name: resource.digest for resource in freshness.dependencies(session, step)},
        "devices": kinds,
    }
    return session.workspace / store.FOLDER / store.key(parts)


def _merge(
    kept: ShardStore, done: Sequence[StoredShard], length: int, sizes: Mapping[str, int], temporary: Path
) -> Judged:
    """Put the outputs of a length's shards together, in a folder named as msame names one, and judge them."""
    folder = temporary / contract.run_folder(datetime.now())
    folder.mkdir(parents=True)
    for entry in done:
        if entry.shard.length == length:
            for name, content in kept.outputs(entry.shard).items():
                if (folder / name).exists():
                    raise DataError(f"two shards have made {name} at length {length}. Run the same command again")
                (folder / name).write_bytes(content)
    runs.check_files(folder.iterdir(), sizes, "outputs", folder)
    return Judged(folder, "", ())


def _write_logs(session: Session, step: Step, logs: Sequence[tuple[spans.Span, str]]) -> None:
    """The step's own log lists the shards' logs, which lie in a folder beside it."""
    path = session.workspace / step.log
    lines = [f"{spans.text(*span)}: {work.log_of(step, span)}" for span, _ in sorted(logs)]
    for span, printed in logs:
        files.write_text(session.workspace / work.log_of(step, span), printed)
    files.write_text(path, "".join(f"{line}\n" for line in lines))


def _summary(done: Sequence[StoredShard], counts: Mapping[int, int]) -> dict[str, Any]:
    """What the cpu backend's stage would have counted in one run; times are sums over the devices."""
    ms = {length: sum(e.shard.inference_ms for e in done if e.shard.length == length) for length in counts}
    counted: dict[str, Any] = dict(done[0].summary)
    counted.update(
        batches=sum(counts.values()),
        inference_ms=sum(ms.values()),
        lengths={str(n): {"batches": counts[n], "average_ms": ms[n] / counts[n] if counts[n] else 0.0} for n in counts},
        devices=len({entry.shard.device for entry in done}),
    )
    return counted
