"""Why a report is no acceptance: what `acceptance` writes into the job and what `verify` holds against its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Collection, Iterable, Mapping, Optional, Sequence

from msgspec import structs

from deberta.core import contract, published
from deberta.core.job import Gates, Job
from deberta.core.paths import Artifacts
from deberta.core.records import Record
from deberta.host.plan.profiles import Profile

OF_PUBLISHED = ("official", "fps")  # gates that a profile without published figures has nothing for

Json = Mapping[str, Any]


def applicable(gates: Gates, profile: Profile, versions: Sequence[str]) -> Gates:
    """The gates of a profile that are about these versions, without those that need published figures it has not."""
    if not profile.published:
        gates = structs.replace(gates, **dict.fromkeys(OF_PUBLISHED))
    if gates.inputs is not None:
        unused = {str(profile.data_path(version)) for version in profile.rows if version not in versions}
        inputs = {path: digest for path, digest in gates.inputs.items() if path not in unused}
        gates = structs.replace(gates, inputs=inputs)
    return gates


def shortfalls(job: Job, automatic: Sequence[str] = ()) -> list[str]:
    """What of a run is less than an acceptance takes; `automatic`: of backend and executor, what was left to auto."""
    by_auto = " (taken by auto)" if "backend" in automatic else ""
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
    user_supplied = {figure.batch_size for figure in (*job.cells, *job.performances) if "brought" in figure.origin}
    models = [Artifacts(job.profile.name, job.backend).compiled(size) for size in sorted(user_supplied)]
    return reasons + [f"{model} was brought: nothing tells what it was made of" for model in models]


def pinned_tools(project: Path) -> set[str]:
    """The SHA-256 of all tools that docker/pins.toml names."""
    from deberta.host.images import pins  # tomlkit is not loaded for the list of tasks

    pinned = pins.load(project)
    return {*pinned.cann.values(), *pinned.msame.values(), *pinned.wheels.values()}


def not_pinned(step_records: Iterable[Record], pinned: Collection[str], in_image: bool) -> list[str]:
    """What ran that docker/pins.toml does not name, each once with the steps that it ran.

    `pinned`: the SHA-256 of all tools that docker/pins.toml names. `in_image`: an atc of this machine is the CI
    image's, whose build took pinned packages alone; what else went in is a reason of its own.
    """
    steps: dict[str, list[str]] = {}
    for record in step_records:
        parameters, internal = record.parameters, record.internal
        problem: Optional[str] = str(internal.get("pins", "pinned"))
        tool = str(parameters.get("tool", ""))
        if tool and parameters.get("executor") == "local" and not (in_image and tool == "atc"):
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
