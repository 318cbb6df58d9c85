"""What a run must meet to be accepted: every gate is judged, whatever another one says, and nothing is judged twice.

A gate that is not among the job's gates is not listed; `complete` always is. What cannot be judged is neither passed
nor failed, and is never accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from deberta.core.contract import BROUGHT_MODEL, LABELS
from deberta.core.errors import ConfigError
from deberta.stages.report import intervals

PASSED, FAILED, NOT_JUDGED = "passed", "failed", "not judged"
ACCEPTED, CHECKED = "accepted", "checked"  # a verdict; the third is FAILED
GATES = ("correct_rows", "official", "agreement", "reference", "fps", "sentinel", "inputs")
NEAR_TIE_MARGIN = "near_tie_margin"  # of two gates, and none itself
SURE = 0.001  # a p-value below which labels are said to be permuted

Json = Mapping[str, Any]


@dataclass(frozen=True)
class GateCheck:
    """One thing that a gate looked at: what (`of`), what it requires and what it found, as text."""

    gate: str
    of: str
    required: str
    found: str
    status: str
    reason: str = ""


def judge(job: Json, body: Json, performances: Sequence[Json]) -> dict[str, Any]:
    """The report's verdict. `performances` are the report's. Raises ConfigError for a gate of another name.

    Failed if any check failed; accepted only if all passed and the job has no reason against; else checked, and
    why_not_accepted is never empty.
    """
    unknown = sorted(set(job["gates"]) - {*GATES, NEAR_TIE_MARGIN})
    if unknown:
        raise ConfigError(f"there is no gate {', '.join(unknown)}. The gates are: {', '.join(GATES)}")
    checks = [
        *complete(job, body, performances),
        *correct_rows(job, body),
        *official(job, body),
        *agreement(job, body),
        *reference(job, body),
        *fps(job, performances),
        *sentinel(job, body),
        *inputs(job),
    ]
    reasons = list(job["not_accepted"])
    if not {"correct_rows", "official"} & set(job["gates"]):
        reasons.append(f"no gate looks at the accuracy of profile {job['profile']['name']}")
    for status in (NOT_JUDGED, FAILED):
        names = dict.fromkeys(check.gate for check in checks if check.status == status)
        if names:
            reasons.append(f"{status}: {', '.join(names)}")
    failed = any(check.status == FAILED for check in checks)
    return {
        "verdict": FAILED if failed else CHECKED if reasons else ACCEPTED,
        "why_not_accepted": reasons,
        "gates": [asdict(check) for check in checks],
    }


def complete(job: Json, body: Json, performances: Sequence[Json]) -> list[GateCheck]:
    """Every batch size and version has an evaluation and a whole performance run of the present model."""
    checks = []
    for what, found in (("evaluation", body["cells"]), ("performance run", performances)):
        wanted = list(_matrix(job))
        lacking = [(place, said) for place in wanted if (said := _lack(job, _at(found, *place)))]
        if lacking:
            required = f"{_article(what)} of the present model"
            for place, said in lacking:
                status, reason = FAILED, "nothing else stands for it"
                if said == BROUGHT_MODEL:
                    status, reason = NOT_JUDGED, "the compiled model is the user's"
                checks.append(GateCheck("complete", f"{what}, {_of(*place)}", required, said, status, reason))
        else:
            checks.append(GateCheck("complete", f"{what}s", f"all {len(wanted)}", f"all {len(wanted)}", PASSED))
    return checks


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def _lack(job: Json, found: Sequence[Json]) -> str:
    """Why none of these will do, empty if one does."""
    if not found:
        return "missing"
    said = []
    for entry in found:
        short = "loops" in entry and entry["loops"] != job["loops"]
        said.append(entry["origin"] or (f"{entry['loops']} loops, not {job['loops']}" if short else ""))
    return "" if "" in said else said[0]


def correct_rows(job: Json, body: Json) -> list[GateCheck]:
    """As many rows right as expected, less the allowed number; of the whole file only."""
    if "correct_rows" not in job["gates"]:
        return []
    checks = []
    for place in _matrix(job):
        cell, want = _cell(body, *place), job["gates"]["correct_rows"].get(place[1])
        required = f"at least {want['expected'] - want['allowed']} of {want['of']}" if want else ""
        reason = "" if want else f"the gates have no count for {place[1]}"
        if reason := reason or _no_whole_cell(job, cell):
            checks.append(GateCheck("correct_rows", _of(*place), required, _counted(cell), NOT_JUDGED, reason))
            continue
        enough = cell["rows"] == want["of"] and cell["correct"] >= want["expected"] - want["allowed"]
        reason = "" if enough else "too few rows are right" if cell["rows"] == want["of"] else "not the rows expected"
        checks.append(GateCheck("correct_rows", _of(*place), required, _counted(cell), _status(enough), reason))
    return checks


def official(job: Json, body: Json) -> list[GateCheck]:
    """Accuracy within some points of the published official figure, below or above it: both would need a reason."""
    if "official" not in job["gates"]:
        return []
    checks = []
    points = job["gates"]["official"]["points"]
    for place in _matrix(job):
        cell, row = _cell(body, *place), _published(job, place[0])
        required = f"{row[f'official_{place[1]}']} %, within {points} points" if row else ""
        reason = "" if row else f"nothing is published for batch size {place[0]}"
        if reason := reason or _no_whole_cell(job, cell):
            checks.append(GateCheck("official", _of(*place), required, _counted(cell), NOT_JUDGED, reason))
            continue
        # Exact: the figures are decimal, and 90.5 less 90.0 is 0.5.
        away = Fraction(100 * cell["correct"], cell["rows"]) - Fraction(str(row[f"official_{place[1]}"]))
        near = abs(away) <= Fraction(str(points))
        reason = "" if near else f"{abs(float(away)):.2f} points {'above' if away > 0 else 'below'}"
        checks.append(GateCheck("official", _of(*place), required, _counted(cell), _status(near), reason))
    return checks


def agreement(job: Json, body: Json) -> list[GateCheck]:
    """All batch sizes predict the same labels; near ties do not count."""
    if "agreement" not in job["gates"]:
        return []
    checks = []
    allowed = job["gates"]["agreement"]["allowed"]
    required = f"at most {allowed} rows that differ, near ties apart"
    for version in job["versions"]:
        entry = body["agreement"].get(version)
        if entry is None or len(entry["batch_sizes"]) < 2:
            reason = "it takes evaluations of two batch sizes of the present model"
            checks.append(GateCheck("agreement", version, required, "", NOT_JUDGED, reason))
            continue
        sizes = ", ".join(map(str, entry["batch_sizes"]))
        near = entry["rows_that_differ"] - entry["beyond_near_ties"]
        found = f"{_many(entry['beyond_near_ties'], 'row')}, and {_near_ties(job, near)}"
        fine = entry["beyond_near_ties"] <= allowed
        reason = "" if fine else f"batch sizes {sizes} do not agree"
        checks.append(GateCheck("agreement", f"{version}, bs {sizes}", required, found, _status(fine), reason))
    return checks


def reference(job: Json, body: Json) -> list[GateCheck]:
    """The same labels as PyTorch; near ties do not count."""
    if "reference" not in job["gates"]:
        return []
    checks = []
    allowed = job["gates"]["reference"]["allowed"]
    required = f"at most {allowed} rows unlike PyTorch's, near ties apart"
    for place in _matrix(job):
        cell = _cell(body, *place)
        reason = _no_cell(cell) or ("" if cell["versus_reference"] else "there are no logits of PyTorch")
        if reason:
            checks.append(GateCheck("reference", _of(*place), required, "", NOT_JUDGED, reason))
            continue
        versus = cell["versus_reference"]
        beyond = versus["beyond_near_ties"]
        found = f"{_many(beyond, 'row')}, and {_near_ties(job, versus['flips_total'] - beyond)}"
        reason = "" if beyond <= allowed else "the compiled model does not predict what PyTorch does"
        checks.append(GateCheck("reference", _of(*place), required, found, _status(beyond <= allowed), reason))
    return checks


def fps(job: Json, performances: Sequence[Json]) -> list[GateCheck]:
    """At least a published column's throughput; a CPU's says nothing about an NPU's."""
    if "fps" not in job["gates"]:
        return []
    column = job["gates"]["fps"]["at_least"]
    if job["backend"] != "ascend":
        reason = f"backend {job['backend']}: its fps says nothing about an NPU"
        return [GateCheck("fps", "all", f"at least the published {column} fps", "", NOT_JUDGED, reason)]
    checks = []
    for place in _matrix(job):
        row = _published(job, place[0])
        required = f"at least {row[f'{column}_fps']:.3f} fps" if row else ""
        runs = _at(performances, *place)
        if not row or not runs:
            reason = "there is no performance run" if row else f"nothing is published for batch size {place[0]}"
            checks.append(GateCheck("fps", _of(*place), required, "", NOT_JUDGED, reason))
            continue
        for run in runs:
            of, found = f"{_of(*place)}, {run['runner']}", f"{run['fps']:.3f} fps"
            if run["origin"]:
                checks.append(GateCheck("fps", of, required, found, NOT_JUDGED, run["origin"]))
                continue
            fast = run["fps"] >= row[f"{column}_fps"]
            reason = run["warning"] if fast else "; ".join(filter(None, ("too slow", run["warning"])))
            checks.append(GateCheck("fps", of, required, found, _status(fast), reason))
    return checks


def sentinel(job: Json, body: Json) -> list[GateCheck]:
    """Nothing wrong with the data, and the labels in the order that everything here takes them to have."""
    if "sentinel" not in job["gates"]:
        return []
    checks = []
    for version in job["versions"]:
        of, required = f"{version}, the data", "no problem"
        looked = body["sentinels"].get(version)
        if looked is None:
            checks.append(GateCheck("sentinel", of, required, "", NOT_JUDGED, "nothing looked at the data"))
        else:
            said = [problem["what"] for problem in looked["problems"]]
            found = _many(len(said), "problem")
            checks.append(GateCheck("sentinel", of, required, found, _status(not said), "; ".join(said)))
        checks.append(_label_order(version, [cell for cell in body["cells"] if cell["version"] == version]))
    return checks


def _label_order(version: str, cells: Sequence[Json]) -> GateCheck:
    of, required = f"{version}, the order of labels", ", ".join(LABELS)
    judged = [cell for cell in cells if not cell["origin"]]
    if not judged:
        return GateCheck("sentinel", of, required, "", NOT_JUDGED, "there is no evaluation of the present model")
    for cell in judged:
        if order := permuted(cell):
            looks, right = ", ".join(order), cell["permutations"][0]["correct"]
            reason = (
                f"the labels are permuted: the data/model order looks like {looks} ({_of(cell['batch_size'], version)}:"
                f" {right} of {cell['rows']} rows right so, and {cell['correct']} as it is)"
            )
            return GateCheck("sentinel", of, required, looks, FAILED, reason)
    return GateCheck("sentinel", of, required, "no other order is clearly better", PASSED)


def permuted(cell: Json) -> Sequence[str]:
    """The order of labels that the outputs clearly seem to have, empty if it may well be the given one.

    Clearly: read so, more than half of the rows are right, and an exact one-sided sign test over the rows that one
    of the two readings alone has right gives p < SURE. A poor model, or one that knows a single label, gives neither.
    """
    best = cell["permutations"][0]
    moved = [(label, meant) for label, meant in zip(LABELS, best["order"], strict=True) if label != meant]
    only_best = sum(cell["confusion"][meant][label] for label, meant in moved)
    only_given = sum(cell["confusion"][label][label] for label, _ in moved)
    clear = 2 * best["correct"] > cell["rows"] and intervals.more_often_right(only_best, only_given) < SURE
    order: Sequence[str] = best["order"] if moved and clear else ()
    return order


def inputs(job: Json) -> list[GateCheck]:
    """The files are those that the expected figures belong to."""
    checks = []
    for path, expected in job["gates"].get("inputs", {}).items():
        found = job["inputs"].get(path, {}).get("sha256", "")
        reason = "" if found == expected else "another file" if found else "not among the inputs of this run"
        checks.append(GateCheck("inputs", path, expected, found, _status(found == expected), reason))
    return checks


def _matrix(job: Json) -> Iterator[tuple[int, str]]:
    for batch_size in job["batch_sizes"]:
        for version in job["versions"]:
            yield batch_size, version


def _at(entries: Sequence[Json], batch_size: int, version: str) -> list[Json]:
    return [entry for entry in entries if (entry["batch_size"], entry["version"]) == (batch_size, version)]


def _cell(body: Json, batch_size: int, version: str) -> Json:
    """The cell, empty if there is none."""
    return next(iter(_at(body["cells"], batch_size, version)), {})


def _no_cell(cell: Json) -> str:
    """Why a cell is no evidence, empty if it is some."""
    return cell["origin"] if cell else "there is no evaluation"


def _no_whole_cell(job: Json, cell: Json) -> str:
    return _no_cell(cell) or (f"limited to the first {job['limit']} rows" if job["limit"] else "")


def _published(job: Json, batch_size: int) -> Json:
    return next((row for row in job["published"] if row["batch_size"] == batch_size), {})


def _of(batch_size: int, version: str) -> str:
    return f"bs {batch_size}, {version}"


def _counted(cell: Json) -> str:
    return f"{cell['correct']} of {cell['rows']} ({100 * cell['accuracy']:.2f} %)" if cell else ""


def _near_ties(job: Json, count: int) -> str:
    return f"{_many(count, 'near tie')} (margin below {job['gates'].get(NEAR_TIE_MARGIN, 0)})"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _status(fine: bool) -> str:
    return PASSED if fine else FAILED
