"""What each task does: the steps it needs, in order, and the numbers that it prints at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Optional, Sequence

from deberta.ascend import timing
from deberta.core import records
from deberta.core.contract import FP32, PERFORMANCE_LOOPS
from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.core.paths import record_of
from deberta.host.plan import checks, evaluation
from deberta.host.plan.demo import remake_steps
from deberta.host.plan.evaluation import Plan, Step
from deberta.host.report import measurements, request
from deberta.host.run import runner
from deberta.host.run.runner import Session
from deberta.host.workflows import precision


def export(session: Session, plan: Plan, relative: str = "shift") -> None:
    """checkpoint -> dynamic.onnx, or dynamic_gather.onnx."""
    run_all(session, [evaluation.export_onnx(plan, relative)])


def lint(session: Session, plan: Plan, model: Optional[str], output: Optional[str], options: Sequence[str]) -> None:
    """Check an ONNX file, the profile's unless another is named; the report is printed, or written to `output`."""
    path = PurePosixPath(model) if model else plan.artifacts.onnx
    kind = options[options.index("--format") + 1]
    target = PurePosixPath(output) if output else plan.artifacts.results.parent / f"lint-onnx.{kind}"
    before = [] if model else [evaluation.export_onnx(plan)]
    step = checks.lint_file(plan, path, target, options)
    runner.check_sources(session, [*before, step])
    for one in before:
        runner.run(session, one)
    try:
        runner.run(session, step)
    finally:  # a report that a gate refuses is there as well
        if not session.dry and not output and (session.workspace / target).exists():
            print((session.workspace / target).read_text(encoding="utf-8"), end="")


def finetune(session: Session, plan: Plan, init: Optional[str], options: Sequence[str]) -> None:
    """train.tsv -> the profile's checkpoint. A checkpoint that we did not train is never replaced, --force or not."""
    profile = plan.profile
    there = session.workspace / profile.checkpoint_path
    if there.exists() and not (session.workspace / record_of(profile.checkpoint_path)).exists() and not session.dry:
        raise ConfigError(
            f"{profile.checkpoint_path} is there and was not made by finetune. Move it away, "
            f"or give the training a profile of its own in invoke.yaml"
        )
    present = [v for v in profile.rows if (session.workspace / profile.data_path(v)).exists()]
    start = PurePosixPath(init) if init else None
    run_all(session, [evaluation.finetune(plan, present, start, options)])


def check_fp16(session: Session, plan: Plan, batch_size: int, version: str, rows: str, margin: str) -> None:
    """checkpoint and data -> what the graph would do in float16, as ATC compiles it."""
    before = [evaluation.export_onnx(plan), evaluation.preprocess(plan, batch_size, version)]
    run_all(session, [*before, checks.check_fp16(plan, batch_size, version, rows, margin)])


def build(session: Session, plan: Plan, batch_size: int) -> None:
    """checkpoint -> compiled model; the export runs first if need be."""
    run_all(session, compiling(session, for_chip(session, plan, batch_size), batch_size))


def preprocess(session: Session, plan: Plan, batch_size: int, version: Optional[str]) -> None:
    """MNLI's tsv -> bins. Without a version: every one whose tsv is there; one that is not is named."""
    wanted = [version] if version else list(plan.profile.rows)
    present = [v for v in wanted if (session.workspace / plan.profile.data_path(v)).exists()]
    if version is None and present:
        for absent in sorted(set(wanted) - set(present)):
            needed = plan.source(plan.profile.data_path(absent))
            print(f"{needed.path} is missing, so {absent} is left out. To have it: {needed.command}")
        wanted = present
    run_all(session, [evaluation.preprocess(plan, batch_size, v) for v in wanted])


def infer(session: Session, plan: Plan, batch_size: int, version: str) -> PurePosixPath:
    """Everything up to the model's outputs; returns their folder."""
    plan = for_chip(session, plan, batch_size)
    before = _before_inference(session, plan, batch_size, version)
    runner.check_sources(session, before)
    made = [runner.run(session, step) for step in before]
    counted = made[-1].summary.get("rows", 0) if made[-1] else 0
    step = evaluation.infer(plan, batch_size, version, int(counted))
    record = runner.run(session, step)
    if not record:
        return PurePosixPath(f"{plan.artifacts.outputs(batch_size, version)}{evaluation.LATEST}")
    assert step.inference is not None
    return runner.outputs_folder(record, step.inference)


def postprocess(session: Session, plan: Plan, batch_size: int, version: str, outputs: Optional[str]) -> None:
    """Outputs -> accuracy. Without `outputs`: the folder of infer's record, or the only one that is there."""
    folder = PurePosixPath(outputs) if outputs else known_outputs(session, plan, batch_size, version)
    runner.run(session, evaluation.postprocess(plan, batch_size, version, folder))
    if not session.dry:
        # Outputs that the user names may be any machine's: then no backend is named.
        print_evaluation(session, plan, batch_size, version, f"of {outputs}" if outputs else origin(plan))


def evaluate(session: Session, plan: Plan, batch_size: int, version: str) -> None:
    """The whole chain for one version; of an int8 model the float32 run's too, and what changed."""
    other = plan.precision != FP32
    fp32 = [_evaluate(session, replace(plan, precision=FP32), batch_size, version)] if other else []
    made = _evaluate(session, plan, batch_size, version)
    if other:
        precision.show(session, plan, batch_size, version, fp32, [made])


def _evaluate(session: Session, plan: Plan, batch_size: int, version: str) -> PurePosixPath:
    folder = infer(session, plan, batch_size, version)
    runner.run(session, evaluation.postprocess(plan, batch_size, version, folder))
    if not session.dry:
        print_evaluation(session, plan, batch_size, version, origin(plan))
    return folder


def origin(plan: Plan) -> str:
    """Where a figure is measured, as messages say it."""
    return f"on {plan.backend}{other_precision(plan)}"


def other_precision(plan: Plan) -> str:
    return "" if plan.precision == FP32 else f" in {plan.precision}"


def perf(session: Session, plan: Plan, batch_size: int, version: str, loops: int) -> None:
    """The guide's performance run: the first bin, `loops` times, and throughput from the average without the first."""
    whole = for_chip(session, replace(plan, limit=0), batch_size)
    step = evaluation.perf(whole, batch_size, version, loops)
    run_all(session, [*_before_inference(session, whole, batch_size, version), step])
    if session.dry:
        return
    timing_log = whole.artifacts.timing_log(batch_size, version, plan.tool or "msame")
    found = timing.read(session.workspace / timing_log, batch_size)
    times = ", ".join(f"{name} {value:.3f} ms" for name, value in found.percentiles_ms.items())
    average = "average" if found.runner == "ais_bench" else "average without first"
    print(
        f"perf bs={batch_size} {version} {measurements.place(plan, found.runner)}"
        f"{other_precision(plan)}: {found.fps:.3f} fps "
        f"({loops} loops, {average} {found.average_ms} ms, {times})\n  {timing_log}"
    )


def write_report(
    session: Session, plan: Plan, usual: Sequence[int], bucketed: str = "", gates: Optional[Path] = None
) -> None:
    """results/.../report.{json,md,html} of what has been measured so far; the text is printed too.

    `bucketed`: its last part, Markdown. `gates`: a file in the place of ours, for what counts as a near tie.
    """
    if session.dry:
        request.show(session, plan)
        return
    asked = request.of_report(session, plan, usual, bucketed, gates)
    request.publish(session, plan, request.make(session, plan, asked))
    text = (session.workspace / plan.artifacts.report()).read_text(encoding="utf-8")
    print("\n".join([text, *(str(plan.artifacts.report(kind)) for kind in ("json", "md", "html"))]))


def remake_demo(session: Session, plan: Plan) -> None:
    """Make the demo's data, tokenizer and model again, in the place of the committed ones."""
    run_all(session, remake_steps(plan))


def demo(session: Session, plan: Plan) -> None:
    """Both versions and two batch sizes of the demo profile, then the report."""
    for version in plan.profile.rows:
        evaluate(session, plan, 8, version)
    for batch_size in (1, 8):
        perf(session, plan, batch_size, "match", PERFORMANCE_LOOPS)
    write_report(session, plan, (1, 8))


def run_all(session: Session, planned: Sequence[Step]) -> None:
    runner.check_sources(session, planned)
    for step in planned:
        runner.run(session, step)


def for_chip(session: Session, plan: Plan, batch_size: int) -> Plan:
    """The plan with the chip to compile for, if this will compile. Says so if the user's own .om is used instead."""
    if plan.backend != "ascend":
        return plan
    if uses_brought(session, plan, batch_size):
        said = (
            f"{plan.artifacts.compiled(batch_size)} was not made here and is used as it is (--force compiles it anew)"
        )
        print(f"# {said}" if session.dry else said)
        return plan
    return replace(plan, soc_version=session.soc_version())


def uses_brought(session: Session, plan: Plan, batch_size: int) -> bool:
    """An .om that the user brought stays as it is until --force."""
    if plan.backend != "ascend" or session.force:
        return False
    return runner.is_brought(session, plan.artifacts.compiled(batch_size))


def compiling(session: Session, plan: Plan, batch_size: int) -> list[Step]:
    """Nothing for an .om that the user brought."""
    if uses_brought(session, plan, batch_size):
        return []
    return [evaluation.export_onnx(plan), checks.build_om(plan, batch_size)]


def _before_inference(session: Session, plan: Plan, batch_size: int, version: str) -> list[Step]:
    """The bins' step comes last: its record counts the rows."""
    return [*compiling(session, plan, batch_size), evaluation.preprocess(plan, batch_size, version)]


def known_outputs(session: Session, plan: Plan, batch_size: int, version: str) -> PurePosixPath:
    parent = plan.artifacts.outputs(batch_size, version)
    command = plan.command("infer", f" --bs {batch_size} --version {version}")
    record = records.read(session.workspace / record_of(parent))
    if record is not None:
        step = evaluation.infer(plan, batch_size, version, 0)
        for before in (*_before_inference(session, plan, batch_size, version), step):
            if reason := runner.outdated(session, before):
                again = plan.command("evaluate", f" --bs {batch_size} --version {version}")
                raise DataError(
                    f"the outputs in {parent} are not of the present inputs ({before.title}: {reason}). Run: {again}, "
                    "or name outputs to be counted as they are: --outputs DIR"
                )
        assert step.inference is not None
        return runner.outputs_folder(record, step.inference)
    folder = session.workspace / parent
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not found:
        raise MissingError(f"there are no outputs in {parent}. Run: {command}")
    if len(found) > 1:
        raise ConfigError(
            f"{parent} holds {len(found)} folders ({', '.join(found)}) and no record. Name one: --outputs DIR"
        )
    return parent / found[0]


def print_evaluation(session: Session, plan: Plan, batch_size: int, version: str, origin: str) -> None:
    path = plan.artifacts.evaluation(batch_size, version)
    result = measurements.read_evaluation(session.workspace / path.with_suffix(".json"))
    partial = f" (only the first {plan.limit} rows: no result)" if plan.limit else ""
    print(
        f"accuracy {version} bs={batch_size} {origin}: "
        f"{result['accuracy']} = {result['correct']}/{result['rows']}{partial}"
    )
    for genre, counts in result["genres"].items():
        print(f"  {genre}: {counts['accuracy']} = {counts['correct']}/{counts['rows']}")
    print(f"  {path}\n  {path.with_suffix('.json')}")
