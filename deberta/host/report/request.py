"""A report's job: all that the host knows of what was measured, and the stages that turn it into the report.

The job is a JSON file that names every file by its path in the workspace. What depends on the machine, on times and on
tools is under `measured`; the stages read nothing that the job does not name.
"""

from __future__ import annotations

import json
import platform
import socket
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Iterable, Mapping, Optional, Sequence

import deberta
from deberta.core import contract, files, machine, published, records
from deberta.core.errors import DataError, MissingError
from deberta.core.paths import record_of
from deberta.core.records import Record
from deberta.host.plan import reference
from deberta.host.plan import report as acceptance_steps
from deberta.host.plan.evaluation import Plan, Step
from deberta.host.report import bom, measurements
from deberta.host.report.measurements import Measured
from deberta.host.run import runner as pipeline
from deberta.host.run.runner import Session

FORMAT = 1
OF_PUBLISHED = ("official", "fps")  # gates that a profile without published figures has nothing for

Json = Mapping[str, Any]


@dataclass(frozen=True)
class ReportRequest:
    """What a report is to be about. `reasons`: why it is no acceptance, as far as the caller knows.

    `gates`: the user's own file, None for ours. `runners`: whose performance runs count. `auto`: what was left to it,
    of backend and executor. `in_image`: this runs in the CI image.
    """

    purpose: str  # acceptance or report
    batch_sizes: Sequence[int]
    versions: Sequence[str]
    runners: Sequence[str]
    loops: int
    command: str
    auto: Sequence[str] = ()
    gates: Optional[Path] = None
    reasons: Sequence[str] = ()
    in_image: bool = False
    buckets_markdown: str = ""


def of_report(
    session: Session, plan: Plan, usual: Sequence[int], buckets_markdown: str, gates: Optional[Path]
) -> ReportRequest:
    """The report of everything that was measured so far, at the `usual` batch sizes and any other."""
    return ReportRequest(
        purpose="report",
        batch_sizes=sorted({*usual, *measurements.present(session, plan)}),
        versions=list(plan.profile.rows),
        runners=contract.RUNNERS,
        loops=contract.PERFORMANCE_LOOPS,
        command=plan.command("report"),
        gates=gates,
        buckets_markdown=buckets_markdown,
    )


def make(session: Session, plan: Plan, asked: ReportRequest) -> dict[str, Any]:
    """The job. Raises MissingError if nothing was measured, DataError if a file was altered."""
    found = measurements.collect(session, plan, asked.batch_sizes, asked.versions, asked.runners)
    if not found and not asked.buckets_markdown:
        raise MissingError(f"nothing has been measured in {plan.artifacts.results}. Run: {plan.command('evaluate')}")
    for said in found.left_out:
        print(f"left out of the report: {said}")
    profile = plan.profile
    data = {v: profile.data_path(v) for v in asked.versions if (session.workspace / profile.data_path(v)).exists()}
    inputs = [profile.checkpoint_path, profile.config_path, profile.tokenizer_path, *data.values()]
    recorded = {path: record for path in _way(plan, asked) if (record := _record(session, path)) is not None}
    if asked.purpose == "acceptance":
        one_build_of_each(recorded)
    way = list(recorded.values())
    loose = _not_pinned(session, way, asked.in_image)
    return {
        "format": FORMAT,
        "purpose": asked.purpose,
        "profile": {
            "name": profile.name,
            "published": profile.published,
            "labels": list(profile.labels or contract.LABELS),
            "rows": dict(profile.rows),
        },
        "backend": plan.backend,
        "limit": plan.limit,
        "loops": asked.loops,
        "batch_sizes": list(asked.batch_sizes),
        "versions": list(asked.versions),
        "data": {version: str(path) for version, path in data.items()},
        "sentinels": _current(session, plan, data, reference.sentinel),
        "references": _current(session, plan, data, reference.reference),
        "cells": [
            {
                **{"batch_size": cell.batch_size, "version": cell.version, "outputs": str(cell.outputs)},
                **{"evaluation": str(cell.evaluation), "origin": cell.origin, "pinned": cell.pinned},
                "place": measurements.place(plan, ""),
            }
            for cell in found.evaluations
        ],
        "performances": [
            {
                **{"batch_size": run.batch_size, "version": run.version, "runner": run.runner, "log": str(run.log)},
                **{"origin": run.origin, "pinned": run.pinned, "place": measurements.place(plan, run.runner)},
            }
            for run in found.performances
        ],
        "inputs": _digests(session, inputs),
        "artifacts": _digests(session, _same_anywhere(plan, asked)),
        "gates": gates(session, plan, asked),
        "published": [asdict(row) for row in published.GUIDE] if profile.published else [],
        "note": f"{published.SOURCE}. {published.NOTE}" if profile.published else "",
        "not_accepted": [*asked.reasons, *_shortfalls(plan, asked, found), *loose],
        "buckets_markdown": asked.buckets_markdown,
        "measured": {
            "made": max((record.finished for record in way), default=records.now().isoformat(timespec="seconds")),
            "deberta_ascend": deberta.__version__,
            "command": asked.command + (f" ({' and '.join(asked.auto)} taken by auto)" if asked.auto else ""),
            "executor": session.executor.name,
            "loops": asked.loops,
            "host": host(),
            "pins": {"pinned": not loose, "notes": loose},
            "tools": _tools(way),
            "engines": sorted({one.engine for one in found.figures} - {""}),
            "steps": [_step(record) for record in way],
            "artifacts": _digests(session, _of_this_machine(plan, asked, found)),
            "places": {
                f"bs{cell.batch_size}_{cell.version}": {"place": measurements.place(plan, ""), "pinned": cell.pinned}
                for cell in found.evaluations
            },
            "buckets_markdown": asked.buckets_markdown,
        },
    }


def publish(session: Session, plan: Plan, job: Json) -> dict[str, Any]:
    """Write the job, run the stages that make report.json, report.md and report.html of it, and list what it stands on.

    Returns the report. A signature of another report is removed.
    """
    made, signature = plan.artifacts.report("json"), session.workspace / plan.artifacts.attestation()
    former = session.digests.of(made) if (session.workspace / made).exists() else None
    files.write_text(session.workspace / plan.artifacts.job(), json.dumps(job, indent=2, ensure_ascii=False) + "\n")
    session.digests.save()  # the other session starts with what is known here
    anew = replace(session, force=True, why_forced="it is made anew each time", strict=False)
    for step in (acceptance_steps.assess(plan, job), acceptance_steps.render(plan)):
        pipeline.run(anew, step)
    bom.write(anew, plan)
    if signature.exists() and anew.digests.of(made) != former:
        files.remove(signature)
        print(f"{plan.artifacts.attestation()} was of the report before, and is removed")
    found: dict[str, Any] = json.loads((session.workspace / made).read_text(encoding="utf-8"))
    return found


def one_build_of_each(recorded: Mapping[PurePosixPath, Record]) -> None:
    """Raise DataError where two steps' records (by artifact) have different digests of one image."""
    seen: dict[str, tuple[PurePosixPath, str]] = {}
    for path, record in recorded.items():
        images = {name: d["sha256"] for name, d in record.dependencies.items() if name.startswith("image ")}
        for name, digest in images.items():
            other, before = seen.setdefault(name, (path, digest))
            if digest != before:
                raise DataError(
                    f"{record_of(path)} says that {name} is sha256:{digest}, and {record_of(other)} that it is "
                    f"sha256:{before}: a record was altered, or the image was built again on the way. "
                    f"Run: invoke acceptance --force"
                )


def show(session: Session, plan: Plan) -> None:
    """What `publish` would do, in a dry run."""
    print(f"# {plan.artifacts.job()} is written by this command itself, of the records and what they name")
    anew = replace(session, force=True, why_forced="it is made anew each time", strict=False)
    for step in (acceptance_steps.assess(plan, {}), acceptance_steps.render(plan)):
        pipeline.run(anew, step)


def host() -> dict[str, Any]:
    """The machine that this runs on."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": machine.cpu_name(),
        "cpus": machine.effective_cpus(),
        "name": socket.gethostname(),
    }


def _shortfalls(plan: Plan, asked: ReportRequest, found: Measured) -> list[str]:
    """What of a run is less than an acceptance takes, whatever it measured."""
    chosen = " (taken by auto)" if "backend" in asked.auto else ""
    said = [f"backend cpu{chosen}: no NPU was used"] if plan.backend == "cpu" else []
    if plan.limit:
        said.append(f"limited to the first {plan.limit} rows")
    if asked.loops < contract.PERFORMANCE_LOOPS:
        said.append(f"{asked.loops} loops of a performance run: the guide's has {contract.PERFORMANCE_LOOPS}")
    if plan.profile.published:
        sizes = [row.batch_size for row in published.GUIDE if row.batch_size not in asked.batch_sizes]
        versions = [version for version in contract.VERSIONS if version not in asked.versions]
        said += [f"the published table has batch sizes {', '.join(map(str, sizes))} too"] if sizes else []
        said += [f"the published table has {', '.join(versions)} too"] if versions else []
    else:
        said.append(f"profile {plan.profile.name}: nothing is published for it")
    brought = sorted({one.batch_size for one in found.figures if "brought" in one.origin})
    return said + [
        f"{plan.artifacts.compiled(size)} was brought: nothing tells what it was made of" for size in brought
    ]


def gates(session: Session, plan: Plan, asked: ReportRequest) -> dict[str, Any]:
    """The profile's gates, as far as they are about what was asked for. Raises gate_file.load's errors."""
    from deberta.host.report import gates as gate_file  # tomlkit is not loaded for the list of tasks

    found = gate_file.load(asked.gates or session.project / gate_file.OURS, plan.profile.name)
    left_out = () if plan.profile.published else OF_PUBLISHED
    if "inputs" in found:
        others = {str(plan.profile.data_path(v)) for v in plan.profile.rows if v not in asked.versions}
        found["inputs"] = {path: digest for path, digest in found["inputs"].items() if path not in others}
    return {name: gate for name, gate in found.items() if name not in left_out}


def _current(
    session: Session, plan: Plan, versions: Iterable[str], planned: Callable[[Plan, str], Step]
) -> dict[str, str]:
    """version -> the step's output, where it is there and of the present inputs."""
    found = {}
    for version in versions:
        step = planned(plan, version)
        [made] = step.outputs
        if (session.workspace / made).exists() and not pipeline.outdated(session, step):
            found[version] = str(made)
    return found


def _same_anywhere(plan: Plan, asked: ReportRequest) -> list[PurePosixPath]:
    """What the same inputs give on any machine. Not an evaluation's JSON file: that has the hash of its logits."""
    artifacts, whole = plan.artifacts, replace(plan, limit=0).artifacts
    found = [artifacts.onnx]
    for size in asked.batch_sizes:
        for version in asked.versions:
            found += [artifacts.bins(size, version), whole.bins(size, version), artifacts.evaluation(size, version)]
    return found


def _of_this_machine(plan: Plan, asked: ReportRequest, found: Measured) -> list[PurePosixPath]:
    artifacts = plan.artifacts
    compiled = [artifacts.compiled(size) for size in asked.batch_sizes]
    return [
        *(path for model in compiled for path in (model, model.with_suffix(".bin"))),
        *(path for one in found.evaluations for path in (one.outputs, one.evaluation.with_suffix(".json"))),
        *(run.log for run in found.performances),
        *(artifacts.reference(version) for version in asked.versions),
    ]


def _way(plan: Plan, asked: ReportRequest) -> list[PurePosixPath]:
    """What was made on the way, in that order; the performance runs' bins are those of all rows."""
    artifacts, whole = plan.artifacts, replace(plan, limit=0).artifacts
    found = [made(version) for version in asked.versions for made in (artifacts.sentinel, artifacts.reference)]
    found.append(artifacts.onnx)
    for size in asked.batch_sizes:
        found.append(artifacts.compiled(size))
        for version in asked.versions:
            found += [artifacts.bins(size, version), artifacts.outputs(size, version)]
            found += [artifacts.evaluation(size, version), whole.bins(size, version)]
            found += [whole.timing_log(size, version, runner) for runner in asked.runners]
    return list(dict.fromkeys(found))


def _record(session: Session, path: PurePosixPath) -> Optional[Record]:
    return records.read(session.workspace / record_of(path))


def _digests(session: Session, paths: Iterable[PurePosixPath]) -> dict[str, dict[str, str]]:
    """Of those that are there; a folder of outputs that the user named may be anywhere, and is left out."""
    there = [path for path in paths if not path.is_absolute() and (session.workspace / path).exists()]
    return {str(path): session.digests.of(path) for path in there}


def _step(record: Record) -> dict[str, Any]:
    parameters, started, finished = record.parameters, record.started, record.finished
    images = [entry["sha256"] for name, entry in record.dependencies.items() if name.startswith("image ")]
    return {
        "step": str(parameters.get("step", "")),
        "executor": str(parameters.get("executor", "")),
        "image": f"sha256:{images[0]}" if images else "",
        "started": started,
        "finished": finished,
        "seconds": (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds(),
    }


def _tools(way: Iterable[Record]) -> dict[str, str]:
    """What ran beside our stages: atc by CANN's version, msame and ais_bench by SHA-256, as far as records tell."""
    found = {"atc": "", "msame": ""}
    for record in way:
        parameters = record.parameters
        tool, version = str(parameters.get("tool", "")), str(record.internal.get("cann", ""))
        if tool == "atc":
            found["atc"] = f"CANN {version}" if version else ""
        elif tool:
            found[tool] = str(parameters.get("program") or parameters.get("aclruntime") or "")
    return found


def _not_pinned(session: Session, way: Iterable[Record], in_image: bool) -> list[str]:
    """What ran that docker/pins.toml does not name, each once with the steps that it ran.

    `in_image`: the atc is the CI image's, whose build took pinned packages alone; what else went in is a reason of its
    own (`Asked.reasons`).
    """
    said: dict[str, list[str]] = {}
    for record in way:
        parameters = record.parameters
        problem = str(record.internal.get("pins", "pinned"))
        tool = str(parameters.get("tool", ""))
        if tool and parameters.get("executor") == "local" and not (in_image and tool == "atc"):
            problem = _tool_problem(session, tool, parameters, str(record.internal.get("cann", "")))
        if problem != "pinned":
            said.setdefault(problem, []).append(str(parameters.get("step", "")))
    return [f"{problem} ({_counted(names)})" for problem, names in said.items()]


def _tool_problem(session: Session, tool: str, parameters: Json, cann: str) -> str:
    """Of a tool that ran on this machine as it is: "pinned", or what is wrong."""
    from deberta.host.images import pins  # tomlkit is not loaded for the list of tasks

    known = pins.load(session.project)
    wanted = {*known.cann.values(), *known.msame.values(), *known.wheels.values()}
    digests = [str(parameters[key]) for key in ("program", "aclruntime", "ais_bench") if key in parameters]
    of = f"{tool} of {f'CANN {cann}' if cann else 'an unknown CANN'} on this machine"
    if not digests:
        return f"not pinned: {of}: its SHA-256 is in no record, so docker/pins.toml cannot vouch for it"
    strange = [digest for digest in digests if digest not in wanted]
    return f"not pinned: {of}: SHA-256 {', '.join(strange)} is not in docker/pins.toml" if strange else "pinned"


def _counted(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more steps"
