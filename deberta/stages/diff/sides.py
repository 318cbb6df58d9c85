"""One of the two reports that are compared, and the rows behind its evaluations, as far as its tree has them.

Both may come from anybody: files are opened inside the tree alone, and used only where they say what the report says.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from deberta.core import files, mnli, schema
from deberta.core.contract import LABELS
from deberta.core.differences import DiffSide, DiffSource
from deberta.core.errors import DataError, DebertaError, MissingError, from_os_error
from deberta.core.job import EvaluationFiles, Job
from deberta.core.report import EvaluationCell, Report
from deberta.core.schema import Schema
from deberta.stages.data import tables
from deberta.stages.inference import postprocess
from deberta.stages.inference.logits import Logits, finite_rows, margins, predicted
from deberta.stages.report import assess, render

Numbers = npt.NDArray[np.intp]


class RunRows(NamedTuple):
    """The rows of one evaluation, in the tsv's order: index of the gold and of the predicted label, and its margin."""

    gold: Numbers
    labels: Numbers
    margins: npt.NDArray[np.float64]


class PredictionLine(Schema, forbid_unknown_fields=False):
    """What is taken of a line of a predictions file: label and margin follow from the logits."""

    row: schema.Count
    gold: schema.Label
    logits: Annotated[list[float], Meta(min_length=len(LABELS), max_length=len(LABELS))]


class Pairs(NamedTuple):
    """The rows that both have: their numbers in A and in B."""

    a: Numbers
    b: Numbers


@dataclass(frozen=True, eq=False)
class ReportSide:
    """A report, and its job if it stands in a tree; `why_no_rows`: why nothing but the report can be read."""

    source: DiffSource
    report: Report
    job: Job | None
    why_no_rows: str

    @property
    def facts(self) -> DiffSide:
        report = self.report
        return DiffSide(
            name=self.source.name,
            title=report.title,
            profile=report.body.profile,
            backend=report.body.backend,
            limit=report.body.limit,
            made=report.measured.finished,
            verdict=report.verdict.verdict if report.verdict else "",
            verification=self.source.verification,
            body_sha256=report.body_sha256,
            report_sha256=files.sha256_of(Path(self.source.report)),
        )

    def rows(self, cell: EvaluationCell) -> RunRows:
        """The rows of an evaluation. Raises DebertaError where the tree has none that are the report's."""
        entry = self._entry(cell)
        logits, gold = self._logits(entry)
        run = RunRows(gold, predicted(logits), margins(logits))
        correct = int((run.gold == run.labels).sum())
        if (len(gold), correct) != (cell.rows, cell.correct):
            raise DataError(
                f"{self.source.name}: its outputs have {correct} of {len(gold)} rows right, and its report says "
                f"{cell.correct} of {cell.rows}"
            )
        return run

    def data_digest(self, version: str) -> str:
        """The SHA-256 of a version's tsv as the report has it. Raises DataError if it has none."""
        digest = self.report.body.inputs.get(self._needed_job().data.get(version, ""), {}).get("sha256", "")
        if not digest:
            raise DataError(f"{self.source.name}: its report does not name the tsv of {version}")
        return digest

    @functools.cache  # noqa: B019  # two sides a process
    def table(self, version: str) -> list[mnli.Row]:
        """The rows of a version's tsv. Raises DebertaError unless it is there and of the recorded digest."""
        digest = self.data_digest(version)
        path = self._inside(self._needed_job().data[version])
        if not path.is_file():
            raise MissingError(f"{path} is missing")
        if path.stat().st_size > tables.LARGEST:
            raise DataError(f"{path} has more than {tables.LARGEST} bytes")
        if files.sha256_of(path) != digest:
            raise DataError(f"{path} is not the tsv that the report names")
        return list(mnli.rows(path, limit=self.report.body.limit))

    def _needed_job(self) -> Job:
        if self.job is None:
            raise MissingError(self.why_no_rows)
        return self.job

    def _entry(self, cell: EvaluationCell) -> EvaluationFiles:
        for entry in self._needed_job().cells:
            if (entry.batch_size, entry.version, entry.precision) == (cell.batch_size, cell.version, cell.precision):
                return entry
        raise DataError(f"{self.source.name}: its job has no evaluation {cell.key}")

    def _logits(self, entry: EvaluationFiles) -> tuple[Logits, Numbers]:
        """The logits of an evaluation, and the gold labels of their rows: its predictions', or else its outputs'."""
        if entry.predictions and (path := self._inside(entry.predictions)).exists():
            return _predictions(path)
        gold = np.array([row.label for row in self.table(entry.version)], np.intp)
        outputs, bins = self._folders(entry.outputs), self._folders(entry.bins)
        data = self._inside(self._needed_job().data[entry.version])
        return postprocess.read_run(outputs, bins, data, len(gold), entry.batch_size).logits, gold

    def _folders(self, folders: Mapping[str, str]) -> dict[int, Path]:
        return {length: self._inside(path) for length, path in postprocess.by_length(folders, Path()).items()}

    def _inside(self, name: str | Path) -> Path:
        """The path of a file or folder of the tree. Raises DataError if it, or a file in it, is not inside."""
        root, follow = Path(self.source.root), not self.source.own
        paths = [Path(name)]
        if files.inside(root, name, follow):  # else nothing below it is looked at
            paths += [Path(name, path) for path in files.files_in(root / name)]
        for path in paths:
            if not files.inside(root, path, follow):
                raise DataError(f"{self.source.name}: {path} leads out of the tree")
        return root / name


def _predictions(path: Path) -> tuple[Logits, Numbers]:
    """The logits and gold labels of a predictions file, whose rows are those of the tsv in order. Raises DataError."""
    lines = files.read_bytes(path).splitlines()
    logits, gold = np.empty((len(lines), len(LABELS)), np.float32), np.empty(len(lines), np.intp)
    for row, line in enumerate(lines):
        try:
            content = schema.decode(line, PredictionLine)
        except ValueError as error:
            raise DataError(f"{path} line {row + 1} {error}") from None
        if content.row != row:
            raise DataError(f"{path} line {row + 1} is of row {content.row}")
        with np.errstate(over="ignore"):  # it becomes infinite
            logits[row], gold[row] = content.logits, LABELS.index(content.gold)
    if not finite_rows(logits).all():
        raise DataError(f"{path} holds logits that are no float32")
    return logits, gold


def read(source: DiffSource) -> ReportSide:
    """Raises MissingError and DataError for a report that cannot be read, or contradicts itself."""
    report = render.read(Path(source.report))
    for cell in report.body.cells:
        if cell.correct > cell.rows:
            raise DataError(f"{source.report} says that {cell.correct} of {cell.rows} rows are right")
    if not source.root or not source.job:
        return ReportSide(source, report, None, f"{source.name} is a report without its tree: it holds no rows")
    try:
        job = assess.read_job(Path(source.root, source.job))
    except DebertaError as error:
        return ReportSide(source, report, None, f"{source.name}: {error}")
    return ReportSide(source, report, job, "")


def why_not(error: Exception) -> str:
    """What an error says, as a reason."""
    known = from_os_error(error) if isinstance(error, OSError) else error
    return str(known).partition(". Run: ")[0]


def pair(a: ReportSide, b: ReportSide, version: str, rows_a: int, rows_b: int) -> Pairs:
    """The rows of one version that both have; of the first rows only where a side was limited.

    Rows of one tsv are paired by their place, those of two by what they hold: a row that occurs twice in one of them
    is left out. Raises DebertaError if that cannot be told.
    """
    if a.data_digest(version) == b.data_digest(version):
        same = np.arange(min(rows_a, rows_b), dtype=np.intp)
        return Pairs(same, same)
    places_a, places_b = _places(a.table(version)), _places(b.table(version))
    both = [(place, places_b[key]) for key, place in places_a.items() if place >= 0 and places_b.get(key, -1) >= 0]
    numbers = np.array(both, np.intp).reshape(-1, 2)
    return Pairs(numbers[:, 0], numbers[:, 1])


def _places(rows: list[mnli.Row]) -> dict[tuple[str, str, str, int], int]:
    """The number of each row by what it holds; -1 of those that occur more than once."""
    places: dict[tuple[str, str, str, int], int] = {}
    for number, row in enumerate(rows):
        key = (row.premise, row.hypothesis, row.genre, row.label)
        places[key] = -1 if key in places else number
    return places
