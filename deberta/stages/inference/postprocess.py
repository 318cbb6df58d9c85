"""Outputs and gold labels to the guide's accuracy text, exact counts in a JSON file, and each row's prediction.

A folder of outputs holds input_<i>_output_0.bin, float32 [batch, 3], contradiction, neutral, entailment. Rows of
several lengths have a folder for each, and order.json beside the bins puts them back into the tsv's order. The text has
the guide's sorted `key = value` lines: accuracy, accuracy_<genre>, eval_samples; accuracies are correct/rows, float64.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from deberta.core import buckets, contract, files, mnli, schema
from deberta.core.errors import ConfigError, DataError, run_stage
from deberta.stages import arguments
from deberta.stages.arguments import Argument
from deberta.stages.data import row_order
from deberta.stages.inference.logits import Logits, finite_rows, margins, predicted, read_outputs

MARGIN_DIGITS = 6
Gold = tuple[str, int]  # genre, index of the label
_Value = TypeVar("_Value")


class Tally(msgspec.Struct, frozen=True):
    """One genre's counts."""

    correct: int
    rows: int
    accuracy: float


class Evaluation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Exact counts of one version: the JSON file beside the accuracy text, in this order."""

    version: str
    batch_size: int
    rows: int
    limit: int  # above 0: the first rows only, never a result
    correct: int
    accuracy: float
    genres: dict[str, Tally]
    labels_predicted: dict[str, int]
    labels_gold: dict[str, int]
    confusion: dict[str, dict[str, int]]  # by gold label, then by predicted label
    nan_rows: int  # 0: with any, there is no evaluation
    padding_nan_rows: int
    outputs_sha256: str  # of the folder (files.folder_digest), or of those of all lengths
    buckets: dict[str, int] = {}  # length -> rows; empty, and not in the file, for 256 alone


class Prediction(msgspec.Struct, frozen=True):
    """A row of the tsv (from 0; its line is row + 2): one line of the predictions file, in this order.

    logits: as contract.LABELS, in the shortest digits that give the same float32. margin: the largest of them minus the
    second largest, to MARGIN_DIGITS digits.
    """

    row: int
    line: int
    gold: str
    label: str
    logits: list[float]
    margin: float


@dataclass(frozen=True)
class RunLogits:
    """The outputs of a run of one or several lengths: logits float32 [rows, 3], finite, in the tsv's order."""

    logits: Logits
    padding_nan_rows: int
    sha256: str  # as Evaluation has it
    buckets: dict[str, int]


def by_length(folders: Mapping[str, str], root: Path = Path()) -> dict[int, Path]:
    """A JSON file's folders, relative to `root`, by increasing sequence length."""
    return {length: root / folders[str(length)] for length in sorted(map(contract.whole, folders))}


def outputs_folder(folder: Path) -> Path:
    """The folder itself, or the only folder in it: a run writes into a subfolder named after its time."""
    inside = list(folder.iterdir()) if folder.is_dir() else []
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def read_run(
    outputs: Mapping[int, Path], bins: Mapping[int, Path], data: Path, rows: int, batch_size: int
) -> RunLogits:
    """The logits of `rows` rows of `data`, from folders of outputs and of bins by length; no bins: 256 alone.

    Raises MissingError; DataError if outputs or bins are not whole and of these rows, or if a logit of a real row is
    NaN or infinite. That of a padding row is only counted.
    """
    orders = row_order.read_all(bins, rows, batch_size) if bins else {}
    logits = np.empty((rows, len(contract.LABELS)), np.float32)
    padding_nan, digests = 0, {}
    for length, folder in outputs.items():
        placed = orders[length].flat if orders else list(range(rows))
        values = read_outputs(folder, contract.batch_count(len(placed), batch_size), batch_size)
        finite = finite_rows(values)
        if len(bad := np.flatnonzero(~finite[: len(placed)])):
            batch, row = divmod(int(bad[0]), batch_size)
            raise DataError(
                f"{folder}: {len(bad)} of {len(placed)} rows hold NaN or infinity, the first in"
                f" {contract.output_file(batch)} row {row} ({data.name} line {placed[bad[0]] + 2}). This is usually an"
                " fp16 overflow in the compiled model: compile it with another precision_mode (atc's default is"
                " force_fp16), then run: invoke infer --force"
            )
        padding_nan += int(np.count_nonzero(~finite[len(placed) :]))
        logits[placed] = values[: len(placed)]
        digests[length] = files.folder_digest(folder)
    if not orders:
        [sha256] = digests.values()
        return RunLogits(logits, padding_nan, sha256, {})
    lines = "".join(f"{digest}  {length}\n" for length, digest in digests.items())
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    return RunLogits(logits, padding_nan, sha256, {str(length): len(order.flat) for length, order in orders.items()})


def read_gold(data: Path, limit: int = 0, expected_rows: int = 0) -> list[Gold]:
    """Genre and label of each row. Raises MissingError and DataError."""
    gold = [(row.genre, row.label) for row in mnli.rows(data)]
    if expected_rows:
        mnli.expect_rows(data, len(gold), expected_rows)
    return gold[:limit] if limit else gold


def count(gold: Sequence[Gold], run: RunLogits, version: str, batch_size: int, limit: int = 0) -> Evaluation:
    """Count a run's logits against the gold labels."""
    genres, labels = zip(*gold, strict=True)
    predictions = predicted(run.logits)
    confusion = np.zeros((len(contract.LABELS), len(contract.LABELS)), np.int64)
    np.add.at(confusion, (np.array(labels), predictions), 1)
    correct, rows = int(confusion.trace()), Counter(genres)
    right = Counter(genre for (genre, label), guess in zip(gold, predictions, strict=True) if label == guess)
    return Evaluation(
        version=version,
        batch_size=batch_size,
        rows=len(gold),
        limit=limit,
        correct=correct,
        accuracy=correct / len(gold),
        genres={genre: Tally(right[genre], count, right[genre] / count) for genre, count in sorted(rows.items())},
        labels_predicted=_by_label(confusion.sum(axis=0).tolist()),
        labels_gold=_by_label(confusion.sum(axis=1).tolist()),
        confusion=_by_label([_by_label(counts) for counts in confusion.tolist()]),
        nan_rows=0,
        padding_nan_rows=run.padding_nan_rows,
        outputs_sha256=run.sha256,
        buckets=run.buckets,
    )


def guide_text(result: Evaluation) -> str:
    """The guide's accuracy text: sorted `key = value` lines, floats as Python writes them."""
    values: dict[str, float] = {f"accuracy_{genre}": tally.accuracy for genre, tally in result.genres.items()}
    values.update(accuracy=result.accuracy, eval_samples=result.rows)
    return "".join(f"{key} = {values[key]}\n" for key in sorted(values))


def predictions(gold: Sequence[Gold], run: RunLogits) -> list[Prediction]:
    """What a run's logits say of each row, in the tsv's order."""
    columns = (gold, predicted(run.logits), margins(run.logits), run.logits)
    return [
        Prediction(
            row=row,
            line=row + 2,
            gold=contract.LABELS[label],
            label=contract.LABELS[guess],
            logits=[float(str(logit)) for logit in logits],
            margin=round(float(margin), MARGIN_DIGITS),
        )
        for row, ((_, label), guess, margin, logits) in enumerate(zip(*columns, strict=True))
    ]


def _by_label(values: Sequence[_Value]) -> dict[str, _Value]:
    return dict(zip(contract.LABELS, values, strict=True))


BINS = Argument("folders of preprocess, one for each length, commas between; not needed for 256 alone")


def read_listed(options: argparse.Namespace, option: str, outputs: str, rows: int) -> RunLogits:
    """`read_run` of the folders that an option lists, with a stage's --lengths, --bins, --data and --bs."""
    folders = buckets.folders(options.lengths, outputs, option)
    bins: dict[int, Path] = {}
    if row_order.is_needed(options.lengths):
        if options.bins is None:
            raise ConfigError(f"--bins is needed at lengths {buckets.text(options.lengths)}: it has the rows' order")
        bins = buckets.folders(options.lengths, options.bins, "--bins")
    inner = {length: outputs_folder(folder) for length, folder in folders.items()}
    return read_run(inner, bins, options.data, rows, options.bs)


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "data bs lengths output version limit rows summary",
        outputs=Argument("folders of outputs, or with one such in them, one for each length", required=True),
        bins=BINS,
        predictions=arguments.file("where a JSON line for each row goes", required=False),
    )
    gold = read_gold(options.data, options.limit, options.rows)
    run = read_listed(options, "--outputs", options.outputs, len(gold))
    result = count(gold, run, options.version, options.bs, options.limit)
    counts = options.output.with_suffix(".json")  # there before the text is
    texts = {options.output: guide_text(result), counts: schema.text(result)}
    if options.predictions:
        texts[options.predictions] = msgspec.json.Encoder().encode_lines(predictions(gold, run)).decode()
    files.write_texts(texts)
    print(
        f"accuracy {result.accuracy:.4f} ({result.correct}/{result.rows} rows"
        f"{', the first only' if result.limit else ''}): {options.output}"
    )
    arguments.write_summary(options.summary, msgspec.to_builtins(result))


if __name__ == "__main__":
    sys.exit(run_stage(main))
