"""MNLI's tsv to bins of several lengths: each row goes to the shortest length that holds all its tokens.

One folder per length, laid out as the guide's, int32 [batch, length], with an order.json (order.py). Rows keep their
order within a length; its last batch is filled with all-zero rows. Rows are cut at 256 tokens, as the guide does, and
nowhere else. All folders are written before the first takes the place of an older one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deberta.core import buckets, contract, files, mnli
from deberta.core.errors import ConfigError, DataError, run_stage
from deberta.core.progress import Progress
from deberta.stages.data import preprocess, row_order
from deberta.stages.data.preprocess import Array
from deberta.stages.data.row_order import Order
from deberta.stages.model import config
from deberta.stages.model import tokenizer as tokenizers_of_guide


class _Bucket:
    """One length's folder while it is filled: rows wait until they are a batch."""

    def __init__(self, folder: Path, output: Path, batch_size: int, length: int) -> None:
        self.folder, self.output, self.batch_size, self.length = folder, output, batch_size, length
        self.order: list[list[int]] = []
        self._waiting: list[tuple[int, Array, Array]] = []  # tsv row, ids, mask
        for name in contract.INPUTS:
            (folder / name).mkdir()

    def add(self, row: int, ids: Array, mask: Array) -> None:
        self._waiting.append((row, ids[: self.length], mask[: self.length]))
        if len(self._waiting) == self.batch_size:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        rows, *inputs = zip(*self._waiting, strict=True)
        for name, values in zip(contract.INPUTS, inputs, strict=True):
            batch = preprocess.filled(np.stack(values), self.batch_size)
            preprocess.write_bin(self.folder / name / contract.input_file(len(self.order)), batch, self.output)
        self.order.append(list(rows))
        self._waiting.clear()

    @property
    def rows(self) -> int:
        return sum(map(len, self.order))


def run(
    data: Path,
    tokenizer_path: Path,
    batch_size: int,
    outputs: Mapping[int, Path],
    limit: int = 0,
    expected_rows: int = 0,
    vocabulary: int = 0,
) -> dict[str, object]:
    """Write the bins of `data` into the folders of `outputs`, by length, and return what was counted.

    The other arguments are `preprocess`'s. Raises MissingError; ConfigError for a row longer than the last length;
    DataError, also for a length that no row needs.
    """
    rows = mnli.count(data)
    if expected_rows:
        mnli.expect_rows(data, rows, expected_rows)
    rows = min(rows, limit) if limit else rows
    tokenizer = tokenizers_of_guide.load(tokenizer_path)
    tokenizers_of_guide.truncate(tokenizer, contract.SEQUENCE_LENGTH)
    counts = preprocess.Counts(contract.SEQUENCE_LENGTH)
    lengths = np.array(list(outputs))
    progress = Progress(f"preprocess bs={batch_size} {buckets.text(list(outputs))}", rows, "rows")
    with contextlib.ExitStack() as folders:
        parts = [
            _Bucket(folders.enter_context(files.new_folder(output)), output, batch_size, length)
            for length, output in outputs.items()
        ]
        done = 0
        for ids, mask in preprocess.chunks(data, tokenizer, batch_size, contract.SEQUENCE_LENGTH, limit, counts):
            preprocess.check_vocabulary(ids, vocabulary, tokenizer_path, data, done)
            tokens = mask.sum(axis=1)
            if tokens.max() > lengths[-1]:
                row = done + int(np.argmax(tokens > lengths[-1]))
                raise ConfigError(
                    f"{data} line {row + 2} has {tokens.max()} tokens, and --buckets ends with {lengths[-1]}: rows are "
                    f"not cut. Add a last length of {contract.SEQUENCE_LENGTH}"
                )
            for index, place in enumerate(np.searchsorted(lengths, tokens).tolist()):
                parts[place].add(done + index, ids[index], mask[index])
            done += len(ids)
            progress.update(done)
        for part in parts:
            part.flush()
            if not part.rows:
                raise DataError(f"no row of {data} needs length {part.length}. Leave it out of --buckets")
            size = contract.input_bytes(batch_size, part.length)
            preprocess.check(part.folder, len(part.order), size)
            row_order.write(
                part.folder, Order(rows, batch_size, part.length, tuple(outputs), tuple(map(tuple, part.order)))
            )
        preprocess.check_count(done, rows)
    return {
        "rows": rows,
        "batch_size": batch_size,
        "buckets": {str(part.length): {"rows": part.rows, "batches": len(part.order)} for part in parts},
        "batches": sum(len(part.order) for part in parts),
        "padding_rows": sum(len(part.order) * batch_size - part.rows for part in parts),
        "run_tokens": sum(len(part.order) * batch_size * part.length for part in parts),
        "limit": limit,
        **counts.summary(),
        **preprocess.tokenizer_facts(tokenizer_path, tokenizer),
    }


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.data.preprocess_buckets", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="GLUE's dev tsv, 16 columns")
    parser.add_argument("--tokenizer", type=Path, required=True, help="spm.model, or a Hugging Face tokenizer folder")
    parser.add_argument("--bs", required=True, help="rows in a bin")
    parser.add_argument("--buckets", required=True, help="the lengths, increasing, with commas between")
    parser.add_argument("--output", required=True, help="folders to make, one for each length, with commas between")
    parser.add_argument("--limit", help="the first N rows only")
    parser.add_argument("--rows", help="rows that the whole tsv must have")
    parser.add_argument("--config", type=Path, help="the model's config: token ids must be below its vocab_size")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    most = 2**31 - 1
    batch_size = contract.parse_batch_size(options.bs)
    limit = contract.parse_integer("--limit", options.limit, 0, 0, most)
    expected = contract.parse_integer("--rows", options.rows, 0, 1, most)
    outputs = buckets.folders(buckets.lengths(options.buckets), options.output, "--output")
    vocabulary = config.read(options.config).vocab_size if options.config else 0
    for output in outputs.values():
        if output.exists() and not output.is_dir():
            raise ConfigError(f"--output {output} is a file, expected a folder or nothing there")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # a setting of tokenizers: one thread per core in encode_batch
    summary = run(options.data, options.tokenizer, batch_size, outputs, limit, expected, vocabulary)
    print(
        f"{summary['rows']} rows{' (the first only)' if limit else ''} in {summary['batches']} batches of {batch_size}"
        f" at lengths {buckets.text(list(outputs))}: {summary['run_tokens']} tokens to run, {summary['tokens']} of them"
        f" the rows' own, {summary['truncated_rows']} rows truncated\n{preprocess.remarks(summary)}"
    )
    if options.summary:
        summary["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        files.write_text(options.summary, json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
