"""report.html: one page without scripts that asks the network for nothing, for a screen, a phone and paper.

The page's look is report.html.jinja beside this module; here its numbers are put into words, tables and charts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
import msgspec
from markupsafe import Markup

from deberta.core.contract import VERSIONS
from deberta.core.report import PerformanceRun, Report
from deberta.stages.report import charts, comparisons, tables
from deberta.stages.report.charts import Dot, Series
from deberta.stages.report.comparisons import Group
from deberta.stages.report.tables import Table

TEMPLATE = Path(__file__).with_name("report.html.jinja")
ABOUT_ACCURACY = (
    "Dots are accuracies, lines their 95 % Wilson intervals. Batch sizes that counted the same are shown together."
)
ABOUT_CONFUSION = "Rows are gold labels, columns predictions; a cell is shaded by its share of its gold label's rows."
ABOUT_LATENCY = "Times of one batch, without the first of a run; each curve has an axis of its own."


@dataclass(frozen=True)
class PageFigure:
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Section:
    """A part of the page. `notes` stand below its tables,"""

    name: str
    title: str
    figures: tuple[PageFigure, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    small: bool = False  # small multiples: more figures beside each other
    beside: bool = False  # the tables too


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
        title=report.title,
        headline=tables.headline(report),
        partial=f"{partial[0].upper()}{partial[1:]}." if partial else "",
        captioned=f" ({partial})" if partial else "",
        finished=report.measured.finished,
        command=report.measured.command,
        body_sha256=report.body_sha256,
        data=data,
        sections=[section for section in _sections(report) if section.figures or section.tables],
    )


def _sections(report: Report) -> list[Section]:
    groups = comparisons.groups(report)
    judged = [tables.gates(report)] if report.verdict is not None else []
    confusions = tuple(_confusion(number, group) for number, group in enumerate(groups, 1))
    performances = tables.performances(report)
    return [
        Section("results", "Published and measured", (), (tables.guide(report),), tuple(tables.notes(report))),
        Section("gates", "Gates", tables=tuple(judged)),
        Section(
            "accuracy", "Accuracy by genre", _accuracy(report, groups), _genres(groups), (ABOUT_ACCURACY,), beside=True
        ),
        Section("confusion", "Confusion", (), confusions, (ABOUT_CONFUSION,), beside=True),
        Section("throughput", "Throughput", _throughput(report), _filled(performances)),
        Section("latency", "Latency", _latencies(report), notes=(ABOUT_LATENCY,), small=True),
        Section(
            "lengths",
            "Other lengths and int8",
            (),
            _filled(comparisons.lengths(report), comparisons.int8(report)),
            (comparisons.ABOUT_LENGTHS,),
        ),
        Section("agreement", "Agreement between batch sizes", (), tuple(comparisons.agreement(report))),
        Section("reference", "Comparison with the reference", (), tuple(comparisons.reference(report))),
        Section(
            "data",
            "Checks of data and labels",
            (),
            _filled(comparisons.data_checks(report), comparisons.orders(report)),
        ),
        Section("environment", "Environment", (), _filled(tables.environment(report), tables.steps(report))),
        Section("artifacts", "Artifacts", (), tuple(tables.artifacts(report))),
    ]


def _filled(*all_tables: Table) -> tuple[Table, ...]:
    return tuple(table for table in all_tables if table.rows)


def _accuracy(report: Report, groups: list[Group]) -> tuple[PageFigure, ...]:
    """A chart for each group of cells, all on one axis."""
    ends = [end for group in groups for counts in group.counts.values() for end in counts.interval]
    if not ends:
        return ()
    official = {version: _official(report, version) for version in VERSIONS}
    ends += [value / 100 for value in official.values() if value is not None]
    # 0 and 100 are ticks of any step, so that an axis that reaches them ends there.
    domain = [tick for tick in charts.ticks(100 * min(ends), 100 * max(ends)) if 0 <= tick <= 100]
    figures = []
    for number, group in enumerate(groups, 1):
        dots = [
            Dot(name, 100 * counts.accuracy, 100 * counts.interval[0], 100 * counts.interval[1], name == "all")
            for name, counts in group.counts.items()
        ]
        value = official[group.version]
        marked = {f"official {value}": value} if value is not None else {}
        svg = charts.whiskers(f"accuracy-{number}", f"Accuracy by genre: {group.title}", dots, marked, domain)
        figures.append(PageFigure(group.title, Markup(svg)))
    return tuple(figures)


def _official(report: Report, version: str) -> float | None:
    """The accuracy that is published as official, in percent, if all batch sizes have the same."""
    values = {getattr(row, f"official_{version}") for row in report.measured.published}
    return float(values.pop()) if len(values) == 1 else None


def _genres(groups: list[Group]) -> tuple[Table, ...]:
    heads, kinds = ("genre", "correct / rows", "accuracy", tables.INTERVAL), ("", "number", "number", "number")
    return tuple(
        Table(
            f"genres-{number}",
            group.title,
            heads,
            kinds,
            tuple((name, *tables.counted(counts)) for name, counts in group.counts.items()),
        )
        for number, group in enumerate(groups, 1)
    )


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
    return Table(f"confusion-{number}", group.title, heads, kinds, tuple(rows), tuple(shares))


def _throughput(report: Report) -> tuple[PageFigure, ...]:
    """Measured throughput by batch size; the published lines too, where there are any."""
    lines: dict[str, list[PerformanceRun]] = {}
    for run in sorted(tables.padded_runs(report), key=lambda run: (VERSIONS.index(run.version), run.batch_size)):
        lines.setdefault(f"measured, {run.version}, {tables.where_timed(run)}", []).append(run)
    if not lines:
        return ()
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
    return (PageFigure(caption, Markup(charts.throughput("throughput-1", caption, series))),)


def _fps_interval(run: PerformanceRun) -> tuple[float, float] | None:
    """The interval of the average time on the chart's axis, by the formula that made fps of the average itself."""
    interval = run.interval_ms
    if not interval or interval[0] <= 0:
        return None
    return run.batch_size * 1000 / interval[1], run.batch_size * 1000 / interval[0]


def _latencies(report: Report) -> tuple[PageFigure, ...]:
    figures = []
    for number, run in enumerate(tables.padded_runs(report), 1):
        if times := _times(run):
            stands = tables.where_timed(run)
            title = f"bs {run.batch_size}, {run.version}{' ' if stands.startswith('on ') else ', '}{stands}"
            percentiles = msgspec.structs.asdict(run.percentiles_ms)
            svg = charts.distribution(f"latency-{number}", f"Latency: {title}", times, percentiles)
            figures.append(PageFigure(title, Markup(svg)))
    return tuple(figures)


def _times(run: PerformanceRun) -> list[float]:
    """Times in ms, msame's without the first, which warms up; ais_bench's own warm-up is none of them."""
    return run.times_ms[1:] or run.times_ms if run.runner == "msame" else run.times_ms
