"""compare: makes what both sides need, compares them, and prints the result, also one that was up to date."""

from __future__ import annotations

import json
from dataclasses import replace

from deberta.host.plan import comparison
from deberta.host.plan.comparison import PlannedSide
from deberta.host.plan.plan import LATEST, Case, StageOptions
from deberta.host.run import runner
from deberta.host.run.session import Session
from deberta.host.workflows import evaluation
from deberta.host.workflows.lengths import FittedCase


def compare(session: Session, case: Case, sides: list[PlannedSide], options: StageOptions) -> None:
    """Compare two ways of running the model on the same rows. Raises GateError if they differ too much."""
    before = comparison.before(case, sides)
    runner.check_sources(session, before)
    first, second = (_with_outputs(session, case, side) for side in sides)
    step = comparison.compare(case, first, second, options)
    if not session.dry:  # a dry run names the latest outputs in a form for the shell, which is no path
        runner.check_sources(session, [*before, step])
    result = [runner.run(session, needed) for needed in (*before, step)][-1]
    if session.dry:
        return
    if not result.ran:  # it has printed nothing
        print("\n".join(json.loads((session.workspace / step.outputs[0]).read_text(encoding="utf-8"))["summary"]))
    print(step.outputs[0])


def _with_outputs(session: Session, case: Case, side: PlannedSide) -> PlannedSide:
    """An om's side with the folder of its last outputs. Raises DataError if they are not of the present inputs."""
    if side.kind != "om" or side.user_supplied:
        return side
    if session.dry:
        return replace(side, file=type(side.file)(f"{side.file}{LATEST}"))
    ascend = replace(case, plan=replace(case.plan, backend="ascend"))
    [folder] = evaluation.known_outputs(session, FittedCase(ascend, None))
    return replace(side, file=folder)
