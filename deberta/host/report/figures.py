"""The figures that evaluate and perf print, as text and as their --json's document."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

from deberta.ascend import timing
from deberta.core import buckets, schema
from deberta.core.contract import FP32, PERFORMANCE_LOOPS, SUPPLIED_LOG
from deberta.core.differences import LabelChangeCounts
from deberta.core.errors import aligned
from deberta.core.schema import Schema
from deberta.host.plan.plan import Case, Plan
from deberta.host.report import reasons

FORMULA = "fps over the data = rows / sum over the lengths of (its batches * average time of one batch)"


class Share(Schema):
    """Rows that are right."""

    correct: schema.Count
    rows: schema.Count
    accuracy: schema.Share


class EvaluationFigures(Share):
    """One batch size, version and precision. `place`: where the model ran, or whose outputs they are.

    `limit`: above 0 the first rows alone were run, which is never a result. `text`, `file` and `predictions`: paths
    in the workspace.
    """

    batch_size: schema.BatchSize
    version: schema.Version
    precision: schema.Precision
    place: str
    lengths: list[schema.Positive]
    limit: schema.Count
    genres: dict[str, Share]
    text: str
    file: str
    predictions: str


class LabelChanges(LabelChangeCounts):
    """A run of a lower precision beside the float32 run of the same rows."""

    batch_size: schema.BatchSize
    version: schema.Version
    file: str


class EvaluateDocument(Schema):
    evaluations: list[EvaluationFigures]
    label_changes: list[LabelChanges]


class Performance(Schema):
    """A performance run; times in ms. fps = batch size * 1000 / average_ms, without the warm-up; `log` is its file."""

    batch_size: schema.BatchSize
    version: schema.Version
    place: str
    runner: str
    loops: schema.Positive
    fps: schema.AboveZero
    average_ms: schema.AboveZero
    percentiles_ms: dict[str, float]
    user_supplied: bool
    log: str


class LengthThroughput(Schema, forbid_unknown_fields=False):
    fps: schema.AboveZero
    average_ms: schema.AboveZero
    rows: schema.Positive
    batches: schema.Positive


class DataThroughput(Schema, forbid_unknown_fields=False):
    """What the runs of several lengths come to over the data; `buckets` are by length."""

    fps: schema.AboveZero
    rows: schema.Positive
    buckets: dict[schema.Number, LengthThroughput]
    file: str = ""


class PerfDocument(Schema):
    """`over_the_data`: null of a padded run."""

    performance: Performance
    over_the_data: Optional[DataThroughput]


def evaluation(case: Case, place: str, counts: Mapping[str, Any]) -> EvaluationFigures:
    """`counts`: what the postprocess stage wrote."""
    text = case.evaluation
    return EvaluationFigures(
        **_share(counts),
        batch_size=case.batch_size,
        version=case.version,
        precision=case.plan.precision,
        place=place or place_of(case.plan),
        lengths=list(case.plan.lengths),
        limit=case.plan.limit,
        genres={name: Share(**_share(of_genre)) for name, of_genre in counts["genres"].items()},
        text=str(text),
        file=str(text.with_suffix(".json")),
        predictions=str(case.predictions),
    )


def _share(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: counts[name] for name in ("correct", "rows", "accuracy")}


def print_evaluation(result: EvaluationFigures) -> None:
    partial = _partial(result.limit)
    print(f"accuracy {result.version} bs={result.batch_size} {result.place}: {_text(result)}{partial}")
    for genre, share in result.genres.items():
        print(f"  {genre}: {_text(share)}")
    print(f"  {result.text}\n  {result.file}\n  {result.predictions}", flush=True)


def print_evaluations(results: Sequence[EvaluationFigures]) -> None:
    """A table with a line for each, if there are any."""
    rows = [("bs", "version", "precision", "accuracy", "right")]
    for result in results:
        accuracy, right = f"{100 * result.accuracy:.2f} %", f"{result.correct}/{result.rows}{_partial(result.limit)}"
        rows.append((str(result.batch_size), result.version, result.precision, accuracy, right))
    for line in aligned(rows) if results else ():
        print(line, flush=True)


def _text(share: Share) -> str:
    return f"{share.accuracy} = {share.correct}/{share.rows}"


def place_of(plan: Plan, runner: str = "") -> str:
    return reasons.place(plan.backend, runner) + ("" if plan.precision == FP32 else f" in {plan.precision}")


def _partial(limit: int) -> str:
    return f" (only the first {limit} rows: no result)" if limit else ""


def label_changes(workspace: Path, case: Case, path: str) -> LabelChanges:
    """Of the label-changes stage's file. Raises MissingError and DataError."""
    values = schema.read(workspace / path, dict[str, Any], "Run the same command with --force")
    own = {"batch_size": case.batch_size, "version": case.version, "file": path}
    return schema.convert({**values, **own}, LabelChanges, path)


def print_label_changes(changes: LabelChanges, limit: int) -> None:
    rows = changes.rows
    lower, fp32 = (f"{part.correct / rows} = {part.correct}/{rows}" for part in (changes.lower, changes.fp32))
    genres = "".join(
        f"  {genre}: {counts.labels_changed} of {counts.rows} labels differ, "
        f"{counts.lower} right against {counts.fp32}\n"
        for genre, counts in changes.genres.items()
        if counts.labels_changed
    )
    details = ""
    if changes.labels_changed:
        details = (
            f" ({changes.right_before} right in fp32, {changes.right_now} right in {changes.precision}; "
            f"the largest fp32 margin among them is {changes.largest_margin_changed:.3f})"
        )
    print(
        f"{changes.precision} beside fp32, {changes.version} bs={changes.batch_size}: "
        f"accuracy {lower} against {fp32}{_partial(limit)}\n"
        f"  {changes.labels_changed} labels differ{details}\n"
        f"  logits: max |difference| {changes.max_abs_difference:.3f}, mean {changes.mean_abs_difference:.4f}\n"
        f"{genres}"
        f"  {changes.file}",
        flush=True,
    )


def performance(workspace: Path, case: Case, user_supplied: bool) -> Performance:
    """Of the case's timing log. Raises DataError if that is none."""
    measured = timing.read(workspace / case.timing_log, case.batch_size)
    return Performance(
        batch_size=case.batch_size,
        version=case.version,
        place=f"({SUPPLIED_LOG})" if user_supplied else place_of(case.plan, measured.runner),
        runner=measured.runner,
        loops=len(measured.times_ms),
        fps=measured.fps,
        average_ms=measured.average_ms,
        percentiles_ms=dict(timing.nearest_ranks(measured.counted_ms)),
        user_supplied=user_supplied,
        log=str(case.timing_log),
    )


def print_performance(run: Performance, loops: int) -> None:
    times = ", ".join(f"{name} {value:.3f} ms" for name, value in run.percentiles_ms.items())
    average = "average" if run.runner == "ais_bench" else "average without first"
    print(
        f"perf bs={run.batch_size} {run.version} {run.place}: {run.fps:.3f} fps "
        f"({_loops(run.loops, loops)}, {average} {run.average_ms} ms, {times})\n  {run.log}",
        flush=True,
    )


def _loops(measured: int, wanted: int) -> str:
    """How many loops a figure rests on, marked where they are not those of the guide or of the command."""
    if measured > wanted:
        return f"{measured} loops, more than {wanted} and measured before: --force measures again"
    return f"{measured} loops" if measured >= PERFORMANCE_LOOPS else f"{measured} loops only, the guide's run has more"


def over_the_data(workspace: Path, case: Case) -> DataThroughput:
    """Of the throughput stage's file. Raises MissingError and DataError."""
    measured = schema.read(workspace / case.throughput, DataThroughput, "Run the same command with --force")
    measured.file = str(case.throughput)
    return measured


def print_over_the_data(workspace: Path, case: Case, measured: DataThroughput, padded_fps: float) -> None:
    loops = min(timing.loops(workspace / part.timing_log) for part in (case.padded, *case.lengths))
    fewer = f" ({_loops(loops, loops)})" if loops < PERFORMANCE_LOOPS else ""
    place = place_of(case.plan, case.plan.tool)
    print(
        f"perf bs={case.batch_size} {case.version} {place}, buckets {buckets.text(case.plan.lengths)}: "
        f"{measured.fps:.3f} fps over {measured.rows} rows, {measured.fps / padded_fps:.2f} times the padded "
        f"{padded_fps:.3f}{fewer}"
    )
    for length, part in measured.buckets.items():
        print(
            f"  length {length}: {part.fps:.3f} fps (average without first {part.average_ms:.3f} ms), "
            f"{part.rows} rows in {part.batches} batches"
        )
    print(f"  {FORMULA}\n  {case.throughput}", flush=True)
