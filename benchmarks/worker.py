"""bench: one engine in a process of its own, controlled by lines on standard input.

The first line is the job, as JSON. Answers are lines of JSON on standard output; what libraries print goes to standard
error. "pass" runs all batches once and answers with the seconds and the logits; "end", or the end of input, ends it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks import batching
from benchmarks.engines import ENGINES, BenchJob, LoadedEngine


def serve(requests: IO[str], answers: IO[str]) -> None:
    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    job = BenchJob(**json.loads(requests.readline()))
    try:
        started = time.perf_counter()
        loaded = ENGINES[job.engine].load(job)
        seconds = time.perf_counter() - started
        ids, mask = batching.make(job.lengths, job.vocabulary)
        prepared = [loaded.prepare(batch, ids, mask) for batch in job.batches]
        tokens = sum(len(batch.rows) * batch.length for batch in job.batches)
        answer(load_s=seconds, batches=len(job.batches), tokens=tokens)
        for line in requests:
            if line.strip() == "end":
                answer(peak_rss_bytes=peak_rss(), **loaded.facts())
                return
            spent, logits = one_pass(job, loaded, prepared)
            answer(seconds=spent, logits=logits)
    except Exception as error:  # whatever an engine raises is reported as the reason why it was not measured
        lines = str(error).strip().splitlines() or [""]
        answer(error=f"{type(error).__name__}: {lines[0]}")
        raise


def one_pass(job: BenchJob, loaded: LoadedEngine, prepared: list[Any]) -> tuple[float, list[list[float]] | None]:
    """All batches, one after the other: the seconds of the runs alone, and each row's logits in the sample's order."""
    seconds, outputs = 0.0, []
    for values in prepared:
        started = time.perf_counter()
        outputs.append(loaded.run(values))
        seconds += time.perf_counter() - started
    if not ENGINES[job.engine].exact:
        return seconds, None
    logits = np.full((len(job.lengths), outputs[0].shape[1]), np.nan)
    for batch, output in zip(job.batches, outputs, strict=True):
        logits[list(batch.rows)] = output[: len(batch.rows)]
    return seconds, logits.tolist()


def peak_rss() -> int | None:
    """The peak memory of this program, in bytes. (getrusage would include its parent's, from before the exec.)"""
    try:
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None  # not Linux
    return int(peak[1]) * 1024 if peak else None


if __name__ == "__main__":
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, kept)
