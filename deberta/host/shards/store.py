"""Finished shards, each kept as it ends: a run that was stopped, or lost its devices, goes on with what is missing.

They lie in `.cache/shards/<key>/<length>_<first>-<last>/`: the output files, and `shard.json`. The key is of all that
decides the bytes: the step with its inputs, and what ran it on which chip.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from deberta.core import files, schema
from deberta.core.errors import DataError
from deberta.core.job import DeviceFacts, LostAttempt, Shard
from deberta.core.schema import Schema
from deberta.host.shards import spans
from deberta.host.shards.pool import ShardDone
from deberta.host.shards.spans import Span

FOLDER = Path(".cache", "shards")  # below the workspace
_SHARD, _LOST = "shard.json", "lost.json"


class StoredShard(Schema):
    """`shard.json`: what ran on what, and what the cpu backend's stage counted (summary)."""

    shard: Shard
    device: DeviceFacts
    summary: dict[str, Any]
    not_checked: list[str]


class LostAttempts(Schema):
    lost: list[LostAttempt]


def key(parts: Mapping[str, Any]) -> str:
    """The name of a run's folder, of all that decides its bytes."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class ShardStore:
    """The finished shards of one run. `sizes`: of each length the bytes of its output files, by name and in order."""

    def __init__(self, folder: Path, sizes: Mapping[int, Mapping[str, int]]) -> None:
        self.folder, self._sizes = folder, sizes

    def load(self, say: Callable[[str], None]) -> list[StoredShard]:
        """Those that are whole; others are removed, and said."""
        stored: list[StoredShard] = []
        taken: set[tuple[int, int]] = set()
        for path in sorted(self.folder.glob(f"*/{_SHARD}")):
            try:
                entry = schema.read(path, StoredShard, "")
                batches = {(entry.shard.length, i) for i in range(entry.shard.first, entry.shard.last + 1)}
                if path.parent.name != _name(_span(entry.shard)) or batches & taken:
                    raise DataError("it is not the shard that its name says")
                if _digest(self._outputs(entry.shard)) != entry.shard.digest:
                    raise DataError("its files are not those of its digest")
            except (OSError, DataError, KeyError) as error:
                say(f"{path.parent} is not used, and made again: {error}")
                files.remove(path.parent)
                continue
            taken |= batches
            stored.append(entry)
        return stored

    def lost(self) -> list[LostAttempt]:
        """Attempts that were lost in this run and in those that it goes on from."""
        path = self.folder / _LOST
        return list(schema.read(path, LostAttempts, "").lost) if path.exists() else []

    def keep_lost(self, lost: Sequence[LostAttempt]) -> None:
        files.write_text(self.folder / _LOST, schema.text(LostAttempts(lost=list(lost))))

    def keep(self, span: Span, done: ShardDone, device: DeviceFacts) -> StoredShard:
        """Store a finished shard. Raises DataError unless its files are those that it should have."""
        length, first, last = span
        expected = dict(list(self._sizes[length].items())[first : last + 1])
        sizes = {name: len(content) for name, content in done.outputs.items()}
        if sizes != expected:
            raise DataError(f"{done.device} sent {len(sizes)} files for {spans.text(*span)}, not those of the batches")
        shard = Shard(
            length=length,
            first=first,
            last=last,
            device=done.device,
            digest=_digest(done.outputs),
            started=done.started,
            finished=done.finished,
            inference_ms=done.inference_ms,
        )
        entry = StoredShard(shard=shard, device=device, summary=dict(done.summary), not_checked=list(done.not_checked))
        with files.new_folder(self.folder / _name(span)) as folder:
            for name, content in done.outputs.items():
                (folder / name).write_bytes(content)
            files.write_text(folder / _SHARD, schema.text(entry))
        return entry

    def outputs(self, shard: Shard) -> Mapping[str, bytes]:
        """A stored shard's files, compared with its digest once more. Raises DataError."""
        outputs = self._outputs(shard)
        if _digest(outputs) != shard.digest:
            raise DataError(f"{self.folder / _name(_span(shard))} was changed. Run the same command again")
        return outputs

    def _outputs(self, shard: Shard) -> dict[str, bytes]:
        folder = self.folder / _name(_span(shard))
        names = list(self._sizes[shard.length])[shard.first : shard.last + 1]
        return {name: files.read_bytes(folder / name) for name in names}

    def forget(self, shards: Sequence[Shard]) -> None:
        """Remove some shards."""
        for shard in shards:
            files.remove(self.folder / _name(_span(shard)))

    def clear(self) -> None:
        files.remove(self.folder)


def _span(shard: Shard) -> Span:
    return shard.length, shard.first, shard.last


def _name(span: Span) -> str:
    length, first, last = span
    return f"{length}_{first}-{last}"


def _digest(outputs: Mapping[str, bytes]) -> str:
    return spans.digest_of({name: hashlib.sha256(content).hexdigest() for name, content in outputs.items()})
