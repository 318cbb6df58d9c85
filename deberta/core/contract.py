"""What every stage agrees on: the model's inputs, outputs and labels, and the names and sizes of the guide's files."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any, Sequence, Union

from deberta.core.errors import ConfigError

SEQUENCE_LENGTH = 256
INPUTS = ("input_ids", "input_mask")  # int32 [batch, 256], in the order that msame passes them
OUTPUT = "logits"  # float32 [batch, 3]
LABELS = ("contradiction", "neutral", "entailment")
VERSIONS = ("match", "mismatch")
DEV_FILES = {"match": "dev_matched.tsv", "mismatch": "dev_mismatched.tsv"}
TRAIN_FILE = "train.tsv"
LANGUAGES = ("en", "zh")  # of a report's pages
PERFORMANCE_LOOPS = 100  # the guide's performance run; msame refuses more
CPU_LOOPS = 20  # of a performance run on cpu, whose fps stands beside no published figure
BACKENDS = ("ascend", "cpu")
EXECUTORS = ("docker", "local")
FP32, INT8, BF16 = PRECISIONS = ("fp32", "int8", "bf16")  # the cpu backend's; ATC's are options of its own
# What stands behind a figure in place of the present model: a run here of what the user supplied; or no run here.
SUPPLIED = "user-supplied"
SUPPLIED_OUTPUTS, SUPPLIED_LOG = f"{SUPPLIED} outputs", f"{SUPPLIED} log"
RUNNERS = ("msame", "ais_bench")  # the ascend backend's tools that run the model
SHARD_INDEX = ".index.json"  # ends the name of the list that says which shard of a checkpoint holds a tensor
ONNX_OPSET = 12  # proven by the guide's own ATC run; ATC 5.1.RC2 reads opset 9-13
ONNX_IR_VERSION = 7
# Producer name and version. The version is the export's form: raise it when the same weights give other bytes.
ONNX_PRODUCER = ("deberta-ascend", "1")
ONNX_MAX_BYTES = 2**31 - 1  # one protobuf file
LARGEST_WHOLE = 10**18 - 1


def loops_of(backend: str) -> int:
    """Inferences of a performance run, where the user does not say how many."""
    return CPU_LOOPS if backend == "cpu" else PERFORMANCE_LOOPS


def has_text_names(graph: Any) -> bool:
    """Whether the names in an ONNX GraphProto are text: protobuf gives bytes for one that is not UTF-8."""
    nodes = [(node.name, node.op_type, node.domain, *node.input, *node.output) for node in graph.node]
    values = [entry.name for entry in (*graph.input, *graph.output, *graph.initializer, *graph.value_info)]
    return all(isinstance(name, str) for names in (*nodes, values) for name in names)


def is_supplied(origin: str) -> bool:
    """Whether a figure is the user's own: its outputs or its log, not only its model."""
    return origin.startswith(SUPPLIED)


def ran_with(backend: str, parts: Sequence[str]) -> str:
    """The origin of a figure that was measured here with the user's own .om, ONNX or bins."""
    return f"on {backend}, {SUPPLIED} {' and '.join(parts)}"


def supplied_parts(origin: str) -> Sequence[str]:
    """Those parts; empty for every other origin."""
    match = re.fullmatch(rf"on \w+, {SUPPLIED} (.+)", origin)
    return match[1].split(" and ") if match else ()


def input_file(index: int) -> str:
    return f"input_{index}.bin"


def output_file(index: int) -> str:
    """The name that msame gives to output 0 of `input_<index>.bin`."""
    return f"input_{index}_output_0.bin"


def input_bytes(batch_size: int, length: int = SEQUENCE_LENGTH) -> int:
    """Bytes of one input bin: int32 [batch_size, length]."""
    return batch_size * length * 4


def output_bytes(batch_size: int) -> int:
    """Bytes of one output file: float32 [batch_size, 3]."""
    return batch_size * len(LABELS) * 4


def run_folder(now: datetime) -> str:
    """msame's name of an output folder: the local time, numbers without leading zeros, `20261122_22_1_58_100122`."""
    return f"{now.year}{now.month}{now.day}_{now.hour}_{now.minute}_{now.second}_{now.microsecond}"


def batch_count(rows: int, batch_size: int) -> int:
    """Batches that hold `rows` rows; the last one is filled with all-zero rows."""
    return -(-rows // batch_size)


def parse_batch_size(value: Union[str, int, None], default: int = 1) -> int:
    """A batch size from the command line, 1 to 1024. Raises ConfigError."""
    return parse_integer("--bs", value, default, 1, 1024)


def whole(text: str, low: int = 0, high: int = LARGEST_WHOLE) -> int:
    """A whole number within [low, high]: at most 18 ASCII digits. Raises ValueError."""
    if re.fullmatch("-?[0-9]{1,18}", text) and low <= int(text) <= high:
        return int(text)
    raise ValueError(f"{text[:40]!r} is not a whole number from {low} to {high}")


def parse_integer(option: str, value: Union[str, int, None], default: int, low: int, high: int) -> int:
    """An integer option within [low, high], `default` when it was not given. Raises ConfigError."""
    if value is None:
        return default
    try:
        return whole(str(value).strip(), low, high)
    except ValueError as error:
        raise ConfigError(f"{option} {error}") from None


def one_of(option: str, value: str, known: Sequence[str]) -> str:
    """An option that is one of a few words. Raises ConfigError."""
    if value not in known:
        raise ConfigError(f"{option} {value!r} is not one of: {', '.join(known)}")
    return value
