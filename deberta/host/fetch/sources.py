"""What `fetch` can get, by sources.json: the files, their URLs, and the published hashes.

A `Product` is a file in the workspace. It comes from a `Download`, which a host serves: the file itself or a zip that
holds it. A download has one or more `Copy`s, which are tried in order.
pre_deberta.zip is a transformers cache of 2022, whose files are named by hashes: spm.model is known by its own hash.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Optional

import msgspec

from deberta.core.paths import Artifacts

PRETRAINED = PurePosixPath("models", "pretrained", "deberta-v3-base")
RECORD = "fetched.json"

# Kinds of file, by what their bytes start with.
TORCH, ZIP, SENTENCEPIECE, JSON, TSV = "PyTorch checkpoint", "zip", "SentencePiece model", "JSON file", "tsv"
HEAD_BYTES = 4096


class Product(msgspec.Struct, frozen=True):
    """A file in the workspace: `path` is below the profile's `models` or `data` folder, or below `pretrained`."""

    root: str
    path: str
    kind: str
    sha256: Optional[str] = None  # published: binding for every copy
    optional: bool = False  # only `finetune` needs it: an offline folder may lack it

    def target(self, profile: str) -> PurePosixPath:
        """The file's path relative to the workspace."""
        return root_folder(self.root, profile) / self.path


class Copy(msgspec.Struct, frozen=True):
    """A URL of a download; a published `sha256` of this copy alone."""

    url: str
    sha256: Optional[str] = None


class Download(msgspec.Struct, frozen=True):
    """A file under the name that it has on hosts and in offline folders."""

    name: str
    kind: str
    copies: tuple[Copy, ...]
    about_bytes: int = 0  # for the disk check if the server gives no length; not enforced


class Item(msgspec.Struct, frozen=True):
    """What one name on the command line gets: any one of the downloads gives every product."""

    name: str
    products: tuple[Product, ...]
    downloads: tuple[Download, ...]


Sources = tuple[Item, ...]


def root_folder(root: str, profile: str) -> PurePosixPath:
    """The folder, relative to the workspace, of the products whose root is `models`, `data` or `pretrained`."""
    artifacts = Artifacts(profile)
    return {"models": artifacts.models, "data": artifacts.data, "pretrained": PRETRAINED}[root]


def record_path(item: Item, profile: str) -> PurePosixPath:
    """The file of recorded hashes: one for a profile's checkpoint, tokenizer and data, one for the pretrained model."""
    pretrained = any(product.root == "pretrained" for product in item.products)
    return root_folder("pretrained" if pretrained else "models", profile) / RECORD


def wrong_start(kind: str, head: bytes) -> str | None:
    """Why the first bytes (up to HEAD_BYTES) are not those of a file of this kind; None if they may be."""
    if not head:
        return "it is empty"
    if head.lstrip()[:1] == b"<":
        return f"it is an HTML or XML page, not a {kind}"
    # torch.save writes a zip since PyTorch 1.6, and a bare pickle (protocol 2 and up: 0x80, protocol) before.
    # A SentencePiece model is a protobuf whose first field is number 1, length-delimited.
    fits = {
        TORCH: head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")),
        ZIP: head.startswith(b"PK\x03\x04"),
        SENTENCEPIECE: head.startswith(b"\x0a"),
        JSON: head.lstrip().startswith(b"{"),
        TSV: b"\t" in head,
    }
    return None if fits[kind] else f"it is not a {kind}: it starts with {head[:8]!r}"


GUIDE = msgspec.json.decode(Path(__file__).with_name("sources.json").read_bytes(), type=Sources)
ON_DEMAND = ("pretrained",)
