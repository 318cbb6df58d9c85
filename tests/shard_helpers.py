"""What a record says of an accuracy run on two devices: true of the outputs that are there, and ready to be altered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deberta.core import contract, files
from deberta.host.shards import spans

FACTS = {"chip": "310P3", "cann": "8.0.RC3", "driver": "24.1.rc3", "machine": "aarch64"}
CODE, PROGRAM = "c0de" * 16, {"program": "ab" * 32}


def device(host: str, number: int = 0, **facts: Any) -> dict[str, Any]:
    return {"host": host, "device": number, **FACTS, "program": PROGRAM, "code": CODE, **facts}


def shard(folder: Path, first: int, last: int, place: str, begun: str, ended: str, length: int = 256) -> dict[str, Any]:
    """A shard of the batches that lie in `folder`."""
    names = [contract.output_file(index) for index in range(first, last + 1)]
    digests = {name: files.sha256_of(folder / name) for name in names}
    return {
        **{"length": length, "first": first, "last": last, "device": place, "digest": spans.digest_of(digests)},
        **{"started": begun, "finished": ended, "inference_ms": 12.5 * len(names)},
    }


def sharding(folder: Path, begun: str, ended: str, length: int = 256) -> dict[str, Any]:
    """Of three shards on a/0 and b/0, the last one run by a/0 when it had run the first one. Times are the run's."""
    count = len(list(folder.iterdir()))
    cuts = [0, count // 3, 2 * count // 3, count]
    middle = begun  # a second is the least that a time tells
    times = [(begun, middle), (begun, ended), (middle, ended)]
    places = ("a/0", "b/0", "a/0")
    return {
        "devices": [device("a"), device("b")],
        "shards": [
            shard(folder, cuts[i], cuts[i + 1] - 1, places[i], *times[i], length=length) for i in range(len(places))
        ],
        "lost": [
            {
                "length": length,
                "first": cuts[2],
                "last": count - 1,
                "device": "b/0",
                "why": "it was killed",
                "at": ended,
            }
        ],
        "compared": [{"length": length, "batch": 0, "devices": ["a/0", "b/0"], "same": True}],
        "not_checked": [],
        "different": False,
        "engine": "",
    }
