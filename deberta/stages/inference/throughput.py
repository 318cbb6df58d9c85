"""What length buckets give over the whole data: the timing logs of all lengths, weighted with the rows of each.

    fps = rows / sum over the lengths of (batches of the length * average time of one, without the first)

A length's last batch counts as a whole one, whatever it holds: padding rows cost what real ones do. Like the guide's
fps this is inference alone, no reading or writing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deberta.ascend import timing
from deberta.core import buckets, files
from deberta.core.contract import batch_count, parse_batch_size
from deberta.core.errors import DataError, run_stage


def effective(rows: Mapping[int, int], averages: Mapping[int, float], batch_size: int) -> float:
    """Rows per second; `rows` and `averages` (ms per batch) by length."""
    total = sum(batch_count(count, batch_size) * averages[length] for length, count in rows.items())
    return sum(rows.values()) * 1000 / total


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m deberta.stages.inference.throughput", description=__doc__)
    parser.add_argument("--buckets", required=True, help="the lengths, increasing, with commas between")
    parser.add_argument("--logs", required=True, help="their timing logs, with commas between")
    parser.add_argument("--tokens", required=True, type=Path, help="the JSON file of token_counts")
    parser.add_argument("--bs", required=True, help="rows in a batch")
    parser.add_argument("--output", required=True, type=Path, help="the JSON file to write")
    parser.add_argument("--summary", type=Path, help="write the same to this JSON file")
    options = parser.parse_args(argv)
    batch_size = parse_batch_size(options.bs)
    lengths = buckets.lengths(options.buckets)
    rows = buckets.rows_by_length(buckets.read_histogram(options.tokens), lengths, str(options.tokens))
    if tuple(rows) != lengths:
        raise DataError(f"of the lengths {options.buckets} only {buckets.text(list(rows))} are any row's")
    logs = buckets.folders(lengths, options.logs, "--logs")
    timings = {length: timing.read(log, batch_size) for length, log in logs.items()}
    averages = {length: run.average_ms for length, run in timings.items()}
    content = {
        "batch_size": batch_size,
        "rows": sum(rows.values()),
        "fps": effective(rows, averages, batch_size),
        "buckets": {
            str(length): {
                "rows": count,
                "batches": batch_count(count, batch_size),
                "average_ms": averages[length],
                "fps": batch_size * 1000 / averages[length],
                "loops": len(timings[length].times_ms),
            }
            for length, count in rows.items()
        },
    }
    text = json.dumps(content, indent=2) + "\n"
    files.write_text(options.output, text)
    print(f"{content['fps']:.3f} fps over {content['rows']} rows: {options.output}")
    if options.summary:
        files.write_text(options.summary, text)


if __name__ == "__main__":
    sys.exit(run_stage(main))
