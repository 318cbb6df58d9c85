"""The two steps that make a report: its job to report.json, and that to report.md and report.html."""

from __future__ import annotations

from pathlib import PurePosixPath as Path
from typing import Any, Mapping

from deberta.core.paths import limited
from deberta.host.plan.evaluation import Input, Plan, Step

Json = Mapping[str, Any]


def assess(plan: Plan, job: Json) -> Step:
    """Every evaluation counted again, compared and judged. Its inputs are all files that the report is about."""
    artifacts = plan.artifacts
    name, title = _named(plan, "assess")
    return Step(
        name=name,
        title=title,
        stage="assess",
        arguments=("--job", str(artifacts.job()), "--output", str(artifacts.report("json"))),
        inputs=(Input(artifacts.job(), plan.command("report")), *_inputs(plan, job)),
        outputs=(artifacts.report("json"),),
        log=artifacts.log(name),
        commands=plan.commands(),
    )


def render(plan: Plan) -> Step:
    """report.json for people."""
    artifacts = plan.artifacts
    name, title = _named(plan, "render")
    made = artifacts.report("json")
    page, text = artifacts.report("html"), artifacts.report("md")
    return Step(
        name=name,
        title=title,
        stage="render",
        arguments=("--report", str(made), "--markdown", str(text), "--html", str(page)),
        inputs=(Input(made, plan.command("report")),),
        outputs=(text, page),
        log=artifacts.log(name),
        commands=plan.commands(),
    )


def _inputs(plan: Plan, job: Json) -> list[Input]:
    """What a job names: what the user brings, then what steps made."""
    brought = {*job.get("inputs", {}), *job.get("data", {}).values()}
    made = [*job.get("sentinels", {}).values(), *job.get("references", {}).values()]
    for cell in job.get("cells", ()):
        text = Path(cell["evaluation"])
        made += [cell["outputs"], str(text), str(text.with_suffix(".json"))]
    made += [run["log"] for run in job.get("performances", ())]
    again = plan.command("evaluate")
    return [*(plan.source(Path(p)) for p in sorted(brought)), *(Input(Path(p), again) for p in dict.fromkeys(made))]


def _named(plan: Plan, step: str) -> tuple[str, str]:
    return limited(step, plan.limit), f"{step} first {plan.limit} rows" if plan.limit else step
