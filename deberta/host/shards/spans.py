"""Spans of batches by length and input index: what is covered, what is missing, and what records say of them.

A run's shards are in its record's internal parameters: where they ran is evidence, and never a reason to run again.
Bytes, counts and digests of the outputs are those of a run on one device.
"""

from __future__ import annotations

import hashlib
from typing import Iterable, Mapping, Optional, Sequence

import msgspec

from deberta.core import schema
from deberta.core.job import Shard, Sharding

INTERNAL = "sharding"  # the name among a record's internal parameters
DEVICE = "device"  # there too: HOST/DEVICE of a performance run, where several devices are measured
Span = tuple[int, int, int]  # length, first batch, last batch


def of_internal(internal: Mapping[str, object]) -> Optional[Sharding]:
    """The shards in a record's internal parameters; None if it ran on one device. Raises ValueError for other JSON."""
    value = internal.get(INTERNAL)
    try:
        return None if value is None else msgspec.convert(value, Sharding)
    except msgspec.ValidationError as error:
        raise ValueError(schema.problem(error)) from None


def digest_of(digests: Mapping[str, str]) -> str:
    """SHA-256 over the sorted lines `<sha256>  <name>\\n` of a shard's files, as a folder's dirHash is made."""
    listing = hashlib.sha256()
    for name in sorted(digests):
        listing.update(f"{digests[name]}  {name}\n".encode())
    return listing.hexdigest()


def coverage(shards: Sequence[Shard], batches: Mapping[int, int]) -> list[str]:
    """What is wrong with shards that are to cover each batch once: a finding for each gap, double or stranger.

    `batches`: of each length, how many.
    """
    findings = []
    for length in sorted({*batches, *(shard.length for shard in shards)}):
        end, expected = batches.get(length, 0), 0
        for shard in sorted((s for s in shards if s.length == length), key=lambda shard: (shard.first, shard.last)):
            if shard.last < shard.first:
                findings.append(f"a shard at length {length} goes from batch {shard.first} to {shard.last}")
                continue
            if shard.first > expected:
                findings.append(f"no shard has {text(length, expected, shard.first - 1)}")
            elif shard.first < expected:
                findings.append(f"two shards have {text(length, shard.first, min(shard.last, expected - 1))}")
            expected = max(expected, shard.last + 1)
        if expected < end:
            findings.append(f"no shard has {text(length, expected, end - 1)}")
        elif expected > end:
            findings.append(f"a shard has {text(length, end, expected - 1)}, and there are {end} batches")
    return findings


def missing(batches: Mapping[int, int], done: Iterable[Span]) -> list[Span]:
    """What `done` leaves of all batches, by length and index."""
    spans, have = [], sorted(done)
    for length, count in sorted(batches.items()):
        start = 0
        for _, first, last in (span for span in have if span[0] == length):
            if first > start:
                spans.append((length, start, first - 1))
            start = max(start, last + 1)
        if start < count:
            spans.append((length, start, count - 1))
    return spans


def text(length: int, first: int, last: int) -> str:
    """Batches in words."""
    return f"batch {first} at length {length}" if first == last else f"batches {first} to {last} at length {length}"
