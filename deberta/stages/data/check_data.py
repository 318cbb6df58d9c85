"""A check of MNLI's tsv itself, before any model: what would make a good model's accuracy wrong or meaningless.

The result is a JSON file of what was counted. `problems` fail acceptance; `notes` are worth knowing and no fault. Bad
columns, unknown labels and ids beyond the model's vocabulary are errors, as in `preprocess`. The same data, tokenizer
and options give the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deberta.core import contract, files, mnli
from deberta.core.contract import LABELS
from deberta.core.errors import many, run_stage
from deberta.stages import arguments
from deberta.stages.data.encoding import Counts, EncodedRows
from deberta.stages.model import config

FORMAT = 1
# Of all tokens. SentencePiece leaves one character in 2000 out of a vocabulary unless told otherwise, so at four to a
# token up to 0.2 % are [UNK] (measured on MNLI: 0.18 %), and DeBERTa's own has hardly any. A vocabulary of other text
# gives more: that of the demo 0.84 % on MNLI, smaller ones several percent.
UNKNOWN_SHARE = 0.005
EMPTY_SHARE = 0.01  # of the rows
ENOUGH_ROWS = 100  # for any statement about labels
BALANCED = (1 / 6, 1 / 2)  # of a label's share; in MNLI each has about a third
_SHOWN = 5  # lines of the tsv; the others are counted


@dataclass(frozen=True)
class DataFindings:
    """What the rows hold beside `Counts`. Lines are the tsv's, the header line being 1."""

    rows: int  # checked
    in_file: int
    genres: Counter[str]
    empty: list[int]  # lines with an empty sentence
    repeated: list[int]  # lines whose two texts an earlier row has
    contradicting: int  # of `repeated`: with another label than that row
    unknown: list[int]  # lines with an [UNK]


def check(encoded: EncodedRows, version: str, expected_rows: int = 0) -> dict[str, Any]:
    """The JSON file's object. Another row count than `expected_rows` is a problem, and no error. Raises DataError."""
    rows = list(mnli.rows(encoded.data))
    unknown: list[int] = []
    for first, ids, _ in encoded.chunks(f"check-data {version}"):
        unknown += (np.flatnonzero((ids == encoded.unknown_id).any(axis=1)) + first + 2).tolist()
    findings, counts = survey(rows[: encoded.rows], len(rows), unknown), encoded.counts
    tokens, labels = counts.tokens, dict(zip(LABELS, counts.labels, strict=True))
    return {
        "format": FORMAT,
        "version": version,
        "rows": findings.rows,
        "limit": encoded.limit,
        "columns": mnli.DEV_COLUMNS,
        "expected_rows": expected_rows or None,
        "labels": labels,
        "genres": dict(sorted(findings.genres.items())),
        "tokens": {"total": tokens, "unknown": counts.unknown, "unknown_rate": round(counts.unknown / tokens, 6)},
        "truncated_rows": len(counts.truncated),
        "truncated_lines": counts.truncated[:_SHOWN],
        "duplicate_pair_ids": {"count": len(counts.duplicates), "lines": counts.duplicates[:_SHOWN]},
        "duplicate_pairs": len(findings.repeated),
        "empty_sentences": len(findings.empty),
        "problems": problems(findings, counts, labels, expected_rows),
        "notes": notes(findings, counts, labels),
    }


def survey(rows: Sequence[mnli.Row], in_file: int, unknown: list[int]) -> DataFindings:
    """Check the texts; `rows` are the first ones of a file of `in_file`. `unknown`: lines with an [UNK]."""
    empty, repeated, contradicting = [], [], 0
    first_rows: dict[tuple[str, str], mnli.Row] = {}
    for line, row in enumerate(rows, start=2):
        if not (row.premise.strip() and row.hypothesis.strip()):
            empty.append(line)
        first = first_rows.setdefault((row.premise, row.hypothesis), row)
        if first is not row:
            repeated.append(line)
            contradicting += first.label != row.label
    return DataFindings(len(rows), in_file, Counter(row.genre for row in rows), empty, repeated, contradicting, unknown)


def problems(
    findings: DataFindings, counts: Counts, labels: dict[str, int], expected_rows: int
) -> list[dict[str, object]]:
    """What fails acceptance: `check` names it, `what` says it, `lines` are the first of the lines concerned."""
    failures: list[dict[str, object]] = []

    def add(check: str, what: str, lines: Sequence[int] = ()) -> None:
        failures.append({"check": check, "what": what, "lines": list(lines[:_SHOWN])})

    if expected_rows and findings.in_file != expected_rows:
        add("rows", f"the tsv has {findings.in_file} rows, expected {expected_rows}")
    if counts.duplicates:
        add(
            "duplicate_pair_ids",
            f"{many(len(counts.duplicates), 'row')} with the pairID of an earlier row",
            [line for _, line in counts.duplicates],
        )
    if counts.unknown > UNKNOWN_SHARE * counts.tokens:
        add(
            "unknown_tokens",
            f"{counts.unknown} of {counts.tokens} tokens are [UNK], {counts.unknown / counts.tokens:.2%}"
            f" (allowed {UNKNOWN_SHARE:.1%}): the tokenizer is not for this text, or the text is damaged",
            findings.unknown,
        )
    lacking = [label for label in LABELS if not labels[label]]
    if lacking and findings.rows >= ENOUGH_ROWS:
        add("labels", f"none of {findings.rows} rows is labelled {' or '.join(lacking)}")
    if len(findings.empty) > EMPTY_SHARE * findings.rows:
        add(
            "empty_sentences",
            f"{many(len(findings.empty), 'row')} of {findings.rows} with an empty sentence (allowed {EMPTY_SHARE:.0%})",
            findings.empty,
        )
    return failures


def notes(findings: DataFindings, counts: Counts, labels: dict[str, int]) -> list[str]:
    """What is worth knowing, and no fault."""
    remarks = []
    if counts.truncated:
        remarks.append(
            f"{many(len(counts.truncated), 'row')} cut at {contract.SEQUENCE_LENGTH} tokens: {_lines(counts.truncated)}"
        )
    if findings.repeated:
        differing = f", {findings.contradicting} of them with another label" if findings.contradicting else ""
        repeated = many(len(findings.repeated), "row")
        remarks.append(f"{repeated} with both texts of an earlier row{differing}: {_lines(findings.repeated)}")
    if 0 < len(findings.empty) <= EMPTY_SHARE * findings.rows:
        remarks.append(f"{many(len(findings.empty), 'row')} with an empty sentence: {_lines(findings.empty)}")
    low, high = BALANCED
    if findings.rows >= ENOUGH_ROWS and not all(low <= count / findings.rows <= high for count in labels.values()):
        shares = ", ".join(f"{label} {count / findings.rows:.1%}" for label, count in labels.items())
        remarks.append(f"labels are far from balance: {shares}")
    return remarks


def _lines(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:_SHOWN]))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{'line' if len(lines) == 1 else 'lines'} {shown}{more}"


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(argv, __doc__, "data tokenizer config version output limit rows summary")
    vocabulary = config.read(options.config).vocab_size
    encoded = EncodedRows(options.data, options.tokenizer, options.limit, vocabulary=vocabulary)
    result = check(encoded, options.version, options.rows)
    files.write_text(options.output, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    for problem in result["problems"]:
        where = f": {_lines(problem['lines'])}" if problem["lines"] else ""
        print(f"problem: {problem['what']}{where}")
    for note in result["notes"]:
        print(f"note: {note}")
    print(
        f"{result['rows']} rows{' (the first only)' if options.limit else ''}, {result['tokens']['total']} tokens,"
        f" {result['tokens']['unknown']} of them [UNK]; {many(len(result['problems']), 'problem')}: {options.output}"
    )
    arguments.write_summary(options.summary, result)


if __name__ == "__main__":
    sys.exit(run_stage(main))
