"""reproduce as a user runs it: two places that are equal, and one with another model, on a tiny profile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from deberta.core import files
from deberta.core.differences import differences
from deberta.core.errors import ConfigError
from deberta.host.cli.options import batch_sizes
from deberta.host.workflows import reproduce
from tests import in_process
from tests.mnli_helpers import REPOSITORY, small_disk
from tests.pipeline_helpers import Workspace, environment, error_line

OPTIONS = ("--backend", "cpu", "--limit", "6")
REPRODUCE = ("reproduce", *OPTIONS, "--executor", "local", "--bs", "4")
FIRST, SECOND = reproduce.NAMES


@pytest.fixture(name="made", scope="module")
def _made(tiny: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path, str]:
    """A workspace with one version in which reproduce has run, the folder of both places, and what it said."""
    workspace = tiny.copy(tmp_path_factory.mktemp("brought") / "workspace")
    workspace.data("mismatch").unlink()
    folder = tmp_path_factory.mktemp("places")
    brought = workspace.files()
    said = workspace.succeed(*REPRODUCE, "--keep-places", "--in", str(folder))
    assert workspace.files() == brought
    return workspace, folder, said


@pytest.fixture(name="workspace")
def _workspace(tmp_path: Path, made: tuple[Workspace, Path, str]) -> Workspace:
    return made[0].copy(tmp_path / "copy")


def places(workspace: Workspace) -> list[str]:
    """What is in the folder of places, logs apart."""
    folder = workspace.root / reproduce.FOLDER
    return sorted(path.name for path in folder.iterdir() if path.name != "logs") if folder.exists() else []


def test_bad_options_make_nothing(workspace: Workspace) -> None:
    for options, said in (
        (("--executor", "local,docker,local"), "names 3 executors"),
        (("--executor", "local,podman"), "'podman' is not one of"),
        (("--bs", "1,x"), "'x'"),
        (("--compare", str(workspace.root)), "is not two folders"),
        (("--images", "--executor", "local"), "needs a place that runs in containers"),
    ):
        assert said in workspace.fail(2, "reproduce", *OPTIONS, *options)
    foreign = workspace.root / "mine" / FIRST / "of mine.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("not a place")
    said = workspace.fail(2, *REPRODUCE, "--in", str(workspace.root / "mine"))
    assert "was not made by reproduce" in said and foreign.exists()
    workspace.checkpoint.unlink()
    assert "pytorch.model-tiny.bin is missing" in workspace.fail(3, *REPRODUCE)
    assert places(workspace) == []


def test_too_small_a_disk_is_said_before_anything_is_made(workspace: Workspace, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        said = workspace.fail(3, *REPRODUCE, "--in", str(disk / "places"))
        assert "need about" in said and "or name another folder" in said
        assert not (disk / "places").exists()


def test_an_error_of_a_place_is_its_own_and_places_go(workspace: Workspace) -> None:
    data = workspace.data("match")
    data.write_bytes(data.read_bytes().replace(b"contradiction", b"nonsense"))
    assert "nonsense" in workspace.fail(5, *REPRODUCE)
    assert places(workspace) == []
    assert any((workspace.root / reproduce.FOLDER / "logs").iterdir())


def test_an_interrupted_run_leaves_no_place(workspace: Workspace) -> None:
    running = workspace.start(*REPRODUCE)
    sign = workspace.root / reproduce.FOLDER / FIRST / "results"
    give_up = time.monotonic() + 60
    while not sign.exists() and time.monotonic() < give_up:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, out + err
    assert "Traceback" not in out + err and places(workspace) == []


def test_two_places_are_equal_and_all_hashes_are_said(made: tuple[Workspace, Path, str]) -> None:
    _, folder, said = made
    table = [line.split() for line in said.splitlines() if line.startswith("same ")]
    onnx = folder / FIRST / "models/tiny/dynamic.onnx"
    assert ["same", "sha256", files.sha256_of(onnx), "models/tiny/dynamic.onnx"] in table
    bins = folder / SECOND / "data/tiny/pre_mnli_bs4_limit6/match"
    assert ["same", "dirHash", files.folder_digest(bins), "data/tiny/pre_mnli_bs4_limit6/match"] in table
    report = json.loads((folder / FIRST / "results/tiny/cpu/report_limit6.json").read_text())
    assert ["same", "sha256", report["body_sha256"], "results/tiny/cpu/report_limit6.json:", "body"] in table
    # 4 inputs, the ONNX, two files of the model, bins, outputs, three evaluations, data check, reference, the body
    assert "dev_mismatched.tsv is missing, so mismatch is left out" in said
    assert len(table) == 4 + 3 + 7 + 1 and f"identical: {len(table)} of {len(table)} artifacts" in said


def test_another_model_in_one_place_is_named(made: tuple[Workspace, Path, str], tmp_path: Path) -> None:
    """One weight of the second place's checkpoint is changed, and what follows of it there is made again."""
    import torch

    workspace, folder, _ = made
    other = tmp_path / "other"
    shutil.copytree(folder / SECOND, other)
    checkpoint = other / "models/tiny/pytorch.model-tiny.bin"
    state = torch.load(checkpoint, weights_only=True)
    state["classifier.bias"][1] += 100  # all rows become neutral
    torch.save(state, checkpoint)
    settings = other / reproduce.SETTINGS
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "workspace": str(other)}))
    command = ["-f", str(settings), "acceptance", "--bs", "4", "--version", "match", "--limit", "6", "--loops", "2"]
    done = in_process.run_invoke(command, REPOSITORY, environment())
    assert done.returncode in (0, 6), done.stdout + done.stderr
    ended = workspace.run("reproduce", *OPTIONS, "--bs", "4", "--compare", f"{folder / FIRST},{other}")
    assert ended.returncode == 6 and error_line(ended.stderr), ended.stdout + ended.stderr
    named = {line.split()[1] for line in ended.stdout.splitlines() if line.startswith("DIFFERS")}
    results = "results/tiny/cpu"
    assert {
        "models/tiny/pytorch.model-tiny.bin", "models/tiny/dynamic.onnx", "models/tiny/cpu/deberta_bs4.bin",
        f"{results}/outputs_bs4_limit6_om/match/$T", f"{results}/report_limit6.json:",
    } <= named  # fmt: skip
    assert "data/tiny/pre_mnli_bs4_limit6/match" not in named
    assert "differs results/tiny/reference_limit6" in ended.stdout
    for place in (folder / FIRST, other):
        assert files.sha256_of(place / "models/tiny/dynamic.onnx") in ended.stderr
    assert "$.body.cells[0].confusion" in ended.stdout and "input_0_output_0.bin: " in ended.stdout


def test_a_missing_artifact_and_a_missing_report_differ(made: tuple[Workspace, Path, str], tmp_path: Path) -> None:
    workspace, folder, _ = made
    other = tmp_path / "other"
    shutil.copytree(folder / SECOND, other)
    command = ("reproduce", *OPTIONS, "--bs", "4", "--compare", f"{folder / FIRST},{other}")
    shutil.rmtree(other / "data/tiny/pre_mnli_bs4_limit6/match")
    said = workspace.fail(6, *command)
    assert "1 of 15 artifacts differ: data/tiny/pre_mnli_bs4_limit6/match (dirHash " in said and ", not there)" in said
    (other / "results/tiny/cpu/report_limit6.json").write_text("[]")
    assert "does not fit its schema" in workspace.fail(5, *command)
    (other / "results/tiny/cpu/report_limit6.json").unlink()
    assert "report_limit6.json is missing" in workspace.fail(3, *command)


def test_a_dry_run_makes_nothing(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root / ".cache")
    said = workspace.succeed(*REPRODUCE, "--dry")
    assert said.count(" acceptance --bs 4 --version match --loops 2 --profile tiny --backend cpu --limit 6") == 2
    assert f"INVOKE_WORKSPACE={workspace.root / reproduce.FOLDER / SECOND} " in said
    assert not (workspace.root / ".cache").exists()


def test_the_paths_at_which_json_differs() -> None:
    one = {"a": [1, {"b": "x"}], "c": 1, "m bs8/x": True, "n": 1}
    other = {"a": [1, {"b": "y"}, 3], "c": 1.0, "m bs8/x": 1, "d": None, "n": 1}
    assert list(differences(one, other, "$")) == [
        ("$.a", "2 entries", "3 entries"),
        ("$.a[1].b", '"x"', '"y"'),
        ("$.c", "1", "1.0"),
        ('$["m bs8/x"]', "true", "1"),
        ("$.d", None, "null"),
    ]
    assert list(differences(one, dict(reversed(one.items())))) == []


def test_executors_and_batch_sizes() -> None:
    assert reproduce.parse_executors("local, docker") == ("local", "docker")
    assert batch_sizes("8,1,8") == (1, 8)
    with pytest.raises(ConfigError):
        batch_sizes("0")
    pair = reproduce.places(Path(os.sep), ("docker",))
    assert [place.executor for place in pair] == ["docker", "docker"]
    assert len({len(place.root.name) for place in pair}) == 2
