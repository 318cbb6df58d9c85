"""One emulated run over all rows: each node's largest value, and where values overflowed or vanished."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from deberta.core.progress import track
from deberta.stages.data.bins import Rows
from deberta.stages.fp16 import emulation
from deberta.stages.fp16.emulation import LARGEST, EmulationResult, Float16Graph, Node
from deberta.stages.inference.logits import Logits


@dataclass
class OverflowTally:
    """Counts of one node over all rows."""

    name: str
    op: str
    peak: float = 0.0  # the largest finite |value| before rounding
    arose: int = 0  # values that became infinite or NaN here, from finite ones
    infinite: int = 0
    nan: int = 0
    vanished: int = 0  # values that rounding made 0
    values: int = 0
    rows: set[int] = field(default_factory=set)  # in which something arose

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "max_abs": self.peak,
            "of_largest": self.peak / LARGEST,
            "arose": self.arose,
            "inf": self.infinite,
            "nan": self.nan,
            "vanished_share": self.vanished / self.values if self.values else 0.0,
            "rows": sorted(self.rows)[:20],
        }


@dataclass(frozen=True)
class Survey:
    """One run over all rows. `affected`: the parts in which not everything was finite."""

    tallies: dict[str, OverflowTally]
    logits: Logits
    affected: list[Rows]

    @property
    def origins(self) -> list[OverflowTally]:
        return [tally for tally in self.tallies.values() if tally.arose]


def survey(graph: Float16Graph, parts: Sequence[Rows], keep: Collection[str], title: str) -> Survey:
    """Run all parts with the nodes of `keep` in float32; `title` names the run in the progress."""
    tallies: dict[str, OverflowTally] = {}
    affected: list[Rows] = []
    logits = []
    for part in track(parts, title, "rows", len):
        good = True

        def watch(node: Node, result: EmulationResult, part: Rows = part) -> bool:
            nonlocal good
            good = good and result.good
            if result.raw.is_floating_point() and not (node.moves and result.good):
                _count(tallies.setdefault(node.name, OverflowTally(node.name, node.op)), result, part.numbers)
            return False

        logits.append(emulation.run(graph, part, keep, watch).numpy())
        if not good:
            affected.append(part)
    return Survey(tallies, np.concatenate(logits), affected)


def _count(tally: OverflowTally, result: EmulationResult, numbers: Sequence[int]) -> None:
    raw, value = result.raw, result.value
    tally.values += raw.numel()
    if not result.kept:
        tally.vanished += int(torch.count_nonzero(raw)) - int(torch.count_nonzero(value))
    if result.good:
        tally.peak = max(tally.peak, result.peak)
        return
    finite = raw.isfinite()
    tally.peak = max(tally.peak, float(raw[finite].abs().max()) if finite.any() else 0.0)
    tally.infinite += int(value.isinf().sum())
    tally.nan += int(value.isnan().sum())
    # A value that is not finite arises here if it was finite before rounding, or if the row's inputs all were.
    rows = len(numbers)
    bad = ~value.isfinite()
    before = torch.ones(rows, dtype=torch.bool)
    for x in result.inputs:
        if x.is_floating_point() and x.dim() and x.shape[0] % rows == 0:
            before &= x.reshape(rows, -1).isfinite().all(dim=1)
    by_row = bad.reshape(rows, -1) & (before[:, None] | finite.reshape(rows, -1))
    hits = by_row.any(dim=1).tolist()
    if result.lost and not any(hits):  # a weight overflowed, so every row is affected
        hits = [True] * rows
    tally.arose += int(by_row.sum()) or result.lost
    tally.rows |= {number for number, hit in zip(numbers, hits, strict=True) if hit}
