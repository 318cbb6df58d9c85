"""report.json: what was measured, what stands behind it, and whether it is accepted.

These schemas are the format: the stages write it and the host reads it. deberta/stages/report/report.schema.json is
made of them by `python -m deberta.core.report`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Mapping, Optional

import msgspec
from msgspec import Meta, field

from deberta.core import contract, schema
from deberta.core.differences import FASTER, NOT_COMPARED, SAME, SLOWER, LabelChangeCounts, ReportDifference
from deberta.core.job import FORMAT, Digests, JobMeasured, PublishedRow
from deberta.core.schema import Schema, one_of

GATES = ("correct_rows", "official", "agreement", "reference", "fps", "sentinel", "inputs")
WRONG_LISTED, TEXT_LISTED, CUT = 20, 500, "..."  # wrong rows with their texts, characters of each, and what ends them
LISTED = 50  # rows named in a list, those with the largest margins first; the totals count all


class Proportion(Schema):
    """Rows that are right: accuracy = correct / rows; interval: Wilson's."""

    rows: schema.Positive
    correct: schema.Count
    accuracy: schema.Share
    interval: schema.Interval


class DataProblem(Schema):
    """Something that data fit for acceptance do not have; lines: the first of the tsv's concerned."""

    check: schema.Text
    what: schema.Text
    lines: list[int]


class TokenCounts(Schema):
    total: schema.Count
    unknown: schema.Count
    unknown_rate: schema.Share


class LineCount(Schema):
    count: schema.Count
    lines: list[int]


class DataCheck(Schema):
    """The check-data stage's own file."""

    format: Annotated[int, Meta(ge=1, le=1)]
    version: schema.Version
    rows: schema.Count
    limit: schema.Count
    columns: schema.Positive
    expected_rows: Optional[int]
    labels: schema.ByLabel
    genres: dict[str, schema.Count]
    tokens: TokenCounts
    truncated_rows: schema.Count
    truncated_lines: list[int]
    duplicate_pair_ids: LineCount
    duplicate_pairs: schema.Count
    empty_sentences: schema.Count
    problems: list[DataProblem]
    notes: list[str]


class LabelOrder(Schema):
    """Rows that would be right if output i meant label order[i]."""

    order: schema.Labels
    correct: schema.Count
    accuracy: schema.Share


class LabelChange(Schema):
    """A row of the tsv (from 0; its line is row + 2) with another label than PyTorch's.

    margin: PyTorch's largest logit less its second largest, to 3 digits.
    """

    row: schema.Count
    line: schema.Line
    margin: schema.NonNegative
    gold: schema.Label
    reference: schema.Label
    this: schema.Label


class ReferenceComparison(Schema):
    """The same rows as PyTorch. p_value: McNemar's mid-p test, two-sided.

    flips: rows with another label, those of the largest margins first, 50 at most; flips_total counts all, and
    beyond_near_ties those whose margin is not below near_tie_margin.
    """

    same_labels: schema.Count
    only_reference_correct: schema.Count
    only_this_correct: schema.Count
    p_value: schema.Share
    flips: Annotated[list[LabelChange], Meta(max_length=LISTED)]
    flips_total: schema.Count
    beyond_near_ties: schema.Count


class RunIdentity(Schema):
    """What every figure of a run is of."""

    batch_size: schema.BatchSize
    version: schema.Version
    precision: schema.Precision


class EvaluationCell(RunIdentity):
    """One batch size, version and precision, counted again from the logits.

    lengths: 256 alone is the padded run. origin: empty for the present model, else why not, or what was counted
    instead. confusion: rows by gold label, then by predicted label. permutations: of all six orders of the labels, the
    best first. versus_reference: null if there are no logits of PyTorch.
    """

    lengths: schema.RowsByLength
    origin: str
    rows: schema.Positive
    correct: schema.Count
    accuracy: schema.Share
    interval: schema.Interval
    genres: dict[str, Proportion]
    labels_predicted: schema.ByLabel
    labels_gold: schema.ByLabel
    confusion: Annotated[dict[schema.Label, schema.ByLabel], Meta(min_length=3)]
    permutations: Annotated[list[LabelOrder], Meta(min_length=6, max_length=6)]
    versus_reference: Optional[ReferenceComparison]

    @property
    def key(self) -> str:
        return key(self.batch_size, self.version, self.precision)


def is_padded(lengths: Mapping[str, object]) -> bool:
    """Whether all rows ran at the guide's one length."""
    return list(lengths) == [str(contract.SEQUENCE_LENGTH)]


def key(batch_size: int, version: str, precision: str) -> str:
    """The name of an evaluation in `measured.places`: an evaluation's files have it too."""
    return f"bs{batch_size}{'' if precision == contract.FP32 else f'_{precision}'}_{version}"


class Disagreement(Schema):
    """A row for which batch sizes do not predict the same label; labels: by batch size."""

    row: schema.Count
    line: schema.Line
    margin: schema.NonNegative
    labels: dict[schema.Number, schema.Label]


class Agreement(Schema):
    """Whether all batch sizes predict the same labels; margins are those of the smallest batch size.

    differences: the largest margins first, 50 rows at most; beyond_near_ties: of all such rows, those whose margin is
    not below near_tie_margin.
    """

    batch_sizes: schema.BatchSizes
    rows_that_differ: schema.Count
    beyond_near_ties: schema.Count
    near_tie_margin: schema.NonNegative
    differences: Annotated[list[Disagreement], Meta(max_length=LISTED)]


class Body(Schema):
    """Depends on pins and inputs alone: the same on any day, in any folder.

    published: whether the published figures are of this profile's model. limit: above 0 only the first rows were
    run, which is never a result. inputs: what the user supplied; artifacts: what was made of it, byte for byte the
    same again. reference: PyTorch's own rows that are right. cells: by batch size, version and precision. agreement:
    of float32 evaluations of the present model.
    """

    profile: schema.Text
    backend: schema.Backend
    published: bool
    limit: schema.Count
    labels: schema.Labels
    versions: Annotated[list[schema.Version], Meta(min_length=1), schema.UNIQUE]
    batch_sizes: schema.BatchSizes
    inputs: Digests
    artifacts: Digests
    sentinels: dict[schema.Version, DataCheck]
    reference: dict[schema.Version, Proportion]
    cells: list[EvaluationCell]
    agreement: dict[schema.Version, Agreement]

    def __post_init__(self) -> None:
        for name in ("labels", "versions", "batch_sizes"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice")


class GateCheck(Schema):
    """What a gate looked at (of), what it requires and what is there, as text."""

    gate: Annotated[str, one_of(("complete", *GATES))]
    of: schema.Text
    required: str
    actual: str = field(name="found")
    status: Annotated[str, one_of(("passed", "failed", "not judged"))]
    reason: str


class ReportVerdict(Schema):
    """failed: a gate failed; checked: none did, and this is no acceptance; accepted.

    why_not_accepted is empty if, and only if, accepted.
    """

    verdict: Annotated[str, one_of(("accepted", "checked", "failed"))]
    why_not_accepted: list[schema.Text]
    gates: Annotated[list[GateCheck], Meta(min_length=1)]

    def __post_init__(self) -> None:
        accepted = self.verdict == "accepted"
        if accepted == bool(self.why_not_accepted) or (accepted and {gate.status for gate in self.gates} != {"passed"}):
            raise ValueError(f"the verdict is {self.verdict}, which its gates and reasons do not say")


class Percentiles(Schema):
    p50: schema.AboveZero
    p90: schema.AboveZero
    p99: schema.AboveZero


class PerformanceRun(RunIdentity):
    """A performance run at one sequence length. fps = batch size * 1000 / average_ms, both without the warm-up.

    origin, pinned and not_checked: as of cells. loops: times in the log; msame's first, among times_ms, is its warm-up.
    percentiles_ms: by nearest rank. interval_ms: of the average, 95 %, by Student's t; null of a single time. spread:
    interquartile range / median. warning: why one should not conclude from the times; empty if one may.
    """

    length: Annotated[int, Meta(ge=1, le=contract.SEQUENCE_LENGTH)]
    runner: schema.Runner
    origin: str
    place: schema.Text
    pinned: bool
    loops: schema.Positive
    fps: schema.AboveZero
    average_ms: schema.AboveZero
    percentiles_ms: Percentiles
    interval_ms: Optional[schema.Interval]
    spread: schema.NonNegative
    warning: str
    times_ms: list[schema.AboveZero]
    not_checked: list[schema.Text] = field(default_factory=list)


class DeviceFps(Schema):
    """A device's performance run. interval: 95 %; null of a single time. change, noise, conclusion: see DeviceRuns."""

    device: str
    loops: schema.Positive
    fps: schema.AboveZero
    interval: Optional[schema.Interval]
    change: float
    noise: Optional[schema.NonNegative]
    conclusion: Annotated[str, one_of((SAME, SLOWER, FASTER, NOT_COMPARED))]
    why_not_compared: str
    remarks: list[schema.Text]


class DeviceRuns(RunIdentity):
    """The same performance run on several devices, never to be held against a published figure.

    Each is compared with `reference`, the device whose fps is in the middle, of an even number the faster one of both:
    change = fps / its fps - 1. A change up to noise, either way, says nothing; noise is 0.05 at least, since no two
    chips are quite alike. sum: of all fps, since they run at once in an accuracy run alone.
    """

    length: schema.Positive
    runner: schema.Runner
    reference: str
    devices: Annotated[list[DeviceFps], Meta(min_length=2)]
    sum: schema.AboveZero


class LengthRows(Schema, forbid_unknown_fields=False):
    rows: schema.Positive


class ThroughputCounts(Schema, forbid_unknown_fields=False):
    """What a report takes from the throughput stage's file."""

    rows: schema.Positive
    fps: schema.AboveZero
    buckets: dict[schema.Number, LengthRows]


class ThroughputResult(RunIdentity):
    """What the performance runs of several lengths come to over the data; never to be held against a published figure.

    fps = rows / sum over the lengths of (its batches * average time of one batch); a last batch counts as a whole one.
    """

    lengths: schema.RowsByLength
    origin: str
    place: schema.Text
    pinned: bool
    rows: schema.Positive
    fps: schema.AboveZero
    not_checked: list[schema.Text] = field(default_factory=list)


class PrecisionComparison(LabelChangeCounts):
    batch_size: schema.BatchSize
    version: schema.Version
    lengths: list[schema.Positive]
    origin: str


class WrongRow(Schema):
    """A row of the tsv (from 0; its line is row + 2) that is wrong; a text's first 500 characters.

    margin: its largest logit less its second largest, to 3 digits.
    """

    row: schema.Count
    line: schema.Line
    gold: schema.Label
    label: schema.Label
    margin: schema.NonNegative
    premise: Annotated[str, Meta(max_length=TEXT_LISTED + len(CUT))]
    hypothesis: Annotated[str, Meta(max_length=TEXT_LISTED + len(CUT))]


class WrongRows(RunIdentity):
    """The wrong rows of one evaluation of a version: of float32 and the present model's smallest batch size, if any.

    rows: those of the largest margins first, 20 at most; total counts all.
    """

    origin: str
    total: schema.Count
    rows: Annotated[list[WrongRow], Meta(max_length=WRONG_LISTED)]


class ReportMeasured(JobMeasured, kw_only=True, omit_defaults=True):
    """What another run of the same inputs may give otherwise: times, tools, machines.

    baseline: what differs between another report and this one, before it had this part; absent without a baseline.
    """

    performances: list[PerformanceRun]
    throughputs: list[ThroughputResult]
    label_changes: list[PrecisionComparison]
    published: list[PublishedRow]
    note: str
    wrong_rows: list[WrongRows] = field(default_factory=list)
    device_runs: list[DeviceRuns] = field(default_factory=list)
    baseline: Optional[ReportDifference] = None


class Report(Schema):
    """What was measured, what stands behind it, and whether it is accepted.

    format is raised when a reader of this one could misread a report. body_sha256 is of the body's canonical JSON
    (RFC 8785). verdict is null for a report of what there is, which nothing judged.
    """

    format: Annotated[int, Meta(ge=FORMAT, le=FORMAT)]
    title: schema.Text
    body: Body
    body_sha256: schema.Sha256
    verdict: Optional[ReportVerdict]
    measured: ReportMeasured

    def __post_init__(self) -> None:
        for cell in self.body.cells:
            if cell.key not in self.measured.places:
                raise ValueError(f"measured.places has no {cell.key}")


def json_schema() -> dict[str, Any]:
    """The format as JSON Schema, draft 2020-12."""
    content = msgspec.json.schema(Report)
    verdict = content["$defs"]["ReportVerdict"]
    all_passed = {"items": {"properties": {"status": {"const": "passed"}}}}
    verdict["if"] = {"properties": {"verdict": {"const": "accepted"}}}
    verdict["then"] = {"properties": {"why_not_accepted": {"maxItems": 0}, "gates": all_passed}}
    verdict["else"] = {"properties": {"why_not_accepted": {"minItems": 1}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:deberta-ascend:report:v1",
        "title": f"Report of a profile's runs, format {FORMAT}",
        **content,
    }


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
