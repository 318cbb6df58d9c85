"""The commands that judge or show what was measured; tasks.py takes them over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional, Sequence

from invoke.context import Context

from deberta import PROJECT
from deberta.core import contract
from deberta.core.errors import ConfigError
from deberta.host.cli.options import DEVICE, RUN, command, plan_of, prepared_python, session_of, version_of
from deberta.host.engine import containers
from deberta.host.plan.evaluation import Plan
from deberta.host.report import bucket_report
from deberta.host.report.request import ReportRequest
from deberta.host.run import runner as pipeline
from deberta.host.run.runner import Session
from deberta.host.workflows import acceptance as accepting
from deberta.host.workflows import evaluation

AUTO = "auto"


@command(
    *("version", "limit", "loops", "profile", "backend", *DEVICE, *RUN),
    bs="batch sizes, comma separated (default: batch_sizes in invoke.yaml)",
)
def acceptance(
    c: Context,
    bs: Optional[str] = None,
    version: Optional[str] = None,
    limit: Optional[str] = None,
    loops: Optional[str] = None,
    profile: Optional[str] = None,
    backend: Optional[str] = None,
    soc_version: Optional[str] = None,
    device: Optional[str] = None,
    msame: Optional[str] = None,
    runner: Optional[str] = None,
    executor: Optional[str] = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Measure every batch size and version, judge all gates, and write the report with its verdict."""
    sizes, only = _sizes(c, bs), version_of(version) if version else None
    times = contract.parse_integer("--loops", loops, contract.PERFORMANCE_LOOPS, 2, contract.PERFORMANCE_LOOPS)
    plan = plan_of(c, profile, backend, limit, device, runner=runner)
    if only:
        plan.profile.data_path(only)  # the profile has it
    session = session_of(c, executor, force, dry, keep, soc_version, device, msame)
    wanted = {"backend": backend or c.config.backend, "executor": executor or c.config.executor}
    asked = ReportRequest(
        purpose="acceptance",
        batch_sizes=sizes,
        versions=[only] if only else list(plan.profile.rows),
        runners=[plan.tool or contract.RUNNERS[0]],
        loops=times,
        command=_command(plan, session, sizes, only, times),
        auto=[name for name, value in wanted.items() if value == AUTO],
        gates=_gates(c),
        reasons=_reasons(c, session),
        # A setting that the image alone has, and where its code lies.
        in_image=c.config.get("image_unpinned") is not None and Path(containers.CODE) == PROJECT,
    )
    strict = replace(session, strict=True)
    with pipeline.exclusive(strict):
        accepting.run(strict, plan, asked)


@command("profile", "backend", "executor", "keep", "dry")
def report(
    c: Context,
    profile: Optional[str] = None,
    backend: Optional[str] = None,
    executor: Optional[str] = None,
    keep: bool = False,
    dry: bool = False,
) -> None:
    """Write report.md, .html and .json of what has been measured: published figures beside measured ones."""
    plan, session = plan_of(c, profile, backend), session_of(c, executor, dry=dry, keep=keep, usual="local")
    usual = _sizes(c, None)
    with pipeline.exclusive(session):
        evaluation.write_report(session, plan, usual, bucket_report.section(session, plan), _gates(c))


def _sizes(c: Context, given: Optional[str]) -> list[int]:
    """Batch sizes in increasing order, each once."""
    words = given.split(",") if given is not None else [str(size) for size in c.config.batch_sizes]
    sizes = sorted({contract.parse_batch_size(word) for word in words})
    if not sizes:
        raise ConfigError("batch_sizes in invoke.yaml is empty. Give it at least one, such as [1, 8]")
    return sizes


def _gates(c: Context) -> Optional[Path]:
    """The user's own gates file, relative to the project; None for ours."""
    given = str(c.config.get("gates") or "")
    return PROJECT / Path(given).expanduser() if given else None


def _reasons(c: Context, session: Session) -> Sequence[str]:
    """Why this is no acceptance, of what the settings say."""
    said = []
    if given := c.config.get("gates"):
        said.append(f"the gates are those of {given}, not deberta/gates.toml")
    if session.executor.name == "local" and prepared_python(c):
        said.append("stages_python: the stages ran in an environment that nothing checked against its lock")
    said += [f"the CI image is not pinned: {reason}" for reason in c.config.get("image_unpinned") or ()]
    return said


def _command(plan: Plan, session: Session, sizes: Sequence[int], version: Optional[str], loops: int) -> str:
    """What does the same again, whatever `auto` would choose then."""
    split = f" --version {version}" if version else ""
    times = f" --loops {loops}" if loops != contract.PERFORMANCE_LOOPS else ""
    limit = f" --limit {plan.limit}" if plan.limit else ""
    runner = f" --runner {plan.tool}" if plan.tool not in ("", contract.RUNNERS[0]) else ""
    options = f"--profile {plan.profile.name} --backend {plan.backend}{runner} --executor {session.executor.name}"
    return f"invoke acceptance --bs {','.join(map(str, sizes))}{split}{limit}{times} {options}"
