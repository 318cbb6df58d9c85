from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks import batching, bench, figures, floor, guide
from deberta.core.errors import ConfigError, DataError, GateError, MissingError, StageError
from deberta.host.workflows import development
from deberta.stages.compile import export_onnx
from deberta.stages.model import config
from tests import model_helpers as helpers
from tests.mnli_helpers import REPOSITORY

# An engine in place of the real ones: logits by name, a note of each turn; what `broken` says happens to one of them.
STAND_IN = """
import json, os, sys, time
job = json.loads(sys.stdin.readline())
name, broken = job["engine"], json.loads(os.environ["BENCH_BROKEN"])
if broken.get(name) == "load":
    print(json.dumps({"error": "RuntimeError: no compiler"}), flush=True)
    sys.exit(1)
print(json.dumps({"load_s": 0.1, "batches": 1, "tokens": 256}), flush=True)
turns = 0
for line in sys.stdin:
    if line.strip() == "end":
        print(json.dumps({"peak_rss_bytes": 2**30}), flush=True)
        break
    turns += 1
    with open(os.environ["BENCH_TURNS"], "a") as log:
        log.write(name + "\\n")
    if broken.get(name) == "die" and turns == 3:
        print("Killed by something", file=sys.stderr)
        os._exit(9)
    if broken.get(name) == "hang":
        time.sleep(600)
    wrong = broken.get(name) == "wrong"
    seconds = {"ours": 0.1, "eager": 0.2, "floor": 0.08}.get(name, 0.3) * turns
    rows = [[0.0, 1.0, 0.0] if wrong and row else [1.0, 0.0, 0.5] for row in range(len(job["lengths"]))]
    print(json.dumps({"seconds": seconds, "logits": None if name.startswith("floor") else rows}), flush=True)
"""
PREPARED: dict[str, Any] = {
    "vocabulary": 300,
    "parameters": 1000,
    "weights": "none",
    "ours": {"nodes": {}},
    "guide": {"nodes": {}, "folded": {}},
    "floor": {"1": {"products": 1, "operations": 2}},
}


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: dict[str, str], *options: str) -> dict[str, Any]:
    """Run bench's main with stand-ins for models and engines; returns its report, also where it raised."""
    (tmp_path / "engine.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_TURNS", str(tmp_path / "turns"))
    monkeypatch.setenv("BENCH_BROKEN", json.dumps(broken))
    monkeypatch.setattr(bench, "WORKER", (sys.executable, str(tmp_path / "engine.py")))
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    monkeypatch.setattr(bench, "prepare", lambda *_: (PREPARED, {}, {}))
    common = ["--output", "out/bench.json", "--markdown", "page.md", "--size", "tiny", "--bs", "1", "--repeats", "3"]
    bench.main([*common, *options])
    content: dict[str, Any] = json.loads(Path("out/bench.json").read_text(encoding="utf-8"))
    return content


def test_engines_take_turns_and_ratios_are_of_the_same_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(tmp_path, monkeypatch, {}, "--engines", "ours,eager,floor")
    turns = (tmp_path / "turns").read_text().split()
    assert turns[:3] == ["ours", "eager", "floor"]  # warming up
    assert turns[3:] == ["ours", "eager", "floor", "eager", "floor", "ours", "floor", "ours", "eager"]
    results = report["cases"][0]["results"]
    assert results["ours"]["times_s"] == pytest.approx([0.2, 0.3, 0.4])  # the first is left out
    assert results["eager"]["ratio"] == pytest.approx({"median": 2, "q1": 2, "q3": 2})
    assert report["cases"][0]["headlines"] == pytest.approx({"eager": 2, "ours_by_floor": 1.25})
    assert "| 256 tokens, batch size 1 | 2.00 | 1.25 |" in (tmp_path / "page.md").read_text()


def test_peers_that_fail_are_reported_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = run(tmp_path, monkeypatch, {"compile": "load", "guide": "die"})
    results = report["cases"][0]["results"]
    assert results["compile"] == {"error": "RuntimeError: no compiler"}
    assert results["guide"] == {"error": "it ended with exit code 9: Killed by something"}
    assert "ratio" in results["hf-export"]
    page = (tmp_path / "page.md").read_text()
    assert "| transformers, torch.compile | **failed** | | | | | | RuntimeError: no compiler | |" in page
    assert "| the guide's form on ONNX Runtime | **failed** |" in page


def test_an_engine_that_computes_something_else_is_flagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tmp_path, monkeypatch, {"hf-export": "wrong"})
    result = report["cases"][0]["results"]["hf-export"]
    assert (result["differs"], result["other_labels"], result["max_abs_difference"]) == (True, bench.FIXED_ROWS - 1, 1)
    assert "hf-export" not in report["cases"][0]["headlines"]
    assert "warning: hf-export computes something else (256 tokens, batch size 1)" in capsys.readouterr().out
    assert "ONNX Runtime: **computes something else**" in (tmp_path / "page.md").read_text()


def test_other_precisions_are_shown_apart_and_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = "ours,eager,ours-bf16,ours-int8,ort-int8"
    report = run(tmp_path, monkeypatch, {"ours-int8": "wrong", "ours-bf16": "load"}, "--engines", engines)
    result = report["cases"][0]["results"]["ours-int8"]
    assert "differs" not in result
    assert report["cases"][0]["headlines"] == pytest.approx({"eager": 2})
    assert "computes something else" not in capsys.readouterr().out
    exact, apart = (tmp_path / "page.md").read_text().split("## What was compared")[0].split("## In other precisions")
    assert "| deberta-ascend, cpu backend, int8 |" not in exact
    assert "dynamic int8" not in exact
    assert "bf16 | **failed** |" in exact
    rows = bench.FIXED_ROWS
    assert f"cpu backend, int8 | 56.2 | 3.00 (3.00-3.00) | 1.0e+00 | {rows - 1} of {rows} |" in apart
    assert f"dynamic int8 | 56.2 | 3.00 (3.00-3.00) | 0.0e+00 | 0 of {rows} |" in apart


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("wrong", GateError, "ours computes something else"),
        ("load", StageError, "ours could not be measured .*no compiler"),
        ("die", StageError, "ours failed .*exit code 9"),
    ],
)
def test_ours_must_be_right(
    how: str, error: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(error, match=says):
        run(tmp_path, monkeypatch, {"ours": how}, "--engines", "ours")
    assert list((tmp_path / ".cache/bench").iterdir()) == []


def test_logits_that_are_not_finite_differ() -> None:
    found = figures.compare([[1.0, math.nan, 0.0]], [[1.0, 0.5, 0.0]])
    assert found == {"max_abs_difference": None, "other_labels": 1, "differs": True}
    assert not figures.compare([[1.00009, 0.5, 0.0]], [[1.0, 0.5, 0.0]])["differs"]
    assert figures.compare([[1.00011, 0.5, 0.0]], [[1.0, 0.5, 0.0]])["differs"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--engines", "ours,mine"], "'mine' is not one of"),
        (["--engines", "eager"], "lacks ours"),
        (["--size", "huge"], "'huge' is not one of: full, tiny"),
        (["--bs", "1,x"], "'x' is not a whole number"),
        (["--plot", "plot.png"], "must end in .svg"),
        (["--data", "dev.tsv"], "--data needs --tokenizer"),
    ],
)
def test_bad_options(options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=says):
        run(tmp_path, monkeypatch, {}, *options)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_nothing_is_left(sent: signal.Signals, tmp_path: Path) -> None:
    """One engine never answers; after Ctrl-C, or a signal to end, no process and no file is left."""
    (tmp_path / "engine.py").write_text(STAND_IN, encoding="utf-8")
    script = (
        "import signal, sys; from benchmarks import bench; from deberta.core.errors import run_stage;"
        "signal.signal(signal.SIGTERM, bench._stop);"
        f"bench.WORKER = (sys.executable, {str(tmp_path / 'engine.py')!r});"
        f"bench.prepare = lambda *_: ({PREPARED!r}, {{}}, {{}});"
        "sys.exit(run_stage(bench.main, ['--output', 'bench.json', '--size', 'tiny', '--engines', 'ours,guide']))"
    )
    turns = tmp_path / "turns"
    settings = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "BENCH_TURNS": str(turns),
        "BENCH_BROKEN": json.dumps({"guide": "hang"}),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=settings, start_new_session=True, stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while "guide" not in (turns.read_text() if turns.exists() else "") and time.monotonic() < until:
        time.sleep(0.1)
    assert len(_processes_with(str(turns))) >= 3  # it, ours and the guide's form
    process.send_signal(sent)
    assert process.wait(timeout=30) == 130
    assert _processes_with(str(turns)) == []
    assert list((tmp_path / ".cache/bench").iterdir()) == []
    assert not (tmp_path / "bench.json").exists()


def _processes_with(text: str) -> list[str]:
    """Processes whose environment has this text."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and text.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:
            continue  # it ended, or is not ours
    return found


def test_an_installation_without_the_benchmark_says_so(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"benchmarks is missing: .* Run it in a clone of the repository"):
        development.bench(tmp_path, tmp_path, lambda: Path("python"), [], dry=True)


def test_what_a_killed_run_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, others = tmp_path / f".cache/bench/run-{ended.pid}-x", tmp_path / f".cache/bench/run-{os.getppid()}-y"
    for folder in (left, others):
        folder.mkdir(parents=True)
    run(tmp_path, monkeypatch, {}, "--engines", "ours")
    assert (left.exists(), others.exists()) == (False, True)


def test_the_sample_is_spread_like_the_whole() -> None:
    lengths = [int(length) for length in np.random.default_rng(3).gamma(4, 10, 5000).clip(4, 256)]
    picked = batching.sample(lengths, 64)
    assert abs(np.mean(picked) - np.mean(lengths)) < 0.5
    assert picked != sorted(picked)
    assert sorted(batching.sample([5, 7, 9], 3)) == [5, 7, 9]


def by_bucket(lengths: list[int], batch_size: int) -> list[batching.RowBatch]:
    return batching.by_bucket(lengths, batch_size, batching.choose(lengths, batch_size))


@pytest.mark.parametrize("fill", [batching.as_they_come, batching.by_length, by_bucket])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_every_row_is_in_one_batch_that_holds_it(fill: Any, batch_size: int) -> None:
    lengths = batching.sample(range(4, 257), 61)
    batches = fill(lengths, batch_size)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(61))
    assert all(batch.length >= lengths[row] for batch in batches for row in batch.rows)
    ids, mask = batching.make(lengths, 300)
    last = batches[-1]
    assert batching.fill(ids, last, batch_size).shape == (batch_size, last.length)
    assert batching.fill(mask, last, batch_size).sum() == sum(lengths[row] for row in last.rows)


def test_lengths_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("38\n300 4\n")
    assert batching.read_lengths(path) == [38, 256, 4]
    for text in ("", "38\n-5\n", "3"):
        path.write_text(text)
        with pytest.raises(DataError, match="takes whole numbers from 4"):
            batching.read_lengths(path)


def test_the_guides_form_is_what_it_says(tmp_path: Path) -> None:
    made = helpers.reference()
    batch = helpers.batch(2, 256)
    expected = helpers.logits(made, *batch)
    plain = guide._Logits(helpers.reference())
    nodes = guide.export(made, tmp_path / "guide.onnx")
    assert (nodes["GatherElements"], nodes["ReduceMax"]) == (6, 3)
    session = onnxruntime.InferenceSession(str(tmp_path / "guide.onnx"), providers=["CPUExecutionProvider"])
    names = ("input_ids", "input_mask")
    helpers.assert_same(session.run(None, dict(zip(names, (part.numpy() for part in batch), strict=True)))[0], expected)
    _trace(plain, tmp_path / "plain.onnx")
    with pytest.raises(StageError, match="0 Where with -inf, not 3"):
        guide.check(tmp_path / "plain.onnx", layers=3)


def _trace(model: Any, path: Path) -> None:
    zeros = torch.zeros(1, 256, dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (zeros, zeros), str(path), dynamo=False, opset_version=12)


@pytest.mark.parametrize("length", [256, 32])
def test_the_floor_has_our_matrix_products(length: int, tmp_path: Path) -> None:
    export_onnx.export(helpers.ours(helpers.reference()), tmp_path / "ours.onnx", length)
    model = onnx.load(str(tmp_path / "ours.onnx"))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, str(tmp_path / "ours.onnx"))
    tiny = config.from_dict(helpers.TINY)
    floor.write(tiny, 4, length, tmp_path / "floor.onnx")
    assert floor.products(tmp_path / "floor.onnx") == floor.products(tmp_path / "ours.onnx")
    floor.write(tiny, 4, 0, tmp_path / "any.onnx")
    given = floor.inputs(4, length, tiny.hidden_size)
    corners = []
    for name in ("floor.onnx", "any.onnx"):
        session = onnxruntime.InferenceSession(str(tmp_path / name), providers=["CPUExecutionProvider"])
        corners.append(session.run(None, given)[0])
    assert corners[0].shape == corners[1].shape  # their tables are drawn at different lengths
    if length == floor.LONGEST:
        assert np.array_equal(*corners)


def test_a_real_run_at_the_tiny_size(tmp_path: Path) -> None:
    """Real engines; the environment of the peers is missing."""
    (tmp_path / "lengths.txt").write_text("12 30 33 60")
    options = ["--size", "tiny", "--bs", "2", "--repeats", "1", "--threads", "1"]
    options += ["--engines", "ours,eager,hf-export,guide,floor,ours-int8,ort-int8"]
    options += ["--lengths", "lengths.txt", "--output", "bench.json", "--markdown", "page.md", "--plot", "plot.svg"]
    command = [sys.executable, "-m", "benchmarks.bench", *options]
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "bench.json").read_text())
    assert "requirements-bench.lock" in report["absent"]["hf-export"]
    assert "hf-export" not in report["engines"]
    assert "**not measured**" in (tmp_path / "page.md").read_text()
    assert "no plot: .venv-bench/bin/python, with matplotlib, is missing" in done.stdout
    assert [case["title"] for case in report["cases"]] == ["256 tokens, batch size 2", "Real lengths, batch size 2"]
    for case in report["cases"]:
        assert sorted(case["results"]) == ["eager", "floor", "guide", "ort-int8", "ours", "ours-int8"]
        assert case["results"]["ours"]["precision"] == "f32"
        assert all(not result.get("differs") for result in case["results"].values())
        assert all(2**25 < result["peak_rss_bytes"] < 2**30 for result in case["results"].values())
    assert report["cases"][1]["results"]["guide"]["tokens"] == 4 * 256
    assert report["sample"]["buckets"] == {"2": [64]}
    assert report["cases"][1]["results"]["ours"]["tokens"] == 4 * 64
    assert list((tmp_path / ".cache/bench").iterdir()) == []
