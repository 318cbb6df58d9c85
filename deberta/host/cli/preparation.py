"""The commands that set a machine up and clear it again: downloads, images, what is missing, what was made."""

from __future__ import annotations

import functools
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from invoke.context import Context
from invoke.exceptions import Exit

from deberta import PROJECT
from deberta.core import contract
from deberta.core.errors import ConfigError, DebertaError, MissingError
from deberta.host.cli import auto, output, settings, settings_file
from deberta.host.cli.auto import AUTO
from deberta.host.cli.command import COMMANDS, command
from deberta.host.cli.options import Options, user_path, user_paths
from deberta.host.engine import ping
from deberta.host.environments import fetch_wheels, locks, offline
from deberta.host.plan import profiles
from deberta.host.plan.plan import Plan
from deberta.host.report import request
from deberta.host.run import recorded
from deberta.host.run.session import Session, exclusive, holder
from deberta.host.user_files import add_profile as adding
from deberta.host.workflows import adopt as adoption
from deberta.host.workflows import clean as workflow
from deberta.host.workflows import doctor as checkup
from deberta.host.workflows import readiness
from deberta.host.workflows import status as status_workflow

# What needs tomlkit or the docker SDK is imported by the task that needs it: `invoke -l` must not load them.


@command("only", "pretrained", "from_", "mirror", "accept_new", "profile", "dry")
def fetch(c: Context, options: Options) -> None:
    """Get the guide's checkpoint, tokenizer and MNLI; check SHA-256."""
    from deberta.host.fetch import fetch as download

    names = [name.strip() for name in options.only.split(",")]
    names += ["pretrained"] if options.pretrained and "pretrained" not in names else []
    if options.dry:
        print(f"would get {', '.join(names)} from {options.from_ or 'the network'} into {settings.workspace(c)}")
        return
    download.fetch(
        settings.workspace(c),
        settings.profile_of(c, options.profile).name,
        names,
        from_dir=Path(options.from_) if options.from_ else None,
        mirrors=options.mirror,
        accept_new=options.accept_new,
    )


@command("folder", "copy", "profile", "executor", "keep", "verbose", "dry", backend="ascend")
def adopt(c: Context, options: Options) -> None:
    """Take what fits from a folder in which the guide was followed.

    It is linked or copied into the profile's places, and stays the user's.
    """
    folder = Path(options.folder)
    if not folder.is_dir():
        raise MissingError(f"{folder} is no folder. Name the one that holds dynamic.onnx, deberta_bs8.om, result/ ...")
    plan, session = settings.plan_of(c, options), settings.session_of(c, options, usual="local")
    known = request.gates_of_profile(PROJECT, plan.profile.name, settings.path_of(settings.read(c).gates))
    with exclusive(session):
        adoption.run(session, plan, folder, options.copy, known.inputs or {})


@command("base", "stage", "platform", "context", "lock", "force", "dry")
def images(c: Context, options: Options) -> None:
    """Build the stage images that are missing, from docker/pins.toml."""
    from deberta.host.images import manage, pins

    builds = settings.image_builds(c)
    if options.lock:
        if options.base or options.stage or options.platform or options.context or options.dry:
            raise ConfigError("--lock is given alone, and writes docker/pins.toml")
        return manage.lock(PROJECT)
    if options.base:
        manage.replace_bases(PROJECT, options.base, options.dry)
    machine = pins.machine_of(options.platform) if options.platform else ""
    if options.context:
        if options.force:
            raise ConfigError("--context goes without --force: it builds nothing, and takes a new or empty folder")
        return manage.write_contexts(PROJECT, builds, Path(options.context), options.stage, machine, options.dry)
    manage.make(PROJECT, settings.workspace(c), builds, options.stage, machine, options.force, options.dry)


@command("dir", "for_", "dev", "dry")
def wheelhouse(c: Context, options: Options) -> None:
    """Fetch every package that machines without network need.

    Each is checked by the hashes of the locks. The setting wheelhouse installs from the folder alone.
    """
    from deberta.host.images import pins

    machines = [contract.one_of("--for", name, locks.MACHINES) for name in options.for_] or [platform.machine()]
    if machines[0] not in locks.MACHINES:
        raise ConfigError(
            f"the locks are not for {machines[0]}. Name a machine: --for {' or --for '.join(locks.MACHINES)}"
        )
    if options.dry:
        for target in fetch_wheels.targets(PROJECT, machines, options.dev):
            print(f"would fetch what {options.dir} lacks of {fetch_wheels.describe(target)}")
        return
    fetch_wheels.fill(PROJECT, Path(options.dir), machines, options.dev, pins.load(PROJECT).debs)
    print(f"Without network, name the folder: wheelhouse: DIR in {offline.SETTINGS}, or {offline.VARIABLE}=DIR")


@command("tag", "force", "dry")
def ci_image(c: Context, options: Options) -> None:
    """Build one image for acceptance runs in CI.

    It holds everything but the checkpoint and the data.
    """
    from deberta.host.images import ci

    name = ci.check_name(options.tag) if options.tag else ""
    ci.make(PROJECT, settings.workspace(c), settings.image_builds(c), name, options.force, options.dry)


FILES = ("user_model", "data", "tokenizer", "copy")
MEANINGS = ("labels", "columns", "label_words")


@command("profile_name", *FILES, *MEANINGS, "executor", "dry")
def add_profile(c: Context, options: Options) -> None:
    """Make a profile of a model and data of yours.

    They are looked at, linked into place, and named in invoke.yaml.
    """
    request = adding.Request(
        name=options.profile_name,
        model=Path(options.user_model),
        tokenizer=Path(options.tokenizer) if options.tokenizer else None,
        data=adding.by_version([path for text in options.data for path in _paths(text)]),
        labels=options.labels,
        columns=options.columns,
        label_words=options.label_words,
        copy=options.copy,
    )
    session, file = settings.session_of(c, options), settings.file_of(c)
    known = profiles.by_name(settings.read(c).profiles or {})
    with exclusive(session):
        adding.add(session, request, known, functools.partial(settings_file.prepare_profile, file))


def _paths(text: str) -> list[Path]:
    """The paths of one --data: commas separate them, unless a file has them in its name."""
    whole = Path(user_path(text))
    return [whole] if whole.exists() else list(map(Path, user_paths(text)))


@command("profile", "backend", "executor", "json")
def doctor(c: Context, options: Options) -> None:
    """Say what can run here now, what is missing, and how to get it.

    Each check says what it blocks. The exit code is 3 if this backend and executor lack something.
    """
    plan, values, script = settings.cpu_plan(c, options), settings.read(c), settings.cann_script(c)
    backend, _ = auto.pick_backend(options.backend or values.backend, False, script, PROJECT)
    usual = "local" if plan.profile.name == "demo" else ""
    executor, _ = auto.pick_executor(options.executor or values.executor, script, usual)
    folder, python, msame = settings.workspace(c), settings.prepared_python(c), settings.msame_path(c)
    wheels = settings.wheelhouse(c)
    checks = checkup.run(PROJECT, folder, plan, python, cann_setting=script, msame_path=msame, wheels=wheels)
    surroundings = (backend, executor, values.runner, *([AUTO] if values.soc_version == AUTO else []))
    missing = checkup.missing(checks, surroundings)
    can_run = readiness.judge(folder, *_plans(c), readiness.of_checks(checks))
    diagnosis = readiness.Diagnosis(
        can_run=can_run,
        profile=plan.profile.name,
        backend=backend,
        executor=executor,
        ready=not missing,
        missing=[check.name for check in missing],
        checks=checks,
    )
    output.show(options, diagnosis, f"{can_run.line}\n\n{checkup.render(checks, surroundings)}")
    if missing:
        raise Exit(code=3)


@command("profile", "json")
def status(c: Context, options: Options) -> None:
    """Say what is there of each profile, and what is stale and why.

    Also what an acceptance would take now.
    """
    plans, wrong = ([settings.cpu_plan(c, options)], []) if options.profile else _plans(c)
    session = settings.session_of(c, replace(options, dry=True), executor=_executor_of(c))
    session = recorded.read_only(session, recorded.BoundedDigests(session.workspace))
    content = status_workflow.Status(
        workspace=str(session.workspace),
        running=holder(session.workspace),
        free=checkup.free_bytes(session.workspace),
        profiles=[status_workflow.of_profile(session, plan, _acceptance_of(c, plan, session)) for plan in plans],
        unreadable=wrong,
        images=_images(),
    )
    output.show(options, content, status_workflow.text(content))


def _executor_of(c: Context) -> str:
    return auto.pick_executor(settings.read(c).executor, settings.cann_script(c))[0]


def _acceptance_of(c: Context, plan: Plan, session: Session) -> Callable[[], list[Any]]:
    """What plans the profile's next acceptance, on the backend that it would take, as explain does."""
    acceptance = COMMANDS["acceptance"]

    def planned() -> list[Any]:
        backend, _ = auto.pick_backend(settings.read(c).backend, False, settings.cann_script(c), PROJECT)
        typed = {"profile": plan.profile.name, "backend": backend, "executor": session.executor.name}
        steps: list[Any] = []
        acceptance.run(c, replace(acceptance.read(c, typed), planned=steps))
        return steps

    return planned


def _images() -> status_workflow.Images:
    """Our images, if an engine answers at once."""
    if not (engine := ping.answers()):
        note = "no Docker engine answers" if engine is False else "not asked: the engine is slow, or behind a context"
        return status_workflow.Images(asked=False, names=[], note=note)
    from deberta.host.images import manage

    try:
        return status_workflow.Images(asked=True, names=manage.names(checkup.ENGINE_TIMEOUT), note="")
    except DebertaError as error:
        return status_workflow.Images(asked=False, names=[], note=f"not known: {error}")


def can_run_now(c: Context) -> readiness.Readiness:
    """What runs here, at a glance: in a fraction of a second, whatever hangs. Raises ConfigError."""
    python, msame = settings.prepared_python(c), settings.msame_path(c)
    here = readiness.look(PROJECT, python, settings.cann_script(c), msame)
    return readiness.judge(settings.workspace(c), *_plans(c), here)


def _plans(c: Context) -> tuple[list[Plan], list[str]]:
    """A plan for each profile in invoke.yaml, the setting's first, and the names of those that cannot be read."""
    plans, wrong, values = [], [], settings.read(c)
    names = profiles.by_name(values.profiles or {})
    for name in sorted(names, key=lambda name: (name != "demo", name != values.profile, str(name))):
        try:
            plans.append(Plan(profiles.load(name, names), "cpu"))
        except ConfigError:
            wrong.append(str(name))
    return plans, wrong


@command("profile", "environments", "images", "containers", "reports", "yes", "dry")
def clean(c: Context, options: Options) -> None:
    """Remove what the commands made, of all profiles or one.

    Inputs, files that are not ours and kept acceptances stay.
    """
    names = [options.profile] if options.profile else sorted(settings.read(c).profiles)
    profiles = [settings.profile_of(c, name) for name in names]
    session = settings.session_of(c, options, executor="local")
    with exclusive(session):
        if options.images or options.containers:
            from deberta.host.images import manage

            if options.containers:
                manage.remove_containers(session.workspace, session.dry)
            if options.images:
                manage.remove_images(session.dry)
        else:
            workflow.clean(session, profiles, options.reports, options.yes)
    if options.environments:
        workflow.remove_environments(PROJECT, session.dry)
