"""clean: removes what the commands made, and only that."""

from __future__ import annotations

import os
import sys
from pathlib import Path, PurePosixPath
from typing import Sequence

from deberta.core import files, records
from deberta.core.contract import BACKENDS
from deberta.core.errors import ConfigError, DataError, many, some
from deberta.core.paths import ACCEPTANCES, RECORD_SUFFIX
from deberta.host.environments import stages
from deberta.host.plan.profiles import Profile
from deberta.host.report import archive
from deberta.host.run.session import Session


def clean(session: Session, profiles: Sequence[Profile], reports: bool, yes: bool) -> None:
    """Remove every artifact that has a record of ours, with the record, what killed runs left, and empty folders.

    A profile's inputs stay, trained by us or not, and so does every file without a record: it is the user's. `reports`:
    acceptances that are kept go too, unless a question is not answered by yes; `yes`: it is not put.
    """
    kept = [folder for profile in profiles for folder in archive.kept(session.workspace, profile.name).values()]
    if kept and reports and not yes and not session.dry:
        _ask(f"{many(len(kept), 'acceptance')} with evidence and signatures: {some([path.name for path in kept])}")
    roots = [session.workspace / kind / profile.name for kind in ("models", "data", "results") for profile in profiles]
    inputs = {session.workspace / path for profile in profiles for path in profile.inputs(profile.rows)}
    doomed: list[Path] = kept if reports else []
    for root in roots:
        for path in _outside(root, f"*{RECORD_SUFFIX}"):
            subjects = _subjects(session, path)
            if not inputs & set(subjects):
                doomed += [*subjects, path]
        for intent in _outside(root, f".*{files.INTENT}"):  # beside what a killed run made and did not record
            output = intent.with_name(intent.name[1 : -len(files.INTENT)])
            paths = [output, *(output / name for name in files.intended(output) if "/" not in name)]
            doomed += filter(files.is_interrupted, paths)
        doomed += _outside(root, f".*{files.TEMPORARY}*")
    folders = [root / backend for root in roots for backend in BACKENDS]
    names = ("logs", "report.*", "report_job*.json", "report_limit*")  # some have no record
    doomed += sorted({path for folder in folders for name in names for path in folder.glob(name)})
    for path in doomed:
        if path.exists():
            print(f"{'would remove' if session.dry else 'removing'} {path.relative_to(session.workspace)}")
            if not session.dry:
                files.remove(path)
    for folder in (folder for root in roots for folder, _, _ in os.walk(root, topdown=False)):
        if not session.dry and not os.listdir(folder):
            os.rmdir(folder)


def _ask(what: str) -> None:
    """Raises ConfigError if the answer is not yes, or nobody is there to give one."""
    if not sys.stdin.isatty():
        raise ConfigError(f"--reports removes {what}. Add --yes")
    if input(f"Remove {what}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was removed")


def _outside(root: Path, pattern: str) -> list[Path]:
    """The paths below `root` that are in no acceptance; one that is half kept is none yet."""
    return [path for path in sorted(root.rglob(pattern)) if ACCEPTANCES not in path.relative_to(root).parts[:-2]]


def remove_environments(project: Path, dry: bool) -> None:
    """Remove the stages' environment and inv's own."""
    for folder in (project / stages.FOLDER, project / ".venv"):
        print(f"{'would remove' if dry else 'removing'} {folder}")
        if not dry:
            files.remove(folder)


def _subjects(session: Session, record_path: Path) -> list[Path]:
    try:
        record = records.read(record_path)
    except DataError:
        return []  # the damaged record goes, what it spoke of stays
    inside = map(PurePosixPath, record.subjects if record else {})
    return [session.workspace / path for path in inside if not path.is_absolute() and ".." not in path.parts]
