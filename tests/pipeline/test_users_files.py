"""What the user puts where a step writes is never replaced: the run stops, or --force renames it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline_helpers import Workspace, steps_that_ran

CASE = ("--bs", "4", "--version", "match")
KINDS = {  # a file of the user's -> what would make one there, and what --force renames, if that is not the file itself
    "models/tiny/dynamic.onnx": (("export-onnx",), ""),
    "models/tiny/cpu/deberta_bs4.xml": (("build-om", "--bs", "4"), ""),
    "models/tiny/cpu/deberta_bs4.bin": (("build-om", "--bs", "4"), ""),
    "data/tiny/pre_mnli_bs4/match/notes.txt": (("preprocess", *CASE), "data/tiny/pre_mnli_bs4/match"),
    "results/tiny/cpu/outputs_bs4_om/match": (("infer", *CASE, "--buckets", "256"), ""),
    "models/tiny/cpu/deberta_bs4_int8.xml": (("build-om", "--bs", "4", "--precision", "int8"), ""),
    "models/tiny/dynamic_gather.onnx": (("export-onnx", "--relative", "gather"), ""),
    "results/tiny/cpu/eval_bs4_match.txt": (("postprocess", *CASE), ""),
    "results/tiny/cpu/eval_bs4_match.json": (("postprocess", *CASE), ""),
    "results/tiny/cpu/predictions_bs4_match.jsonl": (("postprocess", *CASE), ""),
    "results/tiny/cpu/msame_bs4_match.txt": (("perf", "--bs", "4", "--loops", "5"), ""),
    "results/tiny/cpu/report.json": (("report",), ""),
    "results/tiny/cpu/report.md": (("report",), ""),
    "mine.txt": (("lint-onnx", "--output", "{root}/mine.txt"), ""),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_users_file_is_there_afterwards(evaluated: Workspace, tmp_path: Path, name: str) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    words, renamed = KINDS[name]
    command = tuple(word.format(root=workspace.root) for word in words)
    place = workspace.root / (renamed or name)
    own = workspace.root / name
    record = place.with_name(f"{place.name}.record.json")
    if not renamed:
        for path in (record, *([place.with_suffix(".xml.record.json")] if place.suffix == ".bin" else [])):
            path.unlink(missing_ok=True)
        if command[0] == "postprocess":
            place.with_name("eval_bs4_match.txt.record.json").unlink(missing_ok=True)
        if place.is_dir():
            place.rename(tmp_path / "outputs")
    else:  # the bins are to be made again
        workspace.data("match").write_bytes(workspace.data("match").read_bytes().replace(b"A ship.", b"A whale.", 1))
    own.write_bytes(b"the user's")
    said = workspace.fail(5, *command)
    assert "was not made here, and is never replaced. Move it away" in said
    assert own.read_bytes() == b"the user's"
    if command == ("report",):
        return  # it has no --force
    said = workspace.succeed(*command, "--force")
    kept = [p for p in place.parent.glob(f"{place.name}.before-*") if p.is_dir() == bool(renamed)]
    assert [(p / own.name if renamed else p).read_bytes() for p in kept] == [b"the user's"]
    assert f"it is now {kept[0]}" in said


@pytest.mark.parametrize("kind", ["broken link", "folder"])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("models/tiny/dynamic.onnx", ("export-onnx",)),
        ("results/tiny/cpu/eval_bs4_match.txt", ("postprocess", *CASE)),
    ],
)
def test_a_link_or_folder_where_a_file_belongs_is_moved_aside_alone(
    evaluated: Workspace, tmp_path: Path, name: str, command: tuple[str, ...], kind: str
) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    place = workspace.root / name
    place.unlink()
    place.with_name(f"{place.name}.record.json").unlink()
    if kind == "folder":
        (place / "inner").mkdir(parents=True)
    else:
        place.symlink_to(tmp_path / "nowhere")
    assert "Move it away" in workspace.fail(5, *command)
    assert place.is_dir() if kind == "folder" else place.is_symlink()
    workspace.succeed(*command, "--force")
    [kept] = place.parent.glob(f"{place.name}.before-*")
    assert (kept / "inner").is_dir() if kind == "folder" else kept.is_symlink()
    assert place.is_file() and not place.is_symlink() and not (tmp_path / "nowhere").exists()


def test_what_the_user_brings_stays_as_it_is(evaluated: Workspace, tmp_path: Path) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    folder = workspace.checkpoint.parent
    own = [workspace.checkpoint, folder / "model_config.json", folder / "spm.model"]
    own += [workspace.data(version) for version in ("match", "mismatch")]
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in own]
    workspace.succeed("evaluate", *CASE, "--force")
    assert "was not made by finetune. Move it away" in workspace.fail(2, "finetune", "--force")
    workspace.succeed("clean", "--yes")
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in own] == before


def test_force_makes_the_named_step_alone(evaluated: Workspace, tmp_path: Path) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    for command, steps in (
        (("infer", *CASE, "--buckets", "256"), ["infer bs=4 match"]),
        (("perf", "--bs", "4", "--loops", "5"), ["perf bs=4 match"]),
        (("preprocess", *CASE), ["preprocess bs=4 match"]),
        (("postprocess", *CASE), ["postprocess bs=4 match"]),
        (("build-om", "--bs", "4"), ["build-om bs=4"]),
        (("export-onnx",), ["export-onnx"]),
    ):
        assert steps_that_ran(workspace.succeed(*command, "--force")) == steps
