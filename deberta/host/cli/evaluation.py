"""The commands that make something of the checkpoint and the data, from the export to the performance run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from invoke.context import Context

from deberta.core import contract
from deberta.core.errors import ConfigError
from deberta.host.cli import output
from deberta.host.cli.command import DEVICE, DEVICES, RUN, command
from deberta.host.cli.options import Options
from deberta.host.cli.settings import buckets_of, case_of, cpu_plan, plan_of, read, session_of, sharded
from deberta.host.plan import evaluation as steps
from deberta.host.plan.plan import Case
from deberta.host.prediction import prediction
from deberta.host.run import runner
from deberta.host.run.session import exclusive
from deberta.host.workflows import evaluation, making


@command("relative", "profile", *RUN)
def export_onnx(c: Context, options: Options) -> None:
    """Export the checkpoint to dynamic.onnx, validated with PyTorch."""
    session, plan = session_of(c, options), cpu_plan(c, options)
    with exclusive(session):
        step = steps.export_onnx(plan, options.relative)
        runner.run_all(session, [step])
        session.show_paths(step.outputs)


@command("bs", "version", "limit", "buckets", "profile", *RUN)
def preprocess(c: Context, options: Options) -> None:
    """Turn MNLI's tsv into the guide's bins.

    Without --version, every version whose tsv is there.
    """
    session, plan = session_of(c, options), cpu_plan(c, options)
    with exclusive(session):
        evaluation.preprocess(session, plan, options.bs, options.version, options.buckets)


@command("bs", "buckets", "precision", "profile", "backend", "soc_version", "no_lint", *RUN)
def build_om(c: Context, options: Options) -> None:
    """Compile the model for one batch size.

    It is exported first if need be.
    """
    plan, session = plan_of(c, options, compiles=True), session_of(c, options)
    with exclusive(session):
        case = Case(evaluation.plan_of_model(plan, options.buckets), options.bs)
        runner.run_all(session, evaluation.compiling(session, case))
        session.show_paths(part.compiled for part in case.models)


@command(
    "bs", "version", "limit", "buckets", "precision", "profile", "backend", *DEVICE, *DEVICES, *RUN, needed=["version"]
)
def infer(c: Context, options: Options) -> None:
    """Run the compiled model over one version's bins."""
    case = case_of(c, options, "several")
    session = sharded(c, options, session_of(c, options), case.plan)
    with exclusive(session):
        _, folders = evaluation.infer(session, case, buckets_of(c, options))
        session.show_paths(folders)


@command("bs", "version", "outputs", "limit", "buckets", "precision", "profile", "backend", *RUN, needed=["version"])
def postprocess(c: Context, options: Options) -> None:
    """Work out accuracy, overall and by genre, from the outputs."""
    case, session = case_of(c, options), session_of(c, options)
    with exclusive(session):
        choice = options.buckets if options.outputs else buckets_of(c, options)
        evaluation.postprocess(session, case, options.outputs, choice)


MODEL = ("buckets", "precision", "profile", "backend")


@command("version", "limit", *MODEL, *DEVICE, *DEVICES, "json", *RUN, sizes="1")
def evaluate(c: Context, options: Options) -> None:
    """Run the whole chain and print the accuracy.

    Of every batch size that is named, and without --version of every version of the profile.
    """
    plan = plan_of(c, options, devices="several")
    session = sharded(c, options, session_of(c, options), plan)
    versions = [options.version] if options.version else list(plan.profile.rows)
    for version in versions:
        plan.profile.data_path(version)  # raises ConfigError if the profile does not have it
    with exclusive(session):
        cases = [Case(plan, size, version) for size in options.sizes for version in versions]
        result = evaluation.evaluate(session, cases, buckets_of(c, options))
    output.add(options, result if result.evaluations else None)


@command("bs", "loops", "buckets", "precision", "profile", "backend", "json", *DEVICE, *RUN, version="match")
def perf(c: Context, options: Options) -> None:
    """The guide's performance run: fps and percentiles of one batch."""
    case, session = case_of(c, options, "one"), session_of(c, options)
    with exclusive(session):
        result = evaluation.perf(session, case, options.loops or contract.loops_of(case.plan.backend), options.buckets)
    output.add(options, result)


@command("premise", "hypothesis", "table", "columns", "rows_output", "rows_bs", *MODEL, *DEVICE, "json", *RUN)
def predict(c: Context, options: Options) -> None:
    """Label a premise and a hypothesis, or a file of them.

    Through infer's compiled model; nothing is left but the file of --output.
    """
    request = prediction.PredictionRequest(
        plan=plan_of(c, options, devices="one"),
        choice=buckets_of(c, options),
        data=Path(options.table) if options.table else None,
        pair=(options.premise, options.hypothesis),
        columns=options.columns,
        batch_size=options.rows_bs,
        usual_sizes=read(c).batch_sizes,
        output=Path(options.rows_output) if options.rows_output else None,
    )
    prediction.check(request, options.force)
    session = session_of(c, options)
    with exclusive(session):
        document = prediction.predict(session, request)
    if document is not None:
        output.show(options, document, prediction.text(document))


@command("init", "epochs", "steps", "batch_size", "learning_rate", "warmup", "seed", "profile", *RUN)
def finetune(c: Context, options: Options) -> None:
    """Train the profile's model on train.tsv.

    A stopped run goes on where it was.
    """
    if options.epochs and options.steps:
        raise ConfigError("--epochs and --steps say the same in two ways. Give one of them")
    names = ("epochs", "steps", "batch-size", "learning-rate", "warmup", "seed")
    stage_options = {f"--{name}": options.typed.get(name) for name in names}
    session, plan = session_of(c, options), cpu_plan(c, options)
    with exclusive(session):
        making.finetune(session, plan, options.init, stage_options)


@command("remake", *RUN)
def demo(c: Context, options: Options) -> None:
    """The whole chain on a bundled tiny model, up to the report.

    Accuracy of both versions, throughput and the table.
    """
    session, plan = session_of(c, options, usual="local"), cpu_plan(c, replace(options, profile="demo"))
    with exclusive(session):
        making.run_demo(session, plan, options.remake, buckets_of(c, options))
