"""The rows of MNLI's tsv as token ids, with counts of what they hold: for every stage that reads text."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from deberta.core import contract, files, mnli
from deberta.core.errors import DataError, StageError
from deberta.core.progress import Progress
from deberta.stages.model import tokenizer as tokenizers_of_guide

_CHUNK_ROWS = 1024  # encoded at a time: enough for the tokenizer's threads, a few MiB of ids

Array = npt.NDArray[np.int32]


class Counts:
    """What the encoded rows hold. Lines are the tsv's, the header line being 1."""

    def __init__(self, max_length: int) -> None:
        self.lengths = np.zeros(max_length + 1, np.int64)  # rows by number of tokens, specials included
        self.truncated: list[int] = []  # lines
        self.duplicates: list[tuple[int, int]] = []  # lines: a pairID's first one, and one that has it again
        self.unknown = 0  # [UNK] tokens
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


class EncodedRows:
    """The rows of a tsv through a tokenizer, cut at `max_length`. `chunks` encodes them and fills `counts`.

    `limit`, `expected_rows` (of the whole file) and `vocabulary` (every id must be below it) apply if above 0.
    Raises MissingError and DataError for a bad tsv or tokenizer, or another number of rows.
    """

    def __init__(
        self,
        data: Path,
        tokenizer: Path,
        limit: int = 0,
        expected_rows: int = 0,
        vocabulary: int = 0,
        columns: int = mnli.DEV_COLUMNS,
        max_length: int = contract.SEQUENCE_LENGTH,
    ) -> None:
        self.data, self.limit, self.vocabulary, self.columns = data, limit, vocabulary, columns
        rows = mnli.count(data, columns)
        if expected_rows:
            mnli.expect_rows(data, rows, expected_rows)
        self.rows = min(rows, limit) if limit else rows
        os.environ["TOKENIZERS_PARALLELISM"] = "true"  # a setting of tokenizers: one thread per core in encode_batch
        self.tokenizer_path, self.tokenizer = tokenizer, tokenizers_of_guide.load(tokenizer, max_length)
        self.longest = tokenizers_of_guide.longest_row(self.tokenizer)
        self.unknown_id = self.tokenizer.token_to_id("[UNK]")
        self.counts, self.max_length = Counts(max_length), max_length

    def chunks(self, title: str) -> Iterator[tuple[int, Array, Array]]:
        """The number of the first row, then ids and mask, each int32 [rows, max_length], of many rows at a time.

        `title` names the progress. Raises DataError for an id that the model has not, StageError if the tsv changes.
        """
        progress = Progress(title, self.rows, "rows")
        stream = mnli.rows(self.data, self.columns, self.limit)
        done = 0
        while chunk := list(itertools.islice(stream, _CHUNK_ROWS)):
            for row, pair in enumerate(chunk, done + 2):
                tokenizers_of_guide.check_row(pair.premise, pair.hypothesis, self.longest, f"{self.data} line {row}")
            encodings: list[Encoding] = self.tokenizer.encode_batch([(row.premise, row.hypothesis) for row in chunk])
            ids = np.zeros((len(chunk), self.max_length), "<i4")
            mask = np.zeros_like(ids)
            for row, (pair, encoding) in enumerate(zip(chunk, encodings, strict=True)):
                tokens = encoding.ids
                ids[row, : len(tokens)] = tokens
                mask[row, : len(tokens)] = 1
                self.counts.add(done + row, pair, encoding)
            self.counts.unknown += int(np.count_nonzero(ids == self.unknown_id))
            largest = int(ids.max())
            if self.vocabulary and largest >= self.vocabulary:
                row = done + int(np.argmax(ids.max(axis=1) >= self.vocabulary))
                raise DataError(
                    f"{self.tokenizer_path} gives id {largest} (first in {self.data} line {row + 2}),"
                    f" but the model's vocabulary has {self.vocabulary} entries. They do not belong together"
                )
            yield done, ids, mask
            done += len(chunk)
            progress.update(done)
        if done != self.rows:
            raise StageError(f"{self.data} changed: {done} rows, {self.rows} before. Run: invoke preprocess")

    def all_ids(self, title: str) -> list[Array]:
        """Each row's ids, int32 [its tokens]. Raises as `chunks` does."""
        rows: list[Array] = []
        for _, ids, mask in self.chunks(title):
            rows += [row[:tokens].copy() for row, tokens in zip(ids, mask.sum(axis=1).tolist(), strict=True)]
        return rows

    def tokenizer_facts(self) -> dict[str, object]:
        """What a summary says about the tokenizer; prints a note about one that is not quite the guide's."""
        file = tokenizers_of_guide.source(self.tokenizer_path)
        mapped = tokenizers_of_guide.has_character_map(self.tokenizer)
        if not mapped and file.name == tokenizers_of_guide.TOKENIZER_FILE:
            lacking = "no character map (transformers 5 drops it)"
            print(f"note: {file} has {lacking}; ids differ from the guide's in a few rows")
        return {
            "tokenizer_file": file.name,
            "tokenizer_sha256": files.sha256_of(file),
            "tokenizer_vocabulary": tokenizers_of_guide.vocabulary_size(self.tokenizer),
            "character_map": mapped,
        }
