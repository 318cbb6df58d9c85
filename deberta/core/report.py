"""report.json: what was measured, what stands behind it, and whether it is accepted.

These schemas are the format: the stages write it and the host reads it. deberta/stages/report/report.schema.json is
made of them by `python -m deberta.core.report`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Mapping, Optional

import msgspec
from msgspec import Meta

from deberta.core import contract
from deberta.core.schema import Schema

FORMAT = 1
GATES = ("correct_rows", "official", "agreement", "reference", "fps", "sentinel", "inputs")
LISTED = 50  # rows named in a list, those with the largest margins first; the totals count all


def _one_of(names: tuple[str, ...]) -> Meta:
    return Meta(pattern=f"^({'|'.join(names)})$")


UNIQUE = {"uniqueItems": True}
Text = Annotated[str, Meta(min_length=1)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
NonNegative = Annotated[float, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(gt=0)]
Interval = Annotated[tuple[float, float], Meta(description="95 %: low, high.")]
Time = Annotated[
    str,
    Meta(
        description="ISO 8601 with the offset from UTC.",
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$",
    ),
]
Version = Annotated[str, _one_of(contract.VERSIONS)]
Backend = Annotated[str, _one_of(contract.BACKENDS)]
Executor = Annotated[str, _one_of(contract.EXECUTORS)]
Runner = Annotated[str, _one_of(contract.RUNNERS)]
Precision = Annotated[str, _one_of(contract.PRECISIONS)]
Label = Annotated[str, _one_of(contract.LABELS)]
Labels = Annotated[
    list[Label],
    Meta(
        description="Three labels in an order: output i means label i.",
        min_length=3,
        max_length=3,
        extra_json_schema=UNIQUE,
    ),
]
ByLabel = Annotated[dict[Label, Count], Meta(description="Rows by label.", min_length=3)]
BatchSize = Annotated[int, Meta(ge=1, le=1024)]
BatchSizes = Annotated[list[BatchSize], Meta(extra_json_schema=UNIQUE)]
Length = Annotated[str, Meta(pattern=r"^[1-9]\d*$")]
RowsByLength = Annotated[
    dict[Length, Positive], Meta(description="Rows of each sequence length that ran; 256 alone: padded.", min_length=1)
]
Origin = Annotated[str, Meta(description="Empty: of the present model. Else why not, or what was counted instead.")]
Pinned = Annotated[
    bool,
    Meta(description="False: a step on the way ran in an image, or with a tool, that docker/pins.toml does not name."),
]
Place = Annotated[str, Meta(description="Where it was measured.", min_length=1)]
Digest = Annotated[
    dict[Annotated[str, Meta(pattern="^(sha256|dirHash)$")], Sha256],
    Meta(
        description="sha256 of a file; dirHash of a folder: SHA-256 over its sorted lines `<sha256>  <path>\\n`.",
        min_length=1,
        max_length=1,
    ),
]
Digests = Annotated[
    dict[Annotated[str, Meta(pattern="^[^/]")], Digest], Meta(description="By path, relative to the workspace.")
]
RowNumber = Annotated[int, Meta(description="Of the tsv, from 0; its line is row + 2.", ge=0)]
Line = Annotated[int, Meta(ge=2)]
Margin = Annotated[float, Meta(description="Largest logit less the second largest, to 3 digits.", ge=0)]


class Proportion(Schema):
    """Rows that are right: accuracy = correct / rows; interval: Wilson's."""

    rows: Positive
    correct: Count
    accuracy: Share
    interval: Interval


class DataProblem(Schema):
    """Something that data fit for acceptance do not have."""

    check: Text
    what: Text
    lines: Annotated[list[int], Meta(description="The first of the tsv's lines concerned.")]


class TokenCounts(Schema):
    total: Count
    unknown: Count
    unknown_rate: Share


class LineCount(Schema):
    count: Count
    lines: list[int]


class DataCheck(Schema):
    """The check-data stage's own file."""

    format: Annotated[int, Meta(ge=1, le=1)]
    version: Version
    rows: Count
    limit: Count
    columns: Positive
    expected_rows: Optional[int]
    labels: ByLabel
    genres: dict[str, Count]
    tokens: TokenCounts
    truncated_rows: Count
    truncated_lines: list[int]
    duplicate_pair_ids: LineCount
    duplicate_pairs: Count
    empty_sentences: Count
    problems: list[DataProblem]
    notes: list[str]


class LabelOrder(Schema):
    """Rows that would be right if output i meant label order[i]."""

    order: Labels
    correct: Count
    accuracy: Share


class LabelChange(Schema):
    """A row with another label than PyTorch's."""

    row: RowNumber
    line: Line
    margin: Margin
    gold: Label
    reference: Label
    this: Label


class ReferenceComparison(Schema):
    """The same rows as PyTorch."""

    same_labels: Count
    only_reference_correct: Count
    only_this_correct: Count
    p_value: Annotated[float, Meta(description="McNemar's mid-p test, two-sided.", ge=0, le=1)]
    flips: Annotated[
        list[LabelChange],
        Meta(
            description=f"Label changes; those of PyTorch's largest margins first, {LISTED} at most.",
            max_length=LISTED,
        ),
    ]
    flips_total: Count
    beyond_near_ties: Annotated[int, Meta(description="Flips whose margin is not below near_tie_margin.", ge=0)]


class EvaluationCell(Schema):
    """One batch size, version and precision, counted again from the logits."""

    batch_size: BatchSize
    version: Version
    precision: Precision
    lengths: RowsByLength
    origin: Origin
    rows: Positive
    correct: Count
    accuracy: Share
    interval: Interval
    genres: dict[str, Proportion]
    labels_predicted: ByLabel
    labels_gold: ByLabel
    confusion: Annotated[
        dict[Label, ByLabel], Meta(description="Rows by gold label, then by predicted label.", min_length=3)
    ]
    permutations: Annotated[
        list[LabelOrder],
        Meta(
            description="Rows that would be right if the outputs had another order of labels; the best first.",
            min_length=6,
            max_length=6,
        ),
    ]
    versus_reference: Annotated[
        Optional[ReferenceComparison], Meta(description="null: there are no logits of PyTorch.")
    ]

    @property
    def key(self) -> str:
        return key(self.batch_size, self.version, self.precision)


def is_padded(lengths: Mapping[str, int]) -> bool:
    """Whether all rows ran at the guide's one length."""
    return list(lengths) == [str(contract.SEQUENCE_LENGTH)]


def key(batch_size: int, version: str, precision: str) -> str:
    """The name of an evaluation in `measured.places`: an evaluation's files have it too."""
    return f"bs{batch_size}{'' if precision == contract.FP32 else f'_{precision}'}_{version}"


class Disagreement(Schema):
    """A row for which batch sizes do not predict the same label."""

    row: RowNumber
    line: Line
    margin: Margin
    labels: Annotated[dict[Annotated[str, Meta(pattern=r"^[1-9]\d*$")], Label], Meta(description="By batch size.")]


class Agreement(Schema):
    """Whether all batch sizes predict the same labels."""

    batch_sizes: BatchSizes
    rows_that_differ: Count
    beyond_near_ties: Annotated[
        int, Meta(description="Of these, rows whose margin is not below near_tie_margin.", ge=0)
    ]
    near_tie_margin: NonNegative
    differences: Annotated[
        list[Disagreement],
        Meta(
            description=f"Margins of the smallest batch size, the largest first; {LISTED} rows at most.",
            max_length=LISTED,
        ),
    ]


class Body(Schema):
    """Depends on pins and inputs alone: the same on any day, in any folder."""

    profile: Text
    backend: Backend
    published: Annotated[bool, Meta(description="Whether the published figures are of this profile's model.")]
    limit: Annotated[int, Meta(description="Above 0: the first rows only, never a result.", ge=0)]
    labels: Labels
    versions: Annotated[list[Version], Meta(min_length=1, extra_json_schema=UNIQUE)]
    batch_sizes: BatchSizes
    inputs: Annotated[Digests, Meta(description="What the user supplied.")]
    artifacts: Annotated[Digests, Meta(description="What was made of it, byte for byte the same again.")]
    sentinels: Annotated[dict[Version, DataCheck], Meta(description="What the data check counted, by version.")]
    reference: Annotated[dict[Version, Proportion], Meta(description="PyTorch's own rows that are right, by version.")]
    cells: Annotated[list[EvaluationCell], Meta(description="Evaluations, by batch size, version and precision.")]
    agreement: Annotated[
        dict[Version, Agreement], Meta(description="By version; float32 evaluations of the present model only.")
    ]

    def __post_init__(self) -> None:
        for name in ("labels", "versions", "batch_sizes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one twice")


class GateCheck(Schema):
    """One thing that a gate looked at: what (`of`), what it requires and what was counted, as text."""

    gate: Annotated[str, _one_of(("complete", *GATES))]
    of: Text
    required: str
    found: str
    status: Annotated[str, Meta(pattern="^(passed|failed|not judged)$")]
    reason: str = ""


class ReportVerdict(Schema):
    """failed: a gate failed; checked: none did, and this is no acceptance; accepted."""

    verdict: Annotated[str, Meta(pattern="^(accepted|checked|failed)$")]
    why_not_accepted: Annotated[list[Text], Meta(description="Empty if, and only if, accepted.")]
    gates: Annotated[list[GateCheck], Meta(min_length=1)]

    def __post_init__(self) -> None:
        accepted = self.verdict == "accepted"
        if accepted == bool(self.why_not_accepted) or (accepted and {gate.status for gate in self.gates} != {"passed"}):
            raise ValueError(f"the verdict is {self.verdict}, which its gates and reasons do not say")


class HostFacts(Schema):
    system: str
    python: str
    cpu: str
    cpus: Positive
    name: str


class PinFacts(Schema):
    pinned: bool
    notes: list[str]


class StepFacts(Schema):
    step: Text
    executor: str
    image: Annotated[str, Meta(description="Empty: none.")]
    started: Time
    finished: Time
    seconds: NonNegative


class CellPlace(Schema):
    place: Place
    pinned: Pinned


class JobMeasured(Schema):
    """What the host knows of the tools, times and machine."""

    made: Time
    deberta_ascend: Annotated[str, Meta(description="This project's version.", min_length=1)]
    command: Text
    executor: Executor
    loops: Annotated[int, Meta(description="Requested of a performance run.", ge=0)]
    host: HostFacts
    pins: PinFacts
    tools: Annotated[dict[str, str], Meta(description="Version or SHA-256 of each; empty where it took no part.")]
    engines: list[str]
    steps: list[StepFacts]
    artifacts: Annotated[Digests, Meta(description="Not the same bytes on every machine.")]
    places: Annotated[
        dict[Annotated[str, Meta(pattern=r"^bs[1-9]\d*(_int8)?_(match|mismatch)$")], CellPlace],
        Meta(description="Where each evaluation of the body was made, by bs<N>_<version>, or bs<N>_int8_<version>."),
    ]
    buckets_markdown: Annotated[str, Meta(description="What bucketed runs came to: a section of report.md.")]


class Percentiles(Schema):
    p50: Milliseconds
    p90: Milliseconds
    p99: Milliseconds


class PerformanceRun(Schema):
    """A performance run at one sequence length. fps = batch size * 1000 / average_ms, both without the warm-up."""

    batch_size: BatchSize
    version: Version
    precision: Precision
    length: Annotated[int, Meta(ge=1, le=contract.SEQUENCE_LENGTH)]
    runner: Runner
    origin: Origin
    place: Place
    pinned: Pinned
    loops: Annotated[int, Meta(description="Times in the log; msame's first is its warm-up.", ge=1)]
    fps: Annotated[float, Meta(gt=0)]
    average_ms: Milliseconds
    percentiles_ms: Annotated[Percentiles, Meta(description="By nearest rank.")]
    interval_ms: Annotated[
        Optional[Interval], Meta(description="Of the average, 95 %, by Student's t; null of a single time.")
    ]
    spread: Annotated[float, Meta(description="Interquartile range / median.", ge=0)]
    warning: Annotated[str, Meta(description="Why one should not conclude from the times; empty if one may.")]
    times_ms: Annotated[list[Milliseconds], Meta(description="All of the log, msame's warm-up included.")]


class ThroughputResult(Schema):
    """What the performance runs of several lengths come to over the data; never to be held against a published figure.

    fps = rows / sum over the lengths of (its batches * average time of one batch); a last batch counts as a whole one.
    """

    batch_size: BatchSize
    version: Version
    precision: Precision
    lengths: RowsByLength
    origin: Origin
    place: Place
    pinned: Pinned
    rows: Positive
    fps: Annotated[float, Meta(gt=0)]


class Int8Comparison(Schema):
    """An int8 run beside the float32 run of the same rows."""

    batch_size: BatchSize
    version: Version
    lengths: list[Positive]
    origin: Origin
    rows: Positive
    fp32_correct: Count
    int8_correct: Count
    labels_changed: Count
    right_before: Annotated[int, Meta(description="Changed rows that are right in float32.", ge=0)]
    right_now: Annotated[int, Meta(description="Changed rows that are right in int8.", ge=0)]
    largest_margin_changed: Annotated[float, Meta(description="The largest float32 margin of a changed row.", ge=0)]
    max_abs_difference: NonNegative
    mean_abs_difference: NonNegative


class PublishedRow(Schema):
    """A row of the guide's table; accuracies in percent, throughput in samples per second."""

    batch_size: BatchSize
    baseline_fps: float
    ascend_fps: float
    official_match: float
    official_mismatch: float
    ascend_match: float
    ascend_mismatch: float


class ReportMeasured(JobMeasured):
    """What another run of the same inputs may give otherwise: times, tools, machines."""

    performances: list[PerformanceRun]
    throughputs: list[ThroughputResult]
    label_changes: list[Int8Comparison]
    published: Annotated[list[PublishedRow], Meta(description="The guide's table.")]
    note: str


class Report(Schema):
    """What was measured, what stands behind it, and whether it is accepted."""

    format: Annotated[int, Meta(description="Raised when a reader of this format could misread a report.", ge=1, le=1)]
    title: Text
    body: Body
    body_sha256: Annotated[Sha256, Meta(description="SHA-256 of the body's canonical JSON (RFC 8785).")]
    verdict: Annotated[
        Optional[ReportVerdict], Meta(description="null: a report of what there is, which nothing judged.")
    ]
    measured: ReportMeasured


def json_schema() -> dict[str, Any]:
    """The format as JSON Schema, draft 2020-12."""
    schema = msgspec.json.schema(Report)
    verdict = schema["$defs"]["ReportVerdict"]
    verdict["if"] = {"properties": {"verdict": {"const": "accepted"}}}
    verdict["then"] = {
        "properties": {
            "why_not_accepted": {"maxItems": 0},
            "gates": {"items": {"properties": {"status": {"const": "passed"}}}},
        }
    }
    verdict["else"] = {"properties": {"why_not_accepted": {"minItems": 1}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:deberta-ascend:report:v1",
        "title": f"Report of a profile's runs, format {FORMAT}",
        **schema,
    }


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
