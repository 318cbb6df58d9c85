"""What length buckets give over the whole data: the timing logs of all lengths, weighted with the rows of each.

    fps = rows / sum over the lengths of (batches of the length * average time of one, without the first)

A length's last batch counts as a whole one, whatever it holds: padding rows cost what real ones do. Like the guide's
fps this is inference alone, no reading or writing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from deberta.ascend import timing
from deberta.core import buckets, files
from deberta.core.contract import batch_count
from deberta.core.errors import DataError, run_stage
from deberta.stages import arguments
from deberta.stages.arguments import Argument, file


def effective(rows: Mapping[int, int], averages: Mapping[int, float], batch_size: int) -> float:
    """Rows per second; `rows` and `averages` (ms per batch) by length."""
    total = sum(batch_count(count, batch_size) * averages[length] for length, count in rows.items())
    return sum(rows.values()) * 1000 / total


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "bs lengths output summary",
        logs=Argument("timing logs, one for each length, commas between", required=True),
        tokens=file("the JSON file of token_counts"),
    )
    batch_size, lengths = options.bs, options.lengths
    rows = buckets.rows_by_length(buckets.read_histogram(options.tokens), lengths, str(options.tokens))
    if tuple(rows) != lengths:
        raise DataError(f"of the lengths {buckets.text(lengths)} only {buckets.text(list(rows))} are any row's")
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
    files.write_text(options.output, json.dumps(content, indent=2) + "\n")
    print(f"{content['fps']:.3f} fps over {content['rows']} rows: {options.output}")
    arguments.write_summary(options.summary, content)


if __name__ == "__main__":
    sys.exit(run_stage(main))
