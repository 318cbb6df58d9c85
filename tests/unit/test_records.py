"""Files that are no records of ours, and a memory of digests that cannot be trusted."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any, Sequence

import pytest

from deberta.core import files, records
from deberta.core.errors import DataError

ARTIFACT = PurePosixPath("models/tiny/dynamic.onnx")
REMOVED = "removed"


def _statement() -> records.Record:
    made = records.Resource(str(ARTIFACT), {"sha256": "ab"})
    read = records.Resource("data/tiny/bins", {"dirHash": "cd"})
    return records.statement(
        [made], [read], {"step": "export-onnx"}, {}, "urn:test", records.now(), records.now(), {"rows": 3}
    )


def _changed(content: Any, place: Sequence[Any], value: Any) -> Any:
    """The content with one place of it replaced or removed."""
    if not place:
        return value
    key, inner = place[0], place[1:]
    if value is REMOVED and not inner:
        del content[key]
    else:
        content[key] = _changed(content[key], inner, value)
    return content


OTHERS = (REMOVED, None, 5, "text", ["text"], [{"name": 1}])
PLACES: dict[str, tuple[Any, ...]] = {
    "_type": OTHERS,
    "predicateType": OTHERS,
    "subject": OTHERS,
    "subject.0": OTHERS[1:],
    "subject.0.name": (REMOVED, None, 5, ["text"]),
    "subject.0.digest": OTHERS,
    "predicate": OTHERS,
    "predicate.buildDefinition": OTHERS,
    "predicate.buildDefinition.buildType": OTHERS,
    "predicate.buildDefinition.externalParameters": OTHERS,
    "predicate.buildDefinition.resolvedDependencies": OTHERS,
    "predicate.buildDefinition.resolvedDependencies.0": OTHERS[1:],
    "predicate.runDetails": OTHERS,
    "predicate.runDetails.byproducts": OTHERS,
    "predicate.runDetails.byproducts.0.annotations": OTHERS,
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place in PLACES for value in PLACES[place]])
def test_record_of_another_shape(tmp_path: Path, place: str, value: Any) -> None:
    keys = [int(key) if key.isdigit() else key for key in place.split(".")]
    path = tmp_path / "x.record.json"
    records.write(path, _statement())
    path.write_text(json.dumps(_changed(json.loads(path.read_text()), keys, value)))
    with pytest.raises(
        DataError, match=r"x\.record\.json is not a record of a step.* Remove it and run the step again"
    ):
        records.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b"5",
        b"{}",
        b"[" * 10**5,
        b'{"a": 1, "a": 1}',
        b'{"a": "\xff"}',
    ],
)
def test_file_that_is_no_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.record.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a record"):
        records.read(path)


def test_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.record.json"
    assert records.read(path) is None
    records.write(path, _statement())
    record = records.read(path)
    assert record is not None
    assert record.parameters == {"step": "export-onnx"}
    assert record.dependencies == {"data/tiny/bins": {"dirHash": "cd"}}
    assert record.subjects == {str(ARTIFACT): {"sha256": "ab"}}
    assert record.summary == {"rows": 3}


@pytest.mark.parametrize(
    "entry",
    [
        None,
        5,
        "text",
        ["state", "digest"],
        {},
        {"state": "STATE"},
        {"state": "STATE", "digest": None},
        {"state": "STATE", "digest": {}},
        {"state": "STATE", "digest": {"sha256": 5}},
        {"state": "STATE", "digest": {"md5": "ab"}},
        {"state": "STATE", "digest": {"sha256": "ab", "dirHash": "cd"}},
        {"digest": {"sha256": "ab"}},
        {"state": 5, "digest": {"sha256": "ab"}},
    ],
)
def test_memory_of_another_shape_is_hashed_again(tmp_path: Path, entry: Any) -> None:
    """Even where the file's state is the remembered one."""
    artifact, memory = tmp_path / ARTIFACT, tmp_path / ".cache/digests.json"
    files.write_text(artifact, "content")
    wanted = {"sha256": files.sha256_of(artifact)}
    first = records.Digests(tmp_path)
    assert first.of(ARTIFACT) == wanted
    first.save()
    state = json.loads(memory.read_text())[str(ARTIFACT)]["state"]
    for content in (entry, {str(ARTIFACT): entry, "other": entry}):
        memory.write_text(json.dumps(content).replace("STATE", state))
        again = records.Digests(tmp_path)
        assert again.of(ARTIFACT) == wanted
        again.save()
        assert json.loads(memory.read_text()) == {str(ARTIFACT): {"state": state, "digest": wanted}}


def test_memory_saves_the_hashing_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_text(tmp_path / ARTIFACT, "content")
    first = records.Digests(tmp_path)
    digest = first.of(ARTIFACT)
    first.save()
    monkeypatch.setattr(files, "sha256_of", lambda path: "hashed again")
    assert records.Digests(tmp_path).of(ARTIFACT) == digest
    files.write_text(tmp_path / ARTIFACT, "other content")
    assert records.Digests(tmp_path).of(ARTIFACT) == {"sha256": "hashed again"}
