"""Acceptance: a look at the data, PyTorch's own logits, every batch size and version measured, then all gates judged.

Nothing is measured twice: what is up to date is skipped, so that a run that was stopped goes on where it was. An
artifact that was modified is an error and not made again (Session.strict).
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Mapping, NamedTuple, Optional, Sequence

from deberta.core import buckets, contract, files, progress
from deberta.core.buckets import Choice
from deberta.core.contract import batch_count
from deberta.core.errors import MissingError, some
from deberta.host.plan import checks
from deberta.host.plan import evaluation as steps
from deberta.host.plan.plan import Case, Plan
from deberta.host.report import archive, request
from deberta.host.report.request import ReportRequest
from deberta.host.run import freshness, runner
from deberta.host.run.session import Session
from deberta.host.workflows import conclusion, evaluation
from deberta.host.workflows.diff import Baseline

ACCURACY, PERFORMANCE = "accuracy", "performance"


class MatrixCell(NamedTuple):
    """One measurement. `rows`: how many rows the model runs, those that fill a batch among them.

    `places`: of performance runs on devices beside the first: HOST/DEVICE, and the number of the device there.
    """

    kind: str
    batch_size: int
    version: str
    rows: int
    places: tuple[tuple[str, int], ...] = ()

    @property
    def text(self) -> str:
        on = f" on {some([place for place, _ in self.places])}" if self.places else ""
        return f"{self.kind} bs={self.batch_size} {self.version}{on}"


def run(
    session: Session, plan: Plan, wanted: ReportRequest, choice: Choice = (), baseline: Optional[Baseline] = None
) -> Optional[conclusion.AcceptanceDocument]:
    """Measure, report and judge; `choice` is of the lengths of the accuracy runs. Returns None in a dry run.

    Raises MissingError, StageError and DataError.
    """
    if baseline:
        baseline.check(session, plan)
    looks = [checks.check_data(plan, version) for version in wanted.versions]
    looks += [checks.reference(plan, version) for version in wanted.versions]
    request.gates(session, plan, wanted)  # a bad file is reported before anything slow
    runner.check_sources(session, looks)  # together they read all that the user brings
    matrix = cells(wanted, {version: _rows(session, plan, version) for version in wanted.versions})
    supplied = [cell for cell in matrix if _is_supplied(session, plan, cell, choice)]
    _check_tools(session, plan, matrix, supplied, choice)
    matrix += _on_other_devices(session, plan, wanted, supplied)
    runner.run_all(session, looks)
    started, seconds, rows = time.monotonic(), 0.0, 0.0  # of the cells that ran: what was up to date tells no pace
    devices = max(len(plan.devices), 1 + len(matrix[-1].places))  # they share the rows of accuracy runs
    weights = [cell.rows / (devices if cell.kind == ACCURACY else 1) for cell in matrix]
    for number, cell in enumerate(matrix):
        if not session.dry:
            left = f"; about {progress.duration(seconds / rows * sum(weights[number:]))} left" if rows else ""
            progress.say(f"[acceptance] {number + 1} of {len(matrix)}: {cell.text}{left}")
        case, before, clock = Case(plan, cell.batch_size, cell.version), len(session.ran), time.monotonic()
        try:
            if cell.places:
                evaluation.perf_on(session, case, wanted.loops, dict(cell.places))
            elif cell.kind == PERFORMANCE:
                evaluation.perf(session, case, wanted.loops)
            else:
                evaluation.evaluate(session, [case], choice)
        except MissingError as error:
            whole = _whole(matrix, supplied)
            raise MissingError(f"{error}. User-supplied and whole: {whole}") if whole else error from None
        if len(session.ran) > before:
            seconds, rows = seconds + time.monotonic() - clock, rows + weights[number]
    if session.dry:
        request.show(session, plan, wanted.language, wanted.purpose)
        return None
    done = "measured" if not supplied else f"there, {len(supplied)} of them {contract.SUPPLIED},"
    progress.say(
        f"[acceptance] {len(matrix)} of {len(matrix)} {done} in {progress.duration(time.monotonic() - started)}"
    )
    session.say_up_to_date()
    report = request.publish(session, plan, request.make(session, plan, wanted), baseline.add if baseline else None)
    kept = archive.keep(session.workspace, plan.artifacts).relative_to(session.workspace)
    return conclusion.document(session.workspace, plan, report, str(kept))


def cells(wanted: ReportRequest, rows: Mapping[str, int]) -> list[MatrixCell]:
    """The matrix, batch size by batch size; `rows` of each version."""
    matrix = []
    for size in wanted.batch_sizes:
        for version in wanted.versions:
            matrix.append(MatrixCell(ACCURACY, size, version, batch_count(rows[version], size) * size))
        matrix += [MatrixCell(PERFORMANCE, size, version, wanted.loops * size) for version in wanted.versions]
    return matrix


def _on_other_devices(
    session: Session, plan: Plan, wanted: ReportRequest, supplied: Sequence[MatrixCell]
) -> list[MatrixCell]:
    """The shortest performance run on each device beside the first, so that the report tells of a slow one."""
    size, version = min(wanted.batch_sizes), wanted.versions[0]
    of_user = any((cell.kind, cell.batch_size, cell.version) == (PERFORMANCE, size, version) for cell in supplied)
    if session.shards is None or session.dry or of_user:
        return []
    step = steps.perf(Case(plan, size, version).padded, wanted.loops)
    others = session.shards.others(session, step, plan.devices)
    of_host = Counter(place.rpartition("/")[0] for place in others)  # one device after another
    rows = wanted.loops * size * max(of_host.values(), default=0)
    return [MatrixCell(PERFORMANCE, size, version, rows, tuple(others.items()))] if others else []


def _is_supplied(session: Session, plan: Plan, cell: MatrixCell, choice: Choice) -> bool:
    """Whether a figure is the user's own, so that it takes no device."""
    case = Case(plan, cell.batch_size, cell.version).padded
    if cell.kind == PERFORMANCE:
        return evaluation.is_supplied_log(session, replace(case, plan=replace(case.plan, limit=0)))
    is_padded = plan.backend == "ascend" if not choice else choice == buckets.PADDED
    return is_padded and evaluation.supplied_outputs(session, case) is not None


def _check_tools(
    session: Session, plan: Plan, matrix: Sequence[MatrixCell], supplied: Sequence[MatrixCell], choice: Choice
) -> None:
    """Raise MissingError, before anything slow, if a padded figure is to be measured by a tool that is not here.

    Then the errors of the devices, if any run is to be made on them: one that is not there, busy or ill.
    """
    elsewhere = session.shards is not None and session.shards.measures
    if session.dry or elsewhere or plan.backend != "ascend" or choice not in ((), buckets.PADDED):
        return
    loops = contract.loops_of(plan.backend)
    for cell in (cell for cell in matrix if cell not in supplied):
        case = Case(plan, cell.batch_size, cell.version).padded
        step = steps.perf(case, loops) if cell.kind == PERFORMANCE else steps.infer(case, {})[0]
        if not session.force and not freshness.outdated(session, step):
            continue
        if absent := freshness.not_compared(session, step):
            whole = _whole(matrix, supplied)
            raise MissingError(f"{cell.text}: {absent}{f'. User-supplied and whole: {whole}' if whole else ''}")
        return evaluation.check_device(session, case, [step])  # all steps have the same devices


def _whole(matrix: Sequence[MatrixCell], supplied: Sequence[MatrixCell]) -> str:
    """The options of an acceptance that user-supplied figures are enough for; of one version if of none for all."""
    versions = list(dict.fromkeys(cell.version for cell in matrix))
    for wanted in (versions, *([version] for version in versions)):
        sizes = dict.fromkeys(cell.batch_size for cell in matrix)
        of_wanted = [cell for cell in matrix if cell.version in wanted]
        whole = [s for s in sizes if all(cell in supplied for cell in of_wanted if cell.batch_size == s)]
        if whole:
            return f"--bs {','.join(map(str, whole))}" + ("" if wanted == versions else f" --version {wanted[0]}")
    return ""


def _rows(session: Session, plan: Plan, version: str) -> int:
    """How many rows are run, by the lines of the tsv; for an estimate."""
    with files.open_regular(session.workspace / plan.profile.data_path(version)) as file:
        rows = max(1, sum(1 for _ in file) - 1)
    return min(rows, plan.limit) if plan.limit else rows
