"""invoke compare: two ways of running the same model on the same rows."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Optional

from invoke.context import Context

from deberta.core import contract
from deberta.core.errors import ConfigError
from deberta.host.cli import auto
from deberta.host.cli.options import RUN, command, profile_of, session_of, version_of
from deberta.host.plan import comparison
from deberta.host.plan.comparison import ComparisonRequest, PlannedSide
from deberta.host.plan.evaluation import LATEST, Plan
from deberta.host.run import runner
from deberta.host.run.runner import Session
from deberta.host.workflows import evaluation

SIDES = ", ".join(comparison.OWN)


@command(
    *("bs", "version", "limit", "profile", *RUN),
    a=f"one of: {SIDES}",
    b="the other one",
    rows="rows of the data, evenly spread (default 256; 0: all)",
    tolerance="largest difference of a logit (default 1e-4; with fp16 or om 0.1)",
    layer_tolerance="of a layer, relative to its largest value (default 2e-5; with fp16 0.02)",
    all_layers="compare every layer, also if the logits agree",
    outputs="om: folder of input_<i>_output_0.bin, in the workspace or absolute, if not infer's own",
    a_file="what A is made of instead of the profile's own: checkpoint, .onnx, .xml, folder of outputs or .npy",
    b_file="the same for B",
)
def compare(
    c: Context,
    a: str,
    b: str,
    bs: Optional[str] = None,
    version: Optional[str] = None,
    rows: Optional[str] = None,
    tolerance: Optional[str] = None,
    all_layers: bool = False,
    layer_tolerance: Optional[str] = None,
    outputs: Optional[str] = None,
    a_file: Optional[str] = None,
    b_file: Optional[str] = None,
    limit: Optional[str] = None,
    profile: Optional[str] = None,
    executor: Optional[str] = None,
    keep: bool = False,
    force: bool = False,
    dry: bool = False,
) -> None:
    """Compare two ways of running the model: logits, labels, and the first layer where they part."""
    batch_size, chosen = contract.parse_batch_size(bs), version_of(version, "match")
    first = contract.parse_integer("--limit", limit, 0, 1, 10**9)
    some = str(contract.parse_integer("--rows", rows, 0, 0, 10**9)) if rows else ""
    asked = ComparisonRequest(some, tolerance or "", layer_tolerance or "", all_layers)
    session = session_of(c, executor, force, dry, keep)
    plan = Plan(profile_of(c, profile), "cpu", first, atc=auto.atc_options(c.config.get("atc")))
    if outputs and "om" not in (a, b):
        raise ConfigError(f"--outputs is for om, and this compares {a} with {b}")
    given = {"om": outputs or ""}
    sides = [
        comparison.side(plan, batch_size, chosen, kind, file or given.get(kind, ""))
        for kind, file in ((a, a_file), (b, b_file))
    ]
    if sides[0] == sides[1]:
        raise ConfigError(f"{a} would be compared with itself. Name another file for one: --b-file FILE")
    with runner.exclusive(session):
        run(session, plan, batch_size, chosen, sides, asked)


compare.auto_shortflags = False  # invoke would give a_file its second letter: the flag --


def run(
    session: Session, plan: Plan, batch_size: int, version: str, sides: list[PlannedSide], asked: ComparisonRequest
) -> None:
    """Make what the sides need, compare them, and show what was found also where it was known already."""
    before = comparison.before(plan, batch_size, version, sides)
    runner.check_sources(session, before)
    a, b = (_found(session, plan, batch_size, version, side) for side in sides)
    step = comparison.compare(plan, batch_size, version, a, b, asked)
    if not session.dry:  # a dry run names the latest outputs as the shell would find them
        runner.check_sources(session, [*before, step])
    for one in before:
        runner.run(session, one)
    path = session.workspace / step.outputs[0]
    old = _changed(path)
    runner.run(session, step)
    if session.dry:
        return
    if _changed(path) == old:
        print("\n".join(json.loads(path.read_text(encoding="utf-8"))["summary"]))
    print(step.outputs[0])


def _found(session: Session, plan: Plan, batch_size: int, version: str, side: PlannedSide) -> PlannedSide:
    """An om's side with the folder that its run left, which must be of the present inputs."""
    if side.kind != "om" or side.brought:
        return side
    if session.dry:
        return replace(side, file=type(side.file)(f"{side.file}{LATEST}"))
    ascend = replace(plan, backend="ascend")
    return replace(side, file=evaluation.known_outputs(session, ascend, batch_size, version))


def _changed(path: Path) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0
