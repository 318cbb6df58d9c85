"""report.md: the guide's table, published figures beside measured ones, every measured cell naming its backend."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional, Sequence, Union

from deberta import ais_bench, files, msame, published, records
from deberta.artifacts import record_of
from deberta.contract import RUNNERS
from deberta.errors import DataError, MissingError
from deberta.host import pipeline
from deberta.host.pipeline import Session
from deberta.host.steps import Plan

ABSENT = "-"


@dataclass(frozen=True)
class Evaluated:
    """One version's counts. `origin` is empty for a run of the present model, else it says what was counted instead.

    `pinned` is False if a step on the way ran in an image that is not as pinned.
    """

    counts: Mapping[str, Any]
    origin: str
    pinned: bool = True


@dataclass(frozen=True)
class Performance:
    """One performance run: throughput in samples per second, times in ms; `origin` as above.

    Times are without the first, or, of ais_bench, without the warm-up.
    """

    version: str
    fps: float
    average_ms: float
    percentiles_ms: Mapping[str, float]
    loops: int
    origin: str
    runner: str = "msame"
    pinned: bool = True


@dataclass(frozen=True)
class Measured:
    """What was measured at one batch size: evaluations by version, and performance runs."""

    batch_size: int
    evaluations: Mapping[str, Evaluated]
    performances: tuple[Performance, ...]
    engines: tuple[str, ...]  # what the runs' own summaries say they ran on


def collect(session: Session, plan: Plan, usual: Sequence[int], bucketed: bool = False) -> tuple[Measured, ...]:
    """What was measured at the `usual` batch sizes and at any other that left files.

    Raises MissingError if that is nothing and nothing is `bucketed` either, DataError if a file was altered.
    """
    found = [_at(session, plan, size) for size in sorted({*usual, *_present(session, plan)})]
    if not bucketed and not any(entry.evaluations or entry.performances for entry in found):
        raise MissingError(f"nothing has been measured in {plan.artifacts.results}. Run: {plan.command('evaluate')}")
    return tuple(found)


def _present(session: Session, plan: Plan) -> set[int]:
    """Batch sizes of the result files that are there."""
    folder = session.workspace / plan.artifacts.results
    names = [path.name for path in folder.glob("*.*")] if folder.is_dir() else []
    kept = r"(?:(?:eval|msame)_bs(\d+)_(?:match|mismatch)\.txt|ais_bench_bs(\d+)_(?:match|mismatch)\.json)"
    matches = [re.fullmatch(kept, name) for name in names]
    return {int(match[1] or match[2]) for match in matches if match}


def _at(session: Session, plan: Plan, batch_size: int) -> Measured:
    evaluations, performances, engines = {}, [], set()
    for version in plan.profile.rows:
        text = plan.artifacts.evaluation(batch_size, version)
        if (session.workspace / text).exists():
            origin, summary = _evaluated_from(session, plan, batch_size, version)
            counts = read_evaluation(session.workspace / text.with_suffix(".json"))
            outputs = plan.artifacts.outputs(batch_size, version)
            evaluations[version] = Evaluated(counts, origin, _pinned(session, plan, batch_size, text, outputs))
            engines.add(_engine(summary))
        for log in (plan.artifacts.timing_log(batch_size, version, runner) for runner in RUNNERS):
            if (session.workspace / log).exists():
                record = unaltered(session, log)
                origin = _model_of(session, plan, batch_size, record) if record else "no record"
                engines.add(_engine(records.summary(record)) if record else "")
                found = performance(session.workspace / log, batch_size, version, origin)
                performances.append(replace(found, pinned=_pinned(session, plan, batch_size, log)))
    return Measured(batch_size, evaluations, tuple(performances), tuple(sorted(engines - {""})))


def _evaluated_from(session: Session, plan: Plan, batch_size: int, version: str) -> tuple[str, Mapping[str, Any]]:
    """The origin of an evaluation, and the summary of the run whose outputs it counted."""
    record = unaltered(session, plan.artifacts.evaluation(batch_size, version))
    if record is None:
        return "no record", {}
    [(folder, digest)] = [entry for entry in records.dependencies(record).items() if "dirHash" in entry[1]]
    run = records.read(session.workspace / record_of(plan.artifacts.outputs(batch_size, version)))
    if run is None or records.digests(run["subject"]).get(folder) != digest:
        return f"outputs brought: {folder}", {}
    return _model_of(session, plan, batch_size, run), records.summary(run)


def _model_of(session: Session, plan: Plan, batch_size: int, run: Mapping[str, Any]) -> str:
    """Empty if a run used the present compiled model, and that was made of the present dynamic.onnx."""
    compiled, onnx = plan.artifacts.compiled(batch_size), plan.artifacts.onnx
    made = records.read(session.workspace / record_of(compiled))
    if plan.backend == "ascend" and pipeline.is_brought(session, compiled):
        same = records.dependencies(run).get(str(compiled)) == session.digests.of(compiled)
        return "on ascend, .om brought" if same else "outdated: another model"
    for record, needed in ((run, compiled), (made, onnx)):
        there = (session.workspace / needed).exists()
        if record is None or not there or records.dependencies(record).get(str(needed)) != session.digests.of(needed):
            return "outdated: another model"
    return ""


def _pinned(session: Session, plan: Plan, batch_size: int, *made: PurePosixPath) -> bool:
    """Whether no step on the way to these artifacts says that its image was not pinned."""
    way = (*made, plan.artifacts.compiled(batch_size), plan.artifacts.onnx)
    found = [records.read(session.workspace / record_of(path)) for path in way]
    return not any(records.internal(record).get("pins", "pinned") != "pinned" for record in found if record)


def _engine(summary: Mapping[str, Any]) -> str:
    if "engine" not in summary:
        return ""
    return f"{summary['engine']}, {summary.get('precision')}, {summary.get('threads')} threads"


def read_evaluation(path: Path) -> Mapping[str, Any]:
    """The exact counts of an evaluation. Raises MissingError and DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Evaluate again with --force") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Evaluate again with --force") from None
    if not isinstance(content, dict) or not {"accuracy", "correct", "rows", "genres"} <= set(content):
        raise DataError(f"{path} does not hold the counts of an evaluation. Evaluate again with --force")
    return content


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
    lines += ["", *_notes(plan, measured), ""]
    lines += [
        "## Accuracy by genre",
        "",
        "| batch size | version | genre | correct / rows | accuracy |",
        "|---|---|---|---|---|",
    ]
    for entry in measured:
        for version, evaluated in entry.evaluations.items():
            cells = {"all": evaluated.counts, **evaluated.counts["genres"]}
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
            f"| {entry.batch_size} | {run.version}{_by(run.runner)} | {run.loops} | {run.fps:.3f} | {run.average_ms} | "
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
            counts = result.counts
            figure = f"{short}={100 * counts['accuracy']:.2f} ({counts['correct']}/{counts['rows']})"
            accuracies.append(f"{figure} {_where(plan, result)}")
    fps = [f"{run.fps:.3f} {_where(plan, run, run.runner)}" for run in entry.performances]
    cells = (
        f"Deberta bs{entry.batch_size}",
        f"M={row.official_match}/MM={row.official_mismatch}" if row else ABSENT,
        f"M={row.ascend_match}/MM={row.ascend_mismatch}" if row else ABSENT,
        ", ".join(accuracies) or ABSENT,
        f"{row.baseline_fps:.3f}" if row else ABSENT,
        f"{row.ascend_fps:.3f}" if row else ABSENT,
        ", ".join(fps) or ABSENT,
    )
    return f"| {' | '.join(cells)} |"


def _where(plan: Plan, figure: Union[Evaluated, Performance], runner: str = "") -> str:
    """What stands behind a measured figure: the backend that made it, or why it is not the present model's."""
    said = f"({figure.origin})" if figure.origin else place(plan, runner)
    return said if figure.pinned else f"{said}, not pinned"


def place(plan: Plan, runner: str) -> str:
    """Where a figure was measured; the guide's own runner is not named."""
    return f"on {plan.backend}{_by(runner)}"


def _by(runner: str) -> str:
    return f" ({runner})" if runner == ais_bench.MODULE else ""


def _notes(plan: Plan, measured: Sequence[Measured]) -> list[str]:
    if plan.profile.published:
        about = f"Published figures: {published.SOURCE}. {published.NOTE}"
    else:
        about = f"Nothing is published for profile {plan.profile.name}; the guide's figures belong to its own model."
    fps = "fps = batch size * 1000 / average time without the first, in ms: inference alone, no reading or writing."
    if any(run.runner == ais_bench.MODULE for entry in measured for run in entry.performances):
        fps += " Of ais_bench: its own throughput, by the average of all times; its warm-up is none of them."
    pinned = [figure.pinned for entry in measured for figure in entry.evaluations.values()]
    pinned += [figure.pinned for entry in measured for figure in entry.performances]
    if not all(pinned):
        fps += " Not pinned: made in an image whose base is not the one of docker/pins.toml; the records name it."
    engines = sorted({engine for entry in measured for engine in entry.engines})
    if plan.backend != "cpu" or not engines:
        return [about, "", fps]
    cpu = "No Ascend device was used, and a CPU's fps says nothing about one."
    return [about, "", fps, "", f"Measured on the CPU backend ({platform.machine()}; {'; '.join(engines)}). {cpu}"]


def performance(log: Path, batch_size: int, version: str, origin: str = "") -> Performance:
    """Read a timing log, of either runner. Raises DataError."""
    text = log.read_text(encoding="utf-8")
    if log.suffix == ".json":
        summary = ais_bench.read_summary(text)
        fps, average, times = ais_bench.fps(batch_size, summary), summary.average_ms, summary.times_ms
        percentiles, runner = ais_bench.percentiles(summary), ais_bench.MODULE
    else:
        run = msame.parse(text)
        fps, average, times = (
            msame.fps(batch_size, run.average_without_first_ms),
            run.average_without_first_ms,
            run.times_ms,
        )
        percentiles, runner = msame.percentiles(run), "msame"
    assert average is not None  # fps refuses None
    return Performance(version, fps, average, percentiles, len(times), origin, runner)


def unaltered(session: Session, artifact: PurePosixPath) -> Optional[dict[str, Any]]:
    """An artifact's record, None for a file that we did not make. Raises DataError if the two do not agree."""
    record = records.read(session.workspace / record_of(artifact))
    for name, digest in records.digests(record["subject"]).items() if record else ():
        path = PurePosixPath(name)
        if not (session.workspace / path).exists() or session.digests.of(path) != digest:
            raise DataError(f"{name} is not what {record_of(artifact)} says. Run the step again with --force")
    return record
