"""Records beside artifacts: in-toto statements with SLSA provenance, which say what made an artifact out of what.

Formats: in-toto Statement v1 (https://in-toto.io/Statement/v1), SLSA provenance v1 (https://slsa.dev/provenance/v1).
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Final, Literal, Mapping, Optional, Sequence

import msgspec

import deberta
from deberta.core import files, schema
from deberta.core.errors import DataError
from deberta.core.job import Digest

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:deberta-ascend:step:v1"
IMAGE = "image "  # what a dependency on a stage image starts with
SUMMARY = "summary"  # name of the byproduct that holds a stage's own counts
Json = Mapping[str, Any]


class Resource(msgspec.Struct, frozen=True):
    """An in-toto ResourceDescriptor: an artifact's path in the workspace, and its {"sha256"} or {"dirHash"}."""

    name: str
    digest: dict[str, str]


class Byproduct(msgspec.Struct, frozen=True):
    name: str
    annotations: dict[str, Any]


class BuildDefinition(msgspec.Struct, frozen=True, rename="camel"):
    build_type: Literal["urn:deberta-ascend:step:v1"]
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, Any]
    resolved_dependencies: list[Resource]


class BuildMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """ISO 8601 in UTC, so that the texts sort by time."""

    started_on: str
    finished_on: str

    def __post_init__(self) -> None:
        for moment in (self.started_on, self.finished_on):
            if datetime.fromisoformat(moment).tzinfo is None:
                raise ValueError(f"{moment!r} has no offset from UTC")


class RunDetails(msgspec.Struct, frozen=True):
    builder: dict[str, Any]
    metadata: BuildMetadata
    byproducts: list[Byproduct]


class Predicate(msgspec.Struct, frozen=True, rename="camel"):
    build_definition: BuildDefinition
    run_details: RunDetails


class Record(msgspec.Struct, frozen=True, rename="camel"):
    """A provenance statement; its fields in the order of the JSON."""

    type: Literal["https://in-toto.io/Statement/v1"] = msgspec.field(name="_type")
    subject: list[Resource]
    predicate_type: Literal["https://slsa.dev/provenance/v1"]
    predicate: Predicate

    @property
    def subjects(self) -> dict[str, dict[str, str]]:
        """Name to digest, of what the step wrote."""
        return {entry.name: entry.digest for entry in self.subject}

    @property
    def images(self) -> dict[str, str]:
        """Name to SHA-256, of the images that the step ran in."""
        dependencies = self.dependencies.items()
        return {name[len(IMAGE) :]: digest.get("sha256", "") for name, digest in dependencies if name.startswith(IMAGE)}

    @property
    def dependencies(self) -> dict[str, dict[str, str]]:
        """Name to digest, of what the step read; an image's name begins with "image "."""
        return {entry.name: entry.digest for entry in self.predicate.build_definition.resolved_dependencies}

    @property
    def parameters(self) -> dict[str, Any]:
        """What the step was called with: a change of one makes its outputs stale."""
        return self.predicate.build_definition.external_parameters

    @property
    def internal(self) -> dict[str, Any]:
        """Noted, but never a reason to run again. `pins`: "pinned", or "not pinned" and why."""
        return self.predicate.build_definition.internal_parameters

    @property
    def summary(self) -> dict[str, Any]:
        """What the stage counted, or an empty dict."""
        byproducts = self.predicate.run_details.byproducts
        return next((entry.annotations for entry in byproducts if entry.name == SUMMARY), {})

    @property
    def started(self) -> str:
        return self.predicate.run_details.metadata.started_on

    @property
    def finished(self) -> str:
        return self.predicate.run_details.metadata.finished_on

    @property
    def seconds(self) -> float:
        """From start to finish."""
        return (datetime.fromisoformat(self.finished) - datetime.fromisoformat(self.started)).total_seconds()


def statement(
    subjects: Sequence[Resource],
    dependencies: Sequence[Resource],
    parameters: Json,
    internal: Json,
    builder: str,
    started: str,
    finished: str,
    summary: Optional[Json],
) -> Record:
    """The record of a step that ran; see the properties of Record for `parameters`, `internal` and `summary`."""
    version = {"id": builder, "version": {"deberta-ascend": deberta.__version__}}
    byproducts = [Byproduct(SUMMARY, dict(summary))] if summary else []
    definition = BuildDefinition(BUILD_TYPE, dict(parameters), dict(internal), list(dependencies))
    details = RunDetails(version, BuildMetadata(started, finished), byproducts)
    return Record(STATEMENT_TYPE, list(subjects), PREDICATE_TYPE, Predicate(definition, details))


def now() -> str:
    """The time in UTC as records have it, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write(path: Path, record: Record) -> None:
    files.write_text(path, schema.text(record))
    files.commit_point("recorded")


def read(path: Path) -> Optional[Record]:
    """A record, or None if there is none. Raises DataError for a file that is not one of ours."""
    try:
        return schema.read_json(path, Record)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is not a record of a step: it {error}. Remove it and run the step again") from None


class KnownDigest(msgspec.Struct, frozen=True, omit_defaults=True):
    """A remembered digest, and the sizes and times of the files it is of; `paths` names those of a digest of code."""

    state: str
    digest: Digest
    paths: list[str] = msgspec.field(default_factory=list)


class Digests:
    """Digests of files and folders below a workspace, remembered by size and modification time.

    Files get {"sha256"}, folders {"dirHash"} (`files.folder_digest`). The memory only saves time: it is not evidence.
    """

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._memory = workspace / ".cache" / "digests.json"
        self._known: dict[str, KnownDigest] = {}
        with contextlib.suppress(OSError, ValueError):  # without a memory everything is hashed again
            self._known = schema.read_json(self._memory, dict[str, KnownDigest])

    def knows(self, path: PurePosixPath) -> bool:
        """Whether nothing has to be read for the digest of a file or folder; raises FileNotFoundError."""
        known = self._known.get(str(path))
        return known is not None and known.state == files.state(self._workspace / path)

    def of(self, path: PurePosixPath) -> dict[str, str]:
        """The digest of a file or folder; raises FileNotFoundError."""
        absolute = self._workspace / path
        state = files.state(absolute)
        known = self._known.get(str(path))
        if known is None or known.state != state:
            folder = absolute.is_dir()
            digest = {"dirHash": files.folder_digest(absolute)} if folder else {"sha256": files.sha256_of(absolute)}
            known = self._known[str(path)] = KnownDigest(state, digest)
        return dict(known.digest)

    def of_code(
        self,
        module: str,
        paths: Callable[[], list[str]],
        state: Callable[[Sequence[str]], str],
        make: Callable[[], str],
    ) -> str:
        """What `make` returns, SHA-256 in hexadecimal: remembered while the `state` of the files of `paths` is one."""
        name = f"code of {module}"
        known = self._known.get(name)
        if known is None or known.state != state(known.paths):
            found = paths()
            before = state(found)  # before they are read: a change in between is seen later
            known = self._known[name] = KnownDigest(before, {"sha256": make()}, found)
        return known.digest["sha256"]

    def resource(self, path: PurePosixPath) -> Resource:
        """An artifact, named by its path in the workspace."""
        return Resource(str(path), self.of(path))

    def save(self) -> None:
        """Remember the digests; on a full or read-only disk they are taken again the next time."""
        with contextlib.suppress(OSError):
            files.write_text(self._memory, msgspec.json.encode(self._known).decode())
