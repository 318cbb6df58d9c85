"""The report that a user names: an acceptance that is kept, the latest ones, a report.json, or a folder with one."""

from __future__ import annotations

import filecmp
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Optional

from deberta.core import contract, files, schema
from deberta.core.differences import DiffSource
from deberta.core.errors import ConfigError, DataError, MissingError, many, some
from deberta.core.paths import Artifacts
from deberta.core.report import Report
from deberta.host.report import archive, evidence

_LATEST = re.compile(r"latest(?:~([0-9]{1,6}))?", re.ASCII)
_REPORT = re.compile(r"report(_limit[0-9]{1,18})?\.json", re.ASCII)
_SHOWN = 12  # characters of a SHA-256
_LONGEST = 200  # characters of a fact


@dataclass(frozen=True)
class NamedReport:
    """`root` is the tree that the report stands in, None for a report alone. `own`: the tree is in the workspace."""

    name: str
    path: Path
    artifacts: Artifacts
    root: Optional[Path]
    own: bool

    def source(self, verification: str) -> DiffSource:
        """What the diff stage takes, with what the records of the tree say. Raises MissingError."""
        root = self.root
        return DiffSource(
            name=self.name,
            report=str(self.path),
            root=str(root or ""),
            job=str(self.artifacts.job()) if root else "",
            own=self.own,
            verification=verification,
            facts=facts(evidence.walk(root, self.artifacts, self.own)) if root else {},
        )


def find(workspace: Path, text: str, profile: str, backend: str, limit: int) -> NamedReport:
    """`text`: latest, latest~N, the name of an acceptance that is kept, or a path. `backend`: empty for any.

    Raises MissingError, ConfigError if it could be several, and DataError for a report that is damaged.
    """
    kept = archive.kept(workspace, profile)
    if match := _LATEST.fullmatch(text):
        return _latest(workspace, kept.values(), contract.whole(match[1] or "0"), Artifacts(profile, backend, limit))
    if text in kept:
        return _in_tree(text, workspace, kept[text])
    here = Path(os.path.abspath(os.path.expanduser(text)))
    path = here if os.path.lexists(here) else Path(os.path.abspath(workspace / text))
    if path.is_dir():
        return _in_tree(text, workspace, path, profile, backend, limit)
    if os.path.lexists(path):
        return _of_file(text, workspace, path)
    known = f"The acceptances of {profile}: {some([*kept][::-1])}" if kept else f"Profile {profile} has no acceptance"
    raise MissingError(f"{text} is no report, no folder with one, and no acceptance that is kept. {known}")


def _latest(workspace: Path, folders: Iterable[Path], back: int, wanted: Artifacts) -> NamedReport:
    """The newest acceptance of the same limit, or one that is `back` before it."""
    name = wanted.report("json").name
    fitting = [folder for folder in folders if os.path.lexists(folder / name)]
    fitting = [folder for folder in fitting if wanted.backend in ("", folder.parents[1].name)]
    backends = sorted({folder.parents[1].name for folder in fitting})
    if len(backends) > 1:
        raise ConfigError(f"{wanted.profile} has acceptances of {' and '.join(backends)}. Name one with --backend")
    # By the time in its name; within a second by when it was kept.
    newest = sorted(
        fitting, key=lambda folder: (folder.name.partition("_")[0], os.lstat(folder / name).st_mtime_ns), reverse=True
    )
    if len(newest) <= back:
        on = f" on {wanted.backend}" if wanted.backend else ""
        rows = f" of the first {wanted.limit} rows" if wanted.limit else ""
        count = many(len(newest), "acceptance") if newest else "no acceptance"
        raise MissingError(
            f"profile {wanted.profile}{on} has {count}{rows}, and {'latest' if not back else f'latest~{back}'} takes "
            f"{back + 1}. Run: invoke acceptance --profile {wanted.profile}"
        )
    return _in_tree(newest[back].name, workspace, newest[back])


def _in_tree(
    name: str, workspace: Path, root: Path, profile: str = "", backend: str = "", limit: int = 0
) -> NamedReport:
    """The only report in a tree, or that of this profile, backend and limit."""
    paths = [path for path in sorted(root.glob("results/*/*/report*.json")) if _REPORT.fullmatch(path.name)]
    if not paths:
        if (root / "report.json").exists():
            return _of_file(name, workspace, root / "report.json")
        raise MissingError(f"{name} has no report: no results/PROFILE/BACKEND/report.json, and no report.json")
    if len(paths) > 1:
        wanted = Artifacts(profile, backend or "*", limit).report("json")
        fitting = [path for path in paths if path.relative_to(root).match(str(wanted))]
        if len(fitting) != 1:
            names = [str(path.relative_to(root)) for path in paths]
            raise ConfigError(f"{name} has {len(paths)} reports: {some(names)}. Name one: {name}/{names[0]}")
        paths = fitting
    return _named(name, workspace, root, paths[0])


def _of_file(name: str, workspace: Path, path: Path) -> NamedReport:
    """A report.json in its tree, beside it as in the folder of an acceptance, or alone."""
    artifacts = _artifacts(path)
    expected = artifacts.report("json")
    if path.parts[-len(expected.parts) :] == expected.parts:
        return _named(name, workspace, path.parents[len(expected.parts) - 1], path)
    inner = path.parent / expected
    if files.inside(path.parent, expected) and inner.is_file() and filecmp.cmp(path, inner, shallow=False):
        return _named(name, workspace, path.parent, inner)
    return NamedReport(name, path, artifacts, None, False)


def _named(name: str, workspace: Path, root: Path, path: Path) -> NamedReport:
    own = Path(os.path.realpath(workspace)) in (real := Path(os.path.realpath(root)), *real.parents)
    if not own and not files.inside(root, path.relative_to(root)):
        raise DataError(f"{path} leads out of {root}. Name the report itself")
    artifacts = _artifacts(path)
    if root / artifacts.report("json") != path:
        raise DataError(f"{path} is of profile {artifacts.profile}, {artifacts.backend}: it is not in its place")
    return NamedReport(name, path, artifacts, root, own)


def _artifacts(path: Path) -> Artifacts:
    body = schema.read(path, Report, "Name a report.json of invoke acceptance or invoke report").body
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", body.profile, re.ASCII):
        raise DataError(f"{path} is of a profile with the name {body.profile!r}, which no profile has")
    return Artifacts(body.profile, body.backend, body.limit)


def facts(tree: evidence.Evidence) -> dict[str, list[str]]:
    """What the records of a report's steps say beside the report: code, packages, images, CANN, chip, device."""
    told: dict[str, set[str]] = {}

    def tell(name: str, value: object) -> None:
        if isinstance(value, (str, int)) and value not in ("", True, False):
            told.setdefault(name, set()).add(str(value)[:_LONGEST])

    for path in sorted(tree.records):
        record = tree.records[path]
        parameters, stage = record.parameters, str(record.parameters.get("stage", ""))
        if stage:
            tell(f"code: {stage}"[:_LONGEST], str(parameters.get("code", ""))[:_SHOWN])
        tell("tool: packages of the stages", str(parameters.get("packages", ""))[:_SHOWN])
        tell("tool: CANN", record.internal.get("cann"))
        tell("machine: chip that was compiled for", record.summary.get("soc_version"))
        tell("machine: NPU", evidence.option(record, "--device"))
        for name, digest in record.images.items():
            tell(f"tool: image {name}"[:_LONGEST], digest[:_SHOWN])
    return {name: sorted(values) for name, values in sorted(told.items())}
