"""The command that makes everything twice and compares."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, Sequence

from invoke.config import Config
from invoke.context import Context

from deberta import PROJECT
from deberta.core.errors import ConfigError, GateError, some
from deberta.host.cli import auto
from deberta.host.cli.command import command
from deberta.host.cli.options import Options
from deberta.host.cli.settings import plan_of, session_of, workspace
from deberta.host.run import runner
from deberta.host.workflows import reproduce as workflow
from deberta.host.workflows.reproduce import Place, ReproductionRun


@command("profile", "backend", "limit", "executors", "images", "in_", "keep_places", "compare", "dry", sizes="1,8")
def reproduce(c: Context, options: Options) -> None:
    """Make everything twice, in two fresh workspaces, and compare all that was made."""
    plan, folder = plan_of(c, options), workspace(c)
    if options.compare:
        run = ReproductionRun(plan, options.sizes, tuple(plan.profile.rows))
        return _compare(run, *_roots(options.compare))
    names = workflow.parse_executors(options.executors or str(c.config.executor))
    script = auto.cann_setting(PROJECT, c.config.get("cann"))
    places = workflow.places(
        Path(options.in_).absolute() if options.in_ else folder / workflow.FOLDER,
        [auto.executor(name, script) for name in names],
    )
    if options.images and "docker" not in (place.executor for place in places):
        raise ConfigError("--images needs a place that runs in containers. Add --executor local,docker")
    run = ReproductionRun(plan, options.sizes, workflow.present_versions(folder, plan, _say))
    workflow.check_inputs(folder, run)
    session = session_of(c, options, executor="local")
    with runner.exclusive(session):
        if session.dry:
            return _show(run, places)
        workflow.check_disk(folder, places[0].root.parent, run)
        try:
            for place in places:
                workflow.fill(place, folder, run, _settings(c))
                workflow.make(PROJECT, place, run, place.root.parent / "logs", _say)
            differences = _rebuild_images(c, run) if options.images else []
            _compare(run, places[0].root, places[1].root, differences)
        finally:
            for place in places:
                if options.keep_places:
                    print(f"kept: {place.root}")
                else:
                    workflow.clear(place)


def _compare(run: ReproductionRun, first: Path, second: Path, in_images: Sequence[str] = ()) -> None:
    """Print the table and judge it. `in_images`: the paths that differ in two builds of an image."""
    artifacts = workflow.compare(first, second, run)
    print(f"{first} and {second}:")
    for line in workflow.table(artifacts):
        print(line)
    workflow.judge(artifacts)
    if in_images:
        raise GateError(f"two builds of an image differ in {len(in_images)} paths: {some(in_images, 20)}")
    print(f"identical: {sum(map(bool, artifacts))} of {len(artifacts)} artifacts")


def _roots(text: str) -> tuple[Path, Path]:
    """The two folders of --compare A,B. Raises ConfigError."""
    roots = [Path(part).absolute() for part in text.split(",")]
    if len(roots) != 2 or not all(root.is_dir() for root in roots):
        raise ConfigError(f"--compare {text!r} is not two folders: --compare A,B")
    return roots[0], roots[1]


def _rebuild_images(c: Context, run: ReproductionRun) -> list[str]:
    """Build the image of each stage of the run anew; returns what differs from the one that is there."""
    from deberta.host.images import contents, definition

    stages = ("export", "compile", "runtime") if run.plan.backend == "ascend" else ("export",)
    settings = definition.settings(c.config.get("images"), PROJECT)
    by_tag = contents.rebuild_all(PROJECT, workspace(c), settings, stages, _say)
    for tag, differences in by_tag.items():
        _say(f"image {tag}: {len(differences)} differences between two builds")
        for line in differences:
            _say(f"  {line}")
    return [f"{tag}{line}" for tag, differences in by_tag.items() for line in differences]


def _settings(c: Context) -> dict[str, Any]:
    """The settings of invoke.yaml as they are here and now, for a process of its own."""
    return {key: _plain(value) for key, value in c.config.items() if key not in Config.global_defaults()}


def _plain(value: Any) -> Any:
    return {key: _plain(entry) for key, entry in value.items()} if hasattr(value, "items") else value


def _show(run: ReproductionRun, places: Sequence[Place]) -> None:
    """Print what a person could paste to do the same, but for the comparison."""
    for place in places:
        print(f"mkdir -p {shlex.quote(str(place.root))}")
        print(f"cp --parents {shlex.join(map(str, workflow.inputs(run)))} {shlex.quote(str(place.root))}")
        variables = f"INVOKE_WORKSPACE={shlex.quote(str(place.root))} INVOKE_EXECUTOR={place.executor}"
        for line in workflow.commands(run):
            print(f"{variables} {shlex.quote(os.path.join(PROJECT, 'inv'))} {shlex.join(line)}")


def _say(line: str) -> None:
    print(line, flush=True)
