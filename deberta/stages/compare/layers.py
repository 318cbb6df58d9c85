"""Where two sides of a comparison part: the first layer by bisection, and in it the first node.

The search runs both sides several times on a few rows, each time with a few inner values as outputs, so that no run
holds the activations of a whole model. Bisection assumes that a difference at a layer's end is there at all later ends.
That need not be so: a LayerNorm can shrink one below the tolerance, and rounding can make it grow again. So the result
is a layer whose input agrees and whose output does not, verified by one more run with both as outputs; that no layer
before it differs is shown only by looking at every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from deberta.core.errors import DataError
from deberta.stages.compare.sides import Array, GraphNode, Side
from deberta.stages.data.bins import Ids, Rows
from deberta.stages.inference.logits import LogitsDifference

SEARCH_ROWS = 2
GROUP = 16  # inner values per run: at 256 tokens and 12 heads at most 100 MB a row

Probe = Callable[[Sequence[str]], Mapping[str, "Difference"]]


@dataclass(frozen=True)
class Difference:
    """One array of both sides. `relative`: of the largest magnitude in either, None where something is not finite."""

    name: str
    max_abs: float | None
    relative: float | None

    def exceeds(self, tolerance: float) -> bool:
        return self.relative is None or self.relative > tolerance


@dataclass(frozen=True)
class Divergence:
    """The result of a search; `layer` is None if all that was compared agrees. `probes`: in the order of the runs."""

    layer: str | None = None
    before: str | None = None  # the layer before, whose output agrees; None: the inputs
    verified: bool = False  # seen again in one run of both sides
    node: GraphNode | None = None
    nodes_compared: int = 0
    probes: list[Difference] = field(default_factory=list)


def difference(name: str, a: Array, b: Array, mask: Ids | None = None) -> Difference:
    """Of float32 [rows, positions, any]. `mask`, [rows, length]: positions behind a row's end do not count.

    Where one side computed the first position alone, as the exported graph's last layer does, only that counts.
    """
    if a.shape[1] != b.shape[1] and 1 in (a.shape[1], b.shape[1]):
        a, b = a[:, :1], b[:, :1]
    if a.shape != b.shape:
        return Difference(name, None, None)
    if mask is not None and a.shape[:2] == mask.shape:
        a, b = a[mask > 0], b[mask > 0]
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(name, None, None)
    largest = float(np.abs(a - b).max(initial=0))
    scale = max(float(np.abs(x).max(initial=0)) for x in (a, b))
    return Difference(name, largest, largest / scale if scale else 0.0)


def search(a: Side, b: Side, rows: Rows, tolerance: float, every: bool = False) -> Divergence:
    """The first layer of both whose outputs differ by more than `tolerance` (see `Difference.relative`) in `rows`.

    `every`: look at all layers instead of bisecting; then the layer is the first, whatever comes after it.
    """
    marks = [mark for mark in a.marks if mark in b.marks]
    probes: list[Difference] = []

    def probe(names: Sequence[str]) -> dict[str, Difference]:
        differences = compare(a, b, rows, names, rows.mask)
        if absent := [name for name in names if name not in differences]:
            raise DataError(f"{a.file} or {b.file} does not give the output of: {', '.join(absent)}")
        probes.extend(differences.values())
        return differences

    at = (linear if every else bisect)(marks, probe, tolerance)
    if at is None:
        return Divergence(probes=probes)
    edge = marks[max(at - 1, 0) : at + 1]
    again = probe(edge)
    verified = again[edge[-1]].exceeds(tolerance) and (at == 0 or not again[edge[0]].exceeds(tolerance))
    node, compared = _first_node(a, b, rows, marks, at, tolerance)
    return Divergence(marks[at], marks[at - 1] if at else None, verified, node, compared, probes)


def compare(a: Side, b: Side, rows: Rows, names: Sequence[str], mask: Ids | None = None) -> dict[str, Difference]:
    """Run both. The difference of each name that both give, in the order of `names`."""
    left, right = a.run(rows, names), b.run(rows, names)
    return {name: difference(name, left[name], right[name], mask) for name in names if name in left and name in right}


def bisect(marks: Sequence[str], probe: Probe, tolerance: float) -> int | None:
    """The index of a mark that differs while the one before it agrees; None if the last one agrees.

    Before the first stand the inputs, which are the same for both. Looks at about log2(marks) of them.
    """
    good, bad = -1, len(marks) - 1
    if bad < 0 or not probe([marks[bad]])[marks[bad]].exceeds(tolerance):
        return None
    while bad - good > 1:
        middle = (good + bad) // 2
        if probe([marks[middle]])[marks[middle]].exceeds(tolerance):
            bad = middle
        else:
            good = middle
    return bad


def linear(marks: Sequence[str], probe: Probe, tolerance: float) -> int | None:
    """The index of the first mark that differs; all of them are looked at."""
    differences: dict[str, Difference] = {}
    for start in range(0, len(marks), GROUP):
        differences.update(probe(marks[start : start + GROUP]))
    return next((i for i, name in enumerate(marks) if differences[name].exceeds(tolerance)), None)


def _first_node(
    a: Side, b: Side, rows: Rows, marks: Sequence[str], at: int, tolerance: float
) -> tuple[GraphNode | None, int]:
    """The first node of layer `at`, in the graph's order, whose outputs differ; and how many were compared.

    A layer has branches, so a node that agrees may come after one that differs, and bisection cannot be used. In the
    graph's order a node comes after all of its inputs: those of the first that differs agree, as far as both sides
    have them by name.
    """
    known = {node.output for node in b.nodes}
    inside = [node for node in nodes_between(a, marks[at - 1] if at else None, marks[at]) if node.output in known]
    compared = 0
    for start in range(0, len(inside), GROUP):
        group = {node.output: node for node in inside[start : start + GROUP]}
        differences = compare(a, b, rows, list(group))
        compared += len(differences)
        for name, values in differences.items():
            if values.exceeds(tolerance):
                return group[name], compared
    return None, compared


def nodes_between(side: Side, before: str | None, mark: str) -> Sequence[GraphNode]:
    """The nodes after the one that ends layer `before`, up to the one that ends layer `mark`."""
    if not side.nodes:
        return ()
    places = {node.output: i for i, node in enumerate(side.nodes)}
    first = places[side.marks[before]] + 1 if before is not None else 0
    return side.nodes[first : places[side.marks[mark]] + 1]


def worst_rows(difference: LogitsDifference, rows: Rows, count: int = SEARCH_ROWS) -> Rows:
    """The rows to search in: first those with logits that are not finite, then changed labels, then the largest
    differences."""
    finite, row_max, changed = difference.finite, difference.row_max, set(difference.changed.tolist())
    order = sorted(range(len(row_max)), key=lambda row: (finite[row], row not in changed, -row_max[row]))
    worst = sorted(order[:count])
    return Rows([rows.numbers[row] for row in worst], rows.ids[worst], rows.mask[worst])
