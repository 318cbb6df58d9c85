"""What `fetch` does with files: those already there, archives (hostile ones too), and offline folders."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.host.fetch import archives
from deberta.host.fetch.fetch import fetch
from deberta.host.fetch.sources import GUIDE, SENTENCEPIECE, ZIP, Copy, Download
from tests.fetch_helpers import (
    BIN,
    CHECKPOINT,
    HEADER,
    MNLI_ZIP,
    SPM_BYTES,
    TORCH_BYTES,
    TSVS,
    Run,
    checkpoint,
    mnli,
    old_cache,
    sha,
    tokenizer,
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


# --- what is there already ---


def test_existing_file_is_never_overwritten(server: Server, run: Run, tmp_path: Path) -> None:
    server.pages["/spm.model"] = Page(SPM_BYTES)
    download = Download("spm.model", SENTENCEPIECE, (Copy(server.url("/spm.model"), sha(SPM_BYTES)),))
    target = run.workspace / "models/mnli/spm.model"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"\x0a other")
    for accept_new in (False, True):  # a published hash is not a matter of taste
        with pytest.raises(
            DataError, match=rf"already, but.*expected {sha(SPM_BYTES)}, found .*left alone.*move it away"
        ):
            run(tokenizer(download), accept_new=accept_new)
    assert target.read_bytes() == b"\x0a other" and server.seen == []

    ours = run.workspace / CHECKPOINT
    ours.write_bytes(TORCH_BYTES)
    sources = checkpoint(server.url("/f.bin"))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / BIN).write_bytes(TORCH_BYTES + b"?")
    with pytest.raises(DataError, match="already and differs from"):
        run(sources, from_dir=folder)
    run(sources)  # nothing was recorded, so this one is
    assert run.record(CHECKPOINT)["url"] == "already there"
    ours.write_bytes(TORCH_BYTES + b"!")
    with pytest.raises(DataError, match="recorded on"):
        run(sources)
    run(sources, accept_new=True)
    assert run.record(CHECKPOINT)["sha256"] == sha(TORCH_BYTES + b"!") and server.seen == []
    ours.write_bytes(b"")
    with pytest.raises(DataError, match="it is empty"):
        run(sources, accept_new=True)
    ours.unlink()
    ours.mkdir()
    with pytest.raises(DataError, match="is not a file"):
        run(sources)


def test_damaged_record_is_an_error(run: Run) -> None:
    record = run.workspace / "models/mnli/fetched.json"
    record.parent.mkdir(parents=True)
    (record.parent / BIN).write_bytes(TORCH_BYTES)
    for text in (b"{", b"[]", b'{"files": {"a": {}}}', b'{"files": 3}', b'{"files": "\xff"}', b'{"a":' * 10**5):
        record.write_bytes(text)
        with pytest.raises(DataError, match="is not a record of fetched files"):
            run(checkpoint("http://127.0.0.1:9/f.bin"))


# --- archives ---


def test_mnli_zip_from_the_network(server: Server, run: Run) -> None:
    server.pages["/MNLI.zip"] = Page(MNLI_ZIP)
    server.pages["/bad.zip"] = Page(MNLI_ZIP[:-1] + b"?")
    # The first place's hash is published and differs; the second has none, so its first use is recorded.
    sources = mnli(Copy(server.url("/bad.zip"), sha(b"other")), Copy(server.url("/MNLI.zip")))
    run(sources)
    assert run.files() == sorted(f"data/mnli/{name}" for name in TSVS)
    assert all(run.read(f"data/mnli/{name}") == content for name, content in TSVS.items())
    assert run.record("MNLI.zip")["sha256"] == sha(MNLI_ZIP)
    assert run.record("data/mnli/MNLI/train.tsv")["url"] == server.url("/MNLI.zip") + "#MNLI/train.tsv"
    run(sources)
    assert len(server.seen) == 2
    # One file is gone, and the archive now holds another.
    (run.workspace / "data/mnli/MNLI/train.tsv").unlink()
    server.pages["/MNLI.zip"] = Page(zipped({**TSVS, "MNLI/train.tsv": HEADER + b"changed"}))
    with pytest.raises(DataError, match=r"MNLI\.zip: its sha256 is not the one recorded"):
        run(sources)
    assert "data/mnli/MNLI/train.tsv" not in run.files() and len(run.files()) == 2


def test_unrecorded_file_beside_a_download_must_be_equal(server: Server, run: Run) -> None:
    server.pages["/MNLI.zip"] = Page(MNLI_ZIP)
    mine = run.workspace / "data/mnli/MNLI/dev_matched.tsv"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(HEADER + b"my own")
    with pytest.raises(DataError, match=r"dev_matched\.tsv is there already and differs"):
        run(mnli(Copy(server.url("/MNLI.zip"))))
    assert mine.read_bytes() == HEADER + b"my own"
    assert [name for name in run.files() if name.endswith(".tsv")] == ["data/mnli/MNLI/dev_matched.tsv"]
    mine.write_bytes(TSVS["MNLI/dev_matched.tsv"])
    run(mnli(Copy(server.url("/MNLI.zip"))))
    assert len(server.seen) == 1 and len(run.files()) == 3  # the archive was kept for this


@pytest.mark.parametrize("as_zip", [True, False])
def test_spm_model_in_an_old_transformers_cache(server: Server, run: Run, tmp_path: Path, as_zip: bool) -> None:
    if as_zip:
        server.pages["/pre_deberta.zip"] = Page(zipped(old_cache()))
        run(tokenizer(Download("pre_deberta.zip", ZIP, (Copy(server.url("/pre_deberta.zip")),))))
    else:
        for name, content in old_cache().items():
            path = tmp_path / "offline" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        run(tokenizer(), from_dir=tmp_path / "offline")
        assert server.seen == []
    assert run.read("models/mnli/spm.model") == SPM_BYTES and run.files() == ["models/mnli/spm.model"]
    assert run.record("models/mnli/spm.model")["trust"] == "published hash"


def test_cache_without_the_right_file_is_listed(run: Run, tmp_path: Path) -> None:
    offline = tmp_path / "offline"
    offline.mkdir()
    (offline / "pre_deberta.zip").write_bytes(zipped(old_cache(b"\x0a another model")))
    with pytest.raises(DataError, match=f"no file with the sha256 of spm.model, {sha(SPM_BYTES)}"):
        run(tokenizer(Download("pre_deberta.zip", ZIP, (Copy("http://127.0.0.1:9/"),))), from_dir=offline)
    listed = [line for line in run.said if "resolve/main/spm.model" in line]
    assert len(listed) == 1 and sha(b"\x0a another model") in listed[0]


def evil(kind: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in TSVS.items():
            archive.writestr(name, content)
        if kind != "twice":
            archive.writestr(kind, b"evil")
        else:
            with pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("MNLI/train.tsv", b"evil")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["../evil", "MNLI/../../evil", "/etc/evil", "C:/evil", "..\\evil", "\\evil", "twice"])
def test_unsafe_names_refuse_the_whole_archive(server: Server, run: Run, name: str) -> None:
    server.pages["/MNLI.zip"] = Page(evil(name))
    with pytest.raises(DataError, match="refused, nothing was unpacked"):
        run(mnli(Copy(server.url("/MNLI.zip"))))
    assert run.files() == [] and not list(run.workspace.parent.glob("evil"))
    assert not (run.workspace / "models/mnli/fetched.json").exists()  # a refused archive is not the one to trust


def test_links_encryption_and_bombs(tmp_path: Path) -> None:
    path, target = tmp_path / "a.zip", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="no regular file link"):
        archives.extract(path, {"link": target})

    content = bytearray(zipped({"a": b"secret"}))
    for start in (content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8):
        content[start] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        archives.extract(path, {"a": target})

    path.write_bytes(zipped({"a": bytes(20 << 20)}))
    with pytest.raises(DataError, match="zip bomb"):
        archives.extract(path, {"a": target})
    with pytest.raises(DataError, match="unpacks to 20971520 bytes, more than 1000"):
        archives.extract(path, {"a": target}, archives.Limits(total=1000))
    with pytest.raises(DataError, match="1 entries, more than 0"):
        archives.extract(path, {"a": target}, archives.Limits(entries=0))
    path.write_bytes(zipped({"a": b"x"}, zipfile.ZIP_LZMA))
    with pytest.raises(DataError, match="packed by method 14"):
        archives.extract(path, {"a": target})
    assert not target.exists()


def test_any_damaged_byte_is_an_error_or_harmless(tmp_path: Path) -> None:
    """A flipped byte anywhere never gives other content, and never a traceback."""
    content = {"a.tsv": HEADER + bytes(range(64))}
    whole = zipped(content)
    path, target = tmp_path / "a.zip", tmp_path / "out"
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            archives.extract(path, {"a.tsv": target})
        except DataError:
            continue
        assert target.read_bytes() == content["a.tsv"]


# --- offline folders ---


def test_from_folder_copies_and_checks(run: Run, tmp_path: Path) -> None:
    offline = tmp_path / "offline"
    (offline / "MNLI").mkdir(parents=True)
    (offline / BIN).write_bytes(TORCH_BYTES)
    (offline / "spm.model").write_bytes(SPM_BYTES)
    for name in list(TSVS)[:2]:
        (offline / name).write_bytes(TSVS[name])
    nowhere = Copy("http://127.0.0.1:9/x")
    sources = (*checkpoint(nowhere), *tokenizer(), *mnli(nowhere))
    run(sources, from_dir=offline)
    copied = {CHECKPOINT: BIN, "models/mnli/spm.model": "spm.model"}
    copied.update({f"data/mnli/{name}": name for name in list(TSVS)[:2]})
    assert {key: run.record(key)["url"] for key in copied} == {key: str(offline / name) for key, name in copied.items()}
    assert any("train.tsv: not in" in line for line in run.said)
    target = run.workspace / CHECKPOINT
    assert not target.is_symlink() and target.stat().st_nlink == 1 and target.read_bytes() == TORCH_BYTES
    target.unlink()
    (offline / BIN).write_bytes(TORCH_BYTES + b"?")
    with pytest.raises(DataError, match="was not copied: its sha256 is not the one recorded"):
        run(sources, from_dir=offline)
    assert not target.exists()


def test_from_folder_with_the_zip_or_without_anything(run: Run, tmp_path: Path) -> None:
    sources = mnli(Copy("http://127.0.0.1:9/x", "0" * 64), Copy("http://127.0.0.1:9/y"))
    with pytest.raises(
        MissingError, match=r"has no MNLI/dev_matched\.tsv, .* nor MNLI\.zip\. .*then run: invoke fetch --from"
    ):
        run(sources, from_dir=tmp_path)
    (tmp_path / "MNLI.zip").write_bytes(MNLI_ZIP)
    with pytest.raises(MissingError, match=rf"has no {BIN}\. What it has was copied"):
        run((*checkpoint("http://127.0.0.1:9/z"), *sources), from_dir=tmp_path)
    assert len(run.files()) == 3 and (tmp_path / "MNLI.zip").read_bytes() == MNLI_ZIP
    with pytest.raises(ConfigError, match="is not a folder"):
        run(sources, from_dir=tmp_path / "nothing")


# --- the command's words, and the guide's own list ---


def test_bad_words(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"does not know 'models'.*checkpoint, tokenizer, mnli, pretrained"):
        run(GUIDE, names=("models",))
    with pytest.raises(ConfigError, match="--mirror 'ftp://x'"):
        run(GUIDE, mirrors=("ftp://x",))
    with pytest.raises(ConfigError, match="nothing to fetch"):
        fetch(run.workspace, "demo")


def test_the_guides_files() -> None:
    products = [product for item in GUIDE for product in item.products]
    assert [str(product.target("mnli")) for product in products] == [
        CHECKPOINT,
        "models/mnli/spm.model",
        "data/mnli/MNLI/dev_matched.tsv",
        "data/mnli/MNLI/dev_mismatched.tsv",
        "data/mnli/MNLI/train.tsv",
        "models/pretrained/deberta-v3-base/pytorch_model.bin",
        "models/pretrained/deberta-v3-base/spm.model",
        "models/pretrained/deberta-v3-base/config.json",
    ]
    assert all(copy.url.startswith("https://") for item in GUIDE for d in item.downloads for copy in d.copies)
    for item in GUIDE:  # a single file has one product; only archives serve several
        assert len(item.products) == 1 or all(download.kind == ZIP for download in item.downloads)
