"""What report.md and report.html both show, as tables of text: numbers of report.json are formatted, never computed."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from markupsafe import Markup

from deberta.ascend import ais_bench
from deberta.core.contract import FP32, PERFORMANCE_LOOPS, SEQUENCE_LENGTH, SUPPLIED, VERSIONS, is_supplied
from deberta.core.differences import ReportDifference
from deberta.core.errors import many, some
from deberta.core.job import PublishedRow
from deberta.core.report import EvaluationCell, GateCheck, PerformanceRun, Proportion, Report, is_padded

Cell = str | tuple[str, ...]  # text, or several lines of it
ABSENT = "-"
BASELINE_HEADS = ("baseline fps (published)", "baseline fps (A, see the changes)")
SHORT = dict(zip(VERSIONS, ("M", "MM"), strict=True))
TEXTS = tomllib.loads(Path(__file__).with_name("tables.toml").read_text(encoding="utf-8"))
NOTES: Mapping[str, str] = TEXTS["notes"]
WEIGHTS = (".bin", ".safetensors", ".pt", ".pth")  # a checkpoint's files
STATUSES = ("failed", "not judged", "passed")  # in the order of a report


class Table(NamedTuple):
    """`name` is unique in a report; `kinds` are as in tables.toml. `folded`: what is read while the page hides it."""

    name: str
    caption: str
    heads: Sequence[str]
    kinds: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    shares: Sequence[Sequence[float]] = ()  # from 0 to 1: how strongly a cell after the first is shaded
    folded: str = ""


class Figure(NamedTuple):
    caption: str
    svg: Markup


class Section(NamedTuple):
    """A part of a report; `notes` stand below its tables. Figures are the page's alone.

    `beside`: figures and tables stand beside each other where there is room. `folded`: the page hides it at first.
    """

    name: str
    title: str
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    beside: bool = False
    folded: bool = False


class Tile(NamedTuple):
    """A figure that a reader looks for first. `status`: of the gates that judge it, empty if none does."""

    name: str
    value: str
    unit: str
    lines: tuple[str, ...]
    status: str


class Headline(NamedTuple):
    """The verdict in words. `kind`: accepted, checked, failed or none. `reasons`: why it is no more, `lead` them in."""

    kind: str
    word: str
    statement: str
    lead: str = ""
    reasons: tuple[str, ...] = ()


def table(name: str, rows: Iterable[Sequence[Cell]]) -> Table:
    """A table of tables.toml with these rows, without the columns in which no row has anything."""
    text, every = TEXTS[name], list(rows)
    kept = [place for place in range(len(text["columns"])) if any(row[place] not in ("", ABSENT, ()) for row in every)]
    heads, kinds = zip(*(text["columns"][place] for place in kept), strict=True) if kept else ((), ())
    return Table(name, text["caption"], heads, kinds, [[row[place] for place in kept] for row in every])


def rounded(value: float, at_most: int = 3) -> str:
    """Four digits, or all before the point, and no more than `at_most` behind it."""
    return f"{value:.{decimals(value, at_most)}f}"


def decimals(value: float, at_most: int = 3) -> int:
    """How many digits `rounded` writes behind the point."""
    return max(0, min(at_most, 3 - math.floor(math.log10(value)))) if value > 0 else at_most


def with_interval(average: float, interval: Sequence[float] | None) -> str:
    """An average and half its interval, with as many digits: 16.95 ± 2.10."""
    half = f" ± {interval[1] - average:.{decimals(average)}f}" if interval else ""
    return f"{rounded(average)}{half}"


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def model_files(report: Report) -> list[str]:
    """The names of the checkpoint's files, as the inputs have them."""
    paths = map(PurePosixPath, report.body.inputs)
    return [path.name for path in paths if path.parts[0] == "models" and path.suffix in WEIGHTS]


def model_name(report: Report, batch_size: int) -> str:
    """The guide's name for the guide's model; any other has its profile's."""
    return f"{'Deberta' if report.body.published else report.body.profile} bs{batch_size}"


def headline(report: Report) -> Headline:
    """Only a verdict that says accepted gets words that say so."""
    verdict = report.verdict
    if verdict is None:
        return Headline("none", "No verdict", "This is a report of measurements. No gate was judged.")
    kind, statuses = verdict.verdict, [gate.status for gate in verdict.gates]
    passed, every = statuses.count("passed"), len(statuses)
    whole = f"{many(every, 'check')} of {many(len({gate.gate for gate in verdict.gates}), 'gate')}"
    if kind == "failed":
        reasons = [_of_gate(gate) for gate in verdict.gates if gate.status == "failed"]
        return Headline(kind, "Failed", f"{len(reasons)} of {whole} failed.", "Failed:", tuple(reasons))
    statement = f"All gates pass: {whole}"
    if passed < every:
        statement = f"No gate failed: {passed} of {whole} pass, {every - passed} not judged"
    if kind == "accepted":
        return Headline(kind, "Accepted", f"{statement}.")
    return Headline(kind, "Checked", f"{statement}.", "No acceptance because:", tuple(verdict.why_not_accepted))


def _of_gate(gate: GateCheck) -> str:
    about = f" ({gate.reason})" if gate.reason else ""
    return f"{gate.gate}, {gate.of}: found {gate.actual}, required {gate.required}{about}"


def tiles(report: Report) -> list[Tile]:
    """The accuracy of each version, the best throughput with its times, and the gates."""
    shown = [tile for version in report.body.versions for tile in _accuracy_tile(report, version)]
    if runs := padded_runs(report):
        own = [run for run in runs if not is_supplied(run.origin)] or runs
        best = max(own, key=lambda run: run.fps)
        of = f"bs {best.batch_size}, {best.version}"
        checks = [check for check in _checks(report, "fps") if check.of == f"{of}, {best.runner}"]
        required = [f"gate: {check.required}" for check in checks]
        required += [SUPPLIED] if is_supplied(best.origin) else []
        shown.append(Tile("best throughput", rounded(best.fps), "fps", (of, *required), _worst(checks)))
        ranks = best.percentiles_ms
        last, times = rounded(ranks.p99), many(len(counted_times(best)), "time")
        line = f"largest of {times}: {last} ms" if is_largest(best) else f"p99 of {times}: {last} ms"
        shown.append(Tile(f"p50, {many(best.batch_size, 'row')}", rounded(ranks.p50), "ms", (line,), ""))
    if checks := report.verdict.gates if report.verdict else []:
        passed = sum(check.status == "passed" for check in checks)
        names = {status: dict.fromkeys(c.gate for c in checks if c.status == status) for status in STATUSES[:2]}
        lines = tuple(f"{status}: {', '.join(gates)}" for status, gates in names.items() if gates)
        shown.append(Tile("gates passed", f"{passed} / {len(checks)}", "", lines, _worst(checks)))
    return shown


def _accuracy_tile(report: Report, version: str) -> Iterator[Tile]:
    cells = [cell for cell in report.body.cells if (cell.version, cell.precision) == (version, FP32)]
    if not cells:
        return
    cells = [cell for cell in cells if not is_supplied(cell.origin)] or cells
    lowest, highest = (choose(cells, key=lambda cell: cell.accuracy) for choose in (min, max))
    values = dict.fromkeys(percent(cell.accuracy) for cell in (lowest, highest))
    checks = [check for check in _checks(report, "correct_rows") if check.of in {_of(cell) for cell in cells}]
    required = dict.fromkeys(f"gate: {check.required}" for check in checks if check.required)
    lines = (f"{lowest.correct} of {lowest.rows}, bs {', '.join(str(cell.batch_size) for cell in cells)}", *required)
    lines += (SUPPLIED,) if is_supplied(lowest.origin) else ()
    yield Tile(f"accuracy {SHORT[version]} ({version})", " – ".join(values), "%", lines, _worst(checks))


def _of(cell: EvaluationCell) -> str:
    """What the gates call it."""
    return f"bs {cell.batch_size}, {cell.version}"


def _checks(report: Report, gate: str) -> list[GateCheck]:
    return [check for check in report.verdict.gates if check.gate == gate] if report.verdict else []


def _worst(checks: Sequence[GateCheck]) -> str:
    return min((check.status for check in checks), key=STATUSES.index, default="")


def limited(report: Report) -> str:
    """Empty for a whole run; else the text that stands wherever its figures do."""
    limit = report.body.limit
    return f"first {limit} rows only, no result" if limit else ""


def where_counted(report: Report, cell: EvaluationCell) -> str:
    """What stands behind an evaluation: where it was made, or why it is not the present model's."""
    place = report.measured.places[cell.key]
    return stands(cell.origin, place.place, place.pinned, cell.precision)


def where_timed(run: PerformanceRun) -> str:
    """The same of a performance run, and whether it has fewer loops than the guide's."""
    return f"{stands(run.origin, run.place, run.pinned, run.precision)}{few_loops([run])}"


def few_loops(runs: Iterable[PerformanceRun]) -> str:
    """The mark of a figure that rests on a run of fewer loops than the guide's; empty of others."""
    fewest = min((run.loops for run in runs), default=PERFORMANCE_LOOPS)
    return f", {fewest} loops only" if fewest < PERFORMANCE_LOOPS else ""


def stands(origin: str, place: str, pinned: bool, precision: str) -> str:
    text = f"({origin})" if origin else place
    text = text if precision == FP32 else f"{text} in {precision}"
    return text if pinned or is_supplied(origin) else f"{text}, not pinned"


def padded_runs(report: Report) -> list[PerformanceRun]:
    """The float32 runs at the guide's length, which may stand beside published figures."""
    return [run for run in report.measured.performances if (run.precision, run.length) == (FP32, SEQUENCE_LENGTH)]


def guide(report: Report) -> Table:
    """The guide's table: published figures beside those that were measured as they were, padded and in float32."""
    body, measured = report.body, report.measured
    published = {row.batch_size: row for row in measured.published}
    sizes = {*body.batch_sizes, *(c.batch_size for c in body.cells), *(r.batch_size for r in measured.performances)}
    result = table("guide", (_guide_row(report, size, published.get(size)) for size in sorted(sizes)))
    if not replacement(report):
        return result
    return result._replace(heads=[head.replace(*BASELINE_HEADS) for head in result.heads])


def replacement(report: Report) -> ReportDifference | None:
    """What has the fps of a baseline that stand in the place of the published ones, None if none do."""
    baseline = report.measured.baseline
    return baseline if baseline and baseline.replaces_published else None


def _baseline_fps(report: Report, size: int, row: PublishedRow | None) -> Cell:
    """The published figure, or those of the baseline's padded float32 runs in its place."""
    if not (baseline := replacement(report)):
        return f"{row.baseline_fps:.3f}" if row else ABSENT
    runs = [run for run in baseline.fps if (run.batch_size, run.length, run.precision) == (size, SEQUENCE_LENGTH, FP32)]
    several = len(runs) > 1
    texts = [f"{SHORT[run.version] + '=' if several else ''}{rounded(run.fps_a)}" for run in runs]
    return tuple(texts) or ABSENT


def _guide_row(report: Report, size: int, row: PublishedRow | None) -> tuple[Cell, ...]:
    accuracies = [
        f"{SHORT[cell.version]}={accuracy(report, cell)}"
        for cell in report.body.cells
        if cell.batch_size == size and cell.precision == FP32 and (is_padded(cell.lengths) or row is None)
    ]
    runs = [run for run in padded_runs(report) if run.batch_size == size]
    several = len({run.version for run in runs}) > 1
    fps = [f"{SHORT[run.version] + '=' if several else ''}{rounded(run.fps)} {where_timed(run)}" for run in runs]
    return (
        model_name(report, size),
        f"M={row.official_match}/MM={row.official_mismatch}" if row else ABSENT,
        f"M={row.ascend_match}/MM={row.ascend_mismatch}" if row else ABSENT,
        tuple(accuracies) or ABSENT,
        _baseline_fps(report, size, row),
        f"{row.ascend_fps:.3f}" if row else ABSENT,
        tuple(fps) or ABSENT,
    )


def accuracy(report: Report, cell: EvaluationCell, with_lengths: bool = True) -> str:
    """It says all that stands behind it, since these texts are copied."""
    by_lengths = with_lengths and not is_padded(cell.lengths)  # the table of lengths names them
    lengths = f", {many(len(cell.lengths), 'length')}" if by_lengths else ""
    partial = f", {limited(report)}" if report.body.limit else ""
    counts = f"{percent(cell.accuracy)} ({cell.correct}/{cell.rows})"
    return f"{counts} {where_counted(report, cell)}{lengths}{partial}"


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
    figures = [*((cell.origin, measured.places[cell.key].pinned) for cell in body.cells)]
    figures += [(run.origin, run.pinned) for run in measured.performances]
    if not all(pinned or is_supplied(origin) for origin, pinned in figures):
        fps += " Not pinned: made in an image, or by a tool, that docker/pins.toml does not name; the records name it."
    paragraphs = [about, fps]
    if any(is_supplied(origin) for origin, _ in figures):
        paragraphs.append(NOTES["user-supplied"])
    if body.backend == "cpu" and measured.engines:
        machine = measured.host.system.split()[-1:] or [ABSENT]
        paragraphs.append(
            f"Measured on the CPU backend ({machine[0]}; {'; '.join(measured.engines)})."
            " No Ascend device was used, and a CPU's fps says nothing about one."
        )
    return [*paragraphs, *_not_checked(report)]


def _not_checked(report: Report) -> list[str]:
    """A paragraph for each thing that could not be looked at before runs, with the figures that it stands behind."""
    measured = report.measured
    figures: dict[str, list[str]] = {}
    of_devices = {text for run in measured.sharded for text in run.not_checked}  # the section of devices has these
    for cell in report.body.cells:
        for text in [text for text in measured.places[cell.key].not_checked if text not in of_devices]:
            figures.setdefault(text, []).append(f"accuracy bs{cell.batch_size} {SHORT[cell.version]}")
    for run in measured.performances:
        for text in run.not_checked:
            figures.setdefault(text, []).append(f"fps bs{run.batch_size} {SHORT[run.version]}")
    return [f"Not checked before the run ({some(runs, 6)}): {text}." for text, runs in figures.items()]


def gates(report: Report, statuses: Sequence[str] = STATUSES, gate: str = "") -> Table:
    """The checks with one of these statuses, those that failed first; of one gate if it is named."""
    checks = [check for check in report.verdict.gates if check.status in statuses] if report.verdict else []
    checks = [check for check in checks if check.gate == (gate or check.gate)]
    checks.sort(key=lambda check: STATUSES.index(check.status))
    return table(
        "gates", ((g.gate, g.of, g.required or ABSENT, g.actual or ABSENT, g.status, g.reason) for g in checks)
    )


def performances(report: Report) -> Table:
    return table("performances", map(_performance, report.measured.performances))


def _performance(run: PerformanceRun) -> tuple[Cell, ...]:
    ranks = run.percentiles_ms
    return (
        f"{run.batch_size}",
        f"{run.version}{' (ais_bench)' if run.runner == ais_bench.MODULE else ''}",
        f"{run.loops}",
        rounded(run.fps),
        with_interval(run.average_ms, run.interval_ms),
        *map(rounded, (ranks.p50, ranks.p90)),
        "" if is_largest(run) else rounded(ranks.p99),
        rounded(ranks.p99) if is_largest(run) else "",
        f"{100 * run.spread:.1f} %",
        _remarks(run),
    )


def performance_notes(report: Report) -> list[str]:
    """What belongs under the table of performance runs."""
    runs = report.measured.performances
    return [NOTES["throughput"], *([NOTES["largest"]] if any(map(is_largest, runs)) else [])] if runs else []


def counted_times(run: PerformanceRun) -> list[float]:
    """Times in ms, msame's without the first, which warms up; ais_bench's own warm-up is none of them."""
    return run.times_ms[1:] or run.times_ms if run.runner == "msame" else run.times_ms


def is_largest(run: PerformanceRun) -> bool:
    """Whether the p99 is the largest time: by nearest rank it is, of fewer than 100."""
    return len(counted_times(run)) < 100


def _remarks(run: PerformanceRun) -> tuple[str, ...]:
    length = "" if run.length == SEQUENCE_LENGTH else f"length {run.length}"
    precision = "" if run.precision == FP32 else run.precision
    pinned = "" if run.pinned or is_supplied(run.origin) else "not pinned"
    return tuple(filter(None, (length, precision, run.origin, pinned, run.warning)))


def counted(counts: Proportion | EvaluationCell) -> tuple[str, str, str]:
    """correct / rows, accuracy and its interval."""
    low, high = counts.interval
    return f"{counts.correct}/{counts.rows}", percent(counts.accuracy), f"{percent(low)} to {percent(high)}"


def between(interval: Sequence[float] | None, digits: int) -> str:
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ABSENT


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
    return table("environment", ((name, tuple(values) or ABSENT) for name, values in facts))


def steps(report: Report) -> Table:
    every = report.measured.steps
    return table(
        "steps", ((step.step, step.executor, f"{step.seconds:.1f}", step.started, step.image) for step in every)
    )


def artifacts(report: Report) -> list[Table]:
    """Every file and folder with its hash; a folder's is the in-toto dirHash."""
    groups = {
        "inputs": report.body.inputs,
        "artifacts": report.body.artifacts,
        "measured-artifacts": report.measured.artifacts,
    }
    return [table(name, _hashes(group)) for name, group in groups.items()]


def _hashes(group: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str, str]]:
    """By path, bs8 before bs16."""
    for path in sorted(group, key=lambda path: [part.zfill(4) for part in re.split(r"(\d+)", path)]):
        yield from ((path, kind, digest) for kind, digest in sorted(group[path].items()))
