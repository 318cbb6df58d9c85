"""What differs between two reports beside their figures: gates, inputs, code, tools, machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deberta.core.differences import FactDifference, GateDifference
from deberta.core.errors import many
from deberta.core.report import GateCheck, Report
from deberta.stages.diff.sides import ReportSide
from deberta.stages.report.gates import FAILED, PASSED

SHOWN = 12  # characters of a SHA-256
BUILT = ("models/", "data/")  # artifacts that figures follow from, by the start of their paths


def gates(a: Report, b: Report) -> tuple[list[GateDifference], int]:
    """The gates that differ in their status or in what they require, B's failed ones first; how many are alike."""
    of_a, of_b = _checks(a), _checks(b)
    pairs = [(key, of_a.get(key), of_b.get(key)) for key in dict.fromkeys([*of_b, *of_a])]
    differing = [
        GateDifference(
            gate=key[0],
            of=key[1],
            a=first.status if first else "",
            b=second.status if second else "",
            required_a=first.required if first else "",
            required_b=second.required if second else "",
            actual_a=first.actual if first else "",
            actual_b=second.actual if second else "",
        )
        for key, first, second in pairs
        if first is None or second is None or (first.status, first.required) != (second.status, second.required)
    ]
    return sorted(differing, key=lambda entry: entry.b != FAILED), len(pairs) - len(differing)


def _checks(report: Report) -> dict[tuple[str, str], GateCheck]:
    return {(check.gate, check.of): check for check in report.verdict.gates} if report.verdict else {}


def newly_failing(entry: GateDifference) -> bool:
    return entry.b == FAILED and entry.a != FAILED


def no_longer_judged(entry: GateDifference) -> bool:
    return entry.a == PASSED and entry.b not in (PASSED, FAILED)


def facts(a: ReportSide, b: ReportSide) -> list[FactDifference]:
    """All of which the two say something else, or one alone says something."""
    told_a, told_b = dict(_told(a)), dict(_told(b))
    return [
        FactDifference(kind=key[0], what=key[1], a=told_a.get(key, ""), b=told_b.get(key, ""))
        for key in sorted({*told_a, *told_b}, key=lambda key: (_KINDS.index(key[0]), key[1]))
        if told_a.get(key, "") != told_b.get(key, "")
    ]


_KINDS = ("report", "input", "artifact", "code", "pins", "tool", "machine")


def _told(side: ReportSide) -> Iterator[tuple[tuple[str, str], str]]:
    """(kind, what) and its text."""
    body, measured, host = side.report.body, side.report.measured, side.report.measured.host
    yield ("report", "profile"), body.profile
    yield ("report", "backend"), body.backend
    yield ("report", "rows"), f"the first {body.limit}" if body.limit else "all"
    yield ("report", "labels"), ", ".join(body.labels)
    yield ("report", "versions"), ", ".join(body.versions)
    yield ("report", "batch sizes"), ", ".join(map(str, body.batch_sizes))
    yield ("report", "loops of a performance run"), f"{measured.loops}"
    yield from _digests("input", body.inputs)
    made = {**body.artifacts, **measured.artifacts}
    yield from _digests("artifact", {path: digest for path, digest in made.items() if path.startswith(BUILT)})
    yield ("code", "deberta-ascend"), measured.deberta_ascend
    yield ("pins", "docker/pins.toml"), "as pinned" if measured.pins.pinned else "; ".join(measured.pins.notes)
    yield from ((("tool", name), version) for name, version in measured.tools.items())
    yield ("tool", "engines"), "; ".join(measured.engines)
    yield ("tool", "executor"), measured.executor
    yield ("tool", "Python"), host.python
    yield ("machine", "system"), host.system
    yield ("machine", "processor"), f"{host.cpu}, {host.cpus} cores"
    yield ("machine", "name"), host.name
    yield ("machine", "devices of the accuracy runs"), devices(side.report)
    for name, texts in side.source.facts.items():
        kind, _, what = name.partition(": ")
        if kind in _KINDS and what:
            yield (kind, what), "; ".join(texts)


def devices(report: Report) -> str:
    """How many ran shards of what chips, CANN and drivers; empty if each run had one device."""
    shares = {share.name: share for run in report.measured.sharded for share in run.devices if share.shards}
    facts = [sorted({getattr(share, name) for share in shares.values()} - {""}) for name in ("chip", "cann", "driver")]
    texts = [
        f"{noun}{', '.join(values)}" for noun, values in zip(("", "CANN ", "driver "), facts, strict=True) if values
    ]
    return "; ".join([many(len(shares), "device"), *texts]) if shares else ""


def _digests(kind: str, digests: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[tuple[str, str], str]]:
    for path, digest in digests.items():
        yield (kind, path), "".join(value[:SHOWN] for value in digest.values())
