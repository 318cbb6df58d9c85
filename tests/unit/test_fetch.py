"""`fetch` over HTTP, against a local server: broken transfers, wrong files, redirects, full disks."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from deberta.core.errors import DataError, MissingError, StageError
from deberta.host.fetch import archives
from deberta.host.fetch import download as http
from deberta.host.fetch.sources import Copy
from tests.fetch_helpers import (
    BIN,
    CHECKPOINT,
    HEADER,
    MNLI_ZIP,
    TORCH_BYTES,
    TSVS,
    Run,
    checkpoint,
    mnli,
    sha,
    zipped,
)
from tests.fetch_server import Page, Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> Run:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return Run(workspace)


def test_whole_file_recorded_then_skipped_then_enforced(server: Server, run: Run) -> None:
    server.pages["/f.bin"] = Page(TORCH_BYTES)
    sources = checkpoint(server.url("/f.bin?signature=secret"))
    run(sources)
    assert run.files() == [CHECKPOINT] and run.read(CHECKPOINT) == TORCH_BYTES
    entry = run.record(CHECKPOINT)
    assert (entry["sha256"], entry["bytes"], entry["url"], entry["trust"]) == (
        sha(TORCH_BYTES), len(TORCH_BYTES), server.url("/f.bin"), "first use",
    )  # fmt: skip
    assert any("first use: recorded sha256" in line and "colleague" in line for line in run.said)
    assert "secret" not in " ".join(run.said) + run.read("models/mnli/fetched.json").decode()

    run.said.clear()
    run(sources)
    assert len(server.seen) == 1
    assert "already there, sha256 matches the recorded hash" in run.said[0]

    (run.workspace / CHECKPOINT).unlink()
    server.pages["/f.bin"].body = other = TORCH_BYTES[:-1] + b"?"
    with pytest.raises(
        DataError, match=rf"recorded on .*fetched\.json.*{sha(TORCH_BYTES)}.*{sha(other)}.*--accept-new"
    ):
        run(sources)
    assert run.files() == []
    run(sources, accept_new=True)
    assert run.read(CHECKPOINT) == other and run.record(CHECKPOINT)["sha256"] == sha(other)


@pytest.mark.parametrize("etag, modified", [('"v1"', ""), ("", "Tue, 15 Nov 2022 12:45:26 GMT"), ('W/"v1"', "")])
def test_truncated_download_is_resumed_where_the_version_is_known(
    server: Server, run: Run, etag: str, modified: str
) -> None:
    server.pages["/f.bin"] = Page(TORCH_BYTES, etag=etag, modified=modified, cuts=[200_000])
    run(checkpoint(server.url("/f.bin")))
    assert run.read(CHECKPOINT) == TORCH_BYTES and run.files() == [CHECKPOINT]
    first, second = server.seen
    assert first.range is None and run.waits == [1.0]
    if etag.startswith("W/"):  # a weak ETag cannot promise the same bytes
        assert second.range is None
    else:
        assert second.range is not None and 0 < int(second.range[6:-1]) <= 200_000
        assert second.if_range == (etag or modified)


def test_a_later_run_resumes_and_another_file_is_not_mixed_in(server: Server, run: Run) -> None:
    page = server.pages["/f.bin"] = Page(TORCH_BYTES, cuts=[131_072] * 3, ranges=False)
    with pytest.raises(MissingError, match="the connection ended early"):
        run(checkpoint(server.url("/f.bin")))
    assert run.files() == [f"models/mnli/{BIN}.part", f"models/mnli/{BIN}.part.json"]
    assert run.waits == [1.0, 2.0]
    page.body, page.etag, page.ranges = TORCH_BYTES[::-1].replace(b"\x01", b"\x02", 1), '"v2"', True
    page.body = b"\x80\x02" + page.body
    run(checkpoint(server.url("/f.bin")))
    assert server.seen[-1].range and server.seen[-1].if_range == '"v1"'  # asked for the rest, got the new file whole
    assert run.read(CHECKPOINT) == page.body


def test_pieces_that_do_not_fit_are_fetched_again_whole(server: Server, run: Run) -> None:
    page = server.pages["/f.bin"] = Page(b"\x80\x02" + b"?" * 300_000, cuts=[131_072] * 3)
    sources = checkpoint(Copy(server.url("/f.bin"), sha(TORCH_BYTES)))
    page.ranges = False
    with pytest.raises(MissingError):
        run(sources)
    page.body, page.ranges = TORCH_BYTES, True  # the server changed the file, but not its ETag
    run(sources)
    assert run.read(CHECKPOINT) == TORCH_BYTES and server.ranges()[-2:] == ["bytes=131072-", None]


def test_server_without_ranges_or_with_a_wrong_range_starts_over(server: Server, run: Run) -> None:
    server.pages["/f.bin"] = Page(TORCH_BYTES, cuts=[200_000], ranges=False)
    run(checkpoint(server.url("/f.bin")))
    assert run.read(CHECKPOINT) == TORCH_BYTES
    (run.workspace / CHECKPOINT).unlink()
    server.pages["/f.bin"] = Page(TORCH_BYTES, cuts=[200_000], wrong_range=True)
    run(checkpoint(server.url("/f.bin")))
    assert run.read(CHECKPOINT) == TORCH_BYTES and server.ranges()[-1] is None


@pytest.mark.parametrize("rest", [b"", b"more than there is"])
def test_416_for_a_part_that_is_whole_or_too_long(server: Server, run: Run, rest: bytes) -> None:
    folder = run.workspace / "models/mnli"
    folder.mkdir(parents=True)
    part = folder / f"{BIN}.part"
    part.write_bytes(TORCH_BYTES + rest)
    version = {"url": server.url("/f.bin"), "final_url": server.url("/f.bin"), "etag": '"v1"', "modified": ""}
    http.sidecar_of(part).write_text(json.dumps({**version, "total": -1}))
    server.pages["/f.bin"] = Page(TORCH_BYTES)
    run(checkpoint(server.url("/f.bin")))
    assert run.files() == [CHECKPOINT] and run.read(CHECKPOINT) == TORCH_BYTES
    assert server.ranges() == [f"bytes={len(TORCH_BYTES + rest)}-", *([None] if rest else [])]


def test_corrupt_download_is_removed_and_said(server: Server, run: Run) -> None:
    server.pages["/f.bin"] = Page(TORCH_BYTES[:-1] + b"?")
    with pytest.raises(DataError, match=f"expected {sha(TORCH_BYTES)}, found .*the file was removed"):
        run(checkpoint(Copy(server.url("/f.bin"), sha(TORCH_BYTES))))
    assert run.files() == [] and len(server.seen) == 1


def test_html_page_is_not_taken_for_the_file(server: Server, run: Run) -> None:
    server.pages["/f.bin"] = Page(b"\n<!DOCTYPE html><p>Log in" + b" " * 5_000_000)
    with pytest.raises(DataError, match="HTML or XML page, not a PyTorch checkpoint"):
        run(checkpoint(server.url("/f.bin")))
    assert run.files() == []


def test_connection_that_ends_without_a_length_leaves_a_cut_zip(server: Server, run: Run) -> None:
    whole = zipped({"archive/data.pkl": os.urandom(50_000)}, zipfile.ZIP_STORED)
    server.pages["/f.bin"] = Page(whole, length=False, cuts=[30_000])
    with pytest.raises(DataError, match="cut-off"):
        run(checkpoint(server.url("/f.bin")))
    assert run.files() == []
    run(checkpoint(server.url("/f.bin")))
    assert run.read(CHECKPOINT) == whole


def test_redirects(server: Server, run: Run) -> None:
    server.pages.update({"/a": Page(location="/b"), "/b": Page(location=server.url("/real?token=t"))})
    server.pages["/real"] = Page(TORCH_BYTES, cuts=[200_000])
    run(checkpoint(server.url("/a")))
    assert run.record(CHECKPOINT)["url"] == server.url("/real")
    assert [request.path for request in server.seen] == ["/a", "/b", "/real?token=t"] * 2
    assert run.read(CHECKPOINT) == TORCH_BYTES
    (run.workspace / CHECKPOINT).unlink()
    server.pages["/real"] = Page(location="/a")
    server.pages["/file"] = Page(location="file:///etc/passwd")
    with pytest.raises(MissingError, match=r"more than 10 redirects.*file:///etc/passwd, which is not http"):
        run(checkpoint(server.url("/a"), server.url("/file")))
    assert run.files() == []


def test_redirect_policy() -> None:
    assert http.redirect_target("https://a/x", "/y") == "https://a/y"
    assert http.redirect_target("http://a/x", "https://b/y") == "https://b/y"
    assert http.redirect_target("https://a/x", "//b/y") == "https://b/y"
    for location in ("http://a/x", "ftp://a/x", "data:,x", "http:///x"):
        with pytest.raises(http.DownloadFailed, match="redirected"):
            http.redirect_target("https://a/x", location)


def test_retries_then_the_next_place_then_mirrors(server: Server, run: Run) -> None:
    server.pages["/busy"] = Page(TORCH_BYTES, statuses=[500, 503])
    run(checkpoint(server.url("/gone"), server.url("/busy")))
    assert [request.path for request in server.seen] == ["/gone", "/busy", "/busy", "/busy"]
    assert run.waits == [1.0, 2.0] and run.read(CHECKPOINT) == TORCH_BYTES
    (run.workspace / CHECKPOINT).unlink()
    server.seen.clear()
    server.pages[f"/mirror/{BIN}"] = Page(TORCH_BYTES)
    run(checkpoint(server.url("/gone")), mirrors=(server.url("/mirror/"),))
    assert [request.path for request in server.seen] == [f"/mirror/{BIN}"]


def test_slow_server_is_given_up_and_resumed(server: Server, run: Run) -> None:
    run.settings = dataclasses.replace(run.settings, read=0.3)
    page = server.pages["/f.bin"] = Page(TORCH_BYTES, pause=1.0)
    run.settings = dataclasses.replace(run.settings, sleep=lambda seconds: setattr(page, "pause", 0.0))
    run(checkpoint(server.url("/f.bin")))
    assert "no data for 0.3 s" in " ".join(run.said) and server.ranges()[1] is not None
    assert run.read(CHECKPOINT) == TORCH_BYTES


def test_unreachable_network_names_each_url_and_the_way_out(run: Run) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        urls = [f"http://127.0.0.1:{port}/{name}" for name in "ab"]
        with pytest.raises(MissingError) as error:
            run(checkpoint(*urls))
    for url in urls:
        assert f"{url}: [Errno 111] Connection refused" in str(error.value)
    assert str(error.value).endswith(f"copy the file ({BIN}) from another machine and run: invoke fetch --from DIR")
    assert "\n" not in str(error.value) and run.files() == [] and run.waits == [1.0, 2.0] * 2


def test_interrupt_leaves_the_part_only(server: Server, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    server.pages["/f.bin"] = Page(TORCH_BYTES, cuts=[200_000])

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    normal, run.settings = run.settings, dataclasses.replace(run.settings, sleep=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint(server.url("/f.bin")))
    assert run.files() == [f"models/mnli/{BIN}.part", f"models/mnli/{BIN}.part.json"]
    run.settings = normal
    run(checkpoint(server.url("/f.bin")))
    assert run.files() == [CHECKPOINT] and server.ranges()[1] is not None


def test_two_runs_do_not_write_one_part(server: Server, run: Run) -> None:
    server.pages["/f.bin"] = Page(TORCH_BYTES)
    part = run.workspace / "models/mnli" / f"{BIN}.part"
    part.parent.mkdir(parents=True)
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.flock(f, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(StageError, match="another run"):
            run(checkpoint(server.url("/f.bin")))
        other.communicate()
    run(checkpoint(server.url("/f.bin")))


# --- disk ---


def test_too_little_space_is_said_before_the_download(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages["/f.bin"] = Page(TORCH_BYTES)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 30, 1 << 30, 1 << 17))
    with pytest.raises(StageError, match=r"needs 0\.3 MiB in .*models/mnli, and 0\.1 MiB are free"):
        run(checkpoint(server.url("/f.bin")))
    assert CHECKPOINT not in run.files()


def test_full_disk_leaves_nothing_that_looks_finished(server: Server, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=128k", "tmpfs"]
    if mount is None or subprocess.run([mount, *options, str(small)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        run = Run(small)
        server.pages["/f.bin"] = Page(TORCH_BYTES, length=False)  # no length, so only the write can fail
        with pytest.raises(StageError, match=r"disk is full \(.*\.part\)"):
            run(checkpoint(server.url("/f.bin")))
        assert run.files() == [f"models/mnli/{BIN}.part", f"models/mnli/{BIN}.part.json"]
        archive = tmp_path / "MNLI.zip"
        archive.write_bytes(zipped(dict.fromkeys(TSVS, HEADER + b"\0" * 200_000)))
        with pytest.raises(StageError, match=r"unpacking MNLI\.zip needs|disk is full"):
            run(mnli(Copy("http://127.0.0.1:9/MNLI.zip")), from_dir=tmp_path)
        assert not [name for name in run.files() if name.endswith(".tsv") or ".tmp-" in name]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_full_disk_while_unpacking(server: Server, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    server.pages["/MNLI.zip"] = Page(MNLI_ZIP)

    def full(archive: Path, wanted: dict[str, Path]) -> None:
        next(iter(wanted.values())).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    sources = mnli(Copy(server.url("/MNLI.zip")))
    with monkeypatch.context() as patched, pytest.raises(StageError, match="disk is full"):
        patched.setattr(archives, "extract", full)
        run(sources)
    assert run.files() == ["data/mnli/MNLI.zip.part", "data/mnli/MNLI.zip.part.json"]
    run(sources)
    assert len(server.seen) == 1 and run.files() == sorted(f"data/mnli/{name}" for name in TSVS)
