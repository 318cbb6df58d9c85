"""msame's twin for the cpu backend: the same inputs, output files and timing lines, on a CPU through OpenVINO.

Directory mode (`--input a/,b/`): file x of every directory is one batch; outputs are `<x without .bin>_output_0.bin`.
File mode (`--input a/x.bin,b/x.bin`): the one batch runs `--loop` times; the output is `<model's stem>_output_0.bin`.
Outputs land in `OUT/<T>/`, where T is the local time in msame's form; a run that fails leaves no such folder.

With `--lengths`, one process runs several lengths of one model: `--input` and `--output` are given once for each, in
the same order, and each length prints a complete log of msame's, the longest first. No folder of outputs gets its name
before all are complete.

Where msame goes on or exits 0 after a mistake, this runner stops with an error before anything runs. Nothing is run
to warm up, so that "average without first time" means what it means in msame.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import functools
import itertools
import os
import queue
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deberta.core import files
from deberta.core.contract import INPUTS, PERFORMANCE_LOOPS, input_bytes, run_folder
from deberta.core.errors import ConfigError, DataError, MissingError, run_stage, some
from deberta.core.machine import effective_cpus
from deberta.core.progress import Progress
from deberta.stages import arguments
from deberta.stages.arguments import SHARED, Argument, whole
from deberta.stages.data import bins
from deberta.stages.inference.openvino_engine import OpenVinoEngine, engine_facts, load_model, release_pages, set_input

if TYPE_CHECKING:
    import openvino as ov

AT_ONCE = 4  # inference requests, at most
TOKENS_AT_ONCE = 16_384  # of all requests: each has memory of its own for its activations


@dataclass(frozen=True)
class RunRequest:
    """What to run at one length, and the parent of `<T>`. Each batch runs `loops` times.

    `batches` has by the name that a batch's output starts with its files, one for each of contract.INPUTS.
    `by_directory` decides how msame prints the averages. `output` is printed as the user wrote it.
    """

    batches: dict[str, tuple[str, ...]]
    loops: int
    by_directory: bool
    output: str


Interval = tuple[float, float]  # of one inference: start and end, seconds


@dataclass(frozen=True)
class Batch:
    """One batch of a request: the name that its output starts with, its files, and where the output goes."""

    stem: str
    inputs: tuple[str, ...]
    loops: int
    engine: OpenVinoEngine
    folder: Path

    def read(self) -> list[np.ndarray]:
        """Its inputs, int32 [batch, length] each. Raises DataError."""
        shape, vocabulary = self.engine.shape, self.engine.vocabulary
        return [bins.read(Path(file), name, shape, vocabulary) for name, file in zip(INPUTS, self.inputs, strict=True)]

    def infer(self, infer_request: ov.InferRequest, inputs: Sequence[np.ndarray]) -> Iterator[Interval]:
        """When each loop was in the model."""
        for name, values in zip(INPUTS, inputs, strict=True):
            set_input(infer_request, name, values)
        for _ in range(self.loops):
            started = time.perf_counter()
            infer_request.infer(share_outputs=True)
            yield started, time.perf_counter()

    def logits(self, infer_request: ov.InferRequest) -> np.ndarray:
        """A copy of the last inference's, float32 [batch, 3]."""
        return np.array(infer_request.get_output_tensor(0).data, "<f4")

    def write(self, logits: np.ndarray) -> None:
        (self.folder / f"{self.stem}_output_0.bin").write_bytes(logits.tobytes())


def plan(elements: Sequence[str], output: str, loops: int, model: Path) -> RunRequest:
    """Turn `--input`'s elements into batches. Raises ConfigError, MissingError and DataError; reads no file."""
    if len(elements) != len(INPUTS) or not all(elements):
        raise ConfigError(
            f"--input {','.join(elements)!r} must be {len(INPUTS)} directories or files: {', '.join(INPUTS)}"
        )
    for element in elements:
        if not os.path.exists(element):
            raise MissingError(f"the input {element} is missing. Run: invoke preprocess")
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {output} is not a folder")
    if not folder.parent.is_dir():  # like msame, one level is made when it is absent, and no more
        raise MissingError(f"the folder {folder.parent} of --output is missing. Run: mkdir -p {folder.parent}")
    directories = [os.path.isdir(element) for element in elements]
    if not any(directories):
        return RunRequest({model.stem: tuple(elements)}, loops, by_directory=False, output=output)
    if not all(directories):
        raise ConfigError(f"--input {','.join(elements)!r} mixes directories and files")
    names = _bins_in(elements[0])
    for element in elements[1:]:
        if different := sorted(set(names) ^ set(_bins_in(element))):
            only = f"only one has {some(different)}. {bins.AGAIN}"
            raise DataError(f"{elements[0]} and {element} must hold files of the same names; {only}")
    batches = {name[: -len(".bin")]: tuple(f"{folder}/{name}" for folder in elements) for name in names}
    return RunRequest(batches, loops=1, by_directory=True, output=output)


def _bins_in(folder: str) -> list[str]:
    """The names in a folder in msame's order (plain string order), which makes the logs comparable line by line."""
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no file. Run: invoke preprocess --force")
    if strange := [name for name in names if not name.endswith(".bin") or not os.path.isfile(f"{folder}/{name}")]:
        raise DataError(f"{folder} holds something else than .bin files: {some(strange)}. {bins.AGAIN}")
    return names


def _check_sizes(request: RunRequest, expected: int, model: Path) -> None:
    """Every file must hold exactly one input of the model: `expected` bytes. Raises DataError naming the wrong ones."""
    wrong = [
        f"{file} ({size} bytes)"
        for batch in request.batches.values()
        for file in batch
        if (size := os.path.getsize(file)) != expected
    ]
    if wrong:
        reason = "The bins are of another batch size, length or type"
        raise DataError(f"{model} takes {expected} bytes per file, not {some(wrong)}. {reason}. {bins.AGAIN}")


def run(
    requests: Sequence[RunRequest], engines: Sequence[OpenVinoEngine], model: Path, at_once: int = 1
) -> list[list[Interval]]:
    """Run all requests, the first of which comes last, print their logs and return when each was in the model.

    `engines` are of the requests' lengths, which increase: what the longest takes in memory serves all others, where
    growing from length to length would leave holes behind. `at_once`: so many batches of folders are inferred at the
    same time. The lines come in the batches' order.
    """
    progress = Progress("infer", sum(len(request.batches) for request in requests), "batches")
    # On a terminal msame's own lines show how far the run is, and a line that rewrites itself would garble them.
    shows_progress = requests[0].by_directory and not sys.stdout.isatty()
    time_folder, done = run_folder(datetime.now()), 0
    all_intervals: list[list[Interval]] = []
    longest_first = list(reversed(list(zip(requests, engines, strict=True))))
    with contextlib.ExitStack() as stack:
        folders = [
            stack.enter_context(files.new_folder(Path(request.output, time_folder))) for request, _ in longest_first
        ]
        batches = [
            Batch(stem, inputs, request.loops, engine, folder)
            for (request, engine), folder in zip(longest_first, folders, strict=True)
            for stem, inputs in request.batches.items()
        ]
        results: Iterator[Iterable[Interval]]
        if requests[0].by_directory:
            results = stack.enter_context(_at_once(batches, engines[0], at_once))
        else:
            results = map(functools.partial(_looped, engines[0].compiled.create_infer_request()), batches)
        for request, engine in longest_first:
            print(f"[INFO] load model {model} success\n{request.output}/{time_folder}", flush=True)
            intervals: list[Interval] = []
            for inputs in request.batches.values():
                for file in inputs:
                    print(f"[INFO] start to process file:{file}")
                for interval in next(results):
                    intervals.append(interval)
                    print("[INFO] model execute success")
                    print(f"Inference time: {_ms([interval])[0]:g}ms", flush=True)  # %g is a C++ stream's default
                    if len(intervals) == 1:  # this length may have packed matrices in another form
                        release_pages(model.with_suffix(".bin"))
                print("[INFO] output data success", flush=True)
                done += 1
                if shows_progress:
                    progress.update(done, f"length {engine.shape[1]}")
            _print_averages(_ms(intervals), request.by_directory)
            print(f"[INFO] pid: {os.getpid()} Execute sample success", flush=True)
            all_intervals.insert(0, intervals)
    return all_intervals


def _ms(intervals: Sequence[Interval]) -> list[float]:
    return [(ended - started) * 1000 for started, ended in intervals]


def _busy_ms(intervals: Sequence[Interval]) -> float:
    """How long the model ran: intervals that overlap count once."""
    total, until = 0.0, 0.0
    for started, ended in sorted(intervals):
        total += max(0.0, ended - max(started, until))
        until = max(until, ended)
    return total * 1000


@contextlib.contextmanager
def _at_once(batches: Sequence[Batch], engine: OpenVinoEngine, count: int) -> Iterator[Iterator[Iterable[Interval]]]:
    """Yield when each batch was in the model, in order, while `count` others are inferred.

    One thread more than inferences reads the next batch, or writes the last one's logits. An error comes in the place
    of its batch. At the end, whatever it is, no thread works any more.
    """
    free: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()
    for _ in range(count):
        infer_request = engine.compiled.create_infer_request()
        # OpenVINO sets its use of NumPy up when an array is first asked for, under a lock that it holds while it waits
        # for the interpreter's: two threads that do it at once would wait for each other for ever.
        infer_request.get_tensor(INPUTS[0]).data  # noqa: B018
        free.put(infer_request)

    def work(batch: Batch) -> Sequence[Interval]:
        inputs = batch.read()
        infer_request = free.get()
        try:
            intervals = list(batch.infer(infer_request, inputs))
            logits = batch.logits(infer_request)
        finally:
            free.put(infer_request)
        batch.write(logits)
        return intervals

    def in_order() -> Iterator[Iterable[Interval]]:
        waiting = collections.deque(pool.submit(work, batch) for batch in batches[: 2 * threads])
        for batch in [*batches[2 * threads :], *[None] * len(waiting)]:
            yield waiting.popleft().result()
            if batch is not None:
                waiting.append(pool.submit(work, batch))

    threads = count + 1
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        yield in_order()
    finally:
        pool.shutdown(cancel_futures=True)


def _looped(infer_request: ov.InferRequest, batch: Batch) -> Iterator[Interval]:
    """When a batch was in the model, each loop as soon as it is known; the output is written after the last."""
    yield from batch.infer(infer_request, batch.read())
    batch.write(batch.logits(infer_request))


def batches_at_once(requests: Sequence[RunRequest], threads: int) -> int:
    """How many batches to infer at the same time: 1 of files, whose times are the result.

    Of folders one for each thread, since threads of one inference wait for each other at every node; fewer where
    batches are large, whose nodes keep several threads busy and whose activations take much memory.
    """
    if not requests[0].by_directory:
        return 1
    tokens = max(os.path.getsize(next(iter(request.batches.values()))[0]) // 4 for request in requests)
    return max(1, min(threads, AT_ONCE, TOKENS_AT_ONCE // max(1, tokens)))


def _print_averages(times: Sequence[float], by_directory: bool) -> None:
    """msame's two average lines, which differ between its modes; the second only after more than one inference."""
    blank, digits = (" ", 2) if by_directory else ("", 6)
    print(f"Inference average time{blank}: {statistics.fmean(times):.{digits}f} ms")
    if len(times) > 1:
        print(f"Inference average time without first time: {statistics.fmean(times[1:]):.{digits}f} ms")


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "model threads summary",
        lengths=replace(SHARED["lengths"], default=None),
        input=Argument("two directories or .bin files, comma between; for each length", required=True, repeats=True),
        output=Argument("the folder that gets <T>/; for each length; its parent exists", required=True, repeats=True),
        loop=Argument("inferences in file mode; not used in directory mode", whole(1, PERFORMANCE_LOOPS), default=1),
        device=Argument("only 0", default="0"),
        at_once=Argument(
            "batches of folders that are inferred at the same time; default: by the threads", whole(1, 64)
        ),
    )
    if options.device.strip() != "0":
        raise ConfigError(f"--device {options.device!r}: the cpu backend has one device, 0")
    count = len(options.lengths or (0,))
    if not len(options.input) == len(options.output) == count:
        counts = f"--input is given {len(options.input)} times and --output {len(options.output)}"
        raise ConfigError(f"{counts}, for {count} lengths")
    requests = [
        plan(inputs.split(","), output, options.loop, options.model)
        for inputs, output in zip(options.input, options.output, strict=True)
    ]
    if count > 1 and not all(request.by_directory for request in requests):
        raise ConfigError("--input names files, which run at one length, and --lengths has more")
    threads = options.threads or effective_cpus()
    at_once = options.at_once or batches_at_once(requests, threads)
    engine = load_model(options.model, threads, at_once)
    release_pages(options.model.with_suffix(".bin"))
    engines = [engine.at(length, options.model) for length in options.lengths or (engine.shape[1],)]
    for request, fitted in zip(requests, engines, strict=True):
        _check_sizes(request, input_bytes(*fitted.shape), options.model)
    intervals = run(requests, engines, options.model, at_once)
    by_length = {
        str(fitted.shape[1]): {"batches": len(request.batches), "average_ms": statistics.fmean(_ms(own))}
        for request, fitted, own in zip(requests, engines, intervals, strict=True)
    }
    summary = {
        "batches": sum(len(request.batches) for request in requests),
        "loops": requests[0].loops,
        "at_once": at_once,
        "inference_ms": _busy_ms(list(itertools.chain.from_iterable(intervals))),
        "lengths": by_length,
        **engine_facts(engines[-1]),
    }
    arguments.write_summary(options.summary, summary)


if __name__ == "__main__":
    sys.exit(run_stage(main))
