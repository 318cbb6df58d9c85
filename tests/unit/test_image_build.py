"""When images are built, reused and removed, with an engine that only keeps a list of images."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import docker.errors
import pytest

from deberta.core.errors import ConfigError, MissingError, StageError
from deberta.host.engine import engine
from deberta.host.images import build, definition, manage, pins
from deberta.host.images.definition import BuildSettings, Image
from deberta.host.images.failure import explain
from tests.image_helpers import ARCH, make_project


class _Engine:
    """The client and its low-level API. Builds succeed, or stream `messages`; an image with children is not removed.

    `loaded`: the configuration of the image that was loaded last. `wants_layers`: an archive has to have its layers.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.parents: dict[str, str] = {}
        self.loaded, self.wants_layers = b"", False
        self.api = self

    @property
    def images(self) -> _Images:
        return _Images(self)

    @property
    def containers(self) -> _Images:
        return _Images(_Engine())

    def build(self, labels: dict[str, str], **options: Any) -> Iterator[dict[str, Any]]:
        number = f"sha256:{len(self.entries)}"
        self.entries.append({"Id": number, "Created": 7, "Labels": labels, "RepoTags": []})
        yield from self.messages or [{"stream": "Step 1/1 : FROM x\n"}, {"aux": {"ID": number}}]

    def info(self) -> dict[str, str]:
        return {"Architecture": "x86_64", "Name": socket.gethostname()}

    def inspect_image(self, number: str) -> dict[str, Any]:
        (entry,) = (entry for entry in self.entries if entry["Id"] == number)
        config = {"Labels": entry["Labels"], "Env": ["HOME=/tmp"], "Image": f"sha256:{len(self.entries)}", "Cmd": None}
        root = {"Type": "layers", "Layers": ["sha256:base", "sha256:packages"]}
        return {"Id": number, "Config": config, "Architecture": "amd64", "Os": "linux", "RootFS": root}

    def load_image(self, data: IO[bytes]) -> list[dict[str, Any]]:
        with tarfile.open(fileobj=data) as archive:
            contents = {member.name: archive.extractfile(member) for member in archive}
        (manifest,) = json.loads((contents["manifest.json"] or io.BytesIO()).read())
        self.loaded = (contents[manifest["Config"]] or io.BytesIO()).read()
        values, number = json.loads(self.loaded), f"sha256:{hashlib.sha256(self.loaded).hexdigest()}"
        assert manifest["Config"] == f"{number[7:]}.json"
        if self.wants_layers and not all(layer in contents for layer in manifest["Layers"]):
            return [{"error": "no such layer"}]
        assert len(manifest["Layers"]) == len(values["rootfs"]["diff_ids"]) == len(values["history"]) == 2
        self.entries = [entry for entry in self.entries if entry["Id"] != number]
        self.entries.append({"Id": number, "Created": 7, "Labels": values["config"]["Labels"], "RepoTags": []})
        return [{"stream": f"Loaded image ID: {number}"}]

    def get_image(self, number: str) -> Iterator[bytes]:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w") as archive:
            manifest = json.dumps([{"Config": "own.json", "RepoTags": [], "Layers": ["a.tar", "b.tar"]}]).encode()
            for name, data in (("own.json", b"{}"), ("a.tar", b"a"), ("b.tar", b"b"), ("manifest.json", manifest)):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        yield target.getvalue()

    def tag(self, number: str, repository: str, version: str) -> None:
        for entry in self.entries:
            entry["RepoTags"] = [tag for tag in entry["RepoTags"] if tag != f"{repository}:{version}"]
            entry["RepoTags"] += [f"{repository}:{version}"] if entry["Id"] == number else []

    def remove_image(self, name: str, **options: Any) -> None:
        (entry,) = (entry for entry in self.entries if name in (entry["Id"], *entry["RepoTags"]))
        if entry["Id"] in self.parents.values():
            raise docker.errors.APIError("conflict", explanation="it has children")
        self.entries.remove(entry)
        self.parents.pop(entry["Id"], None)


class _Images:
    """The client's collection of images; the low-level API lists them by a call of the same name."""

    def __init__(self, own: _Engine) -> None:
        self._own = own

    def __call__(self, **options: Any) -> list[dict[str, Any]]:
        return list(self._own.entries)

    def list(self, **options: Any) -> list[Any]:
        return []

    def prune(self, **options: Any) -> None:
        pass

    def get(self, name: str) -> Any:
        for entry in self._own.entries:
            if name in entry["RepoTags"]:
                return type("Found", (), {"id": entry["Id"], "attrs": self._own.inspect_image(entry["Id"])})
        if name.startswith("python@sha256:"):
            return type("Base", (), {"id": "sha256:base", "attrs": {"Architecture": "amd64"}})
        raise docker.errors.ImageNotFound(name)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    project = make_project(tmp_path / "project")
    return definition.plan(project, pins.load(project), "export", ARCH)


def test_an_image_is_built_once_and_again_by_force(
    image: Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, settings = _Engine(), BuildSettings()

    def update(force: bool = False, dry: bool = False) -> tuple[str, str]:
        number = build.update(client, image, settings, tmp_path, "export: ", force, dry)
        printed = capsys.readouterr()
        return number, printed.err + printed.out

    assert update(dry=True) == ("", f"export: would build {image.tag}: not built yet\n")
    number, said = update()
    assert (
        said
        == f"export: building {image.tag}: not built yet\n  Step 1/1 : FROM x\nexport: done: {image.tag}, {number}\n"
    )
    assert update() == (number, f"export: up to date: {image.tag}, {number}\n")
    assert build.ensure(client, image, settings, tmp_path) == number and capsys.readouterr() == ("", "")
    assert update(force=True, dry=True)[1] == f"export: would build {image.tag}: --force\n"
    assert "Step 1/1" in update(force=True)[1]
    assert build.find(client, image) == number, "what differs between two builds is in the image"
    assert (tmp_path / build.LOGS / "export.log").read_text().startswith(f"{image.tag}\n")


@pytest.mark.parametrize("wants_layers", [False, True])
def test_a_finished_image_says_nothing_of_its_build(image: Image, tmp_path: Path, wants_layers: bool) -> None:
    client = _Engine()
    client.wants_layers = wants_layers
    build.build(client, image, BuildSettings(), tmp_path / "log", lambda line: None)
    values = json.loads(client.loaded)
    labels = values["config"].pop("Labels")
    assert values == {
        "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": {"Env": ["HOME=/tmp"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:base", "sha256:packages"]}, "history": values["history"],
    }  # fmt: skip
    assert labels == definition.labels(image) and build.BUILD not in labels
    assert labels["org.opencontainers.image.created"] == values["created"]
    assert labels["org.opencontainers.image.base.name"] == "python:3.11-slim-bookworm"
    assert labels["org.opencontainers.image.base.digest"] == image.base.partition("@")[2]


def test_an_image_for_another_machine_takes_an_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before the base is looked for; where it cannot be known, the engine's own reason gets the same way out."""
    project = make_project(tmp_path / "project")
    other = definition.plan(project, pins.load(project), "export", "aarch64")
    monkeypatch.setattr(build, "BINFMT", tmp_path)
    (tmp_path / "register").touch()
    instead = r"or build it on such a machine: invoke images --platform linux/arm64 --context DIR"
    with pytest.raises(MissingError, match=rf"this machine is x86_64, and its kernel runs no.* aarch64\. .*{instead}"):
        build.build(_Engine(), other, BuildSettings(), tmp_path / "log", lambda line: None)
    (tmp_path / "qemu-aarch64").touch()
    with pytest.raises(ConfigError, match="is for amd64, and arm64 is needed"):
        build.build(_Engine(), other, BuildSettings(offline=True), tmp_path / "log", lambda line: None)
    image, client = definition.plan(project, pins.load(project), "export", ARCH), _Engine()
    client.messages = [{"stream": "Step 2/3 : RUN x\n"}, {"error": "exec /bin/sh: exec format error"}]
    with pytest.raises(StageError, match=r"exec format error .*\. Install an emulator"):
        build.build(client, image, BuildSettings(), tmp_path / "log", lambda line: None)


def test_a_failed_build_is_explained(image: Image, tmp_path: Path) -> None:
    client = _Engine()
    client.messages = [
        {"stream": "Step 2/3 : RUN ./install-packages\n"},
        {"stream": "\x1b[31mERROR: no such package.\x1b[0m\nbye\n"},
        {"errorDetail": {"code": 1, "message": "The command '/bin/sh -c x' returned a non-zero code: 1"}},
    ]
    says = r"failed: no such package \(step 2/3, RUN \./install-packages, exit code 1\)\. Packages come from .*/log"
    with pytest.raises(StageError, match=says):
        build.build(client, image, BuildSettings(), tmp_path / "log", lambda line: None)
    assert client.entries == []


X, AT = "Step 2/4 : RUN x", "step 2/4, RUN x"
FULL = "The engine's disk is full: docker system df shows what fills it, docker system prune frees some"
RUN, CODE = "Step 5/9 : RUN ./install-packages x", "The command '/bin/sh -c x' returned a non-zero code: "


@pytest.mark.parametrize(
    ("step", "printed", "failure", "reason"),
    [
        (  # pip's last error, in place of the warning after it
            RUN,
            ["WARNING: Retrying (total=0): connection error", "\x1b[31mERROR: No versions of torch\x1b[0m",
             "ERROR: No matching distribution found for torch", "\x1b[33mWARNING: error: pip is old\x1b[0m", "\x1b[0m"],
            f"{CODE}1",
            "No matching distribution found for torch (step 5/9, RUN ./install-packages x, exit code 1)",
        ),
        (  # apt's first
            "Step 2/4 : RUN apt-get update",
            ["W: Failed", "E: Unable to locate package x", "E: Some index files failed"], f"{CODE}100",
            "Unable to locate package x (step 2/4, RUN apt-get update, exit code 100)",
        ),
        (X, ["[Toolkit] [ERROR]: bad", "bye"], f"{CODE}1", f"[Toolkit] [ERROR]: bad ({AT}, exit code 1)"),
        (X, ["first", "last"], f"{CODE}2", f"last ({AT}, exit code 2)"),
        (X, ["10%\r20%\r90%"], f"{CODE}2", f"90% ({AT}, exit code 2)"),
        (X, ["\x1b[0m", " "], f"{CODE}2", f"{CODE}2 ({AT})"),
        (X, [], f"{CODE}137", f"{CODE}137 ({AT}). It was killed, most likely because memory ran out"),
        # The engine's own error, whatever was printed before.
        (X, ["Using cache"], "COPY failed: stat a: no such file", f"COPY failed: stat a: no such file ({AT})"),
        (  # Podman
            "[1/2] STEP 5/9: RUN x", ["ERROR: bad"], 'building at STEP "RUN x": while running runtime: exit status 3\n',
            "bad (step 5/9, RUN x, exit code 3)",
        ),
        ("", [], "dockerfile parse error line 3: unknown: X", "dockerfile parse error line 3: unknown: X"),
        ("", [], "", "the engine ended it without a message"),
        (X, ["tar: write error: No space left on device", "ERROR: failed"], f"{CODE}1",
         f"tar: write error: No space left on device ({AT}, exit code 1). {FULL}"),
        (f"{X}{' word' * 30}", ["y"], f"{CODE}1", f"y ({AT}{' word' * 11} ..., exit code 1)"),
    ],
)  # fmt: skip
def test_the_reason_of_a_failed_step(step: str, printed: list[str], failure: str, reason: str) -> None:
    assert explain(step, printed, failure) == reason


def test_images_of_one_second_are_removed_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _Engine()
    for number in range(3):  # the engine lists parents before their children
        client.entries.append({"Id": f"sha256:{number}", "Created": 7, "RepoTags": [f"x:{number}"]})
    client.parents = {"sha256:1": "sha256:0", "sha256:2": "sha256:1"}
    monkeypatch.setattr(engine, "connect", lambda: client)
    manage.remove_images(dry=True)
    assert len(client.entries) == 3
    manage.remove_images(dry=False)
    assert client.entries == []
    client.entries, client.parents = [{"Id": "sha256:0", "Created": 7, "RepoTags": []}], {"sha256:9": "sha256:0"}
    with pytest.raises(StageError, match="sha256:0: it has children"):
        manage.remove_images(dry=False)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (docker.errors.ImageNotFound("gone"), ""),
        (docker.errors.APIError("500", None, "failed to find image x: image not known"), ""),  # Podman
        (docker.errors.APIError("409", None, "x is in use by a container"), "x is in use by a container"),
    ],
)
def test_an_image_that_went_with_its_child_is_no_error(error: Exception, reason: str) -> None:
    def refuse(_: str) -> None:
        raise error

    client = SimpleNamespace(api=SimpleNamespace(remove_image=refuse))
    assert manage._remove_image(client, {"Id": "sha256:1"}) == reason
