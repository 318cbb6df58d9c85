"""MNLI's tsv to the guide's bins: {input_ids,input_mask}/input_<i>.bin, int32 [batch, length], C order, little-endian.

Rows are cut at 256 tokens, as the guide does, and nowhere else. Each row goes to the shortest of the lengths that holds
all its tokens; each length has a folder, in which rows keep their order. Ids are padded with 0 on the right, the mask
is 1 on every token; the last batch is filled with all-zero rows. Beside the bins lies order.json (row_order), but not
at the one length 256, which are the guide's files. All folders are complete before the first replaces an older one.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deberta.core import buckets, contract, files
from deberta.core.errors import ConfigError, DataError, StageError, run_stage
from deberta.stages import arguments
from deberta.stages.arguments import Argument
from deberta.stages.data import row_order
from deberta.stages.data.encoding import Array, EncodedRows
from deberta.stages.data.row_order import Order
from deberta.stages.model import config


class _LengthBins:
    """One length's folder while it is filled: rows wait until they are a batch. `output` is its name in messages."""

    def __init__(self, folder: Path, output: Path, batch_size: int, length: int) -> None:
        self.folder, self.output, self.batch_size, self.length = folder, output, batch_size, length
        self.rows: list[int] = []  # of the tsv, in the order of the files
        self._files = 0
        self._waiting: list[Array] = [np.zeros((0, length), "<i4") for _ in contract.INPUTS]
        for name in contract.INPUTS:
            (folder / name).mkdir()

    @property
    def batches(self) -> int:
        return contract.batch_count(len(self.rows), self.batch_size)

    @property
    def order(self) -> tuple[tuple[int, ...], ...]:
        """The tsv rows of each file."""
        return tuple(
            tuple(self.rows[start : start + self.batch_size]) for start in range(0, len(self.rows), self.batch_size)
        )

    def add(self, rows: Sequence[int], inputs: Sequence[Array]) -> None:
        """Take tsv rows with their ids and mask, each [rows, at least the length]."""
        self.rows += rows
        self._waiting = [
            np.concatenate([waiting, values[:, : self.length]])
            for waiting, values in zip(self._waiting, inputs, strict=True)
        ]
        self._write(len(self.rows) // self.batch_size)

    def finish(self) -> None:
        """Write the last rows, filled up to a batch, and check all files. Raises StageError."""
        fill = -len(self.rows) % self.batch_size
        self._waiting = [np.pad(values, ((0, fill), (0, 0))) for values in self._waiting]
        self._write(self.batches)
        size = contract.input_bytes(self.batch_size, self.length)
        expected = dict.fromkeys(map(contract.input_file, range(self.batches)), size)
        for name in contract.INPUTS:
            with os.scandir(self.folder / name) as entries:
                sizes = {entry.name: entry.stat().st_size for entry in entries}
            if sizes != expected:
                wrong = sum(sizes.get(file) != size for file in expected)
                raise StageError(
                    f"{name} holds {len(sizes)} files, {wrong} of {len(expected)} missing or not {size} bytes"
                )

    def _write(self, batches: int) -> None:
        """Write waiting rows until there are this many files of each input."""
        written = (batches - self._files) * self.batch_size
        for start in range(0, written, self.batch_size):
            for name, values in zip(contract.INPUTS, self._waiting, strict=True):
                try:
                    with open(f"{self.folder}/{name}/{contract.input_file(self._files)}", "wb") as file:
                        file.write(values[start : start + self.batch_size].tobytes())
                except OSError as error:  # a failing write does not say where
                    raise OSError(error.errno, error.strerror, str(self.output)) from error
            self._files += 1
        self._waiting = [values[written:] for values in self._waiting]


def preprocess(encoded: EncodedRows, batch_size: int, outputs: Mapping[int, Path]) -> dict[str, Any]:
    """Write the bins of the rows into the folders of `outputs`, by increasing length, and return what was counted.

    Raises ConfigError for a row longer than the last length, DataError for a length that no row needs, StageError.
    """
    lengths = np.array(list(outputs))
    with contextlib.ExitStack() as folders:
        bins = [
            _LengthBins(folders.enter_context(files.new_folder(output)), output, batch_size, length)
            for length, output in outputs.items()
        ]
        for first, ids, mask in encoded.chunks(f"preprocess bs={batch_size} {buckets.text(list(outputs))}"):
            tokens = mask.sum(axis=1)
            if tokens.max() > lengths[-1]:
                row = first + int(np.argmax(tokens > lengths[-1]))
                raise ConfigError(
                    f"{encoded.data} line {row + 2} has {tokens.max()} tokens, and --buckets ends with {lengths[-1]}:"
                    f" rows are not cut. Add a last length of {contract.SEQUENCE_LENGTH}"
                )
            bucket_of = np.searchsorted(lengths, tokens)
            for index, part in enumerate(bins):
                rows = np.flatnonzero(bucket_of == index)
                part.add((first + rows).tolist(), (ids[rows], mask[rows]))
        for part in bins:
            part.finish()
            if not part.rows:
                raise DataError(f"no row of {encoded.data} needs length {part.length}. Leave it out of --buckets")
            if row_order.is_needed(list(outputs)):
                row_order.write(part.folder, Order(encoded.rows, batch_size, part.length, tuple(outputs), part.order))
    batches = sum(part.batches for part in bins)
    return {
        "rows": encoded.rows,
        "batch_size": batch_size,
        "lengths": {str(part.length): {"rows": len(part.rows), "batches": part.batches} for part in bins},
        "batches": batches,
        "padding_rows": batches * batch_size - encoded.rows,
        "run_tokens": sum(part.batches * batch_size * part.length for part in bins),
        "limit": encoded.limit,
        **encoded.counts.summary(),
        **encoded.tokenizer_facts(),
    }


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "data tokenizer bs lengths limit rows summary",
        optional=("config",),
        output=Argument("folders to write, one for each length, commas between", required=True),
    )
    outputs = buckets.folders(options.lengths, options.output, "--output")
    for output in outputs.values():
        if output.exists() and not output.is_dir():
            raise ConfigError(f"--output {output} is a file, expected a folder or nothing there")
    vocabulary = config.read(options.config).vocab_size if options.config else 0
    encoded = EncodedRows(options.data, options.tokenizer, options.limit, options.rows, vocabulary)
    summary = preprocess(encoded, options.bs, outputs)
    print(
        f"{summary['rows']} rows{' (the first only)' if options.limit else ''} in {summary['batches']} batches of"
        f" {options.bs} at lengths {buckets.text(options.lengths)}, {summary['padding_rows']} padding rows,"
        f" {summary['truncated_rows']} rows truncated: {options.output}\n"
        f"{summary['run_tokens']} tokens to run for the rows' {summary['tokens']}, {summary['unknown_tokens']} of them"
        f" [UNK]; {summary['duplicate_pair_ids']} rows with the pairID of an earlier row"
    )
    arguments.write_summary(options.summary, summary)


if __name__ == "__main__":
    sys.exit(run_stage(main))
