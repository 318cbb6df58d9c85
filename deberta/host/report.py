"""report.md: the guide's table, published figures beside measured ones, every measured cell naming its backend."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional, Sequence

from deberta import files, msame, published, records
from deberta.artifacts import record_of
from deberta.cpus import effective_cpus
from deberta.errors import DataError, MissingError
from deberta.host.pipeline import Session
from deberta.host.steps import Plan

ABSENT = "-"


@dataclass(frozen=True)
class Performance:
    """One performance run: throughput in samples per second, times in ms without the first."""

    version: str
    fps: float
    average_without_first_ms: float
    percentiles_ms: Mapping[str, float]
    loops: int


@dataclass(frozen=True)
class Measured:
    """What was measured at one batch size: evaluations by version, and performance runs."""

    batch_size: int
    evaluations: Mapping[str, Mapping[str, Any]]
    performances: tuple[Performance, ...]


def collect(session: Session, plan: Plan, batch_sizes: Sequence[int]) -> tuple[Measured, ...]:
    """Everything measured. Raises MissingError if that is nothing, DataError if a file was altered."""
    found = []
    for batch_size in batch_sizes:
        evaluations = {}
        performances = []
        for version in plan.profile.rows:
            text = plan.artifacts.evaluation(batch_size, version)
            if (session.workspace / text).exists():
                _check_unaltered(session, record_of(text))
                evaluations[version] = read_evaluation(session.workspace / text.with_suffix(".json"))
            log = plan.artifacts.timing_log(batch_size, version)
            if (session.workspace / log).exists():
                _check_unaltered(session, record_of(log))
                performances.append(_performance(session.workspace / log, batch_size, version))
        found.append(Measured(batch_size, evaluations, tuple(performances)))
    if not any(entry.evaluations or entry.performances for entry in found):
        raise MissingError(f"nothing has been measured in {plan.artifacts.results}. Run: {plan.command('evaluate')}")
    return tuple(found)


def read_evaluation(path: Path) -> Mapping[str, Any]:
    """The exact counts of an evaluation. Raises MissingError and DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Run: invoke evaluate") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Run: invoke postprocess --force") from None
    return dict(content)


def render(plan: Plan, measured: Sequence[Measured]) -> str:
    """The report as Markdown."""
    guide = {row.batch_size: row for row in published.GUIDE} if plan.profile.published else {}
    lines = [
        f"# DeBERTa on MNLI: profile {plan.profile.name}, backend {plan.backend}",
        "",
        "| model | official accuracy | 310P accuracy (published) | measured accuracy | baseline fps (published) "
        "| 310P fps (published) | measured fps |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(plan, entry, guide.get(entry.batch_size)) for entry in measured]
    lines += ["", *_notes(plan), ""]
    lines += [
        "## Accuracy by genre",
        "",
        "| batch size | version | genre | correct / rows | accuracy |",
        "|---|---|---|---|---|",
    ]
    for entry in measured:
        for version, result in entry.evaluations.items():
            cells = {"all": result, **result["genres"]}
            lines += [
                f"| {entry.batch_size} | {version} | {genre} | {c['correct']}/{c['rows']} | {c['accuracy']:.4f} |"
                for genre, c in cells.items()
            ]
    lines += [
        "",
        "## Performance runs",
        "",
        "| batch size | version | loops | fps | average ms | p50 ms | p90 ms | p99 ms |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for entry in measured:
        lines += [
            f"| {entry.batch_size} | {run.version} | {run.loops} | {run.fps:.3f} | {run.average_without_first_ms} | "
            + " | ".join(f"{run.percentiles_ms[f'p{p}']:.3f}" for p in msame.PERCENTILES)
            + " |"
            for run in entry.performances
        ]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    files.write_text(path, text)


def _row(plan: Plan, entry: Measured, row: Optional[published.Published]) -> str:
    accuracies = []
    for version, short in (("match", "M"), ("mismatch", "MM")):
        result = entry.evaluations.get(version)
        if result:
            accuracies.append(f"{short}={100 * result['accuracy']:.2f} ({result['correct']}/{result['rows']})")
    fps = [f"{run.fps:.3f}" for run in entry.performances]
    cells = (
        f"Deberta bs{entry.batch_size}",
        f"M={row.official_match}/MM={row.official_mismatch}" if row else ABSENT,
        f"M={row.ascend_match}/MM={row.ascend_mismatch}" if row else ABSENT,
        f"{', '.join(accuracies)} on {plan.backend}" if accuracies else ABSENT,
        f"{row.baseline_fps:.3f}" if row else ABSENT,
        f"{row.ascend_fps:.3f}" if row else ABSENT,
        f"{' and '.join(fps)} on {plan.backend}" if fps else ABSENT,
    )
    return f"| {' | '.join(cells)} |"


def _notes(plan: Plan) -> list[str]:
    if plan.profile.published:
        about = f"Published figures: {published.SOURCE}. {published.NOTE}"
    else:
        about = f"Nothing is published for profile {plan.profile.name}; the guide's figures belong to its own model."
    notes = [
        about,
        "fps = batch size * 1000 / average time without the first, in ms: inference alone, no reading or writing.",
    ]
    if plan.backend == "cpu":
        notes.append(
            f"Measured on the CPU backend ({platform.machine()}, {effective_cpus()} threads): "
            "no Ascend device was used, and its fps says nothing about one."
        )
    return notes


def _performance(log: Path, batch_size: int, version: str) -> Performance:
    run = msame.parse(log.read_text(encoding="utf-8"))
    fps = msame.fps(batch_size, run.average_without_first_ms)
    assert run.average_without_first_ms is not None  # fps refuses None
    return Performance(version, fps, run.average_without_first_ms, msame.percentiles(run), len(run.times_ms))


def _check_unaltered(session: Session, record_path: PurePosixPath) -> None:
    """A measured file must still be what its record says; a file without a record is the user's own."""
    record = records.read(session.workspace / record_path)
    if record is None:
        return
    for name, digest in records.digests(record["subject"]).items():
        path = PurePosixPath(name)
        if not (session.workspace / path).exists() or session.digests.of(path) != digest:
            raise DataError(f"{name} is not what its record {record_path} says. Run the step again with --force")
