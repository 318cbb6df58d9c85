"""PyTorch's logits of MNLI's tsv in float32 on the CPU: what the compiled models' outputs are compared with.

The checkpoint runs as it is, nothing folded, each row at its own length. The result is float32 [rows, 3] in NumPy's
format, C order: the tsv's rows in order, contradiction, neutral, entailment.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from deberta.core import contract, files
from deberta.core.errors import ConfigError, DataError, run_stage
from deberta.core.machine import effective_cpus
from deberta.core.progress import track
from deberta.stages import arguments
from deberta.stages.data.bins import Ids
from deberta.stages.data.encoding import EncodedRows
from deberta.stages.inference.logits import Logits, finite_rows
from deberta.stages.model import checkpoint, config
from deberta.stages.model.deberta import Deberta

# Of a batch. Every batch makes the position tables anew, at full size the work of some 85 tokens, so batches are not
# tiny; more tokens are no faster and only take memory.
BATCH_TOKENS = 2048


def read_ids(encoded: EncodedRows) -> tuple[list[Ids], dict[str, object]]:
    """Each row's ids, int32 [its tokens], as `preprocess` writes them without the padding, and what was counted."""
    rows = encoded.all_ids(f"tokens of {encoded.data.name}")
    return rows, {"truncated_rows": len(encoded.counts.truncated), **encoded.tokenizer_facts()}


def plan(lengths: Sequence[int], batch_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Row numbers by batch: rows of one length only, so that there is no padding; at most `batch_tokens` tokens, or
    one row. The longest come first: what does not fit into memory shows at once."""
    ordered = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches = []
    for length, rows in itertools.groupby(ordered, key=lambda row: lengths[row]):
        same, size = list(rows), max(1, batch_tokens // length)
        batches += [same[first : first + size] for first in range(0, len(same), size)]
    return batches


def run(model: Deberta, rows: Sequence[Ids], name: str, data: Path, batch_tokens: int = BATCH_TOKENS) -> Logits:
    """The logits of all rows, float32 [rows, labels], in their order. `name` and `data` are for messages.

    Raises DataError as soon as a logit is NaN or infinite.
    """
    logits = np.empty((len(rows), model.classifier.out_features), np.float32)
    batches = plan([len(ids) for ids in rows], batch_tokens)
    with torch.inference_mode():
        for batch in track(batches, name, "tokens", lambda batch: sum(len(rows[row]) for row in batch)):
            ids = torch.from_numpy(np.stack([rows[row] for row in batch]))
            values: Logits = model(ids, torch.ones_like(ids)).numpy()
            finite = finite_rows(values)
            if not finite.all():
                row = batch[int(np.argmin(finite))]
                where = f"row {row} ({data.name} line {row + 2}) in float32"
                advice = "the checkpoint is damaged, or not of its config. Move it away and run: invoke fetch"
                raise DataError(f"PyTorch gives NaN or infinite logits for {where}: {advice}")
            logits[batch] = values
    return logits


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(argv, __doc__, "checkpoint config labels data tokenizer output limit rows summary")
    threads = effective_cpus()
    torch.set_num_threads(threads)
    model_config = config.read(options.config)
    if model_config.max_position_embeddings < contract.SEQUENCE_LENGTH:
        positions = f"max_position_embeddings is {model_config.max_position_embeddings}"
        raise ConfigError(f"{options.config}: {positions}, and rows have up to {contract.SEQUENCE_LENGTH} tokens")
    rows, facts = read_ids(
        EncodedRows(options.data, options.tokenizer, options.limit, options.rows, model_config.vocab_size)
    )
    print(f"loading {options.checkpoint}", flush=True)
    loaded = checkpoint.load(options.checkpoint, model_config, options.labels)
    print(*loaded.notes, sep="\n", end="\n" if loaded.notes else "", flush=True)
    tokens = sum(map(len, rows))
    print(f"{len(rows)} rows, {tokens} tokens, on {threads} threads", flush=True)
    with files.new_file(options.output) as temporary:
        started = time.monotonic()
        logits = run(loaded.model, rows, f"reference {options.data.name}", options.data)
        seconds = time.monotonic() - started
        with open(temporary, "wb") as file:  # numpy adds .npy to a name
            np.save(file, logits, allow_pickle=False)
    print(f"{len(rows)} rows{' (the first only)' if options.limit else ''} in {seconds:.1f} s: {options.output}")
    summary = {
        "rows": len(rows),
        "limit": options.limit,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "torch": torch.__version__,
        "threads": threads,
        "labels": contract.LABELS,
        "checkpoint_labels": loaded.labels,
        **facts,
    }
    arguments.write_summary(options.summary, summary)


if __name__ == "__main__":
    sys.exit(run_stage(main))
