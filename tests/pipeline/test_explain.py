"""explain beside what the tasks then do: it says which steps run and why, and touches nothing."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from deberta.host.images import definition as images
from deberta.host.images import pins
from deberta.host.run import freshness
from deberta.host.workflows import explain
from tests import fake_cann
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace, steps_that_ran

EVALUATE = ("evaluate", "--bs", "4", "--version", "match")
STEPS = ("export-onnx", "build-om bs=4", "preprocess bs=4 match", "infer bs=4 match", "postprocess bs=4 match")
RESULTS = "results/tiny/cpu"


@pytest.fixture(name="workspace")
def _workspace(evaluated: Workspace, tmp_path: Path) -> Workspace:
    return evaluated.copy(tmp_path / "copy")


def explained(workspace: Workspace, *arguments: str) -> dict[str, str]:
    """Step to what would become of it; nothing in the workspace is touched."""
    before = state(workspace)
    said = workspace.succeed("explain", *arguments)
    assert state(workspace) == before
    steps = [line.partition(": ") for line in said.splitlines()]
    kinds = (explain.YES, explain.MAYBE, explain.NO, explain.STOPS)
    return {title: verdict for title, _, verdict in steps if verdict.startswith(kinds)}


def state(workspace: Workspace) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in workspace.root.rglob("*")}


def edit_record(workspace: Workspace, artifact: str, parameters: dict[str, Any], **internal: Any) -> None:
    path = workspace.root / f"{artifact}.record.json"
    record = json.loads(path.read_text())
    definition = record["predicate"]["buildDefinition"]
    definition["externalParameters"].update(parameters)
    definition["internalParameters"].update(internal)
    path.write_text(json.dumps(record))


def test_what_cannot_be_explained(workspace: Workspace) -> None:
    said = workspace.fail(2, "explain", "lint")
    assert "'lint' is no task that runs steps: " in said and "evaluate" in said and "explain" not in said
    assert "evaluate takes no --loops. See: invoke --help evaluate" in workspace.fail(
        2, "explain", *EVALUATE, "--loops", "5"
    )
    assert "--version is needed" in workspace.fail(2, "explain", "infer")  # as the task says it
    workspace.data("match").unlink()
    assert "dev_matched.tsv is missing" in workspace.fail(3, "explain", *EVALUATE)
    (workspace.root / "models/tiny/dynamic.onnx.record.json").write_text("{")
    assert "is not a record" in workspace.fail(5, "explain", "build-om", "--bs", "4")


def test_nothing_made_up_to_date_and_force(workspace: Workspace) -> None:
    assert explained(workspace, *EVALUATE) == dict.fromkeys(STEPS, "up to date")
    assert explained(workspace, *EVALUATE, "--force") == dict.fromkeys(STEPS, "would run: --force")
    workspace.succeed("clean", "--profile", "tiny")
    assert explained(workspace, *EVALUATE) == dict.fromkeys(STEPS, "would run: not made yet")


def test_a_changed_input_and_what_follows_of_it(workspace: Workspace) -> None:
    """A later step is not said to run for sure: what is made again may come out as it was."""
    source = workspace.data("match")
    source.write_bytes(source.read_bytes().replace(b"A ship.", b"A whale.", 1))
    outputs = next(path for path in (workspace.root / RESULTS / "outputs_bs4_om/match").iterdir() if path.is_dir())
    assert explained(workspace, *EVALUATE) == {
        **dict.fromkeys(STEPS[:2], "up to date"),
        STEPS[2]: "would run: data/tiny/MNLI/dev_matched.tsv changed",
        STEPS[3]: "may run: data/tiny/pre_mnli_bs4/match would be made again",
        STEPS[4]: "would run: data/tiny/MNLI/dev_matched.tsv changed",
    }
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == list(STEPS[2:])
    assert not outputs.exists()


def test_what_is_made_again_and_comes_out_the_same_makes_nothing_else_run(workspace: Workspace) -> None:
    (workspace.root / "models/tiny/dynamic.onnx").unlink()
    found = explained(workspace, *EVALUATE)
    assert found["export-onnx"] == "would run: models/tiny/dynamic.onnx is missing"
    assert found[STEPS[1]] == "may run: models/tiny/dynamic.onnx would be made again"
    assert found[STEPS[3]] == "may run: models/tiny/cpu/deberta_bs4.xml may be made again"
    assert found[STEPS[4]].startswith(f"may run: {RESULTS}/outputs_bs4_om/match/") and "may be made" in found[STEPS[4]]
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == ["export-onnx"]


def test_a_run_is_another_folder_each_time(workspace: Workspace) -> None:
    output = next((workspace.root / RESULTS / "outputs_bs4_om/match").glob("*/*.bin"))
    output.write_bytes(bytes(48))
    found = explained(workspace, *EVALUATE)
    assert "was changed after it was made" in found[STEPS[3]]
    assert found[STEPS[4]] == f"would run: {RESULTS}/outputs_bs4_om/match would have a new folder"
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == list(STEPS[3:])


def test_changed_options_are_named_with_both_values(workspace: Workspace) -> None:
    workspace.succeed("perf", "--bs", "4", "--loops", "5")
    assert explained(workspace, "perf", "--bs", "4", "--loops", "7")["perf bs=4 match"] == (
        "would run: its arguments changed: --loop 5 -> 7"
    )
    limited = explained(workspace, *EVALUATE, "--limit", "5")
    assert list(limited) == [*STEPS[:2], *(f"{step} first 5 rows" for step in STEPS[2:])]
    assert set(limited.values()) == {"up to date", "would run: not made yet"}
    settings = workspace.root / "settings.yaml"
    settings.write_text(settings.read_text().replace('"match": 10', '"match": 11'))
    assert explained(workspace, *EVALUATE)[STEPS[2]] == "would run: its arguments changed: --rows 10 -> 11"


def test_a_changed_stage_package_or_executor(workspace: Workspace) -> None:
    edit_record(workspace, "models/tiny/dynamic.onnx", {"code": "0" * 64})
    edit_record(workspace, "models/tiny/cpu/deberta_bs4.xml", {"packages": "0" * 64})
    found = explained(workspace, *EVALUATE)
    assert found["export-onnx"] == "would run: its code changed"
    assert found[STEPS[1]].startswith(
        "would run: its packages changed: requirements-stages.lock is another one, 000000000000.. -> "
    )
    path = workspace.root / "models/tiny/dynamic.onnx.record.json"
    record = json.loads(path.read_text())
    sources = record["predicate"]["buildDefinition"]["internalParameters"]["sources"]
    sources["deberta/stages/model/deberta.py"] = "0" * 64
    path.write_text(json.dumps(record))
    found = explained(workspace, *EVALUATE)
    assert found["export-onnx"] == "would run: its code changed (deberta/stages/model/deberta.py)"
    docker = explained(workspace, *EVALUATE, "--executor", "docker")  # no engine is asked
    assert docker[STEPS[2]] == "would run: its executor changed: local -> docker"


def test_a_changed_image_names_the_part_that_changed(workspace: Workspace) -> None:
    """The record says what the image was made of; no engine is there to ask."""
    image = images.plan(REPOSITORY, pins.load(REPOSITORY), "export", os.uname().machine)
    made = "data/tiny/pre_mnli_bs4/match"
    edit_record(workspace, made, {"executor": "docker", "image": image.tag}, image_inputs=dict(image.inputs))
    command = ("preprocess", "--bs", "4", "--version", "match", "--executor", "docker")
    assert explained(workspace, *command) == {STEPS[2]: "up to date"}
    former = {**image.inputs, "requirements-stages.lock": "0" * 64}
    edit_record(workspace, made, {"image": "deberta-ascend/export:former"}, image_inputs=former)
    assert explained(workspace, *command) == {
        STEPS[2]: f"would run: its image changed: deberta-ascend/export:former -> {image.tag}: "
        "requirements-stages.lock changed"
    }


def test_other_tasks_are_explained_by_their_own_plan(workspace: Workspace) -> None:
    assert explained(workspace, "export-onnx") == {"export-onnx": "up to date"}
    assert explained(workspace, "export-onnx", "--relative", "gather") == {
        "export-onnx gather": "would run: not made yet"
    }
    assert list(explained(workspace, "check-fp16", "--bs", "4")) == [*STEPS[:1], STEPS[2], "check-fp16 bs=4 match"]
    assert explained(workspace, "postprocess", "--bs", "4", "--version", "match") == {STEPS[4]: "up to date"}
    buckets = explained(workspace, *EVALUATE, "--buckets", "64,256")
    assert buckets["token-counts match"] == "would run: not made yet" and "infer bs=4 match at 2 lengths" in buckets


def test_options_of_command_lines() -> None:
    listed = freshness.option_changes(["--a", "1", "--b"], ["--a", "2", "--c=3"])
    assert listed == ["--a 1 -> 2", "--c 3 is new", "--b is gone"]
    listed = freshness.option_changes(["--input", "x,y", "--loop", "5"], ["--loop", "5", "--input", "x,y"])
    assert listed == ["their order"]


def test_a_gate_runs_with_its_step(workspace: Workspace, tmp_path: Path) -> None:
    installed = fake_cann.install(tmp_path / "Ascend", python=sys.executable)
    settings = workspace.root / "settings.yaml"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "cann": str(installed / "ascend-toolkit")}))
    command = ("build-om", "--bs", "4", "--backend", "ascend", "--soc-version", "Ascend310P3")
    found = explained(workspace, *command)
    assert list(found.items()) == [
        ("export-onnx", "up to date"),
        ("lint-onnx bs=4", "would run: not made yet"),
        ("build-om bs=4", "would run: not made yet"),
    ]
    workspace.succeed(*command)
    assert list(explained(workspace, *command)) == ["export-onnx", "build-om bs=4"]
    (workspace.root / "models/tiny/dynamic.onnx").unlink()
    assert explained(workspace, *command)["lint-onnx bs=4"].startswith("may run: ")


def test_an_acceptance_would_stop_at_what_was_altered(workspace: Workspace) -> None:
    found = explained(workspace, "acceptance", "--bs", "4")
    assert list(found.items())[-2:] == [(step, "would run: it is made anew each time") for step in ("assess", "render")]
    (workspace.root / f"{RESULTS}/eval_bs4_match.txt").write_text("accuracy = 1.0\n")
    found = explained(workspace, "acceptance", "--bs", "4")
    assert found["check-data match"] == "would run: not made yet" and found["infer bs=4 match"] == "up to date"
    assert list(found.items())[-1] == (
        STEPS[4], f"would stop: {RESULTS}/eval_bs4_match.txt was changed after it was made"
    )  # fmt: skip
