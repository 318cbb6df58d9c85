"""The command that makes everything twice and compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from invoke.context import Context

from deberta.core.errors import ConfigError
from deberta.host.cli import auto
from deberta.host.cli.command import command
from deberta.host.cli.options import Options
from deberta.host.cli.settings import cann_script, image_builds, plan_of, read, session_of, workspace
from deberta.host.run.session import exclusive
from deberta.host.workflows import reproduce as workflow
from deberta.host.workflows.evaluation import present_versions
from deberta.host.workflows.reproduce import ReproductionRun


@command("profile", "backend", "limit", "executors", "images", "in_", "keep_places", "compare", "dry", sizes="1,8")
def reproduce(c: Context, options: Options) -> None:
    """Make everything twice, in two fresh workspaces, and compare."""
    plan, folder = plan_of(c, options), workspace(c)
    if options.compare:
        run = ReproductionRun(plan, options.sizes, tuple(plan.profile.rows))
        return workflow.conclude(run, _roots(options.compare))
    names = workflow.parse_executors(options.executors or read(c).executor)
    places = workflow.places(
        Path(options.in_) if options.in_ else folder / workflow.FOLDER,
        [auto.executor(name, cann_script(c)) for name in names],
    )
    if options.images and "docker" not in (place.executor for place in places):
        raise ConfigError("--images needs a place that runs in containers. Add --executor local,docker")
    session = session_of(c, options, executor="local")
    run = ReproductionRun(plan, options.sizes, present_versions(session, plan))
    builds = image_builds(c) if options.images else None
    # As they are here and now, for a process of its own.
    settings = msgspec.to_builtins(read(c))
    with exclusive(session):
        workflow.run(session, run, places, settings, builds, options.keep_places)


def _roots(names: Sequence[str]) -> tuple[Path, Path]:
    """The two folders of --compare A,B. Raises ConfigError."""
    roots = list(map(Path, names))
    if len(roots) != 2 or not all(root.is_dir() for root in roots):
        raise ConfigError(f"--compare {','.join(names)} is not two folders: --compare A,B")
    return roots[0], roots[1]
