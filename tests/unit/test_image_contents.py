"""The digest of an image's file system, on tars made here as an engine sends them: in pieces, in any order."""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deberta.core.errors import StageError
from deberta.host.images import contents, kept_digests
from deberta.host.images.contents import Entry


@dataclass(frozen=True)
class Member:
    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    link: str = ""
    time: int = 0


IMAGE = (
    Member("etc/", type=tarfile.DIRTYPE, mode=0o755),
    Member("etc/passwd", b"root\n"),
    Member("usr/bin/python3.11", b"\x7fELF" * 70_000, mode=0o755),
    Member("usr/bin/python", type=tarfile.SYMTYPE, link="python3.11"),
    Member("usr/bin/python3", type=tarfile.LNKTYPE, link="usr/bin/python3.11", mode=0o755),
    Member("opt/stages/a.py", b"a = 1\n", owner=(1000, 1000)),
)


def packed(members: tuple[Member, ...]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for member in members:
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.mode, entry.linkname, entry.mtime = member.type, member.mode, member.link, member.time
            (entry.uid, entry.gid), entry.size = member.owner, len(member.content)
            archive.addfile(entry, io.BytesIO(member.content))
    return target.getvalue()


def read(members: tuple[Member, ...], piece: int = 10_007) -> dict[str, Entry]:
    content = packed(members)

    def pieces() -> Iterator[bytes]:
        yield b""  # an engine may send nothing for a while
        for start in range(0, len(content), piece):
            yield content[start : start + piece]

    return contents.entries(contents._Chunks(pieces()))


def digest(members: tuple[Member, ...]) -> str:
    return contents.digest_of(read(members))


def changed(name: str, **values: object) -> tuple[Member, ...]:
    return tuple(replace(member, **values) if member.name == name else member for member in IMAGE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        (changed("etc/passwd", content=b"ROOT\n"), "/etc/passwd: sha256 "),
        (changed("etc/passwd", mode=0o4755), "/etc/passwd: mode 0644 and 4755"),
        (changed("etc/", mode=0o1777), "/etc: mode 0755 and 1777"),
        (changed("opt/stages/a.py", owner=(1000, 0)), "/opt/stages/a.py: owner 1000:1000 and 1000:0"),
        (changed("usr/bin/python", link="python3.9"), "/usr/bin/python: target python3.11 and python3.9"),
        (changed("usr/bin/python", type=tarfile.FIFOTYPE, link=""), "/usr/bin/python: kind link and pipe, target"),
        (IMAGE[:-1], "/opt/stages/a.py is only in the first"),
        ((*IMAGE, Member("opt/new")), "/opt/new is only in the second"),
    ],
)
def test_what_a_program_can_see_changes_the_digest_and_is_named(members: tuple[Member, ...], said: str) -> None:
    assert digest(members) != digest(IMAGE)
    [line] = contents.differences(read(IMAGE), read(members))
    assert line.startswith(said)


@pytest.mark.parametrize(
    "members",
    [
        tuple(replace(member, time=1_700_000_000) for member in IMAGE),
        (*IMAGE[:2], IMAGE[5], *IMAGE[2:5]),
        tuple(replace(m, name=f"./{m.name}", link=f"./{m.link}" if m == IMAGE[4] else m.link) for m in IMAGE),
        # Layers may part the two names of a file.
        (*IMAGE[:4], replace(IMAGE[2], name="usr/bin/python3"), IMAGE[5]),
        (
            *IMAGE,
            Member("opt/stages/__pycache__/", type=tarfile.DIRTYPE),
            Member("opt/stages/__pycache__/a.cpython-311.pyc", b"compiled"),
            Member("opt/stages/b.pyc", b"compiled"),
            *(Member(name, b"of this build") for name in ("var/log/dpkg.log", "var/log/apt/history.log")),
            *(Member(name, b"of this machine") for name in ("etc/hostname", "etc/resolv.conf", ".dockerenv")),
            Member("var/cache/ldconfig/aux-cache", b"times"),
            Member("dev/", type=tarfile.DIRTYPE),
            Member("dev/null", type=tarfile.CHRTYPE),
        ),
    ],
    ids=["times", "order", "leading-dot", "hard-link", "left-out"],
)
def test_when_where_and_in_what_order_does_not(members: tuple[Member, ...]) -> None:
    assert contents.differences(read(IMAGE), read(members)) == []
    assert digest(members) == digest(IMAGE)


def test_names_that_look_like_what_is_left_out_count() -> None:
    for name in ("opt/var/log/a", "etc/hosts.allow", "devices/a", "srv/a.pyc.txt", "etc/__pycache__.d/a"):
        assert digest((*IMAGE, Member(name))) != digest(IMAGE), name
    assert "var/log" in read((*IMAGE, Member("var/log/", type=tarfile.DIRTYPE)))


def test_the_form_of_the_digest_is_fixed() -> None:
    """Records hold it: another form needs another FORMAT."""
    assert contents.FORMAT == 1
    assert digest(IMAGE) == "adce0d8f47b60a4940ea74a969c24c237df7c27fe2bf713f888d73b530f590e9"
    assert digest(IMAGE) == contents.digest_of(dict(reversed(read(IMAGE).items())))


def test_a_stream_that_ends_too_early_is_no_digest() -> None:
    whole = packed(IMAGE)
    for content in (whole[: len(whole) // 2], whole[:100], b"no tar at all" * 100):
        with pytest.raises(StageError, match="could not be read"):
            contents.entries(io.BytesIO(content))
    lost = (Member("usr/bin/python3", type=tarfile.LNKTYPE, link="usr/bin/gone"),)
    with pytest.raises(StageError, match="which is not there"):
        read(lost)


class _Engine:
    """Has one container, whose file system it sends; counts how often it is asked."""

    asked = 0

    @property
    def containers(self) -> _Engine:
        return self

    @property
    def api(self) -> _Engine:
        return self

    def inspect_image(self, image: str) -> dict[str, int]:
        return {"Size": 500_000_000}

    def create(self, image: str, command: list[str], **options: object) -> _Engine:
        assert options["network_mode"] == "none"
        return self

    def export(self, chunk_size: int) -> Iterator[bytes]:
        self.asked += 1
        yield packed(IMAGE)

    def remove(self, **options: object) -> None:
        pass


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's digest of the image sha256:1 is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / kept_digests.NAME / contents.KEPT / "sha256:1"


def in_workspace(root: Path) -> Path:
    return root / ".cache" / contents.KEPT / "sha256:1"


def test_an_image_is_read_once_for_all_workspaces(kept: Path, tmp_path: Path) -> None:
    client = _Engine()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert contents.digest(client, "sha256:1", tmp_path / name) == digest(IMAGE)
    assert client.asked == 1 and not list(tmp_path.glob("[ab]/*"))
    assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700


def test_a_kept_digest_that_is_damaged_renamed_or_anybodys_is_none(kept: Path, tmp_path: Path) -> None:
    client = _Engine()
    contents.digest(client, "sha256:1", tmp_path)
    text, forged = kept.read_text(), "0" * 64
    spoiled = ("", text[1:], f"{text}\n", text.replace(" sha256:1", " sha256:2"), text.partition(" ")[0] + "\n")
    for content, mode in (*((content, 0o600) for content in spoiled), (f"{forged} sha256:1\n", 0o620), (text, 0o602)):
        kept.write_text(content)
        kept.chmod(mode)
        client.asked = 0
        assert contents.digest(client, "sha256:1", tmp_path) == digest(IMAGE)
        assert client.asked == 1 and kept.read_text() == text and kept.stat().st_mode & 0o777 == 0o600
    kept.unlink()
    os.mkfifo(kept)
    assert contents.digest(client, "sha256:1", tmp_path) == digest(IMAGE)
    owner = [place._replace(owners=(54321,)) for place in kept_digests.places(tmp_path, contents.KEPT)]
    assert kept_digests.read(owner, "sha256:1") is None


@pytest.mark.parametrize("how", ["open to others", "a file", "no home"])
def test_where_the_home_does_not_do_the_workspace_keeps_it(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    if how == "open to others":
        kept.parent.mkdir(parents=True)
        kept.parent.chmod(0o777)
    elif how == "a file":
        kept.parent.parent.parent.write_text("")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    client = _Engine()
    for _ in range(2):
        assert contents.digest(client, "sha256:1", tmp_path) == digest(IMAGE)
    assert client.asked == 1 and in_workspace(tmp_path).is_file() and not kept.exists()
    assert not capsys.readouterr().err
    in_workspace(tmp_path).unlink()
    in_workspace(tmp_path).parent.chmod(0o777)
    assert contents.digest(client, "sha256:1", tmp_path) == digest(IMAGE)
    said = capsys.readouterr().err
    assert "cannot be kept" in said and f"others can write in {in_workspace(tmp_path).parent}" in said


def test_reading_a_large_image_is_shown(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.monotonic", itertools.count().__next__)
    contents.digest(_Engine(), "sha256:1", tmp_path, "the export image")
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("[progress] hashing what is in the export image: 0/500 MB ")
    assert last.startswith("[progress] hashing what is in the export image: 500/500 MB ")
