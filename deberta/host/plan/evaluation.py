"""The pipeline as data: each function plans one step, and nothing here touches a file.

checkpoint -> export-onnx -> build-om -> infer -> postprocess; MNLI's tsv -> preprocess -> infer and perf.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath as Path
from typing import Mapping, Optional, Sequence

from deberta.ascend import ais_bench, atc
from deberta.ascend.atc import AtcOptions
from deberta.core import buckets, contract
from deberta.core.buckets import Buckets
from deberta.core.contract import FP32, INPUTS, SEQUENCE_LENGTH, TRAIN_FILE
from deberta.core.errors import ConfigError
from deberta.core.paths import Artifacts, limited
from deberta.host.plan.profiles import Profile

RUNS = ("infer", "perf", "postprocess", "throughput")  # what a model of another precision makes anew
UNLIMITED = ("export-onnx", "build-om", "perf", "report")
STAGES = {  # the id of a stage, which records name, and the module that is it now
    "assess": "deberta.stages.report.assess",
    "check-data": "deberta.stages.data.check_data",
    "check-fp16": "deberta.stages.fp16.check_fp16",
    "compare": "deberta.stages.compare.compare",
    "compile-cpu": "deberta.stages.compile.compile_cpu",
    "demo-data": "deberta.stages.demo.demo_data",
    "export-onnx": "deberta.stages.compile.export_onnx",
    "finetune": "deberta.stages.train.finetune",
    "label-changes": "deberta.stages.inference.label_changes",
    "lint-onnx": "deberta.stages.lint.lint_onnx",
    "postprocess": "deberta.stages.inference.postprocess",
    "preprocess": "deberta.stages.data.preprocess",
    "pytorch-reference": "deberta.stages.inference.pytorch_reference",
    "render": "deberta.stages.report.render",
    "run-cpu": "deberta.stages.inference.run_cpu",
    "throughput": "deberta.stages.inference.throughput",
    "token-counts": "deberta.stages.data.token_counts",
}
LATEST = "/$T"  # stands for the folder that a run names after its time, where the run has not been yet


@dataclass(frozen=True)
class Input:
    """Something a step reads, and the command that makes or gets it."""

    path: Path
    command: str


@dataclass(frozen=True)
class Inference:
    """A step that msame or its twin runs: it writes `<output>/<T>/`, which is judged before it counts.

    `expected` maps output file names to bytes; `times` is the number of inferences; `log_copy` keeps its output.
    `bins`: what is given as --input, folders or files, each file of `bin_bytes` bytes.
    """

    output: Path
    expected: Mapping[str, int]
    times: int
    bins: tuple[Path, ...]
    bin_bytes: int
    device: int = 0
    log_copy: Optional[Path] = None


@dataclass(frozen=True)
class Compilation:
    """A step that ATC runs: it writes one .om, which is judged before it gets its name."""

    model: Path
    om: Path
    batch_size: int
    soc_version: str
    options: AtcOptions
    length: int = SEQUENCE_LENGTH


@dataclass(frozen=True)
class Step:
    """One command: a stage of ours, `python -m <module> <arguments>`, or a tool of CANN's, `<tool> <arguments>`.

    Its paths are relative to the workspace. A tool runs in a scratch folder that links to the workspace's.
    """

    name: str  # unique in a profile and backend; names the log
    title: str
    stage: str  # its id, a key of STAGES; empty for a tool
    arguments: tuple[str, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Path, ...]  # the first one's name carries the record
    log: Path
    commands: Mapping[str, str]  # task -> the command line that runs it for this run, to complete a stage's hints
    inference: Optional[Inference] = None
    tool: str = ""  # atc, msame or ais_bench
    compilation: Optional[Compilation] = None
    gate: Optional[Step] = None  # a check that runs first when this step has to run

    @property
    def module(self) -> str:
        """What Python runs as the stage; empty for a tool."""
        return STAGES[self.stage] if self.stage else ""

    @property
    def program(self) -> tuple[str, ...]:
        """What a tool's command line begins with."""
        return ("python3", "-m", self.tool) if self.tool == ais_bench.MODULE else (self.tool,)

    @property
    def on_device(self) -> bool:
        """Whether the command needs an NPU."""
        return self.inference is not None and bool(self.tool)

    @property
    def device(self) -> int:
        return self.inference.device if self.inference else 0

    @property
    def writes(self) -> tuple[Path, ...]:
        """The folders in which the command makes files: those that hold its outputs."""
        made = (self.inference.output,) if self.inference else self.outputs
        return tuple(dict.fromkeys(path.parent for path in made))


@dataclass(frozen=True)
class Plan:
    """Everything that names a run: paths, profile and options. The five from `soc_version` are the ascend backend's.

    `buckets`: the lengths of a bucketed run; `length` is then the one that a step is about, if it is about one.
    """

    profile: Profile
    backend: str
    limit: int = 0
    soc_version: str = ""
    device: int = 0
    atc: AtcOptions = atc.DEFAULTS
    runner: str = "msame"
    lint: bool = True
    buckets: Buckets = ()
    length: int = SEQUENCE_LENGTH
    precision: str = FP32

    @property
    def tool(self) -> str:
        """What runs the model, empty for the cpu backend's stage."""
        return self.runner if self.backend == "ascend" else ""

    @property
    def artifacts(self) -> Artifacts:
        name, lengths = self.profile.name, bool(self.buckets)
        return Artifacts(name, self.backend, self.limit, self.length, lengths, self.precision)

    @property
    def any_length(self) -> bool:
        """Whether one model runs all lengths, as the cpu backend's does."""
        return bool(self.buckets) and self.backend == "cpu"

    @property
    def model_length(self) -> tuple[str, str]:
        """What names and titles of steps that make a model say about its length."""
        if self.any_length:
            return "_lengths", " any length"
        return ("", "") if self.length == SEQUENCE_LENGTH else (f"_s{self.length}", f" s={self.length}")

    def command(self, task: str, options: str = "") -> str:
        """The command that runs one of our tasks for this profile, to be named in messages."""
        limit = f" --limit {self.limit}" if self.limit and task not in UNLIMITED else ""
        backend = " --backend ascend" if self.backend == "ascend" and task not in ("export-onnx", "preprocess") else ""
        other = self.tool == ais_bench.MODULE and task in ("infer", "evaluate", "perf")
        runner = f" --runner {self.tool}" if other else ""
        lengths = f" --buckets {buckets.text(self.buckets)}" if self.buckets and task != "export-onnx" else ""
        other = self.precision != FP32 and task not in ("export-onnx", "preprocess")
        precision = f" --precision {self.precision}" if other else ""
        return f"invoke {task}{options}{lengths} --profile {self.profile.name}{backend}{runner}{precision}{limit}"

    def commands(self, batch_size: Optional[int] = None, version: Optional[str] = None) -> dict[str, str]:
        """The command line of each task that a stage may name in a message."""
        size = f" --bs {batch_size}" if batch_size else ""
        split = f" --version {version}" if version else ""
        options = dict.fromkeys(("preprocess", "infer", "postprocess", "evaluate", "perf"), size + split)
        options.update({"export-onnx": "", "build-om": size, "report": ""})
        commands = {task: self.command(task, given) for task, given in options.items()}
        if self.model_length[0]:  # what export-onnx itself makes is the padded model
            commands["export-onnx"] = commands["build-om"]
        return commands

    def named(self, step: str, batch_size: int, version: str) -> tuple[str, str]:
        """Name and title of a step on data; a limited run has names of its own, and so has one of int8."""
        other = self.precision != FP32 and step in RUNS
        name, length = limited(f"{step}_bs{batch_size}_{version}", self.limit), f" {self.precision}" if other else ""
        name = f"{name}_{self.precision}" if other else name
        if self.buckets:
            name, length = f"{name}_s{self.length}", f"{length} s={self.length}"
        first = f" first {self.limit} rows" if self.limit else ""
        return name, f"{step} bs={batch_size}{length} {version}{first}"

    def source(self, path: Path) -> Input:
        """A file that the user brings."""
        commands = {"mnli": "invoke fetch --profile mnli", "demo": "invoke demo --remake"}
        return Input(
            path, commands.get(self.profile.name, f"put it there, or change profile {self.profile.name} in invoke.yaml")
        )


def export_onnx(plan: Plan, relative: str = "shift") -> Step:
    """`relative` gather: the reference form of the graph, in a file of its own that no other step takes."""
    profile, artifacts = plan.profile, plan.artifacts
    made = artifacts.onnx if relative == "shift" else artifacts.onnx.with_name(f"{artifacts.onnx.stem}_{relative}.onnx")
    form = () if relative == "shift" else ("--relative", relative)
    labels = ("--labels", ",".join(profile.labels)) if profile.labels else ()
    name, title = (f"export-onnx{length}" for length in plan.model_length)
    if relative != "shift":
        name, title = f"{name}_{relative}", f"{title} {relative}"
    return Step(
        name=name,
        title=title,
        stage="export-onnx",
        arguments=(
            *("--checkpoint", str(profile.checkpoint_path), "--config", str(profile.config_path)),
            *("--output", str(made), *labels, *form, *_model_length(plan)),
        ),
        inputs=(plan.source(profile.checkpoint_path), plan.source(profile.config_path)),
        outputs=(made,),
        log=artifacts.log(name),
        commands=plan.commands(),
    )


def finetune(plan: Plan, present: Sequence[str], init: Optional[Path], options: Sequence[str]) -> Step:
    """Train the profile's model; `present` versions are evaluated at the end, `options` go to the stage as they are."""
    profile, artifacts = plan.profile, plan.artifacts
    train = profile.dataset_path / TRAIN_FILE
    start = (Input(init, "Check the path given with --init"),) if init else ()
    return Step(
        name="finetune",
        title="finetune",
        stage="finetune",
        arguments=(
            *("--train", str(train), "--data", str(profile.dataset_path), "--tokenizer", str(profile.tokenizer_path)),
            *("--config", str(profile.config_path), "--output", str(profile.checkpoint_path)),
            *("--state", str(artifacts.finetune_state), *(("--init", str(init)) if init else ()), *options),
        ),
        inputs=(
            *(plan.source(path) for path in (train, profile.tokenizer_path, profile.config_path)),
            *(plan.source(profile.data_path(version)) for version in present),
            *start,
        ),
        outputs=(profile.checkpoint_path,),
        log=artifacts.log("finetune"),
        commands=plan.commands(),
    )


def build_om(plan: Plan, batch_size: int) -> Step:
    artifacts = plan.artifacts
    compiled = artifacts.compiled(batch_size)
    suffix, length = plan.model_length
    name, title = f"build-om_bs{batch_size}{suffix}", f"build-om bs={batch_size}{length}"
    if plan.precision != FP32:
        name, title = f"{name}_{plan.precision}", f"{title} {plan.precision}"
    exported = Input(artifacts.onnx, plan.commands(batch_size)["export-onnx"])
    if plan.backend == "ascend":
        wanted = Compilation(artifacts.onnx, compiled, batch_size, plan.soc_version, plan.atc, plan.length)
        line = atc.command(wanted.model, wanted.om, batch_size, plan.soc_version, plan.atc, plan.length)
        files = tuple(Input(path, "check atc in invoke.yaml") for path in atc.option_files(plan.atc))
        return Step(
            name=name,
            title=title,
            stage="",
            tool="atc",
            arguments=line[1:],
            inputs=(exported, *files),
            outputs=(compiled,),
            log=artifacts.log(name),
            commands=plan.commands(batch_size),
            compilation=wanted,
        )
    return Step(
        name=name,
        title=title,
        stage="compile-cpu",
        arguments=(
            *("--model", str(artifacts.onnx), "--bs", str(batch_size), "--output", str(compiled)),
            *(("--any-length",) if plan.any_length else ()),
            *(("--precision", plan.precision) if plan.precision != FP32 else ()),
        ),
        inputs=(exported,),
        outputs=(compiled, compiled.with_suffix(".bin")),
        log=artifacts.log(name),
        commands=plan.commands(batch_size),
    )


def preprocess(plan: Plan, batch_size: int, version: str) -> Step:
    profile, artifacts = plan.profile, plan.artifacts
    bins, data = artifacts.bins(batch_size, version), profile.data_path(version)
    name, title = plan.named("preprocess", batch_size, version)
    return Step(
        name=name,
        title=title,
        stage="preprocess",
        arguments=(
            *("--data", str(data), "--tokenizer", str(profile.tokenizer_path), "--config", str(profile.config_path)),
            *("--bs", str(batch_size), "--output", str(bins), *row_counts(plan, version)),
        ),
        inputs=(plan.source(data), plan.source(profile.tokenizer_path), plan.source(profile.config_path)),
        outputs=(bins,),
        log=artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )


def infer(plan: Plan, batch_size: int, version: str, rows: int) -> Step:
    """The guide's accuracy run over every bin; `rows` of data, so ceil(rows / batch_size) output files."""
    artifacts = plan.artifacts
    bins, output = artifacts.bins(batch_size, version), artifacts.outputs(batch_size, version)
    name, title = plan.named("infer", batch_size, version)
    batches = contract.batch_count(rows, batch_size)
    named = ais_bench.output_file if plan.tool == ais_bench.MODULE else contract.output_file
    return Step(
        name=name,
        title=title,
        stage="" if plan.tool else "run-cpu",
        tool=plan.tool,
        arguments=_arguments(plan, batch_size, [f"{bins / i}/" for i in INPUTS], output),
        inputs=(*compiled_model(plan, batch_size), bins_of(plan, batch_size, version)),
        outputs=(output,),
        log=artifacts.log(name),
        commands=plan.commands(batch_size, version),
        inference=Inference(
            output=output,
            expected={named(i): contract.output_bytes(batch_size) for i in range(batches)},
            times=batches,
            bins=tuple(bins / i for i in INPUTS),
            bin_bytes=contract.input_bytes(batch_size, plan.length),
            device=plan.device,
        ),
    )


def perf(plan: Plan, batch_size: int, version: str, loops: int) -> Step:
    """The guide's performance run: the first bin alone, `loops` times; its output is kept under the guide's name."""
    artifacts = plan.artifacts
    bins, output, model = (
        artifacts.bins(batch_size, version),
        artifacts.performance(batch_size, version),
        artifacts.compiled(batch_size),
    )
    name, title = plan.named("perf", batch_size, version)
    first = tuple(bins / i / contract.input_file(0) for i in INPUTS)
    timing_log = artifacts.timing_log(batch_size, version, plan.tool or "msame")
    made = ais_bench.output_file(0) if plan.tool == ais_bench.MODULE else f"{model.stem}_output_0.bin"
    return Step(
        name=name,
        title=title,
        stage="" if plan.tool else "run-cpu",
        tool=plan.tool,
        arguments=_arguments(plan, batch_size, [str(path) for path in first], output, loops),
        inputs=(*compiled_model(plan, batch_size), bins_of(plan, batch_size, version)),
        outputs=(timing_log, output),
        log=artifacts.log(name),
        commands=plan.commands(batch_size, version),
        inference=Inference(
            output=output,
            expected={made: contract.output_bytes(batch_size)},
            times=loops,
            bins=first,
            bin_bytes=contract.input_bytes(batch_size, plan.length),
            device=plan.device,
            log_copy=timing_log,
        ),
    )


def postprocess(plan: Plan, batch_size: int, version: str, outputs: Path) -> Step:
    """`outputs` is the folder of input_<i>_output_0.bin: that of infer's record, or one that the user names."""
    artifacts, data = plan.artifacts, plan.profile.data_path(version)
    evaluation = artifacts.evaluation(batch_size, version)
    name, title = plan.named("postprocess", batch_size, version)
    return Step(
        name=name,
        title=title,
        stage="postprocess",
        arguments=(
            *("--outputs", str(outputs), "--data", str(data), "--bs", str(batch_size)),
            *("--output", str(evaluation), "--version", version, *row_counts(plan, version)),
        ),
        inputs=(Input(outputs, plan.command("infer", f" --bs {batch_size} --version {version}")), plan.source(data)),
        outputs=(evaluation, evaluation.with_suffix(".json")),
        log=artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )


def row_counts(plan: Plan, version: str) -> tuple[str, ...]:
    expected = plan.profile.rows[version]
    limit = ("--limit", str(plan.limit)) if plan.limit else ()
    return (*limit, "--rows", str(expected)) if expected is not None else limit


def _model_length(plan: Plan) -> tuple[str, ...]:
    if plan.any_length:
        return ("--any-length",)
    return () if plan.length == SEQUENCE_LENGTH else ("--sequence-length", str(plan.length))


def _arguments(
    plan: Plan, batch_size: int, inputs: Sequence[str], output: Path, loops: Optional[int] = None
) -> tuple[str, ...]:
    """The guide's line for msame, and for ais_bench its own; beyond it the gear of a model that has gears."""
    model = plan.artifacts.compiled(batch_size)
    gear = atc.dym_dims(batch_size, plan.atc, plan.length) if plan.tool else ()
    if plan.tool == ais_bench.MODULE:
        paths = [Path(path) for path in inputs]
        return (*ais_bench.command(model, paths, output, batch_size, plan.device, loops), *gear)
    if plan.tool and ".bin" in plan.profile.name:  # in a folder's name too, msame takes it for a file
        raise ConfigError(f"msame cannot run profile {plan.profile.name}: rename it, so that its name has no .bin")
    return (
        *("--model", str(model), "--input", ",".join(inputs), "--output", str(output)),
        *(("--loop", str(loops)) if loops is not None else ()),
        *(("--device", str(plan.device)) if plan.tool and plan.device else ()),
        *(("--lengths", str(plan.length)) if plan.any_length else ()),
        *gear,
    )


def compiled_model(plan: Plan, batch_size: int) -> tuple[Input, ...]:
    """All its files, the one that is named first: OpenVINO's .xml stays the same when only weights change."""
    compiled, command = plan.artifacts.compiled(batch_size), plan.command("build-om", f" --bs {batch_size}")
    weights = () if plan.backend == "ascend" else (compiled.with_suffix(".bin"),)
    return tuple(Input(path, command) for path in (compiled, *weights))


def bins_of(plan: Plan, batch_size: int, version: str) -> Input:
    command = plan.command("preprocess", f" --bs {batch_size} --version {version}")
    return Input(plan.artifacts.bins(batch_size, version), command)
