"""Length buckets as a user runs them: the padded run's counts and labels on either backend, and nothing mixed up."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deberta.core import contract, files, records
from deberta.stages.data import row_order
from tests import fake_cann
from tests import pipeline_helpers as helpers
from tests.pipeline_helpers import Workspace, steps_that_ran

PADDED = ("evaluate", "--bs", "4", "--version", "match")
LENGTHS = "32,64,128"  # rows of 27 to 81 tokens: 1, 6 and 3 of them
BUCKETED = (*PADDED, "--buckets", LENGTHS)
AT = "at 3 lengths"
PERF = ("perf", "--bs", "4", "--loops", "3", "--buckets", LENGTHS)
ASCEND = ("--backend", "ascend")
STEPS = (
    *("token-counts match", "export-onnx any length", "build-om bs=4 any length", f"preprocess bs=4 match {AT}"),
    *(f"infer bs=4 match {AT}", "postprocess bs=4 match"),
)


@pytest.fixture(name="cann", scope="module")
def _cann(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_cann.install(tmp_path_factory.mktemp("Ascend"), python=sys.executable)


@pytest.fixture(name="finished", scope="module")
def _finished(cann: Path, evaluated: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the padded and then the bucketed evaluation on both backends; tests copy it."""
    workspace = evaluated.copy(tmp_path_factory.mktemp("finished") / "workspace")
    workspace.configure(cann=str(cann / "ascend-toolkit"), msame=str(cann / fake_cann.MSAME))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{(cann / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}")
        for backend in contract.BACKENDS:
            results = workspace.root / "results/tiny" / backend
            workspace.succeed(*PADDED, "--buckets", "256", "--backend", backend)
            for kind in ("txt", "json"):
                (results / f"eval_bs4_match.{kind}").rename(results / f"padded.{kind}")
            workspace.succeed(*BUCKETED, "--backend", backend)
    return workspace


@pytest.fixture(name="workspace")
def _workspace(finished: Workspace, cann: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("PATH", f"{(cann / fake_cann.NPU_SMI).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("INVOKE_BACKEND", "cpu")
    return finished.copy(tmp_path / "copy")


def _logits(workspace: Workspace, backend: str, lengths: tuple[int, ...]) -> np.ndarray:
    """[10, 3] in the tsv's order; no lengths: the padded run's."""
    results, logits = workspace.root / "results/tiny" / backend, np.zeros((12, 3), "<f4")
    for length in lengths or (0,):
        name = f"outputs_bs4_s{length}_om" if length else "outputs_bs4_om"
        [folder] = (path for path in (results / name / "match").iterdir() if path.is_dir())
        bins = workspace.root / "data/tiny" / f"pre_mnli_bs4_s{length}" / "match"
        rows = row_order.read(bins).order if length else ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9))
        for index, placed in enumerate(rows):
            values = np.fromfile(folder / contract.output_file(index), "<f4").reshape(4, 3)
            logits[list(placed)] = values[: len(placed)]
    return logits[:10]


def _data_steps(lengths: int) -> list[str]:
    at = f"at {lengths} length{'s' * (lengths > 1)}"
    return [f"preprocess bs=4 match {at}", f"infer bs=4 match {at}", "postprocess bs=4 match"]


@pytest.mark.parametrize("backend", contract.BACKENDS)
def test_buckets_give_what_padding_gives(workspace: Workspace, backend: str) -> None:
    padded, bucketed = _logits(workspace, backend, ()), _logits(workspace, backend, (32, 64, 128))
    assert (padded.argmax(axis=1) == bucketed.argmax(axis=1)).all()
    assert np.abs(padded - bucketed).max() < 1e-5
    results = workspace.root / "results/tiny" / backend
    text = (results / "eval_bs4_match.txt").read_text()
    assert (results / "padded.txt").read_text() == text and "eval_samples = 10" in text
    counts = [json.loads((results / f"{name}.json").read_text()) for name in ("padded", "eval_bs4_match")]
    for name in ("correct", "rows", "genres", "confusion", "labels_predicted"):
        assert counts[0][name] == counts[1][name]
    assert counts[1]["buckets"] == {"32": 1, "64": 6, "128": 3} and "buckets" not in counts[0]
    said = workspace.succeed(*BUCKETED, "--backend", backend)
    assert steps_that_ran(said) == [] and f"accuracy match bs=4 on {backend}: " in said


def test_models_of_either_backend(workspace: Workspace) -> None:
    """On cpu one for all lengths; on ascend an ONNX and an .om for each, none at 256 but the padded run's own."""
    models = {name for name in workspace.files() if name.startswith("models/") and not name.endswith(".record.json")}
    made = {name.removeprefix("models/tiny/") for name in models} - {"pytorch.model-tiny.bin", "model_config.json"}
    assert made - {"spm.model"} == {
        *("dynamic.onnx", "dynamic_s32.onnx", "dynamic_s64.onnx", "dynamic_s128.onnx"),
        *(f"ascend/deberta_bs4{end}.om" for end in ("", "_s32", "_s64", "_s128")),
        *("cpu/dynamic_lengths.onnx", "cpu/deberta_bs4_lengths.xml", "cpu/deberta_bs4_lengths.bin"),
        *("cpu/deberta_bs4.xml", "cpu/deberta_bs4.bin"),
    }
    record = records.read(workspace.root / "results/tiny/cpu/outputs_bs4_s32_om/match.record.json")
    assert record is not None and len(record.subjects) == 3
    assert set(record.summary["lengths"]) == {"32", "64", "128"}


def test_256_is_a_length_too(workspace: Workspace) -> None:
    """The padded run's model, and never its bins or outputs."""
    for backend in contract.BACKENDS:
        before = {name: (workspace.root / name).read_bytes() for name in workspace.files() if "bs4_om/" in name}
        said = workspace.succeed(*PADDED, "--buckets", "32,256", "--backend", backend)
        assert "build-om bs=4" not in "".join(steps_that_ran(said)) and "export" not in "".join(steps_that_ran(said))
        assert np.abs(_logits(workspace, backend, (32, 256)) - _logits(workspace, backend, ())).max() < 1e-5
        assert all((workspace.root / name).read_bytes() == content for name, content in before.items())


def test_auto_says_what_it_took_and_another_set_is_never_mixed_in(workspace: Workspace) -> None:
    said = workspace.succeed(*PADDED, "--buckets", "auto")
    assert "buckets: 88 (auto; rows 10); 1056 tokens to run for 540, padded 3072" in said
    assert steps_that_ran(said) == _data_steps(1)
    said = workspace.succeed(*PADDED, "--buckets", "64,128,256")
    assert "buckets: 64,128 (rows 7, 3); no row needs 256" in said and steps_that_ran(said) == _data_steps(2)
    said = workspace.fail(5, *("postprocess", *BUCKETED[1:]))  # its folders of 64 and 128 hold other rows now
    assert "the outputs of 32,64,128 are not of the present inputs (preprocess bs=4 match at 3 lengths: " in said
    assert "Run: invoke evaluate --bs 4 --version match --buckets 32,64,128 --profile tiny" in said
    # The bins come out as they were, so their outputs, which lie beside the other run's, are still theirs.
    assert steps_that_ran(workspace.succeed(*BUCKETED)) == [STEPS[3], STEPS[5]]
    workspace.succeed(*BUCKETED, *ASCEND)
    said = workspace.succeed(*BUCKETED, *ASCEND)  # the same bins again: nothing there is out of date
    assert steps_that_ran(said) == []


@pytest.mark.parametrize("backend", contract.BACKENDS)
def test_performance_stands_apart_from_the_padded_one(workspace: Workspace, backend: str) -> None:
    said = workspace.succeed(*PERF, "--backend", backend)
    results = workspace.root / "results/tiny" / backend
    measured = json.loads((results / "perf_bs4_match_buckets.json").read_text())
    total = sum(one["batches"] * one["average_ms"] for one in measured["buckets"].values())
    assert measured["fps"] == pytest.approx(10 * 1000 / total) and measured["rows"] == 10
    assert [one["loops"] for one in measured["buckets"].values()] == [3, 3, 3]
    assert f"buckets 32,64,128: {measured['fps']:.3f} fps over 10 rows" in said and "times the padded" in said
    for name in ("msame_bs4_match.txt", *(f"msame_bs4_s{length}_match.txt" for length in (32, 64, 128))):
        assert (results / name).read_text().count("Inference time: ") == 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((*PADDED, "--buckets", "64,32"), 2, "the lengths do not increase. Give increasing lengths like"),
        ((*PADDED, "--buckets", "32,x"), 2, "'x' is not a whole number"),
        (("preprocess", "--buckets", "32,512"), 2, "512 is not within 4 to 256"),
        ((*PADDED, "--buckets", "32,64"), 2, "the longest row of match has 81 tokens, and rows are not cut"),
        (("perf", "--bs", "4", "--loops", "3", "--buckets", "32,64"), 2, "the longest row of match has 81 tokens"),
        (("build-om", "--buckets", "auto", *ASCEND), 2, "build-om has none. Give the lengths"),
        (("postprocess", *BUCKETED[1:], "--outputs", "results"), 2, "--outputs names one folder"),
        (("postprocess", *PADDED[1:], "--buckets", "48,128"), 3, "infer --bs 4 --version match --buckets 48,128 --pro"),
    ],
)
def test_bad_values(workspace: Workspace, arguments: tuple[str, ...], code: int, says: str) -> None:
    before = workspace.files()
    assert says in workspace.fail(code, *arguments)
    assert workspace.files() == before


@pytest.mark.parametrize("backend", contract.BACKENDS)
def test_a_lost_output_is_made_again(workspace: Workspace, backend: str) -> None:
    """Whatever lies between a finished run and its evaluation is noticed."""
    [output] = (workspace.root / f"results/tiny/{backend}/outputs_bs4_s128_om/match").glob("*/input_0_output_0.bin")
    output.unlink()
    assert "outputs_bs4_s128_om" in workspace.fail(5, *("postprocess", *BUCKETED[1:]), "--backend", backend)
    again = {"cpu": [f"infer bs=4 match {AT}"], "ascend": ["infer bs=4 s=128 match"]}[backend]
    assert steps_that_ran(workspace.succeed(*BUCKETED, "--backend", backend))[:1] == again
    (workspace.root / "data/tiny/pre_mnli_bs4_s64/match/order.json").unlink()
    assert steps_that_ran(workspace.succeed(*BUCKETED, "--backend", backend))[:1] == [f"preprocess bs=4 match {AT}"]


def test_a_limited_run_shares_no_file_with_a_whole_one(workspace: Workspace) -> None:
    before = workspace.files()
    said = workspace.succeed(*BUCKETED, "--limit", "3")
    assert "buckets: 32,64 (rows 1, 2); no row needs 128" in said and "(only the first 3 rows: no result)" in said
    new = workspace.files() - before
    assert new and all("_limit3" in name for name in new)


def test_preprocess_of_both_versions(workspace: Workspace) -> None:
    said = workspace.succeed("preprocess", "--bs", "2", "--buckets", LENGTHS)
    assert [step for step in steps_that_ran(said) if step.startswith("preprocess")] == [
        f"preprocess bs=2 match {AT}",
        "preprocess bs=2 mismatch at 2 lengths",  # none of its rows is short
    ]
    workspace.data("mismatch").unlink()
    said = workspace.succeed("preprocess", "--bs", "2", "--buckets", LENGTHS)
    assert "dev_mismatched.tsv is missing, so mismatch is left out" in said and steps_that_ran(said) == []


def test_clean_removes_every_length(workspace: Workspace) -> None:
    workspace.succeed("clean", "--profile", "tiny")
    for kind, backend in itertools.product(("txt", "json"), contract.BACKENDS):
        (workspace.root / f"results/tiny/{backend}/padded.{kind}").unlink()  # put there by the fixture
    models = {f"models/tiny/{name}" for name in ("pytorch.model-tiny.bin", "model_config.json", "spm.model")}
    assert workspace.files() == models | {f"data/tiny/MNLI/dev_{version}ed.tsv" for version in helpers.ROWS}


@pytest.mark.parametrize("backend", contract.BACKENDS)
def test_dry_prints_commands_that_can_be_pasted(workspace: Workspace, backend: str) -> None:
    workspace.succeed("clean", "--profile", "tiny")
    before = workspace.files()
    said = workspace.succeed(*PADDED, "--buckets", "auto", "--backend", backend, "--dry")
    assert "# --buckets auto: the lengths are known once data/tiny/tokens_match.json is there" in said
    said = workspace.succeed(*BUCKETED, "--backend", backend, "--dry")
    assert workspace.files() == before
    script = "\n".join(line for line in said.splitlines() if not line.startswith(("executor: ", "soc_version: ")))
    bare = {"PATH": os.environ["PATH"], "HOME": str(workspace.root)}
    pasted = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, env=bare, check=False)
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    evaluation = workspace.root / f"results/tiny/{backend}/eval_bs4_match.txt"
    assert "eval_samples = 10" in evaluation.read_text()
    if backend == "ascend":
        compiling = [words for words in map(shlex.split, said.splitlines()) if words[0] == "atc"]
        assert [words[5] for words in compiling] == [
            f"--input_shape=input_ids:4,{length};input_mask:4,{length}" for length in (32, 64, 128)
        ]


@pytest.mark.parametrize("step", STEPS)
def test_interrupted_in_each_step(workspace: Workspace, step: str) -> None:
    workspace.succeed("clean", "--profile", "tiny")
    if STEPS.index(step) > 2:
        workspace.succeed("build-om", "--bs", "4", "--buckets", LENGTHS)
    running = workspace.start(*BUCKETED)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith(f"[{step}] running: "):
            running.send_signal(signal.SIGINT)
            break
    out, err = running.communicate(timeout=helpers.TIMEOUT)
    assert running.returncode == 130, out + err
    assert "Traceback" not in out + err and "interrupted" in err
    assert not [name for name in workspace.files() if files.TEMPORARY in name]
    done = STEPS[: STEPS.index(step)]
    assert len([name for name in workspace.files() if name.endswith(".record.json")]) == len(done)
    assert steps_that_ran(workspace.succeed(*BUCKETED)) == list(STEPS[len(done) :])


def test_ais_bench_runs_them_too(workspace: Workspace, tmp_path: Path) -> None:
    cann = fake_cann.install(tmp_path / "Ascend", python=sys.executable)
    fake_cann.add_ais_bench(cann, python=sys.executable)
    workspace.configure(cann=str(cann / "ascend-toolkit"))
    runner = (*ASCEND, "--runner", "ais_bench")
    before = (workspace.root / "results/tiny/ascend/eval_bs4_match.txt").read_text()
    said = workspace.succeed(*BUCKETED, *runner)
    assert [step for step in steps_that_ran(said) if step.startswith("infer")] == [
        f"infer bs=4 s={length} match" for length in (32, 64, 128)
    ]
    assert (workspace.root / "results/tiny/ascend/eval_bs4_match.txt").read_text() == before
    said = workspace.succeed(*PERF, *runner)
    assert "perf bs=4 match on ascend (ais_bench), buckets 32,64,128: " in said
    measured = json.loads((workspace.root / "results/tiny/ascend/perf_bs4_match_buckets.json").read_text())
    assert all(one["average_ms"] > 0 for one in measured["buckets"].values())
    assert (workspace.root / "results/tiny/ascend/ais_bench_bs4_s64_match.json").exists()
