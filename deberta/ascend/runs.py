"""What runs of ATC, msame and ais_bench are judged by in the same way: error lines, inferences, output files.

failures.json has a row for each way in which they fail: a code of ATC's (several codes stand in one text) or a regular
expression for a printed line, our error, and what it means or what to do. Rows that name a cause come before those that
only name what it led to. Codes and meanings are those of error_manager/error_code.json of Ascend/metadef (branch r1.8.0
and its neighbours), from which ATC prints its texts; E19015, E76002, EZ3002 and EZ3003 are in the headers of
graphengine v1.8.0; E10054, EC0010 and the texts without a code were seen in runs of newer builds. The wording is ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Optional

import msgspec

from deberta.core import errors
from deberta.core.errors import DataError, DebertaError, some

FAILURES = msgspec.json.decode(Path(__file__).with_name("failures.json").read_bytes())
ADVICE_OF_CODE = {code: row for codes, *row in FAILURES["codes"] for code in codes.split()}


def explain(tool: str, lines: Sequence[str]) -> Optional[DebertaError]:
    """The error of the tool's first failure that is in any of the lines (case is ignored); None if none is."""
    for pattern, error, advice in FAILURES[tool]:
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE):
                return failure(tool, line, error, advice)
    return None


def failure(tool: str, text: str, error: str, advice: str) -> DebertaError:
    """The error of a row, which the tool's own text begins."""
    kind: type[DebertaError] = getattr(errors, error)
    return kind(f"{tool}: {text.rstrip(' .')}: {advice}")


def check_complete(
    times_ms: Sequence[float], expected_times: int, question: str, folder: Path, expected: Mapping[str, int]
) -> None:
    """Raise DataError unless all inferences were timed and the folder holds the expected files (name -> bytes) alone.

    `question` hints at the reason why inferences are missing.
    """
    if len(times_ms) != expected_times:
        raise DataError(f"{len(times_ms)} inferences were timed, {expected_times} were asked for. {question}")
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
