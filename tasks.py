"""The collection of all commands, which the modules of deberta/host/cli make, each with its options and its body."""

from __future__ import annotations

from invoke.collection import Collection

from deberta.host.cli import (  # noqa: F401
    acceptance,  # measure and judge all, report, verify, sign
    check,  # lint, float16 and a comparison of two ways to run the model
    cluster,  # devices of several hosts
    development,  # tests, style, the benchmark
    evaluation,  # from the export to the performance run, training, the demo
    explain,  # what a command would run, and why
    preparation,  # what is missing, downloads, images, clearing up
    reproduce,  # everything twice
)
from deberta.host.cli.command import COMMANDS
from deberta.host.program import command_line  # what is said around the tasks

namespace = Collection(*COMMANDS.values())

if __name__ == "__main__":  # of inv
    command_line.main()
