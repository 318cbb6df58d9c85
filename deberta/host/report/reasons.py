"""Why a report is no acceptance, and what records say of its run: `acceptance` writes it, `verify` calls it again."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Collection, Iterable, Mapping, Optional, Sequence, TypeVar

from msgspec import structs

from deberta.ascend import ais_bench, timing
from deberta.core import contract, published
from deberta.core import report as report_format
from deberta.core.job import CellPlace, Gates, Job, PerformanceFiles, PinFacts, RunFiles, StepFacts
from deberta.core.paths import Artifacts
from deberta.core.records import Record
from deberta.host.report import sharded_runs

OF_PUBLISHED = ("official", "fps")  # gates that a profile without published figures has nothing for
PREPARED = "stages_python: the stages ran in an environment that nothing checked against its lock"

Json = Mapping[str, Any]
Run = TypeVar("Run", bound=RunFiles)


def demands(project: Path, job: Job) -> tuple[Gates, set[str]]:
    """A checkout's gates for a job, and the SHA-256 of all tools that its docker/pins.toml names."""
    from deberta.host.images import pins  # tomlkit is not loaded for the list of tasks
    from deberta.host.report import gates

    pinned = pins.load(project)
    of_profile = gates.load(project / gates.OURS, job.profile.name)
    tools = {*pinned.cann.values(), *pinned.msame.values(), *pinned.wheels.values()}
    return applicable(of_profile, job.profile.published, job.versions), tools


def applicable(gates: Gates, is_published: bool, versions: Sequence[str]) -> Gates:
    """Gates that are about these versions, without those that need published figures that a profile has not."""
    if not is_published:
        gates = structs.replace(gates, **dict.fromkeys(OF_PUBLISHED))
    if gates.inputs is not None:
        unused = {contract.DEV_FILES[version] for version in contract.VERSIONS if version not in versions}
        inputs = {path: digest for path, digest in gates.inputs.items() if PurePosixPath(path).name not in unused}
        gates = structs.replace(gates, inputs=inputs)
    return gates


def conclude(job: Job, step_records: Sequence[Record], ours: Gates, tools: Collection[str]) -> Job:
    """The job with why it is no acceptance, and what follows from the records of its steps, whatever it has of both."""
    in_order = sorted(step_records, key=lambda record: (record.started, record.finished))
    problems = [(record, _pin_problem(record, tools)) for record in step_records]
    unpinned = _not_pinned(problems)
    sharded = list(sharded_runs.of_job(job, step_records))
    cells = [_stands(job, cell, [*cell.outputs.values(), cell.evaluation], "", problems) for cell in job.cells]
    measured = structs.replace(
        job.measured,
        finished=max((record.finished for record in in_order), default=job.measured.finished),
        loops=job.loops,
        pins=PinFacts(pinned=not unpinned, notes=unpinned),
        tools=_tools(in_order),
        engines=_engines(job, step_records),
        steps=[_step(record) for record in in_order],
        places={
            report_format.key(cell.batch_size, cell.version, cell.precision): CellPlace(
                place=cell.place, pinned=cell.pinned, not_checked=cell.not_checked
            )
            for cell in cells
        },
        sharded=sharded_runs.summed_up(sharded),
    )
    prepared = [PREPARED] if any(record.internal.get("environment") for record in step_records) else []
    return structs.replace(
        job,
        cells=cells,
        performances=[_timed(job, run, problems) for run in job.performances],
        on_devices=[_timed(job, run, problems) for run in job.on_devices],
        throughputs=[
            _stands(job, result, [result.throughput], timing.runner_of(log), problems)
            for result in job.throughputs
            for log in [*result.logs.values()][:1]
        ],
        published=list(published.GUIDE) if job.profile.published else [],
        note=f"{published.SOURCE}. {published.NOTE}" if job.profile.published else "",
        measured=measured,
        not_accepted=[
            *_shortfalls(job),
            *_other_gates(job, ours),
            *sharded_runs.not_accepted(sharded),
            *prepared,
            *unpinned,
        ],
    )


def place(backend: str, runner: str = "") -> str:
    """Where a figure was measured; the guide's own runner is not named."""
    return f"on {backend}" + (f" ({runner})" if runner == ais_bench.MODULE else "")


def _stands(
    job: Job, run: Run, paths: Iterable[str], runner: str, problems: Sequence[tuple[Record, Optional[str]]]
) -> Run:
    """The run with its place, whether all is pinned that made the files at these paths, and what was not checked."""
    waiting, pinned = [*paths], True
    not_checked: dict[str, None] = {}
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            for record, problem in problems:
                if path in record.subjects:
                    pinned = pinned and not problem
                    waiting += record.dependencies
                    not_checked.update(dict.fromkeys(_not_checked(record)))
    if contract.is_supplied(run.origin):
        return structs.replace(run, place=contract.SUPPLIED, pinned=False)
    return structs.replace(run, place=place(job.backend, runner), pinned=pinned, not_checked=sorted(not_checked))


def _timed(job: Job, run: PerformanceFiles, problems: Sequence[tuple[Record, Optional[str]]]) -> PerformanceFiles:
    """The performance run with the device that its record names, as `_stands` besides."""
    devices = [sharded_runs.device_of(record) for record, _ in problems if run.log in record.subjects]
    name = next(filter(None, devices), "")
    return structs.replace(_stands(job, run, [run.log], run.runner, problems), device=name)


def _not_checked(record: Record) -> list[str]:
    """What a run on a device could not look at before, as its record has it."""
    sentences = record.summary.get("not_checked")
    return [text for text in sentences if isinstance(text, str) and text] if isinstance(sentences, list) else []


def _engines(job: Job, step_records: Sequence[Record]) -> list[str]:
    """What the runs' own summaries say that they ran on."""
    names = {path for _, by_length, *_ in job.figures() for path in by_length.values()}
    summaries = [record.summary for record in step_records if not names.isdisjoint(record.subjects)]
    keys = ("engine", "precision", "threads")
    engines = {tuple(summary.get(key) for key in keys) for summary in summaries if "engine" in summary}
    return sorted(f"{engine}, {precision}, {threads} threads" for engine, precision, threads in engines)


def _other_gates(job: Job, ours: Gates) -> list[str]:
    pairs = [(name, getattr(job.gates, name), getattr(ours, name)) for name in Gates.__struct_fields__]
    names = [f"{name}{'' if gate else ' (left out)'}" for name, gate, of_ours in pairs if gate != of_ours]
    return [f"the gates are not those of deberta/gates.toml: {', '.join(names)}"] if names else []


def _shortfalls(job: Job) -> list[str]:
    """What of a run is less than an acceptance takes."""
    by_auto = " (taken by auto)" if "backend" in job.auto else ""
    reasons = [f"backend cpu{by_auto}: no NPU was used"] if job.backend != "ascend" else []
    if job.limit:
        reasons.append(f"limited to the first {job.limit} rows")
    if job.loops < contract.PERFORMANCE_LOOPS:
        reasons.append(f"{job.loops} loops of a performance run: the guide's has {contract.PERFORMANCE_LOOPS}")
    if job.profile.published:
        sizes = [str(row.batch_size) for row in published.GUIDE if row.batch_size not in job.batch_sizes]
        versions = [version for version in contract.VERSIONS if version not in job.versions]
        reasons += [f"the published table has batch sizes {', '.join(sizes)} too"] if sizes else []
        reasons += [f"the published table has {', '.join(versions)} too"] if versions else []
    else:
        reasons.append(f"profile {job.profile.name}: nothing is published for it")
    figures = [*job.cells, *job.performances]
    artifacts = Artifacts(job.profile.name, job.backend)
    theirs = {path for run in figures for path in artifacts.of_user(run.origin, run.batch_size, run.version)}
    reasons += [f"{path} is {contract.SUPPLIED}: nothing tells what it was made of" for path in sorted(theirs)]
    of_kinds: dict[str, Sequence[RunFiles]] = {"accuracy": job.cells, "fps": job.performances}
    for kind, runs in of_kinds.items():
        names = [f"bs {run.batch_size} {run.version}" for run in runs if contract.is_supplied(run.origin)]
        reasons += [f"{contract.SUPPLIED} {kind}, not measured here: {', '.join(names)}"] if names else []
    return reasons


def _pin_problem(record: Record, tools: Collection[str]) -> Optional[str]:
    """What ran in this step that docker/pins.toml does not name.

    An atc of this machine whose record speaks of pins is the CI image's, whose build took pinned packages alone.
    """
    parameters, internal = record.parameters, record.internal
    tool, is_local = str(parameters.get("tool", "")), parameters.get("executor") == "local"
    if tool and is_local and not (tool == "atc" and "pins" in internal):
        return _tool_problem(tool, parameters, str(internal.get("cann", "")), tools)
    problem = str(internal.get("pins", "pinned" if is_local else "not pinned: its record does not say so"))
    return None if problem == "pinned" else problem


def _not_pinned(problems: Iterable[tuple[Record, Optional[str]]]) -> list[str]:
    """Each problem once, with the steps that it is of."""
    steps: dict[str, list[str]] = {}
    for record, problem in problems:
        if problem:
            steps.setdefault(problem, []).append(str(record.parameters.get("step", "")))
    return [
        f"{problem} ({names[0]}{f' and {len(names) - 1} more steps' if len(names) > 1 else ''})"
        for problem, names in steps.items()
    ]


def _tool_problem(tool: str, parameters: Json, cann: str, pinned: Collection[str]) -> Optional[str]:
    """What is wrong with a tool that ran on this machine as it is."""
    digests = [str(parameters[key]) for key in ("program", "aclruntime", "ais_bench") if key in parameters]
    name = f"not pinned: {tool} of {f'CANN {cann}' if cann else 'an unknown CANN'} on this machine"
    if not digests:
        return f"{name}: its SHA-256 is in no record, so docker/pins.toml cannot vouch for it"
    unknown = [digest for digest in digests if digest not in pinned]
    return f"{name}: SHA-256 {', '.join(unknown)} is not in docker/pins.toml" if unknown else None


def _step(record: Record) -> StepFacts:
    parameters = record.parameters
    images = list(record.images.values())
    return StepFacts(
        step=str(parameters.get("step", "")),
        executor=str(parameters.get("executor", "")),
        image=f"sha256:{images[0]}" if images else "",
        started=record.started,
        finished=record.finished,
        seconds=record.seconds,
    )


def _tools(step_records: Sequence[Record]) -> dict[str, str]:
    """What ran beside our stages: atc by CANN's version, msame and ais_bench by SHA-256, as far as records tell."""
    tools = {"atc": "", "msame": ""}
    for record in step_records:
        parameters = record.parameters
        tool, version = str(parameters.get("tool", "")), str(record.internal.get("cann", ""))
        if tool == "atc":
            tools["atc"] = f"CANN {version}" if version else ""
        elif tool:
            tools[tool] = str(parameters.get("program") or parameters.get("aclruntime") or "")
    return tools
