"""A table of premises and hypotheses, without labels, of any tool's -> tsv files of GLUE's form, some rows in each.

What is written is read by preprocess alone and removed afterwards: each row has the label neutral, which nothing reads,
and as its pairID the number of its line, or of its entry in JSON. Tabs and line ends in texts become blanks. Each file,
`<output>/<i>/dev_matched.tsv`, is converted in memory that does not grow with the number of files.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deberta.core import contract, files, mnli
from deberta.core.errors import DataError, many, run_stage
from deberta.stages import arguments
from deberta.stages.arguments import Argument
from deberta.stages.data import convert_data, tables
from deberta.stages.data.convert_data import TEXTS
from deberta.stages.data.tables import ForeignTable

_SHOWN = 5  # bad rows quoted in one message; the others are counted
_LABEL = contract.LABELS[1]


def lines(table: ForeignTable, columns: Mapping[str, str], path: Path) -> Iterator[str]:
    """The rows as lines of GLUE's dev tsv. Raises DataError at the end, which counts all bad rows."""
    bad: list[str] = []
    bad_count = 0
    for index, (number, row) in enumerate(table.rows):
        try:
            line = _line(index, number, [_text(role, row.get(columns[role])) for role in TEXTS])
        except ValueError as problem:
            bad_count += 1
            if len(bad) < _SHOWN:
                bad.append(f"{'entry' if table.kind.startswith('JSON') else 'line'} {number}: {problem}")
            continue
        if not bad:
            yield line
    if bad:
        more = f"; and {bad_count - len(bad)} more" if bad_count > len(bad) else ""
        raise DataError(f"{path} ({table.kind}) has {many(bad_count, 'bad row')}: {'; '.join(bad)}{more}")


def _text(role: str, value: Any) -> str:
    text = convert_data.text_cell(role, value)
    if not text.strip():
        raise ValueError(f"its {role} is empty")
    return text


def _line(index: int, number: int, texts: Sequence[str]) -> str:
    plain = [convert_data.BREAKS.sub(" ", text) for text in texts]
    cells = [str(index), str(index), str(number), convert_data.GENRE, "", "", "", "", *plain, *[_LABEL] * 6]
    line = "\t".join(cells)
    if len(line.encode()) + 1 >= mnli.LONGEST_LINE:
        raise ValueError(f"it has more than {mnli.LONGEST_LINE} bytes")
    return line


def write(rows: Iterator[str], output: Path, most: int) -> list[int]:
    """Write the lines, `most` to a file; returns how many each file has."""
    counts: list[int] = []
    while part := list(itertools.islice(rows, most)):
        path = output / str(len(counts)) / contract.DEV_FILES[contract.VERSIONS[0]]
        files.write_text(path, "\n".join(["\t".join(mnli.DEV_NAMES), *part]) + "\n")
        counts.append(len(part))
    return counts


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "data output summary",
        columns=Argument("premise=NAME,hypothesis=NAME", convert_data.columns, default={}),
        most=Argument("rows in a file", arguments.whole(1), required=True),
    )
    numbered = bool(options.columns) and all(map(str.isdigit, options.columns.values()))
    table = tables.read(options.data, has_header=not numbered)
    columns = convert_data.columns_of(table, options.columns, options.data, TEXTS)
    with files.new_folder(options.output) as temporary:
        counts = write(lines(table, columns, options.data), temporary, options.most)
        if not counts:
            raise DataError(f"{options.data} ({table.kind}) has no rows")
    print(f"{options.data} ({table.kind}): {many(sum(counts), 'row')}")
    arguments.write_summary(options.summary, {"rows": sum(counts), "kind": table.kind, "files": counts})


if __name__ == "__main__":
    sys.exit(run_stage(main))
