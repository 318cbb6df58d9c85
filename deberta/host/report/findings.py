"""What lint-onnx, check-fp16 and compare find, as their --json prints it: the parts of the stages' files to rely on."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Optional, Type, TypeVar

from msgspec import field

from deberta.core import schema
from deberta.core.schema import Schema


class Findings(Schema, kw_only=True, forbid_unknown_fields=False):
    """`report`: the file of the whole, in the workspace. `summary`: the lines of the text, none of a lint's."""

    summary: list[str] = field(default_factory=list)
    report: str = ""


class ReportedFinding(Schema, forbid_unknown_fields=False):
    """All places that break one rule in the same way; `nodes` are the first of `count`."""

    rule: str
    severity: str
    title: str
    found: str
    count: schema.Count
    nodes: list[str]
    why: str
    do: str
    basis: str
    source: str


class LintDocument(Findings, kw_only=True, forbid_unknown_fields=False):
    """`counts`: findings by severity; costs and statistics are in the file."""

    model: str
    sha256: schema.Sha256
    bytes: schema.Count
    batch_sizes: list[schema.BatchSize]
    counts: dict[str, schema.Count]
    findings: list[ReportedFinding]
    opset: dict[str, int] = field(default_factory=dict)


class Float16Flip(Schema):
    """A row whose label float16 changes; margin: by which float32 preferred its label, in logits."""

    row: schema.Count
    float32: str
    float16: str
    margin: float


class Float16Logits(Schema, forbid_unknown_fields=False):
    """Float16 against float32; differences of the rows that are finite, null if none is."""

    max_abs_difference: Optional[float]
    mean_abs_difference: Optional[float]
    rows_not_finite: list[schema.Count]
    flips: list[Float16Flip]
    flips_beyond_margin: schema.Count


class OverflowingNode(Schema, forbid_unknown_fields=False):
    name: str
    op: str
    max_abs: float


class NodesToKeep(Schema, forbid_unknown_fields=False):
    """Nodes to keep in float32. `irreducible`: it was shown that none of them can go."""

    nodes: list[str]
    irreducible: bool


class CheckFp16Document(Findings, kw_only=True, forbid_unknown_fields=False):
    """`overflows`: the nodes at which float16 overflows. `keep`: null if nothing overflows, or no list was found."""

    passed: bool
    rows: schema.Count
    batch_size: schema.BatchSize
    margin: float
    logits: Float16Logits
    overflows: list[OverflowingNode]
    keep: Optional[NodesToKeep]


class ComparedSide(Schema):
    kind: str
    file: str


class ComparedFlip(Schema):
    """A row with another label; `labels` and `margins` (in logits) of both sides. `line`: of the tsv."""

    row: schema.Count
    line: schema.Line
    labels: list[str]
    margins: list[float]


class ComparedLogits(Schema, forbid_unknown_fields=False):
    """Differences of the rows that are finite, null if none is. `rows_not_finite`: of each side."""

    max_abs_difference: Optional[float]
    mean_abs_difference: Optional[float]
    rows_not_finite: list[list[schema.Count]]
    flips: list[ComparedFlip]
    flips_beyond_near_ties: schema.Count


class ComparedLayers(Schema, forbid_unknown_fields=False):
    """The first layer that differs, and the one before it, or null. `not_searched`: why none was looked for."""

    layer: Optional[str]
    before: Optional[str]
    not_searched: str


class CompareDocument(Findings, kw_only=True, forbid_unknown_fields=False):
    """`problems`: why it has not passed, a phrase each."""

    passed: bool
    problems: list[str]
    sides: list[ComparedSide]
    version: schema.Version
    batch_size: schema.BatchSize
    rows: schema.Count
    tolerance: float
    logits: ComparedLogits
    layers: ComparedLayers


Document = TypeVar("Document", bound=Findings)


def read(workspace: Path, path: PurePosixPath, document: Type[Document]) -> Document:
    """What a stage found, from its file. Raises MissingError and DataError."""
    found = schema.read(workspace / path, document, "Run the same command with --force")
    found.report = str(path)
    return found
