"""The canonical form of a report's body, which body_sha256 is of."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import rfc8785


def digest(body: Any) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON (RFC 8785) of a Body, or of one as parsed JSON."""
    return hashlib.sha256(rfc8785.dumps(msgspec.to_builtins(body))).hexdigest()
