"""How many rows of MNLI's tsv have how many tokens, as a JSON file: what length buckets are chosen by."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deberta.core import contract, files, mnli
from deberta.core.errors import run_stage
from deberta.stages.data import preprocess
from deberta.stages.model import tokenizer as tokenizers_of_guide

_BATCH_SIZE = 1  # rows are only counted


def count(data: Path, tokenizer_path: Path, limit: int = 0, expected_rows: int = 0) -> dict[str, object]:
    """Tokens as `preprocess` would write them, cut at the contract's length. Raises MissingError and DataError."""
    length = contract.SEQUENCE_LENGTH
    if expected_rows:
        mnli.expect_rows(data, mnli.count(data), expected_rows)
    tokenizer = tokenizers_of_guide.load(tokenizer_path)
    tokenizers_of_guide.truncate(tokenizer, length)
    counts = preprocess.Counts(length)
    for _ in preprocess.chunks(data, tokenizer, _BATCH_SIZE, length, limit, counts):
        pass  # counts them
    return {
        "rows": int(counts.lengths.sum()),
        "limit": limit,
        "tokens": {str(tokens): int(counts.lengths[tokens]) for tokens in np.flatnonzero(counts.lengths).tolist()},
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.data.token_counts", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="GLUE's dev tsv, 16 columns")
    parser.add_argument("--tokenizer", type=Path, required=True, help="spm.model, or a Hugging Face tokenizer folder")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--limit", help="the first N rows only")
    parser.add_argument("--rows", help="rows that the whole tsv must have")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    most = 2**31 - 1
    limit = contract.parse_integer("--limit", options.limit, 0, 0, most)
    expected = contract.parse_integer("--rows", options.rows, 0, 1, most)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # a setting of tokenizers: one thread per core in encode_batch
    counted = count(options.data, options.tokenizer, limit, expected)
    files.write_text(options.output, json.dumps(counted, indent=1) + "\n")
    print(f"{counted['rows']} rows counted: {options.output}")
    if options.summary:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        files.write_text(options.summary, json.dumps({"rows": counted["rows"], "peak_rss_bytes": peak}) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
