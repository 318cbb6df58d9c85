"""What options and invoke.yaml settle together: the workspace, the profile, the plan and the session of a command."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, Literal, Optional, Union

import msgspec
from invoke.config import Config
from invoke.context import Context
from msgspec import Meta

from deberta import PROJECT
from deberta.ascend import atc, cann, programs
from deberta.ascend.atc import AtcOptions
from deberta.core import buckets, contract, machine, progress, schema
from deberta.core.buckets import Choice
from deberta.core.errors import ConfigError
from deberta.host.cli import auto, settings_file  # noqa: F401  # how invoke reads them
from deberta.host.cli import options as option_table
from deberta.host.cli.options import Options
from deberta.host.engine import containers, limits
from deberta.host.engine.npu_access import NpuSettings
from deberta.host.environments import offline, stages
from deberta.host.plan import profiles
from deberta.host.plan.plan import Case, Plan
from deberta.host.run import device_locks
from deberta.host.run.executor import Executor
from deberta.host.run.local import LocalExecutor
from deberta.host.run.session import Session

_DEVICE = "device in invoke.yaml"

if TYPE_CHECKING:
    from deberta.host.images.definition import BuildSettings
    from deberta.host.shards.coordinate import ShardSettings
    from deberta.host.shards.sharded import ShardedRuns


Device = Annotated[int, Meta(ge=0, le=255)]


class InvokeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """invoke.yaml, whose comments explain the settings. The mappings without a type have readers of their own."""

    profile: str = "mnli"
    executor: Annotated[str, schema.one_of((auto.AUTO, *contract.EXECUTORS))] = auto.AUTO
    backend: Annotated[str, schema.one_of((auto.AUTO, *contract.BACKENDS))] = auto.AUTO
    soc_version: str = auto.AUTO
    device: Union[Device, Annotated[tuple[Device, ...], Meta(min_length=1)], str] = 0
    cann: str = ""
    msame: str = ""
    runner: schema.Runner = contract.RUNNERS[0]
    atc: Any = None
    images: Any = None
    containers: Any = None
    npu: Any = None
    shards: Any = None
    clusters: Any = None
    buckets: Union[str, int] = ""
    gates: str = ""
    batch_sizes: Annotated[tuple[schema.BatchSize, ...], Meta(min_length=1)] = (1, 4, 8, 16, 32, 64)
    workspace: str = ""
    stages_python: str = ""
    wheelhouse: str = ""
    profiles: Any = None
    image_unpinned: Optional[list[str]] = None  # the CI image's alone


def read(c: Context) -> InvokeSettings:
    """invoke.yaml, without invoke's own settings. Raises ConfigError for one that is unknown or of a wrong type."""
    # What else the user's own ~/.invoke.yaml or the system's has is another project's.
    foreign = {*Config.global_defaults(), *c.config._system, *c.config._user} - {*InvokeSettings.__struct_fields__}
    own = {key: value for key, value in c.config.items() if key not in foreign}
    return schema.setting(own, InvokeSettings, "a setting")


def path_of(setting: str) -> Optional[Path]:
    """The path that a setting is, relative to the project; None if it is empty. Raises ConfigError."""
    try:
        if "\0" in setting:
            raise ValueError("it holds a NUL")
        return PROJECT / Path(setting).expanduser() if setting else None
    except (RuntimeError, ValueError) as error:  # ~ of a user that is not there
        raise ConfigError(f"{setting!r} in invoke.yaml is no path: {error}") from None


def workspace(c: Context) -> Path:
    """The folder of models/, data/ and results/, which may not be there yet. Raises ConfigError."""
    folder = path_of(read(c).workspace) or PROJECT
    try:
        resolved = folder.resolve()
        if not os.path.lexists(resolved) or resolved.is_dir():
            return resolved
        problem = "it is no folder"
    except (RuntimeError, OSError) as error:  # a loop of links
        problem = str(error)
    raise ConfigError(f"workspace in invoke.yaml, {folder}, cannot be used: {problem}. Correct it, or name another")


def prepared_python(c: Context) -> Optional[Path]:
    """The setting `stages_python`, relative to the project. A link is kept: its target is outside the environment."""
    path = path_of(read(c).stages_python)
    return Path(os.path.abspath(path)) if path else None


def stages_environment(c: Context) -> Callable[[], Path]:
    """What makes sure of the stages' environment when a step first needs it, and returns its Python."""
    prepared = prepared_python(c)
    wheels = wheelhouse(c)
    return functools.cache(lambda: stages.ensure(PROJECT, python=prepared, wheels=wheels))


def wheelhouse(c: Context) -> Optional[Path]:
    """The only place to install packages from; None: the network. Raises ConfigError if YAML says another one.

    `inv` has to know it before YAML can be read, so the rule is offline.setting's.
    """
    folder, in_yaml = offline.setting(PROJECT), path_of(read(c).wheelhouse)
    if in_yaml and Path(os.path.abspath(in_yaml)) != folder:
        raise ConfigError(
            f"wheelhouse is {in_yaml} by YAML, and {folder or 'empty'} as ./inv reads it. Write wheelhouse: DIR on a "
            f"line of its own in the project's {offline.SETTINGS}, not indented, or set {offline.VARIABLE}"
        )
    return folder


def image_builds(c: Context) -> BuildSettings:
    """How images are built. Raises ConfigError."""
    from deberta.host.images import definition  # tomlkit is not loaded for the list of tasks

    return definition.settings(read(c).images, PROJECT, wheelhouse(c))


def file_of(c: Context) -> Path:
    """The settings file that profiles are added to: that of invoke's option -f, else the project's own."""
    named = c.config._runtime_path
    return Path(os.path.abspath(named)) if named else PROJECT / "invoke.yaml"


def profile_of(c: Context, name: str = "") -> profiles.Profile:
    return profiles.load(name or read(c).profile, read(c).profiles)


def atc_options(setting: Any) -> AtcOptions:
    """The options under `atc` in invoke.yaml. Raises ConfigError."""
    return atc.options(schema.setting(setting, dict[str, Any], "atc"))


def cann_script(c: Context) -> str:
    """The setting `cann`, relative to the project; empty: the known places."""
    return str(path_of(read(c).cann) or "")


def msame_path(c: Context, msame: str = "") -> Path:
    """The msame binary: of --msame, the setting or the usual place; those are relative to the project."""
    return path_of(msame or read(c).msame) or PROJECT / programs.MSAME


def cpu_plan(c: Context, options: Options) -> Plan:
    """The plan of a task that is about no compiled model."""
    return Plan(profile_of(c, options.profile), "cpu", options.limit)


def plan_of(c: Context, options: Options, compiles: bool = False, devices: Literal["", "one", "several"] = "") -> Plan:
    """The plan of a task that has a backend. `compiles`: the task needs ATC, not a device. Raises ConfigError.

    `devices`: how many the task can use at once, where it runs the model.
    """
    backend = auto.backend(options.backend or read(c).backend, compiles, cann_script(c), PROJECT)
    if options.precision != contract.FP32 and backend != "cpu":
        raise ConfigError(
            f"--precision {options.precision} is for the cpu backend, and this is {backend}: ATC's own options decide "
            "there (atc in invoke.yaml). Add --backend cpu"
        )
    if (compiles or devices) and not options.cluster:
        machine.check_precision(options.precision)
    if options.runner and backend != "ascend":
        raise ConfigError(f"--runner is for the ascend backend, and this is {backend}. Add --backend ascend")
    return replace(
        cpu_plan(c, options),
        backend=backend,
        devices=_devices(c, options, backend, devices == "several") if devices else (0,),
        atc=atc_options(read(c).atc) if backend == "ascend" else atc.DEFAULTS,
        runner=options.runner or read(c).runner,
        lint=not options.no_lint,
        precision=options.precision,
    )


def case_of(c: Context, options: Options, devices: Literal["", "one", "several"] = "") -> Case:
    """The case of a task about one batch size and version. `devices`: as of `plan_of`."""
    return Case(plan_of(c, options, devices=devices), options.bs, options.version)


def buckets_of(c: Context, options: Options) -> Choice:
    """--buckets of an accuracy run, or the setting; nothing where neither names lengths. Raises ConfigError."""
    setting = str(read(c).buckets)
    return options.buckets or (buckets.parse(setting) if setting else ())


def _named_devices(c: Context, options: Options) -> tuple[int, ...] | str:
    """--device, or the setting: numbers, or `all`. Raises ConfigError."""
    setting = read(c).device
    text = ",".join(map(str, setting)) if isinstance(setting, tuple) else str(setting)
    return options.device or option_table.devices(_DEVICE, text)


def _devices(c: Context, options: Options, backend: str, several: bool) -> tuple[int, ...]:
    """The devices to run the model on, in the order in which they are named. Raises ConfigError."""
    named = _named_devices(c, options)
    numbers = auto.all_devices(backend) if isinstance(named, str) else named
    if len(numbers) > 1 and not several:
        source = "--device" if options.device else _DEVICE
        raise ConfigError(
            f"{options.task} runs on one device, and {source} names {len(numbers)}: {', '.join(map(str, numbers))}. "
            f"Name one of them: --device {numbers[0]}"
        )
    return numbers


def session_of(
    c: Context, options: Options, executor: str = "", usual: str = "", folder: Optional[Path] = None
) -> Session:
    """`executor`: this one whatever the options say. `usual`: what auto means for this task. Raises ConfigError.

    `folder`: the workspace, if not the one of the settings.
    """
    name = auto.executor(executor or options.executor or read(c).executor, cann_script(c), usual)
    soc_version, named = options.soc_version or read(c).soc_version, _named_devices(c, options)
    devices = () if isinstance(named, str) else named
    folder = folder or workspace(c)
    return Session(
        project=PROJECT,
        workspace=folder,
        executor=(_docker if name == "docker" else _local)(c, folder, options),
        soc_version=functools.cache(lambda: auto.soc_version(soc_version, devices)),
        force=options.force,
        task=options.task,
        dry=options.dry or options.planned is not None,
        planned=options.planned,
        verbose=options.verbose,
        groups=options.surroundings.groups,
        locks=path_of(str(_npu(c).locks)) or device_locks.FOLDER,
    )


def sharded(c: Context, options: Options, session: Session, plan: Plan) -> Session:
    """The session of accuracy runs: with several devices or a cluster their batches are shared out.

    Raises ConfigError, and the errors of a cluster's environment and certificates.
    """
    is_one = len(plan.devices) == 1 and not options.cluster
    if options.allow_different_devices and is_one:
        raise ConfigError("--allow-different-devices is for several devices, and this is one. Add --device 0,1")
    if options.cluster and options.device:
        raise ConfigError("--cluster has the devices of its workers, and --device names this host's. Give one of them")
    if is_one:
        return session
    from deberta.host.shards.sharded import ShardedRuns

    if options.cluster:
        return _cluster_shards(c, options).client(session)
    from deberta.host.shards.local_pool import LocalPool

    settings = shard_settings(c)
    shards = ShardedRuns(lambda own: LocalPool(own, plan.devices), settings, options.allow_different_devices)
    return replace(session, shards=shards)


def _npu(c: Context) -> NpuSettings:
    return schema.setting(read(c).npu, NpuSettings, "npu")


def shard_settings(c: Context, cluster: str = "") -> ShardSettings:
    """How runs are cut for this host's devices, or for those of a cluster. Raises ConfigError."""
    from deberta.host.cluster import cluster_settings
    from deberta.host.shards.coordinate import ShardSettings

    if not cluster:
        return schema.setting(read(c).shards, ShardSettings, "shards")
    own = cluster_settings.load(read(c).clusters, cluster)
    return ShardSettings(seconds=own.shard_seconds, retries=own.retries, patience=own.patience)


def _cluster_shards(c: Context, options: Options) -> ShardedRuns:
    """What shares runs out to a cluster's devices, in the environment that this needs."""
    from deberta.host.cluster import cluster_settings
    from deberta.host.environments import cluster as environment
    from deberta.host.shards.sharded import ShardedRuns

    own = cluster_settings.load(read(c).clusters, options.cluster)
    if options.dry or options.planned is not None:
        raise ConfigError(
            "--dry and explain show one device's run, which a cluster's devices share out: leave --cluster"
        )
    environment.enter(PROJECT, wheelhouse(c))
    from deberta.host.cluster import certificates
    from deberta.host.cluster.dask_pool import DaskPool

    checked = certificates.of_cluster(own, PROJECT)
    settings = shard_settings(c, options.cluster)
    return ShardedRuns(
        lambda session: DaskPool(own.scheduler, checked.security(), session.workspace, progress.say),
        settings,
        options.allow_different_devices,
        measures=True,
    )


def _local(c: Context, folder: Path, options: Options) -> Executor:
    script, home, unpinned = cann_script(c), folder / ".cache" / "scratch" / "home", read(c).image_unpinned
    surroundings = {"environment": "prepared by the user"} if prepared_python(c) else {}
    if unpinned is not None and Path(containers.CODE) == PROJECT:  # the CI image alone has this setting, and its code
        surroundings["pins"] = f"not pinned: the CI image: {'; '.join(unpinned)}" if unpinned else "pinned"
    load = functools.cache(lambda: cann.load(script, home))
    return LocalExecutor(
        project=PROJECT,
        root=folder,
        python=stages_environment(c),
        python_name=str(prepared_python(c) or PROJECT / stages.FOLDER / "bin" / "python"),
        tools=programs.Tools(
            cann=load,
            msame=msame_path(c, options.msame),
            source=lambda: str(location.script if (location := cann.search(script)[0]) else cann.SCRIPTS[1]),
            announce=functools.cache(lambda: progress.say(load().text)),
        ),
        surroundings=surroundings,
    )


def _docker(c: Context, folder: Path, options: Options) -> Executor:
    from deberta.host.run.docker_executor import DockerExecutor

    if options.msame:
        raise ConfigError(
            "--msame is for the local executor: the runtime image holds docker/bin/msame. Put the binary there and "
            "run: invoke images --lock"
        )
    return DockerExecutor(PROJECT, folder, image_builds(c), _npu(c), options.keep, limits.settings(read(c).containers))
