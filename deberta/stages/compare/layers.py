"""Where two sides of a comparison part: the first layer by bisection, and in it the first node.

The search runs both sides again and again on a few rows, each time with a few inner values handed out, so that no run
holds the activations of a whole model. What bisection assumes: that a difference which is there at a layer's end is
there at all later ones. That need not be so: a LayerNorm can shrink one below the tolerance, and rounding can make it
grow again. So what is found is a layer whose input agrees and whose output does not, which is run once more with both
handed out to verify it; that none before it differed is shown only by looking at every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from deberta.core.errors import DataError
from deberta.stages.compare.sides import Array, GraphNode, Results, Side
from deberta.stages.fp16.emulation import Rows

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
    """What a search found; `layer` is None if all that was compared agrees. `probes`: in the order of the runs."""

    layer: str | None = None
    before: str | None = None  # the layer before, whose output agrees; None: the inputs
    verified: bool = False  # seen again in one run of both sides
    node: GraphNode | None = None
    nodes_compared: int = 0
    probes: list[Difference] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def difference(name: str, a: Array, b: Array, mask: npt.NDArray[np.int32] | None = None) -> Difference:
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

    `every`: look at all layers, without bisection; then what is found is the first, whatever comes after it.
    """
    marks = [mark for mark in a.marks if mark in b.marks]
    probes: list[Difference] = []
    mask = rows.mask.numpy()

    def probe(names: Sequence[str]) -> dict[str, Difference]:
        found = compare(a.run(rows, names), b.run(rows, names), names, mask)
        if absent := [name for name in names if name not in found]:
            raise DataError(f"{a.file} or {b.file} does not give the output of: {', '.join(absent)}")
        probes.extend(found.values())
        return found

    at = (linear if every else bisect)(marks, probe, tolerance)
    if at is None:
        return Divergence(probes=probes)
    edge = marks[max(at - 1, 0) : at + 1]
    seen = probe(edge)
    verified = seen[edge[-1]].exceeds(tolerance) and (at == 0 or not seen[edge[0]].exceeds(tolerance))
    node, compared = _first_node(a, b, rows, marks, at, tolerance)
    return Divergence(marks[at], marks[at - 1] if at else None, verified, node, compared, probes)


def compare(
    a: Results, b: Results, names: Sequence[str], mask: npt.NDArray[np.int32] | None = None
) -> dict[str, Difference]:
    """Of each name that both sides have, in the order of `names`."""
    return {name: difference(name, a[name], b[name], mask) for name in names if name in a and name in b}


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
    found = {name: one for i in range(0, len(marks), GROUP) for name, one in probe(marks[i : i + GROUP]).items()}
    return next((i for i, name in enumerate(marks) if found[name].exceeds(tolerance)), None)


def _first_node(
    a: Side, b: Side, rows: Rows, marks: Sequence[str], at: int, tolerance: float
) -> tuple[GraphNode | None, int]:
    """The first node of layer `at`, in the graph's order, whose outputs differ; and how many were compared.

    Inside a layer there are branches, so a node that agrees may come after one that differs, and bisection would not
    do. In the graph's order all inputs of a node come before it: those of the first that differs agree, as far as both
    sides have them by name.
    """
    other = {node.output for node in b.nodes}
    inside = [node for node in nodes_between(a, marks[at - 1] if at else None, marks[at]) if node.output in other]
    compared = 0
    for start in range(0, len(inside), GROUP):
        group = {node.output: node for node in inside[start : start + GROUP]}
        found = compare(a.run(rows, list(group)), b.run(rows, list(group)), list(group))
        compared += len(found)
        for name, one in found.items():
            if one.exceeds(tolerance):
                return group[name], compared
    return None, compared


def nodes_between(side: Side, before: str | None, mark: str) -> Sequence[GraphNode]:
    """The nodes after the one that ends layer `before`, up to the one that ends layer `mark`."""
    if not side.nodes:
        return ()
    places = {node.output: i for i, node in enumerate(side.nodes)}
    tensors = side.tensors
    first = places[tensors[before]] + 1 if before is not None else 0
    return side.nodes[first : places[tensors[mark]] + 1]


def worst_rows(a: Array, b: Array, rows: Rows, count: int = SEARCH_ROWS) -> Rows:
    """The rows to search in: where logits are not finite, or another label, or else differ most."""
    with np.errstate(invalid="ignore"):
        gaps = np.abs(a - b).max(axis=1)
    flipped = a.argmax(axis=1) != b.argmax(axis=1)
    order = sorted(range(len(gaps)), key=lambda i: (np.isfinite(gaps[i]), not flipped[i], -gaps[i]))
    chosen = sorted(order[:count])
    return Rows([rows.numbers[i] for i in chosen], rows.ids[chosen], rows.mask[chosen])
