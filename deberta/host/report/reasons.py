"""Why a report is no acceptance, and what records say of its run: `acceptance` writes it, `verify` calls it again."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Collection, Mapping, Optional, Sequence

from msgspec import structs

from deberta.core import contract, published
from deberta.core.job import Gates, Job, PinFacts, StepFacts
from deberta.core.paths import Artifacts
from deberta.core.records import Record

OF_PUBLISHED = ("official", "fps")  # gates that a profile without published figures has nothing for
PREPARED = "stages_python: the stages ran in an environment that nothing checked against its lock"

Json = Mapping[str, Any]


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
    """The job with why it is no acceptance, and what the records of its steps say, whatever it has of both already."""
    in_order = sorted(step_records, key=lambda record: (record.started, record.finished))
    unpinned = _not_pinned(step_records, tools)
    measured = structs.replace(
        job.measured,
        finished=max((record.finished for record in in_order), default=job.measured.finished),
        pins=PinFacts(pinned=not unpinned, notes=unpinned),
        tools=_tools(in_order),
        steps=[_step(record) for record in in_order],
    )
    prepared = [PREPARED] if any(record.internal.get("environment") for record in step_records) else []
    return structs.replace(
        job,
        measured=measured,
        not_accepted=[*_shortfalls(job), *_other_gates(job, ours), *prepared, *unpinned],
    )


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
        reasons += ["the published figures are not the guide's"] if job.published != [*published.GUIDE] else []
    else:
        reasons.append(f"profile {job.profile.name}: nothing is published for it")
    user_supplied = {figure.batch_size for figure in (*job.cells, *job.performances) if "brought" in figure.origin}
    models = [Artifacts(job.profile.name, job.backend).compiled(size) for size in sorted(user_supplied)]
    return reasons + [f"{model} was brought: nothing tells what it was made of" for model in models]


def _not_pinned(step_records: Sequence[Record], pinned: Collection[str]) -> list[str]:
    """What ran that docker/pins.toml does not name, each once with the steps that it ran.

    An atc of this machine whose record speaks of pins is the CI image's, whose build took pinned packages alone.
    """
    steps: dict[str, list[str]] = {}
    for record in step_records:
        parameters, internal = record.parameters, record.internal
        tool, is_local = str(parameters.get("tool", "")), parameters.get("executor") == "local"
        unknown = "pinned" if is_local else "not pinned: its record does not say so"
        problem: Optional[str] = str(internal.get("pins", unknown))
        if tool and is_local and not (tool == "atc" and "pins" in internal):
            problem = _tool_problem(tool, parameters, str(internal.get("cann", "")), pinned)
        if problem and problem != "pinned":
            steps.setdefault(problem, []).append(str(parameters.get("step", "")))
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
    parameters, started, finished = record.parameters, record.started, record.finished
    images = list(record.images.values())
    return StepFacts(
        step=str(parameters.get("step", "")),
        executor=str(parameters.get("executor", "")),
        image=f"sha256:{images[0]}" if images else "",
        started=started,
        finished=finished,
        seconds=(datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds(),
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
