"""Steps that check and make nothing: a look at the data, lint-onnx and check-fp16; and PyTorch's own logits."""

from __future__ import annotations

from pathlib import PurePosixPath as Path

from deberta.core.contract import SEQUENCE_LENGTH
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
