"""Outputs and gold labels to the guide's accuracy text, and exact counts in a JSON file beside it.

A folder of outputs holds input_<i>_output_0.bin, float32 [batch, 3], contradiction, neutral, entailment. The text has
the guide's sorted `key = value` lines: accuracy, accuracy_<genre>, eval_samples; accuracies are correct/rows, float64.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from deberta.core import contract, files, mnli
from deberta.core.errors import DataError, run_stage
from deberta.stages.inference.logits import Logits, finite_rows, predicted, read_outputs

Gold = tuple[str, int]  # genre, index of the label
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Tally:
    """One genre's counts."""

    correct: int
    rows: int
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
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
    outputs_sha256: str  # files.folder_digest


def evaluate(
    outputs: Path, data: Path, batch_size: int, version: str, limit: int = 0, expected_rows: int = 0
) -> Evaluation:
    """Count the outputs against the tsv's gold labels.

    `limit` and `expected_rows` (of the whole file) apply if above 0. Raises MissingError; DataError also when a logit
    of a real row is NaN or infinite. That of a padding row is only counted.
    """
    gold = read_gold(data, limit, expected_rows)
    rows = len(gold)
    logits = read_outputs(outputs, contract.batch_count(rows, batch_size), batch_size)
    finite = finite_rows(logits)
    check_finite(outputs, data, finite[:rows], range(rows), batch_size)
    padding_nan = int(np.count_nonzero(~finite[rows:]))
    return count(gold, logits[:rows], version, batch_size, limit, padding_nan, files.folder_digest(outputs))


def read_gold(data: Path, limit: int = 0, expected_rows: int = 0) -> list[Gold]:
    """Genre and label of each row. Raises MissingError and DataError."""
    gold = [(row.genre, row.label) for row in mnli.rows(data)]
    if expected_rows:
        mnli.expect_rows(data, len(gold), expected_rows)
    return gold[:limit] if limit else gold


def count(
    gold: Sequence[Gold],
    logits: Logits,
    version: str,
    batch_size: int,
    limit: int,
    padding_nan_rows: int,
    outputs_sha256: str,
) -> Evaluation:
    """Count logits, finite and in the tsv's order, against the gold labels."""
    rows = len(gold)
    predictions = predicted(logits)
    confusion = np.zeros((len(contract.LABELS), len(contract.LABELS)), np.int64)
    genres: dict[str, list[int]] = {}  # correct, rows
    for (genre, label), guess in zip(gold, predictions.tolist(), strict=True):
        confusion[label, guess] += 1
        tally = genres.setdefault(genre, [0, 0])
        tally[0] += label == guess
        tally[1] += 1
    return Evaluation(
        version=version,
        batch_size=batch_size,
        rows=rows,
        limit=limit,
        correct=int(confusion.trace()),
        accuracy=int(confusion.trace()) / rows,
        genres={genre: Tally(right, count, right / count) for genre, (right, count) in sorted(genres.items())},
        labels_predicted=_by_label(confusion.sum(axis=0).tolist()),
        labels_gold=_by_label(confusion.sum(axis=1).tolist()),
        confusion=_by_label([_by_label(counts) for counts in confusion.tolist()]),
        nan_rows=0,
        padding_nan_rows=padding_nan_rows,
        outputs_sha256=outputs_sha256,
    )


def guide_text(result: Evaluation) -> str:
    """The guide's accuracy text: sorted `key = value` lines, floats as Python writes them."""
    values: dict[str, float] = {f"accuracy_{genre}": tally.accuracy for genre, tally in result.genres.items()}
    values.update(accuracy=result.accuracy, eval_samples=result.rows)
    return "".join(f"{key} = {values[key]}\n" for key in sorted(values))


def _by_label(values: Sequence[_Value]) -> dict[str, _Value]:
    return dict(zip(contract.LABELS, values, strict=True))


def check_finite(
    outputs: Path, data: Path, finite: npt.NDArray[np.bool_], tsv_rows: Sequence[int], batch_size: int
) -> None:
    """Raise DataError for the first row that is not; `tsv_rows` says which of the tsv each one is."""
    bad = np.flatnonzero(~finite)
    if len(bad):
        batch, row = divmod(int(bad[0]), batch_size)
        line = tsv_rows[int(bad[0])] + 2
        raise DataError(
            f"{outputs}: {len(bad)} of {len(finite)} rows hold NaN or infinity, the first in"
            f" {contract.output_file(batch)} row {row} ({data.name} line {line}). This is usually an fp16"
            " overflow in the compiled model: compile it with another precision_mode (atc's default is force_fp16),"
            " then run: invoke infer --force"
        )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.inference.postprocess", description=__doc__)
    parser.add_argument("--outputs", type=Path, required=True, help="folder of input_<i>_output_0.bin")
    parser.add_argument("--data", type=Path, required=True, help="GLUE's dev tsv, 16 columns")
    parser.add_argument("--bs", required=True, help="rows in an output file")
    parser.add_argument("--output", type=Path, required=True, help="the accuracy text; the JSON file goes beside it")
    parser.add_argument("--limit", help="the outputs are of the first N rows only")
    parser.add_argument("--rows", help="rows that the whole tsv must have")
    parser.add_argument("--version", default="match", help="match or mismatch, recorded in the JSON file")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    most = 2**31 - 1
    batch_size = contract.parse_batch_size(options.bs)
    limit = contract.parse_integer("--limit", options.limit, 0, 0, most)
    expected = contract.parse_integer("--rows", options.rows, 0, 1, most)
    version = contract.parse_version(options.version)
    result = evaluate(options.outputs, options.data, batch_size, version, limit, expected)
    keep(result, asdict(result), options.output, options.summary)


def keep(result: Evaluation, counts: dict[str, object], output: Path, summary: Path | None) -> None:
    """Write the accuracy text to `output`, `counts` as JSON beside it, and the stage's summary."""
    with contextlib.ExitStack() as both:  # renamed last to first: the JSON file, then the text
        text_file = both.enter_context(files.new_file(output))
        json_file = both.enter_context(files.new_file(output.with_suffix(".json")))
        text_file.write_bytes(guide_text(result).encode("utf-8"))
        json_file.write_bytes(_json(counts))
    print(
        f"accuracy {result.accuracy:.4f} ({result.correct}/{result.rows} rows"
        f"{', the first only' if result.limit else ''}): {output}"
    )
    if summary:
        measured = {**counts, "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        files.write_text(summary, _json(measured).decode("utf-8"))


def _json(counts: dict[str, object]) -> bytes:
    return (json.dumps(counts, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


if __name__ == "__main__":
    sys.exit(run_stage(main))
