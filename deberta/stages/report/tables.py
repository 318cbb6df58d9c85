"""What report.md and report.html both show, as tables of text: numbers of report.json are formatted, never computed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from deberta.ascend import ais_bench
from deberta.core.contract import FP32, SEQUENCE_LENGTH, VERSIONS
from deberta.core.job import PublishedRow
from deberta.core.report import (
    DataProblem,
    EvaluationCell,
    GateCheck,
    PerformanceRun,
    Proportion,
    Report,
    is_padded,
)

Cell = str | tuple[str, ...]  # text, or several lines of it
ABSENT = "-"
SHORT = dict(zip(VERSIONS, ("M", "MM"), strict=True))
INTERVAL = "95 % interval (Wilson)"
ABOUT_LENGTHS = (
    "Rows run at the shortest of these lengths that holds them. fps over the data = rows / sum over the lengths of "
    "(its batches * average time of one batch); a length's last batch counts as a whole one. None of this is to be "
    f"held against the published figures, which are of rows padded to {SEQUENCE_LENGTH} in float32."
)


@dataclass(frozen=True)
class Table:
    """`name` is unique in a report. `kinds`, one for each column: "" (text), number, short (one line), wrap, hash,
    status.
    """

    name: str
    caption: str
    heads: tuple[str, ...]
    kinds: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shares: tuple[tuple[float, ...], ...] = ()  # from 0 to 1: how strongly a cell after the first is shaded


@dataclass(frozen=True)
class Headline:
    """The verdict in words. `kind`: accepted, checked, failed or none. `reasons`: why it is no more than that."""

    kind: str
    word: str
    statement: str
    reasons: tuple[str, ...]


def _filled(table: Table) -> Table:
    """Without columns that are empty."""
    kept = [place for place in range(len(table.heads)) if any(row[place] for row in table.rows)]
    rows = tuple(tuple(row[place] for place in kept) for row in table.rows)
    heads, kinds = (tuple(words[place] for place in kept) for words in (table.heads, table.kinds))
    return replace(table, heads=heads, kinds=kinds, rows=rows)


def headline(report: Report) -> Headline:
    """Only a verdict that says accepted gets words that say so."""
    verdict = report.verdict
    if verdict is None:
        return Headline("none", "No verdict", "This is a report of measurements. No gate was judged.", ())
    kind, statuses = verdict.verdict, [gate.status for gate in verdict.gates]
    passed, every = statuses.count("passed"), len(statuses)
    whole = f"{_many(every, 'check')} of {_many(len({gate.gate for gate in verdict.gates}), 'gate')}"
    if kind == "failed":
        reasons = [_of_gate(gate) for gate in verdict.gates if gate.status == "failed"]
        return Headline(kind, "Failed", f"{len(reasons)} of {whole} failed:", tuple(reasons))
    statement = f"All gates pass: {whole}"
    if passed < every:
        statement = f"No gate failed: {passed} of {whole} pass, {every - passed} not judged"
    if kind == "accepted":
        return Headline(kind, "Accepted", f"{statement}.", ())
    return Headline(kind, "Checked", f"{statement}. No acceptance because:", tuple(verdict.why_not_accepted))


def _many(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _of_gate(gate: GateCheck) -> str:
    about = f" ({gate.reason})" if gate.reason else ""
    return f"{gate.gate}, {gate.of}: found {gate.actual}, required {gate.required}{about}"


def limited(report: Report) -> str:
    """Empty for a whole run; else the text that stands wherever its figures do."""
    limit = report.body.limit
    return f"first {limit} rows only, no result" if limit else ""


def where_counted(report: Report, cell: EvaluationCell) -> str:
    """What stands behind an evaluation: where it was made, or why it is not the present model's."""
    place = report.measured.places[cell.key]
    return _stands(cell.origin, place.place, place.pinned, cell.precision)


def where_timed(run: PerformanceRun) -> str:
    """The same of a performance run."""
    return _stands(run.origin, run.place, run.pinned, run.precision)


def _stands(origin: str, place: str, pinned: bool, precision: str) -> str:
    text = f"({origin})" if origin else place
    text = text if precision == FP32 else f"{text} in {precision}"
    return text if pinned else f"{text}, not pinned"


def by(runner: str) -> str:
    """The guide's own runner is not named."""
    return f" ({runner})" if runner == ais_bench.MODULE else ""


def padded_runs(report: Report) -> list[PerformanceRun]:
    """The float32 runs at the guide's length, which may stand beside published figures."""
    return [run for run in report.measured.performances if (run.precision, run.length) == (FP32, SEQUENCE_LENGTH)]


def guide(report: Report) -> Table:
    """The guide's table: published figures beside those that were measured as they were, padded and in float32."""
    body, measured = report.body, report.measured
    published = {row.batch_size: row for row in measured.published}
    sizes = {*body.batch_sizes, *(c.batch_size for c in body.cells), *(r.batch_size for r in measured.performances)}
    heads = (
        "model",
        "official accuracy",
        "310P accuracy (published)",
        "measured accuracy",
        "baseline fps (published)",
        "310P fps (published)",
        "measured fps",
    )
    rows = tuple(_guide_row(report, size, published.get(size)) for size in sorted(sizes))
    return Table("guide", "By batch size", heads, ("", "", "", "", "number", "number", ""), rows)


def _guide_row(report: Report, size: int, row: PublishedRow | None) -> tuple[Cell, ...]:
    accuracies = [
        f"{SHORT[cell.version]}={_accuracy(report, cell)}"
        for cell in report.body.cells
        if cell.batch_size == size and cell.precision == FP32 and (is_padded(cell.lengths) or row is None)
    ]
    runs = [run for run in padded_runs(report) if run.batch_size == size]
    several = len({run.version for run in runs}) > 1
    fps = [f"{SHORT[run.version] + '=' if several else ''}{run.fps:.3f} {where_timed(run)}" for run in runs]
    return (
        f"Deberta bs{size}",
        f"M={row.official_match}/MM={row.official_mismatch}" if row else ABSENT,
        f"M={row.ascend_match}/MM={row.ascend_mismatch}" if row else ABSENT,
        tuple(accuracies) or ABSENT,
        f"{row.baseline_fps:.3f}" if row else ABSENT,
        f"{row.ascend_fps:.3f}" if row else ABSENT,
        tuple(fps) or ABSENT,
    )


def _accuracy(report: Report, cell: EvaluationCell, with_lengths: bool = True) -> str:
    """It says all that stands behind it, since these texts are copied."""
    lengths = f", lengths {','.join(cell.lengths)}" if with_lengths and not is_padded(cell.lengths) else ""
    partial = f", {limited(report)}" if report.body.limit else ""
    counts = f"{100 * cell.accuracy:.2f} ({cell.correct}/{cell.rows})"
    return f"{counts} {where_counted(report, cell)}{lengths}{partial}"


def lengths(report: Report) -> Table:
    """What ran at several lengths or in int8: none of it stands beside a published figure."""
    figures: dict[tuple[int, str, str], list[str]] = {}
    for cell in report.body.cells:
        if cell.precision != FP32 or not is_padded(cell.lengths):
            row = figures.setdefault((cell.batch_size, cell.version, cell.precision), [ABSENT] * 5)
            row[:2] = ",".join(cell.lengths), _accuracy(report, cell, with_lengths=False)
    for result in report.measured.throughputs:
        place = (result.batch_size, result.version, result.precision)
        row = figures.setdefault(place, [ABSENT] * 5)
        row[2] = ",".join(result.lengths)
        row[3] = f"{result.fps:.3f} {_stands(result.origin, result.place, result.pinned, FP32)}"
        padded = [run.fps for run in padded_runs(report) if (run.batch_size, run.version) == place[:2]]
        row[4] = f"{padded[0]:.3f}" if padded else ABSENT
    rows = tuple((f"{size}", version, precision, *row) for (size, version, precision), row in sorted(figures.items()))
    heads = (
        *("batch size", "version", "precision", "lengths", "measured accuracy"),
        *("lengths that were timed", "fps over the data", "padded fps"),
    )
    return Table("lengths", "Other lengths and int8", heads, ("", "", "", "", "", "", "", "number"), rows)


def int8(report: Report) -> Table:
    """int8 runs beside the float32 runs of the same rows."""
    rows = tuple(
        (
            f"{entry.batch_size}",
            entry.version,
            ",".join(map(str, entry.lengths)),
            f"{entry.int8.correct}/{entry.rows}",
            f"{entry.fp32.correct}/{entry.rows}",
            f"{entry.labels_changed}",
            f"{entry.right_before}",
            f"{entry.right_now}",
            f"{entry.largest_margin_changed:.3f}",
            f"{entry.max_abs_difference:.3f}",
            entry.origin,
        )
        for entry in report.measured.label_changes
    )
    heads = (
        *("batch size", "version", "lengths", "int8 correct", "fp32 correct", "changed labels", "right in fp32"),
        *("right in int8", "largest fp32 margin", "largest difference of a logit", "remarks"),
    )
    return _filled(Table("int8", "int8 beside fp32", heads, ("", "", "", *["number"] * 7, "wrap"), rows))


def notes(report: Report) -> list[str]:
    """What belongs under the guide's table, a paragraph each."""
    body, measured = report.body, report.measured
    if measured.published:
        about = f"Published figures: {measured.note}"
    else:
        nothing = f"Nothing is published for profile {body.profile}; the guide's figures belong to its own model."
        about = measured.note or nothing
    fps = "fps = batch size * 1000 / average time without the first, in ms: inference alone, no reading or writing."
    if any(run.runner == ais_bench.MODULE for run in measured.performances):
        fps += " Of ais_bench: its own throughput, by the average of all times; its warm-up is none of them."
    pinned = [*(place.pinned for place in measured.places.values()), *(run.pinned for run in measured.performances)]
    if not all(pinned):
        fps += " Not pinned: made in an image whose base is not the one of docker/pins.toml; the records name it."
    paragraphs = [about, fps]
    if body.backend == "cpu" and measured.engines:
        machine = measured.host.system.split()[-1:] or [ABSENT]
        paragraphs.append(
            f"Measured on the CPU backend ({machine[0]}; {'; '.join(measured.engines)})."
            " No Ascend device was used, and a CPU's fps says nothing about one."
        )
    return paragraphs


def gates(report: Report) -> Table:
    checks = report.verdict.gates if report.verdict else []
    rows = [(g.gate, g.of, g.required or ABSENT, g.actual or ABSENT, g.status, g.reason) for g in checks]
    heads = ("gate", "of", "required", "found", "status", "reason")
    kinds = ("", "wrap", "wrap", "wrap", "status", "wrap")
    return _filled(Table("gates", "What was required and what was found", heads, kinds, tuple(rows)))


def performances(report: Report) -> Table:
    times = ("average ms", "p50 ms", "p90 ms", "p99 ms", "interval of the average, ms", "spread")
    heads = ("batch size", "version", "loops", "fps", *times, "remarks")
    kinds = ("", "", *["number"] * 8, "wrap")
    rows = tuple(_performance(run) for run in report.measured.performances)
    return _filled(Table("performances", "Performance runs; times of one batch", heads, kinds, rows))


def _performance(run: PerformanceRun) -> tuple[Cell, ...]:
    ranks = run.percentiles_ms
    return (
        f"{run.batch_size}",
        f"{run.version}{by(run.runner)}",
        f"{run.loops}",
        f"{run.fps:.3f}",
        f"{run.average_ms}",
        *(f"{time:.3f}" for time in (ranks.p50, ranks.p90, ranks.p99)),
        between(run.interval_ms, 3),
        f"{run.spread:.4f}",
        _remarks(run),
    )


def _remarks(run: PerformanceRun) -> tuple[str, ...]:
    length = "" if run.length == SEQUENCE_LENGTH else f"length {run.length}"
    precision = "" if run.precision == FP32 else run.precision
    return tuple(filter(None, (length, precision, run.origin, "" if run.pinned else "not pinned", run.warning)))


def agreement(report: Report) -> list[Table]:
    """Whether all batch sizes predict the same, and the rows where they do not."""
    versions = report.body.agreement
    rows = [
        (
            version,
            ", ".join(map(str, entry.batch_sizes)),
            f"{entry.rows_that_differ}",
            f"{entry.beyond_near_ties}",
            f"{entry.near_tie_margin}",
        )
        for version, entry in versions.items()
    ]
    heads = ("version", "batch sizes", "rows that differ", "beyond near ties", "near tie: margin below")
    kinds = ("", "", "number", "number", "number")
    singles = [
        (version, f"{row.row}", f"{row.line}", f"{row.margin:.3f}", _predictions(row.labels))
        for version, entry in versions.items()
        for row in entry.differences
    ]
    single_heads = ("version", "row", "line of the tsv", "margin", "predicted, by batch size")
    single_kinds = ("", "number", "number", "number", "wrap")
    caption = "Rows that differ between batch sizes, the largest margins first, 50 at most of a version"
    tables = (
        Table("agreement", "Predictions at all batch sizes", heads, kinds, tuple(rows)),
        Table("differences", caption, single_heads, single_kinds, tuple(singles)),
    )
    return [table for table in tables if table.rows]


def _predictions(labels: Mapping[str, str]) -> str:
    return ", ".join(f"bs {size}: {label}" for size, label in labels.items())


def reference(report: Report) -> list[Table]:
    """PyTorch's own accuracy, each cell against it, and the rows whose label changed."""
    rows = [(version, *counted(counts)) for version, counts in report.body.reference.items()]
    heads = ("version", "correct / rows", "accuracy", INTERVAL)
    kinds = ("", "number", "number", "number")
    own = Table("reference", "PyTorch, float32, the same rows", heads, kinds, tuple(rows))
    return [table for table in (own, _versus(report.body.cells), _label_changes(report.body.cells)) if table.rows]


def size_of(cell: EvaluationCell) -> str:
    """The batch size, as it distinguishes the cells of a version."""
    return f"{cell.batch_size}" if cell.precision == FP32 else f"{cell.batch_size} ({cell.precision})"


def _versus(cells: Sequence[EvaluationCell]) -> Table:
    """A row for all batch sizes that compare alike."""
    sizes: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        if versus := cell.versus_reference:
            key = (
                cell.version,
                f"{versus.same_labels}/{cell.rows}",
                f"{versus.only_reference_correct}",
                f"{versus.only_this_correct}",
                f"{versus.p_value}",
                f"{versus.flips_total}",
                f"{versus.beyond_near_ties}",
            )
            sizes.setdefault(key, []).append(size_of(cell))
    rows = [(", ".join(names), *key) for key, names in sizes.items()]
    compared = ("same labels", "only PyTorch correct", "only this correct", "p (McNemar, mid-p)", "changed labels")
    heads = ("batch sizes", "version", *compared, "beyond near ties")
    return Table("versus", "Evaluations against PyTorch", heads, ("", "", *["number"] * 6), tuple(rows))


def _label_changes(cells: Sequence[EvaluationCell]) -> Table:
    """A row each, with all batch sizes that changed its label so."""
    sizes: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        for change in cell.versus_reference.flips if cell.versus_reference else ():
            labels = (change.gold, change.reference, change.this)
            key = (cell.version, f"{change.row}", f"{change.line}", *labels, f"{change.margin:.3f}")
            sizes.setdefault(key, []).append(size_of(cell))
    rows = [(*key, ", ".join(names)) for key, names in sizes.items()]
    heads = ("version", "row", "line of the tsv", "gold", "PyTorch", "this", "PyTorch's margin", "batch sizes")
    kinds = ("", "number", "number", "", "", "", "number", "")
    caption = "Rows whose label changed, the largest margins first, 50 at most of an evaluation"
    return Table("flips", caption, heads, kinds, tuple(rows))


def counted(counts: Proportion | EvaluationCell) -> tuple[str, str, str]:
    """correct / rows, accuracy and its interval."""
    return f"{counts.correct}/{counts.rows}", f"{counts.accuracy:.4f}", between(counts.interval, 4)


def between(interval: Sequence[float] | None, digits: int) -> str:
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ABSENT


@dataclass(frozen=True)
class Group:
    """The cells of one version that counted the same, at batch sizes that are alike in where they were made."""

    version: str
    sizes: tuple[int, ...]
    stands: str  # as `where_counted`
    cell: EvaluationCell  # the first of them

    @property
    def title(self) -> str:
        separator = " " if self.stands.startswith("on ") else ", "
        return f"{self.version}, bs {', '.join(map(str, self.sizes))}{separator}{self.stands}"

    @property
    def counts(self) -> dict[str, Proportion | EvaluationCell]:
        return counts_of(self.cell)


def counts_of(cell: EvaluationCell) -> dict[str, Proportion | EvaluationCell]:
    """The whole and each genre."""
    return {"all": cell, **cell.genres}


def groups(report: Report) -> list[Group]:
    """The cells by what they counted, versions in order: as a rule one group for each version."""
    same: list[Group] = []
    for cell in sorted(report.body.cells, key=lambda cell: (VERSIONS.index(cell.version), cell.batch_size)):
        stands = where_counted(report, cell)
        for place, group in enumerate(same):
            counts = [(c.version, c.genres, c.confusion, c.permutations) for c in (cell, group.cell)]
            if counts[0] == counts[1] and group.stands == stands:
                same[place] = replace(group, sizes=(*group.sizes, cell.batch_size))
                break
        else:
            same.append(Group(cell.version, (cell.batch_size,), stands, cell))
    return same


def orders(report: Report) -> Table:
    """How many rows would be correct if the model's outputs had another order: a permuted model shows here."""
    rows = []
    for group in groups(report):
        best, second = group.cell.permutations[:2]
        first = [", ".join(best.order), f"{best.correct}", ", ".join(second.order), f"{second.correct}"]
        rows.append((f"{', '.join(map(str, group.sizes))}", group.version, *first))
    heads = ("batch sizes", "version", "best order of outputs", "correct", "next best", "correct")
    kinds = ("", "", "", "number", "", "number")
    return Table("orders", "The outputs taken in other orders", heads, kinds, tuple(rows))


def data_checks(report: Report) -> Table:
    """What the check of the data counted."""
    rows = [
        (version, f"{check.rows}", tuple(map(_problem, check.problems)) or "none", tuple(check.notes) or ABSENT)
        for version, check in report.body.sentinels.items()
    ]
    heads = ("version", "rows", "problems", "notes")
    return Table("data", "The data themselves", heads, ("", "number", "wrap", "wrap"), tuple(rows))


def _problem(problem: DataProblem) -> str:
    lines = f" (line {', '.join(map(str, problem.lines))})" if problem.lines else ""
    return f"{problem.what}{lines}"


def environment(report: Report) -> Table:
    """Where and when it was measured, one fact a row."""
    measured = report.measured
    host, pins = measured.host, measured.pins
    facts: list[tuple[str, Iterable[str]]] = [
        ("made", [measured.finished]),
        ("command", [measured.command]),
        ("deberta-ascend", [measured.deberta_ascend]),
        ("backend, executor", [f"{report.body.backend}, {measured.executor}"]),
        ("system", [host.system]),
        ("processor", [f"{host.cpu or ABSENT}, {host.cpus} cores"]),
        ("host", [host.name]),
        ("Python", [host.python]),
        ("engines", measured.engines),
        ("tools", [f"{name}: {version}" for name, version in measured.tools.items() if version]),
        ("loops of a performance run", [f"{measured.loops}"]),
        ("pins", ["as pinned" if pins.pinned else "not pinned", *pins.notes]),
    ]
    rows = [(name, tuple(values) or ABSENT) for name, values in facts]
    return Table("environment", "Where it was measured", ("fact", "value"), ("", "wrap"), tuple(rows))


def steps(report: Report) -> Table:
    rows = [
        (step.step, step.executor, f"{step.seconds:.1f}", step.started, step.image) for step in report.measured.steps
    ]
    heads, kinds = ("step", "executor", "seconds", "started", "image"), ("short", "", "number", "short", "hash")
    return _filled(Table("steps", "Steps behind these figures", heads, kinds, tuple(rows)))


def artifacts(report: Report) -> list[Table]:
    """Every file and folder with its hash; a folder's is the in-toto dirHash."""
    groups = (
        ("inputs", "Inputs", report.body.inputs),
        ("artifacts", "Artifacts that the same inputs give anywhere", report.body.artifacts),
        ("measured-artifacts", "Artifacts of this machine", report.measured.artifacts),
    )
    heads, kinds = ("path", "kind", "hash"), ("hash", "", "hash")
    return [
        Table(name, caption, heads, kinds, tuple((path, *hashed) for path, hashed in _hashes(group)))
        for name, caption, group in groups
        if group
    ]


def _hashes(group: Mapping[str, Mapping[str, str]]) -> list[tuple[str, tuple[str, str]]]:
    """By path, bs8 before bs16."""
    paths = sorted(group, key=lambda path: [part.zfill(4) for part in re.split(r"(\d+)", path)])
    return [(path, pair) for path in paths for pair in sorted(group[path].items())]
