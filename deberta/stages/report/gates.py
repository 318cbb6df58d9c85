"""What a run must meet to be accepted: every gate is judged, whatever another one says, and nothing is judged twice.

A gate that is not among the job's gates is not listed; `complete` always is. What cannot be judged is neither passed
nor failed, and is never accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import product

from deberta.core.contract import FP32, LABELS, SEQUENCE_LENGTH, is_supplied, supplied_parts
from deberta.core.errors import many
from deberta.core.job import ExpectedRows, Job, OfficialGate, PublishedRow, VersionRows
from deberta.core.report import Body, EvaluationCell, GateCheck, PerformanceRun, ReportVerdict
from deberta.stages.report import intervals

PASSED, FAILED, NOT_JUDGED = "passed", "failed", "not judged"
ACCEPTED, CHECKED = "accepted", "checked"  # a verdict; the third is FAILED
SURE = 0.001  # a p-value below which labels are said to be permuted


def judge(job: Job, body: Body, performances: Sequence[PerformanceRun]) -> ReportVerdict:
    """The report's verdict. `performances` are the report's.

    Failed if any check failed; accepted only if all passed and the job has no reason against; else checked, and
    why_not_accepted is never empty.
    """
    gates = job.gates
    checks = list(complete(job, body, performances))
    checks += correct_rows(job, gates.correct_rows, body) if gates.correct_rows else []
    checks += official(job, gates.official, body) if gates.official else []
    checks += agreement(job, gates.agreement.allowed, body) if gates.agreement else []
    checks += reference(job, gates.reference.allowed, body) if gates.reference else []
    checks += fps(job, gates.fps.at_least, performances) if gates.fps else []
    checks += sentinel(job, body) if gates.sentinel else []
    checks += inputs(job, gates.inputs or {})
    reasons = list(job.not_accepted)
    if gates.correct_rows is None and gates.official is None:
        reasons.append(f"no gate looks at the accuracy of profile {job.profile.name}")
    for status in (NOT_JUDGED, FAILED):
        names = dict.fromkeys(check.gate for check in checks if check.status == status)
        if names:
            reasons.append(f"{status}: {', '.join(names)}")
    failed = any(check.status == FAILED for check in checks)
    return ReportVerdict(
        verdict=FAILED if failed else CHECKED if reasons else ACCEPTED, why_not_accepted=reasons, gates=checks
    )


def near_tie_margin(job: Job) -> float:
    """Rows whose margin is below it are near ties; without one nothing is."""
    return job.gates.near_tie_margin or 0.0


def _check(gate: str, of: str, required: str, actual: str, status: str | bool, reason: str = "") -> GateCheck:
    """`status`: a word, or whether the gate is met: then it needs no reason."""
    if isinstance(status, bool):
        status, reason = (PASSED, "") if status else (FAILED, reason)
    return GateCheck(gate=gate, of=of, required=required, actual=actual, status=status, reason=reason)


def complete(job: Job, body: Body, performances: Sequence[PerformanceRun]) -> Iterator[GateCheck]:
    """Every batch size and version has an evaluation and a whole performance run of the present model."""
    matrix = list(product(job.batch_sizes, job.versions))
    evaluations = {place: [cell.origin] if (cell := _cell(body, *place)) else [] for place in matrix}
    runs = {place: [_lack(job, run) for run in _padded(performances, *place)] for place in matrix}
    for what, article, lacks in (("evaluation", "an", evaluations), ("performance run", "a", runs)):
        lacking = [(place, texts[0] if texts else "missing") for place, texts in lacks.items() if "" not in texts]
        for place, text in lacking:
            status, reason = FAILED, "nothing else stands for it"
            if parts := supplied_parts(text):
                status, reason = NOT_JUDGED, f"{' and '.join(parts)}: the user's"
            elif is_supplied(text):
                status, reason = NOT_JUDGED, "it was not measured here"
            required = f"{article} {what} of the present model"
            yield _check("complete", f"{what}, {_of(*place)}", required, text, status, reason)
        if not lacking:
            yield _check("complete", f"{what}s", f"all {len(matrix)}", f"all {len(matrix)}", PASSED)


def _lack(job: Job, run: PerformanceRun) -> str:
    """Why a performance run will not do, empty if it does."""
    return run.origin or (f"{run.loops} loops, not {job.loops}" if run.loops < job.loops else "")


def correct_rows(job: Job, gate: VersionRows, body: Body) -> Iterator[GateCheck]:
    """As many rows right as expected, less the allowed number; of the whole file only.

    A run of a lower precision is held against the float32 run of the same rows, where both are of the present model.
    """
    for size, version in product(job.batch_sizes, job.versions):
        expected: ExpectedRows | None = getattr(gate, version)
        cell, of = _cell(body, size, version), _of(size, version)
        required = f"at least {expected.expected - expected.allowed} of {expected.of}" if expected else ""
        reason = "" if expected else f"the gates have no count for {version}"
        if (reason := reason or _no_whole_cell(job, cell)) or not cell or not expected:
            yield _check("correct_rows", of, required, _counted(cell), NOT_JUDGED, reason)
            continue
        same_rows = cell.rows == expected.of
        enough = same_rows and cell.correct >= expected.expected - expected.allowed
        reason = "too few rows are right" if same_rows else "not the rows expected"
        yield _check("correct_rows", of, required, _counted(cell), enough, reason)
        least = cell.correct - expected.allowed
        reason, required = "too few rows are right beside the float32 run", f"at least {least} of {cell.rows}"
        for lower in _cells(body, size, version):
            if lower.precision != FP32 and not lower.origin:
                named = f"{of}, {lower.precision}"
                yield _check("correct_rows", named, required, _counted(lower), lower.correct >= least, reason)


def official(job: Job, gate: OfficialGate, body: Body) -> Iterator[GateCheck]:
    """Accuracy within some points of the published official figure, below or above it: both would need a reason."""
    for size, version in product(job.batch_sizes, job.versions):
        cell, row = _cell(body, size, version), _published(job, size)
        figure = getattr(row, f"official_{version}", None)
        required = f"{figure} %, within {gate.points} points" if row else ""
        reason = "" if row else f"nothing is published for batch size {size}"
        if (reason := reason or _no_whole_cell(job, cell)) or not cell:
            yield _check("official", _of(size, version), required, _counted(cell), NOT_JUDGED, reason)
            continue
        # Exact: the figures are decimal, and 90.5 less 90.0 is 0.5.
        away = Fraction(100 * cell.correct, cell.rows) - Fraction(str(figure))
        near = abs(away) <= Fraction(str(gate.points))
        reason = f"{abs(float(away)):.2f} points {'above' if away > 0 else 'below'}"
        yield _check("official", _of(size, version), required, _counted(cell), near, reason)


def agreement(job: Job, allowed: int, body: Body) -> Iterator[GateCheck]:
    """All batch sizes predict the same labels; near ties do not count."""
    required = f"at most {allowed} rows that differ, near ties apart"
    for version in job.versions:
        entry = body.agreement.get(version)
        if entry is None or len(entry.batch_sizes) < 2:
            reason = "it takes evaluations of two batch sizes of the present model"
            yield _check("agreement", version, required, "", NOT_JUDGED, reason)
            continue
        sizes = ", ".join(map(str, entry.batch_sizes))
        near = entry.rows_that_differ - entry.beyond_near_ties
        actual = f"{many(entry.beyond_near_ties, 'row')}, and {_near_ties(job, near)}"
        met, reason = entry.beyond_near_ties <= allowed, f"batch sizes {sizes} do not agree"
        yield _check("agreement", f"{version}, bs {sizes}", required, actual, met, reason)


def reference(job: Job, allowed: int, body: Body) -> Iterator[GateCheck]:
    """The same labels as PyTorch; near ties do not count."""
    required = f"at most {allowed} rows unlike PyTorch's, near ties apart"
    for place in product(job.batch_sizes, job.versions):
        cell = _cell(body, *place)
        versus = cell.versus_reference if cell else None
        if (reason := _no_cell(cell)) or versus is None:
            reason = reason or "there are no logits of PyTorch"
            yield _check("reference", _of(*place), required, "", NOT_JUDGED, reason)
            continue
        beyond = versus.beyond_near_ties
        actual = f"{many(beyond, 'row')}, and {_near_ties(job, versus.flips_total - beyond)}"
        reason = "the compiled model does not predict what PyTorch does"
        yield _check("reference", _of(*place), required, actual, beyond <= allowed, reason)


def fps(job: Job, column: str, performances: Sequence[PerformanceRun]) -> Iterator[GateCheck]:
    """At least a published column's throughput; a CPU's says nothing about an NPU's."""
    if job.backend != "ascend":
        reason = f"backend {job.backend}: its fps says nothing about an NPU"
        yield _check("fps", "all", f"at least the published {column} fps", "", NOT_JUDGED, reason)
        return
    for place in product(job.batch_sizes, job.versions):
        row, runs = _published(job, place[0]), _padded(performances, *place)
        least: float = getattr(row, f"{column}_fps") if row else 0.0
        required = f"at least {least:.3f} fps" if row else ""
        if not row or not runs:
            reason = "there is no performance run" if row else f"nothing is published for batch size {place[0]}"
            yield _check("fps", _of(*place), required, "", NOT_JUDGED, reason)
            continue
        for run in runs:
            of, actual = f"{_of(*place)}, {run.runner}", f"{run.fps:.3f} fps"
            if run.origin:
                yield _check("fps", of, required, actual, NOT_JUDGED, run.origin)
                continue
            status, reason = (PASSED, run.warning) if run.fps >= least else (FAILED, f"too slow; {run.warning}")
            yield _check("fps", of, required, actual, status, reason.removesuffix("; "))


def sentinel(job: Job, body: Body) -> Iterator[GateCheck]:
    """Nothing wrong with the data, and the labels in the order that everything here takes them to have."""
    for version in job.versions:
        of, required = f"{version}, the data", "no problem"
        data_check = body.sentinels.get(version)
        if data_check is None:
            yield _check("sentinel", of, required, "", NOT_JUDGED, "nothing looked at the data")
        else:
            texts = [problem.what for problem in data_check.problems]
            yield _check("sentinel", of, required, many(len(texts), "problem"), not texts, "; ".join(texts))
        yield _label_order(version, [cell for cell in body.cells if cell.version == version])


def _label_order(version: str, cells: Sequence[EvaluationCell]) -> GateCheck:
    of, required = f"{version}, the order of labels", ", ".join(LABELS)
    judged = [cell for cell in cells if not cell.origin]
    if not judged:
        return _check("sentinel", of, required, "", NOT_JUDGED, "there is no evaluation of the present model")
    for cell in judged:
        if order := permuted(cell):
            looks, right = ", ".join(order), cell.permutations[0].correct
            reason = (
                f"the labels are permuted: the data/model order looks like {looks} ({_of(cell.batch_size, version)}:"
                f" {right} of {cell.rows} rows right so, and {cell.correct} as it is)"
            )
            return _check("sentinel", of, required, looks, FAILED, reason)
    return _check("sentinel", of, required, "no other order is clearly better", PASSED)


def permuted(cell: EvaluationCell) -> Sequence[str]:
    """The order of labels that the outputs clearly seem to have, empty if it may well be the usual one.

    Clearly: read so, more than half of the rows are right, and an exact one-sided sign test over the rows that one
    of the two readings alone has right gives p < SURE. A poor model, or one that knows a single label, gives neither.
    """
    best = cell.permutations[0]
    moved = [(label, meaning) for label, meaning in zip(LABELS, best.order, strict=True) if label != meaning]
    only_best = sum(cell.confusion[meaning][label] for label, meaning in moved)
    only_usual = sum(cell.confusion[label][label] for label, _ in moved)
    clear = 2 * best.correct > cell.rows and intervals.more_often_right(only_best, only_usual) < SURE
    return best.order if moved and clear else ()


def inputs(job: Job, digests: Mapping[str, str]) -> Iterator[GateCheck]:
    """The files are those that the expected figures belong to."""
    for path, expected in digests.items():
        actual = job.inputs.get(path, {}).get("sha256", "")
        reason = "another file" if actual else "not among the inputs of this run"
        yield _check("inputs", path, expected, actual, actual == expected, reason)


def _padded(runs: Sequence[PerformanceRun], batch_size: int, version: str) -> list[PerformanceRun]:
    """The float32 runs at the guide's length, whose figures may stand beside the published ones."""
    return [
        run
        for run in runs
        if (run.batch_size, run.version, run.precision, run.length) == (batch_size, version, FP32, SEQUENCE_LENGTH)
    ]


def _cells(body: Body, batch_size: int, version: str) -> list[EvaluationCell]:
    return [cell for cell in body.cells if (cell.batch_size, cell.version) == (batch_size, version)]


def _cell(body: Body, batch_size: int, version: str) -> EvaluationCell | None:
    """The float32 cell, whatever lengths it ran at."""
    return next((cell for cell in _cells(body, batch_size, version) if cell.precision == FP32), None)


def _no_cell(cell: EvaluationCell | None) -> str:
    """Why a cell is no evidence, empty if it is some."""
    return cell.origin if cell else "there is no evaluation"


def _no_whole_cell(job: Job, cell: EvaluationCell | None) -> str:
    return _no_cell(cell) or (f"limited to the first {job.limit} rows" if job.limit else "")


def _published(job: Job, batch_size: int) -> PublishedRow | None:
    return next((row for row in job.published if row.batch_size == batch_size), None)


def _of(batch_size: int, version: str) -> str:
    return f"bs {batch_size}, {version}"


def _counted(cell: EvaluationCell | None) -> str:
    return f"{cell.correct} of {cell.rows} ({100 * cell.accuracy:.2f} %)" if cell else ""


def _near_ties(job: Job, count: int) -> str:
    return f"{many(count, 'near tie')} (margin below {near_tie_margin(job):g})"
