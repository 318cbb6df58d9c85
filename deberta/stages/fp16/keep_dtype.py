"""Which nodes have to stay in float32, and the file in which ATC's --keep_dtype reads their names.

The file has one node name per line and nothing else, not even a comment: ATC skips blank lines and refuses a name that
the graph does not have (graphengine r1.8.0, ge/ir_build/attr_options/keep_dtype_option.cc).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from deberta.core import files
from deberta.core.errors import DataError, MissingError, some
from deberta.core.progress import track
from deberta.stages.data.bins import Rows
from deberta.stages.fp16.emulation import Computation, EmulationResult, Float16Graph, Node, Watch
from deberta.stages.fp16.survey import Survey, survey

ROUNDS = 4  # of growing, shortening and verifying
LEVELS = 16  # how far up from a node that is not finite in float32 either the nodes before it are kept too
TRIALS = 256  # runs of a few rows that shortening may take
RESUME_NODES = 8  # from how many nodes to how many a run that may have to go back is copied,
RESUME_BYTES = 2**28  # and how much all its copies may hold: beyond that the oldest go


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
    kept node still is not finite (a divisor that rounding made 0), the nodes before it are kept too. Then nodes are
    left out, and stay out if nothing overflows without them: many at once where that goes, one alone in the end.
    """
    keep, hard = set(before), list(affected)
    for _ in range(ROUNDS):
        deciding = _grow(graph, hard, keep)
        if deciding is None:
            return None
        irreducible = _Shortening(graph, hard, deciding, before).shorten(keep)
        verified = survey(graph, parts, keep, "check-fp16, verifying")
        if not verified.affected:
            return Cure([node.name for node in graph.nodes if node.name in keep], irreducible, verified)
        hard += [part for part in verified.affected if part not in hard]
    return None


def _grow(graph: Float16Graph, parts: Sequence[Rows], keep: set[str]) -> list[Rows] | None:
    """Add to `keep` until nothing overflows in these rows; returns those that added nodes, None if it cannot be."""
    deciding = []

    def watch(node: Node, result: EmulationResult) -> bool:
        if result.good:
            return False
        if result.kept:
            raise _Stop(node)
        keep.add(node.name)
        return True

    for part in track(parts, "check-fp16, finding nodes", "parts"):
        count = len(keep)
        copies = [Computation.start(graph, part)]  # before the nodes to which the run may go back
        for _ in range(LEVELS):
            try:
                _advance_with_copies(copies, keep, watch)
                break
            except _Stop as stop:
                kept = _keep_producers(graph, stop.args[0], keep)
                if not kept:
                    return None
                first = next(i for i, node in enumerate(graph.nodes) if node.name in kept)
                copies = [copy for copy in copies if copy.index <= first] or [Computation.start(graph, part)]
        else:
            return None
        if len(keep) > count:
            deciding.append(part)
    return deciding


def _advance_with_copies(copies: list[Computation], keep: set[str], watch: Watch) -> None:
    """Run from the last of `copies` to the end, and add copies on the way, within RESUME_BYTES."""
    run = copies[-1].copy()
    end = len(run.graph.nodes)
    held = deque(copy.held for copy in copies)
    total = sum(held)
    while run.index < end:
        run.advance(min(run.index + RESUME_NODES, end), keep, watch)
        copies.append(run.copy())
        held.append(run.held)
        total += held[-1]
        while len(copies) > 1 and total > RESUME_BYTES:
            total -= held.popleft()
            del copies[0]


def _keep_producers(graph: Float16Graph, node: Node, keep: set[str]) -> set[str]:
    """Keep the nearest nodes before `node` that are not kept yet, and return them."""
    producers, before = {node.output: node for node in graph.nodes}, set(keep)
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
    return keep - before


class _TrialsSpent(Exception):
    """TRIALS runs were made."""


class _Shortening:
    """Leaves out of a list what is not needed in these rows.

    A list is tried on the deciding rows first: those for which nodes were kept. Rows in which a shortened list fails
    decide from then on, beside the others, and the list is shortened anew. What comes out is what leaving out
    each node in turn gives, if a list that leaves nothing to overflow does so with more nodes in it too; without
    that it still is a list from which no node can go.
    """

    def __init__(
        self, graph: Float16Graph, parts: Sequence[Rows], deciding: Sequence[Rows], before: Collection[str]
    ) -> None:
        self._graph = graph
        self._parts = list(parts)
        self._before = before
        self._deciding = list(deciding) or self._parts[:1]
        self._trials = 0
        self._prefixes: list[Computation] = []  # of the deciding rows, as far as the list is settled

    def shorten(self, keep: set[str]) -> bool:
        """Shorten `keep`; True if all that remains was shown to be needed."""
        full = set(keep)
        while True:
            try:
                needed = self._shorten_for_deciding(keep)
            except _TrialsSpent:
                needed = False
            failed = self._failing(keep) if keep != full else None
            if failed is None:
                return needed
            keep |= full
            if self._trials >= TRIALS:
                return False
            self._deciding.insert(0, failed)

    def _shorten_for_deciding(self, keep: set[str]) -> bool:
        """Shorten `keep` as far as the deciding rows allow; raises _TrialsSpent."""
        halve, dropped = True, True
        while dropped:  # what was needed may no longer be, without what was dropped after it
            names = (node.name for node in self._graph.nodes)
            places = [i for i, name in enumerate(names) if name in keep and name not in self._before]
            self._prefixes = [Computation.start(self._graph, part) for part in self._deciding]
            size, count = (len(places) if halve else 1), len(keep)
            for i in range(0, len(places), max(1, size)):
                self._drop(places[i : i + size], keep)
            halve, dropped = False, len(keep) < count
        return True

    def _drop(self, places: Sequence[int], keep: set[str]) -> None:
        """Leave out all of the nodes at `places`, or as many as can go of each half."""
        names = {self._graph.nodes[i].name for i in places}
        if self._stays_clean(places[0], keep - names, keep):
            keep -= names
        elif len(places) > 1:
            middle = len(places) // 2
            self._drop(places[:middle], keep)
            self._drop(places[middle:], keep)

    def _stays_clean(self, place: int, trial: set[str], keep: set[str]) -> bool:
        """Whether the deciding rows are clean with the list `trial`, which is `keep` before the node at `place`."""
        for prefix in list(self._prefixes):
            if self._trials == TRIALS:
                raise _TrialsSpent
            self._trials += 1
            prefix.advance(place, keep)
            if not _is_clean(prefix.copy(), trial):
                self._prefixes.remove(prefix)
                self._prefixes.insert(0, prefix)  # the rows that failed are tried first next time
                return False
        return True

    def _failing(self, keep: set[str]) -> Rows | None:
        """The first rows that do not decide yet and are not clean with this list."""
        others = [part for part in self._parts if not any(part is other for other in self._deciding)]
        for part in track(others, "check-fp16, shortening the list", "parts"):
            if not _is_clean(Computation.start(self._graph, part), keep):
                return part
        return None


def _is_clean(computation: Computation, keep: set[str]) -> bool:
    """Whether nothing overflows from here on; the run ends at the first node where something does."""

    def watch(node: Node, result: EmulationResult) -> bool:
        if not result.good:
            raise _Stop(node)
        return False

    try:
        computation.advance(len(computation.graph.nodes), keep, watch)
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
