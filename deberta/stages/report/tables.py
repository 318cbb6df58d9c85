"""What report.md and report.html both show, as tables of text: numbers of report.json are formatted here, never made.

A report is the content of a report.json that `render.read` accepted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deberta.ascend import ais_bench
from deberta.core.contract import VERSIONS

Report = Mapping[str, Any]
Cell = str | tuple[str, ...]  # text, or several lines of it
ABSENT = "-"
SHORT = dict(zip(VERSIONS, ("M", "MM"), strict=True))
PERCENTILES = ("p50", "p90", "p99")
INTERVAL = "95 % interval (Wilson)"


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
    """Without columns in which nothing is said."""
    kept = [place for place in range(len(table.heads)) if any(row[place] for row in table.rows)]
    rows = tuple(tuple(row[place] for place in kept) for row in table.rows)
    heads, kinds = (tuple(words[place] for place in kept) for words in (table.heads, table.kinds))
    return replace(table, heads=heads, kinds=kinds, rows=rows)


def headline(report: Report) -> Headline:
    """Only a verdict that says accepted gets words that say so."""
    verdict = report["verdict"]
    if verdict is None:
        return Headline("none", "No verdict", "This is a report of measurements. No gate was judged.", ())
    statuses = [gate["status"] for gate in verdict["gates"]]
    names = len({gate["gate"] for gate in verdict["gates"]})
    passed, every = statuses.count("passed"), len(statuses)
    whole = f"{_many(every, 'check')} of {_many(names, 'gate')}"
    kind = str(verdict["verdict"])
    if kind == "failed":
        reasons = [_of_gate(gate) for gate in verdict["gates"] if gate["status"] == "failed"]
        return Headline(kind, "Failed", f"{len(reasons)} of {whole} failed:", tuple(reasons))
    if passed == every:
        said = f"All gates pass: {whole}"
    else:
        said = f"No gate failed: {passed} of {whole} pass, {every - passed} not judged"
    if kind == "accepted":
        return Headline(kind, "Accepted", f"{said}.", ())
    return Headline(kind, "Checked", f"{said}. No acceptance because:", tuple(verdict["why_not_accepted"]))


def _many(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _of_gate(gate: Mapping[str, str]) -> str:
    about = f" ({gate['reason']})" if gate["reason"] else ""
    return f"{gate['gate']}, {gate['of']}: found {gate['found']}, required {gate['required']}{about}"


def limited(report: Report) -> str:
    """Empty for a whole run; else what is to be said wherever its figures stand."""
    limit = report["body"]["limit"]
    return f"first {limit} rows only, no result" if limit else ""


def where(report: Report, figure: Mapping[str, Any], runner: str = "msame") -> str:
    """What stands behind a measured figure: where it was made, or why it is not the present model's.

    `figure` has origin, and place and pinned where they are known.
    """
    place = figure.get("place") or f"on {report['body']['backend']}{by(runner)}"
    said = f"({figure['origin']})" if figure["origin"] else place
    return said if figure.get("pinned", True) else f"{said}, not pinned"


def by(runner: str) -> str:
    """The guide's own runner is not named."""
    return f" ({runner})" if runner == ais_bench.MODULE else ""


def of_cell(report: Report, cell: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's origin with its place and whether it was pinned, which are measured and so not in the body."""
    places = report["measured"].get("places") or {}
    return {"origin": cell["origin"], **places.get(f"bs{cell['batch_size']}_{cell['version']}", {})}


def guide(report: Report) -> Table:
    """The guide's table: published figures beside measured ones."""
    body, measured = report["body"], report["measured"]
    published = {row["batch_size"]: row for row in measured["published"]}
    sizes = {*body["batch_sizes"], *(run["batch_size"] for run in (*body["cells"], *measured["performances"]))}
    return Table(
        "guide",
        "By batch size",
        (
            *("model", "official accuracy", "310P accuracy (published)", "measured accuracy"),
            *("baseline fps (published)", "310P fps (published)", "measured fps"),
        ),
        ("", "", "", "", "number", "number", ""),
        tuple(_guide_row(report, size, published.get(size)) for size in sorted(sizes)),
    )


def _guide_row(report: Report, size: int, row: Mapping[str, Any] | None) -> tuple[Cell, ...]:
    partial = f", {limited(report)}" if report["body"]["limit"] else ""  # these cells are the ones that get copied
    accuracies = [
        f"{SHORT[cell['version']]}={100 * cell['accuracy']:.2f} ({cell['correct']}/{cell['rows']})"
        f" {where(report, of_cell(report, cell))}{partial}"
        for cell in report["body"]["cells"]
        if cell["batch_size"] == size
    ]
    runs = [run for run in report["measured"]["performances"] if run["batch_size"] == size]
    several = len({run["version"] for run in runs}) > 1
    fps = [
        f"{SHORT[run['version']] + '=' if several else ''}{run['fps']:.3f} {where(report, run, run['runner'])}"
        for run in runs
    ]
    return (
        f"Deberta bs{size}",
        f"M={row['official_match']}/MM={row['official_mismatch']}" if row else ABSENT,
        f"M={row['ascend_match']}/MM={row['ascend_mismatch']}" if row else ABSENT,
        tuple(accuracies) or ABSENT,
        f"{row['baseline_fps']:.3f}" if row else ABSENT,
        f"{row['ascend_fps']:.3f}" if row else ABSENT,
        tuple(fps) or ABSENT,
    )


def notes(report: Report) -> list[str]:
    """What belongs under the guide's table, a paragraph each."""
    body, measured = report["body"], report["measured"]
    if measured["published"]:
        about = f"Published figures: {measured['note']}"
    else:
        nothing = f"Nothing is published for profile {body['profile']}; the guide's figures belong to its own model."
        about = measured["note"] or nothing
    fps = "fps = batch size * 1000 / average time without the first, in ms: inference alone, no reading or writing."
    if any(run["runner"] == ais_bench.MODULE for run in measured["performances"]):
        fps += " Of ais_bench: its own throughput, by the average of all times; its warm-up is none of them."
    figures = [*(of_cell(report, cell) for cell in body["cells"]), *measured["performances"]]
    if not all(figure.get("pinned", True) for figure in figures):
        fps += " Not pinned: made in an image whose base is not the one of docker/pins.toml; the records name it."
    found = [about, fps]
    if body["backend"] == "cpu" and measured["engines"]:
        machine = measured["host"]["system"].split()[-1:] or [ABSENT]
        found.append(
            f"Measured on the CPU backend ({machine[0]}; {'; '.join(measured['engines'])})."
            " No Ascend device was used, and a CPU's fps says nothing about one."
        )
    return found


def gates(report: Report) -> Table:
    judged = report["verdict"]["gates"]
    rows = [
        (g["gate"], g["of"], g["required"] or ABSENT, g["found"] or ABSENT, g["status"], g["reason"]) for g in judged
    ]
    heads = ("gate", "of", "required", "found", "status", "reason")
    kinds = ("", "wrap", "wrap", "wrap", "status", "wrap")
    return _filled(Table("gates", "What was required and what was found", heads, kinds, tuple(rows)))


def performances(report: Report) -> Table:
    times = ("average ms", "p50 ms", "p90 ms", "p99 ms", "interval of the average, ms", "spread")
    heads = ("batch size", "version", "loops", "fps", *times, "remarks")
    kinds = ("", "", *["number"] * 8, "wrap")
    rows = tuple(_performance(run) for run in report["measured"]["performances"])
    return _filled(Table("performances", "Performance runs; times of one batch", heads, kinds, rows))


def _performance(run: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        f"{run['batch_size']}",
        f"{run['version']}{by(run['runner'])}",
        f"{run['loops']}",
        f"{run['fps']:.3f}",
        f"{run['average_ms']}",
        *(f"{run['percentiles_ms'][name]:.3f}" for name in PERCENTILES),
        between(run["interval_ms"], 3),
        f"{run['spread']:.4f}",
        _remarks(run),
    )


def _remarks(run: Mapping[str, Any]) -> tuple[str, ...]:
    said = (run["origin"], "" if run.get("pinned", True) else "not pinned", run["warning"])
    return tuple(filter(None, said))


def agreement(report: Report) -> list[Table]:
    """Whether all batch sizes predict the same, and the rows where they do not."""
    found = report["body"]["agreement"]
    keys = ("rows_that_differ", "beyond_near_ties", "near_tie_margin")
    rows = [
        (version, ", ".join(map(str, one["batch_sizes"])), *(f"{one[key]}" for key in keys))
        for version, one in found.items()
    ]
    heads = ("version", "batch sizes", "rows that differ", "beyond near ties", "near tie: margin below")
    kinds = ("", "", "number", "number", "number")
    tables = [Table("agreement", "Predictions at all batch sizes", heads, kinds, tuple(rows))] if rows else []
    singles = [
        (version, f"{row['row']}", f"{row['line']}", f"{row['margin']:.3f}", _predictions(row["labels"]))
        for version, one in found.items()
        for row in one["differences"]
    ]
    if singles:
        heads = ("version", "row", "line of the tsv", "margin", "predicted, by batch size")
        caption = "Rows that differ between batch sizes, the largest margins first, 50 at most of a version"
        kinds = ("", "number", "number", "number", "wrap")
        tables.append(Table("differences", caption, heads, kinds, tuple(singles)))
    return tables


def _predictions(labels: Mapping[str, str]) -> str:
    return ", ".join(f"bs {size}: {label}" for size, label in labels.items())


def reference(report: Report) -> list[Table]:
    """PyTorch's own accuracy, each cell against it, and the rows whose label changed."""
    rows = [(version, *counted(one)) for version, one in report["body"]["reference"].items()]
    heads = ("version", "correct / rows", "accuracy", INTERVAL)
    kinds = ("", "number", "number", "number")
    own = Table("reference", "PyTorch, float32, the same rows", heads, kinds, tuple(rows))
    cells = [cell for cell in report["body"]["cells"] if cell["versus_reference"]]
    return [table for table in (own, _versus(cells), _flips(cells)) if table.rows]


def _versus(cells: Sequence[Mapping[str, Any]]) -> Table:
    """A row for all batch sizes that compare alike."""
    keys = ("only_reference_correct", "only_this_correct", "p_value", "flips_total", "beyond_near_ties")
    found: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        one = cell["versus_reference"]
        key = (cell["version"], f"{one['same_labels']}/{cell['rows']}", *(f"{one[name]}" for name in keys))
        found.setdefault(key, []).append(f"{cell['batch_size']}")
    rows = [(", ".join(sizes), *key) for key, sizes in found.items()]
    compared = ("same labels", "only PyTorch correct", "only this correct", "p (McNemar, mid-p)", "changed labels")
    heads = ("batch sizes", "version", *compared, "beyond near ties")
    return Table("versus", "Evaluations against PyTorch", heads, ("", "", *["number"] * 6), tuple(rows))


def _flips(cells: Sequence[Mapping[str, Any]]) -> Table:
    """A row each, with all batch sizes that changed its label so."""
    found: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        for flip in cell["versus_reference"]["flips"]:
            labels = (flip["gold"], flip["reference"], flip["this"])
            key = (cell["version"], f"{flip['row']}", f"{flip['line']}", *labels, f"{flip['margin']:.3f}")
            found.setdefault(key, []).append(f"{cell['batch_size']}")
    rows = [(*key, ", ".join(sizes)) for key, sizes in found.items()]
    heads = ("version", "row", "line of the tsv", "gold", "PyTorch", "this", "PyTorch's margin", "batch sizes")
    kinds = ("", "number", "number", "", "", "", "number", "")
    caption = "Rows whose label changed, the largest margins first, 50 at most of an evaluation"
    return Table("flips", caption, heads, kinds, tuple(rows))


def counted(one: Mapping[str, Any]) -> tuple[str, str, str]:
    """correct / rows, accuracy and its interval."""
    return f"{one['correct']}/{one['rows']}", f"{one['accuracy']:.4f}", between(one["interval"], 4)


def between(interval: Sequence[float] | None, digits: int) -> str:
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval else ABSENT


@dataclass(frozen=True)
class Group:
    """The cells of one version that counted the same, at batch sizes that are alike in where they were made."""

    version: str
    sizes: tuple[int, ...]
    stands: str  # as `where`
    cell: Mapping[str, Any]  # the first of them

    @property
    def title(self) -> str:
        said = f" {self.stands}" if self.stands.startswith("on ") else f", {self.stands}"
        return f"{self.version}, bs {', '.join(map(str, self.sizes))}{said}"


def groups(report: Report) -> list[Group]:
    """The cells by what they counted, versions in order: as a rule one group for each version."""
    found: list[Group] = []
    for cell in sorted(report["body"]["cells"], key=lambda cell: (VERSIONS.index(cell["version"]), cell["batch_size"])):
        stands = where(report, of_cell(report, cell))
        for place, group in enumerate(found):
            same = all(group.cell[key] == cell[key] for key in ("version", "genres", "confusion", "permutations"))
            if same and group.stands == stands:
                found[place] = Group(group.version, (*group.sizes, cell["batch_size"]), stands, group.cell)
                break
        else:
            found.append(Group(cell["version"], (cell["batch_size"],), stands, cell))
    return found


def orders(report: Report) -> Table | None:
    """How many rows would be correct if the model's outputs had another order: a permuted model shows here."""
    rows = []
    for group in groups(report):
        best, second = group.cell["permutations"][:2]
        first = [", ".join(best["order"]), f"{best['correct']}", ", ".join(second["order"]), f"{second['correct']}"]
        rows.append((f"{', '.join(map(str, group.sizes))}", group.version, *first))
    heads = ("batch sizes", "version", "best order of outputs", "correct", "next best", "correct")
    kinds = ("", "", "", "number", "", "number")
    return Table("orders", "The outputs taken in other orders", heads, kinds, tuple(rows)) if rows else None


def data_checks(report: Report) -> Table | None:
    """What the look at the data itself found."""
    rows = [
        (version, f"{one['rows']}", tuple(map(_problem, one["problems"])) or "none", tuple(one["notes"]) or ABSENT)
        for version, one in report["body"]["sentinels"].items()
    ]
    heads = ("version", "rows", "problems", "notes")
    return Table("data", "The data themselves", heads, ("", "number", "wrap", "wrap"), tuple(rows)) if rows else None


def _problem(problem: Mapping[str, Any]) -> str:
    lines = f" (line {', '.join(map(str, problem['lines']))})" if problem["lines"] else ""
    return f"{problem['what']}{lines}"


def environment(report: Report) -> Table:
    """Where and when it was measured, one fact a row."""
    measured = report["measured"]
    host, pins = measured["host"], measured["pins"]
    facts: list[tuple[str, Iterable[str]]] = [
        ("made", [measured["made"]]),
        ("command", [measured["command"]]),
        ("deberta-ascend", [measured["deberta_ascend"]]),
        ("backend, executor", [f"{report['body']['backend']}, {measured['executor']}"]),
        ("system", [host["system"]]),
        ("processor", [f"{host['cpu'] or ABSENT}, {host['cpus']} cores"]),
        ("host", [host["name"]]),
        ("Python", [host["python"]]),
        ("engines", measured["engines"]),
        ("tools", [f"{name}: {said}" for name, said in measured["tools"].items() if said]),
        ("loops of a performance run", [f"{measured['loops']}"]),
        ("pins", ["as pinned" if pins["pinned"] else "not pinned", *pins["notes"]]),
    ]
    rows = [(name, tuple(said) or ABSENT) for name, said in facts]
    return Table("environment", "Where it was measured", ("fact", "value"), ("", "wrap"), tuple(rows))


def steps(report: Report) -> Table | None:
    rows = [
        (one["step"], one["executor"], f"{one['seconds']:.1f}", one["started"], one["image"])
        for one in report["measured"]["steps"]
    ]
    heads, kinds = ("step", "executor", "seconds", "started", "image"), ("short", "", "number", "short", "hash")
    return _filled(Table("steps", "Steps behind these figures", heads, kinds, tuple(rows))) if rows else None


def artifacts(report: Report) -> list[Table]:
    """Every file and folder with its hash; a folder's is the in-toto dirHash."""
    groups = (
        ("inputs", "Inputs", report["body"]["inputs"]),
        ("artifacts", "Artifacts that the same inputs give anywhere", report["body"]["artifacts"]),
        ("measured-artifacts", "Artifacts of this machine", report["measured"]["artifacts"]),
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
