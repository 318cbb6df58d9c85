"""Where two parsed JSON values differ, and the formats of what is said of two runs and, by `diff`, of two reports."""

from __future__ import annotations

import json
from typing import Annotated, Any, Iterator, NamedTuple, Optional, Sequence

from msgspec import Meta

from deberta.core import schema
from deberta.core.schema import Schema, Text, one_of


class JsonDifference(NamedTuple):
    """A place, as in `body.cells[3].correct`, and both values there as JSON text; None where there is none."""

    place: str
    first: Optional[str]
    second: Optional[str]

    def describe(self, first_name: str, second_name: str) -> str:
        """The difference in words; the names say which value is which."""
        if self.first is None or self.second is None:
            return f"{self.place}: only {second_name if self.first is None else first_name}"
        return f"{self.place}: {first_name} {self.first}, {second_name} {self.second}"


def differences(first: Any, second: Any, place: str = "") -> Iterator[JsonDifference]:
    """All differences, in the order of the second value's keys; 1 and 1.0 are different values."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*second, *first]):
            inner = (f"{place}.{key}" if place else key) if key.isidentifier() else f"{place}[{json.dumps(key)}]"
            if key in first and key in second:
                yield from differences(first[key], second[key], inner)
            else:
                yield JsonDifference(inner, *(shown(side[key]) if key in side else None for side in (first, second)))
    elif isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            yield JsonDifference(place, f"{len(first)} entries", f"{len(second)} entries")
        for index, values in enumerate(zip(first, second)):
            yield from differences(*values, f"{place}[{index}]")
    elif type(first) is not type(second) or first != second:
        yield JsonDifference(place, shown(first), shown(second))


def shown(value: Any) -> str:
    """JSON text, its beginning if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}..."


# What invoke diff says of two reports, A and B. A difference is always from A to B.

WORSE, NO_WORSE, UNKNOWN = "worse", "no worse", "not compared"
SAME, NOT_COMPARED = "no difference", "not compared"
LOWER, HIGHER, SLOWER, FASTER = "lower", "higher", "slower", "faster"
VERIFIED, UNVERIFIED = "verified", "not verified"


class AccuracyCount(Schema, forbid_unknown_fields=False):
    correct: schema.Count


class GenreChangeCounts(Schema):
    """The rows of one genre: how many, right in float32, right in the lower precision, and of another label there."""

    rows: schema.Positive
    fp32: schema.Count
    lower: schema.Count
    labels_changed: schema.Count


class LabelChangeCounts(Schema, forbid_unknown_fields=False):
    """What a report takes from the label-changes stage's file: a run of a lower precision beside the float32 run of
    the same rows.

    right_before and right_now: changed rows that are right in float32, and in the lower precision.
    largest_margin_changed: the largest float32 margin of a changed row. The differences are of logits.
    """

    precision: schema.Precision
    rows: schema.Positive
    fp32: AccuracyCount
    lower: AccuracyCount
    genres: dict[schema.Text, GenreChangeCounts]
    labels_changed: schema.Count
    right_before: schema.Count
    right_now: schema.Count
    largest_margin_changed: schema.NonNegative
    max_abs_difference: schema.NonNegative
    mean_abs_difference: schema.NonNegative


class DiffSource(Schema):
    """A report to compare. root: the tree that it stands in, empty for a report alone; job: its job in that tree.

    own: the tree is the user's workspace, whose links may lead anywhere. verification: VERIFIED, UNVERIFIED or what is
    wrong. facts: what the records of its steps say, each a list of texts.
    """

    name: Text
    report: Text
    root: str
    job: str
    own: bool
    verification: Text
    facts: dict[str, list[str]]


class DiffJob(Schema):
    """What the diff stage is to compare. replaces_published: B's report shows A's fps in the published column."""

    a: DiffSource
    b: DiffSource
    replaces_published: bool


class DiffSide(Schema):
    """One of both reports. verdict: empty if nothing judged it. report_sha256: of the file as it was read."""

    name: Text
    title: Text
    profile: Text
    backend: schema.Backend
    limit: schema.Count
    made: Text
    verdict: str
    verification: Text
    body_sha256: schema.Sha256
    report_sha256: schema.Sha256


class PairedTest(Schema):
    """The rows that both have. p_value: McNemar's mid-p test, two-sided; changed: rows with another label."""

    rows: schema.Positive
    only_a_correct: schema.Count
    only_b_correct: schema.Count
    changed: schema.Count
    p_value: schema.Share


class AccuracyDifference(Schema):
    """Accuracies of one version and precision; the batch sizes differ only where the reports have none in common.

    p_value: of the paired test, or of the z test of both counts where why_not_paired says why there is none.
    """

    version: schema.Version
    precision: schema.Precision
    batch_size_a: schema.BatchSize
    batch_size_b: schema.BatchSize
    rows_a: schema.Positive
    correct_a: schema.Count
    rows_b: schema.Positive
    correct_b: schema.Count
    paired: Optional[PairedTest]
    why_not_paired: str
    p_value: schema.Share
    conclusion: Annotated[str, one_of((SAME, LOWER, HIGHER))]


class ChangedRow(Schema):
    """A row with another label. line: of B's tsv; line_a: of A's. Margins are in logits, to 3 digits.

    batch_sizes: B's at which the row changed so. premise and hypothesis: empty without a tsv of the recorded digest.
    """

    version: schema.Version
    precision: schema.Precision
    batch_sizes: list[schema.BatchSize]
    line_a: schema.Line
    line: schema.Line
    gold: schema.Label
    a: schema.Label
    b: schema.Label
    margin_a: schema.NonNegative
    margin_b: schema.NonNegative
    premise: str
    hypothesis: str


class FpsDifference(Schema):
    """Throughputs of one run. interval: 95 %, of the average of its times; null of a single time.

    change: B's fps / A's - 1. noise: a change up to this, either way, says nothing; null if why_not_compared says why.
    """

    batch_size: schema.BatchSize
    version: schema.Version
    precision: schema.Precision
    length: schema.Positive
    runner: schema.Runner
    fps_a: schema.AboveZero
    interval_a: Optional[schema.Interval]
    fps_b: schema.AboveZero
    interval_b: Optional[schema.Interval]
    change: float
    noise: Optional[schema.NonNegative]
    why_not_compared: str
    conclusion: Annotated[str, one_of((SAME, SLOWER, FASTER, NOT_COMPARED))]


class GateDifference(Schema):
    """A gate that ended otherwise, or requires something else; a status is empty where a report has no such gate."""

    gate: Text
    of: Text
    a: str
    b: str
    required_a: str
    required_b: str
    actual_a: str
    actual_b: str


class FactDifference(Schema):
    """What else differs: an input, an artifact, code, tools, the machine. Empty: a report does not say it."""

    kind: Text
    what: Text
    a: str
    b: str


def conclude(worse: Sequence[str], not_compared: Sequence[str]) -> str:
    """Whether B is worse than A."""
    return WORSE if worse else UNKNOWN if not_compared else NO_WORSE


class ReportDifference(Schema):
    """What invoke diff says. changed_rows: those of the largest margins first; changed_total counts all.

    worse: why B is worse than A. not_compared: what could not be compared. conclusion: by both, in this order.
    replaces_published: B's report shows A's fps in the place of the published baseline's.
    """

    format: Annotated[int, Meta(ge=1, le=1)]
    a: DiffSide
    b: DiffSide
    conclusion: Annotated[str, one_of((WORSE, UNKNOWN, NO_WORSE))]
    worse: list[Text]
    not_compared: list[Text]
    accuracy: list[AccuracyDifference]
    changed_total: schema.Count
    changed_rows: list[ChangedRow]
    fps: list[FpsDifference]
    gates: list[GateDifference]
    gates_alike: schema.Count
    facts: list[FactDifference]
    notes: list[Text]
    replaces_published: bool = False

    def __post_init__(self) -> None:
        if self.conclusion != conclude(self.worse, self.not_compared):
            raise ValueError(f"its conclusion is {self.conclusion}, which its reasons do not say")
