"""What a run makes, by batch size, version, lengths and precision: one list for all who follow, hash or compare it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath as Path
from typing import Iterator, NamedTuple, Sequence

from deberta.core import buckets
from deberta.core.buckets import Lengths
from deberta.core.paths import Artifacts

DATA_CHECK, REFERENCE, ONNX, MODEL, WEIGHTS = "data check", "reference", "onnx", "model", "weights"
BINS, OUTPUTS, EVALUATION, COUNTS, TIMING = "bins", "outputs", "evaluation", "counts", "timing"
PREDICTIONS = "predictions"
SAME_ANYWHERE = (ONNX, BINS, EVALUATION)  # the same inputs give the same bytes; counts have the hash of their logits


class Artifact(NamedTuple):
    """`path` of outputs: the folder that the run's own is in."""

    path: Path
    kind: str


def parts(artifacts: Artifacts, lengths: Lengths) -> list[Artifacts]:
    """The paths of each length; 256 alone has the guide's."""
    bucketed = lengths != buckets.PADDED
    return [replace(artifacts, length=length, bucketed=bucketed) for length in lengths]


def of_version(artifacts: Artifacts, version: str) -> Iterator[Artifact]:
    yield Artifact(artifacts.data_check(version), DATA_CHECK)
    yield Artifact(artifacts.reference(version), REFERENCE)


def of_models(artifacts: Artifacts, lengths: Lengths, batch_size: int) -> Iterator[Artifact]:
    """The models that run the lengths: one on cpu, one a length on ascend."""
    for part in parts(artifacts, lengths):
        yield Artifact(part.onnx, ONNX)
        yield Artifact(part.compiled(batch_size), MODEL)
        if artifacts.backend == "cpu":
            yield Artifact(part.compiled(batch_size).with_suffix(".bin"), WEIGHTS)


def of_evaluation(artifacts: Artifacts, lengths: Lengths, batch_size: int, version: str) -> Iterator[Artifact]:
    """An accuracy run and its models, in the order in which they are made."""
    yield from of_models(artifacts, lengths, batch_size)
    for part in parts(artifacts, lengths):
        yield Artifact(part.bins(batch_size, version), BINS)
        yield Artifact(part.outputs(batch_size, version), OUTPUTS)
    evaluation = artifacts.evaluation(batch_size, version)
    yield Artifact(evaluation, EVALUATION)
    yield Artifact(evaluation.with_suffix(".json"), COUNTS)
    yield Artifact(artifacts.predictions(batch_size, version), PREDICTIONS)


def of_performance(
    artifacts: Artifacts, lengths: Lengths, batch_size: int, version: str, runners: Sequence[str]
) -> Iterator[Artifact]:
    """The performance runs at these lengths; they take the bins of all rows."""
    whole = replace(artifacts, limit=0)
    yield from of_models(whole, lengths, batch_size)
    for part in parts(whole, lengths):
        yield Artifact(part.bins(batch_size, version), BINS)
        for runner in runners:
            yield Artifact(part.timing_log(batch_size, version, runner), TIMING)
