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
    "results/tiny/cpu/eval_bs4_match.txt": (("postprocess", *CASE), ""),
    "results/tiny/cpu/eval_bs4_match.json": (("postprocess", *CASE), ""),
    "results/tiny/cpu/msame_bs4_match.txt": (("perf", "--bs", "4", "--loops", "5"), ""),
    "results/tiny/cpu/report.json": (("report",), ""),
    "results/tiny/cpu/report.md": (("report",), ""),
    "mine.txt": (("lint-onnx", "--output", "mine.txt"), ""),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_users_file_is_there_afterwards(evaluated: Workspace, tmp_path: Path, name: str) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    command, renamed = KINDS[name]
    place = workspace.root / (renamed or name)
    own = workspace.root / name
    record = place.with_name(f"{place.name}.record.json")
    if not renamed:
        for path in (record, *([place.with_suffix(".xml.record.json")] if place.suffix == ".bin" else [])):
            path.unlink(missing_ok=True)
        if place.suffix == ".json" and "eval" in name:
            place.with_suffix(".txt.record.json").unlink()
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


def test_force_makes_the_named_step_alone(evaluated: Workspace, tmp_path: Path) -> None:
    workspace = evaluated.copy(tmp_path / "copy")
    for command, steps in (
        (("infer", *CASE, "--buckets", "256"), ["infer bs=4 match"]),
        (("build-om", "--bs", "4"), ["build-om bs=4"]),
        (("export-onnx",), ["export-onnx"]),
    ):
        assert steps_that_ran(workspace.succeed(*command, "--force")) == steps
