"""The commands for working on the project: tests, style and the benchmark."""

from __future__ import annotations

from invoke.context import Context

from deberta import PROJECT
from deberta.core.errors import ConfigError
from deberta.host.cli.command import command
from deberta.host.cli.options import Options
from deberta.host.cli.settings import cpu_plan, stages_environment, workspace
from deberta.host.workflows import development


@command("slow", "campaign", "emulated", "k", "path", "dry")
def test(c: Context, options: Options) -> None:
    """Run the tests."""
    if options.emulated:
        if options.path or options.slow or options.campaign:
            raise ConfigError("--emulated has tests of its own: leave out PATH, --slow and --campaign")
        development.test_emulated(PROJECT, options.k or None, options.dry)
        return
    development.test(PROJECT, options.path or "tests", options.slow, options.campaign, options.k or None, options.dry)


@command("dry")
def lint(c: Context, options: Options) -> None:
    """Check style and types: ruff and mypy, strict."""
    development.lint(PROJECT, options.dry)


@command(
    "size",
    "repeats",
    "threads",
    "engines",
    "rows",
    "lengths",
    "against",
    "publish",
    "check",
    "profile",
    "dry",
    sizes="1,8",
)
def bench(c: Context, options: Options) -> None:
    """Measure the cpu backend beside other ways to run the model."""
    folder, plan = workspace(c), cpu_plan(c, options)
    data, tokenizer = (folder / path for path in (plan.profile.data_path("match"), plan.profile.tokenizer_path))
    arguments = ["--output", "results/bench/bench.json", "--size", options.size]
    arguments += ["--bs", ",".join(map(str, options.sizes)), "--config", str(PROJECT / "models/mnli/model_config.json")]
    for name in ("repeats", "threads", "engines", "rows", "against"):
        arguments += [f"--{name}", options.typed[name]] if name in options.typed else []
    if options.lengths:
        arguments += ["--lengths", options.lengths]
    elif data.exists() and tokenizer.exists():
        arguments += ["--data", str(data), "--tokenizer", str(tokenizer)]
    else:
        arguments += ["--lengths", str(PROJECT / "benchmarks/lengths/dev_matched_12k_sentencepiece.txt")]
    if options.check:
        arguments += ["--check", str(PROJECT / "docs/benchmarks.json")]
    if options.publish:
        arguments += ["--markdown", str(PROJECT / "docs/benchmarks.md"), "--plot", str(PROJECT / "docs/benchmarks.svg")]
        arguments += ["--published", str(PROJECT / "docs/benchmarks.json")]
    development.bench(PROJECT, folder, stages_environment(c), arguments, options.dry)
