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

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from deberta.core import files
from deberta.core.contract import INPUTS, PERFORMANCE_LOOPS, input_bytes, run_folder
from deberta.core.errors import ConfigError, DataError, MissingError, run_stage, some
from deberta.core.machine import effective_cpus
from deberta.core.progress import Progress
from deberta.stages import arguments
from deberta.stages.arguments import SHARED, Argument, whole
from deberta.stages.data import bins
from deberta.stages.inference.openvino_engine import OpenVinoEngine, engine_facts, load_model, release_pages, set_input


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


def run(requests: Sequence[RunRequest], engines: Sequence[OpenVinoEngine], model: Path) -> list[list[float]]:
    """Run all requests, the first of which comes last, print their logs and return the inference times of each in ms.

    `engines` are of the requests' lengths, which increase: what the longest takes in memory serves all others, where
    growing from length to length would leave holes behind.
    """
    infer_request = engines[0].compiled.create_infer_request()
    progress = Progress("infer", sum(len(request.batches) for request in requests), "batches")
    # On a terminal msame's own lines show how far the run is, and a line that rewrites itself would garble them.
    shows_progress = requests[0].by_directory and not sys.stdout.isatty()
    time_folder, done = run_folder(datetime.now()), 0
    all_times: list[list[float]] = []
    with contextlib.ExitStack() as folders:
        for request, engine in reversed(list(zip(requests, engines, strict=True))):
            print(f"[INFO] load model {model} success\n{request.output}/{time_folder}", flush=True)
            folder = folders.enter_context(files.new_folder(Path(request.output, time_folder)))
            times: list[float] = []
            for stem, batch in request.batches.items():
                for name, file in zip(INPUTS, batch, strict=True):
                    print(f"[INFO] start to process file:{file}")
                    values = bins.read(Path(file), name, engine.shape, engine.vocabulary)
                    set_input(infer_request, name, values)
                for _ in range(request.loops):
                    started = time.perf_counter()
                    infer_request.infer(share_outputs=True)
                    times.append((time.perf_counter() - started) * 1000)
                    print("[INFO] model execute success")
                    print(f"Inference time: {times[-1]:g}ms", flush=True)  # %g is a C++ stream's default
                    if len(times) == 1:  # this length may have packed matrices in another form
                        release_pages(model.with_suffix(".bin"))
                logits = infer_request.get_output_tensor(0).data.astype("<f4")
                (folder / f"{stem}_output_0.bin").write_bytes(logits.tobytes())
                print("[INFO] output data success", flush=True)
                done += 1
                if shows_progress:
                    progress.update(done, f"length {engine.shape[1]}")
            _print_averages(times, request.by_directory)
            print(f"[INFO] pid: {os.getpid()} Execute sample success", flush=True)
            all_times.insert(0, times)
    return all_times


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
    engine = load_model(options.model, options.threads or effective_cpus())
    release_pages(options.model.with_suffix(".bin"))
    engines = [engine.at(length, options.model) for length in options.lengths or (engine.shape[1],)]
    for request, fitted in zip(requests, engines, strict=True):
        _check_sizes(request, input_bytes(*fitted.shape), options.model)
    times = run(requests, engines, options.model)
    by_length = {
        str(fitted.shape[1]): {"batches": len(request.batches), "average_ms": statistics.fmean(ms)}
        for request, fitted, ms in zip(requests, engines, times, strict=True)
    }
    summary = {
        "batches": sum(len(request.batches) for request in requests),
        "loops": requests[0].loops,
        "inference_ms": sum(map(sum, times)),
        "lengths": by_length,
        **engine_facts(engines[-1]),
    }
    arguments.write_summary(options.summary, summary)


if __name__ == "__main__":
    sys.exit(run_stage(main))
