"""The commands that check the model and make nothing: lint-onnx, check-fp16 and compare."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from invoke.context import Context

from deberta.core.errors import ConfigError
from deberta.host.cli import output
from deberta.host.cli.command import RUN, command
from deberta.host.cli.options import Options
from deberta.host.cli.settings import atc_options, cpu_plan, read, session_of
from deberta.host.plan import comparison
from deberta.host.plan.plan import Case, StageOptions
from deberta.host.run.session import exclusive
from deberta.host.user_files import named_paths
from deberta.host.workflows import making

SIDES = ("side_a", "side_b", "a_file", "b_file", "outputs")
TOLERANCES = ("tolerance", "layer_tolerance", "all_layers")


@command("model", "format", "output", "severity", "stats", "batch_sizes", "profile", "json", *RUN)
def lint_onnx(c: Context, options: Options) -> None:
    """Check an ONNX file against what ATC (5.1.RC2) and the 310P take."""
    output.refuse_two_forms(options)
    arguments: StageOptions = {
        "--format": "json" if options.json else options.format,
        "--severity": options.severity,
        "--batch-sizes": options.batch_sizes,
        "--stats": options.stats,
    }
    session, plan, show = session_of(c, options), cpu_plan(c, options), partial(output.show, options)
    with exclusive(session):
        target = named_paths.in_workspace(session.workspace, options.output)
        making.lint(session, plan, options.model, target, arguments, show if options.json else None)


@command("bs", "limit", "rows", "margin", "profile", "json", *RUN, version="match")
def check_fp16(c: Context, options: Options) -> None:
    """Run the graph with float16 storage on the CPU.

    Shows overflows, changed labels, and the nodes to keep in float32.
    """
    session, case = session_of(c, options), _case_with_atc(c, options)
    with exclusive(session):
        making.check_fp16(session, case, options.typed.get("rows", ""), options.margin, partial(output.show, options))


@command(*SIDES, *TOLERANCES, "bs", "limit", "rows", "profile", "json", *RUN, version="match")
def compare(c: Context, options: Options) -> None:
    """Compare two ways of running the model.

    Logits, labels, and the first layer where they part.
    """
    session, case = session_of(c, options), _case_with_atc(c, options)
    kinds = (options.side_a, options.side_b)
    if options.outputs and "om" not in kinds:
        raise ConfigError(f"--outputs is for om, and this compares {kinds[0]} with {kinds[1]}")
    sides = [
        comparison.side(case, kind, file or (options.outputs if kind == "om" else ""))
        for kind, file in zip(kinds, (options.a_file, options.b_file))
    ]
    if sides[0] == sides[1]:
        raise ConfigError(f"{kinds[0]} would be compared with itself. Name another file for one: --b-file FILE")
    arguments: StageOptions = {
        "--rows": "0" if options.limit else options.typed.get("rows"),
        "--tolerance": options.tolerance,
        "--layer-tolerance": options.layer_tolerance,
        "--all-layers": options.all_layers,
    }
    with exclusive(session):
        making.compare(session, case, sides, arguments, partial(output.show, options))


def _case_with_atc(c: Context, options: Options) -> Case:
    """A case for the CPU that has ATC's options, which name the nodes that stay in float32."""
    plan = replace(cpu_plan(c, options), atc=atc_options(read(c).atc))
    return Case(plan, options.bs, options.version)
