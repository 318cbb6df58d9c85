"""Acceptances that are kept: each a folder that is like a workspace, with all that its report rests on.

No command changes what is in one, or replaces its signature. Files of folders and large files are hard links, since our
steps replace files and never rewrite them; all else is a copy.
"""

from __future__ import annotations

import filecmp
import itertools
import os
import re
from pathlib import Path, PurePosixPath

from deberta.core import contract, files, progress
from deberta.core.errors import ConfigError, DataError, MissingError, some
from deberta.core.paths import ACCEPTANCES, Artifacts, limited
from deberta.core.report import Report
from deberta.host.report import evidence
from deberta.host.report.evidence import Evidence

LARGE = 64 << 20  # bytes


def kept(root: Path, profile: str) -> dict[str, Path]:
    """The folders of a profile's acceptances by name."""
    jobs = (root / Artifacts(profile).results.parent).glob(f"*/{ACCEPTANCES}/[!.]*/report_job*.json")
    return {path.parent.name: path.parent for path in sorted(jobs)}


def find(root: Path, profile: str, name: str) -> Path:
    """The folder of an acceptance. Raises MissingError."""
    folders = kept(root, profile)
    if name not in folders:
        known = f"only: {', '.join(folders)}" if folders else "nor any other. Run: invoke acceptance"
        raise MissingError(f"profile {profile} in {root} has no acceptance {name!r}, {known}")
    return folders[name]


def find_backend(root: Path, profile: str, limit: int) -> str:
    """The backend whose report is there, if no other's is. Raises MissingError and ConfigError."""
    backends = [b for b in contract.BACKENDS if (root / Artifacts(profile, b, limit).report("json")).exists()]
    if not backends:
        raise MissingError(
            f"there is no report of profile {profile} in {root / 'results' / profile}. Run: invoke acceptance "
            f"--profile {profile}, or name the tree that holds it with --path, or one with --acceptance"
        )
    if len(backends) > 1:
        raise ConfigError(
            f"{root / 'results' / profile} has reports of {' and '.join(backends)}. Name one with --backend"
        )
    progress.say(f"backend: {backends[0]} (the only one with a report)")
    return backends[0]


def keep(root: Path, artifacts: Artifacts, exact: bool = False) -> Path:
    """Keep the report that is there, unless it is kept already; returns its folder.

    `exact`: together with the same pages and records, which differ if the same report was made again. Raises
    MissingError and DataError.
    """
    tree = evidence.walk(root, artifacts, own=True)
    if tree.report is None or tree.job is None:
        raise DataError(f"{artifacts.report('json')} cannot be kept: {some(tree.findings, 2)}. Run: invoke acceptance")
    own = [*map(str, artifacts.pages), str(artifacts.job())]
    names = [*own, *tree.records]
    for folder in kept(root, artifacts.profile).values():
        compared = names if exact else own[:1]
        if filecmp.cmpfiles(root, folder, compared, shallow=False)[0] == compared:
            return folder
    for number in itertools.count(1):
        name = f"{_name(tree.report)}{f'_{number}' if number > 1 else ''}"
        folder = root / artifacts.results / ACCEPTANCES / limited(name, artifacts.limit)
        if not folder.exists():
            break
    with files.new_folder(folder) as target:
        for path in sorted({*names, *(claim.path for claim in tree.claims)}):
            if not os.path.isabs(path) and ".." not in PurePosixPath(path).parts:
                _keep(root / path, target / path)
        for path in own:
            (target / PurePosixPath(path).name).symlink_to(path)
    return folder


def _name(report: Report) -> str:
    when = "".join(re.findall(r"\w+", report.measured.finished.partition("+")[0]))
    return f"{when}Z_{report.body_sha256[:8]}"


def check(tree: Evidence) -> None:
    """What a reader sees first of a kept acceptance, its name and the files beside it, is its report's."""
    root, artifacts = tree.root, tree.artifacts
    if root.parent.name != ACCEPTANCES:
        return
    if tree.report and not re.fullmatch(limited(rf"{_name(tree.report)}(_\d+)?", artifacts.limit), root.name):
        tree.add(root.name, f"is the name of another acceptance: this one's is {_name(tree.report)}")
    for path in [*artifacts.pages, artifacts.job(), artifacts.attestation()]:
        beside, kept_file = root / path.name, root / path
        if not os.path.lexists(beside) or not (tree.within(path.name) and tree.within(path)):
            continue
        if not (beside.is_file() and kept_file.is_file() and filecmp.cmp(beside, kept_file, shallow=False)):
            tree.add(path.name, f"is not {path}")


def add_signature(folder: Path, artifacts: Artifacts, envelope: str) -> None:
    """Raises ConfigError if the acceptance has another signature."""
    path = artifacts.attestation()
    if (folder / path).exists() and files.read_text(folder / path) != envelope:
        raise ConfigError(f"{folder} has a signature already, and none is ever replaced. Make a copy and sign that")
    files.write_text(folder / path, envelope)
    if not (folder / path.name).is_symlink():
        (folder / path.name).symlink_to(path)


def _keep(source: Path, target: Path) -> None:
    """Keep a file or folder at another place, if it is there; a file of a folder that is kept is there already."""
    for name in files.files_in(source) if source.is_dir() else [""]:
        file = source / name
        if file.exists() and not os.path.lexists(target / name):
            files.link_or_copy(file, target / name, copy=not name and file.stat().st_size < LARGE)
