"""The steps of a bucketed run that are about all its lengths: the others are the padded run's, at one length each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath as Path
from typing import Sequence

from deberta.core import buckets
from deberta.core.contract import FP32, INPUTS
from deberta.core.paths import limited
from deberta.host.plan import evaluation as steps
from deberta.host.plan.evaluation import Input, Plan, Step


def at(plan: Plan, length: int) -> Plan:
    """A bucketed plan's part for one of its lengths."""
    return replace(plan, length=length)


def token_counts(plan: Plan, version: str) -> Step:
    """MNLI's tsv -> how many rows have how many tokens. It depends on no lengths: they are chosen by it."""
    profile, artifacts = plan.profile, plan.artifacts
    data, counts = profile.data_path(version), artifacts.token_counts(version)
    name = limited(f"token-counts_{version}", plan.limit)
    first = f" first {plan.limit} rows" if plan.limit else ""
    return Step(
        name=name,
        title=f"token-counts {version}{first}",
        stage="token-counts",
        arguments=(
            *("--data", str(data), "--tokenizer", str(profile.tokenizer_path), "--output", str(counts)),
            *steps.row_counts(plan, version),
        ),
        inputs=(plan.source(data), plan.source(profile.tokenizer_path)),
        outputs=(counts,),
        log=artifacts.log(name),
        commands=plan.commands(version=version),
    )


def preprocess(plan: Plan, batch_size: int, version: str) -> Step:
    """One pass over the tsv -> the bins of all lengths, each folder with its order.json."""
    profile, data, bins = plan.profile, plan.profile.data_path(version), _bins(plan, batch_size, version)
    name, title = _named(plan, "preprocess", batch_size, version)
    return Step(
        name=name,
        title=title,
        stage="preprocess",
        arguments=(
            *("--data", str(data), "--tokenizer", str(profile.tokenizer_path), "--config", str(profile.config_path)),
            *("--bs", str(batch_size), "--lengths", buckets.text(plan.buckets), "--output", _list(bins)),
            *steps.row_counts(plan, version),
        ),
        inputs=(plan.source(data), plan.source(profile.tokenizer_path), plan.source(profile.config_path)),
        outputs=tuple(bins),
        log=plan.artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )


def infer(plan: Plan, batch_size: int, version: str) -> Step:
    """The cpu backend's run of all lengths in one process. On ascend each length is a run of msame's, steps.infer."""
    bins = _bins(plan, batch_size, version)
    outputs = [at(plan, length).artifacts.outputs(batch_size, version) for length in plan.buckets]
    model, *weights = steps.compiled_model(plan, batch_size)
    name, title = _named(plan, "infer", batch_size, version)
    return Step(
        name=name,
        title=title,
        stage="run-cpu",
        arguments=(
            *("--model", str(model.path), "--lengths", buckets.text(plan.buckets)),
            *(word for folder in bins for word in ("--input", ",".join(f"{folder / name}/" for name in INPUTS))),
            *(word for folder in outputs for word in ("--output", str(folder))),
            "--replace",
        ),
        inputs=(model, *weights, *_made(plan, bins, "preprocess", batch_size, version)),
        outputs=tuple(outputs),
        log=plan.artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )


def postprocess(plan: Plan, batch_size: int, version: str, outputs: Sequence[Path]) -> Step:
    """`outputs`: of each length the folder of input_<i>_output_0.bin, or one with nothing but that in it."""
    data, bins = plan.profile.data_path(version), _bins(plan, batch_size, version)
    evaluation = plan.artifacts.evaluation(batch_size, version)
    name, title = _named(plan, "postprocess", batch_size, version)
    return Step(
        name=name,
        title=title,
        stage="postprocess",
        arguments=(
            *("--lengths", buckets.text(plan.buckets), "--bins", _list(bins), "--outputs", _list(outputs)),
            *("--data", str(data), "--bs", str(batch_size), "--output", str(evaluation), "--version", version),
            *steps.row_counts(plan, version),
        ),
        inputs=(
            *_made(plan, bins, "preprocess", batch_size, version),
            *_made(plan, outputs, "infer", batch_size, version),
            plan.source(data),
        ),
        outputs=(evaluation, evaluation.with_suffix(".json")),
        log=plan.artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )


def throughput(plan: Plan, batch_size: int, version: str) -> Step:
    """The timing logs of all lengths, weighted with the rows that each has -> the throughput over the data."""
    logs = [at(plan, length).artifacts.timing_log(batch_size, version, plan.tool or "msame") for length in plan.buckets]
    counts, output = plan.artifacts.token_counts(version), plan.artifacts.throughput(batch_size, version)
    name, title = _named(plan, "throughput", batch_size, version)
    return Step(
        name=name,
        title=title,
        stage="throughput",
        arguments=(
            *("--lengths", buckets.text(plan.buckets), "--logs", _list(logs), "--tokens", str(counts)),
            *("--bs", str(batch_size), "--output", str(output)),
        ),
        inputs=(
            *_made(plan, logs, "perf", batch_size, version),
            *_made(plan, [counts], "preprocess", batch_size, version),
        ),
        outputs=(output,),
        log=plan.artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )


def _named(plan: Plan, step: str, batch_size: int, version: str) -> tuple[str, str]:
    name = limited(f"{step}_bs{batch_size}_{version}_buckets", plan.limit)
    first = f" first {plan.limit} rows" if plan.limit else ""
    other = plan.precision if plan.precision != FP32 and step in steps.RUNS else ""
    return f"{name}_{other}" if other else name, f"{step} bs={batch_size} {version} buckets{first} {other}".rstrip()


def _bins(plan: Plan, batch_size: int, version: str) -> list[Path]:
    return [at(plan, length).artifacts.bins(batch_size, version) for length in plan.buckets]


def _made(plan: Plan, paths: Sequence[Path], task: str, batch_size: int, version: str) -> list[Input]:
    command = plan.command(task, f" --bs {batch_size} --version {version}")
    return [Input(path, command) for path in paths]


def _list(paths: Sequence[Path]) -> str:
    return ",".join(map(str, paths))
