"""What lint-onnx looks for, as data: the rules (rules.toml, with their sources), operators by kind, and limits."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

SEVERITIES = ("error", "warning", "note")  # the gravest first
DOCUMENTED = "documented"
OPSETS = (9, 13)
LARGEST_FP16 = 65504.0
MODEL_DOMAINS = ("", "ai.onnx")
# From here on, both together, gather_elements.py's check_supported leaves GatherElements to the AI CPU.
GATHER_DATA_BYTES, GATHER_INDICES = 100 * 1024, 2048


@dataclass(frozen=True)
class Rule:
    """One thing to look for. `basis`: how sure it is; anything else than DOCUMENTED is less."""

    id: str
    severity: str
    title: str
    why: str
    do: str
    source: str = ""
    basis: str = DOCUMENTED


with open(Path(__file__).with_name("rules.toml"), "rb") as _file:
    RULES = tuple(Rule(name, **entry) for name, entry in tomllib.load(_file).items())
BY_ID = {rule.id: rule for rule in RULES}

# Operators that are findings by themselves.
OPERATORS = {
    **dict.fromkeys(("GatherElements", "GatherND"), "gather-elements"),
    **dict.fromkeys(("Where", "Expand", "Tile", "ScatterND", "ScatterElements", "Scatter"), "copy-op"),
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "Range", "EyeLike"), "dynamic-shape-op"),
    **dict.fromkeys(("Loop", "If", "Scan", "SequenceMap"), "control-flow"),
    **dict.fromkeys(("NonZero", "Unique", "Compress", "NonMaxSuppression"), "data-dependent-shape"),
    "TopK": "topk-int64",
    **dict.fromkeys(("LayerNormalization", "GroupNormalization"), "layernorm-form"),
    **dict.fromkeys(("Gelu", "FastGelu"), "gelu-form"),
}

# The list that Ascend publishes for opset 8 to 13 (ONNX's own operators of it), and the plugins of the same time.
_KNOWN = (
    "Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift Cast Ceil "
    "Celu Clip Compress Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace Det Div "
    "Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm "
    "GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Hardmax Identity If "
    "InstanceNormalization IsInf IsNaN LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool "
    "MatMul Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Min Mod Mul Multinomial Neg "
    "NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow RandomUniform Range Reciprocal ReduceL1 ReduceL2 "
    "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence "
    "RoiAlign Round ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth "
    "Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Where "
)
KNOWN_OPERATORS = frozenset(_KNOWN.split())

# Inputs that are positions and sizes: int64 is their type, and it is no arithmetic.
PARAMETERS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Unsqueeze", "Squeeze", "ReduceSum", "Split", "CumSum"), (1,)),
    **dict.fromkeys(("TopK", "Trilu", "Pad"), (1,)),
    **dict.fromkeys(("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Scatter"), (1,)),
    **dict.fromkeys(("Shape", "Size", "ConstantOfShape", "Where", "Compress"), (0,)),
    "Slice": (1, 2, 3, 4),
    "Resize": (1, 2, 3),
    "OneHot": (0, 1),
}
INDEXED = ("Gather", "GatherElements", "GatherND", "ScatterND", "ScatterElements", "Scatter")  # input 1 is the index
# Operators that do no arithmetic in the types of their inputs and outputs, or that have a rule of their own.
NO_ARITHMETIC = ("Cast", "TopK", "NonZero", "If", "Loop", "Scan")
# Operators that move no data: the same bytes under another shape.
VIEWS = ("Constant", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Shape", "Size", "Dropout")


def table() -> str:
    """The rules as the Markdown table of docs/lint-onnx.md."""
    lines = ["| rule | severity | finds | why | basis | source |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{rule.id}` | {rule.severity} | {rule.title} | {rule.why} | {rule.basis} | {rule.source or '-'} |"
        for rule in RULES
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
