"""A table of premises, hypotheses and labels of any tool's -> GLUE's dev tsv, 16 columns, once and for all.

Texts stay as they are but for tabs and line ends, which GLUE's form cannot hold: they become blanks. A row without a
genre is of the genre `all`; one without a pairID gets its number. The same file and options give the same bytes.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deberta.core import contract, files, mnli
from deberta.core.errors import ConfigError, DataError, many, run_stage, some
from deberta.stages import arguments
from deberta.stages.arguments import Argument
from deberta.stages.data import tables
from deberta.stages.data.tables import ForeignTable
from deberta.stages.model import label_words

TEXTS = ("premise", "hypothesis")
NEEDED, OPTIONAL = (*TEXTS, "label"), ("genre", "id")
USUAL = {  # the names that a column is looked for by
    "premise": ("premise", "sentence1", "text_a"),
    "hypothesis": ("hypothesis", "sentence2", "text_b"),
    "label": ("label", "gold_label"),
    "genre": ("genre",),
    "id": ("pairID", "uid", "id"),
}
LEFT_OUT = "none"  # of a label word: rows that have it are left out
GENRE = "all"
# What the original MultiNLI and SNLI have for rows on whose label nobody agreed; GLUE's files have no such rows.
_ORIGINALS, _NO_LABEL = {"sentence1_binary_parse", "annotator_labels"}, "-"
BREAKS = re.compile(r"\r\n|[\t\n\r]")
_SHOWN = 5  # bad rows quoted in one message; the others are counted


@dataclass
class Conversion:
    """What was written, and what was changed or left out on the way."""

    columns: dict[str, str]
    lines: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    with_breaks: int = 0  # rows in which a tab or line end became a blank


def columns_of(
    table: ForeignTable, mapping: Mapping[str, str], path: Path, needed: Sequence[str] = NEEDED
) -> dict[str, str]:
    """The table's column for each of ours: by `mapping`, else by its usual name. Raises DataError naming all faults.

    Without a label among those `needed`, no others are looked for.
    """
    problems, columns = [], {}
    for role in (*needed, *(OPTIONAL if "label" in needed else ())):
        wanted = [mapping[role]] if role in mapping else [name for name in USUAL[role] if name in table.columns]
        present = [name for name in wanted if name in table.columns]
        if role in mapping and not present:
            problems.append(f"no column {mapping[role]!r}")
        elif len(wanted) > 1:
            problems.append(f"{role} may be {' or '.join(wanted)}")
        elif not wanted and role in needed:
            problems.append(f"no column for {role} (looked for {', '.join(USUAL[role])})")
        elif present and table.columns.count(present[0]) > 1:
            problems.append(f"{table.columns.count(present[0])} columns called {present[0]!r}")
        elif present:
            columns[role] = present[0]
    if problems:
        lacks_labels = "label" in needed and "label" not in columns and len(columns) > 1
        no_labels = "; is it a test file, which has none" if lacks_labels else ""
        more = ", with genre=NAME and id=NAME if there are any" if "label" in needed else ""
        raise DataError(
            f"{path} ({table.kind}): {'; '.join(problems)}{no_labels}. Its columns: {some(table.columns, 20)}. Say "
            f"which: --columns {','.join(f'{role}=NAME' for role in needed)}{more}"
        )
    return columns


def convert(table: ForeignTable, columns: Mapping[str, str], words: Mapping[str, str], path: Path) -> Conversion:
    """The rows in GLUE's form. `words`: what the labels of the file mean, in lower case; the contract's are known.

    Raises DataError that counts all bad rows and quotes the first.
    """
    result = Conversion(dict(columns))
    bad: list[str] = []
    bad_count = 0
    has_original_form = bool(_ORIGINALS & set(table.columns))
    for number, row in table.rows:
        try:
            label = _label(row.get(columns["label"]), words, has_original_form)
            texts = [text_cell(role, row.get(columns[role])) for role in TEXTS]
        except ValueError as problem:
            bad_count += 1
            if len(bad) < _SHOWN:
                bad.append(f"{'entry' if table.kind.startswith('JSON') else 'line'} {number}: {problem}")
            continue
        if label == LEFT_OUT:
            result.left_out += 1
            continue
        index = len(result.lines)
        pair_id = str(row.get(columns.get("id", ""), index))
        genre = str(row.get(columns.get("genre", "")) or GENRE)
        genre = "".join(character if character.isprintable() else " " for character in genre)
        cells = [str(index), str(index), pair_id, genre, "", "", "", "", *texts, label, "", "", "", "", label]
        plain = [BREAKS.sub(" ", cell) for cell in cells]
        line = "\t".join(plain)
        if len(line.encode()) + 1 >= mnli.LONGEST_LINE:
            raise DataError(f"{path} ({table.kind}): row {number} has more than {mnli.LONGEST_LINE} bytes")
        result.with_breaks += plain != cells
        result.lines.append(line)
        result.labels[label] += 1
    if bad:
        more = f"; and {bad_count - len(bad)} more" if bad_count > len(bad) else ""
        raise DataError(f"{path} ({table.kind}) has {many(bad_count, 'bad row')}: {'; '.join(bad)}{more}")
    if not result.lines:
        raise DataError(f"{path} ({table.kind}) has no rows with a label")
    return result


def _label(value: Any, words: Mapping[str, str], has_original_form: bool) -> str:
    """The contract's label, or LEFT_OUT. Raises ValueError."""
    if value is None or value == "":
        raise ValueError("it has no label")
    text = str(value).strip()
    number = re.fullmatch(r"(-?[0-9]+)\.0", text)  # of pandas, where some row had no label
    word = (number[1] if number else text).lower()
    if word in words:
        return words[word]
    if (label := label_words.label_word(word)) in contract.LABELS:
        return label
    if word == _NO_LABEL and has_original_form:
        return LEFT_OUT
    meaning = f"{word}=entailment (or neutral, contradiction; {LEFT_OUT}: left out)"
    if re.fullmatch(r"-?[0-9]+", word):
        usual = "; in Hugging Face's MNLI and SNLI 0=entailment,1=neutral,2=contradiction"
        raise ValueError(f"the label is the number {text[:20]}. Say what it means: --label-words {meaning}{usual}")
    raise ValueError(f"unknown label {text[:40]!r}. Say what it means: --label-words {meaning}")


def text_cell(role: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its {role} is {'missing' if value is None else 'no text'}")
    return value


def pairs(option: str, text: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping; a comma that begins no new pair belongs to its value. Raises ConfigError."""
    entries: dict[str, str] = {}
    for part in re.split(r",(?=[^,=]+=)", text) if text else []:
        key, separator, value = part.partition("=")
        if not separator or not key.strip() or not value.strip() or key.strip() in entries:
            raise ConfigError(f"{option} {text!r} is not a list such as a=b,c=d, each name once")
        entries[key.strip()] = value.strip()
    return entries


def columns(option: str, text: str) -> dict[str, str]:
    mapping = pairs(option, text)
    if unknown := sorted(set(mapping) - {*NEEDED, *OPTIONAL}):
        raise ConfigError(f"{option} names {unknown[0]!r}, which is none of {', '.join((*NEEDED, *OPTIONAL))}")
    return mapping


def _words(option: str, text: str) -> dict[str, str]:
    mapping = {word.lower(): label_words.label_word(label) for word, label in pairs(option, text).items()}
    if wrong := [label for label in mapping.values() if label not in (*contract.LABELS, LEFT_OUT)]:
        raise ConfigError(f"{option} names {wrong[0]!r}, which is none of {', '.join((*contract.LABELS, LEFT_OUT))}")
    for word, label in mapping.items():
        if label_words.label_word(word) in contract.LABELS and label != label_words.label_word(word):
            raise ConfigError(f"{option} says that {word!r} is {label}. Its own meaning stands")
    return mapping


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "data output summary",
        columns=Argument("premise=NAME,hypothesis=NAME,label=NAME,genre=NAME,id=NAME", columns, default={}),
        label_words=Argument("what labels of the file mean: WORD=entailment,...", _words, default={}),
        model_words=Argument("the same of the model's own labels, which the file may have", _words, default={}),
    )
    words = {**options.model_words, **options.label_words}
    for word, label in options.model_words.items():
        if words[word] != label:
            raise ConfigError(f"--label-words says that {word!r} is {words[word]}, and for the model it is {label}")
    numbered = bool(options.columns) and all(map(str.isdigit, options.columns.values()))
    table = tables.read(options.data, has_header=not numbered)
    conversion = convert(table, columns_of(table, options.columns, options.data), words, options.data)
    with files.new_file(options.output) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write("\n".join(["\t".join(mnli.DEV_NAMES), *conversion.lines]) + "\n")
    labels = {label: conversion.labels[label] for label in contract.LABELS}
    counted = {
        "rows": len(conversion.lines),
        "kind": table.kind,
        "columns": conversion.columns,
        "labels": labels,
        "rows_left_out": conversion.left_out,
        "rows_with_breaks": conversion.with_breaks,
    }
    if conversion.left_out:
        print(f"{many(conversion.left_out, 'row')} without an agreed label, or whose label means none, left out")
    if conversion.with_breaks:
        print(f"{many(conversion.with_breaks, 'row')} with a tab or line end, which became a blank")
    print(
        f"{options.data} ({table.kind}): {many(len(conversion.lines), 'row')} "
        f"({', '.join(f'{label} {count}' for label, count in labels.items())}), columns "
        f"{', '.join(f'{role}={name}' for role, name in conversion.columns.items())}: {options.output}"
    )
    arguments.write_summary(options.summary, counted)


if __name__ == "__main__":
    sys.exit(run_stage(main))
