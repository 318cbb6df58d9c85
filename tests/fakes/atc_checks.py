"""atc's options and what it refuses, in its order: options first, then the model, then both together.

Follows the flag tables and checks of the public GE source 1.8. Own choices, where nothing is established: E19999 for
fixed dimensions that --input_shape contradicts and for shapes that stay open; E10045 for a wrong count per gear.
"""

from __future__ import annotations

import math
import os
import re
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from . import om, onnx_reader
from .atc_codes import AtcError

MODEL_LIMIT = 2**31 - 1  # protobuf
OPSETS = range(9, 14)
GEARS = (2, 100)
SOC_VERSIONS = (
    *("Ascend310", "Ascend310P1", "Ascend310P2", "Ascend310P3", "Ascend310P4", "Ascend310P5", "Ascend310P7"),
    *("Ascend610", "Ascend710", "Ascend910", "Ascend910A", "Ascend910B", "Ascend910ProA", "Ascend910ProB"),
)
CHOICES = {
    "precision_mode": (
        *("force_fp16", "force_fp32", "allow_fp32_to_fp16", "allow_mix_precision", "must_keep_origin_dtype"),
    ),
    "op_select_implmode": (
        *("high_performance", "high_precision", "high_performance_for_all", "high_precision_for_all"),
    ),
    "buffer_optimize": ("l2_optimize", "l1_optimize", "off_optimize"),
    "op_compiler_cache_mode": ("disable", "enable", "force"),
    "enable_small_channel": ("0", "1"),
    "disable_reuse_memory": ("0", "1"),
}
FREE = (
    *("mode", "framework", "model", "output", "input_format", "input_shape", "soc_version", "modify_mixlist", "log"),
    *("op_precision_mode", "optypelist_for_implmode", "keep_dtype", "output_type", "dynamic_batch_size"),
    *("dynamic_image_size", "dynamic_dims", "input_shape_range", "fusion_switch_file", "auto_tune_mode", "debug_dir"),
    *("op_compiler_cache_dir", "check_report", "op_debug_level", "insert_op_conf", "out_nodes", "input_fp16_nodes"),
)
EXCLUSIVE = ("dynamic_batch_size", "dynamic_image_size", "input_shape_range", "dynamic_dims")
FILES = ("op_precision_mode", "keep_dtype", "fusion_switch_file", "modify_mixlist", "insert_op_conf")
OUTPUT_TYPE = re.compile(r"(?:[^:;]+:\d+:)?(?:FP32|FP16|UINT8)")
OPERATORS = frozenset(  # of ONNX opset 13 and older
    re.findall(
        r"\w+",
        """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift Cast Ceil
Celu Clip Compress Concat ConcatFromSequence Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh
CumSum DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand
EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
Greater GreaterOrEqual HardSigmoid Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM LeakyRelu Less
LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool
Mean MeanVarianceNormalization Min Mod Mul Multinomial Neg NegativeLogLikelihoodLoss NonMaxSuppression NonZero
Not OneHot Or PRelu Pad Pow QLinearConv QLinearMatMul QuantizeLinear RNN RandomNormal RandomNormalLike
RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round
Scan Scatter ScatterElements ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty SequenceErase
SequenceInsert SequenceLength Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss
Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt Squeeze StringNormalizer Sub Sum Tan Tanh
TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Unique Unsqueeze Upsample Where Xor
""",
    )
)

Shapes = Dict[str, Tuple[int, ...]]
Gear = Tuple[int, ...]


class UnknownFlagError(Exception):
    """A flag that atc does not have; the flag library ends the program."""


def parse(argv: Sequence[str]) -> Dict[str, str]:
    """`--name=value` and `--name value`, with one dash or two. Raises UnknownFlagError."""
    options: Dict[str, str] = {}
    at = 0
    while at < len(argv):
        match = re.fullmatch(r"--?([A-Za-z_]+)(?:=(.*))?", argv[at], re.DOTALL)
        at += 1
        if match is None:
            continue  # a word that is no flag is passed over
        name, value = match.groups()
        if name not in FREE and name not in CHOICES:
            raise UnknownFlagError(name)
        if value is None:
            value = argv[at] if at < len(argv) else ""
            at += 1
        options[name] = value
    return options


def check_options(options: Mapping[str, str]) -> None:
    """What can be refused without the model."""
    if options.get("mode", "0") != "0":
        raise AtcError("E19999", f"the stand-in has no mode {options['mode']}")
    if options.get("framework") not in ("0", "1", "3", "5"):
        raise AtcError("E10007")
    if options["framework"] != "5":
        raise AtcError("E19999", "the stand-in reads ONNX models alone")
    for name in ("model", "output", "soc_version"):
        if not options.get(name):
            raise AtcError("E10004", f"Value for [--{name}] is empty.")
    if options.get("input_format", "NCHW") not in ("NCHW", "ND", "NCDHW"):
        raise _bad(options, "input_format")
    for name, allowed in CHOICES.items():
        if name in options and options[name] not in allowed:
            raise _bad(options, name)
    if options.get("log", "null") not in ("null", "debug", "info", "warning", "error"):
        raise AtcError("E10010", f"Value [{options['log']}] for parameter [--log] is invalid.")
    if options.get("modify_mixlist") and options.get("precision_mode") != "allow_mix_precision":
        raise _bad(options, "modify_mixlist")
    if options.get("optypelist_for_implmode") and not options.get("op_select_implmode"):
        raise _bad(options, "optypelist_for_implmode")
    if not all(OUTPUT_TYPE.fullmatch(part) for part in options.get("output_type", "FP32").split(";")):
        raise _bad(options, "output_type")
    if sum(1 for name in EXCLUSIVE if options.get(name)) > 1:
        raise AtcError("E10009")
    for name in FILES:
        if options.get(name) and not os.path.isfile(options[name]):
            raise AtcError("E10410", f"File [{options[name]}] does not exist.")
    folder, _, file = options["output"].rpartition("/")
    if not file or not os.path.isdir(folder or ("/" if options["output"].startswith("/") else ".")):
        raise AtcError("E10022", f"Path [{options['output']}] for parameter [--output] does not include the file name.")
    if options["soc_version"] not in SOC_VERSIONS:
        raise AtcError("EE1000", f"Value [{options['soc_version']}] for parameter [--soc_version] is invalid.")


def _bad(options: Mapping[str, str], name: str) -> AtcError:
    return AtcError("E10001", f"Value [{options[name]}] for parameter [--{name}] is invalid. Reason: not supported.")


def parse_shapes(text: str, dynamic: bool) -> Shapes:
    """`a:1,2;b:1,2` -> dimensions by name; -1 is allowed only with one of the dynamic options."""
    shapes: Shapes = {}
    for part in filter(None, text.split(";")):
        name, colon, dims = part.rpartition(":")  # names may hold colons
        if not colon or not name or not dims:
            raise _bad_shape("E10002", part, "it must be name:sizes")
        sizes = []
        for dim in (dim.strip() for dim in dims.split(",")):
            if not re.fullmatch(r"-?\d+", dim):
                raise _bad_shape("E10002", part, f"[{dim}] is not digit")
            if abs(int(dim)) > 2**63 - 1:
                raise _bad_shape("E10014", part, f"[{dim}] is out of range")
            if int(dim) <= 0 and not (dynamic and dim == "-1"):
                raise _bad_shape("E10011", part, f"[{dim}] is not positive")
            sizes.append(int(dim))
        shapes[name] = tuple(sizes)
    return shapes


def _bad_shape(code: str, part: str, reason: str) -> AtcError:
    return AtcError(code, f"Value [{part}] for parameter [--input_shape] is invalid. Reason: {reason}.")


def parse_gears(text: str) -> List[Gear]:
    """`64,64;128,128` -> one tuple per gear."""
    gears = []
    for part in filter(None, text.split(";")):
        if not re.fullmatch(r"-?\d+(,-?\d+)*", part):
            raise AtcError("E10001", f"Value [{part}] for parameter [--dynamic_dims] is invalid. Reason: not digit.")
        gears.append(tuple(int(size) for size in part.split(",")))
    if len(gears) < GEARS[0]:
        raise AtcError("E10035", f"[--dynamic_dims] has [{len(gears)}] profiles, which is less than the minimum [2].")
    if len(gears) > GEARS[1]:
        raise AtcError("E10036", f"[--dynamic_dims] has [{len(gears)}] profiles, which is greater than [100].")
    if len({len(gear) for gear in gears}) > 1:
        raise AtcError("E10037")
    if any(size <= 0 for gear in gears for size in gear):
        raise AtcError("E10038")
    if len(set(gears)) < len(gears):
        raise AtcError("E10039")
    return gears


def read_model(path: str) -> Tuple[bytes, onnx_reader.Model]:
    try:
        size = os.stat(path).st_size
        if size > MODEL_LIMIT:
            raise AtcError("E19015", f"The file [{path}] has [{size}] bytes, which is out of range.")
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise AtcError("E19000", f"Path [{path}]'s realpath is empty, errmsg[{error.strerror}].") from error
    try:
        model = onnx_reader.read(content)
    except ValueError as error:
        raise AtcError("E19005", f"Parse protobuf of the model file [{path}] failed: {error}.") from error
    domains = {"ai.onnx" if domain == "" else domain for domain in model.opsets}
    if len(domains) != 1:
        raise AtcError("E16005", f"The model has [{len(domains)}] domains of opsets, only one is supported.")
    if not model.inputs or not model.outputs:
        raise AtcError("E16001", f"The model has no [{'output' if model.inputs else 'input'}].")
    opset = next(iter(model.opsets.values()))
    for node in model.nodes:
        standard = node.domain in ("", "ai.onnx")
        if not standard or node.op not in OPERATORS or opset not in OPSETS:
            kind = f"{'ai.onnx' if standard else node.domain}::{opset}::{node.op}"
            raise AtcError("E16002", f"No parser is registered for Op [{node.name}], optype [{kind}].")
    return content, model


def fix_shapes(options: Mapping[str, str], model: onnx_reader.Model) -> Tuple[Tuple[om.Input, ...], List[Gear]]:
    """The compiled model's inputs, and its gears (flattened shapes of all inputs)."""
    dynamic = options.get("dynamic_dims", "")
    shapes = parse_shapes(options.get("input_shape", ""), bool(dynamic))
    for name in shapes:
        if name not in {tensor.name for tensor in model.inputs}:
            raise AtcError("E10016", f"Opname [{name}] specified in [--input_shape] is not found in the model.")
    wanted = [_shape(tensor, shapes.get(tensor.name)) for tensor in model.inputs]
    gears = _gears(options, wanted) if dynamic else []
    largest = max(gears, key=math.prod, default=tuple(size for shape in wanted for size in shape))
    inputs = []
    for tensor, shape in zip(model.inputs, wanted):
        inputs.append(om.Input(tensor.name, tensor.dtype, largest[: len(shape)]))
        largest = largest[len(shape) :]
    return tuple(inputs), gears


def _gears(options: Mapping[str, str], shapes: Sequence[Tuple[int, ...]]) -> List[Gear]:
    flat = [size for shape in shapes for size in shape]
    if options.get("input_format", "NCHW") != "ND":
        raise AtcError("E10001", "[--dynamic_dims] needs [--input_format] ND.")
    if -1 not in flat:
        raise AtcError("E10040")
    if any(len(shape) > 4 for shape in shapes if -1 in shape):
        raise AtcError("E10001", "[--dynamic_dims] takes inputs of one to four dimensions.")
    gears = parse_gears(options["dynamic_dims"])
    if len(gears[0]) != flat.count(-1):
        raise AtcError("E10045")
    filled = []
    for gear in gears:
        sizes = iter(gear)
        filled.append(tuple(next(sizes) if size == -1 else size for size in flat))
    return filled


def _shape(tensor: onnx_reader.Input, given: Optional[Tuple[int, ...]]) -> Tuple[int, ...]:
    """What --input_shape says, which may only fill what the model leaves open."""
    if given is None:
        given = tuple(-2 if dim is None else dim for dim in tensor.dims)
    fits = len(given) == len(tensor.dims) and all(
        size in (-1, dim) or dim is None for size, dim in zip(given, tensor.dims)
    )
    if not fits or -2 in given:
        raise AtcError("E19999", f"infer shape of [{tensor.name}] failed, shape{list(given)}, model{list(tensor.dims)}")
    return given
