"""Where two parsed JSON values differ."""

from __future__ import annotations

import json
from typing import Any, Iterator, NamedTuple, Optional


class JsonDifference(NamedTuple):
    """A place, as in `body.cells[3].correct`, and both values there as JSON text; None where there is none."""

    place: str
    first: Optional[str]
    second: Optional[str]

    def describe(self, first_name: str, second_name: str) -> str:
        """The difference in words; the names say which value is which."""
        if self.first is None or self.second is None:
            return f"{self.place}: only {second_name if self.first is None else first_name}"
        return f"{self.place}: {first_name} {self.first}, {second_name} {self.second}"


def differences(first: Any, second: Any, place: str = "") -> Iterator[JsonDifference]:
    """All differences, in the order of the second value's keys; 1 and 1.0 are different values."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*second, *first]):
            inner = (f"{place}.{key}" if place else key) if key.isidentifier() else f"{place}[{json.dumps(key)}]"
            if key in first and key in second:
                yield from differences(first[key], second[key], inner)
            else:
                yield JsonDifference(inner, *(shown(side[key]) if key in side else None for side in (first, second)))
    elif isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            yield JsonDifference(place, f"{len(first)} entries", f"{len(second)} entries")
        for index, values in enumerate(zip(first, second)):
            yield from differences(*values, f"{place}[{index}]")
    elif type(first) is not type(second) or first != second:
        yield JsonDifference(place, shown(first), shown(second))


def shown(value: Any) -> str:
    """JSON text, its beginning if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}..."
