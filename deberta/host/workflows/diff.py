"""diff: what differs between two reports; and the baseline of a report, which is a diff with the report as B."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Mapping, NamedTuple, Optional

from msgspec import structs

from deberta.core import files, schema
from deberta.core.differences import NO_WORSE, UNVERIFIED, VERIFIED, WORSE, DiffJob, DiffSource, ReportDifference
from deberta.core.errors import ConfigError, DataError, GateError, some
from deberta.core.job import Job
from deberta.host.plan.plan import Plan
from deberta.host.report import verification
from deberta.host.report.named_reports import NamedReport
from deberta.host.report.verification import VerificationRequest
from deberta.host.run.session import Session
from deberta.host.user_files import named_paths

STAGE = "deberta.stages.diff.diff"
NO_WORSE_REQUIRED = "no-worse"
FORMATS = ("text", "markdown", "json")

# How our texts begin: a file that begins otherwise is not replaced.
_HEADS = ("A: ", "# What differs between A and B\n", '{\n  "format": 1,\n  "a": {')


class DiffResult(NamedTuple):
    """A difference, the same for people by format, and in one line."""

    difference: ReportDifference
    texts: Mapping[str, str]
    summary: str


@dataclass(frozen=True)
class Baseline:
    """What a report is held against. `own`: a request for what needs the stages' environment alone.

    `replaces_published`: its fps stand in the place of the published baseline's.
    """

    report: NamedReport
    own: VerificationRequest
    replaces_published: bool = False

    def check(self, session: Session, plan: Plan) -> None:
        """Raise ConfigError for the report that is about to be replaced: it would be compared with itself."""
        if os.path.realpath(self.report.path) == os.path.realpath(session.workspace / plan.artifacts.report("json")):
            raise ConfigError(
                f"--baseline {self.report.name} is the report that this command replaces. Name an acceptance that is "
                "kept: --baseline latest"
            )

    def add(self, session: Session, plan: Plan, job: Job) -> Job:
        """Compare the report that is there with the baseline; returns its job, which names the result."""
        artifacts, root = plan.artifacts, session.workspace
        report = NamedReport("this report", root / artifacts.report("json"), artifacts, root, own=True)
        a, b = self.report.source(UNVERIFIED), report.source(UNVERIFIED)
        difference = compare(self.own, a, b, self.replaces_published).difference
        path = artifacts.baseline()
        files.write_text(root / path, schema.text(difference))
        digests = {**job.measured.artifacts, str(path): session.digests.of(path)}
        return structs.replace(job, baseline=str(path), measured=structs.replace(job.measured, artifacts=digests))


def source(own: VerificationRequest, report: NamedReport, verify: bool) -> DiffSource:
    """A side of the comparison, verified first if asked. Raises MissingError."""
    if not verify:
        return report.source(UNVERIFIED)
    if report.root is None:
        return report.source(f"{UNVERIFIED}: it is a report without its tree")
    request = replace(own, root=report.root, artifacts=report.artifacts, own=report.own)
    try:
        verification.verify(request, show=lambda document, text: None)
    except DataError as error:
        return report.source(f"does not verify: {error}")
    return report.source(VERIFIED)


def compare(own: VerificationRequest, a: DiffSource, b: DiffSource, replaces_published: bool = False) -> DiffResult:
    """Run the stage, outside of both trees. Raises its errors."""
    with tempfile.TemporaryDirectory(prefix="deberta-diff-") as folder:
        scratch = Path(folder)
        job, document, *pages = (scratch / name for name in ("job.json", "diff.json", "diff.txt", "diff.md"))
        files.write_text(job, schema.text(DiffJob(a=a, b=b, replaces_published=replaces_published)))
        arguments = ["--job", job, "--output", document, "--text", pages[0], "--markdown", pages[1]]
        printed = verification.run_stage(replace(own, root=scratch), STAGE, arguments, scratch)
        difference = schema.read(document, ReportDifference, "Run the same command again")
        texts = dict(zip(FORMATS, map(files.read_text, (*pages, document))))
        return DiffResult(difference, texts, printed.strip())


def target(option: str) -> Optional[Path]:
    """The file that --output names, None without. Raises DataError for one that no diff wrote, and ConfigError."""
    if not option:
        return None
    named_paths.is_replaceable("--output", Path(option), _HEADS, "diff")
    return Path(option)


def lines(difference: ReportDifference) -> list[str]:
    """What an acceptance says of its baseline."""
    reasons = [f"  worse: {text}" for text in difference.worse]
    reasons += [f"  not compared: {text}" for text in difference.not_compared]
    return [f"beside {difference.a.name}: {difference.conclusion}", *reasons]


def check(difference: Optional[ReportDifference], require: str) -> None:
    """Raise GateError if no-worse is required, and B is worse than A or not all of it was compared."""
    if not require or difference is None or difference.conclusion == NO_WORSE:
        return
    about = f"--require {require}: {difference.b.name} beside {difference.a.name}"
    if difference.conclusion == WORSE:
        raise GateError(f"{about} is worse: {some(difference.worse, 3)}")
    raise GateError(f"{about} was not compared in all: {some(difference.not_compared, 3)}")
