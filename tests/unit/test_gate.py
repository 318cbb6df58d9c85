"""A step's gate runs before the step, only when the step has to run, and stops it when it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from deberta.core import records
from deberta.core.errors import ConfigError, GateError
from deberta.host.engine.transcript import Show
from deberta.host.plan import evaluation, profiles
from deberta.host.plan.plan import Case, Plan, Step
from deberta.host.run import runner
from deberta.host.run.executor import Provenance
from deberta.host.run.session import Session
from tests.mnli_helpers import REPOSITORY

PROFILE = {"checkpoint": "c.bin", "config": "c.json", "tokenizer": "spm.model", "dataset": "MNLI", "rows": {"match": 3}}
PLAN = Plan(profiles.load("tiny", {"tiny": PROFILE}), "ascend", soc_version="Ascend310P3")


@dataclass
class Recorder:
    """An executor whose lint ends with `code`, and whose atc writes what the real one would."""

    root: Path
    code: int = 0
    ran: list[str] = field(default_factory=list)
    cann: str = "5.1.RC2"
    name: str = "local"

    def identity(self, step: Step) -> Mapping[str, Any]:
        return {}

    def prepare(self, step: Step) -> None:
        """Nothing to prepare."""

    def hold(self, files: Sequence[int]) -> None:
        """It starts nothing that would outlive it."""

    def run(self, step: Step, arguments: Sequence[str], show: Show) -> tuple[list[str], int]:
        self.ran.append(step.name)
        if step.tool:
            made = next(one.partition("=")[2] for one in arguments if one.startswith("--output="))
            (self.root / f"{made}.om").write_bytes(b"om" * 100)
            return ["ATC run success, welcome to the next use.\n"], 0
        (self.root / step.outputs[0]).parent.mkdir(parents=True, exist_ok=True)
        (self.root / step.outputs[0]).write_text("{}")
        return (["error: 1 finding\n"], self.code) if self.code else ([], 0)

    def provenance(self, step: Step) -> Provenance:
        return Provenance(internal={"cann": self.cann} if step.tool else {})

    def sibling(self) -> Recorder:
        return self

    def show(self, step: Step) -> None:
        """Not asked for here."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(name="executor")
def _executor(tmp_path: Path) -> Recorder:
    (tmp_path / "models/tiny").mkdir(parents=True)
    (tmp_path / "models/tiny/dynamic.onnx").write_bytes(b"onnx" * 10)
    return Recorder(tmp_path)


def _run(executor: Recorder, plan: Plan = PLAN) -> records.Record:
    session = Session(REPOSITORY, executor.root, executor, lambda: "Ascend310P3")
    record = runner.run(session, evaluation.build_om(Case(plan, 8))).record
    assert record is not None
    return record


def test_an_error_stops_the_compilation(executor: Recorder) -> None:
    executor.code = GateError.exit_code
    with pytest.raises(GateError, match="1 finding"):
        _run(executor)
    assert executor.ran == ["lint-onnx_bs8"]
    assert not list(executor.root.rglob("*.om")) and not list(executor.root.rglob("lint*.record.json"))


def test_no_lint_is_recorded_and_its_model_is_used_afterwards(executor: Recorder) -> None:
    executor.code = GateError.exit_code
    record = _run(executor, replace(PLAN, lint=False))
    assert executor.ran == ["build-om_bs8"] and record.parameters["lint"] is False
    assert _run(executor) == record and executor.ran == ["build-om_bs8"]  # up to date: nothing is checked again


def test_what_the_gate_found_is_in_the_record(executor: Recorder) -> None:
    record = _run(executor)
    assert executor.ran == ["lint-onnx_bs8", "build-om_bs8"]
    assert "gate" in record.summary and "lint" not in record.parameters


def test_a_model_runs_on_the_cann_that_compiled_it(executor: Recorder) -> None:
    _run(executor)
    executor.cann = "6.0.1"
    bins = executor.root / "data/tiny/pre_mnli_bs8/match"
    bins.mkdir(parents=True)
    session = Session(REPOSITORY, executor.root, executor, lambda: "Ascend310P3")
    with pytest.raises(ConfigError, match=r"compiled with CANN 5\.1\.RC2, and CANN 6\.0\.1 would run it"):
        runner.run_all(session, evaluation.infer(Case(PLAN, 8, "match"), {256: 3}))
    assert "infer_bs8_match" not in executor.ran
