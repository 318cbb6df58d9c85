"""A report's job: all that the host knows of what was measured, and the stages that turn it into the report."""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Callable, Iterable, Mapping, Optional, Sequence

import deberta
from deberta.core import buckets, contract, files, machine, progress, records, schema
from deberta.core.errors import DataError, MissingError
from deberta.core.job import FORMAT, Gates, HostFacts, Job, JobMeasured, JobProfile, PinFacts
from deberta.core.paths import ACCEPTANCES
from deberta.core.records import Record
from deberta.core.report import Report
from deberta.host.plan import checks, matrix
from deberta.host.plan.matrix import Artifact
from deberta.host.plan.plan import Plan, Step
from deberta.host.report import bom, evidence, measurements, reasons
from deberta.host.report.evidence import Evidence
from deberta.host.report.measurements import Measured
from deberta.host.run import freshness, runner
from deberta.host.run.session import Session

ACCEPTANCE, REPORT = "acceptance", "report"  # purposes
AddBaseline = Callable[[Session, Plan, Job], Job]


@dataclass(frozen=True)
class ReportRequest:
    """What a report is to be about.

    `gates`: the user's own file, None for ours. `runners`: whose performance runs count. `auto`: what was left to it,
    of backend and executor.
    """

    purpose: str  # acceptance or report
    batch_sizes: Sequence[int]
    versions: Sequence[str]
    runners: Sequence[str]
    loops: int
    command: str
    auto: Sequence[str] = ()
    gates: Optional[Path] = None
    language: str = contract.LANGUAGES[0]  # of the pages


def of_report(
    session: Session, plan: Plan, usual: Sequence[int], gates: Optional[Path], language: str
) -> ReportRequest:
    """The report of everything that was measured so far, at the `usual` batch sizes and any other."""
    return ReportRequest(
        purpose=REPORT,
        batch_sizes=sorted({*usual, *measurements.present(session, plan)}),
        versions=list(plan.profile.rows),
        runners=contract.RUNNERS,
        loops=contract.loops_of(plan.backend),
        command=plan.command("report"),
        gates=gates,
        language=language,
    )


def make(session: Session, plan: Plan, request: ReportRequest) -> Job:
    """The job. Raises MissingError if nothing was measured, DataError if a file was altered."""
    measured = measurements.collect(session, plan, request.batch_sizes, request.versions, request.runners)
    if not (measured.evaluations or measured.performances or measured.throughputs or measured.left_out):
        raise MissingError(f"nothing has been measured in {plan.artifacts.results}. Run: {plan.command('evaluate')}")
    for text in measured.left_out:
        progress.say(f"left out of the report: {text}")
    profile = plan.profile
    data = {v: profile.data_path(v) for v in request.versions if (session.workspace / profile.data_path(v)).exists()}
    artifacts = _artifacts(plan, request, measured)
    same_anywhere = [path for path, kind in artifacts if kind in matrix.SAME_ANYWHERE]
    theirs = [path for path in same_anywhere if freshness.is_user_supplied(session, path)]
    same_anywhere = [path for path in same_anywhere if path not in theirs]
    job = Job(
        format=FORMAT,
        purpose=request.purpose,
        profile=JobProfile(
            name=profile.name,
            published=profile.published,
            labels=list(profile.labels or contract.LABELS),
            rows=dict(profile.rows),
        ),
        backend=plan.backend,
        limit=plan.limit,
        loops=request.loops,
        batch_sizes=list(request.batch_sizes),
        versions=list(request.versions),
        data={version: str(path) for version, path in data.items()},
        sentinels=_current(session, plan, data, checks.check_data),
        references=_current(session, plan, data, checks.reference),
        cells=measured.evaluations,
        performances=measured.performances,
        on_devices=measured.on_devices,
        throughputs=measured.throughputs,
        label_changes=measured.label_changes,
        inputs=_digests(session, profile.inputs(data)),
        artifacts=_digests(session, same_anywhere),
        gates=gates(session, plan, request),
        published=[],
        note="",
        auto=list(request.auto),
        language=request.language,
        not_accepted=[],
        measured=JobMeasured(
            finished=records.now(),
            deberta_ascend=deberta.__version__,
            command=request.command + (f" ({' and '.join(request.auto)} taken by auto)" if request.auto else ""),
            executor=session.executor.name,
            loops=request.loops,
            host=host(),
            pins=PinFacts(pinned=False, notes=[]),
            tools={},
            engines=[],
            steps=[],
            artifacts=_digests(session, [*_of_this_machine(artifacts, measured), *theirs]),
            places={},
        ),
    )
    chain = Evidence(session.workspace, plan.artifacts, job=job, own=True)
    evidence.follow(chain)
    if request.purpose == ACCEPTANCE:
        of_steps = {
            path: record for path, record in chain.records.items() if job.inputs.keys().isdisjoint(record.subjects)
        }
        one_build_of_each(of_steps)
    return reasons.conclude(job, chain.measuring, *reasons.demands(session.project, job))


def publish(session: Session, plan: Plan, job: Job, add_baseline: Optional[AddBaseline] = None) -> Report:
    """Write the job, run the stages that make report.json, report.md and report.html of it, and list what it stands on.

    The signature of the report before is removed: it stays with its acceptance. `add_baseline`: compares the report
    with its baseline and returns the job that names the result, of which the report is made again.
    """
    report, signature = plan.artifacts.report("json"), session.workspace / plan.artifacts.attestation()
    if signature.exists():  # First: a kill must not leave it beside a report that it is not of.
        files.remove(signature)
        progress.say(f"{plan.artifacts.attestation()} was of the report before: it is in {ACCEPTANCES}/ alone now")
    with freshness.intended(session, [plan.artifacts.job()], None):
        files.write_text(session.workspace / plan.artifacts.job(), schema.text(job))
        session.digests.save()  # the other session starts with what is known here
        anew = _run_stages(session, plan, job, job.language)
        if add_baseline is None:
            files.remove(session.workspace / plan.artifacts.baseline())  # of the report before
        else:
            job = add_baseline(session, plan, job)
            files.write_text(session.workspace / plan.artifacts.job(), schema.text(job))
            anew = _run_stages(session, plan, job, job.language)
        bom.write(anew, plan)
    return schema.read(session.workspace / report, Report, f"Run: {plan.command('report')}")


def show(session: Session, plan: Plan, language: str, purpose: str) -> None:
    """What `publish` would do, in a dry run."""
    session.show(f"{plan.artifacts.job()} is written by this command itself, of the records and what they name")
    _run_stages(replace(session, force=True, why_forced=_why(session, purpose)), plan, None, language)


def _run_stages(session: Session, plan: Plan, job: Optional[Job], language: str) -> Session:
    """Run both; returns the session that knows the digests of what they wrote.

    An acceptance's always run. Those of a report run if its job, or what that names, is another one than before: the
    same give the same bytes. A dry run has no job yet, and shows them.
    """
    always = session.force or job is None or job.purpose == ACCEPTANCE
    why = _why(session, job.purpose) if job is not None else session.why_forced
    anew = replace(session, force=always, task="", why_forced=why, strict=False)
    for step in (checks.assess(plan, job), checks.render(plan, language)):
        runner.run(anew, step)
    return anew


def _why(session: Session, purpose: str) -> str:
    """Why a report's stages run, or would."""
    if session.force:
        return session.why_forced
    return "it is made anew each time" if purpose == ACCEPTANCE else "it is made anew if what it is about changed"


def one_build_of_each(step_records: Mapping[str, Record]) -> None:
    """Raise DataError where two steps' records (by path) have different digests of one image."""
    seen: dict[str, tuple[str, str]] = {}
    for path, record in step_records.items():
        for name, digest in record.images.items():
            first_path, first_digest = seen.setdefault(name, (path, digest))
            if digest != first_digest:
                raise DataError(
                    f"{path} says that image {name} is sha256:{digest}, and {first_path} that it is "
                    f"sha256:{first_digest}: a record was altered, or the image was built again on the way. "
                    f"Run: invoke acceptance --force"
                )


def host() -> HostFacts:
    """The machine that this runs on."""
    return HostFacts(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        cpu=machine.cpu_name(),
        cpus=machine.effective_cpus(),
        name=socket.gethostname(),
    )


def gates(session: Session, plan: Plan, request: ReportRequest) -> Gates:
    """The profile's gates, as far as they are about what was requested. Raises gates.load's errors."""
    of_profile = gates_of_profile(session.project, plan.profile.name, request.gates)
    return reasons.applicable(of_profile, plan.profile.published, request.versions)


def gates_of_profile(project: Path, profile: str, path: Optional[Path]) -> Gates:
    """All gates of a profile, of the user's own file if there is one. Raises gates.load's errors."""
    from deberta.host.report import gates as gates_file  # tomlkit is not loaded for the list of tasks

    return gates_file.load(path or project / gates_file.OURS, profile)


def _current(
    session: Session, plan: Plan, versions: Iterable[str], plan_step: Callable[[Plan, str], Step]
) -> dict[str, str]:
    """version -> the step's output, where it is of the present inputs."""
    steps = {version: plan_step(plan, version) for version in versions}
    return {version: str(step.outputs[0]) for version, step in steps.items() if not freshness.outdated(session, step)}


def _artifacts(plan: Plan, request: ReportRequest, measured: Measured) -> list[Artifact]:
    """What was made on the way, in that order: of the whole matrix padded, and of the present model's other runs."""
    base = plan.artifacts
    artifacts = [artifact for version in request.versions for artifact in matrix.of_version(base, version)]
    for size in request.batch_sizes:
        for version in request.versions:
            artifacts += matrix.of_evaluation(base, buckets.PADDED, size, version)
            artifacts += matrix.of_performance(base, buckets.PADDED, size, version, request.runners)
    for cell in (cell for cell in measured.evaluations if not cell.origin):
        of_precision = replace(base, precision=cell.precision)
        artifacts += matrix.of_evaluation(of_precision, tuple(map(int, cell.outputs)), cell.batch_size, cell.version)
    for result in (result for result in measured.throughputs if not result.origin):
        of_precision, lengths = replace(base, precision=result.precision), tuple(map(int, result.logs))
        artifacts += matrix.of_performance(of_precision, lengths, result.batch_size, result.version, request.runners)
    return list(dict.fromkeys(artifacts))


def _of_this_machine(artifacts: Iterable[Artifact], measured: Measured) -> list[PurePosixPath]:
    kinds = (matrix.MODEL, matrix.WEIGHTS, matrix.REFERENCE)
    names = [folder for cell in measured.evaluations for folder in cell.outputs.values()]
    names += [str(PurePosixPath(cell.evaluation).with_suffix(".json")) for cell in measured.evaluations]
    names += [cell.predictions for cell in measured.evaluations if cell.predictions]
    names += [run.log for run in (*measured.performances, *measured.on_devices)]
    names += [path for result in measured.throughputs for path in (result.throughput, *result.logs.values())]
    names += [changes.label_changes for changes in measured.label_changes]
    return [*(path for path, kind in artifacts if kind in kinds), *map(PurePosixPath, names)]


def _digests(session: Session, paths: Iterable[PurePosixPath]) -> dict[str, dict[str, str]]:
    """Of those that are there; a folder of outputs that the user named may be anywhere, and is left out."""
    present = [path for path in paths if not path.is_absolute() and (session.workspace / path).exists()]
    return {str(path): session.digests.of(path) for path in present}
