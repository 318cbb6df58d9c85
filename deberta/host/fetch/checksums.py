"""The checks before `fetch` accepts a file: its form, its SHA-256 (published, or recorded at first use), its place."""

from __future__ import annotations

import os
import zipfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple

import msgspec

from deberta.core import files, schema
from deberta.core.errors import DataError
from deberta.host.fetch.download import DownloadSettings
from deberta.host.fetch.sources import HEAD_BYTES, JSON, Download, Item, Product, record_path, root_folder, wrong_start

_LARGE = 100 << 20  # bytes; hashing more than this takes long enough to be announced


class Recorded(msgspec.Struct, frozen=True):
    """One entry of fetched.json: the file that was accepted under this name, and why."""

    url: str  # or the file it was copied from
    bytes: int
    sha256: str
    date: str  # UTC, ISO 8601
    trust: str  # "published hash" or "first use"


class _Record(msgspec.Struct):
    """fetched.json: entries by path in the workspace or by archive name."""

    files: Dict[str, Recorded]


class Checksums(NamedTuple):
    """Published hashes. `binding`: one of them must match; otherwise the hash of the first use may match instead."""

    hashes: tuple[str, ...]
    binding: bool


class FetchItem(NamedTuple):
    """One item, and the options of this run."""

    item: Item
    workspace: Path
    profile: str
    mirrors: tuple[str, ...]
    accept_new: bool
    settings: DownloadSettings
    show: Callable[[str], None]

    @property
    def record(self) -> Path:
        return self.workspace / record_path(self.item, self.profile)

    def part(self, download: Download) -> Path:
        return self.workspace / root_folder(self.item.products[0].root, self.profile) / f"{download.name}.part"

    def target(self, product: Product) -> Path:
        return self.workspace / product.target(self.profile)

    def key(self, product: Product) -> str:
        return str(product.target(self.profile))

    def command(self, *options: str) -> str:
        words = ["invoke fetch", *(["--pretrained"] if self.item.name == "pretrained" else [])]
        return " ".join([*words, *([] if self.profile == "mnli" else ["--profile", self.profile]), *options])


class Unfit(Exception):
    """A file is not the expected one; the message is a clause that starts with "it" or "its"."""


def published(product: Product) -> Checksums:
    return Checksums((product.sha256,) if product.sha256 else (), bool(product.sha256))


def read_record(path: Path) -> dict[str, Recorded]:
    """The entries of a fetched.json; none if it does not exist. Raises DataError."""
    try:
        return schema.read_json(path, _Record).files
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(
            f"{path} is not a record of fetched files: it {error}. Move it away and run: invoke fetch; "
            "hashes are then recorded anew, so compare them with a colleague's"
        ) from error


def check_form(kind: str, path: Path) -> None:
    """Raise Unfit if the file cannot be of this kind, or is a zip (as checkpoints are) or JSON that is cut off."""
    with files.open_regular(path) as file:
        head = file.read(HEAD_BYTES)
    problem = wrong_start(kind, head)
    if problem:
        raise Unfit(problem)
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise Unfit(f"it is a cut-off {kind}: the zip's end is missing")
    if kind == JSON:
        try:
            schema.read_json(path, Any)
        except ValueError as error:
            raise Unfit(f"it {error}") from error


def check_hash(job: FetchItem, key: str, sha256: str, checksums: Checksums) -> str:
    """Which hash it matches: "published hash", "recorded hash", or "" at first use. Raises Unfit with both hashes."""
    if sha256 in checksums.hashes:
        return "published hash"
    if checksums.binding:
        raise Unfit(f"its sha256 is not the published one: expected {' or '.join(checksums.hashes)}, found {sha256}")
    recorded = read_record(job.record).get(key)
    if recorded is not None and recorded.sha256 == sha256:
        return "recorded hash"
    if recorded is None or job.accept_new:
        return ""
    raise Unfit(
        f"its sha256 is not the one recorded on {recorded.date} in {job.record}: "
        f"expected {recorded.sha256}, found {sha256}; if the change is meant, run: {job.command('--accept-new')}"
    )


def remember(job: FetchItem, key: str, origin: str, path: Path, sha256: str, checksums: Checksums) -> None:
    """Record and show an accepted hash; one that is recorded already keeps its first record. Raises Unfit."""
    match = check_hash(job, key, sha256, checksums)
    entries = read_record(job.record)
    if match:
        job.show(f"{key}: sha256 {sha256} matches the {match}")
    else:
        replaced = f" in place of {entries[key].sha256}" if key in entries else ""
        job.show(
            f"{key}: first use: recorded sha256 {sha256}{replaced} in {record_path(job.item, job.profile)}; "
            "compare it with a colleague's"
        )
    if key not in entries or entries[key].sha256 != sha256:
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        entries[key] = Recorded(origin, path.stat().st_size, sha256, now, match or "first use")
        files.write_text(job.record, schema.text({"format": 1, "files": dict(sorted(entries.items()))}))


def check(job: FetchItem, key: str, kind: str, path: Path, checksums: Checksums) -> tuple[str, str]:
    """SHA-256 of a file whose form and hash are right, and which hash it matches (`check_hash`). Raises Unfit."""
    check_form(kind, path)
    if path.stat().st_size > _LARGE:
        job.show(f"{path.name}: computing its sha256")
    sha256 = files.sha256_of(path)
    return sha256, check_hash(job, key, sha256, checksums)


def check_present(job: FetchItem, product: Product) -> None:
    """Check a file that is in its place already, and never replace it. Raises DataError."""
    target, key = job.target(product), job.key(product)
    try:
        sha256, match = check(job, key, product.kind, target, published(product))
    except Unfit as error:
        raise DataError(
            f"{target} is there already, but {error}. It was left alone: "
            f"to get the right one, move it away and run: {job.command()}"
        ) from error
    if match:
        job.show(f"{key}: already there, sha256 matches the {match}")
    else:
        remember(job, key, "already there", target, sha256, published(product))


def check_new(job: FetchItem, product: Product, path: Path, origin: str) -> str:
    """SHA-256 of a file that may become a product. Raises Unfit, or DataError if a different file is in its place."""
    sha256, _ = check(job, job.key(product), product.kind, path, published(product))
    target = job.target(product)
    if os.path.lexists(target) and (present := files.sha256_of(target)) != sha256:
        raise DataError(
            f"{target} is there already and differs from {origin}: expected sha256 {sha256}, found {present}. "
            f"It was left alone: to get the other one, move it away and run: {job.command()}"
        )
    return sha256


def put(job: FetchItem, product: Product, path: Path, origin: str) -> None:
    """Rename a file to its place, if no equal one is there, and record it. Raises the errors of `check_new`."""
    sha256 = check_new(job, product, path, origin)
    target = job.target(product)
    if not os.path.lexists(target):
        os.replace(path, target)
    remember(job, job.key(product), origin, target, sha256, published(product))
