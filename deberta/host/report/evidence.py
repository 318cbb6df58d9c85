"""What a report rests on: every file that it and the records behind it name, each of them read and hashed afresh.

Nothing is written, and nothing remembered is believed: `.cache` is not looked at.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Iterator, Mapping, NamedTuple, Optional, Sequence, TypeVar

import msgspec

from deberta.core import buckets, contract, files, records, schema
from deberta.core.buckets import Lengths
from deberta.core.differences import differences
from deberta.core.errors import DataError, MissingError, one_line, some
from deberta.core.job import EvaluationFiles, Job
from deberta.core.paths import ACCEPTANCES, RECORD_SUFFIX, Artifacts, record_of
from deberta.core.progress import Progress
from deberta.core.records import Record
from deberta.core.report import Report
from deberta.host.plan import matrix
from deberta.host.plan.plan import STAGES
from deberta.host.plan.profiles import Profile
from deberta.host.report import reasons
from deberta.host.run import freshness, source_digest

MIB = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
# Why something that was not checked may be left so: always, with a signature by the key given, or never.
ASIDE, SIGNED, OPEN = "no verdict rests on it", "the signature vouches for it", ""

T = TypeVar("T")

LARGEST = 4 << 30  # bytes of a file or folder in a tree of somebody else's; hashed in half a minute


class Claim(NamedTuple):
    """A record or the job (`source`) has it that `path` is a file (sha256) or a folder (dirHash) with this digest."""

    path: str
    digest: Mapping[str, str]
    source: str


@dataclass
class Evidence:
    """What a walk from a report reached. `records` are those of the chain, by their path in the tree.

    `report` and `job` are None if they are missing or do not fit their schemas, which is then among the findings.
    """

    root: Path
    artifacts: Artifacts
    report: Optional[Report] = None
    job: Optional[Job] = None
    records: dict[str, Record] = field(default_factory=dict)
    producers: dict[str, list[str]] = field(default_factory=dict)  # of the tree: artifact -> records that name it
    claims: list[Claim] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)  # the file, and what was expected and is there
    unchecked: dict[str, str] = field(default_factory=dict)  # what was not checked -> ASIDE, SIGNED or OPEN
    files: int = 0
    bytes: int = 0
    unsafe: bool = False  # a file of it is outside the tree or no regular file: no stage is run on it
    own: bool = False  # the user's workspace, and no tree of somebody else's: its links may lead anywhere

    def add(self, where: object, what: str) -> None:
        self.findings.append(f"{where}: {one_line(what)}")

    def holds(self, path: str | PurePosixPath) -> bool:
        return files.inside(self.root, path, follow=not self.own)

    def within(self, path: str | PurePosixPath, source: str = "the tree") -> bool:
        """Whether a file may be opened; if it is outside the tree, by a link too, `source` is at fault."""
        if self.holds(path):
            return True
        self.unsafe = True
        self.add(source, f"names {path}, which leads out of the tree")
        return False

    @property
    def measuring(self) -> list[Record]:
        """The records behind the figures, sorted by path: all but those of the report's own files."""
        own = {*map(str, self.artifacts.pages)}
        return [record for _, record in sorted(self.records.items()) if not own.issuperset(record.subjects)]

    def record_for(self, path: str) -> Optional[Record]:
        """The record of the chain that names an artifact as its subject."""
        return next((self.records[name] for name in self.producers.get(path, ()) if name in self.records), None)


class Scope(NamedTuple):
    """The files that a report is about, and which of them were not made by the present model.

    The making of a `foreign` path (an older model's, or the user's) is not followed; it needs no record.
    """

    paths: tuple[str, ...] = ()
    foreign: Mapping[str, str] = {}  # path -> why
    supplied: frozenset[str] = frozenset()  # compiled models of the user's


def option(record: Optional[Record], name: str) -> str:
    """The value of an option on a step's command line, or ""."""
    recorded = record.parameters.get("arguments") if record else None
    arguments = [str(argument) for argument in recorded] if isinstance(recorded, list) else []
    return arguments[arguments.index(name) + 1] if name in arguments[:-1] else ""


def collect(root: Path, artifacts: Artifacts, own: bool = False) -> Evidence:
    """Walk from the report to the checkpoint, the tokenizer and the data, and hash all that is named on the way.

    Raises MissingError if there is no report; everything else that is wrong is among the findings.
    """
    evidence = walk(root, artifacts, own)
    _check_digests(evidence)
    return evidence


def walk(root: Path, artifacts: Artifacts, own: bool = False) -> Evidence:
    """The same without looking at any file but the report, its job and the records."""
    evidence = Evidence(root, artifacts, own=own)
    if not (root / artifacts.report("json")).exists():
        raise MissingError(
            f"{root / artifacts.report('json')} is missing. Run: invoke acceptance --profile {artifacts.profile} "
            f"--backend {artifacts.backend}, or name the tree that holds it with --path, or one with --acceptance"
        )
    evidence.report = _read(evidence, artifacts.report("json"), Report)
    evidence.job = _read(evidence, artifacts.job(), Job)
    if evidence.job and evidence.job.purpose == "acceptance" and not (root / artifacts.bom()).exists():
        evidence.add(artifacts.bom(), "is missing, and an acceptance has one")
    follow(evidence, [*map(str, artifacts.pages)])
    return evidence


def _read(evidence: Evidence, path: PurePosixPath, kind: type[T]) -> Optional[T]:
    """A file of that schema; None, and a finding, for anything else."""
    absolute = evidence.root / path
    if not evidence.within(path):
        return None
    try:
        return schema.read(absolute, kind, "")
    except (MissingError, DataError) as error:
        evidence.add(path, str(error).replace(f"{absolute} ", "").rstrip(". "))
        return None


def _index(evidence: Evidence) -> dict[str, Record]:
    """All records of the profile, whether in the chain or not: one that cannot be read could be of anything."""
    tree_records: dict[str, Record] = {}
    artifacts = evidence.artifacts
    for folder in (artifacts.models, artifacts.data, artifacts.results.parent):
        for name in files.files_in(evidence.root / folder, ACCEPTANCES) if evidence.within(folder) else ():
            if name.endswith(RECORD_SUFFIX) and evidence.within(folder / name):
                path = str(folder / name)
                try:
                    record = records.read(evidence.root / path)
                except DataError as error:
                    evidence.add(path, str(error).replace(f"{evidence.root / path} ", "").partition(". Remove")[0])
                    continue
                if record is not None:
                    tree_records[path] = record
                    for subject in record.subjects:
                        evidence.producers.setdefault(subject, []).append(path)
    return tree_records


def _scope(evidence: Evidence, job: Job) -> Scope:
    """What the job is about; its digests become claims."""
    artifacts = evidence.artifacts
    for group in (job.inputs, job.artifacts, job.measured.artifacts):
        evidence.claims += _claims(str(artifacts.job()), group)
    paths = {*job.data.values(), *job.sentinels.values(), *job.references.values()}
    foreign: dict[str, str] = {}
    supplied: set[str] = set()
    used: set[str] = set()  # bins and models of the present model's runs
    known: set[str] = set()  # and of all runs
    present: set[str] = set()  # other files that its figures rest on
    for size in job.batch_sizes:
        for version in contract.VERSIONS:
            known |= _bins_and_models(artifacts, size, version, buckets.PADDED, contract.FP32)
    for names, by_length, precision, figure in job.figures():
        size, version, origin = figure.batch_size, figure.version, figure.origin
        paths.update(names)
        run = _bins_and_models(artifacts, size, version, tuple(map(int, by_length)), precision)
        known |= run
        parts = contract.supplied_parts(origin)
        supplied.update(map(str, artifacts.of_user(origin, size, version)))
        if not origin or parts:
            used |= run
            present.update(names)
        else:
            foreign.update(dict.fromkeys(names, f"bs {size}, {version}: {origin}"))
    foreign = {path: why for path, why in foreign.items() if path not in present}
    onnx = str(artifacts.onnx)
    if onnx not in evidence.producers and all(figure.origin for *_, figure in job.figures()):
        foreign[onnx] = contract.SUPPLIED
    foreign.update(dict.fromkeys(known - used, "no run of the present model used it"))
    stale = {str(artifacts.reference(version)) for version in contract.VERSIONS} - {*job.references.values()}
    foreign.update(dict.fromkeys(stale, "the report does not use it"))
    for path in sorted(paths):  # what stages open
        if evidence.within(path):
            all(map(evidence.within, _below(evidence, path)))
    return Scope(tuple(sorted(paths.union(job.inputs))), foreign, frozenset(supplied))


def _bins_and_models(artifacts: Artifacts, size: int, version: str, lengths: Lengths, precision: str) -> set[str]:
    of_precision = replace(artifacts, precision=precision)
    kinds = (matrix.BINS, matrix.MODEL, matrix.WEIGHTS)
    of_run = [*matrix.of_evaluation(of_precision, lengths, size, version)]
    of_run += matrix.of_performance(of_precision, lengths, size, version, ())
    return {str(path) for path, kind in of_run if kind in kinds}


def follow(evidence: Evidence, pages: Sequence[str] = ()) -> None:
    """From a report's pages and the job's files to their records, to what those were made of, and so on."""
    artifacts, tree_records = evidence.artifacts, _index(evidence)
    scope = _scope(evidence, evidence.job) if evidence.job else Scope()
    claimed = [claim.path for claim in evidence.claims]
    waiting, seen = [*pages, *scope.paths, *claimed], set()
    images = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        names = evidence.producers.get(path, [])
        if not names and _needs_record(artifacts, path, scope):
            evidence.add(path, f"has no record ({record_of(PurePosixPath(path)).name}), so nothing says what made it")
        for name in names:
            record = tree_records[name]
            evidence.records[name] = record
            evidence.claims += _claims(name, record.subjects)
            if path in scope.foreign:
                continue
            images |= {needed for needed in record.dependencies if needed.startswith(records.IMAGE)}
            in_tree = {needed: digest for needed, digest in record.dependencies.items() if needed not in images}
            evidence.claims += _claims(name, in_tree)
            waiting += [*record.subjects, *in_tree]
    vouched = {claim.path for claim in evidence.claims}
    for path in scope.paths:
        if path not in vouched and path not in scope.foreign:
            evidence.add(path, "is part of the report, and nothing says what its digest should be")
    named = {path: why for path, why in sorted(scope.foreign.items()) if path in seen}
    evidence.unchecked.update({f"how {path} was made ({why})": ASIDE for path, why in named.items()})
    evidence.unchecked.update({f"{image}: only its id is in the records": SIGNED for image in sorted(images)})


def _needs_record(artifacts: Artifacts, path: str, scope: Scope) -> bool:
    """Whether a step of ours makes files of this name, so that they have to have a record."""
    if path in scope.foreign or path in scope.supplied or path in map(str, (artifacts.job(), artifacts.baseline())):
        return False
    here, name = PurePosixPath(path), PurePosixPath(path).name
    folders = set(here.parents)
    if artifacts.results.parent in folders:
        return not name.startswith("keep_dtype")  # written by check-fp16 beside its report, and an option of ATC's
    if artifacts.data in folders:
        return here.relative_to(artifacts.data).parts[0].startswith("pre_mnli_bs")
    exported = here.parent == artifacts.models and name.startswith("dynamic") and name.endswith(".onnx")
    return exported or artifacts.models / artifacts.backend in folders


def _claims(source: str, digests: Mapping[str, Mapping[str, str]]) -> Iterator[Claim]:
    return (Claim(path, digest, source) for path, digest in digests.items())


def _check_digests(evidence: Evidence) -> None:
    """Hash every claimed file once, and compare it with all claims about it."""
    expected: dict[str, dict[str, dict[str, None]]] = {}  # path -> digest -> who claims it, each once
    for claim in evidence.claims:
        [(kind, digest)] = claim.digest.items() if len(claim.digest) == 1 else [("", "")]
        if kind not in ("sha256", "dirHash") or not _DIGEST.fullmatch(digest):
            evidence.add(claim.source, f"{claim.path} has no SHA-256 or dirHash in it, but {dict(claim.digest)}")
        elif os.path.isabs(claim.path):  # a user's own, elsewhere
            evidence.unchecked[f"{claim.path}: only files of the tree are opened"] = OPEN
        elif evidence.within(claim.path, claim.source):
            expected.setdefault(claim.path, {}).setdefault(f"{kind} {digest}", {})[claim.source] = None
    sizes = {path: _size(evidence.root / path) for path in expected}
    progress = Progress("hashing", -(-sum(sizes.values()) // MIB), "MiB")
    done = 0
    for path in sorted(expected):
        actual = _digest(evidence, path)
        done += sizes[path]
        progress.update(done // MIB)
        for text, sources in expected[path].items():
            if actual != text:
                interrupted = evidence.own and files.is_interrupted(evidence.root / path)
                why = f", which {freshness.INTERRUPTED}. Run: invoke acceptance" if interrupted else ""
                evidence.add(path, f"expected {text} (says {' and '.join(sources)}), found {actual}{why}")
    progress.update(progress.total)


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(os.lstat(path / name).st_size for name in files.files_in(path))
    return path.stat().st_size if path.exists() else 0


def _below(evidence: Evidence, path: str) -> list[PurePosixPath]:
    """The files in a folder, by their paths in the tree; none for a file."""
    return [PurePosixPath(path) / name for name in files.files_in(evidence.root / path)]


def _digest(evidence: Evidence, path: str) -> str:
    absolute = evidence.root / path
    is_folder = absolute.is_dir()
    names = _below(evidence, path)
    if not all(map(evidence.within, names)):
        return "a link out of the tree"
    try:
        if not evidence.own and _size(absolute) > LARGEST:
            evidence.unsafe = True
            return f"more than {LARGEST} bytes, which are not read"
        digest = f"dirHash {files.folder_digest(absolute)}" if is_folder else f"sha256 {files.sha256_of(absolute)}"
    except FileNotFoundError:
        return "nothing"
    except OSError as error:
        evidence.unsafe = True
        return f"what cannot be read ({error.strerror})"
    evidence.files += len(names) or 1
    evidence.bytes += _size(absolute)
    return digest


def check_verdict(evidence: Evidence, project: Path, profile: Optional[Profile]) -> None:
    """Say again why this is no acceptance, and what the records say of its steps; compare with the job and its report.

    `profile`: this checkout's own, None if it has none of that name.
    """
    job, artifacts, where = evidence.job, evidence.artifacts, evidence.artifacts.job()
    if job is None:
        return
    if (job.profile.name, job.backend, job.limit) != (artifacts.profile, artifacts.backend, artifacts.limit):
        evidence.add(where, f"is of profile {job.profile.name}, backend {job.backend}, limit {job.limit}")
    ours, tools = reasons.demands(project, job)
    remade = reasons.conclude(job, evidence.measuring, ours, tools)
    for difference in differences(msgspec.to_builtins(job), msgspec.to_builtins(remade)):
        evidence.add(where, difference.describe("stored", "recomputed"))
    unlike = [f"profile {artifacts.profile} is not in this invoke.yaml"]
    if profile is not None:
        versions = [version for version in job.data if version in profile.rows]
        stated = {**msgspec.structs.asdict(job.profile), "inputs": sorted(job.inputs), "data": job.data}
        known = {
            "published": profile.published,
            "rows": dict(profile.rows),
            "labels": [*(profile.labels or contract.LABELS)],
            "inputs": sorted(map(str, profile.inputs(versions))),
            "data": {version: str(profile.data_path(version)) for version in versions},
        }
        different = (key for key, value in known.items() if stated[key] != value)
        unlike = [f"{key} of the profile are not this checkout's" for key in different]
    word = evidence.report.verdict.verdict if evidence.report and evidence.report.verdict else "nothing of a verdict"
    against = [*remade.not_accepted, *(unlike if word == "accepted" else ())]
    if against and (word == "accepted" or remade.not_accepted != job.not_accepted):
        evidence.add(where, f"the report says {word}, against: {'; '.join(against)}")
    for text in unlike:
        evidence.unchecked[f"{text}: the tree's own are taken"] = OPEN
    pinned = ours.inputs or {}
    if unpinned := [path for path, digest in job.inputs.items() if digest.get("sha256") != pinned.get(path)]:
        text = f"that {some(unpinned)} are the files that they should be: deberta/gates.toml has not their SHA-256"
        evidence.unchecked[text] = SIGNED
    if made := evidence.record_for(str(artifacts.report("json"))):
        builder = made.predicate.run_details.builder.get("version")
        for name, stored, recorded in (
            ("executor", job.measured.executor, made.parameters.get("executor")),
            ("deberta_ascend", {"deberta-ascend": job.measured.deberta_ascend}, builder),
        ):
            if stored != recorded:
                evidence.add(where, f"measured.{name}: stored {stored}, in the report's record {recorded}")
    _check_models(evidence, job)


def _check_models(evidence: Evidence, job: Job) -> None:
    """A figure of the present model rests on a record that names the model, and that one's on the ONNX file.

    The job has the digests of all that was made on the way. Raises nothing: it is found.
    """
    where, digests = evidence.artifacts.job(), {**job.artifacts, **job.measured.artifacts}
    kinds = (*matrix.SAME_ANYWHERE, matrix.MODEL, matrix.WEIGHTS)
    for _, by_length, precision, figure in job.figures():
        parts_of_user = contract.supplied_parts(figure.origin)
        if figure.origin and not parts_of_user:
            continue
        size, lengths = figure.batch_size, tuple(map(int, by_length))
        of_precision = replace(evidence.artifacts, precision=precision)
        for part, path in zip(matrix.parts(of_precision, lengths), by_length.values()):
            links = [(path, str(part.compiled(size)))]
            links += [(str(part.compiled(size)), str(part.onnx))] if ".om" not in parts_of_user else []
            for made, source in links:
                names = evidence.producers.get(made, [])
                if names and not any(source in evidence.records[name].dependencies for name in names):
                    evidence.add(names[0], f"does not name {source}, and {where} has it that {made} was made of it")
        if isinstance(figure, EvaluationFiles):
            for artifact in matrix.of_evaluation(of_precision, lengths, size, figure.version):
                if artifact.kind in kinds and str(artifact.path) not in digests:
                    evidence.add(where, f"has no digest of {artifact.path}, and a figure rests on it")


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
            text = f"whether the code of {stage} was this checkout's: its record names other sources{which}"
            evidence.unchecked[text] = SIGNED
