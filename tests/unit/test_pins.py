"""docker/pins.toml: refused unless it is whole, and rewritten without losing a word that people wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

import pytest

from deberta.core import files
from deberta.core.errors import ConfigError, MissingError
from deberta.core.machine import PLATFORMS
from deberta.host.images import definition, pins
from tests.image_helpers import ARCH, bring, elf, make_project
from tests.mnli_helpers import REPOSITORY

DIGEST = f"sha256:{'a' * 64}"
RUN = "Ascend-cann-toolkit_5.1.RC2_linux-x86_64.run"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def text_of(project: Path) -> str:
    return (project / pins.PINS).read_text(encoding="utf-8")


def test_the_machines_of_pins_are_those_of_the_project() -> None:
    assert dict(zip(get_args(pins.Architecture), get_args(pins.Platform), strict=True)) == PLATFORMS


def test_the_committed_pins_are_of_the_committed_locks() -> None:
    for entry in pins.load(REPOSITORY).locks.values():
        assert files.sha256_of(REPOSITORY / entry.file) == entry.sha256, f"{entry.file}: run invoke images --lock"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[base.export]", "[base.extra]", "base: Object contains unknown field `extra`"),
        (
            "[lock.export]",
            "[locks.export]",
            "field `locks`, which is not one of: source_date_epoch, base, lock, cann, msame, deb, wheel",
        ),
        ('image = "debian', 'tag = "1"\nimage = "debian', "base.runtime: Object contains unknown field `tag`"),
        ('digest = "sha256:', 'digest = "sha1:', r"base.export.digest: Expected .*\^sha256:\[0-9a-f\]\{64\}"),
        ('digest = "sha256:', '# digest = "', "base.export: Object missing required field `digest`"),
        ("source_date_epoch = ", "source_date_epoch = 1", "source_date_epoch: Expected `int` <= "),
        ('sha256 = "', 'sha256 = "z', r"lock.export.sha256: Expected .*\[0-9a-f\]\{64\}"),
        ("[base.export]", "[base.export", "is not TOML"),
        ("[lock.export]", '[cann."x.run"]\n[lock.export]', 'cann."x.run": Object missing required field `sha256`'),
        ("[lock.export]", '[msame.mips]\nsha256 = ""\n[lock.export]', "msame: Invalid enum value 'mips'"),
        (
            "[lock.export]",
            f'[deb.compile."x"]\nsha256 = "{"a" * 63}"\n[lock.export]',
            r'deb.compile."x": sha256: Expected .*\[0-9a-f\]\{64\}',
        ),
    ],
)
def test_what_is_not_understood_is_refused_and_not_rewritten(project: Path, old: str, new: str, says: str) -> None:
    changed = text_of(project).replace(old, new, 1)
    (project / pins.PINS).write_text(changed, encoding="utf-8")
    for act in (lambda: pins.load(project), lambda: pins.lock(project, None, ARCH)):
        with pytest.raises(ConfigError, match=rf"docker/pins\.toml.*{says}.*git checkout"):
            act()
    assert text_of(project) == changed


def test_a_missing_table_or_file(project: Path) -> None:
    head, _, tail = text_of(project).partition("[base.runtime]")
    (project / pins.PINS).write_text(head + tail[tail.index("[lock") :], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pins.toml: base: .* `runtime`"):
        pins.load(project)
    (project / pins.PINS).unlink()
    with pytest.raises(MissingError, match="git checkout"):
        pins.load(project)


def registries(digest: str = DIGEST, arm: bool = True) -> pins.Registries:
    """A tag's list is `digest`, and its images have the digests of these platforms' names, some of them."""
    known = {"linux/amd64": named("amd64"), **({"linux/arm64": named("arm64")} if arm else {})}
    return pins.Registries(lambda tag: digest, lambda tag, listed: known)


def named(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def test_lock_changes_values_alone(project: Path) -> None:
    before = text_of(project)
    lock = project / "requirements-stages.lock"
    old, new = files.sha256_of(lock), hashlib.sha256(b"two==2\n").hexdigest()
    lock.write_text("two==2\n", encoding="utf-8")
    said = pins.lock(project, pins.Registries(lambda tag: DIGEST, refuse), ARCH)  # type: ignore[arg-type]
    assert [line for line in said if "platforms" not in line][-1].startswith("lock.export: ") and len(said) == 7
    expected = before.replace(old, new, 1)  # both locks were alike
    for base in pins.load(project).bases.values():
        assert base.digest == DIGEST
    for line in before.splitlines():
        if line.startswith("digest = "):
            expected = expected.replace(line.split('"')[1], DIGEST)
    assert text_of(project) == expected
    assert not [line for line in pins.lock(project, registries(), ARCH) if "linux/" not in line]
    assert pins.lock(project, registries(), ARCH) == []


def refuse(*asked: str) -> str:
    raise MissingError(f"no network for {asked[0]}")


def test_lock_without_a_registry_keeps_the_digests_and_says_so(project: Path) -> None:
    before = text_of(project)
    said = pins.lock(project, pins.Registries(refuse, refuse), ARCH)  # type: ignore[arg-type]
    assert said[:2] == [
        "base.export: digest kept: no network for python:3.11-slim-bookworm",
        "base.export: digests of its platforms not recorded: no network for python:3.11-slim-bookworm",
    ]
    assert len(said) == 6 and text_of(project) == before


def test_lock_records_the_image_of_each_platform_and_forgets_those_of_another_list(project: Path) -> None:
    digest = pins.load(project).bases["runtime"].digest
    said = pins.lock(project, registries(digest), ARCH)
    assert f"base.runtime.linux/arm64: {named('arm64')}" in said
    bases = pins.load(project).bases
    assert bases["runtime"].platforms == {"linux/amd64": named("amd64"), "linux/arm64": named("arm64")}
    kept = pins.lock(project, pins.Registries(lambda tag: digest, refuse), ARCH)  # type: ignore[arg-type]
    assert kept[-1] == "base.runtime: digests of its platforms kept: no network for debian:bullseye-slim"
    assert pins.load(project).bases == bases
    said = pins.lock(project, registries(digest, arm=False), ARCH)
    assert said[-1] == f"base.runtime.linux/arm64: dropped, {digest} has no image for it"
    pins.lock(project, pins.Registries(lambda tag: DIGEST, refuse), ARCH)  # type: ignore[arg-type]
    assert {stage: dict(base.platforms) for stage, base in pins.load(project).bases.items()} == {
        key: {} for key in bases
    }


def test_an_image_has_the_digest_of_its_machine(project: Path) -> None:
    assert definition.plan(project, pins.load(project), "export", ARCH).base_digest == ""
    before = definition.plan(project, pins.load(project), "export", ARCH).tag
    pins.lock(project, registries(pins.load(project).bases["export"].digest), ARCH)
    for machine, name in (("x86_64", "amd64"), ("aarch64", "arm64")):
        assert definition.plan(project, pins.load(project), "export", machine).base_digest == named(name)
    assert definition.plan(project, pins.load(project), "export", ARCH).tag == before, "the list's digest covers it"
    pins.set_base(project, "export", DIGEST)
    assert definition.plan(project, pins.load(project), "export", ARCH).base_digest == ""


def test_lock_records_what_the_user_brought_and_forgets_what_cannot_be_elsewhere(project: Path) -> None:
    bring(project, pins.CANN / RUN, b"cann")
    bring(project, pins.MSAME, elf(0xB7))  # for another machine
    deb = bring(project, pins.DEBS / "compile" / "x_1.deb", b"deb")
    wheel = bring(project, pins.WHEELS / "ais_bench-0.0.2-py3-none-any.whl", b"wheel")
    found = pins.load(project)
    assert found.cann == {RUN: hashlib.sha256(b"cann").hexdigest()}
    assert list(found.msame) == ["aarch64"]
    assert found.debs == {"compile": {deb.name: hashlib.sha256(b"deb").hexdigest()}}
    assert found.wheels == {wheel.name: hashlib.sha256(b"wheel").hexdigest()}
    for path in (project / pins.CANN / RUN, project / pins.MSAME, deb, wheel):
        path.unlink()
    assert pins.lock(project, None, ARCH) == [
        "deb.compile.x_1.deb: dropped, the file is gone",
        f"wheel.compile.{wheel.name}: dropped, the file is gone",
    ]
    left = pins.load(project)
    assert (left.cann, left.msame, left.debs, left.wheels) == (found.cann, found.msame, {}, {})


def test_a_base_is_replaced_on_this_machine_and_put_back(project: Path) -> None:
    before = text_of(project)
    pins.set_base(project, "export", DIGEST, "our-python:3.11")
    pins.set_base(project, "compile", f"registry:5000/cann:5.1@{DIGEST}")
    bases = pins.load(project).bases
    assert bases["export"].reference == DIGEST
    assert bases["compile"].reference == f"registry:5000/cann:5.1@{DIGEST}"
    assert bases["runtime"].reference == f"debian@{bases['runtime'].digest}"
    assert "# our-python:3.11" in (project / pins.OVERRIDES).read_text(encoding="utf-8")
    for stage in ("export", "compile"):
        pins.set_base(project, stage, "pinned")
    assert not (project / pins.OVERRIDES).exists() and text_of(project) == before
    pins.set_base(project, "export", "pinned")  # nothing to take back


@pytest.mark.parametrize(
    ("stage", "value"), [("exprot", DIGEST), ("export", "python:3.11"), ("export", "sha256:abc"), ("export", "")]
)
def test_a_base_that_is_not_fixed_is_refused(project: Path, stage: str, value: str) -> None:
    with pytest.raises(ConfigError):
        pins.set_base(project, stage, value)
    assert not (project / pins.OVERRIDES).exists()


@pytest.mark.parametrize("text", ["[base]\nexport = 'python:3.11'\n", "[bases]\n", "[base]\nextra = 'x'\n", "base"])
def test_overrides_are_read_as_strictly(project: Path, text: str) -> None:
    (project / pins.OVERRIDES).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="overrides"):
        pins.load(project)


@pytest.mark.parametrize(
    ("content", "machine"),
    [(elf(0x3E), "x86_64"), (elf(0xB7), "aarch64"), (elf(8), "ELF machine 8"), (b"#!/bin/sh\n", None)],
)
def test_what_machine_a_program_is_for(tmp_path: Path, content: bytes, machine: str | None) -> None:
    path = tmp_path / "msame"
    path.write_bytes(content)
    assert pins.architecture_of(path) == machine


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"<html>"])
def test_what_is_no_program_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "msame").write_bytes(content)
    with pytest.raises(ConfigError, match="neither a program"):
        pins.architecture_of(tmp_path / "msame")
