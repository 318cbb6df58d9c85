"""What the tests of `fetch` share: small files of each kind, sources that point at a test's server, and a caller."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Optional, Union

from deberta.host.fetch import download as http
from deberta.host.fetch.fetch import fetch
from deberta.host.fetch.sources import SENTENCEPIECE, TORCH, TSV, ZIP, Copy, Download, Item, Product, Sources

CHECKPOINT = "models/mnli/pytorch.model-073631.bin"
BIN = "pytorch.model-073631.bin"
TORCH_BYTES = b"\x80\x02" + bytes(range(256)) * 1200  # 300 KiB, looks like torch.save's old format
SPM_BYTES = b"\x0a\x0e\x0a\x05<unk>" + bytes(range(256)) * 20
HEADER = b"index\tpromptID\tgold_label\n"
TSVS = {f"MNLI/{name}.tsv": HEADER + name.encode() * 99 for name in ("dev_matched", "dev_mismatched", "train")}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def zipped(content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def old_cache(spm: bytes = SPM_BYTES) -> dict[str, bytes]:
    """A transformers cache of 2022: names are hashes, a sidecar tells the url, a lock file stays."""
    content = {}
    for name, data in (("config.json", b'{"model_type": "deberta-v2"}'), ("spm.model", spm)):
        url = f"https://huggingface.co/microsoft/deberta-v3-base/resolve/main/{name}"
        stem = f"pre_deberta/{sha(url.encode())}.{sha(data)}"
        sidecar = json.dumps({"url": url, "etag": '"1"'}).encode()
        content.update({stem: data, f"{stem}.json": sidecar, f"{stem}.lock": b""})
    return content


MNLI_ZIP = zipped({**TSVS, "MNLI/test_matched.tsv": b"x", "MNLI/original/README": b"y", "__MACOSX/._MNLI": b"z"})


def checkpoint(*urls: Union[str, Copy]) -> Sources:
    copies = tuple(url if isinstance(url, Copy) else Copy(url) for url in urls)
    return (Item("checkpoint", (Product("models", BIN, TORCH),), (Download(BIN, TORCH, copies),)),)


def tokenizer(*downloads: Download) -> Sources:
    return (Item("tokenizer", (Product("models", "spm.model", SENTENCEPIECE, sha(SPM_BYTES)),), downloads),)


def mnli(*copies: Copy) -> Sources:
    products = tuple(Product("data", name, TSV, optional="train" in name) for name in TSVS)
    return (Item("mnli", products, (Download("MNLI.zip", ZIP, copies),)),)


class Run:
    """Calls fetch in one workspace, without waiting, and keeps what it says."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.said: list[str] = []
        self.waits: list[float] = []
        self.settings = http.DownloadSettings(connect=2, read=2, sleep=self.waits.append)

    def __call__(
        self,
        sources: Sources,
        names: tuple[str, ...] = (),
        from_dir: Optional[Path] = None,
        mirrors: tuple[str, ...] = (),
        accept_new: bool = False,
    ) -> None:
        fetch(
            self.workspace,
            "mnli",
            names,
            from_dir=from_dir,
            mirrors=mirrors,
            accept_new=accept_new,
            sources=sources,
            settings=self.settings,
            show=self.said.append,
        )

    def read(self, name: str) -> bytes:
        return (self.workspace / name).read_bytes()

    def files(self) -> list[str]:
        """Every file in the workspace but the record."""
        paths = [path.relative_to(self.workspace) for path in self.workspace.rglob("*") if not path.is_dir()]
        return sorted(str(path) for path in paths if path.name != "fetched.json")

    def record(self, key: str) -> dict[str, object]:
        entry = json.loads(self.read("models/mnli/fetched.json"))["files"][key]
        assert isinstance(entry, dict)
        return entry
