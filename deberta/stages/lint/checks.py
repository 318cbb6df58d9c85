"""lint-onnx's checks: each looks at a graph and yields hits, which become one finding per rule and kind of node."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from onnx import NodeProto, TensorProto

from deberta.core.contract import INPUTS, LABELS, ONNX_IR_VERSION, ONNX_MAX_BYTES, OUTPUT
from deberta.stages.lint import rules
from deberta.stages.lint.graph import FLOATS, Constant, Cost, Graph, Tensor, attribute, name_of, node_cost
from deberta.stages.lint.rules import Rule

_WIDE = (TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE)
_SLICE_INPUTS = {1: "start", 2: "end", 4: "step"}
_TYPES = {value: name.lower() for name, value in TensorProto.DataType.items()}


class Hit(NamedTuple):
    """One place that breaks a rule; hits with the same rule and detail are counted together."""

    rule: str
    detail: str  # for the reader
    node: NodeProto | None = None
    cost: Cost | None = None  # the same at every batch size; None: node_cost of the node


@dataclass(frozen=True)
class LintFinding:
    """All places that break one rule in the same way."""

    rule: Rule
    detail: str
    nodes: tuple[str, ...]
    cost: dict[int, Cost]  # by batch size; empty for a finding without nodes


@dataclass(frozen=True)
class LintJob:
    """The input of every check. `tensors`: types and shapes at the first batch size."""

    graph: Graph
    batches: tuple[int, ...]
    length: int

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        return self.graph.tensors(self.batches[0])

    @functools.cached_property
    def running(self) -> list[NodeProto]:
        """The nodes that are left once ATC has computed all that is constant at a fixed batch."""
        constant = self.graph.folded(self.batches[0])
        return [node for node in self.graph.nodes if not constant.issuperset(node.output)]


def check(graph: Graph, batches: Sequence[int], length: int) -> list[LintFinding]:
    """All findings, the gravest first."""
    job = LintJob(graph, tuple(batches), length)
    grouped: dict[tuple[str, str], list[Hit]] = {}
    for run_check in _CHECKS:
        for hit in run_check(job):
            grouped.setdefault((hit.rule, hit.detail), []).append(hit)
    findings = [_finding(job, hits) for hits in grouped.values()]
    order = {rule.id: (rules.SEVERITIES.index(rule.severity), index) for index, rule in enumerate(rules.RULES)}
    return sorted(findings, key=lambda finding: (order[finding.rule.id], finding.detail))


def _finding(job: LintJob, hits: Sequence[Hit]) -> LintFinding:
    costs: dict[int, Cost] = {}
    for batch in job.batches if hits[0].node is not None else ():
        tensors = job.graph.tensors(batch)
        parts = [hit.cost or node_cost(hit.node, tensors) for hit in hits if hit.node is not None]
        costs[batch] = Cost(sum(part.elements for part in parts), sum(part.bytes for part in parts))
    nodes = tuple(name_of(hit.node) for hit in hits if hit.node is not None)
    return LintFinding(rules.BY_ID[hits[0].rule], hits[0].detail, nodes, costs)


def size_finding(size: int) -> LintFinding:
    """For a file that is too large to be read."""
    return LintFinding(rules.BY_ID["file-size"], f"{size} bytes; ATC and ONNX read at most {ONNX_MAX_BYTES}", (), {})


def _file(job: LintJob) -> Iterator[Hit]:
    model = job.graph.model
    for entry in model.opset_import:
        if entry.domain in rules.MODEL_DOMAINS and not rules.OPSETS[0] <= entry.version <= rules.OPSETS[1]:
            yield Hit("opset", f"opset {entry.version}")
        elif entry.domain not in rules.MODEL_DOMAINS:
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
        if node.domain not in rules.MODEL_DOMAINS:
            yield Hit("domain", f"{node.domain}.{node.op_type}", node)
        elif node.op_type not in rules.KNOWN_OPERATORS:
            yield Hit("unknown-op", node.op_type, node)
        if node.op_type in rules.OPERATORS:
            known = " (constant once the batch is fixed)" if constant.issuperset(node.output) else ""
            size = _gather_size(job, node) if node.op_type == "GatherElements" else ""
            yield Hit(rules.OPERATORS[node.op_type], node.op_type + size + known, node)


def _gather_size(job: LintJob, node: NodeProto) -> str:
    """Whether CANN's kernel would take a GatherElements, its data in float16, at the smallest batch size."""
    data, index = (job.tensors.get(name) for name in node.input[:2])
    if not data or not index or data.elements is None or index.elements is None:
        return ", perhaps beyond the AI Core kernel's limits"
    beyond = data.bytes(float_bytes=2) >= rules.GATHER_DATA_BYTES and index.elements >= rules.GATHER_INDICES
    return f", {'beyond' if beyond else 'within'} the AI Core kernel's limits"


def _types(job: LintJob) -> Iterator[Hit]:
    for node in job.running:
        if node.op_type == "Cast" and node.input[0] not in job.graph.inputs:
            to = attribute(node, "to")
            yield Hit("cast-inside", f"Cast to {_TYPES.get(to, '?') if isinstance(to, int) else '?'}", node)
        if node.op_type in (*rules.NO_ARITHMETIC, *rules.VIEWS):
            continue
        skipped = rules.PARAMETERS.get(node.op_type, ())
        names = [name for index, name in enumerate(node.input) if index not in skipped]
        types = {job.tensors[name].dtype for name in (*names, *node.output) if name in job.tensors}
        for dtype in sorted(types & set(_WIDE)):
            yield Hit("dtype-int64", f"{node.op_type} in {_TYPES[dtype]}", node)
        if TensorProto.BOOL in types:
            yield Hit("dtype-bool", f"{node.op_type} in bool", node)


def _indices(job: LintJob) -> Iterator[Hit]:
    for node in job.running:
        if node.op_type not in rules.INDEXED or len(node.input) < 2:
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
        bounds = {name: node.input[i] for i, name in _SLICE_INPUTS.items() if i < len(node.input)}
        below = [name for name, source in bounds.items() if (c := job.graph.constants.get(source)) and c.lowest < 0]
        for name in ("starts", "ends"):  # attributes up to opset 9
            values = attribute(node, name)
            below += [name[:-1]] if isinstance(values, list) and min(values, default=0) < 0 else []
        if below:
            yield Hit("slice-negative", f"Slice with a negative {' and '.join(below)}", node)


def _constants(job: LintJob) -> Iterator[Hit]:
    places: list[tuple[Constant, NodeProto, Cost | None]] = []
    for constant in job.graph.constants.values():
        # A bound of Clip may become infinite: it means the same.
        readers = [node for node in job.graph.consumers.get(constant.name, []) if node.op_type != "Clip"]
        if readers:
            places.append((constant, readers[0], Cost(constant.tensor.elements or 0, constant.tensor.bytes())))
    for node in job.graph.nodes:
        fill = attribute(node, "value") if node.op_type == "ConstantOfShape" else None
        if isinstance(fill, TensorProto):
            places.append((Constant.of(name_of(node), fill), node, None))
    for constant, node, cost in places:
        if constant.tensor.dtype in FLOATS and constant.largest > rules.LARGEST_FP16:
            yield Hit("constant-fp16", f"constants up to {constant.largest:.4g}", node, cost)
        if constant.tensor.dtype in FLOATS and constant.not_finite:
            yield Hit("constant-inf", "infinite or NaN constants", node, cost)


def _shapes(job: LintJob) -> Iterator[Hit]:
    graph = job.graph
    for name in graph.inputs:
        if not all(isinstance(size, int) for size in graph.declared(name)[1:]):
            yield Hit("dynamic-axis", f"{name} {_dims(graph, name)}")
    for node in graph.model.graph.node:  # without subgraphs: inference skips the values inside branches and loops
        reported = rules.OPERATORS.get(node.op_type) in ("data-dependent-shape", "control-flow", "dynamic-shape-op")
        if reported or node.domain not in rules.MODEL_DOMAINS or node.op_type not in rules.KNOWN_OPERATORS:
            continue
        before, after = (
            [job.tensors[name].elements if name in job.tensors else None for name in names if name]
            for names in (node.input, node.output)
        )
        if None in after and None not in before:  # the first of a chain, which leaves all after it without a shape
            yield Hit("data-dependent-shape", f"{node.op_type} to a shape that is not known before the run", node)


def _folding(job: LintJob) -> Iterator[Hit]:
    for batch in job.batches:
        stored = job.graph.folded_bytes(batch)
        if stored > ONNX_MAX_BYTES:
            yield Hit("folded-size", f"{stored} bytes of constants at batch size {batch}")


def _contract(job: LintJob) -> Iterator[Hit]:
    outputs = tuple(value.name for value in job.graph.model.graph.output)
    yield from _interface(job, "input", job.graph.inputs, INPUTS, TensorProto.INT32, job.length)
    yield from _interface(job, "output", outputs, (OUTPUT,), TensorProto.FLOAT, len(LABELS))


def _interface(
    job: LintJob, kind: str, present: Sequence[str], expected: Sequence[str], dtype: int, size: int
) -> Iterator[Hit]:
    """The graph's inputs or outputs beside the expected ones, [batch, size] each."""
    for index, name in enumerate(expected):
        wanted = f"{_TYPES[dtype]} {name} [batch, {size}]"
        if index >= len(present):
            yield Hit("contract-io", f"no {kind} in the place of {wanted}")
            continue
        actual, declared = present[index], job.graph.declared(present[index])
        tensor = job.tensors.get(actual, Tensor(TensorProto.UNDEFINED, None))
        fits = tensor.shape is not None and len(tensor.shape) == 2 and tensor.shape[1] == size
        if actual != name or tensor.dtype != dtype or not fits:
            dims = _dims(job.graph, actual)
            yield Hit("contract-io", f"{kind} {_TYPES[tensor.dtype]} {actual} {dims}, not {wanted}")
        elif declared and isinstance(declared[0], int) and kind == "input":
            yield Hit("contract-io", f"{kind} {name} has a fixed batch of {declared[0]}")
    for extra in present[len(expected) :]:
        yield Hit("contract-io", f"another {kind}, {extra}")


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
        divided = [n.input[0] for n in job.graph.consumers.get(node.output[0], []) if n.op_type == "Div"]
        if difference is None or difference.op_type != "Sub" or difference.output[0] not in divided:
            yield Hit("layernorm-form", "what is divided is not the Sub that is squared", node)


def _variance(job: LintJob, root: NodeProto) -> NodeProto | None:
    """The ReduceMean of Sqrt(ReduceMean(...) + constant), or None."""
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
    """Whether a cube goes into a tensor through at most `steps` Pow, Mul and Add."""
    node = job.graph.producers.get(name)
    if node is None or node.op_type not in ("Pow", "Mul", "Add") or not steps:
        return False
    if node.op_type == "Pow":
        return _is(job, node.input[1], 3.0)
    if node.op_type == "Mul" and _is_square_times(job, node):
        return True
    return any(_has_cube(job, name, steps - 1) for name in node.input)


def _is_square_times(job: LintJob, node: NodeProto) -> bool:
    """Whether a Mul is x * (x * x), in any order."""
    for name, factor in zip(node.input, reversed(node.input), strict=True):
        square = job.graph.producers.get(name)
        if square and square.op_type == "Mul" and square.input[0] == square.input[1] == factor:
            return True
    return False


def _is(job: LintJob, name: str, number: float) -> bool:
    constant = job.graph.constants.get(name)
    return constant is not None and constant.tensor.elements == 1 and constant.lowest == constant.highest == number


def _dims(graph: Graph, name: str) -> str:
    return f"[{', '.join(map(str, graph.declared(name)))}]"


_CHECKS = (_file, _operators, _types, _indices, _slices, _constants, _shapes, _folding, _contract, _layer_norms, _gelus)
