"""Acceptances are kept, each with all that it rests on: no later command changes one or its signature."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest import mock

import pytest

from deberta.core import files
from deberta.core.contract import DEV_FILES
from deberta.core.errors import ConfigError, DataError
from deberta.core.paths import Artifacts
from deberta.host.report import archive
from tests.pipeline_helpers import Workspace, make_small_demo

ARTIFACTS = Artifacts("demo", "cpu")
ACCEPT = ("acceptance", "--backend", "cpu", "--version", "match", "--loops", "2", "--bs")


def kept(workspace: Workspace) -> dict[str, Path]:
    return archive.kept(workspace.root, "demo")


@pytest.fixture(name="made", scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_small_demo(tmp_path_factory.mktemp("made"), 24, {"match": (24, 1), "mismatch": (24, 24)})
    workspace.configure(buckets="256")
    said = workspace.succeed(*ACCEPT, "8")
    [name] = kept(workspace)
    assert f"kept in results/demo/cpu/acceptances/{name}\n" in said
    return workspace


def sums(folder: Path) -> dict[str, str]:
    return {name: files.sha256_of(folder / name) for name in files.files_in(folder)}


def test_no_later_command_replaces_or_removes_one(made: Workspace, tmp_path: Path) -> None:
    workspace, key = made.copy(tmp_path / "copy"), tmp_path / "key.pem"
    [(first, folder)] = kept(workspace).items()
    assert re.fullmatch(r"\d{8}T\d{6}Z_[0-9a-f]{8}", first)
    workspace.succeed("sign", "--new-key", str(key))
    assert f"kept in {folder}" in workspace.succeed("sign", "--key", str(key))
    before = sums(folder)
    own = ("report.json", "report.md", "report.html", "report_job.json", "bom.cdx.json", "report.dsse.json")
    assert all((folder / name).read_bytes() == (folder / ARTIFACTS.results / name).read_bytes() for name in own)

    workspace.succeed("report", "--backend", "cpu")
    assert not (workspace.root / ARTIFACTS.attestation()).exists()
    workspace.succeed("demo")
    workspace.succeed(*ACCEPT, "4,8")
    workspace.succeed("clean", "--profile", "demo")
    assert not (workspace.root / ARTIFACTS.onnx).exists() and not (workspace.root / ARTIFACTS.report("json")).exists()

    assert sums(folder) == before
    second = [name for name in kept(workspace) if name != first]
    assert len(second) == 1
    strict = ("--strict", "--replay", "5", "--key", f"{key}.pub")
    assert "signed by key sha256:" in workspace.succeed("verify", "--acceptance", first, *strict)
    assert "signature: not signed" in workspace.succeed("verify", "--acceptance", second[0], "--backend", "cpu")
    assert "signed by key sha256:" in workspace.succeed("sign", "--key", str(key), "--acceptance", second[0])
    workspace.succeed("verify", "--acceptance", second[0], *strict)


def test_the_pages_language_is_recorded_and_changes_nothing_else(made: Workspace, tmp_path: Path) -> None:
    """verify renders the pages again in the language that the job names."""
    workspace = made.copy(tmp_path / "copy")
    paths = [workspace.root / ARTIFACTS.report(kind) for kind in ("json", "md", "html")]
    before = [path.read_bytes() for path in paths]
    workspace.succeed(*ACCEPT, "8", "--language", "zh")
    report, text, page = (path.read_bytes() for path in paths)
    assert report == before[0] and "验收报告".encode() in page and "已检查".encode() in text
    assert b'<html lang="zh-CN">' in page and len(kept(workspace)) == 1
    workspace.succeed("verify", "--backend", "cpu")
    files.write_text(paths[2], before[2].decode())
    assert "report.html" in workspace.fail(5, "verify", "--backend", "cpu")
    workspace.succeed("report", "--language", "zh", "--backend", "cpu")
    assert b'<html lang="zh-CN">' in paths[2].read_bytes()
    assert "--language" in workspace.fail(2, "report", "--language", "fr")


def test_signing_one_leaves_the_others_and_the_latest_alone(made: Workspace, tmp_path: Path) -> None:
    """And the other way round; nor does a signature outlive its report where the next command stops on its way."""
    workspace, key = made.copy(tmp_path / "copy"), tmp_path / "key.pem"
    [first], results = kept(workspace), workspace.root / ARTIFACTS.results
    workspace.succeed("sign", "--new-key", str(key))
    workspace.succeed(*ACCEPT, "4")
    [second] = [name for name in kept(workspace) if name != first]

    def latest() -> dict[str, str]:
        return {path.name: files.sha256_of(path) for path in results.iterdir() if path.is_file()}

    before, of_second = latest(), sums(kept(workspace)[second])
    workspace.succeed("sign", "--key", str(key), "--acceptance", first)
    assert latest() == before and sums(kept(workspace)[second]) == of_second
    of_first = sums(kept(workspace)[first])
    assert "report.dsse.json" in of_first
    workspace.succeed("sign", "--key", str(key))
    assert sums(kept(workspace)[first]) == of_first
    assert {name for name, digest in latest().items() if before.get(name) != digest} == {"report.dsse.json"}

    def stop(*_: object) -> None:
        assert not (results / "report.dsse.json").exists()
        raise DataError("stopped here")

    of_second = sums(kept(workspace)[second])
    for place in ("deberta.host.report.request.files.write_text", "deberta.host.report.bom.write"):
        (results / "report.dsse.json").write_bytes((kept(workspace)[second] / "report.dsse.json").read_bytes())
        with mock.patch(place, stop):
            assert "stopped here" in workspace.fail(5, "report", "--backend", "cpu")
        assert sums(kept(workspace)[second]) == of_second


def test_the_same_report_is_kept_once(made: Workspace, tmp_path: Path) -> None:
    """Signed with records that were made anew it is another one, since the signature is of these too."""
    workspace, key = made.copy(tmp_path / "copy"), tmp_path / "key.pem"
    workspace.succeed(*ACCEPT, "8")
    [first] = kept(workspace)
    record = workspace.root / f"{ARTIFACTS.report('json')}.record.json"
    record.write_text(record.read_text(encoding="utf-8").replace('"internalParameters": {', '"internalParameters":  {'))
    workspace.succeed("sign", "--new-key", str(key))
    workspace.succeed("sign", "--key", str(key))
    assert [*kept(workspace)] == [first, f"{first}_2"]
    assert not (kept(workspace)[first] / "report.dsse.json").exists()


def test_a_signature_is_never_replaced(made: Workspace, tmp_path: Path) -> None:
    workspace, keys = made.copy(tmp_path / "copy"), [tmp_path / "key.pem", tmp_path / "other.pem"]
    for key in keys:
        workspace.succeed("sign", "--new-key", str(key))
    workspace.succeed("sign", "--key", str(keys[0]))
    workspace.succeed("sign", "--key", str(keys[0]))  # the same one
    assert "none is ever replaced" in workspace.fail(2, "sign", "--key", str(keys[1]))
    workspace.succeed("verify", "--key", f"{keys[0]}.pub")


def test_what_the_user_edits_in_place_is_not_what_was_kept(made: Workspace, tmp_path: Path) -> None:
    workspace = made.copy(tmp_path / "copy")
    workspace.succeed(*ACCEPT, "8", "--limit", "20")
    [limited] = [name for name in kept(workspace) if name.endswith("_limit20")]
    for path in (ARTIFACTS.data / "MNLI" / DEV_FILES["match"], ARTIFACTS.timing_log(8, "match")):
        with open(workspace.root / path, "a", encoding="utf-8") as file:
            file.write("more\n")
    workspace.succeed("verify", "--acceptance", limited, "--limit", "20")
    assert "does not verify" in workspace.fail(5, "verify", "--backend", "cpu", "--limit", "20")


def test_clean_asks_before_it_removes_them(made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = made.copy(tmp_path / "copy")
    [name] = kept(workspace)
    assert "--reports removes 1 acceptance with evidence and signatures" in workspace.fail(2, "clean", "--reports")
    assert name in workspace.succeed("clean", "--reports", "--dry")
    half = kept(workspace)[name].with_name(f".{name}.tmp-1")
    half.mkdir()
    workspace.succeed("clean", "--profile", "demo")
    assert [*kept(workspace)] == [name] and not half.exists()
    workspace.succeed("clean", "--reports", "--yes")
    assert not kept(workspace) and not (workspace.root / ARTIFACTS.results).exists()


def test_the_answer_counts(made: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deberta.host.workflows import clean

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "no")
    with pytest.raises(ConfigError, match="nothing was removed"):
        clean._ask("1 acceptance")
    monkeypatch.setattr("builtins.input", lambda question: "Y")
    clean._ask("1 acceptance")


def test_names(made: Workspace) -> None:
    [name] = kept(made)
    for wrong in ("nothing", "..", f"{name}/../{name}"):
        said = made.fail(3, "verify", "--acceptance", wrong)
        assert f"has no acceptance {wrong!r}, only: {name}" in said
    report = json.loads((kept(made)[name] / "report.json").read_text(encoding="utf-8"))
    assert name.endswith(f"Z_{report['body_sha256'][:8]}")
