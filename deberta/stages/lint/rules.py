"""What lint-onnx looks for, as data: the rules with their sources, the operators by kind, and the limits.

Severity: error means that ATC refuses the file, or that it computes something else; warning means slow, or not
established; note means different from this project's own graph. A rule whose basis is not a document is a warning at
most. Short names of sources: ATC guide = the ATC guides of CANN 5.0.4.6 and 6.0.1 on hiascend.com, the versions
around 5.1.RC2; ModelZoo = Ascend/ModelZoo-PyTorch at 6a2804a, ACL_PyTorch; GE, metadef, parser = the published sources
of ATC, v1.8.0; msit = Ascend/msit before surgeon was removed.
"""

from __future__ import annotations

from dataclasses import dataclass

from deberta.core import contract

SEVERITIES = ("error", "warning", "note")  # the gravest first
DOCUMENTED, INFERRED, OPEN = "documented", "inferred", "not established for CANN 5.1.RC2"
OPSETS = (9, 13)
LARGEST_FP16 = 65504.0
MODEL_DOMAINS = ("", "ai.onnx")
# From here on, both together, gather_elements.py's check_supported leaves GatherElements to the AI CPU.
GATHER_DATA_BYTES, GATHER_INDICES = 100 * 1024, 2048


@dataclass(frozen=True)
class Rule:
    """One thing to look for. `basis` says how sure it is: DOCUMENTED, INFERRED or OPEN."""

    id: str
    severity: str
    title: str
    why: str
    do: str
    source: str
    basis: str = DOCUMENTED


RULES = (
    Rule(
        "opset",
        "error",
        "opset outside 9 to 13",
        "ATC looks operators up as ai.onnx::OPSET::NAME, and CANN 5.1 knows opset 9 to 13 (ONNX 1.8)",
        f"export with opset {contract.ONNX_OPSET}",
        "ATC guide; parser onnx_parser.cc",
    ),
    Rule(
        "domain",
        "error",
        "operators of another domain than ai.onnx",
        "several opset domains end in ATC's E16005, and custom operators have no kernel",
        "export without an optimiser's fused operators; remove the unused opset_import",
        "metadef error_code.json (E16005)",
    ),
    Rule(
        "ir-version",
        "warning",
        "IR version above 7",
        "ONNX 1.8, which CANN 5.1 reads, has IR 7; the published parser does not look at it",
        f"set ir_version to {contract.ONNX_IR_VERSION}, if the opset allows it",
        "ATC guide; parser onnx_parser.cc",
        INFERRED,
    ),
    Rule(
        "unknown-op",
        "warning",
        "operator that Ascend's ONNX list of opset 8 to 13 does not have",
        "without a parser ATC stops with E16002 or E76002; the list is that of a neighbouring version",
        "write it with operators of the list",
        "Ascend's ONNX operator list (opset 8 to 13) and onnx_plugin sources; metadef error_code.json",
        OPEN,
    ),
    Rule(
        "gather-elements",
        "warning",
        "gathering element by element",
        "CANN's own AI Core kernel (sources of 2021) declines data from 100 KiB on with 2048 indices or more, and "
        "a newer CANN has none for the 310P: the AI CPU then moves one element at a time, and the guide's 200 to 250 "
        "ms per row fit 11 to 13 ns for each that its graph gathers",
        "index by relative position with reshapes and slices, as the shift form does; confirm with msprof's op_summary "
        "(Task Type AI_CPU)",
        "CANN's ops/built-in/tbe/impl/dynamic/gather_elements.py (check_supported), in a public copy; hicann/ops-nn "
        "index/gather_elements/README.md",
        OPEN,
    ),
    Rule(
        "copy-op",
        "warning",
        "choosing, repeating or scattering",
        "which engine runs it on a 310P is not known; it moves whole tensors, and from a mask or an index it can be "
        "folded away",
        "add a finite mask instead of Where, broadcast instead of Expand and Tile",
        "ModelZoo contrib/nlp/roberta/opt_onnx.py",
        OPEN,
    ),
    Rule(
        "dynamic-shape-op",
        "warning",
        "computing with shapes",
        "chains from Shape make small int64 operators, and intermediate dynamic shapes rule dynamic_dims out",
        "write sizes as constants, with -1 for the batch alone",
        "ATC guide (dynamic_dims); msit KnowledgeDynamicReshape",
    ),
    Rule(
        "control-flow",
        "warning",
        "control flow",
        "branches and loops are run by the host, and what is in them is not checked here",
        "export without data-dependent branches",
        "",
        INFERRED,
    ),
    Rule(
        "data-dependent-shape",
        "warning",
        "a shape that depends on values",
        "no static shape can be compiled for it or anything behind it, and dynamic_dims are ruled out",
        "compute on padded tensors with a mask",
        "ATC guide (dynamic_dims)",
    ),
    Rule(
        "dtype-int64",
        "warning",
        "computing in int64, uint64 or float64",
        "the AI Core has none of them, so the AI CPU computes it, or ATC inserts casts",
        "cast to int32 or float32 once, before the graph",
        "PyTorch migration guide of CANN 6.0.1 (ptmigr_0054); msit KnowledgeTypeCast",
    ),
    Rule(
        "dtype-bool",
        "warning",
        "computing with bool",
        "the fixers of Ascend's ModelZoo replace comparisons and bool masks by arithmetic; the engine is not known",
        "use a float mask of 0 and 1",
        "ModelZoo contrib/nlp/roberta (fix_cpu)",
        INFERRED,
    ),
    Rule(
        "int64-index",
        "warning",
        "indices in int64",
        "they are twice as large, and int64 is not the AI Core's",
        "make indices int32, or replace the gather",
        "PyTorch migration guide of CANN 6.0.1 (ptmigr_0054)",
    ),
    Rule(
        "topk-int64",
        "warning",
        "TopK",
        "ONNX's TopK gives int64 indices, and CANN wants int32; on integers it runs on the AI CPU alone",
        "take TopK out of the graph, or rewrite its indices to int32 as the fixer does",
        "msit KnowledgeTopkFix; mxRec performance tuning (hiascend.com)",
    ),
    Rule(
        "cast-inside",
        "warning",
        "Cast behind the inputs",
        "each is a pass over a tensor, and most lead to or from a type the AI Core does not compute in; the guide's "
        "graph has 208",
        "cast the inputs once, and export in float32",
        "counted in the guide's own export",
        INFERRED,
    ),
    Rule(
        "constant-fp16",
        "error",
        "constant beyond float16",
        "ATC's default is force_fp16, where a value beyond 65504 becomes infinite",
        "use a smaller constant (this project's mask is -10000), or keep its operator in float32 with --keep_dtype",
        "GE gelib.cc (force_fp16); ModelZoo contrib/nlp/SDMGR/README.md",
    ),
    Rule(
        "constant-inf",
        "warning",
        "infinite or NaN constant",
        "a row with nothing but -inf becomes NaN in the softmax; ModelZoo's fixers replace every one",
        "use a finite mask, as -10000",
        "ModelZoo built-in/nlp/Bert_Base_Chinese_for_Pytorch/fix_onnx.py",
        INFERRED,
    ),
    Rule(
        "gather-negative",
        "error",
        "negative index in a gather",
        "CANN's Gather takes none",
        "add the axis' size to it",
        "ModelZoo contrib/nlp/Transformer/README.md",
    ),
    Rule(
        "slice-negative",
        "warning",
        "negative start, end or step in a slice",
        "as for Gather it may not be taken; nothing published says so of Slice",
        "write it from the axis' beginning",
        "",
        INFERRED,
    ),
    Rule(
        "file-size",
        "error",
        "file above 2 GiB",
        "protobuf, in which ONNX is written, reads no more",
        "fold less: never store what grows with the batch",
        "protobuf's limit of one message",
    ),
    Rule(
        "folded-size",
        "warning",
        "constants above 2 GiB once folded",
        "what is constant at a fixed batch is stored when it is folded: the guide's graph grows to 2,246,188,252 bytes "
        "at batch 8",
        "keep indices and tables free of the batch",
        "measured on the guide's own export",
        INFERRED,
    ),
    Rule(
        "dynamic-axis",
        "warning",
        "dynamic axis besides the batch",
        "each must be fixed by --input_shape or a gear of --dynamic_dims, and costs here cannot be counted",
        "export with a fixed sequence length",
        "ATC guide (input_shape, dynamic_dims)",
    ),
    Rule(
        "external-data",
        "warning",
        "weights in other files",
        "whether ATC 5.1 reads them is not known",
        "save as one file",
        "",
        OPEN,
    ),
    Rule(
        "contract-io",
        "note",
        "inputs or outputs other than this project's",
        "preprocess, infer and postprocess expect int32 input_ids and input_mask and float32 logits",
        "rename and cast outside the graph, or bring your own pre- and postprocessing",
        "deberta/core/contract.py",
    ),
    Rule(
        "layernorm-form",
        "warning",
        "LayerNorm not in the form that is fused",
        "CANN fuses ReduceMean, one Sub, Pow by 2, ReduceMean, Add, Sqrt and Div into one kernel",
        "write the variance with Pow(x, 2) of the one Sub that is divided, too",
        "ModelZoo built-in/nlp/Bert_Uncased_Huggingface/fix_onnx.py",
    ),
    Rule(
        "gelu-form",
        "warning",
        "GELU not in its Erf form",
        "what is published of fusing it (Div, Erf, Add, Mul, Mul) has Erf",
        "export with the exact GELU (approximate='none')",
        "ModelZoo contrib/nlp/roberta (Gelu by --optypelist_for_implmode)",
        INFERRED,
    ),
)
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

# Inputs that say where and how much, not what: int64 is their type, and they are no arithmetic.
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
# Operators whose types say nothing about arithmetic, or that have a rule of their own.
NO_ARITHMETIC = ("Cast", "TopK", "NonZero", "If", "Loop", "Scan")
# Operators that move nothing: the same bytes under another shape.
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
