"""The commands that judge or show what was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional, Sequence

from invoke.context import Context

from deberta import PROJECT
from deberta.core import contract
from deberta.core.errors import ConfigError
from deberta.host.cli.auto import AUTO
from deberta.host.cli.command import DEVICE, RUN, command
from deberta.host.cli.options import Options
from deberta.host.cli.settings import plan_of, prepared_python, session_of
from deberta.host.engine import containers
from deberta.host.plan.evaluation import Plan
from deberta.host.report import bucket_report
from deberta.host.report.request import ReportRequest
from deberta.host.run import runner
from deberta.host.run.runner import Session
from deberta.host.workflows import acceptance as workflow
from deberta.host.workflows import evaluation


@command("sizes", "version", "limit", "loops", "profile", "backend", *DEVICE, *RUN)
def acceptance(c: Context, options: Options) -> None:
    """Measure every batch size and version, judge all gates, and write the report with its verdict."""
    sizes, plan = _batch_sizes(c, options), plan_of(c, options)
    if options.version:
        plan.profile.data_path(options.version)  # raises ConfigError if the profile does not have it
    session = session_of(c, options)
    settings = {"backend": options.backend or c.config.backend, "executor": options.executor or c.config.executor}
    request = ReportRequest(
        purpose="acceptance",
        batch_sizes=sizes,
        versions=[options.version] if options.version else list(plan.profile.rows),
        runners=[plan.tool or contract.RUNNERS[0]],
        loops=options.loops,
        command=_command(plan, session, sizes, options),
        auto=[name for name, value in settings.items() if value == AUTO],
        gates=_gates(c),
        reasons=_reasons(c, session),
        # The CI image alone has this setting, and its code lies in the image.
        in_image=c.config.get("image_unpinned") is not None and Path(containers.CODE) == PROJECT,
    )
    strict = replace(session, strict=True)
    with runner.exclusive(strict):
        workflow.run(strict, plan, request)


@command("profile", "backend", "executor", "keep", "dry")
def report(c: Context, options: Options) -> None:
    """Write report.md, .html and .json of what has been measured: published figures beside measured ones."""
    plan, session, sizes = plan_of(c, options), session_of(c, options, usual="local"), _batch_sizes(c, options)
    with runner.exclusive(session):
        evaluation.write_report(session, plan, sizes, bucket_report.section(session, plan), _gates(c))


def _batch_sizes(c: Context, options: Options) -> list[int]:
    """--bs, or the setting: in increasing order, each once. Raises ConfigError."""
    sizes = options.sizes or sorted({contract.parse_batch_size(size) for size in c.config.batch_sizes})
    if not sizes:
        raise ConfigError("batch_sizes in invoke.yaml is empty. Give it at least one, such as [1, 8]")
    return list(sizes)


def _gates(c: Context) -> Optional[Path]:
    """The user's own gates file, relative to the project; None for ours."""
    setting = str(c.config.get("gates") or "")
    return PROJECT / Path(setting).expanduser() if setting else None


def _reasons(c: Context, session: Session) -> Sequence[str]:
    """Why the settings make this no acceptance; empty if they do not."""
    reasons = []
    if gates := c.config.get("gates"):
        reasons.append(f"the gates are those of {gates}, not deberta/gates.toml")
    if session.executor.name == "local" and prepared_python(c):
        reasons.append("stages_python: the stages ran in an environment that nothing checked against its lock")
    return [*reasons, *(f"the CI image is not pinned: {reason}" for reason in c.config.get("image_unpinned") or ())]


def _command(plan: Plan, session: Session, sizes: Sequence[int], options: Options) -> str:
    """The command line that repeats this run, with what `auto` chose written out."""
    split = f" --version {options.version}" if options.version else ""
    times = f" --loops {options.loops}" if options.loops != contract.PERFORMANCE_LOOPS else ""
    limit = f" --limit {plan.limit}" if plan.limit else ""
    tool = f" --runner {plan.tool}" if plan.tool not in ("", contract.RUNNERS[0]) else ""
    choices = f"--profile {plan.profile.name} --backend {plan.backend}{tool} --executor {session.executor.name}"
    return f"invoke acceptance --bs {','.join(map(str, sizes))}{split}{limit}{times} {choices}"
