"""What lint-onnx looks for: rules with their sources (rules.toml), kinds of operators (operators.toml), and limits."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEVERITIES = ("error", "warning", "note")  # the gravest first
DOCUMENTED = "documented"
OPSETS = (9, 13)
LARGEST_FP16 = 65504.0
MODEL_DOMAINS = ("", "ai.onnx")
# From here on, both together, gather_elements.py's check_supported leaves GatherElements to the AI CPU.
GATHER_DATA_BYTES, GATHER_INDICES = 100 * 1024, 2048


@dataclass(frozen=True)
class Rule:
    """One thing to look for. `basis`: how sure it is; anything else than DOCUMENTED is less."""

    id: str
    severity: str
    title: str
    why: str
    do: str
    source: str = ""
    basis: str = DOCUMENTED


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


RULES = tuple(Rule(name, **entry) for name, entry in _read("rules.toml").items())
BY_ID = {rule.id: rule for rule in RULES}

_KINDS = _read("operators.toml")
OPERATORS = {operator: rule for rule, operators in _KINDS["findings"].items() for operator in operators}
KNOWN_OPERATORS = frozenset(_KINDS["known"].split())
PARAMETERS: dict[str, list[int]] = _KINDS["parameters"]
INDEXED, NO_ARITHMETIC, VIEWS, MOVES = (_KINDS[kind] for kind in ("indexed", "no_arithmetic", "views", "moves"))


def table() -> str:
    """The rules as the Markdown table of docs/lint-onnx.md."""
    lines = ["| rule | severity | finds | why | basis | source |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{rule.id}` | {rule.severity} | {rule.title} | {rule.why} | {rule.basis} | {rule.source or '-'} |"
        for rule in RULES
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
