"""What a report rests on: every file that it and the records behind it name, each of them read and hashed afresh.

Nothing is written, and nothing remembered is believed: `.cache` is not looked at.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Iterator, Mapping, Optional, Sequence

from deberta.core import contract, files, published, records
from deberta.core.errors import DataError, MissingError, one_line, some
from deberta.core.paths import Artifacts, record_of
from deberta.core.progress import Progress
from deberta.core.records import Record, Resource
from deberta.host.plan.evaluation import STAGES
from deberta.host.plan.profiles import Profile
from deberta.host.run import source_digest

RECORD_SUFFIX = ".record.json"
IMAGE = "image "  # what a record's dependency on a stage image starts with
MIB = 1 << 20
_JOB = (
    *("purpose", "profile", "gates", "limit", "batch_sizes", "data", "references", "cells", "performances"),
    *("inputs", "artifacts", "measured"),
)
_DIGEST = re.compile(r"[0-9a-f]{64}")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: the file, and what was expected and found."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class Claim:
    """`said_by` has it that `path` is a file (sha256) or a folder (dirHash) with this digest."""

    path: str
    digest: Json
    said_by: str


@dataclass
class Evidence:
    """What a walk from a report found. `records` are those of the chain, by their path in the tree."""

    root: Path
    artifacts: Artifacts
    report: Json = field(default_factory=dict)
    job: Json = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    producers: dict[str, list[str]] = field(default_factory=dict)  # of the tree: artifact -> records that name it
    claims: list[Claim] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def add(self, where: object, what: str) -> None:
        self.findings.append(Finding(str(where), one_line(what)))

    def record_for(self, path: str) -> Optional[Record]:
        """The record of the chain that names an artifact as its subject."""
        return next((self.records[name] for name in self.producers.get(path, ()) if name in self.records), None)


def option(record: Optional[Record], name: str) -> str:
    """What a step's command line gave for an option, or ""."""
    given = record.parameters.get("arguments") if record else None
    arguments = [str(argument) for argument in given] if isinstance(given, list) else []
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else ""


@dataclass(frozen=True)
class Scope:
    """What the job names: the `paths` that must be there, and which of them were not made by the present model.

    The making of a `foreign` path (an older model's, or brought) is not followed; it needs no record.
    """

    paths: tuple[str, ...]
    foreign: Mapping[str, str]  # path -> why
    inputs: frozenset[str]
    brought: frozenset[str]  # compiled models


def collect(root: Path, artifacts: Artifacts) -> Evidence:
    """Walk from the report to the checkpoint, the tokenizer and the data, and hash all that is named on the way.

    Raises MissingError if there is no report; everything else that is wrong is among the findings.
    """
    evidence = walk(root, artifacts)
    _judge(evidence)
    return evidence


def walk(root: Path, artifacts: Artifacts) -> Evidence:
    """The same without looking at any file but the report, its job and the records."""
    evidence = Evidence(root, artifacts)
    if not (root / artifacts.report("json")).exists():
        raise MissingError(
            f"{root / artifacts.report('json')} is missing. Run: invoke acceptance --profile {artifacts.profile} "
            f"--backend {artifacts.backend}, or name the tree that holds it with --path"
        )
    evidence.report = _read(evidence, artifacts.report("json"), ("body", "body_sha256", "measured"))
    evidence.job = _read(evidence, artifacts.job(), _JOB)
    found = _index(evidence)
    scope = Scope((), {}, frozenset(), frozenset())
    try:
        scope = _scope(evidence)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        evidence.add(artifacts.job(), f"is not a report's job ({type(error).__name__}: {error})")
        evidence.job = {}
    _walk(evidence, scope, found)
    return evidence


def _read(evidence: Evidence, path: PurePosixPath, keys: Sequence[str]) -> Json:
    """A JSON object that has these keys; an empty one, and a finding, for anything else."""
    try:
        content = json.loads((evidence.root / path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        evidence.add(path, "is missing")
        return {}
    except ValueError as error:
        evidence.add(path, f"is not JSON ({error})")
        return {}
    if not isinstance(content, dict) or not set(keys) <= set(content):
        evidence.add(path, f"is not an object with {', '.join(keys)}")
        return {}
    return content


def _index(evidence: Evidence) -> dict[str, Record]:
    """All records of the profile, whether in the chain or not: one that cannot be read could be of anything."""
    found: dict[str, Record] = {}
    artifacts = evidence.artifacts
    for folder in (artifacts.models, artifacts.data, artifacts.results.parent):
        for name in files.files_in(evidence.root / folder):
            if name.endswith(RECORD_SUFFIX):
                path = str(folder / name)
                try:
                    record = records.read(evidence.root / path)
                except DataError as error:
                    evidence.add(path, str(error).replace(f"{evidence.root / path} ", "").partition(". Remove")[0])
                    continue
                if record is not None:
                    found[path] = record
                    for subject in record.subjects:
                        evidence.producers.setdefault(subject, []).append(path)
    return found


def _scope(evidence: Evidence) -> Scope:
    """Read the job. Raises KeyError, TypeError, AttributeError or ValueError for one of another shape."""
    job, artifacts = evidence.job, evidence.artifacts
    if not job:
        return Scope((), {}, frozenset(), frozenset())
    for group in (job["inputs"], job["artifacts"], job["measured"]["artifacts"]):
        evidence.claims += [Claim(str(path), dict(digest), str(artifacts.job())) for path, digest in group.items()]
    runs = [({str(cell[key]) for key in ("outputs", "evaluation")}, cell) for cell in job["cells"]]
    runs += [({str(run["log"])}, run) for run in job["performances"]]
    paths = {*map(str, job["inputs"]), *map(str, job["data"].values())}
    paths |= {str(path) for kind in ("sentinels", "references") for path in job.get(kind, {}).values()}
    if not all(isinstance(job[name], dict) for name in ("profile", "gates")) or not isinstance(job["limit"], int):
        raise TypeError("its profile, gates or limit are of another type")
    foreign, brought, present = {}, set(), set()
    for named, run in runs:
        size, version, origin = int(run["batch_size"]), str(run["version"]), str(run["origin"])
        paths |= named
        if origin == contract.BROUGHT_MODEL:
            brought.add(str(artifacts.compiled(size)))
        if origin in ("", contract.BROUGHT_MODEL):
            present.add((size, version))
        else:
            foreign.update(dict.fromkeys(named, f"bs {size}, {version}: {origin}"))
    whole = replace(artifacts, limit=0)  # the performance runs' bins
    for size in {*map(int, job["batch_sizes"]), *(int(run["batch_size"]) for _, run in runs)}:
        idle = [version for version in contract.VERSIONS if (size, version) not in present]
        unused = [made.bins(size, version) for version in idle for made in (artifacts, whole)]
        if not any(of == size for of, _ in present):
            unused += [artifacts.compiled(size), artifacts.compiled(size).with_suffix(".bin")]
        foreign.update(dict.fromkeys(map(str, unused), "no run of the present model used it"))
    references = set(map(str, job["references"].values()))
    stale = {str(artifacts.reference(version)) for version in contract.VERSIONS} - references
    foreign.update(dict.fromkeys(stale, "the report does not use it"))
    return Scope(tuple(sorted(paths)), foreign, frozenset(map(str, job["inputs"])), frozenset(brought))


def _walk(evidence: Evidence, scope: Scope, found: Mapping[str, Record]) -> None:
    """From the report and the job's files to their records, to what those were made of, and so on."""
    artifacts = evidence.artifacts
    start = [str(artifacts.report(suffix)) for suffix in ("json", "md", "html")]
    if (evidence.root / artifacts.bom()).exists():
        start.append(str(artifacts.bom()))
    elif evidence.job.get("purpose") == "acceptance":
        evidence.add(artifacts.bom(), "is missing, and an acceptance has one")
    claimed = [claim.path for claim in evidence.claims]
    waiting, seen = [*start, *scope.paths, *claimed], set()
    images = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        names = evidence.producers.get(path, [])
        if not names and _made_by_us(artifacts, path, scope):
            evidence.add(path, f"has no record ({record_of(PurePosixPath(path)).name}), so nothing says what made it")
        for name in names:
            record = found[name]
            evidence.records[name] = record
            evidence.claims += _claims(evidence, name, record.subject)
            if path in scope.foreign:
                continue
            needed = record.predicate.build_definition.resolved_dependencies
            images |= {entry.name for entry in needed if entry.name.startswith(IMAGE)}
            there = [entry for entry in needed if not entry.name.startswith(IMAGE)]
            evidence.claims += _claims(evidence, name, there)
            waiting += [entry.name for entry in [*record.subject, *there]]
    vouched = {claim.path for claim in evidence.claims}
    for path in scope.paths:
        if path not in vouched and path not in scope.foreign:
            evidence.add(path, "is part of the report, and nothing says what its digest should be")
    named = {path: why for path, why in sorted(scope.foreign.items()) if path in seen}
    evidence.unchecked += [f"how {path} was made ({why})" for path, why in named.items()]
    evidence.unchecked += [f"{image}: only its id is in the records" for image in sorted(images)]


def _made_by_us(artifacts: Artifacts, path: str, scope: Scope) -> bool:
    """Whether a step of ours makes files of this name, so that they have to have a record."""
    if path in scope.foreign or path in scope.inputs or path in scope.brought or path == str(artifacts.job()):
        return False
    here, name = PurePosixPath(path), PurePosixPath(path).name
    folders = set(here.parents)
    if artifacts.results.parent in folders:
        return not name.startswith("keep_dtype")  # written by check-fp16 beside its report, and an option of ATC's
    if artifacts.data in folders:
        return here.relative_to(artifacts.data).parts[0].startswith("pre_mnli_bs")
    exported = here.parent == artifacts.models and name.startswith("dynamic") and name.endswith(".onnx")
    return exported or artifacts.models / artifacts.backend in folders


def _claims(evidence: Evidence, said_by: str, entries: Sequence[Resource]) -> Iterator[Claim]:
    return (Claim(entry.name, entry.digest, said_by) for entry in entries)


def _judge(evidence: Evidence) -> None:
    """Hash every claimed file once, and compare it with all that is said about it."""
    said: dict[str, dict[str, list[str]]] = {}  # path -> expected -> by whom
    for claim in evidence.claims:
        [(kind, digest)] = claim.digest.items() if len(claim.digest) == 1 else [("", "")]
        if kind not in ("sha256", "dirHash") or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            evidence.add(claim.said_by, f"{claim.path} has no SHA-256 or dirHash in it, but {dict(claim.digest)}")
        elif problem := _outside(claim.path):
            evidence.add(claim.said_by, f"names {claim.path}, {problem}")
        else:
            by = said.setdefault(claim.path, {}).setdefault(f"{kind} {digest}", [])
            if claim.said_by not in by:
                by.append(claim.said_by)
    sizes = {path: _size(evidence.root / path) for path in said}
    progress = Progress("hashing", -(-sum(sizes.values()) // MIB), "MiB")
    done = 0
    for path in sorted(said):
        if os.path.isabs(path) and not os.path.exists(path):
            evidence.unchecked.append(f"{path}: it is not on this machine")
            continue
        found = _digest(evidence, path)
        done += sizes[path]
        progress.update(done // MIB)
        for expected, by in said[path].items():
            if found != expected:
                evidence.add(path, f"expected {expected} (says {' and '.join(by)}), found {found}")
    progress.update(progress.total)


def _outside(path: str) -> str:
    """What is wrong with a name that leads out of the tree; an absolute one is a user's own, elsewhere."""
    return "which leads out of the tree" if ".." in PurePosixPath(path).parts else ""


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(os.stat(path / name).st_size for name in files.files_in(path))
    return path.stat().st_size if path.exists() else 0


def _digest(evidence: Evidence, path: str) -> str:
    absolute = evidence.root / path
    try:
        if absolute.is_dir():
            evidence.files += len(files.files_in(absolute))
            evidence.bytes += _size(absolute)
            return f"dirHash {files.folder_digest(absolute)}"
        found = f"sha256 {files.sha256_of(absolute)}"
    except FileNotFoundError:
        return "nothing"
    except OSError as error:
        return f"what cannot be read ({error.strerror})"
    evidence.files += 1
    evidence.bytes += absolute.stat().st_size
    return found


def judge_job(evidence: Evidence, project: Path, profile: Optional[Profile]) -> None:
    """The job's own word, as far as this checkout can tell better: its profile, its gates, what makes an acceptance."""
    job, where = evidence.job, evidence.artifacts.job()
    if not job:
        return
    verdict = evidence.report.get("verdict")
    accepted = isinstance(verdict, dict) and verdict.get("verdict") == "accepted"
    sizes = {row.batch_size for row in published.GUIDE}
    less = [] if evidence.artifacts.backend == "ascend" else [f"backend {evidence.artifacts.backend}"]
    less += ["a limited run"] if job["limit"] or evidence.artifacts.limit else []
    less += ["fewer loops than the guide's"] if job.get("loops", 0) < contract.PERFORMANCE_LOOPS else []
    less += [] if sizes <= set(job.get("batch_sizes", ())) else ["not every batch size of the published table"]
    less += ["the reasons in the job"] if job.get("not_accepted") else []
    other = _unlike_ours(evidence, project, profile)
    if accepted and [*less, *other]:
        evidence.add(where, f"the report says accepted, against: {'; '.join([*less, *other])}")
    else:
        evidence.unchecked += [f"{text}: the tree's own are taken" for text in other]
    if job.get("buckets_markdown"):
        evidence.unchecked.append("figures of bucketed runs: they stand in the report as the job has them")


def _unlike_ours(evidence: Evidence, project: Path, profile: Optional[Profile]) -> list[str]:
    """What of the profile and the gates is not as this checkout has it."""
    from deberta.host.report import gates  # tomlkit is not loaded for the list of tasks

    job = evidence.job
    if profile is None:
        return [f"profile {evidence.artifacts.profile} is not in this invoke.yaml"]
    ours: dict[str, Any] = {"name": profile.name, "published": profile.published, "rows": dict(profile.rows)}
    ours["labels"] = list(profile.labels or contract.LABELS)
    said = [f"{key} of the profile are not this checkout's" for key in ours if job["profile"].get(key) != ours[key]]
    known = gates.load(project / gates.OURS, profile.name)
    for name, gate in job["gates"].items():
        part = name == "inputs" and isinstance(gate, dict) and gate.items() <= known.get(name, {}).items()
        if not part and known.get(name) != gate:
            said.append(f"the gate {name} is not this checkout's")
    needless = () if profile.published else ("official", "fps")
    absent = [name for name in known if name not in job["gates"] and name not in needless]
    return said + [f"the gate {name} is left out" for name in absent]


def compare_code(evidence: Evidence, project: Path) -> None:
    """Say which stages' sources are not those that the records name: they may make other bytes by right."""
    digests: dict[str, str] = {}
    for record in evidence.records.values():
        parameters = record.parameters
        stage = str(parameters.get("stage", ""))
        if stage not in STAGES:
            continue
        if stage not in digests:
            digests[stage] = source_digest.digest(project, STAGES[stage])
        if parameters.get("code") != digests[stage]:
            changed = source_digest.changed_since(record, project, STAGES[stage])
            which = f" ({some(changed)})" if changed else ""
            evidence.unchecked.append(
                f"whether the code of {stage} was this checkout's: its record names other sources{which}"
            )
