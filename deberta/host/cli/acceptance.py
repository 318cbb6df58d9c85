"""The commands about a report: acceptance and report make it, verify, sign and diff are for those that are there."""

from __future__ import annotations

import re
import secrets
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Optional, Sequence

from invoke.context import Context

from deberta import PROJECT
from deberta.core import contract, files
from deberta.core.errors import ConfigError, MissingError
from deberta.core.paths import Artifacts
from deberta.host.cli import output, settings
from deberta.host.cli.auto import AUTO
from deberta.host.cli.command import DEVICE, DEVICES, RUN, command
from deberta.host.cli.options import Options
from deberta.host.plan.plan import Plan
from deberta.host.report import archive, named_reports, verification
from deberta.host.report.named_reports import NamedReport
from deberta.host.report.request import ReportRequest
from deberta.host.report.verification import VerificationRequest
from deberta.host.run.session import Session, exclusive
from deberta.host.workflows import acceptance as workflow
from deberta.host.workflows import conclusion, making
from deberta.host.workflows import diff as diffs
from deberta.host.workflows.diff import Baseline

JUDGING = ("required", "baseline", "baseline_fps", "junit", "json")


@command(
    "sizes", "version", "limit", "loops", "buckets", *JUDGING, "profile", "backend", "language", *DEVICE, *DEVICES, *RUN
)
def acceptance(c: Context, options: Options) -> None:
    """Measure all, judge all gates, and write the report.

    Every batch size and version is measured; the report has the verdict.
    """
    sizes, plan = _batch_sizes(c, options), settings.plan_of(c, options, devices="several")
    if options.version:
        plan.profile.data_path(options.version)  # raises ConfigError if the profile does not have it
    session, values = settings.sharded(c, options, settings.session_of(c, options), plan), settings.read(c)
    session = replace(session, strict=True)
    by_setting = {"backend": options.backend or values.backend, "executor": options.executor or values.executor}
    request = ReportRequest(
        purpose="acceptance",
        batch_sizes=sizes,
        versions=[options.version] if options.version else list(plan.profile.rows),
        runners=[plan.tool or contract.RUNNERS[0]],
        loops=options.loops or contract.loops_of(plan.backend),
        command=_command(plan, session, sizes, options),
        auto=[name for name, value in by_setting.items() if value == AUTO],
        gates=settings.path_of(values.gates),
        language=options.language,
    )
    page = Path(options.junit) if options.junit else None
    if page and not session.dry:
        conclusion.prepare_junit(page)
    baseline = _baseline(c, options)
    with exclusive(session):
        result = workflow.run(session, plan, request, settings.buckets_of(c, options), baseline)
    if result is None:
        return
    if page:
        files.write_text(page, conclusion.junit(result))
    output.show(options, result, conclusion.text(result))
    conclusion.append_summary(options.surroundings.step_summary, result)
    conclusion.check(result, options.required)


@command("baseline", "baseline_fps", "profile", "backend", "language", "executor", "keep", "verbose", "dry")
def report(c: Context, options: Options) -> None:
    """Write the report of what has been measured so far.

    report.md, .html and .json: published figures beside measured ones.
    """
    plan, sizes = settings.plan_of(c, options), _batch_sizes(c, options)
    session = settings.session_of(c, options, usual="local")
    baseline = _baseline(c, options)
    with exclusive(session):
        gates = settings.path_of(settings.read(c).gates)
        making.write_report(session, plan, sizes, gates, options.language, baseline)


CHECKED = ("tree", "acceptance", "replay", "seed", "key", "strict", "require")


@command("profile", "backend", "limit", *CHECKED, "json", "dry")
def verify(c: Context, options: Options) -> None:
    """Check a report against all its files. Writes nothing.

    Digests, every number made again, the signature.
    """
    root = Path(options.tree) if options.tree else settings.workspace(c)
    if not root.is_dir():
        raise MissingError(f"{root} is no folder. Check --path")
    request = replace(
        _request(c, root, options),
        key=Path(options.key) if options.key else None,
        rows=options.replay,
        seed=secrets.randbelow(2**32) if options.seed is None else options.seed,
        strict=options.strict,
        require=options.require,
    )
    if options.dry:
        verification.show(request)
        return
    verification.verify(request, show=partial(output.show, options))


@command("key", "passphrase_env", "new_key", "acceptance", "profile", "backend", "limit", "dry")
def sign(c: Context, options: Options) -> None:
    """Verify a report, then sign it.

    The signature covers its pages, its bill of materials and its records.
    """
    if bool(options.key) == bool(options.new_key):
        raise ConfigError("give --key PRIVATE.pem to sign, or --new-key PATH to make a key")
    passphrase_env = options.passphrase_env or None
    if options.new_key:
        if options.dry:
            print(f"would make {options.new_key} and {options.new_key}.pub")
            return
        return verification.new_key(_without_report(c), Path(options.new_key), passphrase_env)
    request = _request(c, settings.workspace(c), options)
    if options.dry:
        verification.show(request)
        print(f"# then {request.artifacts.attestation()} is written")
        return
    with exclusive(settings.session_of(c, options, executor="local")):
        verification.sign(request, Path(options.key), passphrase_env)


@command("report_a", "report_b", "diff_format", "output", "json", "verify", "no_worse", "profile", "backend", "limit")
def diff(c: Context, options: Options) -> None:
    """Say what differs between two reports, A and B.

    Accuracy row by row, changed labels with their text, fps against the noise, gates, inputs, code, tools, machines.
    """
    if not options.output:
        output.refuse_two_forms(options)
    own, target = _without_report(c), diffs.target(options.output)
    a, b = (_named(c, options, text) for text in (options.report_a, options.report_b))
    result = diffs.compare(own, diffs.source(own, a, options.verify), diffs.source(own, b, options.verify))
    content = result.texts[options.diff_format]
    if target is not None:
        files.write_text(target, content)
        content = f"{result.summary}\n{target}"
    output.show(options, result.difference, content.rstrip("\n"))
    diffs.check(result.difference, options.no_worse)


def _named(c: Context, options: Options, text: str) -> NamedReport:
    """The report that an option names, of the profile, backend and limit of the others."""
    values = settings.read(c)
    profile, backend = options.profile or values.profile, options.backend or values.backend
    return named_reports.find(settings.workspace(c), text, profile, "" if backend == AUTO else backend, options.limit)


def _baseline(c: Context, options: Options) -> Optional[Baseline]:
    """The report that --baseline names, which is found and read before anything is run."""
    if not options.baseline:
        for name, is_typed in (
            ("--baseline-fps", options.baseline_fps),
            (f"--require {diffs.NO_WORSE_REQUIRED}", options.required == diffs.NO_WORSE_REQUIRED),
        ):
            if is_typed:
                raise ConfigError(f"{name} needs a report to compare with: name it with --baseline")
        return None
    return Baseline(_named(c, options, options.baseline), _without_report(c), options.baseline_fps)


def _batch_sizes(c: Context, options: Options) -> list[int]:
    """--bs, or the setting: in increasing order, each once. Raises ConfigError."""
    return list(options.sizes or sorted(set(settings.read(c).batch_sizes)))


def _command(plan: Plan, session: Session, sizes: Sequence[int], options: Options) -> str:
    """The command line that repeats this run, with what `auto` chose written out."""
    split = f" --version {options.version}" if options.version else ""
    times = f" --loops {options.loops}" if options.loops else ""
    limit = f" --limit {plan.limit}" if plan.limit else ""
    tool = f" --runner {plan.tool}" if plan.tool not in ("", contract.RUNNERS[0]) else ""
    choices = f"--profile {plan.profile.name} --backend {plan.backend}{tool} --executor {session.executor.name}"
    return f"invoke acceptance --bs {','.join(map(str, sizes))}{split}{limit}{times} {choices}"


def _request(c: Context, root: Path, options: Options) -> VerificationRequest:
    """What to verify in `root`. A profile that only the tree has, not invoke.yaml, is known by its name alone."""
    values = settings.read(c)
    name = options.profile or values.profile
    is_name = re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII)
    only_in_tree = name not in (values.profiles or {}) and is_name and (root / "results" / name).is_dir()
    profile = None if only_in_tree else settings.profile_of(c, name)
    backend = options.backend or values.backend
    if options.acceptance:
        root = archive.find(root, name, options.acceptance)
        backend = root.parent.parent.name
    elif backend == AUTO:
        backend = archive.find_backend(root, name, options.limit)
    artifacts = Artifacts(name, backend, options.limit)
    return replace(_without_report(c), root=root, artifacts=artifacts, profile=profile, own=not options.tree)


def _without_report(c: Context) -> VerificationRequest:
    """A request for what needs the stages' environment alone."""
    return VerificationRequest(PROJECT, settings.workspace(c), Artifacts(""), settings.stages_environment(c))
