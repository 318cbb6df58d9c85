"""The two steps that make a report: its job to report.json, and that to report.md and report.html."""

from __future__ import annotations

from pathlib import PurePosixPath as Path
from typing import Optional

from deberta.core.job import Job
from deberta.host.plan.plan import Input, Plan, Step, stage


def assess(plan: Plan, job: Optional[Job]) -> Step:
    """Every evaluation counted again, compared and judged. Its inputs are all files that the report is about."""
    return stage(
        "assess",
        plan.named("assess"),
        plan,
        reads={"--job": Input(plan.artifacts.job(), plan.command("report"))},
        also_reads=_inputs(plan, job) if job else [],
        writes={"--output": plan.artifacts.report("json")},
        options={},
    )


def render(plan: Plan) -> Step:
    """report.json for people."""
    return stage(
        "render",
        plan.named("render"),
        plan,
        reads={"--report": Input(plan.artifacts.report("json"), plan.command("report"))},
        writes={"--markdown": plan.artifacts.report("md"), "--html": plan.artifacts.report("html")},
        options={},
    )


def _inputs(plan: Plan, job: Job) -> list[Input]:
    """What a job names: what the user supplies, then what steps made."""
    supplied = {*job.inputs, *job.data.values()}
    paths = [*job.sentinels.values(), *job.references.values()]
    for cell in job.cells:
        counts = Path(cell.evaluation).with_suffix(".json")
        paths += [*cell.outputs.values(), *cell.bins.values(), cell.evaluation, str(counts)]
    paths += [run.log for run in job.performances]
    for throughput in job.throughputs:
        paths += [throughput.throughput, *throughput.logs.values(), throughput.tokens]
    paths += [changes.label_changes for changes in job.label_changes]
    again = plan.command("evaluate")
    steps = [Input(Path(path), again) for path in dict.fromkeys(paths)]
    return [*(plan.source(Path(path)) for path in sorted(supplied)), *steps]
