"""The step that compares two ways of running the model, and the steps before it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath as Path
from typing import Callable, Mapping, Sequence

from deberta.core.paths import limited
from deberta.host.plan import checks, evaluation
from deberta.host.plan.plan import Case, Input, StageOptions, Step, stage


@dataclass(frozen=True)
class PlannedSide:
    """One of the two: its kind, and the file or folder that it is made of."""

    kind: str
    file: Path
    user_supplied: bool = False


def _on(case: Case, backend: str) -> Case:
    return replace(case, plan=replace(case.plan, backend=backend))


# The profile's own file of each kind; of om the parent folder of msame's runs, which are named in its record.
OWN: Mapping[str, Callable[[Case], Path]] = {
    "pytorch": lambda case: case.plan.profile.checkpoint_path,
    "transformers": lambda case: case.plan.profile.checkpoint_path,
    "onnx": lambda case: case.artifacts.onnx,
    "fp16": lambda case: case.artifacts.onnx,
    "cpu": lambda case: _on(case, "cpu").compiled,
    "om": lambda case: _on(case, "ascend").outputs,
    "reference": lambda case: case.artifacts.reference(case.version),
}


def side(case: Case, kind: str, file: str) -> PlannedSide:
    """A side, of a kind in OWN, with the profile's own file unless the user named one."""
    return PlannedSide(kind, Path(file) if file else OWN[kind](case), bool(file))


def before(case: Case, sides: Sequence[PlannedSide]) -> list[Step]:
    """What makes both sides' own files (an om's and a reference are not made for this), and the bins."""
    own = {side.kind for side in sides if not side.user_supplied}
    steps = []
    if own & {"onnx", "fp16", "cpu"} or "cpu" in {side.kind for side in sides}:
        steps.append(evaluation.export_onnx(case.plan))
    if "cpu" in own:
        steps.append(evaluation.build_om(case))
    return [*steps, evaluation.preprocess(case)]


def compare(case: Case, a: PlannedSide, b: PlannedSide, options: StageOptions) -> Step:
    """The comparison itself, of sides whose files are known; `options` go to the stage as they are.

    Its report is of two ways of running the model, so it belongs to no backend.
    """
    plan, kinds = case.plan, {a.kind, b.kind}
    name, title = case.named(f"compare_{a.kind}_{b.kind}")
    report = f"{limited(f'compare_{a.kind}_{b.kind}_bs{case.batch_size}', plan.limit)}_{case.version}.json"
    graph = [Input(case.artifacts.onnx, plan.command("export-onnx"))] if "cpu" in kinds else []
    (a_file, *a_more), (b_file, *b_more) = _inputs(case, a), _inputs(case, b)
    return stage(
        "compare",
        case,
        named=(name, title.replace("_", " ", 2)),
        reads={
            "--a-file": a_file,
            "--b-file": b_file,
            **case.sources("config"),
            "--bins": evaluation.bins_of(case),
            "--graph": graph,
            "--kept": checks.kept_nodes(plan) if "fp16" in kinds else [],
        },
        also_reads=[*a_more, *b_more],
        writes={"--report": case.artifacts.results.parent / report},
        options={
            "--a": a.kind,
            "--b": b.kind,
            "--bs": case.batch_size,
            "--version": case.version,
            **plan.labels,
            **options,
        },
    )


def _inputs(case: Case, side: PlannedSide) -> list[Input]:
    """A side's files, the one that is named first, and the commands that make them."""
    files = [side.file, side.file.with_suffix(".bin")] if side.kind == "cpu" else [side.file]
    if side.user_supplied:
        return [Input(path, "Check the path that was given") for path in files]
    if side.kind in ("pytorch", "transformers"):
        return [case.plan.source(side.file)]
    commands = {
        "cpu": case.command("build-om"),
        "om": _on(case, "ascend").command("infer"),
        "reference": case.plan.command("acceptance", " --backend cpu"),
    }
    return [Input(path, commands.get(side.kind, case.plan.command("export-onnx"))) for path in files]
