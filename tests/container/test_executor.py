"""The cpu backend's steps in containers of the export image, as users run them; failures and interruptions first."""

from __future__ import annotations

import filecmp
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deberta.core import records
from deberta.core.contract import VERSIONS
from deberta.host.images import definition, pins
from tests import demo_digests
from tests.container import container_helpers as helpers
from tests.container.bases import BOOKWORM
from tests.container.container_helpers import CALLER, Place

INFER = ("infer", "--bs", "8", "--version", "match", "--backend", "cpu", "--limit", "480")
PREPROCESS = ("preprocess", "--bs", "1", "--version", "match", "--limit", "8")
RESULTS = "results/demo/cpu"


@pytest.fixture
def place(finished: Place, tmp_path: Path) -> Iterator[Place]:
    yield finished.copy(tmp_path / "demo")
    shutil.rmtree(tmp_path)


def same(one: Place, other: Place, names: list[str]) -> bool:
    """Whether these files hold the same bytes; the first that do not are printed."""
    differ = [name for name in names if not filecmp.cmp(one.root / name, other.root / name, shallow=False)]
    print(f"{len(differ)} of {len(names)} differ: {differ[:5]}")
    return not differ


@pytest.mark.parametrize("how", helpers.ENDS)
def test_a_run_that_ends_in_the_middle(place: Place, engine_client: Any, tmp_path: Path, how: str) -> None:
    """Some of the outputs are there."""
    outputs = f"{RESULTS}/outputs_bs8_limit480_om"
    shutil.rmtree(place.root / outputs / "match")
    sign = f"{outputs}/.match.tmp-*/*/input_*"
    helpers.end_in_the_middle(how, place, engine_client, tmp_path, INFER, sign)
    said = place.succeed(*INFER)
    assert helpers.ran(said) == ["infer bs=8 match first 480 rows"]
    assert ("which an earlier run left" in said) == (how == "engine-gone")
    assert not [name for name in place.files() if ".tmp-" in name] and not place.containers(engine_client)
    assert helpers.owners(place.root / "results") == {CALLER}


def test_errors_of_a_stage_are_its_own(place: Place) -> None:
    data = place.root / "data/demo/MNLI/dev_matched.tsv"
    data.write_bytes(data.read_bytes() + b"\xff\n")
    said = place.fail(5, *PREPROCESS)
    assert "data/demo/MNLI/dev_matched.tsv" in said and "/workspace" not in said


def test_an_engine_that_cannot_be_used(place: Place) -> None:
    for address, code, says in (
        ("tcp://192.0.2.1:2375", 2, "is remote"),
        ("ssh://root@localhost", 2, "is remote"),
        (f"unix://{place.root}/settings.yaml", 3, "no Docker engine answers"),
    ):
        assert says in replace(place, caller=(0, 0), engine=address).fail(code, *PREPROCESS)
    assert "which user 12345 is not in" in replace(place, admitted=False).fail(3, *PREPROCESS)


def test_records_name_the_image_and_that_it_is_not_pinned(finished: Place, engine_client: Any) -> None:
    names = [name for name in finished.files() if name.endswith(".record.json")]
    assert len(names) >= 10
    for name in names:
        record = records.read(finished.root / name)
        assert record is not None
        if name == f"{RESULTS}/bom.cdx.json.record.json":
            continue  # the command wrote that one itself
        tag = record.parameters["image"]
        found = engine_client.images.get(tag)
        assert record.dependencies[f"image {tag}"] == {"sha256": found.id.partition(":")[2]}
        base = engine_client.images.get(BOOKWORM).id
        assert record.internal["pins"] == f"not pinned: base {base} in place of python:3.11-slim-bookworm"
    report = (finished.root / RESULTS / "report.md").read_text()
    assert report.count(" on cpu, not pinned") == 4 and "M=99.08 (1189/1200)" in report and "MM=96.42" in report


def test_files_belong_to_who_asked(finished: Place, engine_client: Any, tmp_path: Path) -> None:
    for kind in ("models", "data", "results", ".cache"):
        assert helpers.owners(finished.root / kind) == {CALLER}, kind
    assert not finished.containers(engine_client)
    # root, in a workspace of somebody's with a new profile folder, cache and results
    place = helpers.make_place(tmp_path / "theirs", finished.project, CALLER)
    roots = replace(place, caller=(0, 0))
    said = roots.succeed(*PREPROCESS)
    assert f"containers run as 12345:23456, the owner of {place.root} (you are root)" in said
    assert (place.root / ".cache").is_dir() and helpers.owners(place.root) == {CALLER}
    assert helpers.ran(place.succeed(*PREPROCESS)) == []
    helpers.own(place.root, (0, 0))
    assert f"containers run as root, who owns {place.root}" in roots.succeed(*PREPROCESS, "--force")
    assert helpers.owners(place.root) == {(0, 0)}


def test_kept_containers_and_what_clean_removes(place: Place, engine_client: Any) -> None:
    foreign = engine_client.containers.create(BOOKWORM, ["true"])
    try:
        said = place.succeed(*PREPROCESS, "--keep")
        [kept] = place.containers(engine_client)
        hint = "Remove it with: invoke .*clean --containers"
        assert re.search(rf"container {kept.name} is kept \(ended with 0\)\. {hint}", said)
        place.succeed(*PREPROCESS, "--force")
        assert [one.id for one in place.containers(engine_client)] == [kept.id]
        before = place.files()
        assert f"would remove container {kept.name}" in place.succeed("clean", "--containers", "--dry")
        assert place.containers(engine_client)
        assert f"removing container {kept.name}" in place.succeed("clean", "--containers")
        assert not place.containers(engine_client) and place.files() == before
        foreign.reload()
        # Only said: everybody's images are on this engine.
        image = definition.plan(place.project, pins.load(place.project), "export", platform.machine()).tag
        said = place.succeed("clean", "--images", "--dry")
        assert f"would remove image {image}" in said.splitlines()
        assert BOOKWORM not in said and engine_client.images.get(BOOKWORM).id not in said
    finally:
        foreign.remove(force=True)


def test_a_dry_runs_lines_can_be_pasted(finished: Place, tmp_path: Path) -> None:
    place = helpers.make_place(tmp_path / 'a, b\'s "place"', finished.project)
    command = ("--bs", "8", "--backend", "cpu", "--executor", "docker")
    before = place.files()
    building = place.succeed("build-om", *command, "--dry")
    assert place.succeed("--dry", "build-om", *command) == building and "docker run " in building
    said = place.succeed("evaluate", *command, "--version", "match", "--dry")
    assert said.startswith(building) and place.files() == before and not (place.root / ".cache").exists()
    bare = {"PATH": os.environ["PATH"], "DOCKER_HOST": place.engine}
    shell = ["sh", "-e", "-c", said]
    pasted = subprocess.run(shell, cwd="/", env=bare, capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    made = ["models/demo/dynamic.onnx", "models/demo/cpu/deberta_bs8.xml", "models/demo/cpu/deberta_bs8.bin"]
    assert same(place, finished, [*made, f"{RESULTS}/eval_bs8_match.txt", f"{RESULTS}/eval_bs8_match.json"])


def test_a_link_out_of_the_workspace_and_a_folder_elsewhere(finished: Place, place: Place, tmp_path: Path) -> None:
    checkpoint = place.root / "models/demo/pytorch.model-demo.bin"
    shutil.move(checkpoint, tmp_path / "elsewhere.bin")
    checkpoint.symlink_to(tmp_path / "elsewhere.bin")
    said = place.succeed("export-onnx", "--force")
    assert helpers.ran(said) == ["export-onnx"]
    assert same(place, finished, ["models/demo/dynamic.onnx"])
    [outputs] = [path for path in (place.root / RESULTS / "outputs_bs8_om/match").iterdir() if path.is_dir()]
    shutil.move(outputs, tmp_path / "outputs, of others")
    command = ("postprocess", "--bs", "8", "--version", "match", "--backend", "cpu", "--outputs")
    said = place.succeed(*command, str(tmp_path / "outputs, of others"))
    assert "= 1189/1200" in said
    assert "is missing" in place.fail(3, *command, str(tmp_path / "nowhere"))


def test_its_files_are_those_of_the_local_executor(finished: Place) -> None:
    """By the table of SHA-256 that tests/pipeline/test_demo.py holds the local run to."""
    made, known = demo_digests.digests(finished.root), demo_digests.table(demo_digests.DEMO)
    both = {name: digest for name, digest in made.items() if name in known}
    texts = {f"{RESULTS}/eval_bs8_{version}.txt" for version in VERSIONS}
    assert {"models/demo/dynamic.onnx", "models/demo/cpu/deberta_bs8.xml", *texts} <= set(both)
    assert any(name.startswith("data/demo/pre_mnli_bs8") for name in both)
    assert both == {name: known[name] for name in both}


@pytest.mark.slow
def test_the_image_without_torch_writes_the_same_files(
    finished: Place, engine_client: Any, build_settings: dict[str, str], tmp_path: Path
) -> None:
    """It is built first, and two devices share the run. Nothing runs in the export image, since the graph is there."""
    place = finished.copy(tmp_path / "demo", images={**build_settings, "runtime_cpu": True})
    said = place.succeed("evaluate", "--bs", "8", "--version", "match", "--backend", "cpu", "--device", "0,1")
    assert "on 2 devices: " in said
    assert {"build-om bs=8", "infer bs=8 match", "postprocess bs=8 match"} < set(helpers.ran(said))
    assert "export-onnx" not in "".join(helpers.ran(said))
    model = [f"models/demo/cpu/deberta_bs8.{kind}" for kind in ("xml", "bin")]
    evaluated = [
        f"{RESULTS}/{name}" for name in ("eval_bs8_match.txt", "eval_bs8_match.json", "predictions_bs8_match.jsonl")
    ]
    assert same(place, finished, [*model, *evaluated])
    record = records.read(place.root / f"{RESULTS}/eval_bs8_match.txt.record.json")
    assert record is not None and record.parameters["image"].startswith("deberta-ascend/runtime-cpu:")
    export = definition.plan(place.project, pins.load(place.project), "export", platform.machine()).tag
    sizes = [engine_client.images.get(name).attrs["Size"] for name in (record.parameters["image"], export)]
    assert sizes[0] < sizes[1] / 2
