"""diff as a user calls it: what names a report, what an acceptance says of its baseline, what verify says of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.host.report import archive, named_reports
from tests import verify_helpers
from tests.pipeline_helpers import Workspace
from tests.verify_helpers import ARTIFACTS, REPORT, copy_tree

ON_CPU = ("--backend", "cpu")


@pytest.fixture(name="workspace", scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return verify_helpers.accepted(tmp_path_factory).copy(tmp_path_factory.mktemp("diff") / "workspace")


def test_two_reports_by_their_names(workspace: Workspace, tmp_path: Path) -> None:
    """A tree that was copied and one row changed in it, beside the acceptance; its own text says both."""
    tree = copy_tree(workspace, tmp_path / "tree")
    verify_helpers.flip_logits(tree)
    verify_helpers.remake(tree)
    target = tmp_path / "diff.md"
    arguments = ("diff", "latest", str(tree), "--verify", *ON_CPU, "--format", "markdown", "--output", str(target))
    text = workspace.succeed(*arguments)
    assert text.endswith(f"{target}\n") and "1 changed label" in text
    markdown = target.read_text(encoding="utf-8")
    [name] = archive.kept(workspace.root, "small")
    assert f"- A: {name} (small on cpu, checked" in markdown and ", verified)" in markdown
    assert f"- B: {tree} (" in markdown and "| match | 8 | 42 |" in markdown
    workspace.succeed(*arguments)  # its own file is replaced, and no other
    target.write_text("mine")
    assert "no diff wrote it" in workspace.fail(5, *arguments)

    (tree / verify_helpers.TSV).unlink()
    alone = shutil.copyfile(tree / REPORT, tmp_path / "report.json")
    document = json.loads(workspace.succeed("diff", str(alone), str(tree), "--json"))
    assert document["accuracy"][0]["why_not_paired"] == f"{alone} is a report without its tree: it holds no rows"
    assert document["a"]["verification"] == "not verified"
    message = workspace.fail(6, "diff", name, str(tree), "--require", "no-worse")
    assert message.startswith(f"error: --require no-worse: {tree} beside {name}")


def test_a_report_with_a_baseline_verifies(workspace: Workspace, tmp_path: Path) -> None:
    tree = workspace.copy(tmp_path / "with")
    [name] = archive.kept(tree.root, "small")
    tree.succeed("report", *ON_CPU, "--baseline", "latest", "--baseline-fps")
    text = (tree.root / ARTIFACTS.report()).read_text(encoding="utf-8")
    report = json.loads((tree.root / REPORT).read_bytes())
    baseline = report["measured"]["baseline"]
    assert report["body_sha256"] == baseline["b"]["body_sha256"]
    assert (baseline["a"]["name"], baseline["changed_total"]) == (name, 0)
    assert "## Changes since the baseline" in text and "| baseline fps (A, see the changes) |" in text
    tree.succeed("verify", *ON_CPU)
    with open(tree.root / ARTIFACTS.baseline(), "a", encoding="utf-8") as file:
        file.write("\n")
    assert "baseline.json" in tree.fail(5, "verify", *ON_CPU)
    tree.succeed("report", *ON_CPU)
    assert not (tree.root / ARTIFACTS.baseline()).exists()
    assert "baseline" not in json.loads((tree.root / REPORT).read_bytes())["measured"]


def test_an_acceptance_that_must_be_no_worse(workspace: Workspace, tmp_path: Path) -> None:
    """Two loops tell nothing of fps, so that it is not compared; it is kept with its baseline, and verifies."""
    tree = workspace.copy(tmp_path / "again")
    accept = ("acceptance", *ON_CPU, "--bs", "8", "--loops", "2")
    [first] = archive.kept(tree.root, "small")
    assert "name it with --baseline" in tree.fail(2, *accept, "--require", "no-worse")
    assert "has 1 acceptance, and latest~7 takes 8" in tree.fail(3, *accept, "--baseline", "latest~7")
    done = tree.run(*accept, "--baseline", "latest", "--require", "no-worse")
    assert done.returncode == 6 and f"beside {first}: not compared\n" in done.stdout
    assert "was not compared in all: fps of match, bs 8" in done.stderr
    [second] = [name for name in archive.kept(tree.root, "small") if name != first]
    assert (archive.kept(tree.root, "small")[second] / ARTIFACTS.baseline()).exists()
    tree.succeed("verify", "--acceptance", second)


def test_what_names_no_report(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = workspace.root
    [(name, folder)] = archive.kept(root, "small").items()

    def find(text: object, backend: str = "", limit: int = 0) -> named_reports.NamedReport:
        return named_reports.find(root, str(text), "small", backend, limit)

    for text in (name, "latest", folder, folder / "report.json", folder / REPORT, f"{folder.relative_to(root)}"):
        named = find(text)
        assert (named.root, named.path, named.own) == (folder, folder / REPORT, True)
    for text, backend, message in (
        ("latest~1", "", "has 1 acceptance, and latest~1 takes 2. Run: invoke acceptance"),
        ("latest", "ascend", "small on ascend has no acceptance"),
        ("nothing", "", f"nothing is no report.*The acceptances of small: {name}"),
        (tmp_path, "", "has no report"),
    ):
        with pytest.raises(MissingError, match=message):
            find(text, backend)
    with pytest.raises(MissingError, match="of the first 5 rows"):
        find("latest", limit=5)
    tree = tmp_path / "tree"
    for place in ("small/cpu", "other/cpu"):
        (tree / "results" / place).mkdir(parents=True)
        shutil.copyfile(folder / REPORT, tree / "results" / place / "report.json")
    assert find(tree).path == tree / REPORT
    assert find(tree / "results/other/cpu/report.json").root is None  # of profile small: not in its place
    with pytest.raises(ConfigError, match="has 2 reports"):
        named_reports.find(root, str(tree), "none", "", 0)
    (tree / REPORT).unlink()
    (tree / REPORT).symlink_to(folder / REPORT)
    with pytest.raises(DataError, match="leads out of"):
        find(tree)


def test_a_report_that_would_be_compared_with_itself(workspace: Workspace) -> None:
    """It is replaced by the command that names it; and a home that is nobody's is a path that is missing."""
    for command in ("report", "acceptance"):
        line = workspace.fail(2, command, *ON_CPU, "--baseline", str(workspace.root / REPORT))
        assert "is the report that this command replaces" in line
    assert "is no report" in workspace.fail(3, "diff", "~nobody-of-this-name/x", "latest", *ON_CPU)
    assert "say in two ways" in workspace.fail(2, "diff", "latest", "latest", *ON_CPU, "--json", "--format", "markdown")
