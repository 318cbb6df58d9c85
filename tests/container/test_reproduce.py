"""The demo made twice, by processes of this machine and in containers, from different folders: the same bytes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from deberta.core.contract import VERSIONS
from deberta.core.errors import StageError
from deberta.host.images import build, contents, definition, pins
from deberta.host.workflows import reproduce
from tests.container import container_helpers as helpers
from tests.container.bases import BOOKWORM
from tests.image_helpers import ARCH

LIMIT = 40
WITHIN = f"limit{LIMIT}"


@pytest.mark.slow  # a minute; test_executor.py compares the bytes of both executors, too
def test_local_and_docker_give_the_same_bytes(project: Path, engine_client: Any, tmp_path: Path) -> None:
    """The workspaces have other names, and in containers workspace and code are elsewhere again."""
    place = helpers.make_place(tmp_path / "one", project, profile="demo", stages_python=sys.executable)
    options = ("--backend", "cpu", "--bs", "8", "--limit", str(LIMIT))
    said = place.succeed("reproduce", *options, "--executor", "local,docker", "--keep-places")
    same = {line.split(maxsplit=3)[3] for line in said.splitlines() if line.startswith("same ")}
    results = "results/demo/cpu"
    wanted = {"models/demo/dynamic.onnx", f"{results}/report_{WITHIN}.json: body"}
    for version in VERSIONS:
        wanted |= {f"data/demo/pre_mnli_bs8_{WITHIN}/{version}"}
        wanted |= {f"{results}/eval_bs8_{WITHIN}_{version}.{end}" for end in ("txt", "json")}
    assert wanted <= same, said
    assert "DIFFERS" not in said and "identical: " in said
    reports = [
        json.loads((place.root / reproduce.FOLDER / name / results / f"report_{WITHIN}.json").read_text())
        for name in reproduce.NAMES
    ]
    assert [report["measured"]["executor"] for report in reports] == ["local", "docker"]
    assert reports[0]["body_sha256"] == reports[1]["body_sha256"]
    assert not place.containers(engine_client)
    shutil.rmtree(place.root)


def test_what_is_in_an_image(engine_client: Any, tmp_path: Path) -> None:
    """Two images of one file system, told apart by id alone; one file more is named."""
    base = engine_client.images.get(BOOKWORM)
    one = contents.contents(engine_client, base.id, tmp_path)
    assert one["usr/bin/python3"].kind == "link" and not any(path.endswith(".pyc") for path in one)
    made = {}
    for name, line in (("same", "touch -d 2001-01-01 /etc/passwd"), ("other", "echo more >> /etc/issue")):
        container = engine_client.containers.create(BOOKWORM, ["sh", "-c", line], network_mode="none")
        try:
            container.start()
            assert container.wait()["StatusCode"] == 0
            made[name] = container.commit()
        finally:
            container.remove(force=True)
    try:
        again, other = (contents.contents(engine_client, made[name].id, tmp_path) for name in ("same", "other"))
        assert made["same"].id != base.id and contents.differences(one, again) == []
        assert contents.digest(engine_client, made["same"].id, tmp_path) == contents.digest_of(one)
        [line] = contents.differences(one, other)
        assert line.startswith("/etc/issue: sha256 ")
    finally:
        for image in made.values():
            engine_client.images.remove(image.id)
    with pytest.raises(StageError, match="reading what is in"):
        contents.contents(engine_client, made["other"].id, tmp_path)


@pytest.mark.slow
def test_an_image_built_twice_holds_the_same(
    project: Path, build_settings: dict[str, str], engine_client: Any, tmp_path: Path
) -> None:
    """Minutes: the packages are installed anew. The tag stays with the image that was there."""
    image = definition.plan(project, pins.load(project), "export", ARCH)
    before = build.find(engine_client, image)
    settings = definition.settings(build_settings, project)
    said: list[str] = []
    found = contents.rebuild(engine_client, image, settings, tmp_path, said.append)
    assert found == [], "\n".join([*said, *found[:50]])
    assert build.find(engine_client, image) == before
