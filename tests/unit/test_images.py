"""Stage images as data, without an engine: what decides a tag and what does not, what is missing, what is packed."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.host.environments import stages as stage_env
from deberta.host.images import context as context_of
from deberta.host.images import definition, manage, pins
from deberta.host.images.context import write_context
from deberta.host.images.definition import BuildSettings, Image
from tests.image_helpers import ARCH, bring, elf, locked, make_project, make_wheel
from tests.mnli_helpers import REPOSITORY

TOOLKIT = pins.CANN / "Ascend-cann-toolkit_5.1.RC2_linux-x86_64.run"
NNRT = pins.CANN / "Ascend-cann-nnrt_5.1.RC2_linux-x86_64.run"
DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """With everything that the user brings."""
    project = make_project(tmp_path / "project")
    bring(project, TOOLKIT, b"#!/bin/sh\n# toolkit", pin=False)
    bring(project, pins.MSAME, elf(0x3E))
    return project


def plan(project: Path, stage: str, arch: str = ARCH) -> Image:
    return definition.plan(project, pins.load(project), stage, arch)


def tags(project: Path) -> dict[str, str]:
    return {stage: plan(project, stage).tag for stage in pins.STAGES}


def context(image: Image, settings: BuildSettings) -> bytes:
    target = io.BytesIO()
    write_context(target, image, settings, "deberta-ascend.build=1")
    return target.getvalue()


def unpacked(packed: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        files = [(entry, archive.extractfile(entry)) for entry in archive]
        return {entry.name: file.read() if file else b"" for entry, file in files}


def test_the_committed_export_image_can_be_planned() -> None:
    image = plan(REPOSITORY, "export")
    assert image.tag.startswith("deberta-ascend/export:") and len(image.tag.partition(":")[2]) == 20
    assert set(image.inputs) == {
        "base", "architecture", "docker/export.Dockerfile", "docker/install-packages", "requirements-stages.lock",
        "docker/settle", "SOURCE_DATE_EPOCH",
    }  # fmt: skip


def test_a_tag_follows_from_the_inputs_and_from_nothing_else(project: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere" / "project"
    shutil.copytree(project, elsewhere)
    (elsewhere / "README.md").write_text("more", encoding="utf-8")
    assert tags(elsewhere) == tags(project)
    assert len(set(tags(project).values())) == 3


CHANGES: list[tuple[str, str, set[str]]] = [
    ("requirements-stages.lock", "two==2\n", {"export"}),
    ("requirements-compile.lock", "two==2\n", {"compile"}),
    ("docker/bin/msame", "#!/bin/sh\necho other\n", {"runtime"}),
    (str(TOOLKIT), "#!/bin/sh\necho other\n", {"compile", "runtime"}),
    ("docker/with-cann", "#!/bin/bash\n", {"compile", "runtime"}),
    ("docker/install-packages", "#!/usr/bin/env python3\n", {"export", "compile"}),
    ("docker/settle", "#!/bin/bash\n", {"export", "compile", "runtime"}),
    ("docker/debs/runtime/x.deb", "deb", {"runtime"}),
    ("docker/ais_bench/x-1-py3-none-any.whl", "wheel", {"compile"}),
    ("docker/README.md", "text", set()),
]


@pytest.mark.parametrize(("file", "content", "stages"), CHANGES, ids=[change[0] for change in CHANGES])
def test_a_changed_file_changes_exactly_the_images_it_is_in(
    project: Path, file: str, content: str, stages: set[str]
) -> None:
    before, inputs = tags(project), {stage: plan(project, stage).inputs for stage in pins.STAGES}
    bring(project, Path(file), content.encode())
    assert {stage for stage, tag in tags(project).items() if tag != before[stage]} == stages
    for stage in stages:
        (said,) = definition.changes(inputs[stage], plan(project, stage).inputs)
        assert said in (f"{Path(file).name} changed", f"{Path(file).name} added")


def test_a_replaced_base_is_another_image_and_said(project: Path) -> None:
    before = tags(project)
    pins.set_base(project, "runtime", DIGEST)
    assert {stage for stage, tag in tags(project).items() if tag != before[stage]} == {"runtime"}
    image = plan(project, "runtime")
    assert image.base == DIGEST and image.unpinned == (f"base {DIGEST} in place of debian:bullseye-slim",)
    assert plan(project, "export").unpinned == ()


def test_how_packages_are_reached_is_no_part_of_an_image(project: Path, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    settings = BuildSettings(
        tmp_path, "https://user:word@host/simple", offline=True, no_proxy="x", ca=tmp_path / "ca.pem"
    )
    image = plan(project, "compile")
    assert context(image, settings) != context(image, BuildSettings())
    kept = definition.canonical([image.tag, dict(image.inputs), definition.labels(image)])
    for value in (str(tmp_path), "word", "no_proxy", "BEGIN"):
        assert value not in kept


@pytest.mark.parametrize("stage", ["compile", "runtime"])
def test_without_cann_it_is_said_how_to_get_it(project: Path, stage: str) -> None:
    (project / TOOLKIT).unlink()
    bring(project, pins.CANN / "Ascend-cann-toolkit_5.1.RC2_linux-aarch64.run")  # another machine's
    with pytest.raises(MissingError) as raised:
        plan(project, stage)
    said = str(raised.value)
    assert f"put {TOOLKIT.name} in docker/cann and run invoke images --lock" in said
    assert f"invoke images --base {stage}=IMAGE" in said
    pins.set_base(project, stage, DIGEST)  # which may have CANN in it: the build looks
    assert not [file for file in plan(project, stage).files if file.name.startswith("cann/")]


def test_the_run_time_package_goes_before_the_toolkit_and_never_compiles(project: Path) -> None:
    bring(project, NNRT)
    assert f"cann/{NNRT.name}" in [file.name for file in plan(project, "runtime").files]
    (project / TOOLKIT).unlink()
    with pytest.raises(MissingError, match="toolkit"):
        plan(project, "compile")


def test_two_packages_of_a_kind_are_not_chosen_between(project: Path) -> None:
    bring(project, pins.CANN / "Ascend-cann-toolkit_5.1.RC1_linux-x86_64.run")
    with pytest.raises(ConfigError, match="which one"):
        plan(project, "compile")


def test_msame_has_to_be_there_and_for_this_machine(project: Path) -> None:
    bring(project, pins.MSAME, elf(0xB7))
    with pytest.raises(ConfigError, match="built for aarch64, and the image is for x86_64"):
        plan(project, "runtime")
    bring(project, pins.MSAME, b"#!/bin/sh\n")
    assert "docker/bin/msame" in plan(project, "runtime").inputs
    (project / pins.MSAME).unlink()
    with pytest.raises(MissingError, match=r"put it at docker/bin/msame, and run: invoke images --lock"):
        plan(project, "runtime")


def test_what_the_user_brought_is_used_only_once_it_is_pinned(project: Path) -> None:
    deb = bring(project, pins.DEBS / "compile" / "x.deb", b"deb", pin=False)
    with pytest.raises(MissingError, match=r"x\.deb \(SHA-256 [0-9a-f]{64}\) is not in docker/pins.toml yet.*--lock"):
        plan(project, "compile")
    pins.lock(project, None, ARCH)
    deb.unlink()
    with pytest.raises(MissingError, match=r"docker/debs/compile/x\.deb is in docker/pins.toml, and not there"):
        plan(project, "compile")


@pytest.mark.parametrize(
    ("file", "stage"), [("requirements-stages.lock", "export"), (str(TOOLKIT), "compile"), (str(pins.MSAME), "runtime")]
)
def test_a_file_that_is_not_the_pinned_one_is_named_with_both_hashes(project: Path, file: str, stage: str) -> None:
    wanted = plan(project, stage).inputs[file]
    bring(project, Path(file), b"#!/bin/sh\necho changed\n", pin=False)
    with pytest.raises(DataError, match=rf"{Path(file).name} has SHA-256 [0-9a-f]{{64}}, and .* says {wanted}.*--lock"):
        plan(project, stage)


def test_other_machines_are_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match="no stage images for riscv64; they are for x86_64 and aarch64"):
        plan(project, "export", "riscv64")


def test_a_context_has_one_form(project: Path) -> None:
    image = plan(project, "compile")
    packed = context(image, BuildSettings())
    (project / "docker" / "with-cann").touch()
    assert context(plan(project, "compile"), BuildSettings()) == packed
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        entries = {entry.name: entry for entry in archive}
    assert {entry.mtime for entry in entries.values()} == {0} == {entry.uid for entry in entries.values()}
    assert entries["debs"].isdir() and entries["ais_bench"].isdir()
    assert entries[f"cann/{TOOLKIT.name}"].mode == entries["with-cann"].mode == 0o755
    assert entries["requirements.lock"].mode == 0o644
    assert not [name for name in unpacked(context(plan(project, "runtime"), BuildSettings())) if "network" in name]


def test_every_stage_of_a_dockerfile_begins_with_the_builds_label(project: Path) -> None:
    for stage in pins.STAGES:
        lines = unpacked(context(plan(project, stage), BuildSettings()))["Dockerfile"].decode().splitlines()
        after = [lines[at + 1] for at, line in enumerate(lines) if line.startswith("FROM ")]
        assert set(after) == {'LABEL deberta-ascend.build="1"'} and len(after) >= 2


SECRET = "planted"


def test_a_written_context_is_whole_and_says_nothing_of_this_machine(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    house = tmp_path / "wheelhouse"
    (project / "requirements-compile.lock").write_text(locked({"two": make_wheel(house, "two")}), encoding="utf-8")
    pins.lock(project, None, ARCH)
    (tmp_path / "ca.pem").write_text(f"{SECRET} -----BEGIN CERTIFICATE-----\n")
    settings = BuildSettings(
        house, f"https://u:{SECRET}@host/simple", https_proxy=f"http://{SECRET}", ca=tmp_path / "ca.pem", network=SECRET
    )
    folder = tmp_path / "contexts"
    folder.mkdir()
    manage.write_contexts(project, settings, folder, (), "x86_64", dry=True)
    assert not any(folder.iterdir())
    manage.write_contexts(project, settings, folder, (), "x86_64", dry=False)
    said = capsys.readouterr().out
    assert "left out, as they are of this machine: index_url, https_proxy, ca, network" in said
    image = plan(project, "compile")
    dockerfile = (folder / "compile/Dockerfile").read_text(encoding="utf-8")
    assert f"ARG BASE={image.base}\n" in dockerfile and "ARG SOURCE_DATE_EPOCH\n" not in dockerfile
    assert r'LABEL deberta-ascend.inputs="{\"SOURCE_DATE_EPOCH\":\"1767225600\",' in dockerfile
    assert os.access(folder / "compile/with-cann", os.X_OK) and (folder / "compile/debs").is_dir()
    assert [path.name for path in (folder / "compile/network/wheelhouse").iterdir()] == ["two-1-py3-none-any.whl"]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"--platform linux/amd64 --build-arg SOURCE_DATE_EPOCH=1767225600 --tag {image.tag} compile\n" in readme
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).parts[0] for path in written} == {*pins.STAGES, "README.md"}
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    with pytest.raises(ConfigError, match="is not a new or empty folder"):
        manage.write_contexts(project, settings, folder, (), "x86_64", dry=False)


def test_a_context_that_fails_is_not_there(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / TOOLKIT).unlink()
    arm = pins.CANN / TOOLKIT.name.replace("x86_64", "aarch64")
    bring(project, arm)
    bring(project, pins.MSAME, elf(0xB7))
    assert {stage: str(arm) in plan(project, stage, "aarch64").inputs for stage in pins.STAGES} == {
        "export": False, "compile": True, "runtime": True,
    }  # fmt: skip
    monkeypatch.setattr(context_of, "_wheels", lambda *ignored: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        manage.write_contexts(project, BuildSettings(), tmp_path / "a/contexts", (), "aarch64", dry=False)
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_that_changes_while_it_is_packed_is_refused(project: Path) -> None:
    image = plan(project, "compile")
    for name in (f"cann/{TOOLKIT.name}", "Dockerfile"):
        changed = tuple(replace(file, sha256="0" * 64) if file.name == name else file for file in image.files)
        with pytest.raises(DataError, match="changed while it was packed"):
            context(replace(image, files=changed), BuildSettings())


def test_only_the_wheels_of_the_lock_are_packed(project: Path, tmp_path: Path) -> None:
    house = tmp_path / "wheelhouse"
    wheels = {"absl-py": make_wheel(house, "absl-py", "absl"), "two": make_wheel(house, "two")}
    for name, version in (("absl-py", "2"), ("other", "1")):
        make_wheel(house, name, version=version)
    (project / "requirements-compile.lock").write_text(locked(wheels), encoding="utf-8")
    pins.lock(project, None, ARCH)
    two = wheels["two"].name
    for machine in ("manylinux_2_17_x86_64.manylinux2014_x86_64", "manylinux_2_17_aarch64"):
        shutil.copy2(house / two, house / two.replace("any", machine))
    names = unpacked(context(plan(project, "compile"), BuildSettings(wheelhouse=house)))
    folder = "network/wheelhouse/"
    packed = {name[len(folder) :] for name in names if name.startswith(folder)}
    of_this_machine = two.replace("any", "manylinux_2_17_x86_64.manylinux2014_x86_64")
    assert packed == {wheel.name for wheel in wheels.values()} | {of_this_machine}


def test_what_pip_is_told(project: Path) -> None:
    def told(settings: BuildSettings) -> dict[str, str]:
        return {name: data.decode() for name, data in unpacked(context(plan(project, "export"), settings)).items()}

    plain = told(BuildSettings())
    assert plain["network/torch-index"] == stage_env.TORCH_INDEX and "index" not in plain["network/pip.conf"]
    own = told(BuildSettings(index_url="http://user:word@mirror:8080/simple", https_proxy="http://p:3"))
    assert "index-url = http://user:word@mirror:8080/simple\ntrusted-host = mirror:8080\n" in own["network/pip.conf"]
    assert own["network/environment"] == "https_proxy=http://p:3\nHTTPS_PROXY=http://p:3\n"
    offline = told(BuildSettings(index_url="https://mirror/simple", offline=True))
    assert "no-index = true" in offline["network/pip.conf"] and "mirror" not in offline["network/pip.conf"]
    assert offline["network/torch-index"] == ""


def test_what_an_images_build_is_told_of_its_lock(project: Path) -> None:
    lock = project / "requirements-stages.lock"
    torch = [f"torch==2+cpu ; platform_machine == 'x86_64' \\\n    --hash=sha256:{'1' * 64}"]
    torch.append(f"torch==2 ; platform_machine == 'aarch64' \\\n    --hash=sha256:{'2' * 64}")
    lock.write_text("\n".join([*torch, ""]), encoding="utf-8")
    pins.lock(project, None, ARCH)
    for arch, own, glibc in (
        ("x86_64", f"torch==2+cpu \\\n    --hash=sha256:{'1' * 64}\n", "2.28 "),
        ("aarch64", "", "2.35 "),
    ):
        image = definition.plan(project, pins.load(project), "export", arch)
        network = unpacked(context(image, BuildSettings()))
        assert network["network/torch.lock"].decode() == own
        assert network["network/glibc"].decode().startswith(glibc)


def test_settings(tmp_path: Path) -> None:
    assert (
        definition.settings(None, tmp_path)
        == definition.settings({"ca": "", "offline": None}, tmp_path)
        == BuildSettings()
    )
    (tmp_path / "wheels").mkdir()
    (tmp_path / "ca.pem").write_text("# ours\n-----BEGIN CERTIFICATE-----\n")
    given = {"wheelhouse": "wheels", "ca": str(tmp_path / "ca.pem"), "offline": True, "https_proxy": "http://p:3"}
    assert definition.settings(given, tmp_path) == BuildSettings(
        tmp_path / "wheels", offline=True, https_proxy="http://p:3", ca=tmp_path / "ca.pem"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("offline", "'offline' is not a mapping"),
        (
            {"wheel_house": "x"},
            "Object contains unknown field `wheel_house`, which is not one of: wheelhouse,",
        ),
        ({"wheelhouse": "nowhere"}, "wheelhouse: .*nowhere is no folder"),
        ({"wheelhouse": 3}, "wheelhouse: Expected `Path`, got `int`"),
        ({"ca": "nowhere"}, "ca: .*nowhere is no file of PEM certificates"),
        ({"offline": "yes"}, "offline: Expected `bool`, got `str`"),
        ({"index_url": "mirror/simple"}, r"index_url: Expected .*\^https\?://"),
        ({"index_url": "https://mirror\nextra-index-url = https://other"}, r"index_url: Expected .*x00-"),
        ({"http_proxy": "http://p\nPIP_NO_INDEX=0"}, r"http_proxy: Expected .*x00-"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, given: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=f"images in invoke.yaml: {says}"):
        definition.settings(given, tmp_path)
