"""Two reports side by side: accuracy, changed labels, throughput, gates, and what else differs.

The job, a JSON file that the host writes, names both. Reports, and the trees that they stand in, may be anybody's:
whatever is wrong in a report is an error, and whatever is wrong behind one is a reason why rows are not paired. A
difference is from A to B. The same job and files give the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain

from deberta.core import files, schema
from deberta.core.differences import (
    LOWER,
    NOT_COMPARED,
    SLOWER,
    UNVERIFIED,
    VERIFIED,
    AccuracyDifference,
    DiffJob,
    FpsDifference,
    GateDifference,
    ReportDifference,
    conclude,
)
from deberta.core.errors import run_stage, visible
from deberta.core.report import PerformanceRun, Report
from deberta.stages import arguments
from deberta.stages.diff import accuracy, facts, sides, speed
from deberta.stages.diff.accuracy import Comparison
from deberta.stages.diff.sides import ReportSide
from deberta.stages.report import changes, markdown
from deberta.stages.report.tables import Section, Table

WIDEST = 60  # characters of a column of the text


def difference(job: DiffJob) -> ReportDifference:
    """Raises MissingError and DataError for a report that cannot be read."""
    a, b = sides.read(job.a), sides.read(job.b)
    compared = accuracy.compare(a, b)
    throughputs = speed.compare(a.report, b.report)
    gates, alike = facts.gates(a.report, b.report)
    worse = list(_worse(compared.accuracy, throughputs, gates))
    not_compared = list(_wrong(a, b))
    not_compared += _not_compared(a.report, b.report, compared.accuracy, throughputs, gates)
    return ReportDifference(
        format=1,
        a=a.facts,
        b=b.facts,
        conclusion=conclude(worse, not_compared),
        worse=worse,
        not_compared=not_compared,
        accuracy=compared.accuracy,
        changed_total=compared.changed_total,
        changed_rows=compared.changed_rows,
        fps=throughputs,
        gates=gates,
        gates_alike=alike,
        facts=facts.facts(a, b),
        notes=list(_notes(a, b, compared)),
        replaces_published=job.replaces_published,
    )


def _worse(
    accuracies: Sequence[AccuracyDifference], throughputs: Sequence[FpsDifference], gates: Sequence[GateDifference]
) -> Iterator[str]:
    """Each thing in which B is worse than A."""
    for entry in accuracies:
        if entry.conclusion == LOWER:
            counts = f"{entry.correct_a} of {entry.rows_a} rows right in A, {entry.correct_b} of {entry.rows_b} in B"
            if test := entry.paired:
                counts = f"of {test.rows} rows A alone has {test.only_a_correct} right, B alone {test.only_b_correct}"
            yield f"accuracy of {_of(entry)}: {counts}, p {changes.p_value(entry.p_value)}"
    for run in throughputs:
        if run.conclusion == SLOWER:
            noise = f"{100 * (run.noise or 0):.1f} %"
            yield f"fps of {_of_run(run)}: {100 * run.change:+.1f} %, and the noise is {noise}"
    for gate in gates:
        if facts.newly_failing(gate):
            yield f"gate {gate.gate} ({gate.of}) fails with {gate.actual_b or 'nothing'} (required: {gate.required_b})"


def _wrong(*both: ReportSide) -> Iterator[str]:
    """The sides that do not verify."""
    for side in both:
        if not side.source.verification.startswith((VERIFIED, UNVERIFIED)):
            yield f"{side.source.name} {side.source.verification}"


def _not_compared(
    a: Report,
    b: Report,
    accuracies: Sequence[AccuracyDifference],
    throughputs: Sequence[FpsDifference],
    gates: Sequence[GateDifference],
) -> Iterator[str]:
    """Each thing that A has and that B could not be held against."""
    compared = {(entry.version, entry.precision) for entry in accuracies}
    kinds = dict.fromkeys((cell.version, cell.precision) for cell in a.body.cells)
    yield from (f"accuracy of {', '.join(kind)}: B has none" for kind in kinds if kind not in compared)
    for entry in accuracies:
        if entry.paired is None:
            yield f"accuracy of {_of(entry)} row by row: {entry.why_not_paired}"
        elif entry.paired.rows < entry.rows_a:
            yield f"accuracy of {_of(entry)}: {entry.rows_a - entry.paired.rows} of A's {entry.rows_a} rows, not in B"
    for run in throughputs:
        if run.conclusion == NOT_COMPARED:
            yield f"fps of {_of_run(run)}: {run.why_not_compared}"
    yield from (f"fps of {_of_run(run)}: B has none" for run in speed.missing(a, b))
    if a.verdict and not b.verdict:
        yield "gates: B has no verdict"
    elif not (a.body.cells or a.measured.performances):
        yield "A: it measured nothing"
    elif b.verdict:
        for gate in gates:
            if facts.no_longer_judged(gate):
                yield f"gate {gate.gate} ({gate.of}): passed in A, and {gate.b or 'absent'} in B"


def _of(entry: AccuracyDifference) -> str:
    return f"{entry.version}, bs {entry.batch_size_b}, {entry.precision}"


def _of_run(run: FpsDifference | PerformanceRun) -> str:
    return f"{run.version}, bs {run.batch_size}, length {run.length}, {run.precision}, {run.runner}"


def _notes(a: ReportSide, b: ReportSide, compared: Comparison) -> Iterator[str]:
    """What a reader has to know beside the tables."""
    if unverified := [side.source.name for side in (a, b) if side.source.verification == UNVERIFIED]:
        yield f"Not verified, so this is what the files say: {', '.join(unverified)}. See: invoke verify."
    hosts = [(side.report.measured.host.name, side.report.measured.host.cpu) for side in (a, b)]
    if hosts[0] != hosts[1]:
        yield "The two were measured on two machines: a change of fps may be theirs."
    if compared.no_text:
        yield f"Rows are without their text: {compared.no_text}."
    drivers = ["driver" in facts.devices(side.report) for side in (a, b)]
    if "ascend" in (a.report.body.backend, b.report.body.backend) and not all(drivers):
        yield "The version of the NPU's driver is not in both reports: whether it differs was not compared."


def sections(result: ReportDifference) -> list[Section]:
    """The parts of the text and of the Markdown."""
    names = ("accuracy", "rows", "fps", "gates", "facts")
    tables = changes.tables(result)
    return [Section(name, table.caption, [table]) for name, table in zip(names, tables, strict=True) if table.rows]


def markdown_text(result: ReportDifference) -> str:
    intro = [f"- A: {changes.side(result.a)}", f"- B: {changes.side(result.b)}"]
    statement = markdown.text(changes.statement(result))
    lines = ["# What differs between A and B", "", *map(markdown.text, intro), "", f"**{statement}**", ""]
    reasons = [f"- worse: {reason}" for reason in result.worse]
    reasons += [f"- not compared: {reason}" for reason in result.not_compared]
    for paragraphs in (reasons, [f"- {note}" for note in result.notes]):
        lines += [*map(markdown.text, paragraphs), *([""] if paragraphs else [])]
    lines += chain.from_iterable(markdown.section_lines(section, "") for section in sections(result))
    return "\n".join(lines).rstrip() + "\n"


def plain_text(result: ReportDifference) -> str:
    lines = [f"A: {changes.side(result.a)}", f"B: {changes.side(result.b)}", changes.statement(result)]
    lines += [f"  worse: {text}" for text in result.worse]
    lines += [f"  not compared: {text}" for text in result.not_compared]
    lines += [f"  {text}" for text in result.notes]
    for section in sections(result):
        lines += ["", f"{section.title}:", *chain.from_iterable(map(_aligned, section.tables))]
    return "\n".join(" ".join(line.split("\n")).rstrip() for line in lines) + "\n"


def _aligned(table: Table) -> Iterator[str]:
    """A table's lines, numbers to the right; a longer cell than WIDEST is not cut, and the next ones move on."""
    rows = [[cell if isinstance(cell, str) else "; ".join(cell) for cell in row] for row in (table.heads, *table.rows)]
    widths = [min(WIDEST, max(map(len, column))) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, table.kinds, strict=True)
        yield "  " + "  ".join(
            text.rjust(width) if kind == "number" else text.ljust(width) for text, width, kind in cells
        )


def main(argv: Sequence[str]) -> None:
    options = arguments.parse(
        argv,
        __doc__,
        "output",
        job=arguments.file("the two reports, as the host found them"),
        text=arguments.file("the same as text", required=False),
        markdown=arguments.file("the same as Markdown", required=False),
    )
    result = difference(schema.read(options.job, DiffJob, "Run the same command again"))
    pages = {options.output: schema.text(result)}
    if options.text:
        pages[options.text] = visible(plain_text(result))
    if options.markdown:
        pages[options.markdown] = visible(markdown_text(result))
    files.write_texts(pages)
    print(changes.statement(result))


if __name__ == "__main__":
    sys.exit(run_stage(main))
