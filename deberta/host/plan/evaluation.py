"""The chain as data: each function plans one step, and nothing here touches a file.

checkpoint -> export-onnx -> build-om -> infer -> postprocess; MNLI's tsv -> preprocess -> infer and perf.
Rows run at the lengths of the plan; the padded run of the guide is the one of length 256 alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath as Path
from typing import Mapping, Optional, Sequence

from deberta.ascend import ais_bench, atc
from deberta.core import buckets, contract
from deberta.core.contract import FP32, INPUTS, SEQUENCE_LENGTH, TRAIN_FILE
from deberta.core.errors import ConfigError
from deberta.host.plan import checks
from deberta.host.plan.plan import Case, Compilation, Inference, Input, ModelRun, Plan, StageOptions, Step, stage

DEMO_SEED = "1"
DEMO_TRAINING = {
    "--steps": "7500",
    "--short-steps": "1500",
    "--batch-size": "64",
    "--learning-rate": "1e-3",
    "--warmup": "200",
    "--seed": DEMO_SEED,
}


def export_onnx(plan: Plan, relative: str = "shift") -> Step:
    """`relative` gather: the reference form of the graph, in a file of its own that no other step takes."""
    case, onnx = Case(plan), plan.artifacts.onnx
    name, title = (f"export-onnx{length}" for length in plan.model_length)
    if relative != "shift":
        name, title, onnx = f"{name}_{relative}", f"{title} {relative}", onnx.with_name(f"{onnx.stem}_{relative}.onnx")
    of_length = not plan.any_length and plan.length != SEQUENCE_LENGTH
    return stage(
        "export-onnx",
        case,
        named=(name, title),
        reads=case.sources("checkpoint", "config"),
        writes={"--output": onnx},
        options={
            **plan.labels,
            "--relative": relative if relative != "shift" else None,
            "--any-length": plan.any_length,
            "--sequence-length": plan.length if of_length else None,
        },
    )


def finetune(plan: Plan, versions: Sequence[str], init: str, options: StageOptions) -> Step:
    """Train the profile's model; `versions` are evaluated at the end, `options` go to the stage as they are."""
    profile = plan.profile
    return stage(
        "finetune",
        Case(plan),
        reads={
            "--train": plan.source(profile.dataset_path / TRAIN_FILE),
            **Case(plan).sources("tokenizer", "config"),
            "--init": [Input(Path(init), "Check the path given with --init")] if init else [],
        },
        also_reads=[plan.source(profile.data_path(version)) for version in versions],
        writes={"--output": profile.checkpoint_path},
        options={"--data": str(profile.dataset_path), "--state": str(plan.artifacts.finetune_state), **options},
    )


def remake_demo(plan: Plan) -> list[Step]:
    """The demo's committed files made again: data sets, vocabulary and config, and the model trained on them."""
    profile = plan.profile
    dev = [profile.data_path(version) for version in profile.rows]
    arguments = ["--data", profile.dataset_path, "--tokenizer", profile.tokenizer_path, "--config", profile.config_path]
    generate = Step(
        name="demo-data",
        title="demo-data",
        stage="demo-data",
        arguments=(*map(str, arguments), "--train-rows", "200000", "--seed", DEMO_SEED),
        inputs=(),
        outputs=(profile.dataset_path / TRAIN_FILE, *dev, profile.tokenizer_path, profile.config_path),
        log=plan.artifacts.log("demo-data"),
        commands={},
    )
    return [generate, finetune(plan, list(profile.rows), "", DEMO_TRAINING)]


def build_om(case: Case) -> Step:
    """The model compiled for a batch size; ATC's has lint-onnx as its gate unless the plan does without."""
    case = replace(case, version="")
    plan, compiled = case.plan, case.compiled
    suffix, length = plan.model_length
    name, title = f"build-om_bs{case.batch_size}{suffix}", f"build-om bs={case.batch_size}{length}"
    if plan.precision != FP32:
        name, title = f"{name}_{plan.precision}", f"{title} {plan.precision}"
    exported = Input(plan.artifacts.onnx, case.commands["export-onnx"])
    if plan.backend == "ascend":
        line = atc.command(exported.path, compiled, case.batch_size, plan.soc_version, plan.atc, plan.length)
        return Step(
            name=name,
            title=title,
            stage="",
            tool="atc",
            arguments=line[1:],
            inputs=(exported, *(Input(path, "check atc in invoke.yaml") for path in atc.option_files(plan.atc))),
            outputs=(compiled,),
            log=plan.artifacts.log(name),
            commands=case.commands,
            compilation=Compilation(exported.path, compiled, case.batch_size, plan.soc_version, plan.atc, plan.length),
            gate=checks.lint(case) if plan.lint else None,
        )
    return stage(
        "compile-cpu",
        case,
        named=(name, title),
        reads={"--model": exported},
        writes={"--output": compiled},
        also_writes=[compiled.with_suffix(".bin")],
        options={
            "--bs": case.batch_size,
            "--any-length": plan.any_length,
            "--precision": plan.precision if plan.precision != FP32 else None,
        },
    )


def token_counts(plan: Plan, version: str) -> Step:
    """MNLI's tsv -> how many rows have how many tokens. It depends on no lengths: they are chosen by it."""
    case = Case(plan, version=version)
    return stage(
        "token-counts",
        case,
        reads=case.sources("data", "tokenizer"),
        writes={"--output": plan.artifacts.token_counts(version)},
        options=case.row_counts,
    )


def preprocess(case: Case) -> Step:
    """One pass over the tsv -> the bins of all lengths."""
    return stage(
        "preprocess",
        case,
        named=case.named("preprocess", of_all_lengths=True),
        reads=case.sources("data", "tokenizer", "config"),
        writes={"--output": [part.bins for part in case.lengths]},
        options={"--bs": case.batch_size, **_lengths(case.plan), **case.row_counts},
    )


def infer(case: Case, rows: Mapping[int, int]) -> list[Step]:
    """The accuracy run over every bin; `rows` of each length, so ceil(rows / batch_size) output files.

    The cpu backend runs all lengths in one process; on ascend each is a run of msame's.
    """
    tool, steps = case.plan.tool, []
    output_file = ais_bench.output_file if tool == ais_bench.MODULE else contract.output_file
    for parts in [[part] for part in case.lengths] if tool else [case.lengths]:
        runs = []
        for part in parts:
            batches = contract.batch_count(rows.get(part.plan.length, 0), part.batch_size)
            names = [output_file(i) for i in range(batches)]
            runs.append(_run(part, part.outputs, names, batches, [part.bins / name for name in INPUTS]))
        steps.append(_model_step(parts, parts[0].named("infer", of_all_lengths=not tool), runs))
    return steps


def perf(case: Case, loops: int, place: str = "") -> Step:
    """The guide's performance run: the first bin alone, `loops` times; its output is kept under the guide's name.

    `place`: as of Inference; the log and the output of such a run have names of their own.
    """
    output = case.artifacts.performance(case.batch_size, case.version, place)
    by_model = f"{case.compiled.stem}_output_0.bin"
    output_file = ais_bench.output_file(0) if case.plan.tool == ais_bench.MODULE else by_model
    run = _run(case, output, [output_file], loops, [case.bins / name / contract.input_file(0) for name in INPUTS])
    name, title = case.named("perf")
    named = (f"{name}.device-{place.replace('/', '-')}", f"{title} on {place}") if place else (name, title)
    return _model_step([case], named, [run], loops, place)


def _run(case: Case, output: Path, names: Sequence[str], times: int, bins: Sequence[Path]) -> ModelRun:
    return ModelRun(
        output=output,
        expected=dict.fromkeys(names, contract.output_bytes(case.batch_size)),
        times=times,
        bins=tuple(bins),
        bin_bytes=contract.input_bytes(case.batch_size, case.plan.length),
    )


def _model_step(
    parts: Sequence[Case],
    named: tuple[str, str],
    runs: Sequence[ModelRun],
    loops: Optional[int] = None,
    place: str = "",
) -> Step:
    """A step that runs the model, at each length of `parts`; with `loops` its log is kept as a timing log."""
    first, plan, (name, title) = parts[0], parts[0].plan, named
    # All the model's files, the one that is named first: OpenVINO's .xml stays the same when only weights change.
    weights = [] if plan.backend == "ascend" else [first.compiled.with_suffix(".bin")]
    models = [Input(path, first.command("build-om")) for path in (first.compiled, *weights)]
    timing_log = None if loops is None else first.device_log(place) if place else first.timing_log
    outputs = tuple(run.output for run in runs)
    return Step(
        name=name,
        title=title,
        stage="" if plan.tool else "run-cpu",
        tool=plan.tool,
        arguments=_runner_arguments(parts, runs, loops),
        inputs=(*models, *(bins_of(part) for part in parts)),
        outputs=(timing_log, *outputs) if timing_log else outputs,
        log=plan.artifacts.log(name),
        commands=first.commands,
        inference=Inference(tuple(runs), plan.devices if loops is None else plan.devices[:1], timing_log, place),
    )


def postprocess(case: Case, outputs: Sequence[Path]) -> Step:
    """`outputs`: of each length the folder of input_<i>_output_0.bin, as infer's record has it or as the user says."""
    counts = case.evaluation.with_suffix(".json")
    writes = {"--output": case.evaluation, "--predictions": case.predictions}
    return of_outputs(case, "postprocess", {"--outputs": outputs}, writes, [counts])


def label_changes(case: Case, fp32: Sequence[Path], lower: Sequence[Path]) -> Step:
    """A run of a lower precision beside the float32 one, each with a folder of outputs for each length."""
    precision = case.plan.precision
    title = f"{precision} beside fp32 bs={case.batch_size} {case.version}"
    writes = {"--output": case.label_changes}
    return of_outputs(
        case, "label-changes", {"--fp32": fp32, "--lower": lower}, writes, title=title, precision=precision
    )


def of_outputs(
    case: Case,
    stage_id: str,
    folders: Mapping[str, Sequence[Path]],
    writes: Mapping[str, Path],
    also_writes: Sequence[Path] = (),
    title: str = "",
    precision: Optional[str] = None,
) -> Step:
    """A stage that reads what the model gave, to write files by flag: `folders` by flag, one for each length."""
    infer = case.command("infer")
    name, usual = case.padded.named(stage_id)  # one evaluation of a case, whatever its lengths
    return stage(
        stage_id,
        case,
        named=(name, title or usual),
        reads={
            **case.sources("data"),
            **{flag: [Input(path, infer) for path in paths] for flag, paths in folders.items()},
            "--bins": [] if case.plan.is_padded else [bins_of(part) for part in case.lengths],
        },
        writes=writes,
        also_writes=also_writes,
        options={
            "--bs": case.batch_size,
            "--version": case.version,
            "--precision": precision,
            **_lengths(case.plan),
            **case.row_counts,
        },
    )


def throughput(case: Case) -> Step:
    """The timing logs of all lengths, weighted with the rows that each has -> the throughput over the data."""
    logs = [part.timing_log for part in case.lengths]
    return stage(
        "throughput",
        case,
        named=case.named("throughput", of_all_lengths=True),
        reads={
            "--logs": [Input(log, case.command("perf")) for log in logs],
            "--tokens": Input(case.artifacts.token_counts(case.version), case.command("preprocess")),
        },
        writes={"--output": case.throughput},
        options={"--bs": case.batch_size, **_lengths(case.plan)},
    )


def bins_of(case: Case) -> Input:
    return Input(case.bins, case.command("preprocess"))


def _lengths(plan: Plan) -> dict[str, Optional[str]]:
    return {"--lengths": None if plan.is_padded else buckets.text(plan.lengths)}


def _runner_arguments(parts: Sequence[Case], runs: Sequence[ModelRun], loops: Optional[int]) -> tuple[str, ...]:
    """The guide's line for msame, and for ais_bench its own; beyond it the gear of a model that has gears.

    The cpu backend's stage takes --input and --output for each of its lengths. An accuracy run on several devices has
    the line of device 0, whose outputs it makes.
    """
    case, plan = parts[0], parts[0].plan
    device = 0 if loops is None and len(plan.devices) > 1 else plan.device
    gear = atc.dym_dims(case.batch_size, plan.atc, plan.length) if plan.tool else ()
    if plan.tool == ais_bench.MODULE:
        run = runs[0]
        return (*ais_bench.command(case.compiled, run.bins, run.output, case.batch_size, device, loops), *gear)
    if plan.tool and ".bin" in plan.profile.name:  # in a folder's name too, msame takes it for a file
        raise ConfigError(f"msame cannot run profile {plan.profile.name}: rename it, so that its name has no .bin")
    line = ["--model", str(case.compiled)]
    for run in runs:
        bins = map(str, run.bins) if loops else (f"{folder}/" for folder in run.bins)
        line += ["--input", ",".join(bins), "--output", str(run.output)]
    if loops is not None:
        line += ["--loop", str(loops)]
    if plan.tool and device:
        line += ["--device", str(device)]
    if plan.any_length:
        line += ["--lengths", buckets.text([part.plan.length for part in parts])]
    return (*line, *gear)
