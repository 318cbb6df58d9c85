"""The commands: each task parses its options, calls deberta.host, and turns our errors into a line and an exit code."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from deberta import PROJECT
from deberta.core import buckets as lengths
from deberta.core import contract
from deberta.core.errors import ConfigError
from deberta.host.cli import auto
from deberta.host.cli.acceptance import acceptance, report
from deberta.host.cli.check import bench, check_fp16, lint_onnx
from deberta.host.cli.ci import ci_image
from deberta.host.cli.compare import compare
from deberta.host.cli.options import (
    DEVICE,
    HELP,
    RUN,
    command,
    ours,
    plan_of,
    prepared_python,
    profile_of,
    session_of,
    version_of,
    workspace,
)
from deberta.host.cli.reproduce import explain, reproduce
from deberta.host.cli.verify import sign, verify
from deberta.host.plan.evaluation import Plan
from deberta.host.run import runner as pipeline
from deberta.host.workflows import bucketing, development, evaluation

# Tasks from other files.
__all__ = [
    "acceptance",
    "bench",
    "check_fp16",
    "ci_image",
    "compare",
    "explain",
    "lint_onnx",
    "report",
    "reproduce",
    "sign",
    "verify",
]


@command("profile", *RUN, relative="shift, or gather: the reference form, in dynamic_gather.onnx")
def export_onnx(
    c: Context,
    relative: str = "shift",
    profile: str | None = None,
    executor: str | None = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Export the checkpoint to models/<profile>/dynamic.onnx, validated against PyTorch."""
    session, plan = session_of(c, executor, force, dry, keep), Plan(profile_of(c, profile), "cpu")
    with pipeline.exclusive(session):
        evaluation.export(session, plan, contract.one_of("--relative", relative, ("shift", "gather")))


@command("bs", "version", "limit", "buckets", "profile", *RUN)
def preprocess(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    limit: str | None = None,
    buckets: str | None = None,
    profile: str | None = None,
    executor: str | None = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Turn MNLI's tsv into the guide's bins; without --version, every version whose tsv is there."""
    rows = contract.parse_integer("--limit", limit, 0, 1, 10**9)
    asked = lengths.parse(buckets)
    batch_size, chosen = contract.parse_batch_size(bs), version_of(version) if version else None
    session, plan = session_of(c, executor, force, dry, keep), Plan(profile_of(c, profile), "cpu", rows)
    with pipeline.exclusive(session):
        if asked:
            bucketing.preprocess(session, plan, batch_size, chosen, asked)
        else:
            evaluation.preprocess(session, plan, batch_size, chosen)


@command("bs", "buckets", "precision", "profile", "backend", "soc-version", "no-lint", *RUN)
def build_om(
    c: Context,
    bs: str | None = None,
    buckets: str | None = None,
    precision: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    soc_version: str | None = None,
    no_lint: bool = False,
    executor: str | None = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Compile the model for one batch size; exports it first if need be."""
    asked = lengths.parse(buckets)
    batch_size = contract.parse_batch_size(bs)
    plan = plan_of(c, profile, backend, compiles=True, lint=not no_lint, precision=precision)
    session = session_of(c, executor, force, dry, keep, soc_version)
    with pipeline.exclusive(session):
        if asked:
            bucketing.build(session, plan, batch_size, asked)
        else:
            evaluation.build(session, plan, batch_size)


@command("bs", "version", "limit", "buckets", "precision", "profile", "backend", *DEVICE, *RUN)
def infer(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    limit: str | None = None,
    buckets: str | None = None,
    precision: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    soc_version: str | None = None,
    device: str | None = None,
    msame: str | None = None,
    runner: str | None = None,
    executor: str | None = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Run the compiled model over one version's bins; makes what it needs first."""
    asked = lengths.parse(buckets)
    batch_size, chosen = contract.parse_batch_size(bs), version_of(version)
    plan = plan_of(c, profile, backend, limit, device, runner=runner, precision=precision)
    session = session_of(c, executor, force, dry, keep, soc_version, device, msame)
    with pipeline.exclusive(session):
        if asked:
            bucketing.infer(session, plan, batch_size, chosen, asked)
        else:
            evaluation.infer(session, plan, batch_size, chosen)


@command(
    *("bs", "version", "limit", "buckets", "precision", "profile", "backend", *RUN),
    outputs="folder of input_<i>_output_0.bin, in the workspace or absolute, if not infer's own",
)
def postprocess(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    outputs: str | None = None,
    limit: str | None = None,
    buckets: str | None = None,
    precision: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    executor: str | None = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Work out accuracy, overall and by genre, from the model's outputs."""
    asked = lengths.parse(buckets)
    batch_size, chosen = contract.parse_batch_size(bs), version_of(version)
    plan, session = plan_of(c, profile, backend, limit, precision=precision), session_of(c, executor, force, dry, keep)
    with pipeline.exclusive(session):
        if asked:
            bucketing.postprocess(session, plan, batch_size, chosen, outputs, asked)
        else:
            evaluation.postprocess(session, plan, batch_size, chosen, outputs)


@command("bs", "version", "limit", "buckets", "precision", "profile", "backend", *DEVICE, *RUN)
def evaluate(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    limit: str | None = None,
    buckets: str | None = None,
    precision: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    soc_version: str | None = None,
    device: str | None = None,
    msame: str | None = None,
    runner: str | None = None,
    executor: str | None = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Run the whole chain for one version and print its accuracy."""
    asked = lengths.parse(buckets)
    batch_size, chosen = contract.parse_batch_size(bs), version_of(version)
    plan = plan_of(c, profile, backend, limit, device, runner=runner, precision=precision)
    session = session_of(c, executor, force, dry, keep, soc_version, device, msame)
    with pipeline.exclusive(session):
        if asked:
            bucketing.evaluate(session, plan, batch_size, chosen, asked)
        else:
            evaluation.evaluate(session, plan, batch_size, chosen)


@command("bs", "version", "loops", "buckets", "precision", "profile", "backend", *DEVICE, *RUN)
def perf(
    c: Context,
    bs: str | None = None,
    version: str | None = None,
    loops: str | None = None,
    buckets: str | None = None,
    precision: str | None = None,
    profile: str | None = None,
    backend: str | None = None,
    soc_version: str | None = None,
    device: str | None = None,
    msame: str | None = None,
    runner: str | None = None,
    executor: str | None = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """The guide's performance run: one batch, 100 times; prints fps and percentiles."""
    asked = lengths.parse(buckets)
    batch_size, chosen = contract.parse_batch_size(bs), version_of(version, "match")
    times = contract.parse_integer("--loops", loops, contract.PERFORMANCE_LOOPS, 2, contract.PERFORMANCE_LOOPS)
    plan = plan_of(c, profile, backend, device=device, runner=runner, precision=precision)
    session = session_of(c, executor, force, dry, keep, soc_version, device, msame)
    with pipeline.exclusive(session):
        if asked:
            bucketing.perf(session, plan, batch_size, chosen, times, asked)
        else:
            evaluation.perf(session, plan, batch_size, chosen, times)


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
    from deberta.host.fetch import fetch as fetching

    names = [name.strip() for name in only.split(",")] if only else ["checkpoint", "tokenizer", "mnli"]
    names += ["pretrained"] if pretrained and "pretrained" not in names else []
    if c.config.run.dry:
        print(f"would get {', '.join(names)} from {from_ or 'the network'} into {workspace(c)}")
        return
    fetching.fetch(
        workspace(c),
        profile_of(c, profile).name,
        names,
        from_dir=Path(from_) if from_ else None,
        mirrors=mirror or (),
        accept_new=accept_new,
    )


@command(
    *("profile", *RUN),
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
    keep: bool = False,
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
    session, plan = session_of(c, executor, force, dry, keep), Plan(profile_of(c, profile), "cpu")
    with pipeline.exclusive(session):
        evaluation.finetune(session, plan, init, options)


@task(
    help={
        "base": "STAGE=IMAGE: build on another image, a digest or one that the engine has; STAGE=pinned takes it back",
        "lock": "write into docker/pins.toml what the tags and the files here are now, and build nothing",
        "force": "build images that are there too",
        "dry": "say what would be built",
    },
    iterable=["base"],
)
@ours
def images(
    c: Context, base: list[str] | None = None, lock: bool = False, force: bool = False, dry: bool = False
) -> None:
    """Build the stage images that are missing, from docker/pins.toml."""
    from deberta.host.images import definition as planning
    from deberta.host.images import manage

    settings, dry = planning.settings(c.config.get("images"), PROJECT), dry or bool(c.config.run.dry)
    if lock:
        if base or dry:
            raise ConfigError("--lock is given alone, and writes docker/pins.toml")
        return manage.lock(PROJECT)
    if base:
        manage.replace_bases(PROJECT, base, dry)
    manage.make(PROJECT, workspace(c), settings, force, dry)


@command("profile")
def doctor(c: Context, profile: str | None = None) -> None:
    """Say what this machine has and lacks, what that blocks, and how to get it."""
    from deberta.host.workflows import doctor as examination

    plan = Plan(profile_of(c, profile), "cpu")
    checks = examination.run(
        *(PROJECT, workspace(c), examination.inputs(plan)),
        full_size=plan.profile.name != "demo",
        python=prepared_python(c),
        cann_setting=auto.cann_setting(PROJECT, c.config.get("cann")),
        msame_path=auto.msame_path(PROJECT, c.config.get("msame")),
    )
    print(examination.render(checks))
    if examination.missing(checks):
        raise Exit(code=3)


@command("executor", "keep", "force", "dry", remake="make the demo's data, tokenizer and model again")
def demo(
    c: Context,
    remake: bool = False,
    executor: str | None = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """The whole chain on the bundled tiny profile: accuracy of both versions, throughput and the table."""
    plan, session = Plan(profile_of(c, "demo"), "cpu"), session_of(c, executor, force, dry, keep, usual="local")
    with pipeline.exclusive(session):
        if remake:
            evaluation.remake_demo(session, plan)
        evaluation.demo(session, plan)


@command(
    "dry",
    profile="only this profile's (default: every profile's)",
    environments="also .venv and .venv-stages",
    images="instead: the stage images",
    containers="instead: containers that were kept or left",
)
def clean(
    c: Context,
    profile: str | None = None,
    environments: bool = False,
    images: bool = False,
    containers: bool = False,
    dry: bool = False,
) -> None:
    """Remove what the commands made; checkpoints, tokenizers, data sets and foreign files stay."""
    from deberta.host.workflows import clean as cleaning

    chosen = [profile_of(c, name) for name in ([profile] if profile else sorted(c.config.profiles))]
    session = session_of(c, "local", dry=dry)
    with pipeline.exclusive(session):
        if images or containers:
            cleaning.clean_engine(session, images, containers)
        else:
            cleaning.clean(session, chosen)
    if environments:
        cleaning.remove_environments(PROJECT, session.dry)


@command(slow="also the tests at full size", k="tests whose names match, as pytest -k", path="a test file or folder")
def test(c: Context, slow: bool = False, k: str | None = None, path: str = "tests") -> None:
    """Run the tests."""
    development.test(PROJECT, path, slow, k, bool(c.config.run.dry))


@command()
def lint(c: Context) -> None:
    """Check style and types: ruff and mypy, strict."""
    development.lint(PROJECT, bool(c.config.run.dry))
