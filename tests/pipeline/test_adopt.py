"""A folder of the guide's is adopted, reported and judged on a machine without a device, npu-smi or CANN."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from deberta.core import files
from deberta.core.paths import Artifacts
from deberta.host.report import archive
from tests import guide_folder_helpers, in_process
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace, environment, make_small_demo, steps_that_ran

ROWS = 24
ARTIFACTS = Artifacts("demo", "ascend")
ASCEND = ("--backend", "ascend")
ACCEPT = ("acceptance", *ASCEND, "--bs", "8")
LOG, OUTPUTS = str(ARTIFACTS.timing_log(8, "match")), ARTIFACTS.outputs(8, "match")


@pytest.fixture(autouse=True)
def _no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


@pytest.fixture(name="bare", scope="module")
def _bare(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    base = tmp_path_factory.mktemp("bare")
    workspace = make_small_demo(base / "workspace", ROWS, dict.fromkeys(("match", "mismatch"), (ROWS - 1, 1)))
    guide_folder_helpers.make(base / "guide", workspace.root / "data/demo/MNLI")
    shutil.rmtree(workspace.root / "data")  # the user's folder has it all
    shutil.rmtree(workspace.root / "models")
    return workspace


@pytest.fixture(name="adopted", scope="module")
def _adopted(bare: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    workspace = bare.copy(tmp_path_factory.mktemp("adopted") / "workspace")
    return workspace, workspace.succeed("adopt", str(_guide(bare)))


def _guide(workspace: Workspace) -> Path:
    return workspace.root.parent / "guide"


def test_one_line_for_each_file(adopted: tuple[Workspace, str], bare: Workspace) -> None:
    workspace, said = adopted
    assert "adopted: pytorch.model-073631.bin -> models/demo/pytorch.model-demo.bin (user-supplied, linked)" in said
    assert f"adopted: msame_bs8_match.txt -> {LOG} (user-supplied, linked)" in said
    assert "left out: pth2onnx.py: no name of the guide's" in said
    assert "accuracy match bs=8 (user-supplied outputs): 0.9583333333333334 = 23/24" in said
    assert f"agrees: result/eval_bs8_match.txt is what {OUTPUTS}/" in said
    assert "next: invoke acceptance --bs 8 --profile demo --backend ascend" in said
    for path in (LOG, OUTPUTS, ARTIFACTS.onnx, ARTIFACTS.compiled(8), ARTIFACTS.bins(8, "match")):
        assert (workspace.root / path).exists() and not (workspace.root / f"{path}.record.json").exists()
    again = workspace.succeed("adopt", str(_guide(bare)))
    assert "adopted: " not in again and steps_that_ran(again) == []
    assert f"already there: msame_bs8_match.txt: {LOG}" in again


def test_each_figure_says_whose_it_is(adopted: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace = adopted[0].copy(tmp_path / "copy")
    said = workspace.succeed("report", *ASCEND, "-v")
    [row] = [line for line in said.splitlines() if "| demo bs8 |" in line]
    assert row.count("(user-supplied outputs)") == row.count("(user-supplied log)") == 2 and "on ascend" not in row
    assert re.findall(r"^\| 8[^|]*\|.* \d+\.\d\d \|", said, re.MULTILINE)
    assert all("user-supplied" in line for line in said.splitlines() if line.startswith("| 8 | match | 100 |"))
    page = (workspace.root / ARTIFACTS.report("html")).read_text(encoding="utf-8")
    assert "用户提供" in page and "用户提供" in said
    assert ">measured</text>" not in page and ">user-supplied</text>" in page
    report = json.loads((workspace.root / ARTIFACTS.report("json")).read_text(encoding="utf-8"))
    assert [cell["origin"] for cell in report["body"]["cells"]] == ["user-supplied outputs"] * 2
    runs, places = report["measured"]["performances"], [*report["measured"]["places"].values()]
    assert {(run["origin"], run["place"], run["pinned"]) for run in runs} == {
        ("user-supplied log", "user-supplied", False)
    }
    assert {(place["place"], place["pinned"]) for place in places} == {("user-supplied", False)}
    assert str(ARTIFACTS.onnx) not in report["body"]["artifacts"]  # not what our inputs give anywhere


def test_an_acceptance_says_that_nothing_was_measured_here(adopted: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace = adopted[0].copy(tmp_path / "copy")
    said = workspace.succeed(*ACCEPT)
    assert "bs 8: match 23/24 (user-supplied); mismatch 23/24 (user-supplied); match 3.998 fps (100 loops)" in said
    assert "verdict: checked - " in said
    assert "user-supplied accuracy, not measured here: bs 8 match, bs 8 mismatch" in said
    assert "user-supplied fps, not measured here: bs 8 match, bs 8 mismatch" in said
    assert not [
        step for step in steps_that_ran(said) if step.split()[0] in ("infer", "perf", "build-om", "export-onnx")
    ]
    [name] = archive.kept(workspace.root, "demo")
    for options in ((), ("--acceptance", name)):
        assert "verified: " in workspace.succeed("verify", *ASCEND, *options)
    assert "verdict of " in workspace.fail(6, "verify", *ASCEND, "--require", "accepted")
    # Kept whole: the user's folder is not needed any more, and what becomes of it changes nothing.
    folder = archive.kept(workspace.root, "demo")[name]
    assert not [path for path in folder.glob("*/demo/**/*") if path.is_symlink()]
    outputs = next((folder / OUTPUTS).iterdir())
    assert len(files.files_in(outputs)) == ROWS // 8
    log = workspace.root / LOG
    text = log.read_text(encoding="utf-8")
    log.unlink()
    log.write_text(text.replace("[INFO] acl", "[INFO]  acl"), encoding="utf-8")
    assert f"{LOG}: expected sha256" in workspace.fail(5, "verify", *ASCEND)


def test_what_cannot_be_measured_here_is_named_with_what_is_whole(
    adopted: tuple[Workspace, str], tmp_path: Path
) -> None:
    workspace = adopted[0].copy(tmp_path / "copy")
    said = workspace.fail(3, "acceptance", *ASCEND, "--bs", "4,8")
    assert "User-supplied and whole: --bs 8" in said


def test_copies_are_the_workspaces_own(bare: Workspace, tmp_path: Path) -> None:
    workspace = bare.copy(tmp_path / "copy")
    said = workspace.succeed("adopt", str(_guide(bare)), "--copy")
    assert "(user-supplied, copied)" in said
    assert not [path for path in workspace.root.rglob("*") if path.is_symlink()]


def test_a_dry_run_changes_nothing(bare: Workspace, tmp_path: Path) -> None:
    workspace = bare.copy(tmp_path / "copy")
    said = workspace.succeed("adopt", str(_guide(bare)), "--dry")
    assert f"# would adopt: msame_bs8_match.txt -> {LOG} (user-supplied, linked)" in said
    assert not workspace.files()


@pytest.mark.parametrize("name", [LOG, str(ARTIFACTS.compiled(8)), f"{OUTPUTS}/2026_1_1_1/input_0_output_0.bin"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_nothing_is_overwritten(bare: Workspace, tmp_path: Path, name: str, is_ours: bool) -> None:
    workspace = bare.copy(tmp_path / "copy")
    (workspace.root / name).parent.mkdir(parents=True)
    (workspace.root / name).write_text("what is there")
    if is_ours:
        place = str(OUTPUTS) if "outputs" in name else name
        (workspace.root / f"{place}.record.json").write_text("{}")
    before = _artifacts(workspace)
    said = workspace.fail(5, "adopt", str(_guide(bare)))
    assert (str(OUTPUTS) if "outputs" in name else name) in said and "Move it away" in said
    assert _artifacts(workspace) == before and (workspace.root / name).read_text() == "what is there"


def _artifacts(workspace: Workspace) -> set[str]:
    return {name for name in workspace.files() if "/logs/" not in name}


def test_an_accuracy_that_the_outputs_contradict_is_left_out(bare: Workspace, tmp_path: Path) -> None:
    workspace = bare.copy(tmp_path / "copy")
    guide = shutil.copytree(_guide(bare), tmp_path / "guide")
    text = guide / "result/eval_bs8_match.txt"
    text.write_text(text.read_text().replace("accuracy = 0.95", "accuracy = 0.99"))
    (guide / "result/eval_bs4_match.txt").write_text("accuracy = 1.0\neval_samples = 24\n")
    said = workspace.succeed("adopt", str(guide))
    assert (
        "left out: result/eval_bs8_match.txt: it says accuracy = 0.9983333333333334, and "
        f"{OUTPUTS}/{guide_folder_helpers.RUN} comes to 0.9583333333333334"
    ) in said
    assert "left out: result/eval_bs4_match.txt: no outputs of bs 4, match are here" in said


def test_a_checkpoint_of_another_model_is_left_out(bare: Workspace, tmp_path: Path) -> None:
    workspace = bare.copy(tmp_path / "copy")
    guide = shutil.copytree(_guide(bare), tmp_path / "guide")
    config = guide / "model_config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
    gates = workspace.root / "gates.toml"
    gates.write_text(gates.read_text().replace("models/demo/", "models/other/"))
    workspace.configure(gates=str(gates))
    said = workspace.succeed("adopt", str(guide))
    assert "left out: pytorch.model-073631.bin: it does not fit the profile's config: " in said
    assert "missing" in said and "adopted: model_config.json" in said and ".cache" not in said
    assert not (workspace.root / "models/demo/pytorch.model-demo.bin").exists()


def test_folders_in_which_nothing_fits(bare: Workspace, tmp_path: Path) -> None:
    (tmp_path / "empty/inner").mkdir(parents=True)
    workspace = bare.copy(tmp_path / "copy")
    assert "nothing in" in workspace.fail(3, "adopt", str(tmp_path / "empty"))
    assert "is no folder" in workspace.fail(3, "adopt", str(tmp_path / "nowhere"))
    assert not workspace.files() and os.listdir(tmp_path / "empty") == ["inner"]


def test_outputs_are_named_from_where_the_user_is(adopted: tuple[Workspace, str], tmp_path: Path) -> None:
    """From a folder of their own, one folder too high; nothing there was made here."""
    workspace = adopted[0].copy(tmp_path / "copy")
    folder = guide_folder_helpers.make(tmp_path / "guide", workspace.root / "data/demo/MNLI", versions=["match"])
    options = ("--bs", "8", "--version", "match", "--outputs", "outputs_bs8_om")
    done = in_process.run_invoke(
        ["--search-root", str(REPOSITORY), *workspace.arguments("postprocess", *options, "--backend", "cpu")],
        folder / "result",
        environment(),
    )
    run = folder / f"result/outputs_bs8_om/match/{guide_folder_helpers.RUN}"
    assert done.returncode == 0, done.stderr
    assert f"--outputs outputs_bs8_om: {run} is taken\n" in done.stderr
    assert f"accuracy match bs=8 of {run}: 0.9583333333333334 = 23/24" in done.stdout
