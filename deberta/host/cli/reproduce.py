"""The commands that ask whether what was made can be made again; tasks.py takes them over."""

from __future__ import annotations

import inspect
import os
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from invoke.config import Config
from invoke.context import Context
from invoke.tasks import Task

from deberta import PROJECT
from deberta.core.errors import ConfigError, GateError, some
from deberta.host.cli import auto
from deberta.host.cli.options import DEVICE, command, plan_of, session_of, workspace
from deberta.host.run import runner as pipeline
from deberta.host.workflows import explain as explaining
from deberta.host.workflows import reproduce as reproduction
from deberta.host.workflows.reproduce import Place, ReproductionRun

STEPS = ("executor", "dry")  # what every task that runs steps takes
OWN = ("explain", "reproduce")


@command(
    *("bs", "version", "limit", "loops", "buckets", "precision", "profile", "backend", *DEVICE, "no-lint"),
    *("executor", "force"),
    task="the task: evaluate, perf, build-om, ...",
    relative="as of export-onnx",
    outputs="as of postprocess",
    model="as of lint-onnx",
    rows="as of check-fp16",
    margin="as of check-fp16",
    remake="as of demo",
)
def explain(
    c: Context,
    task: str,
    bs: Optional[str] = None,
    version: Optional[str] = None,
    limit: Optional[str] = None,
    loops: Optional[str] = None,
    buckets: Optional[str] = None,
    precision: Optional[str] = None,
    relative: Optional[str] = None,
    outputs: Optional[str] = None,
    model: Optional[str] = None,
    rows: Optional[str] = None,
    margin: Optional[str] = None,
    remake: bool = False,
    profile: Optional[str] = None,
    backend: Optional[str] = None,
    soc_version: Optional[str] = None,
    device: Optional[str] = None,
    msame: Optional[str] = None,
    runner: Optional[str] = None,
    no_lint: bool = False,
    executor: Optional[str] = None,
    force: bool = False,
) -> None:
    """Say which steps a task would run, and the one reason for each; run nothing."""
    given = {name: value for name, value in locals().items() if name not in ("c", "task") and value}
    body = _task(task, given)
    noted = explaining.plan(lambda: body(c, **given))
    if not noted:
        print(f"{task} runs no step")
        return
    for line in explaining.lines(explaining.judge(noted)):
        print(line)


def _task(name: str, given: Dict[str, Any]) -> Any:
    """The body of a task that runs steps and takes these options. Raises ConfigError."""
    import tasks  # it has taken these tasks over, so not before they are there

    found = {one.name.strip("_").replace("_", "-"): one for one in vars(tasks).values() if isinstance(one, Task)}
    options = {key: set(inspect.signature(one.body).parameters) for key, one in found.items() if key not in OWN}
    explained = sorted(key for key, names in options.items() if names.issuperset(STEPS))
    if name not in explained:
        raise ConfigError(f"{name!r} is no task that runs steps: {', '.join(explained)}")
    if foreign := sorted(set(given) - options[name]):
        raise ConfigError(f"{name} takes no --{foreign[0].replace('_', '-')}. See: invoke --help {name}")
    return found[name].body


@command(
    *("profile", "backend", "limit", "dry"),
    bs="batch sizes, comma separated (default 1,8)",
    executor="of both places, or of each: local,docker",
    images="also build each stage image twice, and compare what is in them",
    in_="make the places in this folder (default: .cache/reproduce in the workspace)",
    keep_places="leave both places there",
    compare="instead: A,B: compare two workspaces as they are, and make nothing",
)
def reproduce(
    c: Context,
    bs: str = "1,8",
    limit: Optional[str] = None,
    images: bool = False,
    in_: Optional[str] = None,
    keep_places: bool = False,
    compare: Optional[str] = None,
    profile: Optional[str] = None,
    backend: Optional[str] = None,
    executor: Optional[str] = None,
    dry: bool = False,
) -> None:
    """Make everything twice, in two fresh workspaces, and compare all that was made."""
    plan = plan_of(c, profile, backend, limit)
    sizes, here = reproduction.parse_batch_sizes(bs), workspace(c)
    if compare:
        run = ReproductionRun(plan, sizes, tuple(plan.profile.rows))
        return _compare(run, *_roots(compare))
    names = reproduction.parse_executors(executor or str(c.config.executor))
    script = auto.cann_setting(PROJECT, c.config.get("cann"))
    pair = reproduction.places(
        Path(in_).absolute() if in_ else here / reproduction.FOLDER, [auto.executor(name, script) for name in names]
    )
    if images and "docker" not in (place.executor for place in pair):
        raise ConfigError("--images needs a place that runs in containers. Add --executor local,docker")
    run = ReproductionRun(plan, sizes, reproduction.present_versions(here, plan, _say))
    reproduction.check_inputs(here, run)
    session = session_of(c, "local", dry=dry)
    with pipeline.exclusive(session):
        if session.dry:
            return _show(run, pair)
        reproduction.check_disk(here, pair[0].root.parent, run)
        try:
            for place in pair:
                reproduction.fill(place, here, run, _settings(c))
                reproduction.make(PROJECT, place, run, place.root.parent / "logs", _say)
            odd = _images(c, run) if images else []
            _compare(run, pair[0].root, pair[1].root, odd)
        finally:
            for place in pair:
                if keep_places:
                    print(f"kept: {place.root}")
                else:
                    reproduction.clear(place)


def _compare(run: ReproductionRun, one: Path, other: Path, odd: Sequence[str] = ()) -> None:
    """Print the table and judge it. `odd`: what differs in images that were built twice."""
    found = reproduction.compare(one, other, run)
    print(f"{one} and {other}:")
    for line in reproduction.table(found):
        print(line)
    reproduction.judge(found)
    if odd:
        raise GateError(f"two builds of an image differ in {len(odd)} paths: {some(odd, 20)}")
    print(f"identical: {sum(map(bool, found))} of {len(found)} artifacts")


def _roots(text: str) -> Tuple[Path, Path]:
    roots = [Path(part).absolute() for part in text.split(",")]
    if len(roots) != 2 or not all(root.is_dir() for root in roots):
        raise ConfigError(f"--compare {text!r} is not two folders: --compare A,B")
    return roots[0], roots[1]


def _images(c: Context, run: ReproductionRun) -> List[str]:
    """What differs in the images of the run's stages, each built anew."""
    from deberta.host.images import contents
    from deberta.host.images import definition as planning

    stages = ("export", *(("compile", "runtime") if run.plan.backend == "ascend" else ()))
    settings = planning.settings(c.config.get("images"), PROJECT)
    found = contents.rebuild_all(PROJECT, workspace(c), settings, stages, _say)
    for tag, differences in found.items():
        _say(f"image {tag}: {len(differences)} differences between two builds")
        for line in differences:
            _say(f"  {line}")
    return [f"{tag}{line}" for tag, differences in found.items() for line in differences]


def _settings(c: Context) -> Dict[str, Any]:
    """The settings of invoke.yaml as they are here and now, for a process of its own."""
    return {key: _plain(value) for key, value in c.config.items() if key not in Config.global_defaults()}


def _plain(value: Any) -> Any:
    return {key: _plain(one) for key, one in value.items()} if hasattr(value, "items") else value


def _show(run: ReproductionRun, pair: Sequence[Place]) -> None:
    """What a person could paste, but for the comparison."""
    for place in pair:
        print(f"mkdir -p {shlex.quote(str(place.root))}")
        print(f"cp --parents {shlex.join(map(str, reproduction.inputs(run)))} {shlex.quote(str(place.root))}")
        variables = f"INVOKE_WORKSPACE={shlex.quote(str(place.root))} INVOKE_EXECUTOR={place.executor}"
        for line in reproduction.commands(run):
            print(f"{variables} {shlex.quote(os.path.join(PROJECT, 'inv'))} {shlex.join(line)}")


def _say(line: str) -> None:
    print(line, flush=True)
