"""A device's work: a shard run by a session's executor, and judged by the rule of every run of the model.

Bins and outputs of the shard lie in the run's scratch folder, so that several devices share a workspace.
"""

from __future__ import annotations

import contextlib
import platform
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Callable

from deberta import PROJECT
from deberta.ascend import ais_bench, programs
from deberta.core import contract, files, machine, progress, records, schema
from deberta.core.errors import DebertaError
from deberta.core.job import DeviceFacts
from deberta.host.plan.plan import ModelRun, Step
from deberta.host.run import device_locks, devices, source_digest
from deberta.host.run.session import Session
from deberta.host.shards.pool import ShardDone, ShardRequest
from deberta.host.shards.spans import Span

_DROPPED = ("--input", "--output", "--lengths", "--device", "--threads")  # a shard has its own


def name_of(device: int) -> str:
    """A device of this host, as it is called everywhere: HOST/DEVICE."""
    return f"{host()}/{device}"


def host() -> str:
    return platform.node() or "localhost"


def batches(step: Step) -> dict[int, ModelRun]:
    """The step's runs by length."""
    assert step.inference is not None
    return {_length(run): run for run in step.inference.runs}


def batch_size(run: ModelRun) -> int:
    return max(run.expected.values()) // contract.output_bytes(1)


def _length(run: ModelRun) -> int:
    return run.bin_bytes // contract.input_bytes(batch_size(run), 1)


def bins(request: ShardRequest) -> list[list[PurePosixPath]]:
    """The bins that a request reads: for each input of the model those of its batches, in order."""
    whole = batches(request.step)[request.length]
    if is_performance(request.step):  # its step names files
        return [[path] for path in whole.bins]
    names = [contract.input_file(index) for index in range(request.first, request.last + 1)]
    return [[folder / name for name in names] for folder in whole.bins]


def outputs(request: ShardRequest) -> dict[str, int]:
    """The bytes of the files that a request leaves, by name, in the order of its batches."""
    sizes = batches(request.step)[request.length].expected
    if is_performance(request.step) and request.step.tool != ais_bench.MODULE:
        return dict(sizes)
    in_order = list(sizes.values())
    return {contract.output_file(index): in_order[index] for index in range(request.first, request.last + 1)}


def is_performance(step: Step) -> bool:
    return step.inference is not None and step.inference.log_copy is not None


def facts(session: Session, step: Step, device: int, wait: Callable[[str], None] = progress.say) -> DeviceFacts:
    """What can be known of a device. Raises the errors of one that is not fit to run: busy, ill, no CANN.

    The executor is prepared for the step. `wait` takes sentences on another run of ours that has the device.
    """
    chip, driver = machine.cpu_name(), ""
    if step.tool:
        with device_locks.held(session.locks, device, False, wait):
            chip = devices.look(session, device, lambda line: None).name
            with contextlib.suppress(DebertaError), device_locks.looking(session.locks, wait):
                driver = programs.driver_version()
    identity = session.executor.identity(step)
    # CANN and all else that a container has is its image's, whose tag says only what it was built from.
    in_image = session.executor.provenance(step).internal if "image" in identity else {}
    return DeviceFacts(
        host=host(),
        device=device,
        chip=chip,
        cann=str(identity.get("cann") or in_image.get("cann", "")),
        driver=driver,
        program={name: str(value) for name, value in identity.items() if name != "cann"},
        code=source_digest.of_package(PROJECT),
        machine=platform.machine(),
        image=str(in_image.get("image_contents", "")),
    )


def run(session: Session, request: ShardRequest, device: int, wait: Callable[[str], None] = progress.say) -> ShardDone:
    """Run a shard on a device, judge what it left, and read that. Raises the errors of a run.

    A performance run is never cut: its request is of batch 0, which runs as often as its step says. `wait`: as of
    `facts`.
    """
    assert request.step.inference is not None
    whole, started = batches(request.step)[request.length], records.now()
    name = f"{request.step.name}.device{device}"
    scratch = programs.new_scratch(session.workspace, name)
    shard = programs.scratch(name) / "shard"
    own_bins = []
    for paths in bins(request):
        folder = shard / paths[0].parent.name
        (session.workspace / folder).mkdir(parents=True)
        for path in paths:
            files.link_or_copy(session.workspace / path, session.workspace / folder / path.name)
        own_bins.append(folder / paths[0].name if is_performance(request.step) else folder)
    expected = dict(list(whole.expected.items())[request.first : request.last + 1])
    times = whole.times if is_performance(request.step) else len(expected)
    own = ModelRun(shard / "out", expected, times, tuple(own_bins), whole.bin_bytes)
    step = replace(
        request.step,
        name=name,
        arguments=_arguments(request, own, device, programs.scratch(name)),
        outputs=(own.output,),
        log=log_of(request.step, request.span),
        inference=replace(request.step.inference, runs=(own,), devices=(device,)),
    )
    summary = scratch / "summary.json"
    arguments = list(step.arguments)
    if step.stage:
        arguments += ["--summary", str(summary.relative_to(session.workspace))]
    place, not_checked = {own.output: session.workspace / own.output}, []
    with devices.locked(session, step, wait):
        if step.tool:
            not_checked = devices.check_before(session, step, own, device, lambda line: None, request.first)
        [left] = devices.run_judged(session, step, place, arguments, lambda line: None, scratch if step.tool else None)
    counted = schema.read_json(summary, dict[str, Any]) if summary.exists() else {}
    done = ShardDone(
        device=name_of(device),
        attempt=request.attempt,
        outputs={each: files.read_bytes(left.folder / each) for each in outputs(request)},
        log=left.printed,
        summary=counted,
        # Batches at once overlap: their times say how long each took, the stage how long the model ran.
        inference_ms=float(counted.get("inference_ms", sum(left.times_ms))),
        started=started,
        finished=records.now(),
        not_checked=tuple(not_checked),
    )
    files.remove(scratch)
    return done


def _arguments(request: ShardRequest, run: ModelRun, device: int, scratch: PurePosixPath) -> tuple[str, ...]:
    """The step's command line for a shard's own files. A tool's working directory is its scratch folder."""
    step, kept = request.step, []
    options = iter(step.arguments)
    for option in options:
        if option in _DROPPED:
            next(options)
        else:
            kept.append(option)

    def path(path: PurePosixPath) -> str:
        return str(path.relative_to(scratch) if step.tool else path)

    end = "" if is_performance(step) else "/"
    kept += ["--input", ",".join(f"{path(bins)}{end}" for bins in run.bins), "--output", path(run.output)]
    if "--lengths" in step.arguments:
        kept += ["--lengths", str(request.length)]
    if not step.tool and request.runs_beside > 1:
        kept += ["--threads", str(max(1, machine.effective_cpus() // request.runs_beside))]
    if step.tool and (device or "--device" in step.arguments):
        kept += ["--device", str(device)]
    return tuple(kept)


def log_of(step: Step, span: Span) -> PurePosixPath:
    """Logs of shards lie in a folder beside the step's."""
    length, first, last = span
    return step.log.with_name(f"{step.log.stem}.shards") / f"s{length}_{first}-{last}.log"
