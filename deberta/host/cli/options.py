"""What the tasks share: their options' help, our errors turned into exit codes, a plan and a session from options."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, cast

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from deberta import PROJECT
from deberta.ascend import atc
from deberta.core import contract
from deberta.core.errors import INTERRUPTED, ConfigError, DebertaError, from_os_error, one_line
from deberta.host.cli import auto
from deberta.host.engine import npu_access
from deberta.host.environments import stages
from deberta.host.plan import profiles
from deberta.host.plan.evaluation import Plan
from deberta.host.run import runner as pipeline
from deberta.host.run.executor import Executor
from deberta.host.run.local import LocalExecutor
from deberta.host.workflows import explain

HELP = {
    "bs": "batch size (default 1)",
    "version": "match or mismatch",
    "profile": "which model and data: a profile of invoke.yaml",
    "backend": "cpu, ascend or auto",
    "executor": "local, docker or auto",
    "force": "run every step again",
    "dry": "print the commands, touch nothing",
    "limit": "the first N rows only; never a result",
    "buckets": "lengths that rows run at, such as 32,64,128,256, or auto (from the data)",
    "precision": "fp32, or int8 of the cpu backend: quantized, its accuracy shown beside fp32's",
    "loops": "inferences of the performance run, 2 to 100",
    "soc-version": "the chip to compile for: Ascend310P3, or auto to ask npu-smi",
    "device": "the NPU to run on: npu-smi's column Device (default 0)",
    "msame": "the msame binary of the local executor (default docker/bin/msame)",
    "runner": "msame or ais_bench: what runs the model on ascend",
    "keep": "keep the steps' containers",
    "no-lint": "compile with ATC even if lint-onnx finds errors; the record says so",
}

RUN = ("executor", "keep", "force", "dry")  # of every task that runs steps
DEVICE = ("soc-version", "device", "msame", "runner")  # of those that run the model

_Task = TypeVar("_Task", bound=Callable[..., None])


def ours(body: _Task) -> _Task:
    """Our errors end a task with one line and their exit code; a bug keeps its traceback."""

    @functools.wraps(body)
    def wrapped(*args: Any, **options: Any) -> None:
        # Being terminated cleans up as Ctrl-C does; and a shell's background job, which ignores SIGINT, can be stopped.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            body(*args, **options)
        except DebertaError as error:
            raise Exit(f"error: {one_line(str(error))}", error.exit_code) from None
        except OSError as error:
            known = from_os_error(error)
            raise Exit(f"error: {one_line(str(known))}", known.exit_code) from None
        except KeyboardInterrupt:
            raise Exit("interrupted; what was finished is kept, run the same command to go on", INTERRUPTED) from None

    return cast(_Task, wrapped)


def command(*names: str, **own: str) -> Callable[[Callable[..., None]], Any]:
    """A task with the shared help of the options that it takes, and the help of `own` ones."""
    return lambda body: task(help={**{name: HELP[name] for name in names}, **own})(ours(body))


def workspace(c: Context) -> Path:
    return (PROJECT / Path(str(c.config.get("workspace") or ".")).expanduser()).resolve()


def prepared_python(c: Context) -> Optional[Path]:
    """The setting `stages_python`, relative to the project. A link is kept: its target is outside the environment."""
    given = str(c.config.get("stages_python") or "")
    return Path(os.path.abspath(PROJECT / Path(given).expanduser())) if given else None


def profile_of(c: Context, name: Optional[str]) -> profiles.Profile:
    return profiles.load(name or c.config.get("profile"), c.config.get("profiles"))


def plan_of(
    c: Context,
    profile: Optional[str],
    backend: Optional[str],
    limit: Any = None,
    device: Any = None,
    compiles: bool = False,
    runner: Optional[str] = None,
    lint: bool = True,
    precision: Optional[str] = None,
) -> Plan:
    rows = contract.parse_integer("--limit", limit, 0, 1, 10**9)
    chosen = auto.backend(backend or c.config.backend, compiles, str(c.config.get("cann") or ""), PROJECT)
    options = auto.atc_options(c.config.get("atc")) if chosen == "ascend" else atc.DEFAULTS
    return Plan(
        profile_of(c, profile),
        chosen,
        rows,
        device=device_of(c, device),
        atc=options,
        runner=runner_of(c, runner, chosen),
        lint=lint,
        precision=precision_of(precision, chosen),
    )


def precision_of(precision: Optional[str], backend: str) -> str:
    chosen = contract.one_of("--precision", precision or contract.FP32, contract.PRECISIONS)
    if chosen != contract.FP32 and backend != "cpu":
        raise ConfigError(
            f"--precision {chosen} is for the cpu backend, and this is {backend}: ATC's own options decide there "
            "(atc in invoke.yaml). Add --backend cpu"
        )
    return chosen


def runner_of(c: Context, runner: Optional[str], backend: str) -> str:
    if runner and backend != "ascend":
        raise ConfigError(f"--runner is for the ascend backend, and this is {backend}. Add --backend ascend")
    chosen = runner or str(c.config.get("runner") or contract.RUNNERS[0])
    if chosen not in contract.RUNNERS:
        raise ConfigError(f"--runner {chosen!r} is not one of: {', '.join(contract.RUNNERS)}")
    return chosen


def device_of(c: Context, device: Optional[str]) -> int:
    return contract.parse_integer("--device", device or c.config.get("device"), 0, 0, 255)


def session_of(
    c: Context,
    executor: Optional[str],
    force: bool = False,
    dry: bool = False,
    keep: bool = False,
    soc_version: Optional[str] = None,
    device: Optional[str] = None,
    msame: Optional[str] = None,
    usual: str = "",
) -> pipeline.Session:
    """`usual`: the executor that auto means for this task."""
    script = auto.cann_setting(PROJECT, c.config.get("cann"))
    chosen = auto.executor(executor or c.config.executor, script, usual)
    soc, number = soc_version or str(c.config.get("soc_version") or "auto"), device_of(c, device)
    here, note = workspace(c), explain.note()
    return pipeline.Session(
        project=PROJECT,
        workspace=here,
        executor=_docker(c, here, keep, msame) if chosen == "docker" else _local(c, here, script, msame),
        soc_version=functools.cache(lambda: auto.soc_version(soc, number)),
        force=force,
        dry=dry or note is not None or bool(c.config.run.dry),
        note=note,
    )


def _local(c: Context, here: Path, script: str, msame: Optional[str]) -> Executor:
    prepared = prepared_python(c)
    return LocalExecutor(
        project=PROJECT,
        root=here,
        python=functools.cache(lambda: stages.ensure(PROJECT, python=prepared)),
        python_name=str(prepared or PROJECT / stages.FOLDER / "bin" / "python"),
        tools=auto.programs(here, script, auto.msame_path(PROJECT, msame or c.config.get("msame"))),
    )


def _docker(c: Context, here: Path, keep: bool, msame: Optional[str]) -> Executor:
    from deberta.host.images import definition
    from deberta.host.run.docker_executor import DockerExecutor

    if msame:
        raise ConfigError(
            "--msame is for the local executor: the runtime image holds docker/bin/msame. Put the binary there and "
            "run: invoke images --lock"
        )
    builds = definition.settings(c.config.get("images"), PROJECT)
    return DockerExecutor(PROJECT, here, builds, npu_access.settings(c.config.get("npu")), keep)


def version_of(version: Optional[str], default: Optional[str] = None) -> str:
    if version is None and default is None:
        raise ConfigError(f"--version is needed: {' or '.join(contract.VERSIONS)}")
    return contract.parse_version(version or str(default))
