"""Steps that compile or run the model: into a temporary place, judged by what they leave, and only then named."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Callable, Iterator, Mapping, Optional, Sequence

from deberta.ascend import ais_bench, atc, causes, msame, programs, runs, timing
from deberta.core import files
from deberta.core.errors import DebertaError, StageError
from deberta.host.plan.plan import Compilation, Inference, ModelRun, Step
from deberta.host.run import compiled, device_locks
from deberta.host.run.console import Console
from deberta.host.run.executor import Judged, check_exit
from deberta.host.run.session import Session


def run_stage(session: Session, step: Step, arguments: Sequence[str], show: Callable[[str], None]) -> str:
    """Run a stage and return what it printed. Raises the error that it reported."""
    lines, code = session.executor.run(step, arguments, show)
    check_exit(step.module, lines, code, session.workspace / step.log)
    return "".join(lines)


def compile_om(
    session: Session, step: Step, compilation: Compilation, summary: Path, console: Console
) -> list[PurePosixPath]:
    """Run ATC to a temporary name, judge what it left, and only then give it its name."""
    model, final = session.workspace / compilation.model, session.workspace / compilation.om
    root = session.executor.root
    paths = (compilation.model, compilation.om, *atc.option_files(compilation.options))
    atc.check_paths([root / path for path in paths])
    with files.staged(final) as clock:
        compiled = clock.with_name(clock.name + ".om")  # ATC adds it; `remove_leftovers` removes it after a failure
        options = atc.rooted(compilation.options, root)
        output = compiled.relative_to(session.workspace)
        command = atc.command(
            compilation.model, output, compilation.batch_size, compilation.soc_version, options, compilation.length
        )
        clock.touch()
        started = clock.stat().st_mtime  # the file system's clock, which the .om's age is told by
        with locked(session, step, console.say):
            lines, status = session.executor.run(step, command[1:], console.line)
        outcome = atc.parse("".join(lines))
        atc.judge(outcome, status, compiled, started, atc.least_bytes(model.stat().st_size), step.log)
        files.switch(compiled, final)
    files.write_text(summary, json.dumps({**atc.summary(outcome), "soc_version": compilation.soc_version}))
    return [compilation.om]


def infer(
    session: Session, step: Step, inference: Inference, arguments: Sequence[str], summary: Path, console: Console
) -> list[PurePosixPath]:
    """Run msame or its twin into temporary folders, judge what it left, and only then give the folders their names.

    With several devices the session's shards fill the temporary folders; with a cluster also a performance run's.
    """
    not_checked: list[str] = []
    with contextlib.ExitStack() as stack:
        temporary = {
            run.output: stack.enter_context(files.staged(session.workspace / run.output)) for run in inference.runs
        }
        if session.shards is not None and (inference.log_copy is None or session.shards.measures):
            judged = session.shards.infer(session, step, temporary, summary, console)
        else:
            moved = {str(output): str(path.relative_to(session.workspace)) for output, path in temporary.items()}
            arguments = [moved.get(argument, argument) for argument in arguments]
            with locked(session, step, console.say):
                if step.tool:
                    not_checked = check_before(session, step, inference.runs[0], inference.device, console.say)
                judged = run_judged(session, step, temporary, arguments, console.quiet)
        for run, left in zip(inference.runs, judged):
            (session.workspace / run.output).mkdir(exist_ok=True)
            files.switch(left.folder, session.workspace / run.output / left.folder.name)
    if not_checked:
        files.write_text(summary, json.dumps({"not_checked": not_checked}))
    subjects = [run.output / left.folder.name for run, left in zip(inference.runs, judged)]
    if inference.log_copy:
        _keep_longer(session.workspace / inference.log_copy, inference.runs[0].times, console)
        files.write_text(session.workspace / inference.log_copy, judged[0].printed)
        subjects.insert(0, inference.log_copy)
    return subjects


@contextlib.contextmanager
def locked(session: Session, step: Step, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the locks of a step's run of the model, and of its device, until what it runs has ended.

    A performance run has the host to itself. Others share it, and so do compilations by ATC, which take no device.
    """
    alone = step.inference is not None and step.inference.log_copy is not None
    device = step.device if step.on_device else None
    with device_locks.held(session.locks, device, alone, say) as locks:
        session.executor.hold(locks)
        try:
            yield
        finally:
            session.executor.hold(())


def look(session: Session, number: int, say: Callable[[str], None]) -> programs.DeviceCheck:
    """Look at a device with npu-smi, one look at a time on a host. Raises the errors of one that is busy or ill."""
    with device_locks.looking(session.locks, say):
        return programs.check_device(number, say)


def check_before(
    session: Session, step: Step, run: ModelRun, number: int, say: Callable[[str], None], first: int = 0
) -> list[str]:
    """Look at the bins, the device and its chip before a tool runs the model; returns what could not be checked.

    `first`: the index of the first bin. Raises the errors of bins, of another chip, of a device that is busy or ill.
    """
    programs.check_bins(session.workspace, run.bins, run.bin_bytes, run.times, first)
    device = look(session, number, say)
    unknown = compiled.check_chip(session, step.inputs[0].path, device, "invoke build-om")
    if unknown:
        say(unknown)
    return [*device.not_checked, *([unknown] if unknown else [])]


def run_judged(
    session: Session,
    step: Step,
    temporary: Mapping[PurePosixPath, Path],
    arguments: Sequence[str],
    show: Callable[[str], None],
    base: Optional[Path] = None,
) -> list[Judged]:
    """Run the step's command and judge what it left, of each length in the step's order.

    `temporary`: where the output of each run of the step goes. `base`: what the folder that a tool prints is relative
    to, if not the workspace.
    """
    assert step.inference is not None
    model_runs, status = step.inference.runs, 0
    if step.tool:
        lines, status = session.executor.run(step, arguments, show)
        logs = ["".join(lines)]
    else:
        try:
            stdout = run_stage(session, step, arguments, show)
        except DebertaError as error:
            run = model_runs[-1]
            raise runs.cause(error, "", temporary[run.output], run.expected, run.bin_bytes) or error from None
        logs = re.split(r"(?m)^(?=\[INFO\] load model )", stdout)[:0:-1]  # the longest length comes first
    try:
        if len(logs) != len(model_runs):
            raise StageError(f"{step.title} printed {len(logs)} logs for {len(model_runs)} lengths")
        root = base or session.workspace
        judged = [_judged(root, step.tool, run, log, temporary[run.output]) for run, log in zip(model_runs, logs)]
    except DebertaError as error:
        ended = causes.ended(step.tool, status) if step.tool else ""
        raise type(error)(f"{error} ({f'{ended}; ' if ended else ''}its output: {step.log})") from error
    if status:  # all its files are there, and something went wrong
        raise StageError(f"{step.tool} did all its work, but ended with exit code {status}. See {step.log}")
    return judged


def _keep_longer(log: Path, times: int, console: Console) -> None:
    """Keep a timing log of more loops beside the one that takes its name."""
    if (loops := timing.loops(log)) > times:
        aside = files.aside(log)
        files.write_text(aside, files.read_text(log))
        console.say(f"{log.name} of {loops} loops is kept as {aside}")


def _judged(base: Path, tool: str, run: ModelRun, stdout: str, temporary: Path) -> Judged:
    """The folder that a complete run left, its files under our names."""
    outcome = ais_bench.parse(stdout) if tool == ais_bench.MODULE else msame.parse(stdout)
    folder = base / outcome.folder if outcome.folder else temporary
    try:
        if isinstance(outcome, msame.MsameRun):
            msame.judge(outcome, folder, run.expected, run.times)
            return Judged(folder, stdout, outcome.times_ms)
        ais_bench.judge(outcome, folder, run.expected, run.times)
    except DebertaError as error:
        raise runs.cause(error, stdout, folder, run.expected, run.bin_bytes) or error from None
    ais_bench.settle(folder)
    summary = files.read_text(ais_bench.summary_of(folder))
    return Judged(folder, summary, ais_bench.read_summary(summary).times_ms)
