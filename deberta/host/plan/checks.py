"""Steps beside the chain: a look at the data, lint-onnx, check-fp16, PyTorch's own logits, the report of it all."""

from __future__ import annotations

from pathlib import PurePosixPath as Path
from typing import Optional

from deberta.core.contract import SEQUENCE_LENGTH
from deberta.core.job import Job
from deberta.host.plan.plan import Case, Input, Plan, StageOptions, Step, stage


def lint(case: Case) -> Step:
    """The check that comes before ATC: an error stops, what else it finds goes to the compilation's record."""
    plan = case.plan
    suffix, length = plan.model_length
    return stage(
        "lint-onnx",
        case,
        named=(f"lint-onnx_bs{case.batch_size}{suffix}", f"lint-onnx bs={case.batch_size}{length}"),
        reads={"--model": Input(plan.artifacts.onnx, plan.command("export-onnx"))},
        writes={"--output": plan.artifacts.lint(case.batch_size)},
        options={
            "--batch-sizes": case.batch_size,
            "--format": "json",
            "--sequence-length": plan.length if plan.length != SEQUENCE_LENGTH else None,
        },
    )


def lint_file(plan: Plan, model: Path, output: Path, options: StageOptions) -> Step:
    """The same check of any ONNX file, as a user asks for it."""
    own = model == plan.artifacts.onnx
    return stage(
        "lint-onnx",
        Case(plan),
        reads={"--model": Input(model, plan.command("export-onnx") if own else "Check --model")},
        writes={"--output": output},
        options=options,
    )


def check_fp16(case: Case, rows: str, margin: str) -> Step:
    """The fp16 gate on real rows: `rows` of them, evenly spread (0: all); `margin` of a changed label, in logits."""
    plan = case.plan
    return stage(
        "check-fp16",
        case,
        reads={
            "--model": Input(plan.artifacts.onnx, plan.command("export-onnx")),
            "--bins": Input(case.bins, case.command("preprocess")),
            "--kept": kept_nodes(plan),
        },
        writes={"--report": plan.artifacts.check_fp16(case.batch_size, case.version)},
        options={
            "--keep": str(plan.artifacts.keep_dtype(case.batch_size, case.version)),
            "--bs": case.batch_size,
            "--rows": "0" if plan.limit else rows,
            "--margin": margin,
        },
    )


def kept_nodes(plan: Plan) -> list[Input]:
    """The user's own file of nodes that stay in float32, if atc's settings name one."""
    kept = plan.atc.keep_dtype
    return [Input(Path(kept), "check keep_dtype under atc in invoke.yaml")] if kept else []


def reference(plan: Plan, version: str) -> Step:
    """checkpoint and MNLI's tsv -> PyTorch's logits of every row, whatever backend runs the model."""
    case = Case(plan, version=version)
    return stage(
        "pytorch-reference",
        case,
        named=case.named("reference"),
        reads=case.sources("checkpoint", "config", "data", "tokenizer"),
        writes={"--output": plan.artifacts.reference(version)},
        options={**plan.labels, **case.row_counts},
    )


def check_data(plan: Plan, version: str) -> Step:
    """MNLI's tsv -> what a look at the data itself shows."""
    case = Case(plan, version=version)
    return stage(
        "check-data",
        case,
        reads=case.sources("data", "tokenizer", "config"),
        writes={"--output": plan.artifacts.data_check(version)},
        options={"--version": version, **case.row_counts},
    )


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


def render(plan: Plan, language: str) -> Step:
    """report.json for people, in a language of contract.LANGUAGES."""
    return stage(
        "render",
        Case(plan),
        reads={"--report": Input(plan.artifacts.report("json"), plan.command("report"))},
        writes={"--markdown": plan.artifacts.report("md"), "--html": plan.artifacts.report("html")},
        options={"--language": language},
    )


def _inputs(plan: Plan, job: Job) -> list[Input]:
    """What a job names: what the user supplies, then what steps made."""
    supplied = {*job.inputs, *job.data.values()}
    paths = [*job.sentinels.values(), *job.references.values()]
    for names, *_ in job.figures():
        paths += names
    paths += [str(Path(cell.evaluation).with_suffix(".json")) for cell in job.cells]
    paths += [job.baseline] if job.baseline else []
    again = plan.command("evaluate")
    steps = [Input(Path(path), again) for path in dict.fromkeys(paths)]
    return [*(plan.source(Path(path)) for path in sorted(supplied)), *steps]
