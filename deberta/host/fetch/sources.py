"""What `fetch` can get, as data: the files, their URLs, and the published hashes.

A `Product` is a file in the workspace. It comes from a `Download`, which a host serves: the file itself or a zip that
holds it. A download has one or more `Copy`s, which are tried in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from deberta.core.contract import DEV_FILES
from deberta.core.paths import Artifacts

PRETRAINED = PurePosixPath("models", "pretrained", "deberta-v3-base")
RECORD = "fetched.json"

# Kinds of file, by what their bytes start with.
TORCH, ZIP, SENTENCEPIECE, JSON, TSV = "PyTorch checkpoint", "zip", "SentencePiece model", "JSON file", "tsv"
HEAD_BYTES = 4096


@dataclass(frozen=True)
class Product:
    """A file in the workspace: `path` is below the profile's `models` or `data` folder, or below `pretrained`."""

    root: str
    path: str
    kind: str
    sha256: str | None = None  # published: binding for every copy
    optional: bool = False  # only `finetune` needs it: an offline folder may lack it

    def target(self, profile: str) -> PurePosixPath:
        """The file's path relative to the workspace."""
        return root_folder(self.root, profile) / self.path


@dataclass(frozen=True)
class Copy:
    """A URL of a download; a published `sha256` of this copy alone."""

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class Download:
    """A file under the name that it has on hosts and in offline folders."""

    name: str
    kind: str
    copies: tuple[Copy, ...]
    about_bytes: int = 0  # for the disk check if the server gives no length; not enforced

    @property
    def published(self) -> tuple[str, ...]:
        return tuple(copy.sha256 for copy in self.copies if copy.sha256)


@dataclass(frozen=True)
class Item:
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


_GUIDE_MODELS = (
    "https://ascend-pytorch-model-file.obs.cn-north-4.myhuaweicloud.com"
    "/%E9%AA%8C%E6%94%B6-%E6%8E%A8%E7%90%86/nlp/Deberta/"
)
_GUIDE_DATA = "https://ascend-pytorch-one-datasets.obs.cn-north-4.myhuaweicloud.com/infer/MNLI/"
_PRETRAINED = "https://huggingface.co/microsoft/deberta-v3-base/resolve/main/"
_CHECKPOINT = "pytorch.model-073631.bin"
_SPM_SHA256 = "c679fbf93643d19aab7ee10c0b99e460bdbc02fedf34b92b05af343b4af586fd"
_MNLI_SHA256 = "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633"


def _single(name: str, product: Product, url: str, about_bytes: int = 0) -> Item:
    copy = Copy(url, product.sha256)
    return Item(name, (product,), (Download(product.path, product.kind, (copy,), about_bytes),))


GUIDE: Sources = (
    _single("checkpoint", Product("models", _CHECKPOINT, TORCH), _GUIDE_MODELS + _CHECKPOINT, 739_000_000),
    Item(
        "tokenizer",
        (Product("models", "spm.model", SENTENCEPIECE, _SPM_SHA256),),
        (
            # A transformers cache of 2022: files named by hashes, so spm.model is found in it by its own hash.
            Download("pre_deberta.zip", ZIP, (Copy(_GUIDE_MODELS + "pre_deberta.zip"),)),
            Download("spm.model", SENTENCEPIECE, (Copy(_PRETRAINED + "spm.model", _SPM_SHA256),), 2_464_616),
        ),
    ),
    Item(
        "mnli",
        (
            *(Product("data", f"MNLI/{name}", TSV) for name in DEV_FILES.values()),
            Product("data", "MNLI/train.tsv", TSV, optional=True),
        ),
        (
            Download(
                "MNLI.zip",
                ZIP,
                (
                    Copy("https://dl.fbaipublicfiles.com/glue/data/MNLI.zip", _MNLI_SHA256),
                    Copy(_GUIDE_DATA + "MNLI.zip"),
                ),
                312_783_507,
            ),
        ),
    ),
    _single("pretrained", Product("pretrained", "pytorch_model.bin", TORCH), _PRETRAINED + "pytorch_model.bin"),
    _single("pretrained", Product("pretrained", "spm.model", SENTENCEPIECE, _SPM_SHA256), _PRETRAINED + "spm.model"),
    _single("pretrained", Product("pretrained", "config.json", JSON), _PRETRAINED + "config.json"),
)
ON_DEMAND = ("pretrained",)
