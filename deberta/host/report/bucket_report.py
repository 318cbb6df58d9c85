"""The report's part on bucketed runs: a section of its own, since the published figures are of padded rows."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Mapping, Optional

from deberta.ascend import timing
from deberta.core.contract import SEQUENCE_LENGTH
from deberta.core.errors import DataError
from deberta.host.plan import bucket_steps, evaluation
from deberta.host.plan.bucket_steps import at
from deberta.host.plan.evaluation import Plan
from deberta.host.report import measurements
from deberta.host.run.runner import Session
from deberta.host.workflows import bucketing

_KEPT = re.compile(r"(?:eval|perf)_bs(\d+)_(match|mismatch)_buckets\.json")
_HEAD = f"""
## Length buckets

Rows run at the shortest of these lengths that holds them. The figures above are of rows padded to {SEQUENCE_LENGTH}, as
the published ones are; these are not to be held against the published ones.
{bucketing.FORMULA}; a length's last batch counts as a whole one.

| batch size | version | lengths | measured accuracy | fps over the data | padded fps |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Found:
    """What a file holds, and why it does not stand for the present model and data: empty if it does."""

    content: Mapping[str, Any]
    origin: str

    @property
    def lengths(self) -> str:
        return ",".join(self.content["buckets"])


def section(session: Session, plan: Plan) -> str:
    """Markdown on all bucketed runs that left files; empty if there is none. Raises DataError for an altered file."""
    folder = session.workspace / plan.artifacts.results
    matches = [_KEPT.fullmatch(path.name) for path in folder.glob("*.json")]
    found = sorted({(int(match[1]), match[2]) for match in matches if match})
    rows = [row for batch_size, version in found for row in _rows(session, plan, batch_size, version)]
    return "\n".join([_HEAD.rstrip("\n"), *rows]) + "\n" if rows else ""


def _rows(session: Session, plan: Plan, batch_size: int, version: str) -> list[str]:
    """One line, or two if the evaluation and the performance run were of different lengths."""
    evaluated, timed = _evaluated(session, plan, batch_size, version), _timed(session, plan, batch_size, version)
    padded = _padded(session, plan, batch_size, version)
    if evaluated and timed and evaluated.lengths == timed.lengths:
        return [_row(plan, batch_size, version, evaluated, timed, padded)]
    rows = [_row(plan, batch_size, version, evaluated, None, measurements.ABSENT)] if evaluated else []
    return rows + ([_row(plan, batch_size, version, None, timed, padded)] if timed else [])


def _row(
    plan: Plan, batch_size: int, version: str, evaluated: Optional[Found], timed: Optional[Found], padded: str
) -> str:
    accuracy = fps = lengths = measurements.ABSENT
    if evaluated:
        counts, lengths = evaluated.content, evaluated.lengths
        accuracy = f"{100 * counts['accuracy']:.2f} ({counts['correct']}/{counts['rows']}) {_where(plan, evaluated)}"
    if timed:
        fps, lengths = f"{timed.content['fps']:.3f} {_where(plan, timed)}", timed.lengths
    return f"| {batch_size} | {version} | {lengths} | {accuracy} | {fps} | {padded} |"


def _where(plan: Plan, found: Found) -> str:
    return f"({found.origin})" if found.origin else f"on {plan.backend}"


def _evaluated(session: Session, plan: Plan, batch_size: int, version: str) -> Optional[Found]:
    artifacts = replace(plan, buckets=(SEQUENCE_LENGTH,)).artifacts
    text = artifacts.evaluation(batch_size, version)
    read = _read(session, text.with_suffix(".json"), text)
    if read is None or isinstance(read, Found):
        return read
    of_lengths = replace(plan, buckets=tuple(map(int, read["buckets"])))
    rows = {int(length): count for length, count in read["buckets"].items()}
    running = bucketing.running_steps(of_lengths, batch_size, version, rows)
    return Found(read, _origin(bucketing.outdated(session, of_lengths, batch_size, version, running)))


def _timed(session: Session, plan: Plan, batch_size: int, version: str) -> Optional[Found]:
    path = replace(plan, buckets=(SEQUENCE_LENGTH,)).artifacts.throughput(batch_size, version)
    read = _read(session, path, path)
    if read is None or isinstance(read, Found):
        return read
    of_lengths = replace(plan, buckets=tuple(map(int, read["buckets"])))
    timed = [
        evaluation.perf(at(of_lengths, int(length)), batch_size, version, one["loops"])
        for length, one in read["buckets"].items()
    ]
    whole = bucket_steps.throughput(of_lengths, batch_size, version)
    return Found(read, _origin(bucketing.outdated(session, of_lengths, batch_size, version, [*timed, whole])))


def _read(session: Session, path: PurePosixPath, recorded: PurePosixPath) -> Any:
    """A file's content, None if it is not there, and what was Found where it has no record. Raises DataError."""
    if not (session.workspace / path).exists():
        return None
    record = measurements.unaltered(session, recorded)
    try:
        content = json.loads((session.workspace / path).read_text(encoding="utf-8"))
        if not isinstance(content["buckets"], dict):
            raise TypeError("buckets")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a bucketed run's ({error}). Run it again with --force") from None
    return content if record else Found(content, "no record")


def _origin(reason: str) -> str:
    return f"outdated: {reason}" if reason else ""


def _padded(session: Session, plan: Plan, batch_size: int, version: str) -> str:
    log = plan.artifacts.timing_log(batch_size, version, plan.tool or "msame")
    if not (session.workspace / log).exists():
        return measurements.ABSENT
    measurements.unaltered(session, log)
    return f"{timing.read(session.workspace / log, batch_size).fps:.3f}"
