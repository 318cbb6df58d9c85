"""What tasks do beside the chain: the lint of a file, a comparison, training, the report so far, the demo."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Callable, Iterator, Optional, Sequence, Type

from deberta.core import files
from deberta.core.buckets import Choice
from deberta.core.contract import LANGUAGES, loops_of
from deberta.core.errors import ConfigError, GateError
from deberta.core.schema import Schema
from deberta.host.plan import checks, comparison, evaluation
from deberta.host.plan.comparison import PlannedSide
from deberta.host.plan.plan import LATEST, Case, Plan, StageOptions, Step
from deberta.host.plan.profiles import hashed
from deberta.host.report import findings, request
from deberta.host.run import freshness, runner
from deberta.host.run.session import Session
from deberta.host.user_files import named_paths
from deberta.host.workflows.diff import Baseline
from deberta.host.workflows.evaluation import evaluate, known_outputs, needed, perf

Show = Callable[[Schema, str], None]  # prints a document, or the text in its place


def lint(session: Session, plan: Plan, model: str, output: str, options: StageOptions, show: Optional[Show]) -> None:
    """Check an ONNX file, the profile's unless another is named; the report is printed, or written to `output`.

    `show`: of a document in place of that, for which the report has to be JSON.
    """
    if model:
        model = named_paths.check_file(session.workspace, "--model", model)
    path = PurePosixPath(model) if model else plan.artifacts.onnx
    target = PurePosixPath(output) if output else plan.artifacts.results.parent / f"lint-onnx.{options['--format']}"
    if output:
        named_paths.check_report(session.workspace, "--output", output, "lint-onnx")
    export = [] if model else needed(session, [evaluation.export_onnx(plan)])

    def show_report() -> None:
        if session.dry:
            return
        if show is not None:
            show(findings.read(session.workspace, target, findings.LintDocument), "")
        elif output:
            session.show_paths([target])
        else:
            print((session.workspace / target).read_text(encoding="utf-8"), end="")

    with _shown_if_refused(show_report):
        runner.run_all(session, [*export, checks.lint_file(plan, path, target, options)])


@contextlib.contextmanager
def _shown_if_refused(show: Callable[[], None]) -> Iterator[None]:
    """Show the result of a check also if its gate refuses it, and nothing if the check itself failed."""
    try:
        yield
    except GateError:
        show()
        raise
    show()


def check_fp16(session: Session, case: Case, rows: str, margin: str, show: Show) -> None:
    """Run the graph in float16. Raises GateError if it overflows, or changes labels beyond the margin."""
    before = needed(session, [evaluation.export_onnx(case.plan), evaluation.preprocess(case)])
    step = checks.check_fp16(case, rows, margin)
    with _shown_if_refused(lambda: _show_findings(session, step, findings.CheckFp16Document, show)):
        runner.run_all(session, [*before, step])


def _show_findings(session: Session, step: Step, document: Type[findings.Document], show: Show) -> None:
    """Show the lines in which a check's stage tells its result, and where the whole is."""
    if not session.dry:
        found = findings.read(session.workspace, step.outputs[0], document)
        show(found, "\n".join([*found.summary, found.report]))


def compare(session: Session, case: Case, sides: list[PlannedSide], options: StageOptions, show: Show) -> None:
    """Compare two ways of running the model on the same rows. Raises GateError if they differ too much."""
    sides = [_named(session, case, side) if side.user_supplied else side for side in sides]
    before = needed(session, comparison.before(case, sides))
    runner.check_sources(session, before)
    first, second = (_with_outputs(session, case, side) for side in sides)
    step = comparison.compare(case, first, second, options)
    if not session.dry:  # a dry run names the latest outputs in a form for the shell, which is no path
        runner.check_sources(session, [*before, step])
    with _shown_if_refused(lambda: _show_findings(session, step, findings.CompareDocument, show)):
        for each in (*before, step):
            runner.run(session, each)


def _named(session: Session, case: Case, side: PlannedSide) -> PlannedSide:
    """A side whose file the user named. Raises ConfigError if it is something else."""
    if side.kind == "om":
        return replace(side, file=named_paths.find_outputs(session, "--outputs", str(side.file), case.padded))
    file = named_paths.check_file(session.workspace, "--a-file or --b-file", str(side.file), "config.json")
    return replace(side, file=PurePosixPath(file))


def _with_outputs(session: Session, case: Case, side: PlannedSide) -> PlannedSide:
    """An om's side with the folder of its last outputs. Raises DataError if they are not of the present inputs."""
    if side.kind != "om" or side.user_supplied:
        return side
    if session.dry:
        return replace(side, file=type(side.file)(f"{side.file}{LATEST}"))
    ascend = replace(case, plan=replace(case.plan, backend="ascend"))
    [folder] = known_outputs(session, ascend)
    return replace(side, file=folder)


def finetune(session: Session, plan: Plan, init: str, options: StageOptions) -> None:
    """train.tsv -> the profile's checkpoint. A checkpoint that we did not train is never replaced, --force or not."""
    profile = plan.profile
    if init:
        init = named_paths.check_file(session.workspace, "--init", init, "config.json")
    checkpoint = profile.checkpoint_path
    is_folder = (session.workspace / hashed(checkpoint)).is_dir()  # finetune makes one file
    if (is_folder or freshness.is_user_supplied(session, checkpoint)) and not session.dry:
        raise ConfigError(
            f"{checkpoint} is there and was not made by finetune. Move it away, "
            f"or give the training a profile of its own in invoke.yaml"
        )
    versions = [v for v in profile.rows if (session.workspace / profile.data_path(v)).exists()]
    [trained] = runner.run_all(session, [evaluation.finetune(plan, versions, init, options)])
    if not session.dry:  # with the record there, no kill can lose the training any more
        files.remove(session.workspace / plan.artifacts.finetune_state)
        print(checkpoint)
        for version in versions:
            counts = trained.summary["evaluation"][version]
            print(f"{version}: accuracy {counts['accuracy']:.4f} ({counts['correct']}/{counts['rows']})")


def write_report(
    session: Session,
    plan: Plan,
    usual: Sequence[int],
    gates: Optional[Path] = None,
    language: str = LANGUAGES[0],
    baseline: Optional[Baseline] = None,
) -> None:
    """results/.../report.{json,md,html} of what has been measured so far; the table by batch size is printed too.

    `gates`: a file in the place of ours, for what counts as a near tie. `language`: of the pages. `baseline`: what it
    is held against.
    """
    if baseline:
        baseline.check(session, plan)
    if session.dry:
        request.show(session, plan, language, request.REPORT)
        return
    of_report = request.of_report(session, plan, usual, gates, language)
    add_baseline = baseline.add if baseline else None
    request.publish(session, plan, request.make(session, plan, of_report), add_baseline)
    text = (session.workspace / plan.artifacts.report()).read_text(encoding="utf-8")
    if not session.verbose:  # up to the first section, which is the table
        text = "\n## ".join(text.split("\n## ")[:2]).rstrip() + "\n"
    print("\n".join([text, *(str(plan.artifacts.report(kind)) for kind in ("json", "md", "html"))]))


def run_demo(session: Session, plan: Plan, remake: bool, choice: Choice) -> None:
    """Both versions and two batch sizes of the demo profile, then the report.

    `remake`: make the demo's data, tokenizer and model again first, in the place of the committed ones. `choice`: the
    lengths of the accuracy runs.
    """
    if remake:
        runner.run_all(session, evaluation.remake_demo(plan))
    for version in plan.profile.rows:
        evaluate(session, [Case(plan, 8, version)], choice)
    for batch_size in (1, 8):
        perf(session, Case(plan, batch_size, "match"), loops_of(plan.backend))
    write_report(session, plan, (1, 8))
