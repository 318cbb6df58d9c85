"""What a plan is made of: a Plan names a run, a Case one batch size and version of it, a Step one command.

Nothing here touches a file. All paths are relative to the workspace.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath as Path
from typing import Iterable, Mapping, Optional, Sequence, Union

from deberta.ascend import ais_bench, atc
from deberta.ascend.atc import AtcOptions
from deberta.core import buckets
from deberta.core.buckets import Lengths
from deberta.core.contract import FP32, SEQUENCE_LENGTH
from deberta.core.errors import many
from deberta.core.paths import Artifacts, limited
from deberta.host.plan import profiles
from deberta.host.plan.profiles import Profile

STAGES = {  # the id of a stage, which records name, and the module that is it now
    "assess": "deberta.stages.report.assess",
    "check-data": "deberta.stages.data.check_data",
    "check-fp16": "deberta.stages.fp16.check_fp16",
    "compare": "deberta.stages.compare.compare",
    "compile-cpu": "deberta.stages.compile.compile_cpu",
    "convert-data": "deberta.stages.data.convert_data",
    "convert-pairs": "deberta.stages.data.convert_pairs",
    "demo-data": "deberta.stages.demo.demo_data",
    "describe-model": "deberta.stages.inference.describe_model",
    "export-onnx": "deberta.stages.compile.export_onnx",
    "finetune": "deberta.stages.train.finetune",
    "label-changes": "deberta.stages.inference.label_changes",
    "lint-onnx": "deberta.stages.lint.lint_onnx",
    "postprocess": "deberta.stages.inference.postprocess",
    "predict": "deberta.stages.inference.predict",
    "preprocess": "deberta.stages.data.preprocess",
    "pytorch-reference": "deberta.stages.inference.pytorch_reference",
    "render": "deberta.stages.report.render",
    "run-cpu": "deberta.stages.inference.run_cpu",
    "throughput": "deberta.stages.inference.throughput",
    "token-counts": "deberta.stages.data.token_counts",
}
# The stages that import PyTorch, themselves or by another module of ours; the image runtime-cpu does for all others.
TORCH = frozenset(["check-fp16", "compare", "describe-model", "export-onnx", "finetune", "pytorch-reference"])
LATEST = "/$T"  # stands for the folder that a run names after its time, where the run has not been yet
_OF_PRECISION = (
    "infer",
    "perf",
    "postprocess",
    "throughput",
    "label-changes",
)  # steps that a model of another precision has of its own
_UNLIMITED = ("export-onnx", "build-om", "perf", "report")  # tasks that know no --limit


@dataclass(frozen=True)
class Input:
    """Something a step reads, and the command that makes or gets it.

    `file`: what the command line names, where that is one file of a folder that is read.
    """

    path: Path
    command: str
    file: Optional[Path] = None


@dataclass(frozen=True)
class ModelRun:
    """Inference at one length: it writes `<output>/<T>/`, which is judged before it counts.

    `expected` maps output file names to bytes; `times` is the number of inferences. `bins`: what is given as --input,
    folders or files, each file of `bin_bytes` bytes.
    """

    output: Path
    expected: Mapping[str, int]
    times: int
    bins: tuple[Path, ...]
    bin_bytes: int


@dataclass(frozen=True)
class Inference:
    """What a step that runs the model leaves: a run of msame's or ais_bench's, or the cpu backend's of all lengths.

    `devices`: those of an accuracy run share its batches; a performance run has one. `log_copy` keeps the runner's
    output. `place`: HOST/DEVICE of a performance run beside that of the first device; empty for that one.
    """

    runs: tuple[ModelRun, ...]  # by increasing length
    devices: tuple[int, ...] = (0,)
    log_copy: Optional[Path] = None
    place: str = ""

    @property
    def device(self) -> int:
        """The one device of a run that has one, else the first."""
        return self.devices[0]


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

    A tool runs in a scratch folder that links to the workspace's.
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
    def task(self) -> str:
        """The task whose own step this is: export-onnx for the guide's model, build-om for one of another length."""
        kind = self.name.partition("_")[0]
        return self.commands.get(kind, f"invoke {kind}").split()[1]

    @property
    def module(self) -> str:
        """What Python runs as the stage; empty for a tool."""
        return STAGES[self.stage] if self.stage else ""

    @property
    def program(self) -> tuple[str, ...]:
        """What a tool's command line begins with."""
        return ("python3", "-m", self.tool) if self.tool == ais_bench.MODULE else (self.tool,)

    @property
    def needs_torch(self) -> bool:
        return self.stage in TORCH

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
        paths = [run.output for run in self.inference.runs] if self.inference else self.outputs
        return tuple(dict.fromkeys(path.parent for path in paths))


@dataclass(frozen=True)
class Plan:
    """Everything that names a run: paths, profile and options. The five from `soc_version` are the ascend backend's.

    `lengths`: the sequence lengths that rows run at, 256 alone for the padded run; `length` is the one that a step is
    about, if it is about one. `devices`: npu-smi's column Device; on cpu numbers of processes. `scratch`: as of
    Artifacts.
    """

    profile: Profile
    backend: str
    limit: int = 0
    soc_version: str = ""
    devices: tuple[int, ...] = (0,)
    atc: AtcOptions = atc.DEFAULTS
    runner: str = "msame"
    lint: bool = True
    lengths: Lengths = buckets.PADDED
    length: int = SEQUENCE_LENGTH
    precision: str = FP32
    scratch: str = ""

    @property
    def tool(self) -> str:
        """What runs the model, empty for the cpu backend's stage."""
        return self.runner if self.backend == "ascend" else ""

    @property
    def device(self) -> int:
        """The device of steps that run on one."""
        return self.devices[0]

    @property
    def is_padded(self) -> bool:
        """Whether all rows run at 256 tokens, as in the guide."""
        return self.lengths == buckets.PADDED

    @property
    def artifacts(self) -> Artifacts:
        name, bucketed = self.profile.name, not self.is_padded
        return Artifacts(name, self.backend, self.limit, self.length, bucketed, self.precision, self.scratch)

    @property
    def any_length(self) -> bool:
        """Whether one model runs all lengths, as the cpu backend's does."""
        return not self.is_padded and self.backend == "cpu"

    @property
    def model_length(self) -> tuple[str, str]:
        """What names and titles of steps that make a model say about its length."""
        if self.any_length:
            return "_lengths", " any length"
        return ("", "") if self.length == SEQUENCE_LENGTH else (f"_s{self.length}", f" s={self.length}")

    def command(self, task: str, options: str = "") -> str:
        """The command that runs one of our tasks for this profile, to be named in messages."""
        of_model = task not in ("export-onnx", "preprocess")
        # Accuracy on cpu runs at other lengths unless a command says 256.
        padded_accuracy = self.backend == "cpu" and options and task in ("infer", "postprocess", "evaluate")
        at_lengths = padded_accuracy if self.is_padded else task not in ("export-onnx", "report")
        settings = (
            (f" --buckets {buckets.text(self.lengths)}", at_lengths),
            (f" --profile {self.profile.name}", True),
            (" --backend ascend", self.backend == "ascend" and of_model),
            (f" --runner {self.tool}", self.tool == ais_bench.MODULE and task in ("infer", "evaluate", "perf")),
            (f" --precision {self.precision}", self.precision != FP32 and of_model),
            (f" --limit {self.limit}", self.limit and task not in _UNLIMITED),
        )
        return f"invoke {task}{options}" + "".join(text for text, applies in settings if applies)

    def source(self, path: Path) -> Input:
        """A file that the user brings; of an index of shards all of its folder is read."""
        name = self.profile.name
        commands = {"mnli": "invoke fetch --profile mnli", "demo": "invoke demo --remake"}
        command = commands.get(name, f"Put it there, or change profile {name} in invoke.yaml (docs/profiles.md)")
        folder = profiles.hashed(path)
        return Input(folder, command, path if folder != path else None)

    @property
    def labels(self) -> dict[str, Optional[str]]:
        """The option for the checkpoint's label order."""
        return {"--labels": ",".join(self.profile.labels) if self.profile.labels else None}


@dataclass(frozen=True)
class Case:
    """What a step is about: a batch size and version of a plan; batch size 0 and version "" where it is about none."""

    plan: Plan
    batch_size: int = 0
    version: str = ""

    @property
    def artifacts(self) -> Artifacts:
        return self.plan.artifacts

    @property
    def lengths(self) -> list[Case]:
        """A case for each length, in increasing order."""
        return [replace(self, plan=replace(self.plan, length=length)) for length in self.plan.lengths]

    @property
    def models(self) -> list[Case]:
        """A case for each model that runs the lengths: one on cpu, one a length on ascend."""
        return [self] if self.plan.any_length or self.plan.is_padded else self.lengths

    def of_lengths(self, lengths: Iterable[int]) -> Case:
        """The same at these lengths, which increase."""
        increasing = tuple(lengths)
        return replace(self, plan=replace(self.plan, lengths=increasing, length=increasing[-1]))

    @property
    def padded(self) -> Case:
        """The same with all rows at 256 tokens."""
        return self.of_lengths(buckets.PADDED)

    def sources(self, *names: str) -> dict[str, Input]:
        """What the user brings (checkpoint, config, tokenizer, data), by the flag that gives it to a stage."""
        paths = self.plan.profile.files([self.version] if self.version else [])
        by_name = dict(zip(("checkpoint", "config", "tokenizer", "data"), paths))
        return {f"--{name}": self.plan.source(by_name[name]) for name in names}

    @property
    def row_counts(self) -> dict[str, Optional[int]]:
        """The options by which a stage knows how many rows there are: of this run, and of the whole tsv."""
        return {"--limit": self.plan.limit, "--rows": self.plan.profile.rows[self.version]}

    @property
    def bins(self) -> Path:
        return self.artifacts.bins(self.batch_size, self.version)

    @property
    def outputs(self) -> Path:
        return self.artifacts.outputs(self.batch_size, self.version)

    @property
    def compiled(self) -> Path:
        return self.artifacts.compiled(self.batch_size)

    @property
    def evaluation(self) -> Path:
        return self.artifacts.evaluation(self.batch_size, self.version)

    @property
    def predictions(self) -> Path:
        return self.artifacts.predictions(self.batch_size, self.version)

    @property
    def timing_log(self) -> Path:
        return self.artifacts.timing_log(self.batch_size, self.version, self.plan.tool or "msame")

    def device_log(self, place: str) -> Path:
        """The timing log of a device beside the first, HOST/DEVICE."""
        return self.artifacts.device_log(self.batch_size, self.version, place, self.plan.tool or "msame")

    @property
    def throughput(self) -> Path:
        return self.artifacts.throughput(self.batch_size, self.version)

    @property
    def label_changes(self) -> Path:
        return self.artifacts.label_changes(self.batch_size, self.version)

    def command(self, task: str) -> str:
        """The command that runs a task for this case."""
        size = f" --bs {self.batch_size}" if self.batch_size else ""
        version = f" --version {self.version}" if self.version and task != "build-om" else ""
        return self.plan.command(task, size + version)

    @property
    def commands(self) -> dict[str, str]:
        """The command line of each task that a stage may name in a message."""
        of_case = ("preprocess", "infer", "postprocess", "evaluate", "perf", "build-om")
        # What export-onnx itself makes is the padded model.
        export = self.command("build-om") if self.plan.model_length[0] else self.plan.command("export-onnx")
        own = {"export-onnx": export, "report": self.plan.command("report")}
        return {**own, **{task: self.command(task) for task in of_case}}

    def named(self, step: str, of_all_lengths: bool = False) -> tuple[str, str]:
        """Name and title of a step; limited runs, lower precisions and other lengths have names of their own."""
        plan, size = self.plan, f"bs={self.batch_size}" if self.batch_size else ""
        precision = plan.precision if plan.precision != FP32 and step in _OF_PRECISION else ""
        part = length = lengths = ""
        if not plan.is_padded and of_all_lengths:
            part, lengths = "lengths", f"at {many(len(plan.lengths), 'length')}"
        elif not plan.is_padded and size:
            part, length = f"s{plan.length}", f"s={plan.length}"
        name = limited("_".join(filter(None, (step, size.replace("=", ""), self.version))), plan.limit)
        rows = f"first {plan.limit} rows" if plan.limit else ""
        title = (step, size, precision, length, self.version, lengths, rows)
        return "_".join(filter(None, (name, precision, part))), " ".join(filter(None, title))


StageOptions = Mapping[str, Union[str, int, bool, None]]


def stage(
    stage: str,
    case: Case,
    reads: Mapping[str, Union[Input, Sequence[Input]]],
    writes: Mapping[str, Union[Path, Sequence[Path]]],
    options: StageOptions,
    named: Optional[tuple[str, str]] = None,
    also_reads: Sequence[Input] = (),
    also_writes: Sequence[Path] = (),
) -> Step:
    """A step that a stage of ours does. Each path is named once, by the flag that gives it to the stage.

    Several paths of a flag are joined by commas. Options without a value (None, False, 0, "") are left out; True
    is a flag alone. `named`: name and title, where they are not the case's of this stage. `also_reads` and
    `also_writes` lie beside what a flag names.
    """
    name, title = named or case.named(stage)
    inputs = {flag: [value] if isinstance(value, Input) else list(value) for flag, value in reads.items()}
    outputs = {flag: [value] if isinstance(value, Path) else list(value) for flag, value in writes.items()}
    read = {flag: ",".join(str(needed.file or needed.path) for needed in value) for flag, value in inputs.items()}
    written = {flag: ",".join(map(str, value)) for flag, value in outputs.items()}
    arguments: list[str] = []
    for flag, value in {**read, **written, **options}.items():
        if value:
            arguments += [flag] if value is True else [flag, str(value)]
    return Step(
        name=name,
        title=title,
        stage=stage,
        arguments=tuple(arguments),
        inputs=(*(needed for value in inputs.values() for needed in value), *also_reads),
        outputs=(*(path for value in outputs.values() for path in value), *also_writes),
        log=case.artifacts.log(name),
        commands=case.commands,
    )
