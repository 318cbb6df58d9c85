"""The tasks' options: one table, from which command lines, --help, explain's options and docs/commands.md come.

options.json has the names and texts; Options has the types, the values without an option, and how text is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional, TextIO

from deberta.core import buckets as bucketing
from deberta.core import contract, machine
from deberta.core.errors import ConfigError
from deberta.host.cli.auto import ALL, AUTO
from deberta.host.plan import comparison
from deberta.host.run.console import PLAIN, Surroundings


@dataclass(frozen=True)
class Option:
    """One option. `read` turns its text into a value, or raises ConfigError.

    `default`: the text that is read if none is typed. `usual`: what help says of the default if the settings or a stage
    decide. `empty`: the value without text and default. `kind`: str, bool (a flag) or list (may be repeated).
    """

    name: str  # as typed, without --
    meaning: str
    usual: str = ""
    short: str = ""
    positional: bool = False
    read: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    default: Optional[str] = None
    empty: Any = ""
    kind: type = str
    needed: bool = False

    @property
    def help(self) -> str:
        """The meaning, the choices and the default."""
        choices = f": {', '.join(self.choices)}" if self.choices else ""
        default = self.default or self.usual
        note = " (needed)" if self.needed else f" (default: {default})" if default else ""
        return f"{self.meaning}{choices}{note}"

    @property
    def flags(self) -> list[str]:
        """How the option is spelt: its short form, if it has one, and its name."""
        return [f"-{name}" if len(name) == 1 else f"--{name}" for name in (self.short, self.name) if name]

    @property
    def usage(self) -> str:
        """How the option is typed."""
        if self.positional:
            return self.name.upper()
        return ", ".join(self.flags) + ("" if self.kind is bool else f" {self.name.upper()}")

    @property
    def required_usage(self) -> str:
        """The shortest way to type it."""
        return self.usage.rpartition(", ")[2]

    def value(self, typed: Any) -> Any:
        """The value of what was typed, None if nothing was. Raises ConfigError."""
        if typed == "" or (self.kind is list and "" in (typed or ())):
            raise ConfigError(f"--{self.name} is given without a value: {self.meaning}")
        if self.kind is not str:
            return tuple(typed or ()) if self.kind is list else bool(typed)
        text = self.default if typed is None else str(typed)
        if text is None and self.needed:
            raise ConfigError(f"--{self.name} is needed: {' or '.join(self.choices) or self.meaning}")
        if text is None:
            return self.empty
        if self.choices:
            return contract.one_of(self.name.upper() if self.positional else f"--{self.name}", text, self.choices)
        return self.read(text)


def whole(option: str, low: int, high: int = 10**9) -> Callable[[str], int]:
    """A reader of whole numbers within `low` to `high`."""
    return lambda text: contract.parse_integer(option, text, low, low, high)


def decimal(option: str, low: float, high: float) -> Callable[[str], float]:
    """A reader of numbers with a decimal point or without, within `low` to `high`."""

    def read(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text) and low <= float(text) <= high:
            return float(text)
        raise ConfigError(f"{option} {text[:40]!r} is not a number from {low:.10g} to {high:.10g}, such as 1.5")

    return read


def device_counts(text: str) -> tuple[int, ...]:
    """Numbers of devices with commas between, each once, ascending. Raises ConfigError."""
    return tuple(sorted({contract.parse_integer("--devices", count, 1, 1, 10_000) for count in text.split(",")}))


def batch_sizes(text: str) -> tuple[int, ...]:
    """Batch sizes with commas between, each once, ascending. Raises ConfigError."""
    return tuple(sorted({contract.parse_batch_size(size) for size in text.split(",")}))


def devices(option: str, text: str) -> tuple[int, ...] | str:
    """Numbers of devices with commas between, each once, or ALL. Raises ConfigError."""
    if text == ALL:
        return ALL
    numbers = tuple(whole(option, 0, 255)(number) for number in text.split(","))
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ConfigError(f"{option} {text} names device {twice[0]} twice. Name each once")
    return numbers


def user_path(text: str) -> str:
    """A path that the user typed, absolute: it is relative to where the user stands. ~ is the home; links stay."""
    return os.path.abspath(os.path.expanduser(text))


def user_paths(text: str) -> tuple[str, ...]:
    """Paths with commas between."""
    return tuple(map(user_path, text.split(",")))


def text(default: Any = "", read: Callable[[str], Any] = str, choices: tuple[str, ...] = ()) -> Any:
    """A field of Options whose option has a text."""
    return field(default=default, metadata={"read": read, "choices": choices})


@dataclass
class Document:
    """The one document that a command prints with --json. Nothing else reaches standard output."""

    shown: bool = False
    stream: Optional[TextIO] = None


@dataclass(frozen=True)
class Options:
    """What was typed, read. A field whose option was not typed, or that the task does not take, has its default.

    Two fields of one name are read in two ways, and no task takes both.
    """

    # many tasks
    bs: int = text(1, contract.parse_batch_size)
    rows_bs: int = text(0, contract.parse_batch_size)
    sizes: tuple[int, ...] = text((), batch_sizes)
    version: str = text(choices=contract.VERSIONS)
    limit: int = text(0, whole("--limit", 1))
    loops: int = text(0, whole("--loops", 2, contract.PERFORMANCE_LOOPS))
    buckets: tuple[int, ...] | str = text((), bucketing.parse)
    precision: str = text(contract.FP32, choices=contract.PRECISIONS)
    profile: str = ""
    backend: str = text(choices=(AUTO, *contract.BACKENDS))
    soc_version: str = ""
    device: tuple[int, ...] | str = text((), partial(devices, "--device"))
    allow_different_devices: bool = False
    cluster: str = ""
    msame: str = text("", user_path)
    runner: str = text(choices=contract.RUNNERS)
    executor: str = text(choices=(AUTO, *contract.EXECUTORS))
    executors: str = ""
    keep: bool = False
    force: bool = False
    dry: bool = False
    verbose: bool = False
    json: bool = False
    rows: Optional[int] = text(None, whole("--rows", 0))
    outputs: str = ""
    seed: Optional[int] = text(None, whole("--seed", 0, 2**32 - 1))
    images: bool = False
    key: str = text("", user_path)
    # predict
    premise: str = ""
    hypothesis: str = ""
    table: str = text(read=user_path)
    rows_output: str = text(read=user_path)
    # export-onnx, build-om
    relative: str = text("shift", choices=("shift", "gather"))
    no_lint: bool = False
    # finetune
    init: str = ""
    epochs: str = ""
    steps: str = ""
    batch_size: str = ""
    learning_rate: str = ""
    warmup: str = ""
    # lint-onnx, check-fp16, compare
    model: str = ""
    format: str = text("text", choices=("text", "json", "sarif"))
    output: str = text("", user_path)
    severity: str = text("error", choices=("error", "warning", "note"))
    stats: bool = False
    batch_sizes: str = "1,8,64"
    margin: str = ""
    side_a: str = text(choices=tuple(comparison.OWN))
    side_b: str = text(choices=tuple(comparison.OWN))
    a_file: str = ""
    b_file: str = ""
    tolerance: str = ""
    layer_tolerance: str = ""
    all_layers: bool = False
    # verify, sign, diff, reproduce, explain
    tree: str = text("", user_path)
    acceptance: str = ""
    replay: int = text(0, whole("--replay", 1))
    strict: bool = False
    language: str = text(contract.LANGUAGES[0], choices=contract.LANGUAGES)
    require: str = text(choices=("checked", "accepted"))
    junit: str = text("", user_path)
    required: str = text(choices=("checked", "accepted", "no-worse"))
    no_worse: str = text(choices=("no-worse",))
    report_a: str = ""
    report_b: str = ""
    diff_format: str = text("text", choices=("text", "markdown", "json"))
    verify: bool = False
    baseline: str = ""
    baseline_fps: bool = False
    passphrase_env: str = ""
    new_key: str = text("", user_path)
    in_: str = text("", user_path)
    keep_places: bool = False
    compare: tuple[str, ...] = text((), user_paths)
    task: str = ""
    # add-profile
    profile_name: str = ""
    user_model: str = text("", user_path)
    data: tuple[str, ...] = ()
    labels: str = ""
    columns: str = ""
    label_words: str = ""
    tokenizer: str = text("", user_path)
    copy: bool = False
    # wheelhouse
    dir: str = text("", user_path)
    for_: tuple[str, ...] = ()
    dev: bool = False
    # cluster
    action: str = text(choices=("certs", "scheduler", "worker", "show", "job", "plan"))
    hosts: str = ""
    listen: str = ""
    days: int = text(365, whole("--days", 1, 3650))
    kubernetes: bool = False
    volcano: bool = False
    image: str = ""
    counts: tuple[int, ...] = text((), device_counts)
    per_host: int = text(8, whole("--per-host", 1, 64))
    fps: float = text(0.0, decimal("--fps", 1e-3, 1e6))
    compile_seconds: float = text(300.0, decimal("--compile-seconds", 0, 1e6))
    start_seconds: float = text(1.5, decimal("--start-seconds", 0, 1e4))
    ship_mb: float = text(45.0, decimal("--ship-mb", 1e-3, 1e6))
    lost: int = text(0, whole("--lost", 0, 100))
    shared: bool = False
    # adopt, fetch, images, ci-image, clean, demo
    folder: str = text("", user_path)
    only: str = "checkpoint,tokenizer,mnli"
    pretrained: bool = False
    from_: str = text("", user_path)
    mirror: tuple[str, ...] = ()
    accept_new: bool = False
    base: tuple[str, ...] = ()
    stage: tuple[str, ...] = ()
    platform: str = text(choices=tuple(machine.PLATFORMS.values()))
    context: str = text("", user_path)
    lock: bool = False
    tag: str = ""
    environments: bool = False
    containers: bool = False
    reports: bool = False
    yes: bool = False
    remake: bool = False
    # bench, test
    size: str = text("full", choices=("full", "tiny"))
    repeats: str = ""
    threads: str = ""
    engines: str = ""
    lengths: str = text("", user_path)
    against: str = ""
    publish: bool = False
    check: bool = False
    slow: bool = False
    campaign: bool = False
    emulated: bool = False
    k: str = ""
    path: str = text("", user_path)

    typed: Mapping[str, Any] = field(default_factory=dict)  # name -> text or flag, of every option that was typed
    document: Optional[Document] = None  # with --json
    surroundings: Surroundings = PLAIN  # by the environment
    planned: Optional[list[Any]] = None  # explain's: takes the steps and their sessions in place of running them


def _option(key: str, texts: Mapping[str, Any]) -> Option:
    """The option of a field of Options, by its texts and the field's declaration."""
    declared = next(entry for entry in fields(Options) if entry.name == key)
    kind = bool if declared.type == "bool" else str if declared.metadata or declared.type == "str" else list
    return Option(
        **{"name": key.strip("_").replace("_", "-"), **texts},
        **declared.metadata,
        default=str(declared.default) if declared.default and kind is str else None,
        empty=declared.default,
        kind=kind,
    )


# By field of Options.
OPTIONS: Mapping[str, Option] = {
    key: _option(key, texts) for key, texts in json.loads(Path(__file__).with_name("options.json").read_bytes()).items()
}
