"""bench: measures the cpu backend and other ways to run the model, in one run, in turns.

Writes a JSON report, and from it a Markdown page and a plot. All models come from one set of weights, in a folder of
the workspace's .cache/bench that takes up to 5 GB and is removed at the end. An engine that cannot run is reported with
the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import deberta
from benchmarks import batching, check, end_to_end, figures, machine, processes
from benchmarks.engines import ENGINES, MAX_THREADS, OURS, OURS_BF16, OURS_INT8, REFERENCE
from benchmarks.prepare import PEERS, BenchCase, BenchSettings, prepare, variables, workspace
from benchmarks.processes import Failed, WorkerProcess
from deberta.core import files
from deberta.core.contract import FP32, LABELS, SEQUENCE_LENGTH, parse_integer
from deberta.core.errors import ConfigError, GateError, MissingError, StageError, run_stage, some
from deberta.core.machine import effective_cpus
from deberta.core.progress import Progress

FIXED_ROWS = 16
LENGTHS = Path(__file__).with_name("lengths") / "dev_matched_12k_sentencepiece.txt"
PAUSE = 0.2  # seconds before each turn
SIZES = ("full", "tiny")
OF_OURS = (OURS, OURS_BF16, OURS_INT8)
WORKER = (sys.executable, "-m", "benchmarks.worker")


def main(argv: Sequence[str]) -> None:
    options = _parse(argv)
    settings = _settings(options)
    sizes = [parse_integer("--bs", size, 1, 1, 1024) for size in options.bs.split(",")]
    sample = _sample(options, sizes)
    cases = [BenchCase(size, True, (SEQUENCE_LENGTH,) * FIXED_ROWS, (SEQUENCE_LENGTH,)) for size in sizes]
    if sample["rows"]:
        cases += [BenchCase(size, False, tuple(sample["lengths"]), sample["buckets"][str(size)]) for size in sizes]
    description = machine.describe()
    warnings = []
    if description["load_average"] > machine.IDLE:
        warnings.append(f"Something else was running: the load average was {description['load_average']} at the start")
        print(f"warning: {warnings[0]}", flush=True)
    started = datetime.now(UTC)
    with workspace(Path(".cache", "bench")) as folder:
        model, absent, peers = prepare(settings, cases, folder)
        measured = [_measure(case, settings, folder, model["vocabulary"], absent) for case in cases]
        whole = _end_to_end(options, settings, sample, max(sizes), folder, model["vocabulary"], absent)
    report = {
        "format": 1,
        "made": started.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds()),
        "deberta_ascend": deberta.__version__,
        "command": " ".join(["invoke", "bench", *_shown_options(options)]),
        "machine": description,
        "warnings": warnings,
        "settings": {
            "threads": settings.threads, "repeats": settings.repeats,
            "real_repeats": settings.real_repeats, "pause_s": PAUSE, "fixed_rows": FIXED_ROWS,
            "warm_up_passes": 1, "seed": settings.seed, "size": settings.size, "tolerance": figures.TOLERANCE,
        },
        "sample": sample,
        "model": model,
        "peers": peers,
        "engines": {name: ENGINES[name].label for name in settings.engines if name not in absent},
        "absent": absent,
        "cases": measured,
        "end_to_end": whole,
    }  # fmt: skip
    _write(report, options, settings)
    _judge(report)
    if options.check:
        _check(report, options.check)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the report, a JSON file; logs/ goes beside it")
    parser.add_argument("--markdown", type=Path, help="the page to write")
    parser.add_argument("--plot", type=Path, help="the plot to draw, an .svg")
    parser.add_argument("--size", default="full", help="of random weights: full (the guide's config) or tiny")
    parser.add_argument("--config", type=Path, default=Path("models/mnli/model_config.json"), help="of the size full")
    parser.add_argument("--checkpoint", type=Path, help="in place of random weights, with --config")
    parser.add_argument("--labels", default=",".join(LABELS), help="the checkpoint's label order")
    parser.add_argument("--bs", default="1,8", help="batch sizes, commas between")
    parser.add_argument("--repeats", help="turns of each engine, default 7; half as many at real lengths, 3 or more")
    parser.add_argument("--threads", help="of every engine; default: as many as the container's CPU quota allows")
    parser.add_argument("--engines", help=f"some of {','.join(ENGINES)}; default: all")
    parser.add_argument("--lengths", type=Path, help="tokens of each row of real data, whole numbers in a text file")
    parser.add_argument("--data", type=Path, help="in place of --lengths: a dev tsv, with --tokenizer")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--rows", help="rows in the sample of real lengths, default 256")
    parser.add_argument("--against", default="", help="a git commit whose infer takes turns with ours, end to end")
    parser.add_argument("--check", type=Path, help="a published run, to compare the ratios with")
    parser.add_argument("--published", type=Path, help="where this run is kept to be compared with, a JSON file")
    parser.add_argument("--seed", help="of the random weights, default 0")
    parser.add_argument("--peers-python", type=Path, default=PEERS, help="has requirements-bench.lock's packages")
    return parser.parse_args(argv)


def _settings(options: argparse.Namespace) -> BenchSettings:
    names = [name.strip() for name in options.engines.split(",")] if options.engines else list(ENGINES)
    if unknown := [name for name in names if name not in ENGINES]:
        raise ConfigError(f"--engines {unknown[0]!r} is not one of: {', '.join(ENGINES)}")
    if OURS not in names:
        raise ConfigError(f"--engines {options.engines!r} lacks {OURS}, which all others are compared with")
    if options.size not in SIZES:
        raise ConfigError(f"--size {options.size!r} is not one of: {', '.join(SIZES)}")
    if options.plot and options.plot.suffix != ".svg":
        raise ConfigError(f"--plot {options.plot} must end in .svg")
    config = options.config if options.size == "full" or options.checkpoint else None
    for path in (config, options.checkpoint):
        if path and not path.exists():
            raise MissingError(f"{path} is missing. Run: invoke fetch")
    return BenchSettings(
        tuple(name for name in ENGINES if name in names),
        parse_integer("--threads", options.threads, effective_cpus(), 1, MAX_THREADS),
        parse_integer("--repeats", options.repeats, 7, 1, 1000),
        parse_integer("--seed", options.seed, 0, 0, 2**31 - 1),
        options.size,
        config,
        options.checkpoint,
        tuple(options.labels.split(",")),
        options.peers_python,
        options.output.parent / "logs",
    )


def _sample(options: argparse.Namespace, batch_sizes: Sequence[int]) -> dict[str, Any]:
    """The lengths of the sample's rows and what the report says about them; no rows without --lengths and --data."""
    rows = parse_integer("--rows", options.rows, 256, 1, 100_000)
    if options.lengths:
        all_lengths, source = batching.read_lengths(options.lengths), options.lengths.name
    elif options.data:
        if not options.tokenizer:
            raise ConfigError("--data needs --tokenizer, the model's spm.model")
        all_lengths = batching.lengths_of(options.data, options.tokenizer)
        source = f"{options.data.name} under {options.tokenizer.name}"
    else:
        return {"rows": 0, "source": "neither --lengths nor --data was given", "all_lengths": []}
    lengths = batching.sample(all_lengths, min(rows, len(all_lengths)))
    return {
        "source": source,
        "of": len(all_lengths),
        "rows": len(lengths),
        "mean": statistics.fmean(lengths),
        "median": statistics.median(lengths),
        "longest": max(lengths),
        "mean_of_all": statistics.fmean(all_lengths),
        "buckets": {str(size): batching.choose(all_lengths, size) for size in batch_sizes},
        "lengths": lengths,
        "all_lengths": all_lengths,
    }


def _measure(
    case: BenchCase, settings: BenchSettings, folder: Path, vocabulary: int, absent: dict[str, str]
) -> dict[str, Any]:
    """Start the case's engines, let them take turns, and return its figures."""
    names = [name for name in settings.engines if name not in absent]
    results: dict[str, dict[str, Any]] = {}
    logits: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        running: dict[str, WorkerProcess] = {}
        # The reference always runs, for its logits.
        for name in [*names, *([] if REFERENCE in names else [REFERENCE])]:
            print(f"[bench {case.title}] loading {name}", flush=True)
            log = settings.logs / f"{name}_bs{case.batch_size}_{'fixed' if case.fixed else 'real'}.log"
            process = stack.enter_context(processes.started(WORKER, variables(settings, folder), log))
            try:
                job = json.dumps(dataclasses.asdict(case.job(name, folder, settings.threads, vocabulary)))
                results[name] = process.ask(job)
                logits[name] = process.ask("pass")["logits"]
                running[name] = process
            except Failed as failure:
                process.close()
                if name in (OURS, REFERENCE):
                    raise StageError(f"{name} could not be measured ({case.title}): {failure}. See {log}") from None
                results[name] = {"error": str(failure)}
                print(f"not measured: {name}: {failure}", flush=True)
        order = [name for name in names if name in running]
        times = _turns(case, order, running, settings.repeats if case.fixed else settings.real_repeats, results)
        for name in times:
            try:
                results[name] |= running[name].ask("end")
            except Failed as failure:
                raise StageError(f"{name} ended before it reported its memory ({case.title}): {failure}") from None
    if REFERENCE not in names:
        del results[REFERENCE]
    for name, seconds in times.items():
        results[name]["times_s"] = seconds
        results[name]["ms_per_row"] = figures.spread(seconds, len(case.lengths))
        results[name]["ratio"] = figures.ratio(seconds, times[OURS])
        if ENGINES[name].exact:
            results[name] |= figures.compare(logits[name], logits[REFERENCE])
        if ENGINES[name].precision != FP32:
            del results[name]["differs"]  # as it may
    return {
        "title": case.title,
        "batch_size": case.batch_size,
        "fixed": case.fixed,
        "rows": len(case.lengths),
        "results": results,
        "headlines": figures.headlines(results),
    }


def _end_to_end(
    options: argparse.Namespace,
    settings: BenchSettings,
    sample: dict[str, Any],
    batch_size: int,
    folder: Path,
    vocabulary: int,
    absent: dict[str, str],
) -> dict[str, Any] | None:
    """The stage's rows per second from bins on disk, in each precision that is measured; None without real lengths."""
    if not sample["rows"]:
        return None
    lengths = batching.sample(sample["all_lengths"], min(end_to_end.ROWS, sample["of"]))
    precisions = [ENGINES[name].precision for name in OF_OURS if name in settings.engines and name not in absent]
    buckets = sample["buckets"][str(batch_size)]
    environment = variables(settings, folder)
    return end_to_end.measure(
        folder, batch_size, lengths, buckets, vocabulary, precisions, environment, settings.logs, options.against
    )


def _check(report: dict[str, Any], published: Path) -> None:
    """Compare with a published run. Raises GateError if something got slower by more than the noise."""
    if not published.is_file():
        raise MissingError(f"{published} is missing. Run: invoke bench --publish")
    before = json.loads(published.read_text(encoding="utf-8"))
    found = list(check.changes(report, before))
    for change in found:
        verdict = "SLOWER" if change.slower else "as published, or within the noise"
        print(f"{change.what}: {change.published:.2f} published, {change.now:.2f} now: {verdict}")
    for line in check.not_compared(report, before):
        print(f"not compared: {line}")
    if slower := [change.what for change in found if change.slower]:
        raise GateError(f"{len(slower)} of {len(found)} ratios got worse than {published} has: {some(slower)}")


def _turns(
    case: BenchCase,
    order: Sequence[str],
    running: dict[str, WorkerProcess],
    repeats: int,
    results: dict[str, dict[str, Any]],
) -> dict[str, list[float]]:
    """Each engine's seconds by repeat; every repeat begins with the next engine. An engine that fails is left out."""
    times: dict[str, list[float]] = {name: [] for name in order}
    progress = Progress(f"bench {case.title}", repeats * len(order), "turns")
    for repeat in range(repeats):
        first = repeat % len(order)
        for place, name in enumerate([*order[first:], *order[:first]]):
            progress.update(repeat * len(order) + place, name)
            if name not in times:
                continue
            time.sleep(PAUSE)
            try:
                times[name].append(running[name].ask("pass")["seconds"])
            except Failed as failure:
                if name == OURS:
                    raise StageError(f"{name} failed ({case.title}): {failure}") from None
                results[name] = {"error": str(failure)}
                del times[name]
    return times


def _shown_options(options: argparse.Namespace) -> list[str]:
    """The options that the figures depend on, as `invoke bench` takes them, where they are not the defaults."""
    values = {"size": options.size, "bs": options.bs, "repeats": options.repeats, "threads": options.threads,
             "engines": options.engines, "rows": options.rows,
             "lengths": options.lengths.name if options.lengths and options.lengths != LENGTHS else None,
             "against": options.against or None}  # fmt: skip
    defaults = {"size": "full", "bs": "1,8"}
    return [f"--{name} {value}" for name, value in values.items() if value is not None and value != defaults.get(name)]


def _write(report: dict[str, Any], options: argparse.Namespace, settings: BenchSettings) -> None:
    del report["sample"]["all_lengths"]  # they are in the file of lengths
    files.write_text(options.output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    print(f"report: {options.output}", flush=True)
    plot = None
    if options.plot:
        try:
            plot = _draw(options, settings)
        except (MissingError, StageError) as error:
            print(f"no plot: {error}", flush=True)
    page = figures.markdown(report, plot)
    print(page)
    if options.markdown:
        files.write_text(options.markdown, page)
        print(f"page: {options.markdown}", flush=True)
    if options.published:
        files.write_text(options.published, json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def _draw(options: argparse.Namespace, settings: BenchSettings) -> str:
    """Draw the plot; returns its path relative to the page. Raises MissingError and StageError."""
    if not os.access(settings.peers, os.X_OK):
        raise MissingError(f"{settings.peers}, with matplotlib, is missing. Run: {figures.INSTALL}")
    variables = {**os.environ, "PYTHONPATH": str(deberta.PROJECT)}
    with files.new_file(options.plot) as temporary:
        command = [str(settings.peers), "-m", "benchmarks.plot", str(options.output), str(temporary)]
        processes.finish(command, variables, settings.logs / "plot.log")
    print(f"plot: {options.plot}", flush=True)
    page: Path = options.markdown or options.output
    return os.path.relpath(options.plot, page.parent)


def _judge(report: dict[str, Any]) -> None:
    """Raise GateError if our engine's logits differ from the reference's; warn of other engines' that do."""
    for case in report["cases"]:
        for name, result in case["results"].items():
            if not result.get("differs"):
                continue
            difference = (
                f"{name} computes something else ({case['title']}): max difference {result['max_abs_difference']}, "
                f"{result['other_labels']} other labels"
            )
            if name == OURS:
                allowed = f"at most {figures.TOLERANCE:g} and none are allowed"
                raise GateError(f"{difference}; {allowed}. Run: invoke build-om --force")
            print(f"warning: {difference}", flush=True)


def _stop(*_: object) -> None:
    """SIGTERM ends the run as Ctrl-C does, so that nothing is left behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(run_stage(main))
