"""What options and invoke.yaml settle together: the workspace, the profile, the plan and the session of a command."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from invoke.context import Context

from deberta import PROJECT
from deberta.ascend import atc, cann, programs
from deberta.ascend.atc import AtcOptions
from deberta.core import buckets, contract
from deberta.core.buckets import Choice
from deberta.core.errors import ConfigError
from deberta.host.cli import auto
from deberta.host.cli.options import Options
from deberta.host.engine import npu_access
from deberta.host.environments import stages
from deberta.host.plan import profiles
from deberta.host.plan.plan import Case, Plan
from deberta.host.run.executor import Executor
from deberta.host.run.local import LocalExecutor
from deberta.host.run.session import Session

if TYPE_CHECKING:
    from deberta.host.images.definition import BuildSettings


def path_of(c: Context, name: str) -> Optional[Path]:
    """The path that a setting is, relative to the project; None if it is empty."""
    text = str(c.config.get(name) or "")
    return PROJECT / Path(text).expanduser() if text else None


def workspace(c: Context) -> Path:
    return (path_of(c, "workspace") or PROJECT).resolve()


def prepared_python(c: Context) -> Optional[Path]:
    """The setting `stages_python`, relative to the project. A link is kept: its target is outside the environment."""
    path = path_of(c, "stages_python")
    return Path(os.path.abspath(path)) if path else None


def stages_environment(c: Context) -> Callable[[], Path]:
    """What makes sure of the stages' environment when a step first needs it, and returns its Python."""
    prepared = prepared_python(c)
    return functools.cache(lambda: stages.ensure(PROJECT, python=prepared))


def image_builds(c: Context) -> BuildSettings:
    """How images are built. Raises ConfigError."""
    from deberta.host.images import definition  # tomlkit is not loaded for the list of tasks

    return definition.settings(c.config.get("images"), PROJECT)


def profile_of(c: Context, name: str = "") -> profiles.Profile:
    return profiles.load(name or c.config.get("profile"), c.config.get("profiles"))


def atc_options(setting: Any) -> AtcOptions:
    """The options under `atc` in invoke.yaml. Raises ConfigError."""
    if setting and not hasattr(setting, "items"):
        raise ConfigError(f"atc in invoke.yaml is {setting!r}, not a mapping of ATC's options")
    return atc.options(setting)


def cann_script(c: Context) -> str:
    """The setting `cann`, relative to the project; empty: the known places."""
    return str(path_of(c, "cann") or "")


def msame_path(c: Context, msame: str = "") -> Path:
    """The msame binary: of --msame, the setting or the usual place, relative to the project."""
    return PROJECT / Path(msame).expanduser() if msame else path_of(c, "msame") or PROJECT / programs.MSAME


def cpu_plan(c: Context, options: Options) -> Plan:
    """The plan of a task that is about no compiled model."""
    return Plan(profile_of(c, options.profile), "cpu", options.limit)


def plan_of(c: Context, options: Options, compiles: bool = False) -> Plan:
    """The plan of a task that has a backend. `compiles`: the task needs ATC, not a device. Raises ConfigError."""
    backend = auto.backend(options.backend or c.config.backend, compiles, cann_script(c), PROJECT)
    if options.precision != contract.FP32 and backend != "cpu":
        raise ConfigError(
            f"--precision {options.precision} is for the cpu backend, and this is {backend}: ATC's own options decide "
            "there (atc in invoke.yaml). Add --backend cpu"
        )
    if options.runner and backend != "ascend":
        raise ConfigError(f"--runner is for the ascend backend, and this is {backend}. Add --backend ascend")
    runner = options.runner or str(c.config.get("runner") or contract.RUNNERS[0])
    return replace(
        cpu_plan(c, options),
        backend=backend,
        device=device_of(c, options),
        atc=atc_options(c.config.get("atc")) if backend == "ascend" else atc.DEFAULTS,
        runner=contract.one_of("--runner", runner, contract.RUNNERS),
        lint=not options.no_lint,
        precision=options.precision,
    )


def case_of(c: Context, options: Options) -> Case:
    """The case of a task about one batch size and version."""
    return Case(plan_of(c, options), options.bs, options.version)


def buckets_of(c: Context, options: Options) -> Choice:
    """--buckets of an accuracy run, or the setting; nothing where neither names lengths. Raises ConfigError."""
    setting = str(c.config.get("buckets") or "")
    return options.buckets or (buckets.parse(setting) if setting else ())


def device_of(c: Context, options: Options) -> int:
    """--device, or the setting. Raises ConfigError."""
    if options.device is not None:
        return options.device
    return contract.parse_integer("--device", c.config.get("device"), 0, 0, 255)


def session_of(c: Context, options: Options, executor: str = "", usual: str = "") -> Session:
    """`executor`: this one whatever the options say. `usual`: what auto means for this task. Raises ConfigError."""
    name = auto.executor(executor or options.executor or c.config.executor, cann_script(c), usual)
    soc_version, device = options.soc_version or str(c.config.get("soc_version") or auto.AUTO), device_of(c, options)
    folder = workspace(c)
    return Session(
        project=PROJECT,
        workspace=folder,
        executor=(_docker if name == "docker" else _local)(c, folder, options),
        soc_version=functools.cache(lambda: auto.soc_version(soc_version, device)),
        force=options.force,
        dry=options.dry or options.planned is not None,
        planned=options.planned,
    )


def _local(c: Context, folder: Path, options: Options) -> Executor:
    script = cann_script(c)

    def installed() -> cann.Cann:
        home = folder / ".cache" / "scratch" / "home"
        home.mkdir(parents=True, exist_ok=True)
        return cann.load(script, home)

    return LocalExecutor(
        project=PROJECT,
        root=folder,
        python=stages_environment(c),
        python_name=str(prepared_python(c) or PROJECT / stages.FOLDER / "bin" / "python"),
        tools=programs.Tools(
            cann=functools.cache(installed),
            msame=msame_path(c, options.msame),
            source=lambda: str(cann.find(script) if script else cann.present() or cann.SCRIPTS[-1]),
        ),
    )


def _docker(c: Context, folder: Path, options: Options) -> Executor:
    from deberta.host.run.docker_executor import DockerExecutor

    if options.msame:
        raise ConfigError(
            "--msame is for the local executor: the runtime image holds docker/bin/msame. Put the binary there and "
            "run: invoke images --lock"
        )
    return DockerExecutor(PROJECT, folder, image_builds(c), npu_access.settings(c.config.get("npu")), options.keep)
