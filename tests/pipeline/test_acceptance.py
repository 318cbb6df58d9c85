"""Acceptance of the demo, as somebody else would check it: what it says when all is well, and what it catches."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from deberta.core.errors import GateError
from deberta.host.plan import profiles
from deberta.host.plan.plan import Plan
from deberta.host.workflows import conclusion
from tests import pipeline_helpers as helpers
from tests.pipeline_helpers import Workspace, copy_demo, make_small_demo, steps_that_ran

RESULTS = "results/demo/cpu"
TSV = "data/demo/MNLI/dev_matched.tsv"
ACCEPT = ("acceptance", "--backend", "cpu", "--version", "match", "--loops", "3")
WHOLE = (*ACCEPT, "--bs", "16,8")
OUTPUT = f"{RESULTS}/outputs_bs8_om/match"
ROWS = 160  # of the demo's; the model has CORRECT of them right
CORRECT = 159


@pytest.fixture(name="accepted", scope="module")
def _accepted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str, str]:
    """A workspace in which acceptance has run, first at one batch size, and what was printed; tests copy it.

    The demo with its first rows alone, and with gates for them: all tests here would else take minutes.
    """
    workspace = make_small_demo(tmp_path_factory.mktemp("measured"), ROWS, {"match": (CORRECT, 1)})
    workspace.configure(buckets="256")  # what the tests alter are the padded files
    return workspace, workspace.succeed(*ACCEPT, "--bs", "8"), workspace.succeed(*WHOLE)


def _gate(expected: int) -> str:
    return f"expected = {expected}\nallowed = 1"


@pytest.fixture(name="workspace")
def _workspace(accepted: tuple[Workspace, str, str], tmp_path: Path) -> Workspace:
    return accepted[0].copy(tmp_path / "copy")


def _report(workspace: Workspace, name: str = "report.json") -> Any:
    return json.loads((workspace.root / RESULTS / name).read_text())


def _failed(report: Any) -> dict[str, set[str]]:
    """The gates that failed, with what of."""
    found: dict[str, set[str]] = {}
    for gate in report["verdict"]["gates"]:
        if gate["status"] == "failed":
            found.setdefault(gate["gate"], set()).add(gate["of"])
    return found


def test_all_is_well_and_never_called_accepted(accepted: tuple[Workspace, str, str]) -> None:
    workspace, first, said = accepted
    assert steps_that_ran(first) == [
        *("check-data match", "reference match", "export-onnx", "build-om bs=8", "preprocess bs=8 match"),
        *("infer bs=8 match", "postprocess bs=8 match", "perf bs=8 match", "assess", "render"),
    ]
    assert "not judged: agreement (match): it takes evaluations of two batch sizes" in first
    assert steps_that_ran(said) == [
        *("build-om bs=16", "preprocess bs=16 match", "infer bs=16 match", "postprocess bs=16 match"),
        *("perf bs=16 match", "assess", "render"),
    ]
    assert "[acceptance] 3 of 4: accuracy bs=16 match\n" in said  # no pace yet: the first two were there
    assert re.search(r"\[acceptance\] 4 of 4: performance bs=16 match; about \d+ s left\n", said)
    assert re.search(rf"^bs 16: match {CORRECT}/{ROWS}; match [\d.]+ fps \(3 loops\)$", said, re.MULTILINE)
    [verdict] = [line for line in said.splitlines() if line.startswith("verdict: ")]
    assert verdict.startswith("verdict: checked - the gates pass, and this is no acceptance: ")
    for why in ("no NPU was used", "3 loops", "stages_python", "profile demo: nothing is published", "the gates are"):
        assert why in verdict
    report = _report(workspace)
    assert report["verdict"]["verdict"] == "checked" and not _failed(report)
    passed = {gate["gate"] for gate in report["verdict"]["gates"] if gate["status"] == "passed"}
    assert passed == {"complete", "correct_rows", "agreement", "reference", "sentinel", "inputs"}
    command = "invoke acceptance --bs 8,16 --version match --loops 3 --profile demo --backend cpu --executor local"
    assert report["measured"]["command"] == command
    steps = {step["step"] for step in report["measured"]["steps"]}
    assert {"check-data_match", "reference_match", "export-onnx", "infer_bs8_match", "perf_bs16_match"} <= steps
    text = (workspace.root / RESULTS / "report.md").read_text()
    assert "accepted" not in text.lower() and f"({CORRECT}/{ROWS}) on cpu" in text


def test_the_demo_as_it_is_committed(accepted: tuple[Workspace, str, str], tmp_path: Path) -> None:
    """With the gates as committed, and what `auto` took said aloud."""
    workspace = Workspace(tmp_path)
    copy_demo(tmp_path)
    values = json.loads((accepted[0].root / "settings.yaml").read_text())
    kept = {"workspace": str(tmp_path), "stages_python": values["stages_python"], "profile": "demo"}
    (tmp_path / "settings.yaml").write_text(json.dumps(kept))
    said = workspace.succeed("acceptance", "--bs", "64", "--version", "match", "--loops", "2")
    assert "backend: cpu (auto; " in said and "backend cpu (taken by auto): no NPU was used" in said
    report = _report(workspace)
    assert report["verdict"]["verdict"] == "checked" and not _failed(report)
    assert report["body"]["cells"][0]["correct"] == 1189 and "(backend taken by auto)" in report["measured"]["command"]


def test_nothing_runs_twice_and_the_report_stays_the_same(workspace: Workspace) -> None:
    """Its time is that of the last measurement, so the same records give the same bytes."""
    before = {name: (workspace.root / RESULTS / f"report.{name}").read_bytes() for name in ("json", "md", "html")}
    assert steps_that_ran(workspace.succeed(*WHOLE)) == ["assess", "render"]
    assert {name: (workspace.root / RESULTS / f"report.{name}").read_bytes() for name in before} == before
    said = workspace.succeed("report", "--backend", "cpu")
    assert _report(workspace)["verdict"] is None and "verdict:" not in said
    assert _report(workspace)["body"]["cells"] == json.loads(before["json"])["body"]["cells"]


@pytest.mark.parametrize(
    ("name", "size", "command"),
    [
        (
            f"{OUTPUT}/*/input_7_output_0.bin",
            90,
            "invoke infer --bs 8 --version match --buckets 256 --profile demo --force",
        ),
        (
            f"{RESULTS}/eval_bs16_match.txt",
            10,
            "invoke postprocess --bs 16 --version match --buckets 256 --profile demo --force",
        ),
        (f"{RESULTS}/msame_bs8_match.txt", 100, "invoke perf --bs 8 --version match --profile demo --force"),
        ("results/demo/reference_match.npy", 1000, "add --force to this command"),
        ("models/demo/dynamic.onnx", None, "invoke export-onnx --profile demo --force"),
        ("data/demo/pre_mnli_bs8/match/*/input_3.bin", None, "preprocess --bs 8 --version match"),
    ],
)
def test_an_altered_file_is_named_and_nothing_is_made_again(
    workspace: Workspace, name: str, size: int, command: str
) -> None:
    """Truncated to `size`, or one byte changed; other commands would make it again without a word."""
    path = sorted(workspace.root.glob(name))[0]
    content = path.read_bytes()
    path.write_bytes(content[:size] if size else content[:40] + bytes([content[40] ^ 1]) + content[41:])
    report = (workspace.root / RESULTS / "report.json").read_bytes()
    said = workspace.fail(5, *WHOLE)
    assert f"{name.partition('/*')[0]}" in said and "was changed after it was made" in said and command in said
    assert "input_7_output_0.bin" in said or "input_7" not in name
    assert (workspace.root / RESULTS / "report.json").read_bytes() == report
    path.unlink()
    if size:
        said = workspace.fail(5, *WHOLE)
        assert path.name in said and ("is missing" in said or "was changed" in said)


def test_a_changed_weight(workspace: Workspace) -> None:
    import torch

    from deberta.stages.model import checkpoint

    path = workspace.root / "models/demo/pytorch.model-demo.bin"
    state = {name: weight.clone() for name, weight in checkpoint.read_state_dict(path).items()}  # off the mapped file
    state["classifier.weight"] = state["classifier.weight"].flip(0)
    torch.save(state, path)
    said = workspace.fail(6, *ACCEPT, "--bs", "8")
    assert "gates failed: correct_rows (bs 8, match), " in said
    failed = _failed(_report(workspace))
    assert failed["inputs"] == {"models/demo/pytorch.model-demo.bin"} and failed["correct_rows"] == {"bs 8, match"}
    assert "complete" not in failed and "reference" not in failed  # PyTorch runs the same wrong weights


def test_swapped_labels_in_the_data(workspace: Workspace) -> None:
    """Two names changed places in the gold column: a model that is right looks wrong, and is not to blame."""
    path = workspace.root / TSV
    header, *rows = path.read_text().splitlines()
    swap = {"neutral": "entailment", "entailment": "neutral"}
    cells = [row.split("\t") for row in rows]
    path.write_text("\n".join([header, *("\t".join([*row[:-1], swap.get(row[-1], row[-1])]) for row in cells)]) + "\n")
    said = workspace.fail(6, *ACCEPT, "--bs", "8")
    assert "sentinel (match, the order of labels)" in said and f"inputs ({TSV})" in said
    [order] = [g for g in _report(workspace)["verdict"]["gates"] if g["of"] == "match, the order of labels"]
    assert order["found"] == "contradiction, entailment, neutral"


def test_a_gate_that_is_not_met(workspace: Workspace) -> None:
    """A file of the user's own: what it demands counts, and what it misspells is found out before anything runs."""
    gates = workspace.root / "gates.toml"
    workspace.configure(gates=str(gates))
    text = gates.read_text()
    gates.write_text(text.replace(_gate(CORRECT), f"expected = {ROWS}\nallowed = 0"))
    done = workspace.run(*WHOLE)
    assert done.returncode == 6 and "correct_rows (bs 8, match), correct_rows (bs 16, match)" in done.stderr
    assert f"found {CORRECT} of {ROWS} (99.38 %), required at least {ROWS} of {ROWS}" in done.stdout
    assert "verdict: failed - this is no acceptance: " in done.stdout
    gates.write_text(text.replace("near_tie_margin", "near_ties"))
    said = workspace.fail(2, *WHOLE, "--force")
    assert f"{gates}: [defaults]: Object contains unknown field `near_ties`" in said


def test_a_missing_cell_is_a_failed_gate(workspace: Workspace) -> None:
    job = _report(workspace, "report_job.json")
    job["cells"] = [cell for cell in job["cells"] if cell["batch_size"] == 8]
    path = workspace.root / RESULTS / "report_job.json"
    path.write_text(json.dumps(job))
    # Heavy, and only needed here.
    from deberta.stages.report import assess

    report = assess.assess(assess.read_job(path), workspace.root)
    settings = {"checkpoint": "x", "config": "x", "tokenizer": "x", "dataset": "MNLI", "labels": None}
    result = conclusion.document(path.parent, Plan(profiles.load("demo", {"demo": settings}), "cpu"), report)
    with pytest.raises(GateError, match=r"^a gate failed: complete \(evaluation, bs 16, match\)"):
        conclusion.check(result)
    assert "bs 16: match " in conclusion.text(result)  # its performance run is there


def test_killed_and_started_again(workspace: Workspace) -> None:
    """Cells that were finished are not measured again; a limited run is marked everywhere, and no result."""
    before = workspace.files()
    limited = ("acceptance", "--backend", "cpu", "--version", "match", "--loops", "2", "--bs", "8,16", "--limit", "24")
    running = workspace.start(*limited)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("[infer bs=16 match first 24 rows] running: "):
            os.kill(running.pid, signal.SIGKILL)
            break
    running.communicate(timeout=helpers.TIMEOUT)
    said = workspace.succeed(*limited)
    assert steps_that_ran(said) == [
        *("infer bs=16 match first 24 rows", "postprocess bs=16 match first 24 rows"),  # perf's log has more loops
        *("assess first 24 rows", "render first 24 rows"),
    ]
    assert "[acceptance] 3 of 4: accuracy bs=16 match\n" in said  # no pace yet: the first two were there
    assert "/24, first 24 rows only; match " in said
    assert "limited to the first 24 rows; 2 loops of a performance run" in said and "verdict: checked" in said
    assert "not judged: correct_rows (bs 8, match; bs 16, match): limited to the first 24 rows" in said
    new = workspace.files() - before
    assert {f"{RESULTS}/report_limit24.{kind}" for kind in ("json", "md", "html")} <= new
    assert all("_limit24" in name for name in new if "/perf_" not in name)
    report = _report(workspace, "report_limit24.json")
    assert (report["body"]["limit"], report["measured"]["loops"]) == (24, 2)


def test_a_dry_run_touches_nothing(workspace: Workspace) -> None:
    before = workspace.files()
    said = workspace.succeed(*WHOLE, "--dry")
    assert workspace.files() == before
    modules = re.findall(r"deberta\.stages\.\w+\.(\w+)", said)
    assert modules == [
        *("check_data", "pytorch_reference", "export_onnx"),
        *(("compile_cpu", "preprocess", "run_cpu", "postprocess", "run_cpu") * 2),
        *("assess", "render"),
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--bs", "8,x"), 2, "--bs 'x'"),
        (("--bs", "8,"), 2, "--bs ''"),
        (("--loops", "1"), 2, "--loops '1'"),
        (("--version", "train"), 2, "--version 'train'"),
        (("--profile", "mnli"), 3, "models/mnli/pytorch.model-073631.bin"),
    ],
)
def test_refused(workspace: Workspace, arguments: tuple[str, ...], code: int, says: str) -> None:
    """Before anything runs, and all that is missing at once."""
    before = workspace.files()
    said = workspace.fail(code, "acceptance", "--backend", "cpu", *arguments)
    assert says in said and workspace.files() == before
    assert code == 2 or "data/mnli/MNLI/dev_mismatched.tsv" in said
