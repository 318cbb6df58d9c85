"""The commands: each task parses its options, calls deberta.host, and turns our errors into a line and an exit code."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any, Callable, TypeVar, cast

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from deberta import atc, contract
from deberta.errors import INTERRUPTED, ConfigError, DebertaError, from_os_error, one_line
from deberta.host import chain, choices, development, pipeline, profiles, stage_env
from deberta.host.steps import Plan

PROJECT = Path(__file__).resolve().parent
HELP = {
    "bs": "batch size (default 1)",
    "version": "match or mismatch",
    "profile": "which model and data: a profile of invoke.yaml",
    "backend": "cpu, ascend or auto",
    "executor": "local, docker or auto",
    "force": "run every step again",
    "dry": "print the commands, touch nothing",
    "limit": "the first N rows only; never a result",
    "loops": "inferences of the performance run, 2 to 100",
    "soc-version": "the chip to compile for: Ascend310P3, or auto to ask npu-smi",
    "device": "the NPU to run on: npu-smi's column Device (default 0)",
    "msame": "the msame binary (default docker/bin/msame)",
}

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


def _task(*names: str, **own: str) -> Callable[[Callable[..., None]], Any]:
    """An invoke task with the shared help of the options that it takes, and the help of `own` ones."""
    return lambda body: task(help={**{name: HELP[name] for name in names}, **own})(ours(body))


def _workspace(c: Context) -> Path:
    return (PROJECT / Path(str(c.config.get("workspace") or ".")).expanduser()).resolve()


def _prepared_python(c: Context) -> Path | None:
    """The setting `stages_python`, relative to the project. A link is kept: its target is outside the environment."""
    given = str(c.config.get("stages_python") or "")
    return Path(os.path.abspath(PROJECT / Path(given).expanduser())) if given else None


def _profile(c: Context, name: str | None) -> profiles.Profile:
    return profiles.load(name or c.config.get("profile"), c.config.get("profiles"))


def _plan(
    c: Context, profile: str | None, backend: str | None, limit: Any = None, device: Any = None, compiles: bool = False
) -> Plan:
    rows = contract.parse_integer("--limit", limit, 0, 1, 10**9)
    chosen = choices.backend(backend or c.config.backend, compiles, str(c.config.get("cann") or ""))
    options = choices.atc_options(c.config.get("atc")) if chosen == "ascend" else atc.DEFAULTS
    return Plan(_profile(c, profile), chosen, rows, device=_device(c, device), atc=options)


def _device(c: Context, device: str | None) -> int:
    return contract.parse_integer("--device", device or c.config.get("device"), 0, 0, 255)


def _session(
    c: Context,
    executor: str | None,
    force: bool = False,
    dry: bool = False,
    soc_version: str | None = None,
    device: str | None = None,
    msame: str | None = None,
) -> pipeline.Session:
    choices.executor(executor or c.config.executor)
    prepared, workspace = _prepared_python(c), _workspace(c)
    soc = soc_version or str(c.config.get("soc_version") or "auto")
    script = choices.cann_setting(PROJECT, c.config.get("cann"))
    brought = choices.msame_path(PROJECT, msame or c.config.get("msame"))
    return pipeline.Session(
        project=PROJECT,
        workspace=workspace,
        python=functools.cache(lambda: stage_env.ensure(PROJECT, python=prepared)),
        python_name=str(prepared or PROJECT / stage_env.FOLDER / "bin" / "python"),
        tools=choices.programs(workspace, script, soc, _device(c, device), brought),
        force=force,
        dry=dry or bool(c.config.run.dry),
    )


def _version(version: str | None, default: str | None = None) -> str:
    if version is None and default is None:
        raise ConfigError(f"--version is needed: {' or '.join(contract.VERSIONS)}")
    return contract.parse_version(version or str(default))


@_task("profile", "executor", "force", "dry")
def export_onnx(
    c: Context, profile: str | None = None, executor: str | None = None, force: bool = False, dry: bool = False
) -> None:
    """Export the checkpoint to models/<profile>/dynamic.onnx, validated against PyTorch."""
    session, plan = _session(c, executor, force, dry), Plan(_profile(c, profile), "cpu")
    with pipeline.exclusive(session):
        chain.export(session, plan)


@_task("bs", "version", "limit", "profile", "executor", "force", "dry")
def preprocess(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    limit: str | None = None,
    profile: str | None = None,
    executor: str | None = None,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Turn MNLI's tsv into the guide's bins; without --version, every version whose tsv is there."""
    rows = contract.parse_integer("--limit", limit, 0, 1, 10**9)
    batch_size, chosen = contract.parse_batch_size(bs), _version(version) if version else None
    session, plan = _session(c, executor, force, dry), Plan(_profile(c, profile), "cpu", rows)
    with pipeline.exclusive(session):
        chain.preprocess(session, plan, batch_size, chosen)


@_task("bs", "profile", "backend", "soc-version", "executor", "force", "dry")
def build_om(
    c: Context,
    bs: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    soc_version: str | None = None,
    executor: str | None = None,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Compile the model for one batch size; exports it first if need be."""
    batch_size = contract.parse_batch_size(bs)
    plan = _plan(c, profile, backend, compiles=True)
    session = _session(c, executor, force, dry, soc_version)
    with pipeline.exclusive(session):
        chain.build(session, plan, batch_size)


@_task("bs", "version", "limit", "profile", "backend", "soc-version", "device", "msame", "executor", "force", "dry")
def infer(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    limit: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    soc_version: str | None = None,
    device: str | None = None,
    msame: str | None = None,
    executor: str | None = None,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Run the compiled model over one version's bins; makes what it needs first."""
    batch_size, chosen = contract.parse_batch_size(bs), _version(version)
    plan = _plan(c, profile, backend, limit, device)
    session = _session(c, executor, force, dry, soc_version, device, msame)
    with pipeline.exclusive(session):
        chain.infer(session, plan, batch_size, chosen)


@_task(
    *("bs", "version", "limit", "profile", "backend", "executor", "force", "dry"),
    outputs="folder of input_<i>_output_0.bin, in the workspace or absolute, if not infer's own",
)
def postprocess(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    outputs: str | None = None,
    limit: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    executor: str | None = None,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Work out accuracy, overall and by genre, from the model's outputs."""
    batch_size, chosen = contract.parse_batch_size(bs), _version(version)
    plan, session = _plan(c, profile, backend, limit), _session(c, executor, force, dry)
    with pipeline.exclusive(session):
        chain.postprocess(session, plan, batch_size, chosen, outputs)


@_task("bs", "version", "limit", "profile", "backend", "soc-version", "device", "msame", "executor", "force", "dry")
def evaluate(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    limit: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    soc_version: str | None = None,
    device: str | None = None,
    msame: str | None = None,
    executor: str | None = None,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Run the whole chain for one version and print its accuracy."""
    batch_size, chosen = contract.parse_batch_size(bs), _version(version)
    plan = _plan(c, profile, backend, limit, device)
    session = _session(c, executor, force, dry, soc_version, device, msame)
    with pipeline.exclusive(session):
        chain.evaluate(session, plan, batch_size, chosen)


@_task("bs", "version", "loops", "profile", "backend", "soc-version", "device", "msame", "executor", "force", "dry")
def perf(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    loops: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    soc_version: str | None = None,
    device: str | None = None,
    msame: str | None = None,
    executor: str | None = None,
    force: bool = False,
    dry: bool = False,
) -> None:
    """The guide's performance run: one batch, 100 times; prints fps and percentiles."""
    batch_size, chosen = contract.parse_batch_size(bs), _version(version, "match")
    times = contract.parse_integer("--loops", loops, contract.PERFORMANCE_LOOPS, 2, contract.PERFORMANCE_LOOPS)
    plan = _plan(c, profile, backend, device=device)
    session = _session(c, executor, force, dry, soc_version, device, msame)
    with pipeline.exclusive(session):
        chain.perf(session, plan, batch_size, chosen, times)


@_task("profile", "backend", "dry")
def report(c: Context, profile: str | None = None, backend: str | None = None, dry: bool = False) -> None:
    """Write report.md: the guide's table, published figures beside measured ones."""
    plan, session = _plan(c, profile, backend), _session(c, "local", dry=dry)
    with pipeline.exclusive(session):
        chain.write_report(session, plan, [contract.parse_batch_size(size) for size in c.config.batch_sizes])


@task(
    help={
        "only": "what to get, comma separated: checkpoint, tokenizer, mnli, pretrained (default: the first three)",
        "pretrained": "also microsoft/deberta-v3-base, to train from",
        "from": "take the files from this folder instead of the network",
        "mirror": "URL of a folder that holds the files; tried first, may be given several times",
        "accept-new": "replace hashes that were recorded at first use",
        "profile": HELP["profile"],
    },
    iterable=["mirror"],
)
@ours
def fetch(
    c: Context,
    only: str | None = None,
    pretrained: bool = False,
    from_: str | None = None,
    mirror: list[str] | None = None,
    accept_new: bool = False,
    profile: str | None = None,
) -> None:
    """Get the guide's checkpoint, tokenizer and MNLI, checked by SHA-256."""
    from deberta.host import fetch as fetching

    names = [name.strip() for name in only.split(",")] if only else ["checkpoint", "tokenizer", "mnli"]
    names += ["pretrained"] if pretrained and "pretrained" not in names else []
    if c.config.run.dry:
        print(f"would get {', '.join(names)} from {from_ or 'the network'} into {_workspace(c)}")
        return
    fetching.fetch(
        _workspace(c),
        _profile(c, profile).name,
        names,
        from_dir=Path(from_) if from_ else None,
        mirrors=mirror or (),
        accept_new=accept_new,
    )


@_task(
    *("profile", "executor", "force", "dry"),
    init="start from a pretrained checkpoint: a file or a Hugging Face folder, in the workspace or absolute",
    epochs="passes over train.tsv (default 2)",
    steps="steps instead of epochs",
    batch_size="rows in a step (default 32)",
    learning_rate="its peak (default 2e-5)",
    warmup="steps to the peak (default 1000)",
    seed="of new weights and of the order of rows (default 0)",
)
def finetune(
    c: Context,
    init: str | None = None,
    epochs: str | None = None,
    steps: str | None = None,
    batch_size: str | None = None,
    learning_rate: str | None = None,
    warmup: str | None = None,
    seed: str | None = None,
    profile: str | None = None,
    executor: str | None = None,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Train the profile's model on train.tsv; a stopped run goes on where it was."""
    given = {
        **{"--epochs": epochs, "--steps": steps, "--batch-size": batch_size, "--learning-rate": learning_rate},
        **{"--warmup": warmup, "--seed": seed},
    }
    if epochs and steps:
        raise ConfigError("--epochs and --steps say the same in two ways. Give one of them")
    options = [part for name, value in given.items() if value is not None for part in (name, value)]
    session, plan = _session(c, executor, force, dry), Plan(_profile(c, profile), "cpu")
    with pipeline.exclusive(session):
        chain.finetune(session, plan, init, options)


@_task("profile")
def doctor(c: Context, profile: str | None = None) -> None:
    """Say what this machine has and lacks, what that blocks, and how to get it."""
    from deberta.host import doctor as examination

    plan = Plan(_profile(c, profile), "cpu")
    checks = examination.run(
        *(PROJECT, _workspace(c), examination.inputs(plan)),
        full_size=plan.profile.name != "demo",
        python=_prepared_python(c),
        cann_setting=choices.cann_setting(PROJECT, c.config.get("cann")),
        msame_path=choices.msame_path(PROJECT, c.config.get("msame")),
    )
    print(examination.render(checks))
    if examination.missing(checks):
        raise Exit(code=3)


@_task("executor", "force", "dry", remake="make the demo's data, tokenizer and model again")
def demo(c: Context, remake: bool = False, executor: str | None = None, force: bool = False, dry: bool = False) -> None:
    """The whole chain on the bundled tiny profile: accuracy of both versions, throughput and the table."""
    plan, session = Plan(_profile(c, "demo"), "cpu"), _session(c, executor, force, dry)
    with pipeline.exclusive(session):
        if remake:
            chain.remake_demo(session, plan)
        chain.demo(session, plan)


@_task("dry", profile="only this profile's (default: every profile's)", environments="also .venv and .venv-stages")
def clean(c: Context, profile: str | None = None, environments: bool = False, dry: bool = False) -> None:
    """Remove what the commands made; checkpoints, tokenizers, data sets and foreign files stay."""
    from deberta.host import cleaning

    chosen = [_profile(c, name) for name in ([profile] if profile else sorted(c.config.profiles))]
    session = _session(c, "local", dry=dry)
    with pipeline.exclusive(session):
        cleaning.clean(session, chosen)
    if environments:
        cleaning.remove_environments(PROJECT, session.dry)


@_task(slow="also the tests at full size", k="only tests whose names match, as pytest -k", path="a test file or folder")
def test(c: Context, slow: bool = False, k: str | None = None, path: str = "tests") -> None:
    """Run the tests."""
    development.test(PROJECT, path, slow, k, bool(c.config.run.dry))


@_task()
def lint(c: Context) -> None:
    """Check style and types: ruff and mypy, strict."""
    development.lint(PROJECT, bool(c.config.run.dry))
