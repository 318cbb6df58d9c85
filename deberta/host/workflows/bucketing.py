"""What each task does with --buckets: rows run at the shortest length that holds them, results are the padded run's.

On cpu one model and one process run all lengths; on ascend each length has its ONNX, its .om and its run of msame.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Mapping, Optional, Sequence

from deberta.ascend import timing
from deberta.core import buckets, records
from deberta.core.buckets import Asked
from deberta.core.contract import FP32, SEQUENCE_LENGTH, batch_count
from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.core.paths import record_of
from deberta.host.plan import bucket_steps, evaluation
from deberta.host.plan.bucket_steps import at
from deberta.host.plan.evaluation import Plan, Step
from deberta.host.report import measurements
from deberta.host.run import runner
from deberta.host.run.runner import Session
from deberta.host.workflows import evaluation as chain
from deberta.host.workflows import precision

FORMULA = "fps over the data = rows / sum over the lengths of (its batches * average time of one batch)"
Rows = Mapping[int, int]  # length -> rows; of those that any row needs


def build(session: Session, plan: Plan, batch_size: int, asked: Asked) -> None:
    """Compile for all lengths given; on cpu one model is for any."""
    if isinstance(asked, str):
        if plan.backend == "ascend":
            raise ConfigError("--buckets auto needs data, and build-om has none. Give the lengths: --buckets 32,64,256")
        asked = (SEQUENCE_LENGTH,)
    chain.run_all(session, _compiling(session, replace(plan, buckets=asked), batch_size))


def preprocess(session: Session, plan: Plan, batch_size: int, version: Optional[str], asked: Asked) -> None:
    """MNLI's tsv -> bins of all lengths. Without a version: every one whose tsv is there."""
    if asked == buckets.AUTO:
        print("buckets: auto is cpu's choice here; infer and evaluate on ascend choose for themselves")
    wanted = [version] if version else list(plan.profile.rows)
    present = [v for v in wanted if (session.workspace / plan.profile.data_path(v)).exists()]
    for absent in [v for v in wanted if present and v not in present]:
        needed = plan.source(plan.profile.data_path(absent))
        print(f"{needed.path} is missing, so {absent} is left out. To have it: {needed.command}")
    for chosen in present or wanted:
        fitted = resolve(session, plan, batch_size, chosen, asked)
        if fitted:
            chain.run_all(session, [bucket_steps.preprocess(fitted[0], batch_size, chosen)])


def resolve(session: Session, plan: Plan, batch_size: int, version: str, asked: Asked) -> Optional[tuple[Plan, Rows]]:
    """Count the rows' tokens and settle the lengths: those that any row needs, of the ones asked for or auto's.

    Returns the plan with its lengths, and the rows of each; None in a dry run that cannot know auto's.
    """
    step = bucket_steps.token_counts(plan, version)
    chain.run_all(session, [step])
    [counts] = step.outputs
    if session.dry and not (session.workspace / counts).exists():
        if isinstance(asked, str):
            print(f"# --buckets auto: the lengths are known once {counts} is there; with lengths given all is shown")
            return None
        return replace(plan, buckets=asked), dict.fromkeys(asked, 0)
    histogram = buckets.read_histogram(session.workspace / counts)
    lengths = buckets.choose(histogram, batch_size, plan.backend) if isinstance(asked, str) else asked
    rows = buckets.rows_by_length(histogram, lengths, version)
    tokens = sum(count * length for length, count in histogram.items())
    run = sum(batch_count(count, batch_size) * batch_size * length for length, count in rows.items())
    kept = f" ({'auto; ' if isinstance(asked, str) else ''}rows {', '.join(map(str, rows.values()))})"
    empty = [length for length in lengths if length not in rows]
    left_out = f"; no row needs {buckets.text(empty)}" if empty else ""
    padded = batch_count(sum(rows.values()), batch_size) * batch_size * SEQUENCE_LENGTH
    said = f"buckets: {buckets.text(list(rows))}{kept}{left_out}; {run} tokens to run for {tokens}, padded {padded}"
    print(f"# {said}" if session.dry else said)
    return replace(plan, buckets=tuple(rows)), rows


def infer(
    session: Session, plan: Plan, batch_size: int, version: str, asked: Asked
) -> Optional[tuple[Plan, list[PurePosixPath]]]:
    """Everything up to the model's outputs; returns the plan with its lengths and their folders, None as `resolve`."""
    fitted = resolve(session, plan, batch_size, version, asked)
    if fitted is None:
        return None
    plan, rows = fitted
    before = [*_compiling(session, plan, batch_size), bucket_steps.preprocess(plan, batch_size, version)]
    chain.run_all(session, before)
    for step in running_steps(plan, batch_size, version, rows):
        record = runner.run(session, step)
        if record and plan.any_length:
            seconds, count = record.summary["inference_ms"] / 1000, sum(rows.values())
            print(f"inference of {count} rows: {seconds:.2f} s, {count / seconds:.3f} rows per s")
    return plan, _outputs(session, plan, batch_size, version, rows)


def postprocess(
    session: Session, plan: Plan, batch_size: int, version: str, outputs: Optional[str], asked: Asked
) -> None:
    """The outputs of infer, which have to be of the present inputs -> accuracy."""
    if outputs:
        raise ConfigError("--outputs names one folder, and --buckets has one for each length. Give one of them")
    fitted = resolve(session, plan, batch_size, version, asked)
    if fitted is None:
        return
    plan, rows = fitted
    running = running_steps(plan, batch_size, version, rows)
    if not session.dry:
        absent = [step for step in running if records.read(session.workspace / record_of(step.outputs[0])) is None]
        if absent:
            command = plan.command("infer", f" --bs {batch_size} --version {version}")
            raise MissingError(f"there are no outputs in {absent[0].outputs[0]}. Run: {command}")
        if reason := outdated(session, plan, batch_size, version, running):
            again = plan.command("evaluate", f" --bs {batch_size} --version {version}")
            raise DataError(
                f"the outputs of {buckets.text(plan.buckets)} are not of the present inputs ({reason}). Run: {again}"
            )
    _count(session, plan, batch_size, version, _outputs(session, plan, batch_size, version, rows))


def evaluate(session: Session, plan: Plan, batch_size: int, version: str, asked: Asked) -> None:
    """The whole chain for one version; of an int8 model the float32 run's too, and what changed."""
    made = []
    for one in dict.fromkeys((FP32, plan.precision)):
        ran = infer(session, replace(plan, precision=one), batch_size, version, asked)
        if ran is None:
            return
        _count(session, ran[0], batch_size, version, ran[1])
        made.append(ran)
    if len(made) > 1:
        (_, fp32), (fitted, int8) = made
        precision.show(session, fitted, batch_size, version, fp32, int8)


def perf(session: Session, plan: Plan, batch_size: int, version: str, loops: int, asked: Asked) -> None:
    """The guide's performance run, padded; then each length's first batch in the same way, and what they come to."""
    chain.perf(session, plan, batch_size, version, loops)
    fitted = resolve(session, replace(plan, limit=0), batch_size, version, asked)
    if fitted is None:
        return
    whole, _ = fitted
    before = [*_compiling(session, whole, batch_size), bucket_steps.preprocess(whole, batch_size, version)]
    timed = [evaluation.perf(at(whole, length), batch_size, version, loops) for length in whole.buckets]
    chain.run_all(session, [*before, *timed, bucket_steps.throughput(whole, batch_size, version)])
    if session.dry:
        return
    path = whole.artifacts.throughput(batch_size, version)
    measured = json.loads((session.workspace / path).read_text(encoding="utf-8"))
    log = plan.artifacts.timing_log(batch_size, version, plan.tool or "msame")
    padded = timing.read(session.workspace / log, batch_size).fps
    print(
        f"perf bs={batch_size} {version} {measurements.place(plan, plan.tool)}{chain.other_precision(plan)}, "
        f"buckets {buckets.text(whole.buckets)}: "
        f"{measured['fps']:.3f} fps over {measured['rows']} rows, {measured['fps'] / padded:.2f} times the padded "
        f"{padded:.3f}"
    )
    for length, one in measured["buckets"].items():
        print(
            f"  length {length}: {one['fps']:.3f} fps (average without first {one['average_ms']:.3f} ms), "
            f"{one['rows']} rows in {one['batches']} batches"
        )
    print(f"  {FORMULA}\n  {path}")


def _compiling(session: Session, plan: Plan, batch_size: int) -> list[Step]:
    """One model for each length, or for all; nothing for an .om that the user brought."""
    plans = [plan] if plan.any_length else [at(plan, length) for length in plan.buckets]
    return [
        step for one in plans for step in chain.compiling(session, chain.for_chip(session, one, batch_size), batch_size)
    ]


def outdated(session: Session, plan: Plan, batch_size: int, version: str, steps_after: Sequence[Step]) -> str:
    """Why what these steps made, of the models and bins of `plan`, is not of the present inputs; empty if it is."""
    plans = [plan] if plan.any_length else [at(plan, length) for length in plan.buckets]
    before = [step for one in plans for step in chain.compiling(session, one, batch_size)]
    for step in (*before, bucket_steps.preprocess(plan, batch_size, version), *steps_after):
        if reason := runner.outdated(session, step):
            return f"{step.title}: {reason}"
    return ""


def running_steps(plan: Plan, batch_size: int, version: str, rows: Rows) -> list[Step]:
    """The steps that run the model over all rows."""
    if plan.any_length:
        return [bucket_steps.infer(plan, batch_size, version)]
    return [evaluation.infer(at(plan, length), batch_size, version, rows[length]) for length in plan.buckets]


def _outputs(session: Session, plan: Plan, batch_size: int, version: str, rows: Rows) -> list[PurePosixPath]:
    """Each length's folder of outputs. msame's may lie among others, so its record names it; a dry run cannot know."""
    found = []
    for length in plan.buckets:
        step = evaluation.infer(at(plan, length), batch_size, version, rows[length])
        assert step.inference is not None
        parent = step.inference.output
        if not (session.dry or plan.any_length):
            record = records.read(session.workspace / record_of(parent))
            assert record is not None  # it has just run, or is not outdated
            parent = runner.outputs_folder(record, step.inference)
        found.append(parent)
    return found


def _count(session: Session, plan: Plan, batch_size: int, version: str, outputs: Sequence[PurePosixPath]) -> None:
    runner.run(session, bucket_steps.postprocess(plan, batch_size, version, outputs))
    if not session.dry:
        lengths = buckets.text(plan.buckets)
        chain.print_evaluation(session, plan, batch_size, version, f"{chain.origin(plan)}, buckets {lengths}")
