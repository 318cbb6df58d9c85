"""compare: makes what both sides need, compares them, and prints the result, also one that was up to date."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from deberta.host.plan import comparison
from deberta.host.plan.comparison import ComparisonRequest, PlannedSide
from deberta.host.plan.evaluation import LATEST, Plan
from deberta.host.run import runner
from deberta.host.run.runner import Session
from deberta.host.workflows import evaluation


def compare(
    session: Session,
    plan: Plan,
    batch_size: int,
    version: str,
    sides: list[PlannedSide],
    request: ComparisonRequest,
) -> None:
    """Compare two ways of running the model on the same rows. Raises GateError if they differ too much."""
    before = comparison.before(plan, batch_size, version, sides)
    runner.check_sources(session, before)
    first, second = (_with_outputs(session, plan, batch_size, version, side) for side in sides)
    step = comparison.compare(plan, batch_size, version, first, second, request)
    if not session.dry:  # a dry run names the latest outputs in a form for the shell, which is no path
        runner.check_sources(session, [*before, step])
    for needed in before:
        runner.run(session, needed)
    path = session.workspace / step.outputs[0]
    written = _modified(path)
    runner.run(session, step)
    if session.dry:
        return
    if _modified(path) == written:  # the step was skipped and has printed nothing
        print("\n".join(json.loads(path.read_text(encoding="utf-8"))["summary"]))
    print(step.outputs[0])


def _with_outputs(session: Session, plan: Plan, batch_size: int, version: str, side: PlannedSide) -> PlannedSide:
    """An om's side with the folder of its last outputs. Raises DataError if they are not of the present inputs."""
    if side.kind != "om" or side.brought:
        return side
    if session.dry:
        return replace(side, file=type(side.file)(f"{side.file}{LATEST}"))
    ascend = replace(plan, backend="ascend")
    return replace(side, file=evaluation.known_outputs(session, ascend, batch_size, version))


def _modified(path: Path) -> int:
    """The time of the last change in nanoseconds, 0 if the file is absent."""
    return path.stat().st_mtime_ns if path.exists() else 0
