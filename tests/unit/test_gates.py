"""Every gate fails for its own reason, none hides another, and nothing but all of them passed is an acceptance."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from deberta.core.contract import LABELS, ran_with
from deberta.core.job import Job
from deberta.core.report import GATES, Body, EvaluationCell, PerformanceRun
from deberta.stages.report import assess, cells, gates
from tests import report_helpers, report_samples


class Case:
    """A job and what is judged of it, free to be changed."""

    def __init__(self, job: dict[str, Any], report: dict[str, Any]) -> None:
        self.job, self.body = copy.deepcopy(job), copy.deepcopy(report["body"])
        self.performances = copy.deepcopy(report["measured"]["performances"])

    def judge(self) -> dict[str, Any]:
        """The verdict as it stands in report.json."""
        job, body = msgspec.convert(self.job, Job), msgspec.convert(self.body, Body)
        verdict = gates.judge(job, body, msgspec.convert(self.performances, list[PerformanceRun]))
        content: dict[str, Any] = msgspec.to_builtins(verdict)
        return content

    def said(self, status: str) -> list[dict[str, str]]:
        return [check for check in self.judge()["gates"] if check["status"] == status]


def cases(folder: Path, **options: Any) -> Callable[[], Case]:
    path = report_helpers.example_job(folder, **options)
    job = json.loads(path.read_bytes())
    report = msgspec.to_builtins(assess.assess(assess.read_job(path), folder))
    return lambda: Case(job, report)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Case]:
    return cases(tmp_path_factory.mktemp("ascend"), backend="ascend")


@pytest.fixture
def case(make: Callable[[], Case]) -> Case:
    return make()


def test_all_gates_passed_is_accepted(case: Case) -> None:
    verdict = case.judge()
    assert (verdict["verdict"], verdict["why_not_accepted"]) == ("accepted", [])
    assert {check["gate"] for check in verdict["gates"]} == {"complete", *GATES}
    assert next(check for check in verdict["gates"] if check["gate"] == "correct_rows") == {
        **{"gate": "correct_rows", "of": "bs 1, match", "required": "at least 42 of 48"},
        **{"found": "44 of 48 (91.67 %)", "status": "passed", "reason": ""},
    }


def test_a_model_that_was_brought_is_neither_accepted_nor_a_failure(case: Case) -> None:
    for entry in (*case.body["cells"], *case.performances):
        entry["origin"] = ran_with("ascend", [".om"])
    assert case.said("failed") == [] and case.judge()["verdict"] == "checked"
    assert {check["of"] for check in case.said("not judged") if check["gate"] == "complete"} >= {
        "evaluation, bs 1, match",
        "performance run, bs 8, mismatch",
    }


def fewer(case: Case) -> None:
    case.job["gates"]["correct_rows"]["match"]["expected"] = 47


def other_rows(case: Case) -> None:
    case.job["gates"]["correct_rows"]["match"]["of"] = 47


def below(case: Case) -> None:
    case.job["gates"]["official"]["points"] = 0.5


def above(case: Case) -> None:
    case.job["published"][0]["official_mismatch"] = 80.0


def disagreeing(case: Case) -> None:
    case.body["agreement"]["match"]["beyond_near_ties"] = 1


def unlike_pytorch(case: Case) -> None:
    case.body["cells"][0]["versus_reference"].update(flips_total=3, beyond_near_ties=2)


def slow(case: Case) -> None:
    case.performances[0]["fps"] = 99.999


def problem(case: Case) -> None:
    case.body["sentinels"]["match"]["problems"] = [{"check": "rows", "what": "the tsv has 7 rows", "lines": []}]


def other_file(case: Case) -> None:
    case.job["gates"]["inputs"][report_helpers.CHECKPOINT] = "0" * 64


def absent_file(case: Case) -> None:
    case.job["gates"]["inputs"]["models/demo/spm.model"] = "0" * 64


def no_cell(case: Case) -> None:
    del case.body["cells"][3]


def old_cell(case: Case) -> None:
    case.body["cells"][3]["origin"] = "outdated: another model"


def no_run(case: Case) -> None:
    del case.performances[0]


def old_run(case: Case) -> None:
    case.performances[0]["origin"] = "no record"


def short_run(case: Case) -> None:
    case.performances[0]["loops"] = 5


@pytest.mark.parametrize(
    ("spoil", "gate", "of", "says"),
    [
        (fewer, "correct_rows", "bs 1, match", "44 of 48 (91.67 %) too few rows are right"),
        (other_rows, "correct_rows", "bs 1, match", "not the rows expected"),
        (below, "official", "bs 1, match", "91.67 %) 1.17 points above"),
        (above, "official", "bs 1, mismatch", "11.67 points above"),
        (disagreeing, "agreement", "match, bs 1, 8", "1 row, and 0 near ties (margin below 0.05)"),
        (unlike_pytorch, "reference", "bs 1, match", "2 rows, and 1 near tie (margin"),
        (slow, "fps", "bs 1, match, msame", "99.999 fps too slow"),
        (problem, "sentinel", "match, the data", "1 problem the tsv has 7 rows"),
        (other_file, "inputs", report_helpers.CHECKPOINT, "another file"),
        (absent_file, "inputs", "models/demo/spm.model", "not among the inputs"),
        (no_cell, "complete", "evaluation, bs 8, mismatch", "missing"),
        (old_cell, "complete", "evaluation, bs 8, mismatch", "outdated: another model"),
        (no_run, "complete", "performance run, bs 1, match", "missing"),
        (old_run, "complete", "performance run, bs 1, match", "no record"),
        (short_run, "complete", "performance run, bs 1, match", "5 loops, not 100"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_gate_fails_by_name(case: Case, spoil: Callable[[Case], None], gate: str, of: str, says: str) -> None:
    spoil(case)
    failed = case.said("failed")
    assert {check["gate"] for check in failed} == {gate}
    assert failed[0]["of"] == of and says in f"{failed[0]['found']} {failed[0]['reason']}"
    verdict = case.judge()
    assert verdict["verdict"] == "failed" and f"failed: {gate}" in verdict["why_not_accepted"]


def test_every_check_runs_whatever_another_says(case: Case) -> None:
    before = len(case.judge()["gates"])
    for spoil in (fewer, below, disagreeing, unlike_pytorch, slow, problem, other_file, old_cell):
        spoil(case)
    assert {check["gate"] for check in case.said("failed")} == {"complete", *GATES}
    assert len(case.judge()["gates"]) == before


def test_a_missing_or_foreign_result_is_not_judged_as_if_it_were_one(case: Case) -> None:
    no_cell(case)
    old_run(case)
    case.body["cells"][2]["origin"] = "user-supplied outputs: results/other"
    unjudged = {(check["gate"], check["of"]) for check in case.said("not judged")}
    assert unjudged >= {
        ("correct_rows", "bs 8, match"),
        ("correct_rows", "bs 8, mismatch"),
        ("fps", "bs 1, match, msame"),
    }
    assert {check["gate"] for check in case.said("failed")} == {"complete"}


def test_what_was_not_judged_is_never_accepted(case: Case) -> None:
    case.body["sentinels"].clear()
    verdict = case.judge()
    assert (verdict["verdict"], verdict["why_not_accepted"]) == ("checked", ["not judged: sentinel"])


def test_a_reason_against_is_enough(case: Case) -> None:
    case.job["not_accepted"] = ["images are not pinned"]
    verdict = case.judge()
    assert (verdict["verdict"], verdict["why_not_accepted"]) == ("checked", ["images are not pinned"])


def test_gates_that_are_not_asked_for_are_not_listed(case: Case) -> None:
    case.job["gates"] = {"correct_rows": case.job["gates"]["correct_rows"]}
    verdict = case.judge()
    assert {check["gate"] for check in verdict["gates"]} == {"complete", "correct_rows"}
    assert verdict["verdict"] == "accepted"
    case.job["gates"] = {"agreement": {"allowed": 0}}
    verdict = case.judge()
    assert verdict["verdict"] == "checked"
    assert verdict["why_not_accepted"] == ["no gate looks at the accuracy of profile demo"]


def test_a_gate_of_an_unknown_name_is_refused(case: Case) -> None:
    case.job["gates"]["agreemnt"] = {"allowed": 0}
    with pytest.raises(msgspec.ValidationError, match="unknown field `agreemnt`"):
        case.judge()


def test_int8_is_held_against_the_float32_run(case: Case) -> None:
    """With its own allowance, and only where it is of the present model; nothing else is demanded of it."""
    fp32 = case.body["cells"][0]
    int8 = {**fp32, "precision": "int8", "correct": fp32["correct"] - 2, "versus_reference": None}
    case.body["cells"].insert(1, int8)
    [check] = [check for check in case.judge()["gates"] if check["of"] == "bs 1, match, int8"]
    assert (check["gate"], check["required"], check["status"]) == ("correct_rows", "at least 42 of 48", "passed")
    assert case.judge()["verdict"] == "accepted"
    int8["correct"] -= 1
    [check] = case.said("failed")
    assert (check["of"], check["reason"]) == ("bs 1, match, int8", "too few rows are right beside the float32 run")
    int8["origin"] = "outdated: another model"
    assert case.judge()["verdict"] == "accepted"


def test_a_run_at_another_length_is_no_performance_run_of_the_guide(case: Case) -> None:
    """Accuracy counts at any lengths, throughput at 256 alone."""
    case.body["cells"][0]["lengths"] = {"32": 40, "64": 8}
    assert case.judge()["verdict"] == "accepted"
    case.performances[0]["length"] = 64
    [check] = case.said("failed")
    assert (check["gate"], check["of"]) == ("complete", "performance run, bs 1, match")


def test_a_version_without_a_count_is_not_judged(case: Case) -> None:
    del case.job["gates"]["correct_rows"]["mismatch"]
    [first, _] = case.said("not judged")
    assert (first["of"], first["reason"]) == ("bs 1, mismatch", "the gates have no count for mismatch")


def test_a_batch_size_without_published_figures_is_not_judged(case: Case) -> None:
    del case.job["published"][1]
    assert {(check["gate"], check["reason"]) for check in case.said("not judged")} == {
        ("official", "nothing is published for batch size 8"),
        ("fps", "nothing is published for batch size 8"),
    }


def test_official_is_exact_at_its_edge(case: Case) -> None:
    cell = case.body["cells"][0]
    cell.update(rows=1000, correct=880, accuracy=0.88)  # 2.5 points below 90.5, and 88 has no exact neighbour
    checks = {check["of"]: check for check in case.judge()["gates"] if check["gate"] == "official"}
    assert checks["bs 1, match"]["status"] == "passed"
    cell.update(rows=100000, correct=87999, accuracy=0.87999)
    checks = {check["of"]: check for check in case.judge()["gates"] if check["gate"] == "official"}
    assert checks["bs 1, match"]["status"] == "failed"


def test_a_wide_spread_stands_beside_a_passed_fps(case: Case) -> None:
    case.performances[0]["warning"] = "the average is known to 9.0 % only"
    [check] = [c for c in case.judge()["gates"] if c["gate"] == "fps" and c["reason"]]
    assert (check["status"], check["reason"]) == ("passed", "the average is known to 9.0 % only")


def test_a_limited_run_on_a_cpu_judges_what_it_can(tmp_path: Path) -> None:
    case = cases(tmp_path, limit=20)()
    verdict = case.judge()
    assert verdict["verdict"] == "checked"
    assert verdict["why_not_accepted"] == [
        "backend cpu: no NPU was used",
        "limited to the first 20 rows",
        "not judged: correct_rows, fps",
    ]
    assert {check["reason"] for check in case.said("not judged")} == {
        "limited to the first 20 rows",
        "backend cpu: its fps says nothing about an NPU",
    }
    unlike_pytorch(case)
    assert {check["gate"] for check in case.said("failed")} == {"reference"}


def test_one_batch_size_cannot_agree_with_itself(tmp_path: Path) -> None:
    case = cases(tmp_path, backend="ascend", batch_sizes=(8,))()
    assert {check["gate"] for check in case.said("not judged")} == {"agreement"}
    assert case.judge()["verdict"] == "checked"


def cell(confusion: list[list[int]]) -> EvaluationCell:
    """A cell's counts; confusion by gold label, then by predicted label."""
    named = {g: dict(zip(LABELS, row, strict=True)) for g, row in zip(LABELS, confusion, strict=True)}
    counts = report_samples.cell(1, "match", {"all": 60}, (0,))
    counts.update(rows=sum(map(sum, confusion)), confusion=named)
    return structs.replace(msgspec.convert(counts, EvaluationCell), permutations=cells.permutations(named))


@pytest.mark.parametrize(
    ("confusion", "order"),
    [
        ([[300, 10, 9], [12, 280, 30], [9, 11, 320]], ""),
        ([[9, 10, 300], [12, 280, 30], [320, 11, 9]], "entailment, neutral, contradiction"),
        ([[10, 300, 9], [12, 30, 280], [320, 9, 11]], "entailment, contradiction, neutral"),
        ([[3213, 0, 0], [3123, 0, 0], [3479, 0, 0]], ""),  # knows one label: read as another it is right more often
        ([[30, 40, 30], [40, 30, 30], [30, 30, 40]], ""),  # knows nothing
        ([[100, 200, 200], [300, 100, 100], [150, 150, 200]], ""),  # poor: a better order, half wrong
        ([[0, 3, 0], [3, 0, 0], [0, 0, 3]], ""),  # too few rows to be sure
    ],
)
def test_labels_are_called_permuted_only_if_that_is_clear(confusion: list[list[int]], order: str) -> None:
    assert ", ".join(gates.permuted(cell(confusion))) == order


def test_permuted_labels_are_named_with_their_order(tmp_path: Path) -> None:
    case = cases(tmp_path, order=(2, 1, 0))()
    [first, _] = [check for check in case.said("failed") if check["gate"] == "sentinel"]
    assert first["of"] == "match, the order of labels"
    assert first["reason"].startswith(
        "the labels are permuted: the data/model order looks like entailment, neutral, contradiction (bs 1, match: 44"
    )
