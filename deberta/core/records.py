"""Records beside artifacts: in-toto statements with SLSA provenance, which say what made an artifact out of what.

Formats: in-toto Statement v1 (https://in-toto.io/Statement/v1), SLSA provenance v1 (https://slsa.dev/provenance/v1).
"""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Optional, Sequence

import deberta
from deberta.core import files
from deberta.core.errors import DataError

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:deberta-ascend:step:v1"

Json = Mapping[str, Any]


class Digests:
    """Digests of files and folders below a workspace, remembered by size and modification time.

    Files get {"sha256"}, folders {"dirHash"} (`files.folder_digest`). The memory only saves time: it is not evidence.
    """

    def __init__(self, workspace: Path) -> None:
        self._workspace = workspace
        self._memory = workspace / ".cache" / "digests.json"
        self._known: dict[str, Any] = {}
        try:
            known = json.loads(self._memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        # What is absent, damaged or of another shape is hashed again.
        if isinstance(known, dict):
            self._known = {name: entry for name, entry in known.items() if _is_memory(entry)}

    def of(self, path: PurePosixPath) -> dict[str, str]:
        """The digest of a file or folder; raises FileNotFoundError."""
        absolute = self._workspace / path
        state = self._state(absolute)
        known = self._known.get(str(path))
        if known is not None and known["state"] == state:
            return dict(known["digest"])
        if absolute.is_dir():
            digest = {"dirHash": files.folder_digest(absolute)}
        else:
            digest = {"sha256": files.sha256_of(absolute)}
        self._known[str(path)] = {"state": state, "digest": digest}
        return digest

    def save(self) -> None:
        files.write_text(self._memory, json.dumps(self._known, indent=0))

    @staticmethod
    def _state(path: Path) -> str:
        names = files.files_in(path) if path.is_dir() else [""]
        state = hashlib.sha256()
        for name in names:
            entry = os.stat(path / name if name else path)
            state.update(f"{name}\0{entry.st_size}\0{entry.st_mtime_ns}\0{entry.st_ino}\n".encode())
        return state.hexdigest()


def resource(path: PurePosixPath, digest: Mapping[str, str]) -> dict[str, Any]:
    """An in-toto ResourceDescriptor of an artifact, named by its path in the workspace."""
    return {"name": str(path), "digest": dict(digest)}


def statement(
    subjects: Sequence[Json],
    dependencies: Sequence[Json],
    parameters: Json,
    internal: Json,
    builder: str,
    started: datetime,
    finished: datetime,
    summary: Optional[Json],
) -> dict[str, Any]:
    """A provenance statement. `internal`: what nobody asked for; `summary`: what the stage itself counted."""
    byproducts = [{"name": "summary", "annotations": dict(summary)}] if summary else []
    return {
        "_type": STATEMENT_TYPE,
        "subject": list(subjects),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": dict(parameters),
                "internalParameters": dict(internal),
                "resolvedDependencies": list(dependencies),
            },
            "runDetails": {
                "builder": {"id": builder, "version": {"deberta-ascend": deberta.__version__}},
                "metadata": {
                    "startedOn": started.isoformat(timespec="seconds"),
                    "finishedOn": finished.isoformat(timespec="seconds"),
                },
                "byproducts": byproducts,
            },
        },
    }


def now() -> datetime:
    return datetime.now(timezone.utc)


def write(path: Path, content: Json) -> None:
    files.write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read(path: Path) -> Optional[dict[str, Any]]:
    """A record, or None if there is none. Raises DataError for a file that is not one of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path} is not a record ({error}). Remove it and run the step again") from None
    if not _is_record(content):
        raise DataError(f"{path} is not a record of a step (an in-toto statement). Remove it and run the step again")
    return dict(content)


def parameters(record: Json) -> dict[str, Any]:
    """What the step was asked to do."""
    return dict(record["predicate"]["buildDefinition"]["externalParameters"])


def internal(record: Json) -> dict[str, Any]:
    """Of the surroundings, where a step noted any: `pins` says "pinned", or "not pinned" and why."""
    return dict(record["predicate"]["buildDefinition"].get("internalParameters") or {})


def digests(descriptors: Sequence[Json]) -> dict[str, Any]:
    """Name to digest, of a record's subjects or dependencies."""
    return {entry["name"]: entry["digest"] for entry in descriptors}


def dependencies(record: Json) -> dict[str, Any]:
    return digests(record["predicate"]["buildDefinition"]["resolvedDependencies"])


def summary(record: Json) -> dict[str, Any]:
    """What the stage counted, or an empty object."""
    for entry in record["predicate"]["runDetails"]["byproducts"]:
        if entry["name"] == "summary":
            return dict(entry["annotations"])
    return {}


def _is_record(content: Any) -> bool:
    """Whether parsed JSON has everything that the readers below `read` take out of a statement."""
    try:
        definition, details = content["predicate"]["buildDefinition"], content["predicate"]["runDetails"]
        lists = (content["subject"], definition["resolvedDependencies"], details["byproducts"])
        return (
            content["_type"] == STATEMENT_TYPE
            and content["predicateType"] == PREDICATE_TYPE
            and definition["buildType"] == BUILD_TYPE
            and isinstance(definition["externalParameters"], dict)
            and isinstance(definition.get("internalParameters", {}), dict)
            and all(isinstance(entries, list) for entries in lists)
            and all(isinstance(entry["name"], str) for entries in lists for entry in entries)
            and all(isinstance(entry["digest"], dict) for entries in lists[:2] for entry in entries)
            and all(isinstance(entry["annotations"], dict) for entry in lists[2])
        )
    except (KeyError, TypeError):
        return False


def _is_memory(entry: Any) -> bool:
    """Whether parsed JSON is one remembered digest."""
    digest = entry.get("digest") if isinstance(entry, dict) else None
    return (
        isinstance(digest, dict)
        and list(digest) in (["sha256"], ["dirHash"])
        and all(isinstance(text, str) for text in (entry.get("state"), *digest.values()))
    )
