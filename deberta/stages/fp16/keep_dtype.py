"""Which nodes have to stay in float32, and the file in which ATC's --keep_dtype reads their names.

The file has one node name per line and nothing else, not even a comment: ATC skips blank lines and refuses a name that
the graph does not have (graphengine r1.8.0, ge/ir_build/attr_options/keep_dtype_option.cc).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from deberta.core import files
from deberta.core.errors import DataError, MissingError, some
from deberta.core.progress import track
from deberta.stages.data.bins import Rows
from deberta.stages.fp16 import emulation
from deberta.stages.fp16.emulation import EmulationResult, Float16Graph, Node
from deberta.stages.fp16.survey import Survey, survey

ROUNDS = 4  # of growing, shortening and verifying
LEVELS = 16  # how far up from a node that is not finite in float32 either the nodes before it are kept too
TRIALS = 256  # runs of a few rows that shortening may take


class _Stop(Exception):
    """Ends a run at a node, its one argument."""


@dataclass(frozen=True)
class Cure:
    """A list that leaves no overflow in any row. `irreducible`: it was shown that none of the new nodes can go."""

    nodes: list[str]  # in the graph's order, those that were kept before included
    irreducible: bool
    survey: Survey  # with these nodes kept


def find(graph: Float16Graph, parts: Sequence[Rows], affected: Sequence[Rows], before: Collection[str]) -> Cure | None:
    """The nodes to keep in addition to `before`; None if no list leaves everything finite.

    Every node whose result overflows is kept, and every one that then gets a value beyond float16's range. Where a
    kept node still is not finite (a divisor that rounding made 0), the nodes before it are kept too. Then each is
    left out once, and stays out if nothing overflows without it.
    """
    keep, hard = set(before), list(affected)
    for _ in range(ROUNDS):
        if not _grow(graph, hard, keep):
            return None
        irreducible = _shorten(graph, hard, keep, before)
        verified = survey(graph, parts, keep, "check-fp16, verifying")
        if not verified.affected:
            return Cure([node.name for node in graph.nodes if node.name in keep], irreducible, verified)
        hard += [part for part in verified.affected if part not in hard]
    return None


def _grow(graph: Float16Graph, parts: Sequence[Rows], keep: set[str]) -> bool:
    """Add to `keep` until nothing overflows in these rows; False if that cannot be reached."""

    def watch(node: Node, result: EmulationResult) -> bool:
        if result.good:
            return False
        if result.kept:
            raise _Stop(node)
        keep.add(node.name)
        return True

    for part in track(parts, "check-fp16, finding nodes", "parts"):
        for _ in range(LEVELS):
            try:
                emulation.run(graph, part, keep, watch)
                break
            except _Stop as stop:
                if not _keep_producers(graph, stop.args[0], keep):
                    return False
        else:
            return False
    return True


def _keep_producers(graph: Float16Graph, node: Node, keep: set[str]) -> bool:
    """Keep the nearest nodes before `node` that are not kept yet; False if there are none."""
    producers, before = {node.output: node for node in graph.nodes}, len(keep)
    seen: set[str] = set()
    left = [node]
    while left:
        for name in left.pop().inputs:
            producer = producers.get(name)
            if producer is None or name in seen:
                continue
            seen.add(name)
            if producer.name in keep or producer.moves:
                left.append(producer)
            keep.add(producer.name)
    return len(keep) > before


def _shorten(graph: Float16Graph, parts: Sequence[Rows], keep: set[str], before: Collection[str]) -> bool:
    """Leave out of `keep` what is not needed in these rows; True if all that remains was shown to be needed."""
    order, trials, dropped = list(parts), 0, True
    while dropped:  # what was needed may no longer be, without what was dropped after it
        dropped = False
        candidates = [node.name for node in graph.nodes if node.name in keep and node.name not in before]
        for name in track(candidates, "check-fp16, shortening the list", "nodes"):
            for part in list(order):
                if trials == TRIALS:
                    return False
                trials += 1
                if not _is_clean(graph, part, keep - {name}):
                    order.remove(part)
                    order.insert(0, part)  # the rows that failed are tried first next time
                    break
            else:
                keep.remove(name)
                dropped = True
    return True


def _is_clean(graph: Float16Graph, part: Rows, keep: set[str]) -> bool:
    def watch(node: Node, result: EmulationResult) -> bool:
        if not result.good:
            raise _Stop(node)
        return False

    try:
        emulation.run(graph, part, keep, watch)
    except _Stop:
        return False
    return True


def read(path: Path, graph: Float16Graph) -> set[str]:
    """The names in a file for --keep_dtype. Raises MissingError, and DataError for a name that no node has."""
    if not path.is_file():
        raise MissingError(f"{path} is missing. Check keep_dtype under atc in invoke.yaml")
    names = {line.strip() for line in files.read_text(path).splitlines() if line.strip()}
    if unknown := sorted(names - {node.name for node in graph.nodes}):
        raise DataError(f"{path} names nodes that the graph does not compute: {some(unknown)}")
    return names


def write(path: Path, names: Sequence[str]) -> None:
    """Write the file, or remove an old one if there is nothing to keep: ATC needs none then."""
    if names:
        files.write_text(path, "".join(f"{name}\n" for name in names))
    else:
        files.remove(path)
