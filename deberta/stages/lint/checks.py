"""lint-onnx's checks: each looks at a graph and yields hits, which become one finding per rule and kind of node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnx import NodeProto, TensorProto

from deberta.core.contract import INPUTS, LABELS, ONNX_IR_VERSION, ONNX_MAX_BYTES, OUTPUT
from deberta.stages.lint import graph as lint_graph
from deberta.stages.lint.graph import Constant, Cost, Graph, Tensor, attribute, name_of
from deberta.stages.lint.rules import (
    BY_ID,
    GATHER_DATA_BYTES,
    GATHER_INDICES,
    INDEXED,
    KNOWN_OPERATORS,
    LARGEST_FP16,
    MODEL_DOMAINS,
    NO_ARITHMETIC,
    OPERATORS,
    OPSETS,
    PARAMETERS,
    RULES,
    SEVERITIES,
    VIEWS,
    Rule,
)

_WIDE = (TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE)
_BELOW_SLICE = {1: "start", 2: "end", 4: "step"}
_TYPES = {value: name.lower() for name, value in TensorProto.DataType.items()}


class Hit(NamedTuple):
    """One place: `what` says it for the reader, hits of the same rule and `what` are counted together."""

    rule: str
    what: str
    node: NodeProto | None = None
    cost: Cost | None = None  # the same at every batch size; None: what the node moves


@dataclass(frozen=True)
class LintFinding:
    rule: Rule
    what: str
    nodes: tuple[str, ...]
    cost: dict[int, Cost]  # by batch size; empty for what moves nothing


@dataclass(frozen=True)
class LintJob:
    """What the checks are run on. `tensors` is the inference of the first batch size."""

    graph: Graph
    batches: tuple[int, ...]
    length: int

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.graph.tensors(self.batches[0])

    @property
    def running(self) -> list[NodeProto]:
        """The nodes that are left once ATC has computed what is constant at a fixed batch."""
        constant = self.graph.folded(self.batches[0])
        return [node for node in self.graph.nodes if not constant.issuperset(node.output)]


def check(graph: Graph, batches: Sequence[int], length: int) -> list[LintFinding]:
    """All findings, the gravest first."""
    job = LintJob(graph, tuple(batches), length)
    grouped: dict[tuple[str, str], list[Hit]] = {}
    for one in CHECKS:
        for hit in one(job):
            grouped.setdefault((hit.rule, hit.what), []).append(hit)
    findings = [_finding(job, hits) for hits in grouped.values()]
    order = {rule.id: (SEVERITIES.index(rule.severity), index) for index, rule in enumerate(RULES)}
    return sorted(findings, key=lambda finding: (order[finding.rule.id], finding.what))


def _finding(job: LintJob, hits: Sequence[Hit]) -> LintFinding:
    costs: dict[int, Cost] = {}
    for batch in job.batches if hits[0].node is not None else ():
        tensors = job.graph.tensors(batch)
        parts = [hit.cost or lint_graph.cost(hit.node, tensors) for hit in hits if hit.node is not None]
        costs[batch] = Cost(sum(part.elements for part in parts), sum(part.bytes for part in parts))
    nodes = tuple(name_of(hit.node) for hit in hits if hit.node is not None)
    return LintFinding(BY_ID[hits[0].rule], hits[0].what, nodes, costs)


def size_finding(size: int) -> LintFinding:
    """For a file that is too large to be read."""
    return LintFinding(BY_ID["file-size"], f"{size} bytes; ATC and ONNX read at most {ONNX_MAX_BYTES}", (), {})


def _file(job: LintJob) -> Iterator[Hit]:
    model = job.graph.model
    for entry in model.opset_import:
        if entry.domain in MODEL_DOMAINS and not OPSETS[0] <= entry.version <= OPSETS[1]:
            yield Hit("opset", f"opset {entry.version}")
        elif entry.domain not in MODEL_DOMAINS:
            yield Hit("domain", f"opset_import of {entry.domain} {entry.version}")
    if model.ir_version > ONNX_IR_VERSION:
        yield Hit("ir-version", f"IR {model.ir_version}")
    external = [constant for constant in job.graph.constants.values() if constant.external]
    if external:
        stored = sum(constant.tensor.bytes() for constant in external)
        yield Hit("external-data", f"{len(external)} tensors ({stored} bytes) in other files")


def _operators(job: LintJob) -> Iterator[Hit]:
    constant = job.graph.folded(job.batches[0])
    for node in job.graph.nodes:
        if node.domain not in MODEL_DOMAINS:
            yield Hit("domain", f"{node.domain}.{node.op_type}", node)
        elif node.op_type not in KNOWN_OPERATORS:
            yield Hit("unknown-op", node.op_type, node)
        if node.op_type in OPERATORS:
            known = " (constant once the batch is fixed)" if constant.issuperset(node.output) else ""
            size = (
                f", {_gather_size(job, node)} the AI Core kernel's limits" if node.op_type == "GatherElements" else ""
            )
            yield Hit(OPERATORS[node.op_type], node.op_type + size + known, node)


def _gather_size(job: LintJob, node: NodeProto) -> str:
    """Whether CANN's kernel would take a GatherElements, its data in float16, at the smallest batch size."""
    data, index = (job.tensors.get(name) for name in node.input[:2])
    if not data or not index or data.elements is None or index.elements is None:
        return "perhaps beyond"
    beyond = data.bytes(float_bytes=2) >= GATHER_DATA_BYTES and index.elements >= GATHER_INDICES
    return "beyond" if beyond else "within"


def _types(job: LintJob) -> Iterator[Hit]:
    for node in job.running:
        if node.op_type == "Cast" and node.input[0] not in job.graph.inputs:
            to = attribute(node, "to")
            yield Hit("cast-inside", f"Cast to {_TYPES.get(to, '?') if isinstance(to, int) else '?'}", node)
        if node.op_type in (*NO_ARITHMETIC, *VIEWS):
            continue
        skipped = PARAMETERS.get(node.op_type, ())
        names = [name for index, name in enumerate(node.input) if index not in skipped]
        types = {job.tensors[name].dtype for name in (*names, *node.output) if name in job.tensors}
        for dtype in sorted(types & set(_WIDE)):
            yield Hit("dtype-int64", f"{node.op_type} in {_TYPES[dtype]}", node)
        if TensorProto.BOOL in types:
            yield Hit("dtype-bool", f"{node.op_type} in bool", node)


def _indices(job: LintJob) -> Iterator[Hit]:
    for node in job.running:
        if node.op_type not in INDEXED or len(node.input) < 2:
            continue
        index = job.tensors.get(node.input[1])
        constant = job.graph.constants.get(node.input[1])
        if index and index.dtype == TensorProto.INT64 and not (constant and index.elements == 1):
            yield Hit("int64-index", f"{node.op_type} by int64", node)
        if constant and constant.lowest < 0:
            yield Hit("gather-negative", f"{node.op_type} of index {constant.lowest:.0f}", node)


def _slices(job: LintJob) -> Iterator[Hit]:
    for node in job.running:
        if node.op_type != "Slice":
            continue
        given = [(name, node.input[i]) for i, name in _BELOW_SLICE.items() if i < len(node.input)]
        below = [name for name, source in given if (c := job.graph.constants.get(source)) and c.lowest < 0]
        for name in ("starts", "ends"):  # attributes up to opset 9
            values = attribute(node, name)
            below += [name[:-1]] if isinstance(values, list) and min(values, default=0) < 0 else []
        if below:
            yield Hit("slice-negative", f"Slice with a negative {' and '.join(below)}", node)


def _constants(job: LintJob) -> Iterator[Hit]:
    for constant in job.graph.constants.values():
        if constant.tensor.dtype not in lint_graph.FLOATS:
            continue
        # A bound of Clip may become infinite: it means the same.
        readers = [node for node in job.graph.consumers.get(constant.name, []) if node.op_type != "Clip"]
        for node in readers[:1]:
            stored = Cost(constant.tensor.elements or 0, constant.tensor.bytes())
            largest = max(abs(constant.lowest), abs(constant.highest))
            if largest > LARGEST_FP16:
                yield Hit("constant-fp16", f"constants up to {largest:.4g}", node, stored)
            if constant.odd:
                yield Hit("constant-inf", "infinite or NaN constants", node, stored)
    for node in job.graph.nodes:
        filled = attribute(node, "value") if node.op_type == "ConstantOfShape" else None
        if isinstance(filled, TensorProto) and filled.data_type in lint_graph.FLOATS:
            constant = lint_graph.describe_constant(name_of(node), filled)
            largest = max(abs(constant.lowest), abs(constant.highest))
            if largest > LARGEST_FP16:
                yield Hit("constant-fp16", f"constants up to {largest:.4g}", node)
            if constant.odd:
                yield Hit("constant-inf", "infinite or NaN constants", node)


def _shapes(job: LintJob) -> Iterator[Hit]:
    graph = job.graph
    for name in graph.inputs:
        others = [str(size) for size in graph.declared(name)[1:] if not isinstance(size, int)]
        if others:
            yield Hit("dynamic-axis", f"{name} {_dims(graph, name)}")
    for node in graph.model.graph.node:  # inference says nothing of the values inside branches and loops
        reported = OPERATORS.get(node.op_type) in ("data-dependent-shape", "control-flow", "dynamic-shape-op")
        if reported or node.domain not in MODEL_DOMAINS or node.op_type not in KNOWN_OPERATORS:
            continue
        before = [job.tensors[name].elements if name in job.tensors else None for name in node.input if name]
        after = [job.tensors[name].elements if name in job.tensors else None for name in node.output if name]
        if None in after and None not in before:  # the first of a chain; what follows has no shape because of it
            yield Hit("data-dependent-shape", f"{node.op_type} to a shape that is not known before the run", node)


def _folding(job: LintJob) -> Iterator[Hit]:
    for batch in job.batches:
        stored = lint_graph.folded_bytes(job.graph, batch)
        if stored > ONNX_MAX_BYTES:
            yield Hit("folded-size", f"{stored} bytes of constants at batch size {batch}")


def _contract(job: LintJob) -> Iterator[Hit]:
    graph, found = job.graph, job.tensors
    expected = [(name, TensorProto.INT32, job.length) for name in INPUTS]
    for index, (name, dtype, size) in enumerate(expected):
        yield from _difference(graph, found, "input", graph.inputs[index : index + 1], name, dtype, size)
    for extra in graph.inputs[len(expected) :]:
        yield Hit("contract-io", f"another input, {extra}")
    outputs = tuple(value.name for value in graph.model.graph.output)
    yield from _difference(graph, found, "output", outputs[:1], OUTPUT, TensorProto.FLOAT, len(LABELS))
    for extra in outputs[1:]:
        yield Hit("contract-io", f"another output, {extra}")


def _difference(
    graph: Graph, found: dict[str, Tensor], kind: str, there: tuple[str, ...], name: str, dtype: int, size: int
) -> Iterator[Hit]:
    wanted = f"{_TYPES[dtype]} {name} [batch, {size}]"
    if not there:
        yield Hit("contract-io", f"no {kind} in the place of {wanted}")
        return
    tensor = found.get(there[0], Tensor(TensorProto.UNDEFINED, None))
    fits = tensor.shape is not None and len(tensor.shape) == 2 and tensor.shape[1] == size
    declared = graph.declared(there[0])
    if there[0] != name or tensor.dtype != dtype or not fits:
        yield Hit("contract-io", f"{kind} {_TYPES[tensor.dtype]} {there[0]} {_dims(graph, there[0])}, not {wanted}")
    elif declared and isinstance(declared[0], int) and kind == "input":
        yield Hit("contract-io", f"{kind} {name} has a fixed batch of {declared[0]}")


def _layer_norms(job: LintJob) -> Iterator[Hit]:
    """Every Sqrt of (a mean and a small constant): the standard deviation of a LayerNorm."""
    for node in job.graph.nodes:
        mean = _variance(job, node) if node.op_type == "Sqrt" else None
        if mean is None:
            continue
        power = job.graph.producers.get(mean.input[0])
        if power is None or power.op_type != "Pow" or not _is(job, power.input[1], 2.0):
            yield Hit("layernorm-form", "the variance is not the mean of a Pow by 2", node)
            continue
        difference = job.graph.producers.get(power.input[0])
        over = job.graph.consumers.get(node.output[0], [])
        same = [one for one in over if one.op_type == "Div" and difference and one.input[0] == difference.output[0]]
        if difference is None or difference.op_type != "Sub" or not same:
            yield Hit("layernorm-form", "what is divided is not the Sub that is squared", node)


def _variance(job: LintJob, root: NodeProto) -> NodeProto | None:
    added = job.graph.producers.get(root.input[0])
    if added is None or added.op_type != "Add" or not any(name in job.graph.constants for name in added.input):
        return None
    means = [job.graph.producers[name] for name in added.input if name in job.graph.producers]
    return next((mean for mean in means if mean.op_type == "ReduceMean"), None)


def _gelus(job: LintJob) -> Iterator[Hit]:
    """Every Tanh of something with a cube in it: the approximate GELU."""
    for node in job.graph.nodes:
        if node.op_type == "Tanh" and _has_cube(job, node.input[0], 4):
            yield Hit("gelu-form", "the GELU of Tanh", node)


def _has_cube(job: LintJob, name: str, steps: int) -> bool:
    node = job.graph.producers.get(name)
    if node is None or node.op_type not in ("Pow", "Mul", "Add") or not steps:
        return False
    if node.op_type == "Pow":
        return _is(job, node.input[1], 3.0)
    if node.op_type == "Mul" and _is_square_times(job, node):
        return True
    return any(_has_cube(job, name, steps - 1) for name in node.input)


def _is_square_times(job: LintJob, node: NodeProto) -> bool:
    """x * (x * x), by any order."""
    for index, name in enumerate(node.input):
        square = job.graph.producers.get(name)
        other = node.input[1 - index]
        if square and square.op_type == "Mul" and square.input[0] == square.input[1] == other:
            return True
    return False


def _is(job: LintJob, name: str, number: float) -> bool:
    constant: Constant | None = job.graph.constants.get(name)
    return constant is not None and constant.tensor.elements == 1 and constant.lowest == constant.highest == number


def _dims(graph: Graph, name: str) -> str:
    return f"[{', '.join(map(str, graph.declared(name)))}]"


CHECKS: tuple[Callable[[LintJob], Iterator[Hit]], ...] = (
    _file,
    _operators,
    _types,
    _indices,
    _slices,
    _constants,
    _shapes,
    _folding,
    _contract,
    _layer_norms,
    _gelus,
)
