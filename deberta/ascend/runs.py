"""What runs of ATC, msame and ais_bench are judged by in the same way: error lines, inferences, output files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Optional

from deberta.core.errors import DataError, DebertaError, some

# What a line of a tool's output means: a regular expression (case is ignored), our error, and what to do.
Cause = tuple[str, type[DebertaError], str]


def explain(tool: str, lines: Sequence[str], causes: Iterable[Cause]) -> Optional[DebertaError]:
    """The error of the first cause that is in any of the lines; None if no cause fits."""
    for pattern, error, advice in causes:
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE):
                return error(f"{tool}: {line.rstrip(' .')}: {advice}")
    return None


def check_count(times_ms: Sequence[float], expected: int, question: str) -> None:
    """Raise DataError unless as many inferences were timed as expected; `question` hints at the reason."""
    if len(times_ms) != expected:
        raise DataError(f"{len(times_ms)} inferences were timed, {expected} were asked for. {question}")


def check_outputs(folder: Path, expected: Mapping[str, int]) -> None:
    """Raise DataError unless the folder holds the expected files (name -> bytes) and nothing else."""
    if not folder.is_dir():
        raise DataError(f"the run's output folder {folder} is missing")
    check_files(folder.iterdir(), expected, "outputs", folder)


def check_files(paths: Iterable[Path], expected: Mapping[str, int], kind: str, folder: Path, advice: str = "") -> None:
    """Raise DataError unless the paths are exactly the expected files (name -> bytes)."""
    sizes = {path.name: path.stat().st_size if path.is_file() else -1 for path in paths}
    for problem, names in (
        ("missing from", sorted(set(expected) - set(sizes))),
        ("not expected in", sorted(set(sizes) - set(expected))),
    ):
        if names:
            total = f"{len(names)} {kind} of {len(expected)}"
            raise DataError(f"{total} are {problem} {folder}: {some(names, 3)}{advice}")
    wrong = [f"{name} ({sizes[name]} bytes, not {size})" for name, size in expected.items() if sizes[name] != size]
    if wrong:
        raise DataError(f"{len(wrong)} {kind} in {folder} have a wrong size: {some(sorted(wrong), 3)}{advice}")
