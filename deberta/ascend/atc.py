"""ATC, which compiles dynamic.onnx for the Ascend chip: its command line, reading its output, judging its outcome.

A compilation counts only if the success line and no failure was printed, the exit code is 0, and this run wrote an .om
that is large enough for its weights. failures.json explains failures.
Sources: ge/offline/main.cc, ge/ir_build/option_utils.cc and ge/graph/preprocess/multi_batch_options.cc of graphengine
v1.8.0, the published source nearest to CANN 5.1.RC2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple, Optional

import msgspec

from deberta.ascend import causes
from deberta.ascend.causes import Message, Printed
from deberta.core.contract import INPUTS
from deberta.core.errors import ConfigError, DataError, DebertaError, StageError

SUCCESS_LINE, FAILED_LINE = "ATC run success", "ATC run failed"
CLOCK_GRAIN_SECONDS = 1.0  # file systems that keep whole seconds round a file's time down

# "values": those that ATC takes. "files": options that name a file. "refused": not allowed under extra, with
# the reason: we set them from the profile and --bs, or they make ATC do something else.
_OPTIONS = msgspec.json.decode(Path(__file__).with_name("atc_options.json").read_bytes())
_FEWEST_GEARS, _MOST_GEARS = 2, 100  # ATC's limits

_EXTRA = re.compile(r"--([a-z][a-z0-9_]*)=[^\x00-\x1f]*")
_OUTPUT_TYPE = re.compile(r"(?:[^:;\s]+:\d+:)?FP32")
_PATH = re.compile(r"[\u4e00-\u9fa5A-Za-z0-9./_-]+")  # common/util.cc: characters that ATC allows in a file's real path
_SLOW_OP = re.compile(r"[Oo]p ?\[([^\]]{1,1000})\]")


@dataclass(frozen=True)
class AtcOptions:
    """Options that invoke.yaml's `atc` passes to ATC, under ATC's own names; an empty value leaves ATC's default.

    Values of `op_precision_mode`, `keep_dtype`, `modify_mixlist` and `fusion_switch_file` are files, relative to the
    workspace or absolute. `dynamic_dims` are gears of the batch axis: "1,1;8,8", one number for each of the model's two
    inputs; the largest is the batch size. `extra` holds other options, each `--name=value`.
    """

    precision_mode: str = ""
    op_precision_mode: str = ""
    op_select_implmode: str = ""
    optypelist_for_implmode: str = ""
    keep_dtype: str = ""
    modify_mixlist: str = ""
    dynamic_dims: str = ""
    fusion_switch_file: str = ""
    buffer_optimize: str = ""
    output_type: str = ""
    log: str = "error"  # the guide's
    extra: tuple[str, ...] = ()


DEFAULTS = AtcOptions()
_NAMES = tuple(option.name for option in fields(AtcOptions) if option.name != "extra")


def options(values: Optional[Mapping[str, Any]]) -> AtcOptions:
    """The options of invoke.yaml's `atc`. Raises ConfigError naming everything wrong with them."""
    entries = {str(key): value for key, value in (values or {}).items() if value not in (None, "", [])}
    extra = entries.pop("extra", [])
    problems = [f"unknown key {key!r} (put other options of ATC under extra)" for key in entries if key not in _NAMES]
    problems += [f"{key} {value!r} is not text" for key, value in entries.items() if not isinstance(value, str)]
    if not isinstance(extra, (list, tuple)) or not all(isinstance(item, str) for item in extra):
        problems.append("extra is not a list of texts like --name=value")
    settings = AtcOptions(**entries, extra=tuple(extra)) if not problems else DEFAULTS
    problems += [*_wrong_values(settings), *_wrong_gears(settings.dynamic_dims), *_wrong_extra(settings)]
    if problems:
        raise ConfigError(f"atc in invoke.yaml: {'; '.join(problems)}")
    return settings


def _wrong_values(settings: AtcOptions) -> Iterator[str]:
    for name, allowed in _OPTIONS["values"].items():
        value = getattr(settings, name)
        if value and value not in allowed:
            yield f"{name} {value!r} is not one of: {', '.join(allowed)}"
    if settings.modify_mixlist and settings.precision_mode != "allow_mix_precision":
        yield "modify_mixlist needs precision_mode allow_mix_precision"
    if settings.optypelist_for_implmode and not settings.op_select_implmode:
        yield "optypelist_for_implmode needs op_select_implmode to be given too"
    if settings.output_type and not _OUTPUT_TYPE.fullmatch(settings.output_type):
        yield (
            f"output_type {settings.output_type!r} is not FP32 (or <node>:0:FP32): postprocess reads float32 outputs, "
            "and would read others as wrong numbers"
        )


def _wrong_gears(text: str) -> Iterator[str]:
    if not text:
        return
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*(;[0-9]{1,9}(,[0-9]{1,9})*)*", text):
        yield f"dynamic_dims {text!r} is not like 1,1;8,8"
        return
    gears = _gears(text)
    if not _FEWEST_GEARS <= len(gears) <= _MOST_GEARS:
        yield f"dynamic_dims has {len(gears)} gears, ATC takes {_FEWEST_GEARS} to {_MOST_GEARS}"
    if len(set(gears)) < len(gears):
        yield "dynamic_dims names a gear twice"
    for gear in gears:
        if len(gear) != len(INPUTS) or len(set(gear)) > 1 or min(gear) < 1:
            yield f"gear {','.join(map(str, gear))} of dynamic_dims is not {len(INPUTS)} equal batch sizes above 0"


def _gears(text: str) -> list[tuple[int, ...]]:
    return [tuple(map(int, gear.split(","))) for gear in text.split(";")]


def _wrong_extra(settings: AtcOptions) -> Iterator[str]:
    reasons = {**_OPTIONS["refused"], **dict.fromkeys(_NAMES, "has a key of its own under atc")}
    if settings.dynamic_dims:
        reasons["insert_op_conf"] = "and dynamic_dims exclude each other"
    for item in settings.extra:
        match = _EXTRA.fullmatch(item)
        if match is None:
            yield f"extra {item!r} is not like --name=value"
        elif match[1] in reasons:
            yield f"--{match[1]} {reasons[match[1]]}"


def option_files(settings: AtcOptions) -> tuple[PurePosixPath, ...]:
    """The files that the options name: a compilation reads them, so its record depends on them."""
    return tuple(PurePosixPath(getattr(settings, name)) for name in _OPTIONS["files"] if getattr(settings, name))


def rooted(settings: AtcOptions, folder: Path) -> AtcOptions:
    """The same options with their files absolute, for a run in another working directory."""
    paths: dict[str, Any] = {n: str(folder / path) for n in _OPTIONS["files"] if (path := getattr(settings, n))}
    return replace(settings, **paths)


def check_paths(files: Sequence[Path]) -> None:
    """Raise ConfigError for files that ATC would refuse (E10001) for a character in their real path, e.g. a space."""
    for path in files:
        if not _PATH.fullmatch(str(path.resolve())):
            raise ConfigError(
                f"ATC takes only letters, digits and ./_- in a path, and {path.resolve()} has others. Use a workspace "
                "and files in folders that are named so"
            )


def command(
    model: PurePath, om: PurePath, batch_size: int, soc_version: str, settings: AtcOptions, length: int
) -> tuple[str, ...]:
    """The guide's atc line, then the options. `om` ends in .om, which ATC adds itself.

    With `dynamic_dims` the batch axis is -1, and the largest gear has to be `batch_size`: msame's output files have the
    size of the largest. Raises ConfigError if it is not.
    """
    batch = "-1" if settings.dynamic_dims else str(batch_size)
    if settings.dynamic_dims and (largest := max(_gears(settings.dynamic_dims))[0]) != batch_size:
        raise ConfigError(
            f"the largest gear of dynamic_dims is {largest} and the batch size is {batch_size}: they have to be equal. "
            f"Use --bs {largest}, or change dynamic_dims under atc in invoke.yaml"
        )
    return (
        "atc",
        "--framework=5",  # ONNX
        f"--model={model}",
        f"--output={om.with_suffix('')}",
        "--input_format=ND",
        f"--input_shape={';'.join(f'{name}:{batch},{length}' for name in INPUTS)}",
        f"--soc_version={soc_version}",
        f"--log={settings.log}",
        *(f"--{name}={getattr(settings, name)}" for name in _NAMES if name != "log" and getattr(settings, name)),
        *settings.extra,
    )


def dym_dims(batch_size: int, settings: AtcOptions, length: int) -> tuple[str, ...]:
    """msame's options that select the gear; without them it does not run a model that has gears."""
    if not settings.dynamic_dims:
        return ()
    return ("--dymDims", ";".join(f"{name}:{batch_size},{length}" for name in INPUTS))


class AtcOutcome(NamedTuple):
    """What a run printed: whether its success and failure lines, its messages, and its lines by level."""

    success: bool
    failed: bool
    errors: tuple[Message, ...]
    warnings: tuple[Message, ...]
    printed: Printed = Printed()


def least_bytes(onnx_bytes: int) -> int:
    """The least size of an .om of that model: it holds the weights, in float16 as a rule; a quarter leaves room."""
    return onnx_bytes // 4


def parse(stdout: str) -> AtcOutcome:
    """Read what ATC printed, on stdout and stderr together; lines of other kinds are passed over."""
    lines = [line.rstrip() for line in causes.lines_of(stdout)]
    printed = causes.read(stdout)
    return AtcOutcome(
        success=any(line.lstrip(".").startswith(SUCCESS_LINE) for line in lines),
        failed=any(line.lstrip(".").startswith(FAILED_LINE) for line in lines),
        errors=printed.coded,
        warnings=tuple(m for m in causes.messages(line for line in lines if "W" in line) if m.code.startswith("W")),
        printed=printed,
    )


def summary(outcome: AtcOutcome) -> dict[str, Any]:
    """For the record: every warning, and the operators that run on a slow path (W11001)."""
    slow = [match[1] for m in outcome.warnings if m.code == "W11001" and (match := _SLOW_OP.search(m.text))]
    return {"warnings": [f"{m.code}: {m.text}" for m in outcome.warnings], "slow_ops": sorted(set(slow))}


def judge(outcome: AtcOutcome, exit_code: int, om: Path, started: float, minimum_bytes: int, log: PurePath) -> None:
    """Return if the compilation is good, otherwise raise the error that names the cause.

    `started`: Unix time before the run, or the st_mtime of a file written then beside `om` where a file server's clock
    may differ. `minimum_bytes`: less cannot hold the weights. `log` is named where ATC itself gives no reason.
    Raises the error that failures.json has for what ATC printed; StageError for other failures and for an .om that was
    not written, DataError for an .om that is empty, too small or older.
    """
    see = f". Its output is in {log}"
    if outcome.errors or outcome.failed or exit_code != 0 or not outcome.success:
        error = causes.failure("atc", outcome.printed, _failed(outcome, exit_code))
        raise type(error)(f"{str(error).rstrip(' .')}{see}")
    contradiction, minimum_bytes = f"atc printed its success line, but {om}", max(1, minimum_bytes)
    if not om.is_file():
        raise StageError(f"{contradiction} is not there{see}")
    state = om.stat()
    if state.st_mtime < started - CLOCK_GRAIN_SECONDS:
        raise DataError(f"{contradiction} is older than the run: it was not written{see}")
    if state.st_size < minimum_bytes:
        size = "is empty" if state.st_size == 0 else f"has {state.st_size:,} bytes, too few for the model's weights"
        raise DataError(f"{contradiction} {size} (at least {minimum_bytes:,}){see}")


def _failed(outcome: AtcOutcome, exit_code: int) -> DebertaError:
    """How a run ended, which is its error if its lines show no cause."""
    if ended := causes.ended("atc", exit_code):
        return StageError(ended)
    if outcome.success and not outcome.failed:
        end = f"ended with exit code {exit_code}" if exit_code else "an error too"
        return StageError(f"atc printed its success line, but {end}")
    if outcome.failed:
        return StageError(f"atc failed with exit code {exit_code}{'' if outcome.errors else ' and gave no error code'}")
    return StageError(f"atc ended with exit code {exit_code} and without its success line")
