"""The tasks' options: one table, from which command lines, --help, explain's options and docs/commands.md come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Callable, Optional

from deberta.core import buckets as bucketing
from deberta.core import contract
from deberta.core.errors import ConfigError
from deberta.host.cli.auto import AUTO
from deberta.host.plan import comparison

SETTING = "the setting in invoke.yaml"


def whole(option: str, low: int, high: int = 10**9) -> Callable[[str], int]:
    """A reader of whole numbers within `low` to `high`."""
    return lambda text: contract.parse_integer(option, text, low, low, high)


def batch_sizes(text: str) -> tuple[int, ...]:
    """Batch sizes with commas between, each once, ascending. Raises ConfigError."""
    return tuple(sorted({contract.parse_batch_size(size) for size in text.split(",")}))


@dataclass(frozen=True)
class Option:
    """One option. `read` turns its text into a value, or raises ConfigError.

    `default`: the text that is read if none is typed. `usual`: what help says of the default if the settings or a stage
    decide. `empty`: the value without text and default. `kind`: str, bool (a flag) or list (may be repeated).
    """

    meaning: str
    read: Callable[[str], Any] = str
    default: Optional[str] = None
    usual: str = ""
    choices: tuple[str, ...] = ()
    name: str = ""  # as typed, without --; empty in the declaration: the field's name
    short: str = ""
    empty: Any = ""
    kind: type = str
    positional: bool = False
    needed: bool = False

    @property
    def field(self) -> Any:
        """A field of Options: what is typed of this option, read."""
        value = self.value(None) if self.kind is not str or self.default else self.empty
        return field(default=value, metadata={"option": self})

    @property
    def help(self) -> str:
        """The meaning, the choices and the default."""
        choices = f": {', '.join(self.choices)}" if self.choices else ""
        default = self.default or self.usual
        note = " (needed)" if self.needed else f" (default: {default})" if default else ""
        return f"{self.meaning}{choices}{note}"

    def value(self, typed: Any) -> Any:
        """The value of what was typed, None if nothing was. Raises ConfigError."""
        if self.kind is not str:
            return tuple(typed or ()) if self.kind is list else bool(typed)
        text = self.default if typed is None else str(typed)
        if text is None and self.needed:
            raise ConfigError(f"--{self.name} is needed: {' or '.join(self.choices) or self.meaning}")
        if text is None:
            return self.empty
        return contract.one_of(f"--{self.name}", text, self.choices) if self.choices else self.read(text)


def flag(meaning: str) -> Any:
    return Option(meaning, kind=bool).field


@dataclass(frozen=True)
class Options:
    """What was typed, read. A field that the task does not take has its default or its empty value.

    Two fields of one name are read in two ways, and no task takes both.
    """

    # many tasks
    bs: int = Option("batch size", contract.parse_batch_size, "1", short="b").field
    sizes: tuple[int, ...] = Option(
        "batch sizes, commas between", batch_sizes, name="bs", short="b", usual=SETTING, empty=()
    ).field
    version: str = Option("the split", short="v", choices=contract.VERSIONS, usual="all").field
    limit: int = Option("the first N rows only; never a result", whole("--limit", 1), short="n", empty=0).field
    loops: int = Option("inferences of the performance run, 2 to 100", whole("--loops", 2, 100), "100").field
    buckets: tuple[int, ...] | str = Option(
        "lengths that rows run at, such as 32,64,128,256, or auto (from the data)", bucketing.parse, empty=()
    ).field
    precision: str = Option(
        "of the cpu backend's model; the accuracy of int8 is shown beside fp32's",
        default=contract.FP32,
        choices=contract.PRECISIONS,
    ).field
    profile: str = Option("which model and data: a profile of invoke.yaml", short="P", usual=SETTING).field
    backend: str = Option("what runs the model", choices=(AUTO, *contract.BACKENDS), usual=SETTING).field
    soc_version: str = Option("the chip to compile for: Ascend310P3, or auto to ask npu-smi", usual=SETTING).field
    device: Optional[int] = Option(
        "the NPU to run on: npu-smi's column Device", whole("--device", 0, 255), usual=SETTING, empty=None
    ).field
    msame: str = Option("the msame binary of the local executor", usual="docker/bin/msame").field
    runner: str = Option("what runs the model on ascend", choices=contract.RUNNERS, usual=SETTING).field
    executor: str = Option("what runs the steps", choices=(AUTO, *contract.EXECUTORS), short="x", usual=SETTING).field
    executors: str = Option(
        "what runs the steps of both places, or of each: local,docker", name="executor", short="x", usual=SETTING
    ).field
    keep: bool = flag("keep the steps' containers")
    force: bool = flag("run every step again, or build images that are there too")
    dry: bool = flag("print what would run, touch nothing")
    rows: Optional[int] = Option(
        "rows of the data, evenly spread; 0: all", whole("--rows", 0), usual="256", empty=None
    ).field
    outputs: str = Option("folder of input_<i>_output_0.bin, in the workspace or absolute", usual="infer's own").field
    seed: Optional[int] = Option(
        "seed of what is drawn: new weights and the order of rows, or the rows to replay",
        whole("--seed", 0, 2**32 - 1),
        usual="finetune 0, verify a random one, which is printed",
        empty=None,
    ).field
    images: bool = flag("the stage images: clean removes them instead, reproduce builds each twice and compares both")
    key: str = Option("PEM file: verify's public key, or the private one to sign with (Ed25519, PKCS8)").field
    # export-onnx, build-om
    relative: str = Option(
        "the graph's form; gather goes into dynamic_gather.onnx", default="shift", choices=("shift", "gather")
    ).field
    no_lint: bool = flag("compile with ATC even if lint-onnx finds errors; the record says so")
    # finetune
    init: str = Option("pretrained checkpoint to start from: a file or a Hugging Face folder").field
    epochs: str = Option("passes over train.tsv", usual="2").field
    steps: str = Option("steps instead of epochs").field
    batch_size: str = Option("rows in a step", usual="32").field
    learning_rate: str = Option("the peak of the learning rate", usual="2e-5").field
    warmup: str = Option("steps to that peak", usual="1000").field
    # lint-onnx, check-fp16, compare
    model: str = Option("ONNX file, in the workspace or absolute", usual="the profile's dynamic.onnx").field
    format: str = Option("format of the report", default="text", choices=("text", "json", "sarif")).field
    output: str = Option("write the report there instead of printing it").field
    severity: str = Option(
        "exit with 6 from this severity on", default="error", choices=("error", "warning", "note")
    ).field
    stats: bool = flag("count parameters, FLOP and bytes too, and the time at a 310P's peak")
    batch_sizes: str = Option("batch sizes to look at, commas between", default="1,8,64").field
    margin: str = Option("float32 margin from which a changed label counts, in logits", usual="0.1").field
    side_a: str = Option(f"one of: {', '.join(comparison.OWN)}", positional=True).field
    side_b: str = Option("what it is compared with, of the same", positional=True).field
    a_file: str = Option("what A runs in place of the profile's own: checkpoint, .onnx, .xml, outputs or .npy").field
    b_file: str = Option("the same for B").field
    tolerance: str = Option("largest difference of a logit", usual="1e-4; with fp16 or om 0.1").field
    layer_tolerance: str = Option(
        "largest difference of a layer, relative to its largest value", usual="2e-5; with fp16 0.02"
    ).field
    all_layers: bool = flag("compare every layer, also if the logits agree")
    # verify, sign, reproduce, explain
    tree: str = Option(
        "a copy of the workspace, with models/, data/ and results/", name="path", usual="the workspace"
    ).field
    replay: int = Option(
        "run this many rows, drawn at random, through dynamic.onnx", whole("--replay", 1), empty=0
    ).field
    passphrase_env: str = Option("the environment variable that holds the key's passphrase").field
    new_key: str = Option("make a key pair instead: PATH, and its public part PATH.pub").field
    in_: str = Option("make the places in this folder", usual=".cache/reproduce in the workspace").field
    keep_places: bool = flag("leave both places there")
    compare: str = Option("instead: A,B: compare two workspaces as they are, and make nothing").field
    task: str = Option("the task: evaluate, perf, build-om, ...", positional=True).field
    # fetch, images, ci-image, clean, demo
    only: str = Option(
        "what to get, of checkpoint, tokenizer, mnli, pretrained; commas between", default="checkpoint,tokenizer,mnli"
    ).field
    pretrained: bool = flag("also microsoft/deberta-v3-base, to train from")
    from_: str = Option("take the files from this folder instead of the network").field
    mirror: tuple[str, ...] = Option("URL of a folder with the files; tried first, may be repeated", kind=list).field
    accept_new: bool = flag("replace hashes that were recorded at first use")
    base: tuple[str, ...] = Option(
        "STAGE=IMAGE: build on another image, a digest or one that the engine has; STAGE=pinned: not any more",
        kind=list,
    ).field
    lock: bool = flag("write into docker/pins.toml what the tags and the files here are now, and build nothing")
    tag: str = Option("one more name for the image, NAME or NAME:TAG").field
    environments: bool = flag("also .venv and .venv-stages")
    containers: bool = flag("instead: containers that were kept or left")
    remake: bool = flag("make the demo's data, tokenizer and model again")
    # bench, test
    size: str = Option(
        "size of the random weights; full: the guide's config", default="full", choices=("full", "tiny")
    ).field
    repeats: str = Option("turns of each engine", usual="7").field
    threads: str = Option("threads of every engine", usual="the cores that may be used").field
    engines: str = Option("some of the engines, commas between", usual="all").field
    lengths: str = Option("text file with the tokens of each row", usual="of the profile's dev_matched.tsv").field
    publish: bool = flag("write docs/benchmarks.md and its plot too")
    slow: bool = flag("also the tests at full size")
    k: str = Option("tests whose names match, as pytest -k").field
    path: str = Option("a test file or folder", default="tests").field

    typed: Mapping[str, Any] = field(default_factory=dict)  # name -> text or flag, of every option that was typed
    planned: Optional[list[Any]] = None  # explain's: takes the steps and their sessions in place of running them


OPTIONS: Mapping[str, Option] = {  # by field of Options
    key: replace(entry, name=entry.name or key.strip("_").replace("_", "-"))
    for key, entry in ((each.name, each.metadata["option"]) for each in fields(Options) if each.metadata)
}
