"""The rules of a tokenizer that change its input, checked before the tokenizers library applies them.

The library looks up a character map without a look at its bounds, and lets a regular expression run for ever.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

_GROWTH = 18  # characters that Unicode's normal forms and case make of one, at most: U+FDFA
_REPETITION = re.compile(r"(?<!\\)[*+?{]")


def growth(rules: dict[str, Any]) -> int:
    """The most characters that a normalizer, as a tokenizer.json has it, makes of one."""
    if rules.get("type", "Strip") in ("Strip", "StripAccents", "Nmt"):
        return 1
    if rules.get("type") == "Sequence":
        return math.prod(map(growth, rules["normalizers"]))
    if rules.get("type") == "Precompiled":
        texts = _parts(base64.b64decode(rules["precompiled_charsmap"]))[1].decode(errors="replace").split("\0")
        return max(map(len, texts)) or 1
    text = str(rules.get("content", rules.get("prepend", "")))
    return 1 + len(text) if rules.get("type") in ("Replace", "Prepend") else _GROWTH


def problem(document: dict[str, Any]) -> str:
    """Why the rules of a tokenizer.json are not applied; empty if they are."""
    for key, value in _values(document):
        if key == "Regex" and len(_REPETITION.findall(str(value))) > 1:
            return f"has a regular expression with more than one repetition, which may run for ever: {str(value)[:80]}"
        if key == "precompiled_charsmap":
            try:
                content = base64.b64decode(str(value), validate=True)
            except binascii.Error:
                return "has a character map that is no base64"
            if reason := map_problem(content):
                return reason
    return ""


def map_problem(content: bytes) -> str:
    """Why a precompiled character map cannot be looked up; empty if it can.

    It is the size of a trie in bytes, uint32; the trie, a double array of uint32 units as darts-clone writes it; and
    UTF-8 texts that end with a NUL each. A lookup goes from unit i to i ^ offset ^ byte, and from there to the unit of
    a value, the place of a text. Source: sentencepiece's normalizer.cc and darts.h.
    """
    trie, texts = _parts(content)
    if len(trie) % 4 or not trie or len(content) < 4 or not texts.endswith(b"\0"):
        return "has a character map that is damaged"
    units = np.frombuffer(trie, "<u4").astype(np.int64)
    is_value = units >> 31 == 1
    offsets = (units >> 10) << ((units & 1 << 9) >> 6)
    reached = np.arange(len(units)) ^ offsets
    has_value = (units >> 8 & 1 == 1) & ~is_value
    values = units[is_value] & 0x7FFFFFFF
    is_sound = (
        (reached[~is_value] | 255).max(initial=0) < len(units)
        and bool(is_value[reached[has_value]].all())
        and values.max(initial=0) < len(texts)
    )
    starts = np.frombuffer(texts, "u1")[values] if is_sound else np.zeros(0, "u1")
    return "" if is_sound and not (starts & 0xC0 == 0x80).any() else "has a character map that leads out of itself"


def _parts(content: bytes) -> tuple[bytes, bytes]:
    """The trie and the texts of a character map."""
    end = 4 + int.from_bytes(content[:4], "little")
    return content[4:end], content[end:]


def _values(content: Any) -> Iterator[tuple[str, Any]]:
    """The keys and values of every object in a JSON document."""
    if isinstance(content, dict):
        yield from content.items()
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _values(value)
