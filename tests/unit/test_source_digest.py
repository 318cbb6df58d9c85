"""The digest of a stage's code says what the code does, and not where its files stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from deberta.core import files, records
from deberta.host.images import ci
from deberta.host.run import source_digest

STAGE = """from deberta.core import numbers, texts
from deberta.core.texts import shout as louder

def main():
    return louder(texts.read("page.json")) * numbers.TWO
"""


@pytest.fixture(name="project")
def make_project(tmp_path: Path) -> Path:
    for name, text in {
        "__init__": "",
        "core/texts": "def read(name):\n    return name\n\ndef shout(text):\n    return text.upper()\n",
        "core/numbers": "TWO = 2\n",
        "stages/speak": STAGE,
    }.items():
        files.write_text(tmp_path / "deberta" / f"{name}.py", text)
    files.write_text(tmp_path / "deberta" / "stages" / "page.json", "{}")
    return tmp_path


def digest(project: Path, module: str = "deberta.stages.speak") -> str:
    return source_digest.digest(project, module)


def test_a_new_name_or_place_changes_nothing(project: Path) -> None:
    before, package = digest(project), project / "deberta"
    (package / "core" / "texts.py").rename(package / "core" / "phrases.py")
    (package / "core" / "numbers.py").rename(package / "amounts.py")
    (package / "rooms").mkdir()
    (package / "stages" / "page.json").rename(package / "rooms" / "page.json")
    moved = STAGE.replace("import numbers, texts", "import phrases").replace("core.texts", "core.phrases")
    moved = "from deberta import amounts\n" + moved.replace("texts.", "phrases.").replace("numbers.", "amounts.")
    (package / "rooms" / "talk.py").write_text(moved)
    assert digest(project, "deberta.rooms.talk") == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stages/speak.py", "* numbers", "+ numbers"),
        ("core/numbers.py", "2", "3"),
        ("core/texts.py", "upper", "lower"),
        ("stages/page.json", "{}", "[]"),
        ("stages/speak.py", "shout as louder", "read as louder"),
        ("stages/speak.py", "texts.read", "numbers.read"),  # the same name of another module
    ],
)
def test_another_content_is_another_digest_and_is_named(project: Path, name: str, old: str, new: str) -> None:
    before, path = digest(project), project / "deberta" / name
    noted = source_digest.sources(project, "deberta.stages.speak")
    path.write_text(path.read_text().replace(old, new))
    assert digest(project) != before
    record = _record({"sources": noted})
    assert source_digest.changed_since(record, project, "deberta.stages.speak") == [f"deberta/{name}"]
    assert source_digest.changed_since(_record({}), project, "deberta.stages.speak") == []


def _record(internal: dict[str, object]) -> records.Record:
    now = records.now()
    return records.statement([], [], {}, internal, "", now, now, None)


def test_a_remembered_digest_is_the_present_one_after_any_change(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A content, a file that takes an import for itself, one that is gone; and nothing is parsed without a change."""

    def remembered() -> str:
        digests = records.Digests(project)
        code = source_digest.remembered(digests, project, "deberta.stages.speak")
        digests.save()
        return code

    package, seen = project / "deberta", {remembered()}
    with monkeypatch.context() as patched:
        patched.setattr(source_digest, "_parse", None)
        assert {remembered()} == seen
    files.write_text(package / "core" / "numbers.py", "TWO = 3\n")
    seen.add(remembered())
    files.write_text(package / "core" / "texts" / "shout.py", "")
    files.write_text(package / "core" / "texts" / "__init__.py", "def read(name):\n    return name\n")
    (package / "core" / "texts.py").unlink()
    seen.add(remembered())
    assert len(seen) == 3 and remembered() == digest(project)


def test_what_hosts_compare_is_all_of_the_package_and_the_locks_of_what_runs(project: Path) -> None:
    """The CI image has those locks, and not those of our tools: it is the same as a checkout."""
    known = {source_digest.of_package(project)}
    for name in (*source_digest.LOCKS, "deberta/core/data.toml"):
        (project / name).write_text("x==1\n")
        known.add(source_digest.of_package(project))
    assert len(known) == 5
    (project / "requirements-dev.lock").write_text("x==1\n")
    assert source_digest.of_package(project) in known and {*source_digest.LOCKS} <= {*ci.OURS}
