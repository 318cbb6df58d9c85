"""Steps that check and make nothing: lint-onnx and check-fp16. Planned like those of steps.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath as Path
from typing import Sequence

from deberta.core.contract import SEQUENCE_LENGTH
from deberta.host.plan import evaluation
from deberta.host.plan.evaluation import Input, Plan, Step, bins_of


def build_om(plan: Plan, batch_size: int) -> Step:
    """The compilation, which for ATC has lint-onnx as its gate unless the plan does without."""
    gated = plan.backend == "ascend" and plan.lint
    return replace(evaluation.build_om(plan, batch_size), gate=lint(plan, batch_size) if gated else None)


def lint(plan: Plan, batch_size: int) -> Step:
    """The check that comes before ATC: an error stops, what else it finds goes to the compilation's record."""
    artifacts = plan.artifacts
    made = artifacts.lint(batch_size)
    suffix, length = plan.model_length
    other = ("--sequence-length", str(plan.length)) if plan.length != SEQUENCE_LENGTH else ()
    return Step(
        name=f"lint-onnx_bs{batch_size}{suffix}",
        title=f"lint-onnx bs={batch_size}{length}",
        stage="lint-onnx",
        arguments=(
            *("--model", str(artifacts.onnx), "--batch-sizes", str(batch_size)),
            *("--format", "json", "--output", str(made), *other),
        ),
        inputs=(Input(artifacts.onnx, plan.command("export-onnx")),),
        outputs=(made,),
        log=artifacts.log(f"lint-onnx_bs{batch_size}{suffix}"),
        commands=plan.commands(batch_size),
    )


def lint_file(plan: Plan, model: Path, output: Path, options: Sequence[str]) -> Step:
    """The same check of any ONNX file, as a user asks for it."""
    return Step(
        name="lint-onnx",
        title="lint-onnx",
        stage="lint-onnx",
        arguments=("--model", str(model), "--output", str(output), *options),
        inputs=(Input(model, plan.command("export-onnx") if model == plan.artifacts.onnx else "Check --model"),),
        outputs=(output,),
        log=plan.artifacts.log("lint-onnx"),
        commands=plan.commands(),
    )


def check_fp16(plan: Plan, batch_size: int, version: str, rows: str, margin: str) -> Step:
    """The fp16 gate on real rows: `rows` of them, evenly spread (0: all); `margin` of a flip that counts, in logits."""
    artifacts, kept = plan.artifacts, plan.atc.keep_dtype
    name, title = plan.named("check-fp16", batch_size, version)
    report = artifacts.check_fp16(batch_size, version)
    chosen = "0" if plan.limit else rows
    already = (Input(Path(kept), "check keep_dtype under atc in invoke.yaml"),) if kept else ()
    return Step(
        name=name,
        title=title,
        stage="check-fp16",
        arguments=(
            *("--model", str(artifacts.onnx), "--bins", str(artifacts.bins(batch_size, version))),
            *("--bs", str(batch_size), "--report", str(report)),
            *("--keep", str(artifacts.keep_dtype(batch_size, version))),
            *(("--rows", chosen) if chosen else ()),
            *(("--margin", margin) if margin else ()),
            *(("--kept", kept) if kept else ()),
        ),
        inputs=(
            Input(artifacts.onnx, plan.command("export-onnx")),
            bins_of(plan, batch_size, version),
            *already,
        ),
        outputs=(report,),
        log=artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )
