"""report.html: one page without scripts that asks the network for nothing, for a screen, a phone and paper.

The page's look is report.html.jinja beside this module; here its numbers are put into words, tables and charts.
"""

from __future__ import annotations

from pathlib import Path

import jinja2
import msgspec

from deberta.core.contract import VERSIONS, is_supplied
from deberta.core.report import PerformanceRun, Report
from deberta.stages.report import charts, comparisons, tables
from deberta.stages.report.charts import Dot, Series
from deberta.stages.report.comparisons import Group
from deberta.stages.report.tables import Figure, Section, Table

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def html(report: Report, data: str = "") -> str:
    """The whole page. `data`: how the page can link to the report.json, if it may."""
    source = TEMPLATE.read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    partial = tables.limited(report)
    return environment.from_string(source).render(
        kind="Report" if report.verdict is None else "Acceptance report",
        report=report,
        headline=tables.headline(report),
        partial=f"{partial[0].upper()}{partial[1:]}." if partial else "",
        captioned=f" ({partial})" if partial else "",
        data=data,
        sections=[section for section in _sections(report) if section.figures or section.tables],
    )


def _sections(report: Report) -> list[Section]:
    groups = comparisons.groups(report)
    confusions = [_confusion(number, group) for number, group in enumerate(groups, 1)]
    accuracies = _accuracy(report, groups)
    sections = [
        Section("results", "Published and measured", [tables.guide(report)], tables.notes(report)),
        Section("gates", "Gates", [tables.gates(report)]),
        Section("accuracy", "Accuracy by genre", _genres(groups), [tables.NOTES["accuracy"]], accuracies, beside=True),
        Section("confusion", "Confusion", confusions, [tables.NOTES["confusion"]], beside=True),
        Section("throughput", "Throughput", [tables.performances(report)], figures=_throughput(report)),
        Section("latency", "Latency", notes=[tables.NOTES["latency"]], figures=_latencies(report), small=True),
        *comparisons.sections(report),
    ]
    return [section._replace(tables=[table for table in section.tables if table.rows]) for section in sections]


def _accuracy(report: Report, groups: list[Group]) -> list[Figure]:
    """A chart for each group of cells, all on one axis."""
    ends = [end for group in groups for counts in comparisons.counts_of(group.cell).values() for end in counts.interval]
    if not ends:
        return []
    official = {version: _official(report, version) for version in VERSIONS}
    ends += [value / 100 for value in official.values() if value is not None]
    # 0 and 100 are ticks of any step, so that an axis that reaches them ends there.
    domain = [tick for tick in charts.ticks(100 * min(ends), 100 * max(ends)) if 0 <= tick <= 100]
    figures = []
    for number, group in enumerate(groups, 1):
        dots = [
            Dot(name, 100 * counts.accuracy, 100 * counts.interval[0], 100 * counts.interval[1], name == "all")
            for name, counts in comparisons.counts_of(group.cell).items()
        ]
        value = official[group.cell.version]
        marked = {f"official {value}": value} if value is not None else {}
        svg = charts.whiskers(f"accuracy-{number}", f"Accuracy by genre: {group.title}", dots, marked, domain)
        figures.append(Figure(group.title, svg))
    return figures


def _official(report: Report, version: str) -> float | None:
    """The accuracy that is published as official, in percent, if all batch sizes have the same."""
    values = {getattr(row, f"official_{version}") for row in report.measured.published}
    return float(values.pop()) if len(values) == 1 else None


def _genres(groups: list[Group]) -> list[Table]:
    heads, kinds = zip(*tables.TEXTS["genres"]["columns"][2:], strict=True)
    return [
        Table(
            f"genres-{number}",
            group.title,
            heads,
            kinds,
            [(name, *tables.counted(counts)) for name, counts in comparisons.counts_of(group.cell).items()],
        )
        for number, group in enumerate(groups, 1)
    ]


def _confusion(number: int, group: Group) -> Table:
    """Gold labels down, predictions across, totals at the ends; a cell is shaded by its share of the gold label."""
    cell = group.cell
    labels = tuple(cell.confusion)
    rows, shares = [], []
    for gold in labels:
        counts, total = [cell.confusion[gold][label] for label in labels], cell.labels_gold[gold]
        rows.append((gold, *map(str, counts), f"{total}"))
        shares.append((*(count / total if total else 0.0 for count in counts), 0.0))
    rows.append(("predicted", *(f"{cell.labels_predicted[label]}" for label in labels), f"{cell.rows}"))
    shares.append((0.0,) * (len(labels) + 1))
    heads, kinds = ("gold", *labels, "gold rows"), ("", *["number"] * (len(labels) + 1))
    return Table(f"confusion-{number}", group.title, heads, kinds, rows, shares)


def _throughput(report: Report) -> list[Figure]:
    """Measured throughput by batch size; the published lines too, where there are any."""
    lines: dict[str, list[PerformanceRun]] = {}
    for run in sorted(tables.padded_runs(report), key=lambda run: (VERSIONS.index(run.version), run.batch_size)):
        kind = "" if is_supplied(run.origin) else "measured, "
        lines.setdefault(f"{kind}{run.version}, {tables.where_timed(run)}", []).append(run)
    if not lines:
        return []
    series = [
        Series(
            label,
            f"measured-{min(number, 3)}",
            tuple((run.batch_size, run.fps) for run in runs),
            tuple(_fps_interval(run) for run in runs),
            labelled=number == 1,
        )
        for number, (label, runs) in enumerate(lines.items(), 1)
    ]
    if rows := sorted(report.measured.published, key=lambda row: row.batch_size):
        published = tuple((row.batch_size, row.ascend_fps) for row in rows)
        baseline = tuple((row.batch_size, row.baseline_fps) for row in rows)
        series += [
            Series("310P, published", "published", published),
            Series("baseline (T4), published", "baseline", baseline),
        ]
    caption = "Throughput against batch size; the vertical lines are intervals of the average"
    return [Figure(caption, charts.throughput("throughput-1", caption, series))]


def _fps_interval(run: PerformanceRun) -> tuple[float, float] | None:
    """The interval of the average time on the chart's axis, by the formula that made fps of the average itself."""
    interval = run.interval_ms
    if not interval or interval[0] <= 0:
        return None
    return run.batch_size * 1000 / interval[1], run.batch_size * 1000 / interval[0]


def _latencies(report: Report) -> list[Figure]:
    figures = []
    for number, run in enumerate(tables.padded_runs(report), 1):
        if times := _times(run):
            stands = tables.where_timed(run)
            title = f"bs {run.batch_size}, {run.version}{' ' if stands.startswith('on ') else ', '}{stands}"
            percentiles = msgspec.structs.asdict(run.percentiles_ms)
            svg = charts.distribution(f"latency-{number}", f"Latency: {title}", times, percentiles)
            figures.append(Figure(title, svg))
    return figures


def _times(run: PerformanceRun) -> list[float]:
    """Times in ms, msame's without the first, which warms up; ais_bench's own warm-up is none of them."""
    return run.times_ms[1:] or run.times_ms if run.runner == "msame" else run.times_ms
