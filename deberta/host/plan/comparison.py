"""The step that compares two ways of running the model, and the steps before it. Planned like those of steps.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath as Path
from typing import Callable, Mapping, Sequence

from deberta.core.errors import ConfigError
from deberta.core.paths import limited
from deberta.host.plan import evaluation
from deberta.host.plan.evaluation import Input, Plan, Step, bins_of


@dataclass(frozen=True)
class PlannedSide:
    """One of the two: its kind, and the file or folder that it is made of. `brought`: the user named it."""

    kind: str
    file: Path
    brought: bool = False


@dataclass(frozen=True)
class ComparisonRequest:
    """The stage's own options as the user gave them; empty: its defaults."""

    rows: str = ""
    tolerance: str = ""
    layer_tolerance: str = ""
    all_layers: bool = False


def report_path(plan: Plan, a: str, b: str, batch_size: int, version: str) -> Path:
    """It is of two ways of running the model, so it belongs to no backend."""
    name = limited(f"compare_{a}_{b}_bs{batch_size}", plan.limit)
    return plan.artifacts.results.parent / f"{name}_{version}.json"


def _checkpoint(plan: Plan, batch_size: int, version: str) -> Path:
    return plan.profile.checkpoint_path


def _onnx(plan: Plan, batch_size: int, version: str) -> Path:
    return plan.artifacts.onnx


def _compiled(plan: Plan, batch_size: int, version: str) -> Path:
    return replace(plan, backend="cpu").artifacts.compiled(batch_size)


def _outputs(plan: Plan, batch_size: int, version: str) -> Path:
    """Where the ascend backend's runs are; which of them it is, is found when it runs."""
    return replace(plan, backend="ascend").artifacts.outputs(batch_size, version)


def _reference(plan: Plan, batch_size: int, version: str) -> Path:
    return plan.artifacts.reference(version)


OWN: Mapping[str, Callable[[Plan, int, str], Path]] = {
    "pytorch": _checkpoint,
    "transformers": _checkpoint,
    "onnx": _onnx,
    "fp16": _onnx,
    "cpu": _compiled,
    "om": _outputs,
    "reference": _reference,
}


def side(plan: Plan, batch_size: int, version: str, kind: str, brought: str) -> PlannedSide:
    """A side with the profile's own file unless the user named one. Raises ConfigError for an unknown kind."""
    if kind not in OWN:
        raise ConfigError(f"{kind!r} cannot be compared, only: {', '.join(OWN)}")
    return PlannedSide(kind, Path(brought) if brought else OWN[kind](plan, batch_size, version), bool(brought))


def before(plan: Plan, batch_size: int, version: str, sides: Sequence[PlannedSide]) -> list[Step]:
    """What makes both sides' own files (an om's and a reference are not made for this), and the bins."""
    own = {side.kind for side in sides if not side.brought}
    needed = []
    if own & {"onnx", "fp16", "cpu"} or "cpu" in {side.kind for side in sides}:
        needed.append(evaluation.export_onnx(plan))
    if "cpu" in own:
        needed.append(evaluation.build_om(plan, batch_size))
    return [*needed, evaluation.preprocess(plan, batch_size, version)]


def compare(
    plan: Plan, batch_size: int, version: str, a: PlannedSide, b: PlannedSide, asked: ComparisonRequest
) -> Step:
    """The comparison itself, of sides whose files are known."""
    artifacts, profile, kinds = plan.artifacts, plan.profile, {a.kind, b.kind}
    name, title = plan.named(f"compare_{a.kind}_{b.kind}", batch_size, version)
    kept = plan.atc.keep_dtype if "fp16" in kinds else ""
    already = (Input(Path(kept), "check keep_dtype under atc in invoke.yaml"),) if kept else ()
    compiled = "cpu" in kinds
    rows = "0" if plan.limit else asked.rows
    return Step(
        name=name,
        title=title.replace("_", " ", 2),
        stage="compare",
        arguments=(
            *("--a", a.kind, "--a-file", str(a.file), "--b", b.kind, "--b-file", str(b.file)),
            *("--config", str(profile.config_path)),
            *(("--labels", ",".join(profile.labels)) if profile.labels else ()),
            *("--bins", str(artifacts.bins(batch_size, version)), "--bs", str(batch_size), "--version", version),
            *("--report", str(report_path(plan, a.kind, b.kind, batch_size, version))),
            *(("--graph", str(artifacts.onnx)) if compiled else ()),
            *(("--kept", kept) if kept else ()),
            *(("--rows", rows) if rows else ()),
            *(("--tolerance", asked.tolerance) if asked.tolerance else ()),
            *(("--layer-tolerance", asked.layer_tolerance) if asked.layer_tolerance else ()),
            *(("--all-layers",) if asked.all_layers else ()),
        ),
        inputs=(
            *(given for one in (a, b) for given in _inputs(plan, batch_size, version, one)),
            plan.source(profile.config_path),
            *((Input(artifacts.onnx, plan.command("export-onnx")),) if compiled else ()),
            bins_of(plan, batch_size, version),
            *already,
        ),
        outputs=(report_path(plan, a.kind, b.kind, batch_size, version),),
        log=artifacts.log(name),
        commands=plan.commands(batch_size, version),
    )


def _inputs(plan: Plan, batch_size: int, version: str, side: PlannedSide) -> list[Input]:
    """A side's files, and the commands that make them."""
    if side.brought:
        return [Input(path, "Check the path that was given") for path in _files(side)]
    if side.kind in ("pytorch", "transformers"):
        return [plan.source(side.file)]
    split = f" --bs {batch_size} --version {version}"
    commands = {
        "cpu": plan.command("build-om", f" --bs {batch_size}"),
        "om": replace(plan, backend="ascend").command("infer", split),
        "reference": plan.command("acceptance", " --backend cpu"),
    }
    return [Input(path, commands.get(side.kind, plan.command("export-onnx"))) for path in _files(side)]


def _files(side: PlannedSide) -> list[Path]:
    return [side.file, side.file.with_suffix(".bin")] if side.kind == "cpu" else [side.file]
