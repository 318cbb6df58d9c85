"""report.html: one page without scripts that asks the network for nothing, for a screen, a phone and paper.

The page's look is report.html.jinja beside this module; here its numbers are put into words, tables and charts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import jinja2

from deberta.core.contract import VERSIONS, is_supplied
from deberta.core.differences import FpsDifference
from deberta.core.errors import many
from deberta.core.report import PerformanceRun, Report
from deberta.stages.report import charts, comparisons, tables
from deberta.stages.report.charts import Axis, ChartRow, Key
from deberta.stages.report.comparisons import Group
from deberta.stages.report.phrases import Phrases, Say, translated, translated_tile
from deberta.stages.report.tables import SHORT, STATUSES, Cell, Figure, Section, Table

TEMPLATE = Path(__file__).with_name("report.html.jinja")
HASH = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
HASH_DIGITS = 12  # what is shown of a hash at first


def html(report: Report, data: str, phrases: Phrases) -> str:
    """The whole page. `data`: how the page can link to the report.json, if it may."""
    say = phrases.say
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(say=say, short_hash=_short_hash)
    partial = tables.limited(report)
    sections = [section for section in _sections(report, say) if section.figures or section.tables]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        language={"en": "en", "zh": "zh-CN"}[phrases.language],
        kind="Report" if report.verdict is None else "Acceptance report",
        report=report,
        models=tables.model_files(report),
        headline=tables.headline(report),
        tiles=[translated_tile(tile, say) for tile in tables.tiles(report)],
        partial=f"{partial[0].upper()}{partial[1:]}." if partial else "",
        captioned=f" ({say(partial)})" if partial else "",
        finished=_time(report.measured.finished),
        data=data,
        about_body=say(tables.NOTES["body"]),
        status_classes={say(status): status.replace(" ", "-") for status in STATUSES},
        sections=[translated(section, say) for section in sections],
    )


def _time(text: str) -> str:
    """A time of a report without its seconds: 2026-01-01 09:05 UTC."""
    zone = re.sub(r".*(?=[+-]\d\d:\d\d$)|.*(?=Z$)", "", text)
    return f"{text[:10]} {text[11:16]} {'UTC' if zone in ('Z', '+00:00') else f'UTC{zone}'}"


def _short_hash(cell: Cell) -> str:
    """The first digits of a SHA-256; empty for any other text."""
    match = HASH.fullmatch(cell) if isinstance(cell, str) else None
    return match[1][:HASH_DIGITS] if match else ""


def _sections(report: Report, say: Say) -> list[Section]:
    groups = comparisons.groups(report)
    accuracies = _accuracy(report, groups, say)
    confusions = [_confusion(number, group) for number, group in enumerate(groups, 1)]
    sections = [
        Section("gates", "Gates", list(_gates(report))),
        Section("results", "By batch size", [tables.guide(report)], tables.notes(report)),
        Section(
            "throughput",
            "Throughput and latency",
            [tables.performances(report)],
            tables.performance_notes(report),
            [*_throughput(report, say), *_latency(report, say)],
        ),
        Section("accuracy", "Accuracy by genre", _genres(groups), [tables.NOTES["accuracy"]], accuracies, beside=True),
        Section("confusion", "Confusion", confusions, [tables.NOTES["confusion"]], beside=True),
        *comparisons.sections(report),
    ]
    return [section._replace(tables=[table for table in section.tables if table.rows]) for section in sections]


def _gates(report: Report) -> Iterator[Table]:
    """What did not pass, then what passed, folded, a table for each gate."""
    yield tables.gates(report, STATUSES[:2])._replace(caption="What did not pass")
    passed = [check.gate for check in report.verdict.gates if check.status == "passed"] if report.verdict else []
    for gate in dict.fromkeys(passed):
        of_gate, count = tables.gates(report, STATUSES[2:], gate), passed.count(gate)
        yield of_gate._replace(name=f"gates-{gate}", folded=f"{gate}: {many(count, 'check')} passed")


def _accuracy(report: Report, groups: list[Group], say: Say) -> list[Figure]:
    """A chart for each group of cells, all on one axis."""
    ends = [end for group in groups for counts in comparisons.counts_of(group.cell).values() for end in counts.interval]
    if not ends:
        return []
    official = {version: _official(report, version) for version in VERSIONS}
    ends += [value / 100 for value in official.values() if value is not None]
    # 0 and 100 are ticks of any step, so that an axis that reaches them ends there.
    every = [tick for tick in charts.ticks(100 * min(ends), 100 * max(ends)) if 0 <= tick <= 100]
    axis = Axis(say("accuracy, %"), every)
    figures = []
    for number, group in enumerate(groups, 1):
        rows = []
        for name, counts in comparisons.counts_of(group.cell).items():
            low, high = (100 * end for end in counts.interval)
            label = say(name) if name == comparisons.ALL else name
            text = tables.percent(counts.accuracy)
            rows.append(ChartRow(label, 100 * counts.accuracy, low, high, text, name == comparisons.ALL))
        value = official[group.cell.version]
        marked = {say(f"official {value}"): value} if value is not None else {}
        title = say(group.title)
        svg = charts.rows(f"accuracy-{number}", f"{say('Accuracy by genre')}: {title}", rows, axis, marked=marked)
        figures.append(Figure(title, svg))
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


def _labels(runs: Sequence[PerformanceRun], say: Say) -> list[str]:
    """A short name of each run: with its version and what it stands on where they are not all alike."""
    versions, places = ({getattr(run, name) for run in runs} for name in ("version", "place"))
    labels = []
    for run in runs:
        label = f"bs {run.batch_size}" + (f", {SHORT[run.version]}" if len(versions) > 1 else "")
        about = say(tables.where_timed(run)) if len(places) > 1 else ""
        labels.append(f"{label} {about}".strip())
    return labels


def _throughput(report: Report, say: Say) -> Iterator[Figure]:
    """Measured throughput by batch size, the published figures too where there are any; from zero."""
    runs = tables.padded_runs(report)
    if not runs:
        return
    published = {row.batch_size: row for row in report.measured.published}
    own_baseline = tables.replacement(report)
    rows = []
    for run, label in zip(runs, _labels(runs, say), strict=True):
        low, high = _fps_interval(run)
        row = published.get(run.batch_size)
        others = [("published", row.ascend_fps)] if row else []
        if own_baseline:
            same = (run.batch_size, run.version, run.length, run.precision, run.runner)
            others += [("baseline", entry.fps_a) for entry in own_baseline.fps if _run_of(entry) == same]
        elif row:
            others.append(("baseline", row.baseline_fps))
        rows.append(ChartRow(label, run.fps, low, high, tables.rounded(run.fps), others=others))
    most = max(value for row in rows for value in (row.value, *(value for _, value in row.others)))
    highest = min(max([most, *(row.high for row in rows)]), 1.5 * most)
    supplied = {is_supplied(run.origin) for run in runs}
    kinds = {False: "measured", True: "user-supplied"}
    keys = [
        Key("bar", say(" or ".join(kinds[kind] for kind in sorted(supplied)))),
        Key("whisker", say("95 % interval")),
    ]
    styles = {style for row in rows for style, _ in row.others}
    keys += [Key("published", say("310P, published"))] if "published" in styles else []
    if "baseline" in styles:
        keys.append(Key("baseline", say("baseline A" if own_baseline else "baseline (T4), published")))
    caption = say("Throughput")
    axis = Axis(say("samples per second"), charts.ticks(0, highest))
    yield Figure(caption, charts.rows("throughput-1", caption, rows, axis, "fps", keys=keys, with_bars=True))


def _run_of(entry: FpsDifference) -> tuple[int, str, int, str, str]:
    return entry.batch_size, entry.version, entry.length, entry.precision, entry.runner


def _fps_interval(run: PerformanceRun) -> tuple[float, float]:
    """The interval of the average time on the chart's axis, by the formula that made fps of the average itself."""
    interval = run.interval_ms
    if not interval or interval[0] <= 0:
        return run.fps, run.fps
    return run.batch_size * 1000 / interval[1], run.batch_size * 1000 / interval[0]


def _latency(report: Report, say: Say) -> Iterator[Figure]:
    """The times of all runs on one axis: the shortest to the longest, p50, and p99 where it is one."""
    runs = tables.padded_runs(report)
    if not runs:
        return
    rows = []
    for run, label in zip(runs, _labels(runs, say), strict=True):
        times, ranks = tables.counted_times(run), run.percentiles_ms
        text = f"{tables.rounded(ranks.p50, 1)} / {tables.rounded(ranks.p99, 1)}"
        others = (("tail", ranks.p90), *(() if tables.is_largest(run) else (("tail", ranks.p99),)))
        rows.append(ChartRow(label, ranks.p50, min(times), max(times), text, others=others))
    largest = all(map(tables.is_largest, runs))
    keys = [
        Key("dot", "p50"),
        Key("tail", "p90" if largest else "p90, p99"),
        Key("whisker", say("shortest to longest")),
    ]
    axis = charts.axis(say("time of one batch, ms"), min(row.low for row in rows), max(row.high for row in rows))
    caption = say("Latency")
    head = say("p50 / largest" if largest else "p50 / p99")
    yield Figure(caption, charts.rows("latency-1", caption, rows, axis, head, keys=keys))
