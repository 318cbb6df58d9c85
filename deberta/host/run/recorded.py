"""Steps put together again from their records, and judged with bounded work and without changing anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional

from deberta.core import contract, files, records
from deberta.core.errors import DebertaError, MissingError
from deberta.core.paths import RECORD_SUFFIX
from deberta.core.records import Record
from deberta.host.plan.plan import STAGES, Inference, Input, ModelRun, Step
from deberta.host.run.local import LocalExecutor
from deberta.host.run.session import Session

MOST_HASHED = 256 << 20  # bytes: less than a second
RUNNERS = ("run-cpu", *contract.RUNNERS)  # the stage and the tools that run the model


class NotHashedError(DebertaError):
    """What it takes to know more is left to a command that runs or explains."""


class BoundedDigests(records.Digests):
    """Digests that are remembered, and new ones of MOST_HASHED bytes in all; none is looked at twice, none saved."""

    def __init__(self, workspace: Path) -> None:
        super().__init__(workspace)
        self._left = MOST_HASHED
        self._seen: dict[PurePosixPath, dict[str, str]] = {}

    def of(self, path: PurePosixPath) -> dict[str, str]:
        """The digest of a file or folder. Raises FileNotFoundError, NotHashedError."""
        if path not in self._seen:
            if not self.knows(path):
                size = files.size_of(self._workspace / path)
                if size > self._left:
                    raise NotHashedError(
                        f"{path} was not hashed again ({size / 1e6:.0f} MB); invoke explain evaluate does it"
                    )
                self._left -= size
            self._seen[path] = super().of(path)
        return dict(self._seen[path])

    def save(self) -> None:
        """status writes nothing."""


def read_only(session: Session, digests: records.Digests) -> Session:
    """The session with bounded digests, and without tools of CANN's, which would have to be started."""
    executor = session.executor
    if isinstance(executor, LocalExecutor):
        executor = replace(executor, tools=executor.tools._replace(cann=_not_started))
    return replace(session, executor=executor, hashing=lambda workspace: digests)


def _not_started() -> Any:
    raise MissingError("CANN was not started")


def in_order(known: Mapping[PurePosixPath, Record]) -> list[PurePosixPath]:
    """The records, each after those of what it was made of."""
    makers = {name: path for path, record in known.items() for name in record.subjects}
    order: dict[PurePosixPath, None] = {}
    visited: set[PurePosixPath] = set()
    for start in known:
        waiting = [start]
        while waiting:
            path = waiting[-1]
            before = [makers[name] for name in known[path].dependencies if name in makers]
            unseen = [] if path in visited else [other for other in before if other not in order and other != path]
            visited.add(path)
            if unseen:
                waiting += unseen
            else:
                order[waiting.pop()] = None
    return list(order)


def step_of(path: PurePosixPath, record: Record) -> Optional[Step]:
    """The step that left this record, as it was told then; None if the record does not say it."""
    values = record.parameters
    name, stage, tool = (str(values.get(key, "")) for key in ("step", "stage", "tool"))
    arguments = values.get("arguments")
    if not name or not isinstance(arguments, list) or stage not in ("", *STAGES) or bool(stage) == bool(tool):
        return None
    artifact = path.with_name(path.name[: -len(RECORD_SUFFIX)])
    subjects = [PurePosixPath(subject) for subject in record.subjects]
    outputs, inference = [artifact, *(subject for subject in subjects if subject != artifact)], None
    if (stage or tool) in RUNNERS:  # each run has a folder of its own in one of these
        parents = dict.fromkeys(PurePosixPath(n).parent for n, digest in record.subjects.items() if "dirHash" in digest)
        inference = Inference(tuple(ModelRun(parent, {}, 0, (), 0) for parent in parents))
        outputs = list(dict.fromkeys([artifact, *parents]))
    return Step(
        name=name,
        title=str(artifact),
        stage=stage,
        arguments=tuple(map(str, arguments)),
        inputs=tuple(Input(PurePosixPath(n), "") for n in record.dependencies if not n.startswith(records.IMAGE)),
        outputs=tuple(outputs),
        log=artifact,
        commands={},
        inference=inference,
        tool=tool,
    )
