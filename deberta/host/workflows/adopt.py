"""adopt: what of a guide's folder fits the profile is put in place, and stays the user's own.

It gets no record of ours: a file without one is the user's, is never replaced, and its figures say so. Accuracy is
counted of its outputs, since a report rests on logits and never on a text.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from deberta.ascend import programs
from deberta.core import contract, files, schema
from deberta.core.errors import DataError, DebertaError, MissingError, some
from deberta.core.paths import record_of
from deberta.host.plan import evaluation as steps
from deberta.host.plan.plan import Case, Plan, stage
from deberta.host.run import runner
from deberta.host.run.session import Session
from deberta.host.user_files import guide_folder, named_paths, placing
from deberta.host.user_files.guide_folder import FolderContents, Look, Supplied
from deberta.host.workflows import evaluation


def run(session: Session, plan: Plan, folder: Path, copy: bool, digests: Mapping[str, str]) -> None:
    """Look a folder through, put in place what fits, and count the outputs. `digests`: of the profile's inputs.

    Raises DataError, before anything is changed, if something else is where a file belongs; MissingError if nothing
    fits.
    """
    survey = Look(plan, session.workspace, digests).through(folder)
    if not session.dry:
        _check_checkpoint(session, plan, survey)
    wanted = [entry for entry in survey.supplied if not _is_there(session, entry)]
    placements = [placement for entry in wanted for placement in entry.placements]
    with nullcontext(placements) if session.dry else placing.placed(session.workspace, placements, copy) as new:
        for entry in survey.supplied:
            session.show(_line(entry, folder, session.dry, copy, not set(entry.placements).isdisjoint(new)))
    for path, reason in sorted(survey.left_out):
        session.show(f"left out: {path.relative_to(folder)}: {reason}")
    if not survey.supplied:
        raise MissingError(f"nothing in {folder} is of profile {plan.profile.name} by the guide's names")
    if not session.dry:
        _count(session, plan, survey, folder)
        _say_what_next(session, plan)


def _check_checkpoint(session: Session, plan: Plan, contents: FolderContents) -> None:
    """Load a new checkpoint with the config and tokenizer that it will have; leave it out if that fails."""
    profile, workspace = plan.profile, session.workspace
    sources = {entry.target: entry.source for entry in contents.supplied}
    index = next((i for i, e in enumerate(contents.supplied) if e.target == profile.checkpoint_path), None)
    if index is None or placing.is_same(sources[profile.checkpoint_path], workspace / profile.checkpoint_path):
        return
    entry = contents.supplied[index]
    config, tokenizer = (sources.get(path, workspace / path) for path in (profile.config_path, profile.tokenizer_path))
    if absent := [str(path) for path in (config, tokenizer) if not path.exists()]:
        note = f"its keys and shapes are not checked: {' and '.join(absent)}: not there"
        contents.supplied[index] = replace(entry, note=note)
        return
    place = workspace / programs.scratch("adopt")
    checkpoint = place / entry.target.name
    try:
        files.remove(place)
        for source, name in ((entry.source, checkpoint.name), (config, guide_folder.GUIDE_CONFIG)):
            files.link_or_copy(source, place / name)
        options = {"--model": str(checkpoint), "--tokenizer": str(tokenizer), **plan.labels}
        runner.look(session, stage("describe-model", Case(plan), reads={}, writes={}, options=options))
    except DebertaError as error:
        reason = str(error).replace(f"{place}/", "")
        contents.supplied.remove(entry)
        contents.left_out.append((entry.source, f"it does not fit the profile's config: {reason}"))
    finally:
        files.remove(place)


def _line(entry: Supplied, folder: Path, dry: bool, copy: bool, is_new: bool) -> str:
    name, note = entry.source.relative_to(folder), f"; {entry.note}" if entry.note else ""
    if not is_new:
        return f"already there: {name}: {entry.target}{note}"
    how = "copied" if copy else "linked"
    return f"{'would adopt' if dry else 'adopted'}: {name} -> {entry.target} ({contract.SUPPLIED}, {how}{note})"


def _is_there(session: Session, entry: Supplied) -> bool:
    """Whether the same is in place already. Raises DataError where a folder of outputs holds other runs."""
    target = session.workspace / entry.target
    if entry.case is not None and target.exists():
        own = [placement.target.name for placement in entry.placements]
        others = [run.name for run in named_paths.runs_in(target) if run.name not in own]
        recorded = (session.workspace / record_of(entry.target)).exists()
        if others or (recorded and not (target / own[0]).exists()):
            owner = "was made here" if recorded else "is there already"
            raise DataError(f"{entry.target} {owner} ({some(others)}), and is never replaced. Move it away")
    both = entry.source.name == target.name == guide_folder.GUIDE_CONFIG and target.is_file()
    return both and bool(schema.read_json(entry.source, Any) == schema.read_json(target, Any))


def _count(session: Session, plan: Plan, survey: FolderContents, folder: Path) -> None:
    """Count the outputs that are the user's, and compare the accuracy texts with that."""
    texts = dict(survey.texts)
    for case in (supplied.case for supplied in survey.supplied if supplied.case is not None):
        text = texts.pop((case.batch_size, case.version), None)
        outputs = evaluation.supplied_outputs(session, case)
        tsv = plan.profile.data_path(case.version)
        if outputs is None:
            continue  # the same as a run of ours
        if not (session.workspace / tsv).exists():
            session.show(f"not counted: {outputs}: {tsv} is missing. {plan.source(tsv).command}")
            continue
        runner.run(session, steps.postprocess(case, [outputs]))
        counts = schema.read_json(session.workspace / case.evaluation.with_suffix(".json"), dict[str, Any])
        figure = f"{counts['accuracy']} = {counts['correct']}/{counts['rows']}"
        session.show(f"accuracy {case.version} bs={case.batch_size} ({contract.SUPPLIED_OUTPUTS}): {figure}")
        if text is not None:
            session.show(_compared(text, session.workspace / case.evaluation, folder, str(outputs)))
    for (size, version), text in sorted(texts.items()):
        name = text.relative_to(folder)
        session.show(f"left out: {name}: no outputs of bs {size}, {version} are here that it could be counted by")


def _compared(text: Path, counted: Path, folder: Path, outputs: str) -> str:
    """What is to be said of an accuracy text beside the one that was counted."""
    name, stated, own = text.relative_to(folder), files.read_text(text), files.read_text(counted)
    if stated == own:
        return f"agrees: {name} is what {outputs} comes to"
    before, now = guide_folder.accuracy_values(stated), guide_folder.accuracy_values(own)
    different = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if not different:
        return f"agrees: {name} has the values that {outputs} comes to"
    key = "accuracy" if "accuracy" in different else different[0]
    return f"left out: {name}: it says {key} = {before.get(key)}, and {outputs} comes to {now.get(key)}"


def _say_what_next(session: Session, plan: Plan) -> None:
    """The commands that work on what is here now, without a device."""
    sizes: dict[int, list[str]] = {}
    for size, version in itertools.product(range(1, 1025), plan.profile.rows):
        case = Case(plan, size, version).padded
        log = session.workspace / case.timing_log
        if log.exists() and (session.workspace / case.evaluation).exists():
            sizes.setdefault(size, []).append(version)
    whole = [str(size) for size, versions in sizes.items() if len(versions) == len(plan.profile.rows)]
    session.show(f"next: {plan.command('report')}")
    if whole:
        session.show(f"next: {plan.command('acceptance', ' --bs ' + ','.join(whole))}")
