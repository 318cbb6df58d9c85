"""MNLI's tsv to the guide's bins: {input_ids,input_mask}/input_<i>.bin, int32 [batch, length], C order, little-endian.

Rows are cut at 256 tokens, as the guide does, and nowhere else. Each row goes to the shortest of the lengths that holds
all its tokens; each length has a folder, in which rows keep their order. Ids are padded with 0 on the right, the mask
is 1 on every token; the last batch is filled with all-zero rows. Beside the bins lies order.json (row_order), but not
at the one length 256, which are the guide's files. All folders are complete before the first replaces an older one.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deberta.core import buckets, contract, files
from deberta.core.errors import ConfigError, DataError, run_stage
from deberta.stages import arguments
from deberta.stages.arguments import Argument
from deberta.stages.data import row_order
from deberta.stages.data.encoding import Array, EncodedRows
from deberta.stages.data.row_order import Order
from deberta.stages.model import config


def _write(folder: Path, output: Path, inputs: Array, batch_size: int) -> None:
    """Write ids and mask, int32 [2, rows, length], filled up to whole batches. `output`: the name in messages."""
    rows = inputs.shape[1]
    padded = np.pad(inputs, ((0, 0), (0, -rows % batch_size), (0, 0)))
    for name in contract.INPUTS:
        (folder / name).mkdir()
    for index in range(contract.batch_count(rows, batch_size)):
        for name, values in zip(contract.INPUTS, padded, strict=True):
            try:
                with open(folder / name / contract.input_file(index), "wb") as file:
                    file.write(values[index * batch_size :][:batch_size].tobytes())
            except OSError as error:  # a failing write does not say where
                raise OSError(error.errno, error.strerror, str(output)) from error


def preprocess(encoded: EncodedRows, batch_size: int, outputs: Mapping[int, Path]) -> dict[str, Any]:
    """Write the bins of the rows into the folders of `outputs`, by increasing length, and return what was counted.

    Raises ConfigError for a row longer than the last length, DataError for a length that no row needs.
    """
    lengths = np.array(list(outputs))
    numbers: dict[int, list[int]] = {length: [] for length in outputs}  # rows of the tsv, in the order of the files
    inputs: dict[int, list[Array]] = {length: [] for length in outputs}  # ids and mask of these, [2, rows, length]
    for first, ids, mask in encoded.chunks(f"preprocess bs={batch_size} {buckets.text(list(outputs))}"):
        tokens = mask.sum(axis=1)
        if tokens.max() > lengths[-1]:
            row = first + int(np.argmax(tokens > lengths[-1]))
            raise ConfigError(
                f"{encoded.data} line {row + 2} has {tokens.max()} tokens, and --buckets ends with {lengths[-1]}:"
                f" rows are not cut. Add a last length of {contract.SEQUENCE_LENGTH}"
            )
        bucket_of = np.searchsorted(lengths, tokens)
        for index, length in enumerate(outputs):
            rows = np.flatnonzero(bucket_of == index)
            numbers[length] += (first + rows).tolist()
            inputs[length].append(np.stack([ids[rows, :length], mask[rows, :length]]))
    with contextlib.ExitStack() as folders:
        for length, output in outputs.items():
            if not numbers[length]:
                raise DataError(f"no row of {encoded.data} needs length {length}. Leave it out of --buckets")
            folder = folders.enter_context(files.new_folder(output))
            _write(folder, output, np.concatenate(inputs.pop(length), axis=1), batch_size)
            if row_order.is_needed(list(outputs)):
                starts = range(0, len(numbers[length]), batch_size)
                order = tuple(tuple(numbers[length][start : start + batch_size]) for start in starts)
                row_order.write(folder, Order(encoded.rows, batch_size, length, tuple(outputs), order))
    batches = {length: contract.batch_count(len(rows), batch_size) for length, rows in numbers.items()}
    run_tokens = sum(batch_size * length * count for length, count in batches.items())
    return {
        "rows": encoded.rows,
        "batch_size": batch_size,
        "lengths": {str(length): {"rows": len(rows), "batches": batches[length]} for length, rows in numbers.items()},
        "batches": sum(batches.values()),
        "padding_rows": sum(batches.values()) * batch_size - encoded.rows,
        "run_tokens": run_tokens,
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
