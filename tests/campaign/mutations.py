"""Inputs that are almost valid: bytes that are flipped, cut, repeated or spliced, and JSON with other values."""

from __future__ import annotations

import json
import random
from typing import Any

TOKENS = (
    b"9" * 400, b"-1", b"1e999", b"NaN", b"Infinity", b"\xd9\xa3", b"\xc2\xb2", b"\xef\xbc\x97", b"\x00", b"\xff\xfe",
    b"\\u0000", b"\\ud800", b"\xe2\x80\xae", b"\x1b[2J", b"\r", b"\n", b"\t", b"{", b"[", b"]" * 99, b'"', b",", b"../",
    b"/dev/zero", b"18446744073709551616", b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\xff" * 9,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**17, 0.5, -0.0, 1e308, "", " ", "\u0663", "9" * 30, "a/../b",
    "\x1b[2J", "/dev/zero", "x" * 5000, [], [None], {}, {"": 1}, [[[]]], ["a", 1], {"a": {"b": []}},
)  # fmt: skip


def mutated(seed: bytes, other: bytes, source: random.Random) -> bytes:
    """A few changes to `seed`, one of which may take a part of `other`."""
    content = bytearray(seed)
    for _ in range(source.choice((1, 1, 1, 2, 4, 12))):
        at = source.randrange(len(content) + 1)
        end = min(len(content), at + source.choice((1, 2, 4, 16, 200)))
        kind = source.randrange(7)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << source.randrange(8)
        elif kind == 1:
            del content[at:end]
        elif kind == 2:
            content[at:at] = content[at:end] * source.choice((1, 2, 40))
        elif kind == 3:
            content[at : source.choice((at, end))] = source.choice(TOKENS)
        elif kind == 4:
            start = source.randrange(len(other) + 1)
            content[at:end] = other[start : start + source.randrange(64)]
        elif kind == 5:
            content[at:end] = source.randbytes(end - at)
        elif not source.randrange(8):
            del content[at:]
    return bytes(content)


def with_other_values(document: Any, source: random.Random) -> Any:
    """A copy of a JSON document in which one value, or one key, is another."""
    root = [json.loads(json.dumps(document))]
    place: Any = root
    key: Any = 0
    node = root[0]
    while isinstance(node, (dict, list)) and node and source.random() < 0.85:
        place, key = node, source.choice(list(node)) if isinstance(node, dict) else source.randrange(len(node))
        node = place[key]
    kind = source.randrange(6)
    if kind == 0 and isinstance(place, dict):
        del place[key]
    elif kind == 1 and isinstance(place, dict):
        place[source.choice(("x", "", "\u0663", "9" * 20, "-1"))] = place.pop(key)
    elif kind == 2 and isinstance(node, list):
        place[key] = node * source.choice((0, 2, 3))
    elif kind == 3 and isinstance(node, (int, float)) and not isinstance(node, bool):
        place[key] = source.choice((-node, node + 1, node * 10**9, str(node), node + 0.5))
    else:
        place[key] = source.choice(VALUES)
    return root[0]
