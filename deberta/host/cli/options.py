"""The tasks' options: one table, from which command lines, --help, explain's options and docs/commands.md come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Callable, Optional

from deberta.core import buckets as bucketing
from deberta.core import contract
from deberta.core.errors import ConfigError
from deberta.host.plan import comparison

AUTO = "auto"
MANY = 10**9


def text(_: str, value: str) -> str:
    return value


def whole(low: int, high: int = MANY) -> Callable[[str, str], int]:
    """A reader of whole numbers within `low` to `high`."""
    return lambda option, value: contract.parse_integer(option, value, low, low, high)


def read_batch_size(_: str, value: str) -> int:
    return contract.parse_batch_size(value)


def read_batch_sizes(_: str, value: str) -> tuple[int, ...]:
    """Batch sizes with commas between, each once, ascending. Raises ConfigError."""
    return tuple(sorted({contract.parse_batch_size(size) for size in value.split(",")}))


def read_buckets(_: str, value: str) -> tuple[int, ...] | str:
    return bucketing.parse(value)


@dataclass(frozen=True)
class Option:
    """One option. `read` turns its name (for messages) and its text into a value, or raises ConfigError.

    `default`: the text that is read if none is typed. `usual`: what help says of the default if the settings or a stage
    decide. `empty`: the value without text and default. `kind`: str, bool (a flag) or list (may be repeated).
    """

    meaning: str
    read: Callable[[str, str], Any] = text
    name: str = ""  # as typed, without --
    short: str = ""
    default: Optional[str] = None
    usual: str = ""
    choices: tuple[str, ...] = ()
    kind: type = str
    empty: Any = ""
    positional: bool = False
    needed: bool = False

    @property
    def help(self) -> str:
        """The meaning, the choices and the default."""
        choices = f": {', '.join(self.choices)}" if self.choices else ""
        default = self.default or self.usual
        note = " (needed)" if self.needed and not self.positional else f" (default: {default})" if default else ""
        return f"{self.meaning}{choices}{note}"

    def value(self, typed: Any) -> Any:
        """The value of what was typed, None if nothing was. Raises ConfigError."""
        if self.kind is list:
            return tuple(typed or ())
        if self.kind is bool:
            return bool(typed)
        value = self.default if typed is None else str(typed)
        if value is None and self.needed:
            raise ConfigError(f"--{self.name} is needed: {' or '.join(self.choices) or self.meaning}")
        if value is None:
            return self.empty
        if self.choices:
            return contract.one_of(f"--{self.name}", value, self.choices)
        return self.read(f"--{self.name}", value)


def option(
    meaning: str,
    read: Callable[[str, str], Any] = text,
    *,
    name: str = "",
    short: str = "",
    default: Optional[str] = None,
    usual: str = "",
    choices: tuple[str, ...] = (),
    empty: Any = "",
    positional: bool = False,
) -> Any:
    """A field of Options that takes a value. `name`: as typed, if it is not the field's."""
    entry = Option(meaning, read, name, short, default, usual, choices, str, empty, positional, needed=positional)
    return field(default=replace(entry, needed=False).value(None), metadata={"option": entry})


def flag(meaning: str) -> Any:
    return field(default=False, metadata={"option": Option(meaning, kind=bool)})


def repeated(meaning: str) -> Any:
    return field(default=(), metadata={"option": Option(meaning, kind=list)})


@dataclass(frozen=True)
class Options:
    """What was typed, read. A field that the task does not take has its default or its empty value.

    Two fields of one name are read in two ways, and no task takes both.
    """

    bs: int = option("batch size", read_batch_size, short="b", default="1")
    sizes: tuple[int, ...] = option(
        "batch sizes, comma separated",
        read_batch_sizes,
        name="bs",
        short="b",
        usual="batch_sizes in invoke.yaml",
        empty=(),
    )
    version: str = option("the split", short="v", choices=contract.VERSIONS, usual="all")
    limit: int = option("the first N rows only; never a result", whole(1), short="n", empty=0)
    loops: int = option("inferences of the performance run, 2 to 100", whole(2, 100), default="100")
    buckets: tuple[int, ...] | str = option(
        "lengths that rows run at, such as 32,64,128,256, or auto (from the data)", read_buckets, empty=()
    )
    precision: str = option(
        "of the cpu backend's model; int8 is quantized, its accuracy shown beside fp32's",
        choices=contract.PRECISIONS,
        default=contract.FP32,
    )
    profile: str = option("which model and data: a profile of invoke.yaml", short="P", usual="profile in invoke.yaml")
    backend: str = option(
        "what compiles and runs the model", choices=(AUTO, *contract.BACKENDS), usual="backend in invoke.yaml"
    )
    soc_version: str = option(
        "the chip to compile for: Ascend310P3, or auto to ask npu-smi", usual="soc_version in invoke.yaml"
    )
    device: Optional[int] = option(
        "the NPU to run on: npu-smi's column Device", whole(0, 255), usual="device in invoke.yaml", empty=None
    )
    msame: str = option("the msame binary of the local executor", usual="docker/bin/msame")
    runner: str = option("what runs the model on ascend", choices=contract.RUNNERS, usual="runner in invoke.yaml")
    no_lint: bool = flag("compile with ATC even if lint-onnx finds errors; the record says so")
    relative: str = option(
        "the graph's form; gather: the reference form, in dynamic_gather.onnx",
        choices=("shift", "gather"),
        default="shift",
    )
    outputs: str = option(
        "folder of input_<i>_output_0.bin, in the workspace or absolute", usual="the one that infer left"
    )
    executor: str = option(
        "what runs the steps", short="x", choices=(AUTO, *contract.EXECUTORS), usual="executor in invoke.yaml"
    )
    executors: str = option(
        "what runs the steps of both places, or of each: local,docker",
        name="executor",
        short="x",
        usual="executor in invoke.yaml",
    )
    keep: bool = flag("keep the steps' containers")
    force: bool = flag("run every step again, or build images that are there too")
    dry: bool = flag("print what would run, touch nothing")
    # check-fp16, compare, bench
    rows: Optional[int] = option("rows of the data, evenly spread; 0: all", whole(0), usual="256", empty=None)
    margin: str = option("float32 margin from which a changed label counts, in logits", usual="0.1")
    side_a: str = option(f"one of: {', '.join(comparison.OWN)}", positional=True)
    side_b: str = option("what it is compared with, of the same", positional=True)
    a_file: str = option(
        "what A is made of instead of the profile's own: checkpoint, .onnx, .xml, folder of outputs or .npy"
    )
    b_file: str = option("the same for B")
    tolerance: str = option("largest difference of a logit", usual="1e-4; with fp16 or om 0.1")
    layer_tolerance: str = option("of a layer, relative to its largest value", usual="2e-5; with fp16 0.02")
    all_layers: bool = flag("compare every layer, also if the logits agree")
    # lint-onnx
    model: str = option(
        "an ONNX file, in the workspace or absolute", usual="the profile's dynamic.onnx, exported if need be"
    )
    format: str = option("of the report", choices=("text", "json", "sarif"), default="text")
    output: str = option("write the report there instead of printing it")
    severity: str = option("exit with 6 from this severity on", choices=("error", "warning", "note"), default="error")
    stats: bool = flag("count parameters, FLOP and bytes too, and the time at a 310P's peak")
    batch_sizes: str = option("batch sizes to look at, comma separated", default="1,8,64")
    # fetch, images, ci-image, clean, demo
    only: tuple[str, ...] = option(
        "what to get, comma separated: checkpoint, tokenizer, mnli, pretrained",
        lambda _, value: tuple(name.strip() for name in value.split(",")),
        default="checkpoint,tokenizer,mnli",
    )
    pretrained: bool = flag("also microsoft/deberta-v3-base, to train from")
    from_: str = option("take the files from this folder instead of the network")
    mirror: tuple[str, ...] = repeated("URL of a folder that holds the files; tried first, may be given several times")
    accept_new: bool = flag("replace hashes that were recorded at first use")
    base: tuple[str, ...] = repeated(
        "STAGE=IMAGE: build on another image, a digest or one that the engine has; STAGE=pinned takes it back"
    )
    lock: bool = flag("write into docker/pins.toml what the tags and the files here are now, and build nothing")
    tag: str = option("one more name for the image, NAME or NAME:TAG")
    environments: bool = flag("also .venv and .venv-stages")
    images: bool = flag("the stage images: clean removes them instead, reproduce builds each twice and compares both")
    containers: bool = flag("instead: containers that were kept or left")
    remake: bool = flag("make the demo's data, tokenizer and model again")
    # finetune
    init: str = option(
        "start from a pretrained checkpoint: a file or a Hugging Face folder, in the workspace or absolute"
    )
    epochs: str = option("passes over train.tsv", usual="2")
    steps: str = option("steps instead of epochs")
    batch_size: str = option("rows in a step", usual="32")
    learning_rate: str = option("its peak", usual="2e-5")
    warmup: str = option("steps to the peak", usual="1000")
    seed: Optional[int] = option(
        "of what is drawn at random: new weights and the order of rows, or the rows to replay",
        whole(0, 2**32 - 1),
        usual="finetune: 0; verify: a random one, which is printed",
        empty=None,
    )
    # verify, sign, reproduce, explain
    tree: str = option(
        "a copy of the workspace, with models/, data/ and results/ in it", name="path", usual="the workspace"
    )
    replay: int = option("run this many rows, drawn at random, through dynamic.onnx too", whole(1), empty=0)
    key: str = option("a PEM file: the public key that must have signed the report, or the private Ed25519 key to sign")
    passphrase_env: str = option("the environment variable that holds the key's passphrase")
    new_key: str = option("make a key pair instead: PATH, and its public part PATH.pub")
    in_: str = option("make the places in this folder", usual=".cache/reproduce in the workspace")
    keep_places: bool = flag("leave both places there")
    compare: str = option("instead: A,B: compare two workspaces as they are, and make nothing")
    task: str = option("the task: evaluate, perf, build-om, ...", positional=True)
    # bench, test
    size: str = option("of the random weights: full is the guide's config", choices=("full", "tiny"), default="full")
    repeats: str = option("turns of each engine", usual="7")
    threads: str = option("of every engine", usual="the cores that may be used")
    engines: str = option("some of the engines, comma separated", usual="all")
    lengths: str = option(
        "tokens of each row of real data, in a text file", usual="the profile's dev_matched.tsv, if it is there"
    )
    publish: bool = flag("write docs/benchmarks.md and its plot too")
    slow: bool = flag("also the tests at full size")
    k: str = option("tests whose names match, as pytest -k")
    path: str = option("a test file or folder", default="tests")

    typed: Mapping[str, Any] = field(default_factory=dict)  # name -> what was typed, of all that was


OPTIONS: Mapping[str, Option] = {
    entry.name: replace(
        entry.metadata["option"], name=entry.metadata["option"].name or entry.name.strip("_").replace("_", "-")
    )
    for entry in fields(Options)
    if entry.metadata
}
