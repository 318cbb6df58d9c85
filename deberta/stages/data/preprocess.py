"""MNLI's tsv to the guide's bins: {input_ids,input_mask}/input_<i>.bin, int32 [batch, 256], C order, little-endian.

Rows keep their order; ids are padded with 0 on the right, the mask is 1 on every token; the last batch is filled with
all-zero rows. The folder appears whole or not at all, and takes the place of an older one: no stale bin survives.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding, Tokenizer

from deberta.core import contract, files, mnli
from deberta.core.errors import ConfigError, DataError, StageError, run_stage
from deberta.core.progress import Progress
from deberta.stages.model import config
from deberta.stages.model import tokenizer as tokenizers_of_guide

_CHUNK_ROWS = 1024  # encoded at a time: enough for the tokenizer's threads, a few MiB of ids

Array = npt.NDArray[np.int32]


class Counts:
    """What the written rows held. Lines are the tsv's, the header line being 1."""

    def __init__(self, length: int) -> None:
        self.lengths = np.zeros(length + 1, np.int64)  # rows by their number of tokens, specials included
        self.truncated: list[int] = []  # lines
        self.duplicates: list[tuple[int, int]] = []  # lines: a pairID's first one, and one that has it again
        self.unknown = 0
        self.labels = [0] * len(contract.LABELS)
        self._first_lines: dict[str, int] = {}  # by pairID

    def add(self, row: int, pair: mnli.Row, encoding: Encoding) -> None:
        """Count row number `row` of the tsv; [UNK] is counted for many rows at once."""
        line, tokens = row + 2, len(encoding.ids)
        self.lengths[tokens] += 1
        self.labels[pair.label] += 1
        if tokens == len(self.lengths) - 1 and encoding.overflowing:
            self.truncated.append(line)
        first = self._first_lines.setdefault(pair.pair_id, line)
        if first != line:
            self.duplicates.append((first, line))

    @property
    def tokens(self) -> int:
        return int(self.lengths @ np.arange(len(self.lengths)))

    def quantile(self, share: float) -> int:
        """The smallest length that at least `share` of the rows do not exceed."""
        below = np.cumsum(self.lengths)
        return int(np.searchsorted(below, share * below[-1]))

    def summary(self) -> dict[str, object]:
        return {
            "truncated_rows": len(self.truncated),
            "duplicate_pair_ids": len(self.duplicates),
            "tokens": self.tokens,
            "unknown_tokens": self.unknown,
            "labels": dict(zip(contract.LABELS, self.labels, strict=True)),
            "length": {"median": self.quantile(0.5), "p90": self.quantile(0.9), "max": self.quantile(1.0)},
        }


def preprocess(
    data: Path,
    tokenizer_path: Path,
    batch_size: int,
    output: Path,
    length: int = contract.SEQUENCE_LENGTH,
    limit: int = 0,
    expected_rows: int = 0,
    vocabulary: int = 0,
) -> dict[str, object]:
    """Write the bins of `data` below `output` and return what was counted.

    `limit`, `expected_rows` (of the whole file) and `vocabulary` (every id must be below it) apply if above 0.
    Raises MissingError, DataError, StageError.
    """
    rows = mnli.count(data)
    if expected_rows:
        mnli.expect_rows(data, rows, expected_rows)
    rows = min(rows, limit) if limit else rows
    batches = contract.batch_count(rows, batch_size)
    tokenizer = tokenizers_of_guide.load(tokenizer_path)
    tokenizers_of_guide.truncate(tokenizer, length)
    counts = Counts(length)
    progress = Progress(f"preprocess {output.name} bs={batch_size}", rows, "rows")
    with files.new_folder(output) as folder:
        for name in contract.INPUTS:
            (folder / name).mkdir()
        index = done = 0
        for ids, mask in chunks(data, tokenizer, batch_size, length, limit, counts):
            check_vocabulary(ids, vocabulary, tokenizer_path, data, done)
            for start in range(0, len(ids), batch_size):
                for name, values in zip(contract.INPUTS, (ids, mask), strict=True):
                    batch = filled(values[start : start + batch_size], batch_size)
                    write_bin(folder / name / contract.input_file(index), batch, output)
                index += 1
            done += len(ids)
            progress.update(done)
        check_count(done, rows)
        check(folder, batches, contract.input_bytes(batch_size, length))
    return {
        "rows": rows,
        "batch_size": batch_size,
        "sequence_length": length,
        "batches": batches,
        "padding_rows": batches * batch_size - rows,
        "limit": limit,
        **counts.summary(),
        **tokenizer_facts(tokenizer_path, tokenizer),
    }


def remarks(summary: Mapping[str, object]) -> str:
    """The line that says what the data themselves are like."""
    return (
        f"{summary['tokens']} tokens, {summary['unknown_tokens']} of them [UNK];"
        f" {summary['duplicate_pair_ids']} rows with the pairID of an earlier row"
    )


def tokenizer_facts(path: Path, tokenizer: Tokenizer) -> dict[str, object]:
    """What a summary says about the tokenizer; prints a note about one that is not quite the guide's."""
    used = tokenizers_of_guide.source(path)
    mapped = tokenizers_of_guide.has_character_map(tokenizer)
    if not mapped and used.name == tokenizers_of_guide.TOKENIZER_FILE:
        print(f"note: {used} has no character map (transformers 5 drops it); ids differ from the guide's in a few rows")
    return {
        "tokenizer_file": used.name,
        "tokenizer_sha256": files.sha256_of(used),
        "tokenizer_vocabulary": tokenizers_of_guide.vocabulary_size(tokenizer),
        "character_map": mapped,
    }


def check_vocabulary(ids: Array, vocabulary: int, tokenizer_path: Path, data: Path, done: int) -> None:
    """Raise DataError for an id that the model has not; `done` rows came before these. A vocabulary of 0: any id."""
    if vocabulary and int(ids.max()) >= vocabulary:
        row = done + int(np.argmax(ids.max(axis=1) >= vocabulary))
        raise DataError(
            f"{tokenizer_path} gives id {int(ids.max())} (first in {data} line {row + 2}),"
            f" but the model's vocabulary has {vocabulary} entries. They do not belong together"
        )


def chunks(
    data: Path, tokenizer: Tokenizer, batch_size: int, length: int, limit: int, counts: Counts
) -> Iterator[tuple[Array, Array]]:
    """Ids and mask, each int32 [rows, length], of whole batches at a time; only the last one may be cut short."""
    size = batch_size * max(1, _CHUNK_ROWS // batch_size)
    unknown = tokenizer.token_to_id("[UNK]")
    stream = mnli.rows(data, limit=limit)
    done = 0
    while chunk := list(itertools.islice(stream, size)):
        encodings: list[Encoding] = tokenizer.encode_batch([(row.premise, row.hypothesis) for row in chunk])
        ids = np.zeros((len(chunk), length), "<i4")
        mask = np.zeros((len(chunk), length), "<i4")
        for row, (pair, encoding) in enumerate(zip(chunk, encodings, strict=True)):
            tokens = encoding.ids
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
            counts.add(done + row, pair, encoding)
        counts.unknown += int(np.count_nonzero(ids == unknown))
        done += len(chunk)
        yield ids, mask


def filled(values: Array, batch_size: int) -> Array:
    """[n, length] to [batch_size, length]: the guide fills the last batch with all-zero rows."""
    if len(values) == batch_size:
        return values
    return np.concatenate([values, np.zeros((batch_size - len(values), values.shape[1]), values.dtype)])


def write_bin(path: Path, values: Array, output: Path) -> None:
    try:
        with open(path, "wb") as file:
            file.write(values.tobytes())
    except OSError as error:  # a failing write does not say where
        raise OSError(error.errno, error.strerror, str(output)) from error


def check_count(done: int, rows: int) -> None:
    if done != rows:
        raise StageError(f"{done} rows were encoded, {rows} were counted: the tsv changed. Run: invoke preprocess")


def check(folder: Path, batches: int, size: int) -> None:
    """Everything that was planned is there, each file with its exact size. Raises StageError."""
    for name in contract.INPUTS:
        with os.scandir(folder / name) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        wrong = [file for file in map(contract.input_file, range(batches)) if sizes.get(file) != size]
        if wrong or len(sizes) != batches:
            raise StageError(f"{name} holds {len(sizes)} files, {len(wrong)} of {batches} missing or not {size} bytes")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.data.preprocess", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="GLUE's dev tsv, 16 columns")
    parser.add_argument("--tokenizer", type=Path, required=True, help="spm.model, or a Hugging Face tokenizer folder")
    parser.add_argument("--bs", required=True, help="rows in a bin")
    parser.add_argument("--output", type=Path, required=True, help="folder to make: <this>/input_ids/input_0.bin ...")
    parser.add_argument("--limit", help="the first N rows only")
    parser.add_argument("--rows", help="rows that the whole tsv must have")
    parser.add_argument("--sequence-length", help="tokens in a row")
    parser.add_argument("--config", type=Path, help="the model's config: token ids must be below its vocab_size")
    parser.add_argument("--summary", type=Path, help="write what was counted to this JSON file")
    options = parser.parse_args(argv)
    most = 2**31 - 1
    batch_size = contract.parse_batch_size(options.bs)
    limit = contract.parse_integer("--limit", options.limit, 0, 0, most)
    expected = contract.parse_integer("--rows", options.rows, 0, 1, most)
    length = contract.parse_integer("--sequence-length", options.sequence_length, contract.SEQUENCE_LENGTH, 4, 65536)
    vocabulary = config.read(options.config).vocab_size if options.config else 0
    if options.output.exists() and not options.output.is_dir():
        raise ConfigError(f"--output {options.output} is a file, expected a folder or nothing there")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # a setting of tokenizers: one thread per core in encode_batch
    summary = preprocess(
        options.data, options.tokenizer, batch_size, options.output, length, limit, expected, vocabulary
    )
    print(
        f"{summary['rows']} rows{' (the first only)' if limit else ''} in {summary['batches']} batches of"
        f" {batch_size} x {length}, {summary['padding_rows']} padding rows, {summary['truncated_rows']} truncated:"
        f" {options.output}\n{remarks(summary)}"
    )
    if options.summary:
        summary["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        files.write_text(options.summary, json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(run_stage(main))
