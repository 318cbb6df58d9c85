"""The report's tables that hold runs against each other: lengths, precisions, sizes, PyTorch, orders of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from deberta.core.contract import FP32, RUNNERS, SEQUENCE_LENGTH, SUPPLIED, VERSIONS, is_supplied
from deberta.core.differences import SLOWER
from deberta.core.errors import many, some
from deberta.core.job import DeviceShare, ShardedRun
from deberta.core.report import LISTED, DataProblem, DeviceRuns, EvaluationCell, Proportion, Report, is_padded
from deberta.stages.report import changes, tables
from deberta.stages.report.tables import ABSENT, Cell, Section, Table, table

ALL = "all"  # beside the genres: their total
FIRST = "first device"  # one without a name
SHOWN = 16  # devices that the page shows at once


def sections(report: Report) -> list[Section]:
    """What follows the performance runs, on the page and in report.md."""
    return [
        Section("wrong", "Wrong rows with the largest margin", wrong(report)),
        *([changes.section(report.measured.baseline)] if report.measured.baseline else []),
        devices(report),
        Section(
            "lengths",
            "Other lengths and precisions",
            [lengths(report), *lower_precisions(report)],
            [tables.NOTES["lengths"]],
        ),
        Section("agreement", "Agreement between batch sizes", agreement(report)),
        Section("reference", "Comparison with the reference", reference(report)),
        Section("data", "Checks of data and labels", [data_checks(report), orders(report)]),
        Section("environment", "Environment", [tables.environment(report)], folded=True),
        Section("steps", "Steps", [tables.steps(report)], folded=True),
        Section("artifacts", "Artifacts", tables.artifacts(report), folded=True),
    ]


def devices(report: Report) -> Section:
    """Which devices ran the accuracy runs, what was lost on the way, and how fast each device is."""
    sharded, timed = report.measured.sharded, report.measured.device_runs
    notes = [tables.NOTES["devices"]] if sharded else []
    for text, names in _by_text((text, run) for run in sharded for text in run.not_checked).items():
        notes.append(f"Not checked of the devices ({some(names, 6)}): {text}.")
    if different := [_of_run(run) for run in sharded if run.different]:
        notes.append(f"Devices that differ were allowed ({some(different, 6)}): this is no acceptance.")
    notes += [tables.NOTES["device-fps"]] if timed else []
    for runs in timed:
        for slow in (device for device in runs.devices if device.conclusion == SLOWER):
            change, noise = f"{100 * slow.change:+.1f} %", f"{100 * (slow.noise or 0):.1f} %"
            notes.append(
                f"Slow: {slow.device} ({_of_run(runs)}), {change} beside {runs.reference or FIRST}, noise {noise}."
            )
    return Section("devices", "Devices", [_devices(sharded), _device_runs(sharded), _lost(sharded), _fps(timed)], notes)


def _of_run(run: ShardedRun | DeviceRuns) -> str:
    return f"bs {run.batch_size} {run.version}"


def _by_text(pairs: Iterable[tuple[str, ShardedRun]]) -> dict[str, list[str]]:
    """The texts, each once, with the runs that have it."""
    runs: dict[str, list[str]] = {}
    for text, run in pairs:
        runs.setdefault(text, []).append(_of_run(run))
    return runs


def _devices(sharded: Sequence[ShardedRun]) -> Table:
    shares: dict[tuple[str, ...], list[DeviceShare]] = {}
    for run in sharded:
        for share in run.devices:
            facts = (share.name, share.chip, share.cann, share.driver, share.machine)
            shares.setdefault(facts, []).append(share)
    rows = [
        (
            *facts,
            f"{len(of_device)}",
            f"{sum(share.shards for share in of_device)}",
            f"{sum(share.batches for share in of_device)}",
            f"{sum(share.seconds for share in of_device):.0f}",
        )
        for facts, of_device in sorted(shares.items(), key=lambda entry: (entry[1][0].host, entry[1][0].device))
    ]
    return table("devices", rows)._replace(folded=many(len(rows), "device") if len(rows) > SHOWN else "")


def _device_runs(sharded: Sequence[ShardedRun]) -> Table:
    rows = (
        (
            f"{run.batch_size}",
            run.version,
            "" if run.precision == FP32 else run.precision,
            "" if run.lengths == [SEQUENCE_LENGTH] else many(len(run.lengths), "length"),
            f"{sum(1 for share in run.devices if share.shards)}",
            f"{sum(share.shards for share in run.devices)}",
            f"{sum(share.batches for share in run.devices)}",
            f"{run.compared}",
            tuple(f"batch {pair.batch} at length {pair.length}" for pair in run.unlike[:SHOWN]),
            f"{len(run.lost)}" if run.lost else "",
            run.engine or "this host",
        )
        for run in sharded
    )
    return table("device-runs", rows)


def _lost(sharded: Sequence[ShardedRun]) -> Table:
    rows = [
        (f"{run.batch_size}", run.version, f"{lost.first} to {lost.last}", lost.device, lost.why, lost.at)
        for run in sharded
        for lost in run.lost
    ]
    return table("lost", rows[:LISTED])._replace(folded=many(len(rows), "lost attempt"))


def _fps(timed: Sequence[DeviceRuns]) -> Table:
    rows: list[Sequence[Cell]] = []
    for runs in timed:
        length = "" if runs.length == SEQUENCE_LENGTH else f"length {runs.length}"
        precision = "" if runs.precision == FP32 else runs.precision
        run = ", ".join(filter(None, ("" if runs.runner == RUNNERS[0] else runs.runner, length, precision)))
        of = (f"{runs.batch_size}", runs.version, run)
        for device in runs.devices:
            is_reference = device.device == runs.reference
            figures = (
                tables.rounded(device.fps),
                tables.between(device.interval, 2),
                "" if is_reference else f"{100 * device.change:+.1f} %",
                "" if device.noise is None else f"{100 * device.noise:.1f} %",
                "middle" if is_reference else device.conclusion,
            )
            remarks = tuple(filter(None, (device.why_not_compared, *device.remarks)))
            rows.append((*of, device.device or FIRST, f"{device.loops}", *figures, remarks))
        rows.append((*of, f"sum of {many(len(runs.devices), 'device')}", "", tables.rounded(runs.sum), *[""] * 5))
    return table("device-fps", rows)


def lengths(report: Report) -> Table:
    """What ran at several lengths or in a lower precision: none of it stands beside a published figure."""
    figures: dict[tuple[int, str, str], list[str]] = {}
    for cell in report.body.cells:
        if cell.precision != FP32 or not is_padded(cell.lengths):
            row = figures.setdefault((cell.batch_size, cell.version, cell.precision), [ABSENT] * 5)
            row[:2] = ",".join(cell.lengths), tables.accuracy(report, cell, with_lengths=False)
    for result in report.measured.throughputs:
        place = (result.batch_size, result.version, result.precision)
        row = figures.setdefault(place, [ABSENT] * 5)
        row[2] = ",".join(result.lengths)
        own = [run for run in report.measured.performances if (run.batch_size, run.version, run.precision) == place]
        marked = tables.few_loops([run for run in own if str(run.length) in result.lengths])
        stands = tables.stands(result.origin, result.place, result.pinned, FP32)
        row[3] = f"{tables.rounded(result.fps)} {stands}{marked}"
        padded = [run for run in tables.padded_runs(report) if (run.batch_size, run.version) == place[:2]]
        row[4] = f"{tables.rounded(padded[0].fps)}{tables.few_loops(padded[:1])}" if padded else ABSENT
    return table("lengths", ((f"{place[0]}", *place[1:], *row) for place, row in sorted(figures.items())))


def lower_precisions(report: Report) -> list[Table]:
    """Runs of a lower precision beside the float32 runs of the same rows, in all and by genre."""
    rows = [
        (
            f"{entry.batch_size}",
            entry.version,
            entry.precision,
            ",".join(map(str, entry.lengths)),
            f"{entry.lower.correct}/{entry.rows}",
            f"{entry.fp32.correct}/{entry.rows}",
            f"{entry.labels_changed}",
            f"{entry.right_before}",
            f"{entry.right_now}",
            f"{entry.largest_margin_changed:.3f}",
            f"{entry.max_abs_difference:.3f}",
            entry.origin,
        )
        for entry in report.measured.label_changes
    ]
    by_genre = [
        (f"{entry.batch_size}", entry.version, entry.precision, genre, *map(str, msgspec.structs.astuple(counts)))
        for entry in report.measured.label_changes
        for genre, counts in entry.genres.items()
    ]
    return [table("precisions", rows), table("precision-genres", by_genre)]


def agreement(report: Report) -> list[Table]:
    """Whether all batch sizes predict the same, and the rows where they do not."""
    rows, singles = [], []
    for version, entry in report.body.agreement.items():
        counts = (f"{entry.rows_that_differ}", f"{entry.beyond_near_ties}", f"{entry.near_tie_margin}")
        rows.append((version, ", ".join(map(str, entry.batch_sizes)), *counts))
        for row in entry.differences:
            labels = ", ".join(f"bs {size}: {label}" for size, label in row.labels.items())
            singles.append((version, f"{row.row}", f"{row.line}", f"{row.margin:.3f}", labels))
    listed = table("differences", singles)._replace(folded=many(len(singles), "row"))
    return [table("agreement", rows), listed]


def reference(report: Report) -> list[Table]:
    """PyTorch's own accuracy, each cell against it, and the rows whose label changed: alike cells in one row."""
    versus, flips = [], []
    for cell in report.body.cells:
        if compared := cell.versus_reference:
            counts = (compared.only_reference_correct, compared.only_this_correct, f"{compared.p_value:.3g}")
            changed = (compared.flips_total, compared.beyond_near_ties)
            same = f"{compared.same_labels}/{cell.rows}"
            versus.append((size_of(cell), (cell.version, same, *map(str, (*counts, *changed)))))
            for flip in compared.flips:
                labels = (flip.gold, flip.reference, flip.this)
                row = (cell.version, f"{flip.row}", f"{flip.line}", *labels, f"{flip.margin:.3f}")
                flips.append((size_of(cell), row))
    rows = [(*row, sizes) for row, sizes in _sizes(flips).items()]
    return [
        table("reference", ((name, *tables.counted(counts)) for name, counts in report.body.reference.items())),
        table("versus", ((sizes, *row) for row, sizes in _sizes(versus).items())),
        table("flips", rows)._replace(folded=many(len(rows), "row")),
    ]


def wrong(report: Report) -> list[Table]:
    """How many rows of each version are wrong, and with their texts those that were most certain."""
    counts, singles = [], []
    for entry in report.measured.wrong_rows:
        about = tuple(filter(None, ("" if entry.precision == FP32 else entry.precision, entry.origin)))
        counts.append((f"{entry.batch_size}", entry.version, f"{entry.total}", about or ABSENT))
        for row in entry.rows:
            margin = f"{row.margin:.3f}"
            singles.append((entry.version, f"{row.line}", row.gold, row.label, margin, row.premise, row.hypothesis))
    listed = table("wrong", singles)._replace(folded=f"{many(len(singles), 'row')} with their texts")
    return [table("wrong-counts", counts), listed]


def _sizes(rows: Iterable[tuple[str, tuple[str, ...]]]) -> dict[tuple[str, ...], str]:
    """The rows, each once, with all batch sizes that have it."""
    sizes: dict[tuple[str, ...], list[str]] = {}
    for size, row in rows:
        sizes.setdefault(row, []).append(size)
    return {row: ", ".join(names) for row, names in sizes.items()}


def size_of(cell: EvaluationCell) -> str:
    """The batch size, as it distinguishes the cells of a version."""
    about = [] if cell.precision == FP32 else [cell.precision]
    about += [SUPPLIED] if is_supplied(cell.origin) else []
    return f"{cell.batch_size} ({', '.join(about)})" if about else f"{cell.batch_size}"


class Group(NamedTuple):
    """The cells of one version that counted the same, and are alike in where they were made."""

    stands: str  # as `where_counted`
    cells: list[EvaluationCell]

    @property
    def cell(self) -> EvaluationCell:
        return self.cells[0]

    @property
    def sizes(self) -> str:
        return ", ".join(str(cell.batch_size) for cell in self.cells)

    @property
    def title(self) -> str:
        separator = " " if self.stands.startswith("on ") else ", "
        return f"{self.cell.version}, bs {self.sizes}{separator}{self.stands}"


def counts_of(cell: EvaluationCell) -> dict[str, Proportion | EvaluationCell]:
    """The whole and each genre."""
    return {ALL: cell, **cell.genres}


def groups(report: Report) -> list[Group]:
    """The cells by what they counted, versions in order: as a rule one group for each version."""
    same: dict[tuple[str, bytes], Group] = {}
    for cell in sorted(report.body.cells, key=lambda cell: (VERSIONS.index(cell.version), cell.batch_size)):
        stands = tables.where_counted(report, cell)
        counts = msgspec.json.encode((cell.version, cell.genres, cell.confusion, cell.permutations))
        same.setdefault((stands, counts), Group(stands, [])).cells.append(cell)
    return list(same.values())


def orders(report: Report) -> Table:
    """How many rows would be correct if the model's outputs had another order: a permuted model shows here."""
    rows = []
    for group in groups(report):
        best, second = group.cell.permutations[:2]
        first = (", ".join(best.order), f"{best.correct}", ", ".join(second.order), f"{second.correct}")
        rows.append((group.sizes, group.cell.version, *first))
    return table("orders", rows)


def data_checks(report: Report) -> Table:
    """What the check of the data counted."""
    rows = [
        (version, f"{check.rows}", tuple(map(_problem, check.problems)) or "none", tuple(check.notes) or ABSENT)
        for version, check in report.body.sentinels.items()
    ]
    return table("data", rows)


def _problem(problem: DataProblem) -> str:
    lines = f" (line {', '.join(map(str, problem.lines))})" if problem.lines else ""
    return f"{problem.what}{lines}"
