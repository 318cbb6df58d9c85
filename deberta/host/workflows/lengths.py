"""Which sequence lengths the rows of a case run at: those that the user names, or the cheapest ones for the data."""

from __future__ import annotations

from dataclasses import replace

from deberta.core import buckets
from deberta.core.buckets import Choice
from deberta.core.contract import batch_count
from deberta.core.errors import ConfigError
from deberta.host.plan import evaluation
from deberta.host.plan.plan import Case, Plan
from deberta.host.run import runner
from deberta.host.run.session import Session


def fit(session: Session, case: Case, choice: Choice) -> Case:
    """The case at its lengths, settled by the rows' tokens: those that any row needs, of the ones named or of auto's.

    Without a choice: those of accuracy runs, no work on padding on cpu, the guide's files on ascend. A dry run in which
    nothing was counted shows the padded run in place of auto's lengths, and says so.
    """
    choice = choice or (buckets.AUTO if case.plan.backend == "cpu" else buckets.PADDED)
    if choice == buckets.PADDED:
        return case.padded
    plan, version = case.plan, case.version
    step = evaluation.token_counts(plan, version)
    runner.run_all(session, [step])
    [counts] = step.outputs
    if session.dry and not (session.workspace / counts).exists():
        if isinstance(choice, str):
            session.say(f"--buckets auto: the lengths are known once {counts} is there; shown is the padded run")
            return case.padded
        return case.of_lengths(choice)
    histogram = buckets.read_histogram(session.workspace / counts)
    lengths = buckets.choose(histogram, case.batch_size, plan.backend) if isinstance(choice, str) else choice
    rows = buckets.rows_by_length(histogram, lengths, version)
    tokens = sum(count * length for length, count in histogram.items())
    run = sum(batch_count(count, case.batch_size) * case.batch_size * length for length, count in rows.items())
    by_length = f" ({'auto; ' if isinstance(choice, str) else ''}rows {', '.join(map(str, rows.values()))})"
    unused = [length for length in lengths if length not in rows]
    left_out = f"; no row needs {buckets.text(unused)}" if unused else ""
    padded = batch_count(sum(rows.values()), case.batch_size) * case.batch_size * buckets.PADDED[0]
    session.say(
        f"buckets: {buckets.text(list(rows))}{by_length}{left_out}; {run} tokens to run for {tokens}, padded {padded}"
    )
    return case.of_lengths(rows)


def of_model(plan: Plan, choice: Choice) -> Plan:
    """The plan of a compilation, which has no data to choose lengths by. Raises ConfigError."""
    if isinstance(choice, str):
        if plan.backend == "ascend":
            raise ConfigError("--buckets auto needs data, and build-om has none. Give the lengths: --buckets 32,64,256")
        # One model of the cpu backend runs any lengths, so any that are not 256 alone name it.
        return replace(plan, lengths=(buckets.SHORTEST, *buckets.PADDED))
    return replace(plan, lengths=choice or buckets.PADDED)
