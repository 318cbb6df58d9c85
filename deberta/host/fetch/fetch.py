"""`invoke fetch`: checkpoint, tokenizer and data, from the network or a folder; every file is checked.

A published SHA-256 is always enforced. Where none is published, the first file's hash is recorded in `fetched.json` and
shown ("trust on first use"), and enforced from then on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from deberta.core import files, progress
from deberta.core.errors import ConfigError, DataError, MissingError, from_os_error
from deberta.host.fetch import archives, checksums
from deberta.host.fetch import download as http
from deberta.host.fetch.checksums import Checksums, FetchItem, Unfit
from deberta.host.fetch.sources import GUIDE, ON_DEMAND, ZIP, Copy, Download, Item, Product, Sources, wrong_start


def fetch(
    workspace: Path,
    profile: str,
    names: Sequence[str] = (),
    *,
    from_dir: Path | None = None,
    mirrors: Sequence[str] = (),
    accept_new: bool = False,
    sources: Sources = GUIDE,
    settings: http.DownloadSettings = http.SETTINGS,
    show: Callable[[str], None] = progress.say,
) -> None:
    """Put the named items (default: all but `pretrained`) into the workspace; files that are right already stay.

    `mirrors` are URLs of folders that hold the files under their own names; they are tried first. `accept_new` replaces
    recorded hashes, never published ones. Raises ConfigError, MissingError (no host answers, or the folder lacks a
    file), StageError (disk), DataError (a file is not what it should be).
    """
    for mirror in mirrors:
        if not mirror.startswith(("http://", "https://")):
            raise ConfigError(f"--mirror {mirror!r} is not an http or https URL of a folder")
    if from_dir is not None and not from_dir.is_dir():
        raise ConfigError(f"--from {from_dir} is not a folder")
    missing: list[str] = []
    try:
        for item in _selected(profile, names, sources):
            job = FetchItem(item, workspace, profile, tuple(mirrors), accept_new, settings, show)
            try:
                _fetch_item(job, from_dir)
            except MissingError as error:
                if from_dir is None:
                    raise
                missing.append(str(error))  # the other items are still copied
    except OSError as error:
        error.filename = error.filename or str(workspace)
        raise from_os_error(error) from error
    if missing:
        raise MissingError(
            f"{'; '.join(missing)}. What it has was copied. Put the rest there, then run: "
            f"{job.command('--from', str(from_dir))}"
        )


def _selected(profile: str, names: Sequence[str], sources: Sources) -> list[Item]:
    known = list(dict.fromkeys(item.name for item in sources))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"fetch does not know {unknown[0]!r}. It gets: {', '.join(known)}")
    selected = list(names) or [name for name in known if name not in ON_DEMAND]
    if profile == "demo" and set(selected) - set(ON_DEMAND):
        raise ConfigError("the demo profile's files come with the repository: nothing to fetch. Run: invoke demo")
    return [item for item in sources if item.name in selected]


def _fetch_item(job: FetchItem, from_dir: Path | None) -> None:
    absent, unrecorded = [], []
    for product in job.item.products:
        target = job.target(product)
        if not os.path.lexists(target):
            absent.append(product)
        elif not target.is_file():
            raise DataError(f"{target} is there and is not a file. Move it away and run: {job.command()}")
        elif product.sha256 is None and job.key(product) not in checksums.read_record(job.record):
            unrecorded.append(product)  # compared with the fetched file, if one is fetched; else recorded as it is
        else:
            checksums.check_present(job, product)
    if from_dir is not None and (absent or unrecorded):
        _from_folder(job, absent + unrecorded, from_dir)
    elif absent:
        _from_network(job, absent + unrecorded)
    else:
        for product in unrecorded:
            checksums.check_present(job, product)


def _from_network(job: FetchItem, products: list[Product]) -> None:
    """Try each download at each of its URLs; the first that passes every check gives all products."""
    failures: list[str] = []
    wrong = False
    for download in job.item.downloads:
        mirrored = [Copy(f"{base.rstrip('/')}/{download.name}") for base in job.mirrors]
        for copy in [*mirrored, *download.copies]:
            try:
                _get(job, products, download, copy)
                return
            except http.DownloadFailed as failure:
                wrong = wrong or failure.wrong
                failures.append(f"{http.shown(copy.url)}: {failure}")
                job.show(f"{job.item.name}: {failures[-1]}")
    raise (DataError if wrong else MissingError)(
        f"{', '.join(job.key(product) for product in products)} could not be fetched. Tried: {'; '.join(failures)}. "
        f"If this machine cannot reach the hosts, copy the file "
        f"({' or '.join(download.name for download in job.item.downloads)}) from another machine and run: "
        f"{job.command('--from', 'DIR')}"
    )


def _get(job: FetchItem, products: list[Product], download: Download, copy: Copy) -> None:
    """Download, check, and put in place. Raises DownloadFailed; a file that fails a check is removed."""
    part = job.part(download)
    wrong = functools.partial(wrong_start, download.kind)
    transfer = http.Transfer(copy.url, part, download.name, download.about_bytes, wrong, job.settings, job.show)
    job.show(f"{download.name}: from {http.shown(copy.url)}")
    url, in_pieces = transfer.run()
    try:
        try:
            _check(job, download, part, copy)
        except Unfit as problem:
            if not in_pieces:
                raise
            job.show(f"{download.name}: the pieces do not fit together ({problem}); getting it again, whole")
            http.discard(part)
            url, _ = transfer.run()
            _check(job, download, part, copy)
        if download.kind == ZIP:
            _unpack(job, products, download, part, copy, url)
        else:
            [product] = products
            checksums.put(job, product, part, url)
    except Unfit as error:
        http.discard(part)
        raise http.DownloadFailed(f"{error}; the file was removed", wrong=True) from error
    http.discard(part)


def _check(job: FetchItem, download: Download, path: Path, copy: Copy | None) -> None:
    """Check an archive or a single file, from this copy or from a folder (None). Raises Unfit."""
    key = download.name if download.kind == ZIP else job.key(job.item.products[0])
    checksums.check(job, key, download.kind, path, _checksums(download, copy))


def _checksums(download: Download, copy: Copy | None) -> Checksums:
    """The hashes of a download: binding if this copy's is published, or if every copy's is."""
    hashes = tuple(each.sha256 for each in download.copies if each.sha256)
    return Checksums(hashes, bool(copy and copy.sha256) or len(hashes) == len(download.copies))


def _unpack(
    job: FetchItem, products: list[Product], download: Download, archive: Path, copy: Copy | None, origin: str
) -> None:
    """Put products from a checked archive in their places: all of them, or none if one is unfit. Raises Unfit."""
    with contextlib.ExitStack() as stack:
        try:
            sizes = archives.sizes(archive)
            members = {_member_of(job, product, archive): product for product in products}
            for name in [name for name in members if name not in sizes and members[name].optional]:
                job.show(f"{job.key(members.pop(name))}: not in {archive}; only finetune needs it")
            targets = {name: job.target(product) for name, product in members.items()}
            staged = {name: stack.enter_context(files.staged(path)) for name, path in targets.items()}
            needed = sum(sizes.get(name, 0) for name in staged)
            http.check_space(archive.parent, needed, f"unpacking {download.name}")
            archives.extract(archive, staged)
        except DataError as error:
            raise Unfit(str(error)) from error
        for name, product in members.items():
            checksums.check_new(job, product, staged[name], origin)
        checksums.remember(job, download.name, origin, archive, files.sha256_of(archive), _checksums(download, copy))
        for name, product in members.items():
            checksums.put(job, product, staged[name], f"{origin}#{name}")


def _member_of(job: FetchItem, product: Product, archive: Path) -> str:
    """The member that is a product: by its published hash, whatever its name, else by its path. Raises DataError."""
    if product.sha256 is None:
        return product.path
    name = archives.find_in_archive(archive, product.sha256, job.show)
    if name is None:
        raise DataError(f"{archive} holds no file with the sha256 of {product.path}, {product.sha256}")
    return name


def _from_folder(job: FetchItem, products: list[Product], folder: Path) -> None:
    """Copy what an offline folder has: the files themselves, an archive of them, or a cache, searched by hash."""
    absent = []
    for product in products:
        target = job.target(product)  # its subfolder may be in the folder, too: MNLI/dev_matched.tsv
        candidates = (folder / target.parent.name / target.name, folder / target.name)
        if source := next((path for path in candidates if path.is_file()), None):
            _copy_in(job, product, source)
        else:
            absent.append(product)
    for download in job.item.downloads:
        archive = folder / download.name
        if absent and download.kind == ZIP and archive.is_file():
            try:
                _check(job, download, archive, None)
                _unpack(job, absent, download, archive, None, str(archive))
                return
            except Unfit as error:
                raise DataError(f"{archive} was not used: {error}") from error
    missing = []
    for product in absent:
        name = archives.find_in_folder(folder, product.sha256, job.show) if product.sha256 else None
        if name:
            _copy_in(job, product, Path(name))
        elif job.target(product).is_file():
            checksums.check_present(job, product)
        elif product.optional:
            job.show(f"{job.key(product)}: not in {folder}; only finetune needs it")
        else:
            missing.append(product)
    if missing:
        names = [product.path for product in missing]
        zips = [f" nor {download.name}" for download in job.item.downloads if download.kind == ZIP]
        raise MissingError(f"{folder} has no {', '.join(names)}{''.join(zips)}")


def _copy_in(job: FetchItem, product: Product, source: Path) -> None:
    """Copy one file to its place. Raises DataError if it is unfit."""
    target = job.target(product)
    with files.staged(target) as temporary:
        http.check_space(target.parent, source.stat().st_size, product.path)
        shutil.copyfile(source, temporary)
        with open(temporary, "rb+") as copied:
            os.fsync(copied.fileno())
        try:
            checksums.put(job, product, temporary, str(source))
        except Unfit as error:
            raise DataError(f"{source} was not copied: {error}") from error
