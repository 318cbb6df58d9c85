"""bench: one engine in a process of its own, told what to do by lines of JSON.

The first line is the job. Answers are lines on what was standard output; whatever libraries print goes to standard
error. "pass" runs all batches once and answers with the seconds and the logits; "end", or no more lines, ends it.
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

from benchmarks import rows
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
        ids, mask = rows.make(job.lengths, job.vocabulary)
        prepared = [loaded.prepare(batch, ids, mask) for batch in job.batches]
        tokens = sum(len(batch.rows) * batch.length for batch in job.batches)
        answer(load_s=seconds, batches=len(job.batches), tokens=tokens)
        for line in requests:
            if line.strip() == "end":
                answer(peak_rss_bytes=peak_rss(), **loaded.facts())
                return
            spent, logits = one_pass(job, loaded, prepared)
            answer(seconds=spent, logits=logits)
    except Exception as error:  # any engine may fail in any way: it is reported as not measured, with this
        said = str(error).strip().splitlines() or [""]
        answer(error=f"{type(error).__name__}: {said[0]}")
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
    """The most memory this program has had, in bytes. (getrusage would count its parent's, from before the exec.)"""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        return None  # not Linux
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    kept = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, kept)
