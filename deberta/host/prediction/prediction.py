"""predict: a label for texts of the user's, through the same compiled model and runner as infer.

Rows run in parts of PART_ROWS, each in files that go before the next part's are made; what is left at the end is what
was asked for.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Iterator, Optional, Sequence

import msgspec
from msgspec import field

from deberta.ascend import programs
from deberta.core import buckets, contract, files, schema
from deberta.core.buckets import Choice
from deberta.core.errors import ConfigError, DataError, MissingError, aligned, many
from deberta.core.schema import Schema
from deberta.host.plan import evaluation as planned
from deberta.host.plan.plan import Case, Plan
from deberta.host.prediction import steps
from deberta.host.run import runner
from deberta.host.run.session import Session
from deberta.host.workflows import evaluation

MOST_SHOWN = 10_000  # rows that are printed; more need a file
FORMS = (".jsonl", ".csv")
LARGEST_PART = 2**30  # bytes of a part's predictions; a table that is read has 128 MiB
TEXT_WIDTH = 48  # characters of a text in a line of the table
PLACE = "predict"  # in the profile's folder of data, under a temporary name


class PredictedRow(Schema):
    """A row (from 0) with the line that it stands in, or its number among a JSON file's entries.

    probabilities: the softmax of the logits. margin: the largest logit minus the second largest.
    """

    row: schema.Count
    line: schema.Positive
    premise: str
    hypothesis: str
    label: schema.Label
    probabilities: dict[schema.Label, schema.Share]
    margin: schema.NonNegative


class PredictDocument(Schema):
    """models: SHA-256 of the compiled models by path. truncated_rows: those that had more tokens than the model takes.

    output: the file that has the rows; then `predictions` is empty.
    """

    profile: schema.Text
    backend: schema.Backend
    batch_size: schema.BatchSize
    labels: schema.Labels
    models: dict[str, schema.Sha256]
    rows: schema.Count
    truncated_rows: schema.Count
    by_label: schema.ByLabel
    output: Optional[str] = None
    predictions: list[PredictedRow] = field(default_factory=list)


@dataclass(frozen=True)
class PredictionRequest:
    """`data` is a table, or None and `pair` a premise and a hypothesis. `batch_size` 0: one that is compiled."""

    plan: Plan
    choice: Choice
    data: Optional[Path]
    pair: tuple[str, str]
    columns: str
    batch_size: int
    usual_sizes: Sequence[int]
    output: Optional[Path]


def check(request: PredictionRequest, force: bool) -> None:
    """Look at what was typed. Raises ConfigError, MissingError, and DataError for an output that is there."""
    if (request.data is None) != bool(any(request.pair)):
        raise ConfigError("give --premise and --hypothesis, or the name of a file with such columns: one of both")
    for name, text in zip(("--premise", "--hypothesis"), request.pair if request.data is None else ()):
        if not text.strip():
            raise ConfigError(f"{name} is needed, and not empty, beside the other text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{name} is not UTF-8") from None
    if request.data is not None and not request.data.is_file():
        kind = "is a folder" if request.data.is_dir() else "is missing"
        raise MissingError(f"{request.data} {kind}. Name a tsv, csv or JSON lines file with a premise and a hypothesis")
    output = request.output
    if output is None:
        return
    if output.suffix not in FORMS:
        raise ConfigError(f"--output {output}: its name says the form. End it in {' or '.join(FORMS)}")
    if not output.parent.is_dir():
        raise MissingError(f"--output {output}: {output.parent} is no folder. Make it, or name another")
    if output.is_dir() or (os.path.lexists(output) and not force):
        raise DataError(
            f"--output {output} is there, and is never replaced. Name another, or add --force: it is renamed"
        )


def predict(session: Session, request: PredictionRequest) -> Optional[PredictDocument]:
    """Label the rows; None in a dry run. Raises the errors of the steps."""
    if request.plan.backend == "cpu":
        runner.check_sources(session, [planned.export_onnx(request.plan)])
    place = session.workspace / request.plan.artifacts.data / PLACE
    if session.dry:
        _show(session, replace(request, plan=_within(session, request.plan, files.temporary_beside(place))))
        return None
    try:
        with files.staged(place) as folder:
            folder.mkdir()
            return _predict(session, replace(request, plan=_within(session, request.plan, folder)))
    finally:
        for left in session.workspace.glob(str(programs.scratch("predict_*"))):
            files.remove(left)
        with contextlib.suppress(OSError):  # it has the profile's data, unless there are none
            place.parent.rmdir()


def _within(session: Session, plan: Plan, folder: Path) -> Plan:
    return replace(plan, limit=0, scratch=str(folder.relative_to(session.workspace)))


def _show(session: Session, request: PredictionRequest) -> None:
    """The steps of one part, padded: how many rows there are, and of which lengths, is known when they are read."""
    session.say("rows run in parts, at lengths that are known when they are read; shown is one part, padded")
    case = steps.part(request.plan, 0, None, request.batch_size or 1).padded
    data = request.data or Path(request.plan.scratch, "pair.jsonl")
    compiling = evaluation.compiling(session, _of_models(case, request.plan))
    run = steps.infer(case, {})
    outputs = evaluation.run_folders(run, [None] * len(run))
    converting = steps.convert(request.plan, PurePosixPath(data), request.columns)
    for step in (converting, *compiling, steps.preprocess(case), *run, steps.predict(case, outputs, 0)):
        runner.run(session, step)


def _of_models(case: Case, plan: Plan) -> Case:
    """The case of the compiled models, which are infer's: they and their logs lie in the usual places."""
    return replace(case, plan=replace(case.plan, profile=plan.profile, scratch=""))


def _predict(session: Session, request: PredictionRequest) -> PredictDocument:
    plan, workspace, output = request.plan, session.workspace, request.output
    data = request.data
    if data is None:
        data = workspace / plan.scratch / "pair.jsonl"
        files.write_text(data, json.dumps(dict(zip(("premise", "hypothesis"), request.pair))) + "\n")
    [converted] = runner.run_all(session, [steps.convert(plan, PurePosixPath(data), request.columns)])
    counts = converted.summary["files"]
    rows = sum(counts)
    if rows > MOST_SHOWN and output is None:
        raise ConfigError(f"{data} has {rows} rows, and {MOST_SHOWN} are printed at most. Add --output FILE.jsonl")
    size = request.batch_size or _batch_size(session, request, rows)
    labels = plan.profile.labels or contract.LABELS
    document = PredictDocument(
        profile=plan.profile.name,
        backend=plan.backend,
        batch_size=size,
        labels=list(labels),
        models={},
        rows=rows,
        truncated_rows=0,
        by_label=dict.fromkeys(labels, 0),
        output=str(output) if output else None,
    )
    with _destination(output, labels) as destination:
        for index, count in enumerate(counts):
            case = steps.part(plan, index, count, size)
            try:
                predictions = _part(session, request, case, document, sum(counts[:index]))
            finally:
                files.remove(workspace / case.plan.scratch)
            for row in predictions:
                document.by_label[row.label] += 1
            if destination is None or output is None:
                document.predictions += predictions
            else:
                _write(destination, output.suffix, predictions, labels)
    if document.truncated_rows:
        text = f"{many(document.truncated_rows, 'row')} with more than {contract.SEQUENCE_LENGTH} tokens"
        session.say(f"{text}: the rest was cut off, as in the guide")
    return document


def _part(
    session: Session, request: PredictionRequest, case: Case, document: PredictDocument, first: int
) -> list[PredictedRow]:
    """Run one part of the rows. Adds to the document which models ran it, and how many rows were cut."""
    case = evaluation.at_lengths(session, case, request.choice)
    of_models = _of_models(case, request.plan)
    evaluation.check_device(session, of_models, steps.infer(case, {}))
    runner.run_all(session, evaluation.compiling(session, of_models))
    bins = runner.run(session, steps.preprocess(case)).summary
    document.truncated_rows += bins["truncated_rows"]
    inferring = steps.infer(case, evaluation.rows_by_length(session, case, bins))
    records = [runner.run(session, step).record for step in inferring]
    step = steps.predict(case, evaluation.run_folders(inferring, records), first)
    runner.run(session, step)
    for model in (part.compiled for part in of_models.models):
        document.models[str(model)] = session.digests.of(model)["sha256"]
    lines = files.read_bytes(session.workspace / step.outputs[0], LARGEST_PART).split(b"\n")
    return [schema.decode(line, PredictedRow) for line in lines if line]


def _batch_size(session: Session, request: PredictionRequest, rows: int) -> int:
    """A batch size that is compiled already: the largest that the rows fill, or else the smallest."""
    is_cpu = request.plan.backend == "cpu"
    choice = request.choice or (buckets.AUTO if is_cpu else ())
    if choice == buckets.AUTO and not is_cpu:  # of no data yet
        choice = ()
    plan = evaluation.plan_of_model(replace(request.plan, scratch=""), choice)
    present = [
        size
        for size in request.usual_sizes
        if all((session.workspace / part.compiled).exists() for part in Case(plan, size).models)
    ]
    if not present:
        size = 8 if rows >= 8 else 1
        session.say(f"batch size: {size} (no model is compiled yet)")
        return size
    size = max([size for size in present if size <= rows], default=min(present))
    session.say(f"batch size: {size} (compiled already)")
    return size


@contextlib.contextmanager
def _destination(output: Optional[Path], labels: Sequence[str]) -> Iterator[Optional[IO[str]]]:
    """The file that gets the rows, complete or not there at all; None without an output."""
    if output is None:
        yield None
        return
    with files.new_file(output) as temporary:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            if output.suffix == ".csv":
                csv.writer(file, lineterminator="\n").writerow(_cells(None, labels))
            yield file
        if os.path.lexists(output):
            os.rename(output, files.aside(output))


def _write(file: IO[str], form: str, rows: Sequence[PredictedRow], labels: Sequence[str]) -> None:
    if form == ".csv":
        csv.writer(file, lineterminator="\n").writerows(_cells(row, labels) for row in rows)
    else:
        file.writelines(f"{msgspec.json.encode(row).decode()}\n" for row in rows)


def _cells(row: Optional[PredictedRow], labels: Sequence[str]) -> list[str]:
    """A row of the csv, or its header line."""
    if row is None:
        return ["row", "line", "premise", "hypothesis", "label", *labels, "margin"]
    shares = [f"{row.probabilities[label]}" for label in labels]
    return [f"{row.row}", f"{row.line}", row.premise, row.hypothesis, row.label, *shares, f"{row.margin}"]


def text(document: PredictDocument) -> str:
    """What is printed: a table of the rows, or how many of each label were written where."""
    if document.output is not None:
        counts = ", ".join(f"{label} {count}" for label, count in document.by_label.items())
        return f"{many(document.rows, 'row')} ({counts}): {document.output}"
    cells = [["row", "label", *document.labels, "margin", "premise", "hypothesis"]]
    for row in document.predictions:
        shares = [f"{row.probabilities[label]:.4f}" for label in document.labels]
        cells.append([f"{row.row}", row.label, *shares, f"{row.margin:.3f}", _cut(row.premise), _cut(row.hypothesis)])
    return "\n".join(aligned(cells))


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_WIDTH else f"{text[: TEXT_WIDTH - 3]}..."
