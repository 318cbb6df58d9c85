"""What stands behind the files that are there, by their records; no stage runs here."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Mapping, Sequence

import pytest

from deberta.core import published, records
from deberta.core.errors import DataError, MissingError
from deberta.core.paths import record_of
from deberta.host.plan.plan import Plan
from deberta.host.report import measurements, reasons, request
from deberta.host.report.request import ReportRequest
from deberta.host.run.session import Session
from tests.mnli_helpers import REPOSITORY
from tests.unit.test_steps import _plan

OUTPUTS = "results/mnli/cpu/outputs_bs8_om/match/2026"
EVALUATION, LOG = "results/mnli/cpu/eval_bs8_match.txt", "results/mnli/cpu/msame_bs8_match.txt"
DATA, ONNX, COMPILED = "data/mnli/MNLI/dev_matched.tsv", "models/mnli/dynamic.onnx", "models/mnli/cpu/deberta_bs8.xml"
ASKED = ReportRequest("report", [8, 64], ["match", "mismatch"], ("msame", "ais_bench"), 100, "invoke report")
UNPINNED = "not pinned: base sha256:1 in place of python:3.11"


class Somewhere:
    """An executor that runs nothing."""

    name = "local"


@pytest.fixture(name="session")
def _session(tmp_path: Path) -> Session:
    """One evaluation and one performance run of a model, with their records."""
    for path in (f"{OUTPUTS}/input_0_output_0.bin", EVALUATION, LOG, DATA, ONNX, COMPILED):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    executor: Any = Somewhere()
    session = Session(REPOSITORY, tmp_path, executor, lambda: "")
    _record(session, "export-onnx", [ONNX], [])
    _record(session, "build-om_bs8", [COMPILED], [ONNX])
    _record(session, "infer_bs8_match", [OUTPUTS], [COMPILED], "results/mnli/cpu/outputs_bs8_om/match")
    _record(session, "postprocess_bs8_match", [EVALUATION], [OUTPUTS, DATA])
    _record(session, "perf_bs8_match", [LOG], [COMPILED])
    return session


def _record(
    session: Session,
    step: str,
    made: Sequence[str],
    of: Sequence[str],
    named: str = "",
    internal: Mapping[str, Any] = {},
    **parameters: Any,
) -> None:
    resources = [[session.digests.resource(PurePosixPath(path)) for path in paths] for paths in (made, of)]
    given = {"step": step, "executor": "local", **parameters}
    moment = records.now()
    content = records.statement(resources[0], resources[1], given, internal, "x", moment, moment, None)
    records.write(session.workspace / record_of(PurePosixPath(named or made[0])), content)


def _origins(session: Session, plan: Plan) -> list[str]:
    measured = measurements.collect(session, plan, [8], ["match"])
    return [*(cell.origin for cell in measured.evaluations), *(run.origin for run in measured.performances)]


def test_the_present_model_and_others(session: Session) -> None:
    plan = _plan()
    assert _origins(session, plan) == ["", ""]
    [cell] = measurements.collect(session, plan, [8], ["match"]).evaluations
    assert cell.outputs == {"256": OUTPUTS}
    (session.workspace / record_of(PurePosixPath(ONNX))).unlink()
    assert _origins(session, plan) == ["on cpu, user-supplied ONNX"] * 2
    (session.workspace / COMPILED).write_text("compiled again")
    assert _origins(session, plan) == ["outdated: another model"] * 2
    (session.workspace / COMPILED).write_text(COMPILED)
    (session.workspace / ONNX).write_text("exported again")
    assert _origins(session, plan) == ["outdated: another model"] * 2


def test_outputs_that_the_user_brought(session: Session) -> None:
    """From elsewhere, with a record of their counting only; and of a guide's run, with none."""
    brought = session.workspace / "from_a_310p"
    brought.mkdir()
    (brought / "input_0_output_0.bin").write_text("other logits")
    _record(session, "postprocess_bs8_match", [EVALUATION], ["from_a_310p", DATA])
    assert _origins(session, _plan())[0] == "user-supplied outputs: from_a_310p"
    record = session.workspace / record_of(PurePosixPath(EVALUATION))
    record.unlink()
    assert _origins(session, _plan())[0] == "no record"
    (session.workspace / OUTPUTS).with_name("2025").mkdir()
    found = measurements.collect(session, _plan(), [8], ["match"])
    assert not found.evaluations and "not one folder but 2" in found.left_out[0]


def test_what_cannot_be_counted_again_is_left_out_and_what_was_altered_is_an_error(session: Session) -> None:
    (session.workspace / DATA).write_text("another label")
    [said] = measurements.collect(session, _plan(), [8], ["match"]).left_out
    assert said == f"{EVALUATION}: it counted {DATA}, which was changed since"
    (session.workspace / DATA).write_text(DATA)
    (session.workspace / f"{OUTPUTS}/input_0_output_0.bin").write_text("other logits")
    assert "2026, which was changed since" in measurements.collect(session, _plan(), [8], ["match"]).left_out[0]
    (session.workspace / EVALUATION).write_text("accuracy = 1.0\n")
    with pytest.raises(DataError, match=r"eval_bs8_match\.txt is not what"):
        measurements.collect(session, _plan(), [8], ["match"])


def test_the_job_names_every_file_and_says_what_is_no_acceptance(session: Session) -> None:
    _record(session, "build-om_bs8", [COMPILED], [ONNX], internal={"pins": UNPINNED})
    made = request.make(session, _plan(), replace(ASKED, purpose="acceptance", loops=5, auto=["backend"]))
    [cell], [run] = made.cells, made.performances
    assert (cell.outputs, cell.evaluation, cell.origin, cell.pinned) == ({"256": OUTPUTS}, EVALUATION, "", False)
    assert (run.log, run.place, run.pinned) == (LOG, "on cpu", False)
    assert set(made.artifacts) == {ONNX, EVALUATION}
    assert set(made.measured.artifacts) == {COMPILED, OUTPUTS, LOG}
    assert set(made.inputs) == {DATA} and made.references == made.sentinels == {}
    assert made.not_accepted == [
        "backend cpu (taken by auto): no NPU was used",
        "5 loops of a performance run: the guide's has 100",
        "the published table has batch sizes 1, 4, 16, 32 too",
        f"{UNPINNED} (build-om_bs8)",
    ]
    assert made.measured.command == "invoke report (backend taken by auto)"
    assert made.measured.host.system.endswith(platform.machine())
    assert [step.step for step in made.measured.steps] == [
        # Of one second: by path.
        *("build-om_bs8", "export-onnx", "postprocess_bs8_match", "perf_bs8_match", "infer_bs8_match")
    ]
    assert made.published[2].baseline_fps == 2.821 and published.NOTE in made.note
    own = request.make(session, _plan(published=False), ASKED)
    assert own.published == [] and not any(getattr(own.gates, name) for name in reasons.OF_PUBLISHED)


def test_a_tool_of_this_machine_is_pinned_by_its_hash_alone(session: Session) -> None:
    _record(session, "perf_bs8_match", [LOG], [COMPILED], internal={"cann": "5.1.RC2"}, tool="msame", program="a" * 64)
    _record(session, "build-om_bs8", [COMPILED], [ONNX], internal={"cann": "5.1.RC2"}, tool="atc")
    said = request.make(session, _plan(), ASKED)
    assert said.measured.tools == {"atc": "CANN 5.1.RC2", "msame": "a" * 64}
    atc, msame = said.measured.pins.notes
    assert "atc of CANN 5.1.RC2 on this machine: its SHA-256 is in no record" in atc
    assert f"SHA-256 {'a' * 64} is not in docker/pins.toml (perf_bs8_match)" in msame


def test_nothing_measured(session: Session) -> None:
    with pytest.raises(MissingError, match="Run: invoke evaluate --profile mnli"):
        request.make(session, _plan(), replace(ASKED, batch_sizes=[4]))
