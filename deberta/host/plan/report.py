"""The two steps that make a report: its job to report.json, and that to report.md and report.html."""

from __future__ import annotations

from pathlib import PurePosixPath as Path
from typing import Optional

from deberta.core.job import Job
from deberta.core.paths import limited
from deberta.host.plan.plan import Input, Plan, Step


def assess(plan: Plan, job: Optional[Job]) -> Step:
    """Every evaluation counted again, compared and judged. Its inputs are all files that the report is about."""
    artifacts = plan.artifacts
    report = artifacts.report("json")
    arguments = ("--job", str(artifacts.job()), "--output", str(report))
    inputs = (Input(artifacts.job(), plan.command("report")), *(_inputs(plan, job) if job else ()))
    return _step(plan, "assess", arguments, inputs, (report,))


def render(plan: Plan) -> Step:
    """report.json for people."""
    report, text, page = (plan.artifacts.report(kind) for kind in ("json", "md", "html"))
    arguments = ("--report", str(report), "--markdown", str(text), "--html", str(page))
    return _step(plan, "render", arguments, (Input(report, plan.command("report")),), (text, page))


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


def _step(
    plan: Plan, stage: str, arguments: tuple[str, ...], inputs: tuple[Input, ...], outputs: tuple[Path, ...]
) -> Step:
    name = limited(stage, plan.limit)
    return Step(
        name=name,
        title=f"{stage} first {plan.limit} rows" if plan.limit else stage,
        stage=stage,
        arguments=arguments,
        inputs=inputs,
        outputs=outputs,
        log=plan.artifacts.log(name),
        commands=plan.commands(),
    )
