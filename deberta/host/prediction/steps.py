"""The steps of a prediction as data: texts of the user's to bins, through the model, to a label for each row.

All that they write lies in one scratch folder of the workspace, but for models, which are infer's own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath as Path
from typing import Optional, Sequence

from deberta.core.contract import LABELS, VERSIONS
from deberta.host.plan import evaluation
from deberta.host.plan.plan import Case, Input, Plan, Step, stage

PART_ROWS = 8192  # rows that are in bins at a time: what bounds memory and disk
VERSION = VERSIONS[0]  # what the files of a part are called; a prediction has no versions


def convert(plan: Plan, data: Path, columns: str) -> Step:
    """The user's table -> a file for each part of it."""
    step = stage(
        "convert-pairs",
        Case(plan),
        named=("convert-pairs", "predict: rows"),
        reads={"--data": Input(data, "Check the path")},
        writes={"--output": files_of(plan)},
        options={"--columns": columns, "--most": PART_ROWS},
    )
    return _of_prediction(step)


def files_of(plan: Plan) -> Path:
    """The folder of the parts' files."""
    return Path(plan.scratch, "rows")


def part(plan: Plan, index: int, rows: Optional[int], batch_size: int) -> Case:
    """The case of one part of the rows; its profile has that file as its data. `rows`: None if they are not known."""
    folder = Path(plan.scratch, f"part{index}")
    profile = replace(plan.profile, dataset_path=files_of(plan) / str(index), rows={VERSION: rows}, published=False)
    return Case(replace(plan, profile=profile, limit=0, scratch=str(folder)), batch_size, VERSION)


def preprocess(case: Case) -> Step:
    return _of_prediction(evaluation.preprocess(case))


def infer(case: Case, rows: dict[int, int]) -> list[Step]:
    return list(map(_of_prediction, evaluation.infer(case, rows)))


def predict(case: Case, outputs: Sequence[Path], first: int) -> Step:
    """Outputs of all lengths -> a JSON line for each row."""
    step = evaluation.of_outputs(
        case, "predict", {"--outputs": outputs}, {"--output": Path(case.plan.scratch, "predictions.jsonl")}
    )
    labels = ",".join(case.plan.profile.labels or LABELS)
    return replace(_of_prediction(step), arguments=(*step.arguments, "--labels", labels, "--first", str(first)))


def _of_prediction(step: Step) -> Step:
    """The step under a name of its own, so that nothing of an evaluation's is taken for it; its log is kept."""
    name, title = f"predict_{step.name}", step.title.replace(f" {VERSION}", "")
    title = title if title.startswith("predict") else f"predict: {title}"
    return replace(step, name=name, title=title, log=Path(".cache", "logs", f"{name}.log"), commands={})
