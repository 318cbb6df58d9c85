"""An int8 run beside the float32 one: a quantized model's accuracy is never shown alone."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Sequence

from deberta.core import buckets
from deberta.core.contract import FP32
from deberta.core.paths import limited
from deberta.host.plan import evaluation
from deberta.host.plan.bucket_steps import at
from deberta.host.plan.evaluation import Input, Plan, Step
from deberta.host.run import runner
from deberta.host.run.runner import Session


def flips(
    plan: Plan, batch_size: int, version: str, fp32: Sequence[PurePosixPath], int8: Sequence[PurePosixPath]
) -> Step:
    """`fp32`, `int8`: the runs' folders of outputs, one, or one for each length of `plan.buckets`."""
    data, output = plan.profile.data_path(version), plan.artifacts.flips(batch_size, version)
    of_lengths = "_buckets" if plan.buckets else ""
    name = f"{limited(f'int8_bs{batch_size}_{version}', plan.limit)}{of_lengths}"
    bins = [at(plan, length).artifacts.bins(batch_size, version) for length in plan.buckets]
    lengths = ("--lengths", buckets.text(plan.buckets), "--bins", _list(bins)) if plan.buckets else ()
    command = plan.command("infer", f" --bs {batch_size} --version {version}")
    return Step(
        name=name,
        title=f"int8 beside fp32 bs={batch_size} {version}",
        stage="label-changes",
        arguments=(
            *("--fp32", _list(fp32), "--int8", _list(int8), *lengths),
            *("--data", str(data), "--bs", str(batch_size), "--output", str(output), "--version", version),
            *evaluation.row_counts(plan, version),
        ),
        inputs=(*(Input(path, command) for path in (*fp32, *int8, *bins)), plan.source(data)),
        outputs=(output,),
        log=plan.artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )


def show(
    session: Session,
    plan: Plan,
    batch_size: int,
    version: str,
    fp32: Sequence[PurePosixPath],
    int8: Sequence[PurePosixPath],
) -> None:
    """Bring the comparison up to date and print it."""
    step = flips(plan, batch_size, version, fp32, int8)
    runner.run(session, step)
    if session.dry:
        return
    [path] = step.outputs
    found = json.loads((session.workspace / path).read_text(encoding="utf-8"))
    counts = [f"{found[name]['accuracy']} = {found[name]['correct']}/{found['rows']}" for name in ("int8", FP32)]
    partial = f" (only the first {plan.limit} rows: no result)" if plan.limit else ""
    changed = (
        f" ({found['right_before']} right in fp32, {found['right_now']} right in int8; "
        f"the largest fp32 margin among them is {found['largest_margin_changed']:.3f})"
        if found["labels_changed"]
        else ""
    )
    print(
        f"int8 beside fp32, {version} bs={batch_size}: accuracy {counts[0]} against {counts[1]}{partial}\n"
        f"  {found['labels_changed']} labels differ{changed}\n"
        f"  logits: max |difference| {found['max_abs_difference']:.3f}, mean {found['mean_abs_difference']:.4f}\n"
        f"  {path}"
    )


def _list(paths: Sequence[PurePosixPath]) -> str:
    return ",".join(map(str, paths))
