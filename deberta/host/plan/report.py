"""The two steps that make a report: its job to report.json, and that to report.md and report.html."""

from __future__ import annotations

from pathlib import PurePosixPath as Path
from typing import Optional

from deberta.core.job import Job
from deberta.host.plan.plan import Case, Input, Plan, Step, stage


def assess(plan: Plan, job: Optional[Job]) -> Step:
    """Every evaluation counted again, compared and judged. Its inputs are all files that the report is about."""
    return stage(
        "assess",
        Case(plan),
        reads={"--job": Input(plan.artifacts.job(), plan.command("report"))},
        also_reads=_inputs(plan, job) if job else [],
        writes={"--output": plan.artifacts.report("json")},
        options={},
    )


def render(plan: Plan) -> Step:
    """report.json for people."""
    return stage(
        "render",
        Case(plan),
        reads={"--report": Input(plan.artifacts.report("json"), plan.command("report"))},
        writes={"--markdown": plan.artifacts.report("md"), "--html": plan.artifacts.report("html")},
        options={},
    )


def _inputs(plan: Plan, job: Job) -> list[Input]:
    """What a job names: what the user supplies, then what steps made."""
    supplied = {*job.inputs, *job.data.values()}
    paths = [*job.sentinels.values(), *job.references.values()]
    for names, *_ in job.figures():
        paths += names
    paths += [str(Path(cell.evaluation).with_suffix(".json")) for cell in job.cells]
    again = plan.command("evaluate")
    steps = [Input(Path(path), again) for path in dict.fromkeys(paths)]
    return [*(plan.source(Path(path)) for path in sorted(supplied)), *steps]
