"""The chain for one case: lengths, bins, model, outputs, accuracy, throughput; and the numbers that it prints."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Mapping, Optional, Sequence

from deberta.ascend import programs, timing
from deberta.core import buckets, files, records, schema
from deberta.core.buckets import Choice
from deberta.core.contract import FP32, INPUTS, SUPPLIED_OUTPUTS, batch_count
from deberta.core.errors import ConfigError, DataError, DebertaError, MissingError
from deberta.core.paths import record_of
from deberta.core.records import Record
from deberta.host.plan import evaluation
from deberta.host.plan.plan import LATEST, Case, Plan, Step
from deberta.host.report import figures
from deberta.host.run import compiled, device_locks, devices, freshness, runner
from deberta.host.run.session import Session
from deberta.host.user_files import named_paths


def at_lengths(session: Session, case: Case, choice: Choice) -> Case:
    """The case at its lengths, settled by the rows' tokens: those that any row needs, of the ones named or of auto's.

    Without a choice: those of accuracy runs, no work on padding on cpu, the guide's files on ascend. A dry run in which
    nothing was counted shows the padded run in place of auto's lengths, and says so.
    """
    choice = choice or (buckets.AUTO if case.plan.backend == "cpu" else buckets.PADDED)
    if choice == buckets.PADDED:
        return case.padded
    plan, version = case.plan, case.version
    step = evaluation.token_counts(plan, version)
    runner.run_all(session, [step])
    [counts] = step.outputs
    if session.dry and not (session.workspace / counts).exists():
        if isinstance(choice, str):
            session.say(f"--buckets auto: the lengths are known once {counts} is there; shown is the padded run")
            return case.padded
        return case.of_lengths(choice)
    histogram = buckets.read_histogram(session.workspace / counts)
    lengths = buckets.choose(histogram, case.batch_size, plan.backend) if isinstance(choice, str) else choice
    rows = buckets.rows_by_length(histogram, lengths, version)
    tokens = sum(count * length for length, count in histogram.items())
    run = sum(batch_count(count, case.batch_size) * case.batch_size * length for length, count in rows.items())
    by_length = f" ({'auto; ' if isinstance(choice, str) else ''}rows {', '.join(map(str, rows.values()))})"
    unused = [length for length in lengths if length not in rows]
    left_out = f"; no row needs {buckets.text(unused)}" if unused else ""
    padded = batch_count(sum(rows.values()), case.batch_size) * case.batch_size * buckets.PADDED[0]
    session.say(
        f"buckets: {buckets.text(list(rows))}{by_length}{left_out}; {run} tokens to run for {tokens}, padded {padded} "
        f"(bs={case.batch_size} {version})"
    )
    return case.of_lengths(rows)


def plan_of_model(plan: Plan, choice: Choice) -> Plan:
    """The plan of a compilation, which has no data to choose lengths by. Raises ConfigError."""
    if isinstance(choice, str):
        if plan.backend == "ascend":
            raise ConfigError("--buckets auto needs data, and build-om has none. Give the lengths: --buckets 32,64,256")
        # One model of the cpu backend runs any lengths, so any that are not 256 alone name it.
        return replace(plan, lengths=(buckets.SHORTEST, *buckets.PADDED))
    return replace(plan, lengths=choice or buckets.PADDED)


def preprocess(session: Session, plan: Plan, batch_size: int, version: str = "", choice: Choice = ()) -> None:
    """MNLI's tsv -> bins, the guide's unless lengths are named.

    Without a version: every one whose tsv is there; one that is not is named.
    """
    if choice == buckets.AUTO:
        session.say("buckets: auto is cpu's choice here; infer and evaluate on ascend choose for themselves")
    versions = [version] if version else present_versions(session, plan)
    fitted = [at_lengths(session, Case(plan, batch_size, each), choice or buckets.PADDED) for each in versions]
    steps = [evaluation.preprocess(case) for case in fitted]
    runner.run_all(session, steps)
    session.show_paths(path for step in steps for path in step.outputs)


def present_versions(session: Session, plan: Plan) -> list[str]:
    """The profile's versions whose tsv, or a link of its name, is there; the others are named. All if none is."""
    present = [v for v in plan.profile.rows if os.path.lexists(session.workspace / plan.profile.data_path(v))]
    for absent in [v for v in plan.profile.rows if present and v not in present]:
        needed = plan.source(plan.profile.data_path(absent))
        session.say(f"{needed.path} is missing, so {absent} is left out. To have it: {needed.command}")
    return present or list(plan.profile.rows)


def infer(session: Session, case: Case, choice: Choice = ()) -> tuple[Case, list[PurePosixPath]]:
    """Everything up to the model's outputs; returns the case with its lengths, and their folders of outputs."""
    [fitted] = _fitted(session, [case], choice)
    return fitted, _infer(session, fitted)


def _fitted(session: Session, cases: Sequence[Case], choice: Choice) -> list[Case]:
    """The cases with their lengths, once all has been checked that can be before anything slow."""
    # Name all that is missing at once, before tokens are counted. On ascend the models may be the user's.
    models = [evaluation.export_onnx(case.plan) for case in cases if case.plan.backend == "cpu"]
    runner.check_sources(session, [*models, *(evaluation.preprocess(case.padded) for case in cases)])
    fitted = [at_lengths(session, case, choice) for case in cases]
    for case in fitted:
        if supplied_outputs(session, case) is None:
            check_device(session, case, evaluation.infer(case, {}))
    return fitted


def _infer(session: Session, case: Case) -> list[PurePosixPath]:
    """The folders of outputs of a case that has its lengths."""
    if folder := supplied_outputs(session, case):
        session.say(
            f"{folder} was not made here and is counted as it is ({case.command('infer')} --force runs the model)"
        )
        return [folder]
    models, bins = compiling(session, case), needed(session, [evaluation.preprocess(case)])
    results = runner.run_all(session, [*models, *bins])
    steps = evaluation.infer(case, rows_by_length(session, case, results[-1].summary if bins else {}))
    inferred = [runner.run(session, step) for step in steps]
    for result in inferred:
        if result.ran and case.plan.any_length:
            seconds, rows = result.summary["inference_ms"] / 1000, results[-1].summary["rows"]
            sharing = result.summary.get("devices", 1)
            pace = f"summed over {sharing} devices" if sharing > 1 else f"{rows / seconds:.3f} rows per s"
            session.say(f"inference of {rows} rows: {seconds:.2f} s, {pace}")
    return run_folders(steps, [result.record for result in inferred])


def postprocess(session: Session, case: Case, outputs: str = "", choice: Choice = ()) -> None:
    """Outputs -> accuracy. Without `outputs`: those of infer, or the only ones that are there."""
    if outputs and choice:
        raise ConfigError("--outputs names one folder, and --buckets has one for each length. Give one of them")
    if outputs:
        folder = named_paths.find_outputs(session, "--outputs", outputs, case.padded)
        # They may be any machine's, so no backend is named.
        _count(session, case.padded, [folder], f"of {folder}")
        return
    fitted = at_lengths(session, case, choice)
    _count(session, fitted, known_outputs(session, fitted))


def evaluate(session: Session, cases: Sequence[Case], choice: Choice = ()) -> figures.EvaluateDocument:
    """The whole chain for each case, in order; several end in a table. All are checked before the first runs.

    Of a model of a lower precision the float32 run's too, and the labels that changed. The figures are printed as they
    are known; in a dry run there are none.
    """
    result = figures.EvaluateDocument(evaluations=[], label_changes=[])
    precisions = list(dict.fromkeys((FP32, *(case.plan.precision for case in cases))))
    wanted = [replace(case, plan=replace(case.plan, precision=each)) for case in cases for each in precisions]
    folders: list[PurePosixPath] = []
    for case in _fitted(session, wanted, choice):
        before, folders = folders, _infer(session, case)
        result.evaluations += _count(session, case, folders)
        if case.plan.precision != FP32:
            step = evaluation.label_changes(case, before, folders)
            runner.run(session, step)
            if not session.dry:
                changes = figures.label_changes(session.workspace, case, str(step.outputs[0]))
                figures.print_label_changes(changes, case.plan.limit)
                result.label_changes.append(changes)
    if len(cases) > 1:
        figures.print_evaluations(result.evaluations)
    return result


def perf(session: Session, case: Case, loops: int, choice: Choice = ()) -> Optional[figures.PerfDocument]:
    """The guide's performance run, padded; with lengths each one's first batch too, and what they come to.

    The figures are printed as they are known; in a dry run there are none.
    """
    case = replace(case, plan=replace(case.plan, limit=0))
    fitted = at_lengths(session, case, choice or buckets.PADDED)  # bad lengths are refused before anything slow
    padded = case.padded
    if is_supplied_log(session, padded):
        again = padded.command("perf")
        session.say(f"{padded.timing_log} was not made here and is read as it is ({again} --force measures)")
    else:
        step = evaluation.perf(padded, loops)
        check_device(session, padded, [step])
        bins = needed(session, [evaluation.preprocess(padded)])
        runner.run_all(session, [*compiling(session, padded), *bins, step])
    result = None
    if not session.dry:
        supplied = freshness.is_user_supplied(session, padded.timing_log)
        measured = figures.performance(session.workspace, padded, supplied)
        figures.print_performance(measured, loops)
        result = figures.PerfDocument(performance=measured, over_the_data=None)
    if fitted.plan.is_padded:
        return result
    timed = [evaluation.perf(part, loops) for part in fitted.lengths]
    before = [*compiling(session, fitted), evaluation.preprocess(fitted)]
    runner.run_all(session, [*before, *timed, evaluation.throughput(fitted)])
    if result is not None:
        result.over_the_data = figures.over_the_data(session.workspace, fitted)
        figures.print_over_the_data(session.workspace, fitted, result.over_the_data, result.performance.fps)
    return result


def perf_on(session: Session, case: Case, loops: int, places: Mapping[str, int]) -> None:
    """The guide's performance run on devices beside the first, to be compared with that one's.

    `places`: HOST/DEVICE and the device's number there. Those of a cluster are measured on all its hosts at once, one
    at a time on a host. Raises, once all others have ended, an error that names the devices that failed.
    """
    cases = [replace(case, plan=replace(case.plan, devices=(number,), limit=0)).padded for number in places.values()]
    steps = [evaluation.perf(padded, loops, place) for padded, place in zip(cases, places)]
    for padded, step in zip(cases, steps):
        check_device(session, padded, [step])
    bins = needed(session, [evaluation.preprocess(cases[0])])
    runner.run_all(session, [*compiling(session, cases[0]), *bins])
    due: list[Step] = []
    if session.shards is not None and session.shards.measures:
        due = [step for step in steps if session.force or freshness.outdated(session, step)]
    for step in steps:
        if step not in due:
            runner.run(session, step)
    if due and session.shards is not None:
        session.shards.measure(session, due, lambda step: runner.run(session, step))


def check_device(session: Session, case: Case, steps: Sequence[Step]) -> None:
    """Look at the steps' devices before anything slow, if any of the steps is to run on them.

    Raises the errors of the check that is made again, and said, when it runs; those of several devices in one.
    """
    elsewhere = session.shards is not None and session.shards.measures  # a cluster's hosts look at theirs
    if session.dry or elsewhere or case.plan.backend != "ascend":
        return
    own = [part for part in case.models if not uses_supplied_om(session, part)]
    before = [step for part in own for step in (evaluation.export_onnx(part.plan), evaluation.build_om(part))]
    before = needed(session, before, quiet=True)
    if session.force or any(freshness.outdated(session, step) for step in (*before, *steps)):
        numbers = dict.fromkeys(n for step in steps if step.inference for n in step.inference.devices)
        if session.executor.name == "local":
            programs.check_visible(next(iter(numbers)), os.environ)
        looked, problems = [], []
        for number in numbers:
            if device_locks.is_held(session.locks, number):  # by a run of ours, which this one waits for
                continue
            try:
                looked.append(devices.look(session, number, lambda line: None))
            except DebertaError as error:
                problems.append(error)
        if problems:
            raise type(problems[0])("; ".join(map(str, problems)))
        if own:
            model, chip = own[0].compiled, _chip(session, own[0])
            is_made = (session.workspace / model).exists() and compiled.chip_of(session, model) == chip
            made_for = f"{model} {'was' if is_made else 'is to be'} compiled for"
            for device in looked:
                compiled.compare_chips(made_for, chip, device, case.command("build-om"))


def compiling(session: Session, case: Case) -> list[Step]:
    """The exports and compilations for a case's lengths; none for an .om that the user supplied."""
    steps = []
    for part in case.models:
        if part.plan.backend == "ascend" and not session.forces("build-om"):
            compiled.check_shape(session, part)
        if uses_supplied_om(session, part):
            session.say(f"{part.compiled} was not made here and is used as it is (build-om --force makes another)")
            continue
        of_chip = replace(part, plan=replace(part.plan, soc_version=_chip(session, part)))
        steps += [*needed(session, [evaluation.export_onnx(of_chip.plan)]), evaluation.build_om(of_chip)]
    return steps


def needed(session: Session, steps: Sequence[Step], quiet: bool = False) -> list[Step]:
    """The steps without those whose output, dynamic.onnx or padded bins, the user supplied: it is used as it is."""
    own = []
    for step in steps:
        is_one = step.task == "export-onnx" or (step.task == "preprocess" and "--lengths" not in step.arguments)
        supplied = is_one and not session.forces(step.task)
        if supplied and all(freshness.is_user_supplied(session, path) for path in step.outputs):
            if not quiet:
                again = f"{step.commands[step.task]} --force makes another"
                session.say(f"{step.outputs[0]} was not made here and is used as it is ({again})")
        else:
            own.append(step)
    return own


def rows_by_length(session: Session, case: Case, summary: Mapping[str, Any]) -> dict[int, int]:
    """What preprocess counted; of the user's bins, which are padded, as many rows as they hold."""
    if summary or session.dry:
        return {int(length): counts["rows"] for length, counts in summary.get("lengths", {}).items()}
    folder = session.workspace / case.bins / INPUTS[0]
    files_there = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    return {case.plan.length: len(files_there) * case.batch_size}


def _chip(session: Session, case: Case) -> str:
    """The chip to compile for. Where nothing here tells it, that of the present .om, which then need not be made."""
    if case.plan.backend != "ascend":
        return ""
    try:
        return session.soc_version()
    except DebertaError:
        chip = compiled.chip_of(session, case.compiled)
        if chip is None:
            raise
        session.say(f"soc_version: {chip} (as the record of {case.compiled} has it; nothing here tells the chip)")
        return chip


def supplied_outputs(session: Session, case: Case) -> Optional[PurePosixPath]:
    """The one folder of outputs that the user put in place of a padded run's, until infer or a whole chain is forced.

    None if there is none, or a record of ours. Raises ConfigError for several.
    """
    place = session.workspace / case.outputs
    if not case.plan.is_padded or session.forces("infer") or (session.workspace / record_of(case.outputs)).exists():
        return None
    names = [folder.name for folder in named_paths.runs_in(place) if not files.is_interrupted(folder)]
    if len(names) > 1:
        raise ConfigError(
            f"{case.outputs} holds {len(names)} folders ({', '.join(names)}) and no record. Name one: "
            f"{case.command('postprocess')} --outputs {place / names[0]}"
        )
    return case.outputs / names[0] if names else None


def is_supplied_log(session: Session, case: Case) -> bool:
    """Whether a timing log is the user's, and can be read."""
    log = case.timing_log
    if session.forces("perf") or not freshness.is_user_supplied(session, log):
        return False
    try:
        timing.read(session.workspace / log, case.batch_size)
    except DataError:
        return False
    return True


def uses_supplied_om(session: Session, case: Case) -> bool:
    """Whether an .om of the user's is used: it stays as it is until build-om or a whole chain is forced."""
    own = case.plan.backend == "ascend" and not session.forces("build-om")
    return own and freshness.is_user_supplied(session, case.compiled)


def outdated(session: Session, case: Case) -> str:
    """Why the outputs that are there are not of the present model and bins; empty if they are."""
    own = [part for part in case.models if not uses_supplied_om(session, part)]
    before = [step for part in own for step in (evaluation.export_onnx(part.plan), evaluation.build_om(part))]
    for step in needed(session, [*before, evaluation.preprocess(case), *evaluation.infer(case, {})], quiet=True):
        if reason := freshness.outdated(session, step):
            return f"{step.title}: {reason}"
    return ""


def known_outputs(session: Session, case: Case) -> list[PurePosixPath]:
    """Each length's folder of outputs, of the present inputs. Raises MissingError, DataError, ConfigError."""
    steps = evaluation.infer(case, {})
    known = [records.read(session.workspace / record_of(step.outputs[0])) for step in steps]
    if session.dry and None in known:
        return run_folders(steps, [None] * len(steps))
    if all(record is not None for record in known):
        if reason := outdated(session, case):
            where = f"in {case.outputs}" if case.plan.is_padded else f"of {buckets.text(case.plan.lengths)}"
            raise DataError(
                f"the outputs {where} are not of the present inputs ({reason}). Run: "
                f"{case.command('evaluate')}, or name outputs to be counted as they are: --outputs DIR"
            )
        return run_folders(steps, known)
    folder = supplied_outputs(session, case)
    if folder is None:
        raise MissingError(f"there are no outputs in {case.outputs}. Run: {case.command('infer')}")
    return [folder]


def run_folders(steps: Sequence[Step], known: Sequence[Optional[Record]]) -> list[PurePosixPath]:
    """The folder of each run of some steps, by their records; its placeholder where there is none, in a dry run."""
    folders = []
    for step, record in zip(steps, known):
        for output in step.outputs:
            # Of several lengths the parent folder: postprocess takes the run in it.
            unknown = PurePosixPath(f"{output}{LATEST}") if len(steps) * len(step.outputs) == 1 else output
            folders.append(freshness.run_folder(record, output) if record else unknown)
    return folders


def _count(
    session: Session, case: Case, outputs: Sequence[PurePosixPath], place: str = ""
) -> list[figures.EvaluationFigures]:
    """Count what is right, and print it; nothing is returned in a dry run.

    `place`: where it was measured, if not on the plan's backend.
    """
    runner.run(session, evaluation.postprocess(case, outputs))
    if session.dry:
        return []
    counts = schema.read_json(session.workspace / case.evaluation.with_suffix(".json"), dict[str, Any])
    if not place and case.outputs / outputs[0].name == outputs[0] and supplied_outputs(session, case):
        place = f"({SUPPLIED_OUTPUTS})"
    result = figures.evaluation(case, place, counts)
    figures.print_evaluation(result)
    return [result]
