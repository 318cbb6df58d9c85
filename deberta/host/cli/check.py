"""The commands that check or measure and make nothing; tasks.py takes them over."""

from __future__ import annotations

import os
from typing import Optional

from invoke.context import Context

from deberta import PROJECT
from deberta.core import contract
from deberta.host.cli import auto
from deberta.host.cli.options import RUN, command, prepared_python, profile_of, session_of, version_of, workspace
from deberta.host.environments import stages
from deberta.host.plan.evaluation import Plan
from deberta.host.run import runner
from deberta.host.workflows import development, evaluation


@command(
    *("profile", *RUN),
    model="an ONNX file, in the workspace or absolute (default: the profile's dynamic.onnx, exported if need be)",
    format="text, json or sarif",
    output="write the report there instead of printing it",
    severity="exit with 6 from this severity on: error, warning or note",
    stats="count parameters, FLOP and bytes too, and the time at a 310P's peak",
    batch_sizes="batch sizes to look at (default 1,8,64)",
)
def lint_onnx(
    c: Context,
    model: Optional[str] = None,
    format: str = "text",
    output: Optional[str] = None,
    severity: str = "error",
    stats: bool = False,
    batch_sizes: str = "1,8,64",
    profile: Optional[str] = None,
    executor: Optional[str] = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Check an ONNX file against what ATC of CANN 5.1.RC2 and the 310P take."""
    options = ["--format", contract.one_of("--format", format, ("text", "json", "sarif"))]
    options += ["--severity", contract.one_of("--severity", severity, ("error", "warning", "note"))]
    options += ["--batch-sizes", batch_sizes, *(["--stats"] if stats else [])]
    session, plan = session_of(c, executor, force, dry, keep), Plan(profile_of(c, profile), "cpu")
    with runner.exclusive(session):
        evaluation.lint(session, plan, model, output, options)


@command(
    *("bs", "version", "limit", "profile", *RUN),
    rows="rows of the data, evenly spread (default 256; 0: all)",
    margin="float32 margin from which a changed label counts, in logits (default 0.1)",
)
def check_fp16(
    c: Context,
    bs: Optional[str] = None,
    version: Optional[str] = None,
    rows: Optional[str] = None,
    margin: Optional[str] = None,
    limit: Optional[str] = None,
    profile: Optional[str] = None,
    executor: Optional[str] = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Run the graph with float16 storage on the CPU: overflows, changed labels, nodes to keep in float32."""
    batch_size, chosen = contract.parse_batch_size(bs), version_of(version, "match")
    first = contract.parse_integer("--limit", limit, 0, 1, 10**9)
    some = str(contract.parse_integer("--rows", rows, 0, 0, 10**9)) if rows else ""
    session = session_of(c, executor, force, dry, keep)
    plan = Plan(profile_of(c, profile), "cpu", first, atc=auto.atc_options(c.config.get("atc")))
    with runner.exclusive(session):
        evaluation.check_fp16(session, plan, batch_size, chosen, some, margin or "")


@command(
    "profile",
    "dry",
    size="of the random weights: full (the guide's config) or tiny",
    bs="batch sizes, comma separated (default 1,8)",
    repeats="turns of each engine (default 7)",
    threads="of every engine (default: the cores that may be used)",
    engines="some of the engines, comma separated (default: all)",
    rows="rows in the sample of real lengths (default 256)",
    lengths="tokens of each row of real data, in a text file (default: the profile's dev_matched.tsv, if it is there)",
    publish="write docs/benchmarks.md and its plot too",
)
def bench(
    c: Context,
    size: str = "full",
    bs: str = "1,8",
    repeats: Optional[str] = None,
    threads: Optional[str] = None,
    engines: Optional[str] = None,
    rows: Optional[str] = None,
    lengths: Optional[str] = None,
    publish: bool = False,
    profile: Optional[str] = None,
    dry: bool = False,
) -> None:
    """Measure the cpu backend beside what else one would run the model with."""
    here, plan = workspace(c), Plan(profile_of(c, profile), "cpu")
    given = {"--repeats": repeats, "--threads": threads, "--engines": engines, "--rows": rows}
    data, tokenizer = (here / path for path in (plan.profile.data_path("match"), plan.profile.tokenizer_path))
    if lengths:
        given["--lengths"] = os.path.abspath(lengths)
    elif data.exists() and tokenizer.exists():
        given.update({"--data": str(data), "--tokenizer": str(tokenizer)})
    if publish:
        given.update(
            {"--markdown": str(PROJECT / "docs/benchmarks.md"), "--plot": str(PROJECT / "docs/benchmarks.svg")}
        )
    arguments = ["--output", "results/bench/bench.json", "--size", size, "--bs", bs]
    arguments += ["--config", str(PROJECT / "models/mnli/model_config.json")]
    arguments += [part for name, value in given.items() if value for part in (name, value)]
    prepared = prepared_python(c)
    development.bench(
        PROJECT, here, lambda: stages.ensure(PROJECT, python=prepared), arguments, dry or bool(c.config.run.dry)
    )
