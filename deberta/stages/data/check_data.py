"""A look at MNLI's tsv itself, before any model: what would make a good model's accuracy wrong, or mean nothing.

The result is a JSON file of what was counted. `problems` are what data fit for acceptance have not; `notes` are worth
knowing and no fault. Bad columns, unknown labels and ids beyond the model's vocabulary are errors, as in `preprocess`.
The same data, tokenizer and options give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deberta.core import contract, files, mnli
from deberta.core.contract import LABELS
from deberta.core.errors import run_stage
from deberta.core.progress import Progress
from deberta.stages.data import preprocess
from deberta.stages.data.preprocess import Counts
from deberta.stages.model import config
from deberta.stages.model import tokenizer as tokenizers_of_guide

FORMAT = 1
# Of all tokens. SentencePiece leaves one character in 2000 out of a vocabulary unless told otherwise, so at four to a
# token up to 0.2 % are [UNK] (measured on MNLI: 0.18 %), and DeBERTa's own has hardly any. A vocabulary of other text
# gives more: that of the demo 0.84 % on MNLI, smaller ones several percent.
UNKNOWN_SHARE = 0.005
EMPTY_SHARE = 0.01  # of the rows
ENOUGH_ROWS = 100  # for what is said about labels
BALANCED = (1 / 6, 1 / 2)  # of a label's share; in MNLI each has about a third
_SHOWN = 5  # lines of the tsv; the others are counted


@dataclass(frozen=True)
class DataFindings:
    """What the rows hold beside `Counts`. Lines are the tsv's, the header line being 1."""

    rows: int  # looked at
    in_file: int
    genres: Counter[str]
    empty: list[int]  # lines with an empty sentence
    repeated: list[int]  # lines whose two texts an earlier row has
    contradicting: int  # of `repeated`: with another label than that row
    unknown: list[int]  # lines with an [UNK]


def look(
    data: Path, tokenizer_path: Path, version: str, limit: int = 0, expected_rows: int = 0, vocabulary: int = 0
) -> dict[str, Any]:
    """What is to be said about `data`. The other arguments are `preprocess`'s, but a row count other than
    `expected_rows` is a problem here. Raises MissingError and DataError."""
    rows = list(mnli.rows(data))
    in_file = len(rows)
    rows = rows[:limit] if limit else rows
    tokenizer = tokenizers_of_guide.load(tokenizer_path)
    tokenizers_of_guide.truncate(tokenizer, contract.SEQUENCE_LENGTH)
    counts = Counts(contract.SEQUENCE_LENGTH)
    progress = Progress(f"sentinel {version}", len(rows), "rows")
    unknown: list[int] = []
    done = 0
    for ids, _ in preprocess.chunks(data, tokenizer, 1, contract.SEQUENCE_LENGTH, limit, counts):
        preprocess.check_vocabulary(ids, vocabulary, tokenizer_path, data, done)
        having = (ids == tokenizer.token_to_id("[UNK]")).any(axis=1)
        unknown += (np.flatnonzero(having) + done + 2).tolist()
        done += len(ids)
        progress.update(done)
    preprocess.check_count(done, len(rows))
    found = survey(rows, in_file, unknown)
    tokens, labels = counts.tokens, dict(zip(LABELS, counts.labels, strict=True))
    return {
        "format": FORMAT,
        "version": version,
        "rows": found.rows,
        "limit": limit,
        "columns": mnli.DEV_COLUMNS,
        "expected_rows": expected_rows or None,
        "labels": labels,
        "genres": dict(sorted(found.genres.items())),
        "tokens": {
            "total": tokens,
            "unknown": counts.unknown,
            "unknown_rate": round(counts.unknown / tokens, 6),
        },
        "truncated_rows": len(counts.truncated),
        "truncated_lines": counts.truncated[:_SHOWN],
        "duplicate_pair_ids": {"count": len(counts.duplicates), "lines": counts.duplicates[:_SHOWN]},
        "duplicate_pairs": len(found.repeated),
        "empty_sentences": len(found.empty),
        "problems": problems(found, counts, labels, expected_rows),
        "notes": notes(found, counts, labels),
    }


def survey(rows: Sequence[mnli.Row], in_file: int, unknown: list[int]) -> DataFindings:
    """Look at the texts; `rows` are the first ones of a file of `in_file`."""
    genres: Counter[str] = Counter()
    empty, repeated, contradicting = [], [], 0
    first_labels: dict[tuple[str, str], int] = {}
    for line, row in enumerate(rows, start=2):
        texts = (row.premise, row.hypothesis)
        genres[row.genre] += 1
        if not all(text.strip() for text in texts):
            empty.append(line)
        if texts in first_labels:
            repeated.append(line)
            contradicting += first_labels[texts] != row.label
        else:
            first_labels[texts] = row.label
    return DataFindings(len(rows), in_file, genres, empty, repeated, contradicting, unknown)


def problems(
    found: DataFindings, counts: Counts, labels: dict[str, int], expected_rows: int
) -> list[dict[str, object]]:
    """What fails acceptance: `check` names it, `what` says it, `lines` are the first of the lines concerned."""
    made: list[dict[str, object]] = []

    def add(check: str, what: str, lines: Sequence[int] = ()) -> None:
        made.append({"check": check, "what": what, "lines": list(lines[:_SHOWN])})

    if expected_rows and found.in_file != expected_rows:
        add("rows", f"the tsv has {found.in_file} rows, expected {expected_rows}")
    if counts.duplicates:
        add(
            "duplicate_pair_ids",
            f"{_count(len(counts.duplicates))} with the pairID of an earlier row",
            [again for _, again in counts.duplicates],
        )
    if counts.unknown > UNKNOWN_SHARE * counts.tokens:
        add(
            "unknown_tokens",
            f"{counts.unknown} of {counts.tokens} tokens are [UNK], {counts.unknown / counts.tokens:.2%}"
            f" (allowed {UNKNOWN_SHARE:.1%}): the tokenizer is not for this text, or the text is damaged",
            found.unknown,
        )
    lacking = [label for label in LABELS if not labels[label]]
    if lacking and found.rows >= ENOUGH_ROWS:
        add("labels", f"none of {found.rows} rows is labelled {' or '.join(lacking)}")
    if len(found.empty) > EMPTY_SHARE * found.rows:
        add(
            "empty_sentences",
            f"{_count(len(found.empty))} of {found.rows} with an empty sentence (allowed {EMPTY_SHARE:.0%})",
            found.empty,
        )
    return made


def notes(found: DataFindings, counts: Counts, labels: dict[str, int]) -> list[str]:
    """What is worth knowing, and no fault."""
    made = []
    if counts.truncated:
        made.append(
            f"{_count(len(counts.truncated))} cut at {contract.SEQUENCE_LENGTH} tokens: {_lines(counts.truncated)}"
        )
    if found.repeated:
        other = f", {found.contradicting} of them with another label" if found.contradicting else ""
        made.append(f"{_count(len(found.repeated))} with both texts of an earlier row{other}: {_lines(found.repeated)}")
    if 0 < len(found.empty) <= EMPTY_SHARE * found.rows:
        made.append(f"{_count(len(found.empty))} with an empty sentence: {_lines(found.empty)}")
    low, high = BALANCED
    if found.rows >= ENOUGH_ROWS and not all(low <= count / found.rows <= high for count in labels.values()):
        shares = ", ".join(f"{label} {count / found.rows:.1%}" for label, count in labels.items())
        made.append(f"labels are far from balance: {shares}")
    return made


def _count(number: int, what: str = "row") -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lines(lines: Sequence[int]) -> str:
    shown = ", ".join(map(str, lines[:_SHOWN]))
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"{'line' if len(lines) == 1 else 'lines'} {shown}{more}"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.data.check_data", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="GLUE's dev tsv, 16 columns")
    parser.add_argument("--tokenizer", type=Path, required=True, help="spm.model, or a Hugging Face tokenizer folder")
    parser.add_argument("--config", type=Path, required=True, help="token ids must be below its vocab_size")
    parser.add_argument("--version", required=True, help="match or mismatch, kept in the JSON file")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--limit", help="the first N rows only")
    parser.add_argument("--rows", help="rows that the whole tsv must have")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    most = 2**31 - 1
    limit = contract.parse_integer("--limit", options.limit, 0, 0, most)
    expected = contract.parse_integer("--rows", options.rows, 0, 1, most)
    version = contract.parse_version(options.version)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # a setting of tokenizers: one thread per core in encode_batch
    vocabulary = config.read(options.config).vocab_size
    found = look(options.data, options.tokenizer, version, limit, expected, vocabulary)
    files.write_text(options.output, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    for problem in found["problems"]:
        where = f": {_lines(problem['lines'])}" if problem["lines"] else ""
        print(f"problem: {problem['what']}{where}")
    for note in found["notes"]:
        print(f"note: {note}")
    print(
        f"{found['rows']} rows{' (the first only)' if limit else ''}, {found['tokens']['total']} tokens,"
        f" {found['tokens']['unknown']} of them [UNK]; {_count(len(found['problems']), 'problem')}: {options.output}"
    )
    if options.summary:
        measured = {**found, "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        files.write_text(options.summary, json.dumps(measured, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
