"""The whole chain as a user runs it, on the local executor, with a tiny model of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deberta.core import files, records
from deberta.host.run import session
from deberta.stages.report.tables import rounded
from tests import pipeline_helpers as helpers
from tests.mnli_helpers import small_disk
from tests.pipeline_helpers import Workspace, steps_that_ran

EVALUATE = ("evaluate", "--bs", "4", "--version", "match")
OUTPUTS = {  # of each step, with their records
    "export-onnx": "models/tiny/dynamic.onnx*",
    "build-om bs=4": "models/tiny/cpu",
    "preprocess bs=4 match": "data/tiny/pre_mnli_bs4",
    "infer bs=4 match": "results/tiny/cpu/outputs_bs4_om",
    "postprocess bs=4 match": "results/tiny/cpu/*_bs4_match.*",
}
STEPS = tuple(OUTPUTS)


@pytest.fixture(name="workspace")
def _workspace(evaluated: Workspace, tmp_path: Path) -> Workspace:
    """One evaluation has run, and everything is up to date."""
    return evaluated.copy(tmp_path / "copy")


@pytest.fixture(name="fresh")
def _fresh(tiny: Workspace, tmp_path: Path) -> Workspace:
    """A workspace that holds what the user brings and nothing else."""
    return tiny.copy(tmp_path / "copy")


def test_evaluate_counts_what_the_model_predicted(workspace: Workspace) -> None:
    results = workspace.root / "results/tiny/cpu"
    record = records.read(results / "outputs_bs4_om/match.record.json")
    assert record is not None
    [folder] = record.subjects
    outputs = [np.fromfile(workspace.root / folder / f"input_{i}_output_0.bin", "<f4") for i in range(3)]
    predicted = np.concatenate(outputs).reshape(-1, 3)[:10].argmax(axis=1)
    gold = np.arange(10) % 3
    expected = {
        "accuracy": np.mean(predicted == gold),
        "accuracy_fiction": np.mean((predicted == gold)[::2]),
        "accuracy_travel": np.mean((predicted == gold)[1::2]),
        "eval_samples": 10,
    }
    text = "".join(f"{key} = {value}\n" for key, value in expected.items())
    assert (results / "eval_bs4_match.txt").read_text() == text
    assert json.loads((results / "eval_bs4_match.json").read_text())["correct"] == (predicted == gold).sum()


def test_nothing_runs_twice_and_the_one_reason_is_said(workspace: Workspace) -> None:
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == []

    lines = workspace.data("match").read_bytes().replace(b"A ship.", b"A whale.", 1)
    workspace.data("match").write_bytes(lines)
    said = workspace.succeed(*EVALUATE)
    assert steps_that_ran(said) == ["preprocess bs=4 match", "infer bs=4 match", "postprocess bs=4 match"]
    assert "[preprocess bs=4 match] running: data/tiny/MNLI/dev_matched.tsv changed" in said
    assert "[infer bs=4 match] running: data/tiny/pre_mnli_bs4/match changed" in said

    [output, *_] = sorted((workspace.root / "results/tiny/cpu/outputs_bs4_om/match").glob("*/*.bin"))
    output.write_bytes(bytes(48))
    said = workspace.succeed(*EVALUATE)
    assert steps_that_ran(said)[0] == "infer bs=4 match" and "was changed after it was made" in said

    assert steps_that_ran(workspace.succeed(*EVALUATE, "--force")) == list(STEPS)


def test_records_are_in_toto_statements_of_what_is_there(workspace: Workspace) -> None:
    found = sorted(path for path in workspace.root.rglob("*.record.json"))
    assert len(found) == len(STEPS)
    for path in found:
        record = records.read(path)
        assert record is not None and record.predicate_type == "https://slsa.dev/provenance/v1"
        for name, digest in {**record.subjects, **record.dependencies}.items():
            there = workspace.root / name
            expected = {"dirHash": files.folder_digest(there)} if there.is_dir() else {"sha256": files.sha256_of(there)}
            assert digest == expected
    bins = records.read(workspace.root / "data/tiny/pre_mnli_bs4/match.record.json")
    assert bins is not None
    counted = bins.summary
    assert (counted["rows"], counted["batches"], counted["padding_rows"]) == (10, 3, 2)


def test_performance_run_and_report(workspace: Workspace) -> None:
    said = workspace.succeed("perf", "--bs", "4", "--loops", "5")
    log = workspace.root / "results/tiny/cpu/msame_bs4_match.txt"
    average = float(log.read_text().split("without first time: ")[1].split(" ms")[0])
    assert log.read_text().count("Inference time: ") == 5
    assert f"{4 * 1000 / average:.3f} fps" in said and "p99" in said
    assert "(5 loops only, the guide's run has more, average" in said
    kept = log.read_bytes()
    said = workspace.succeed("perf", "--bs", "4", "--loops", "3", "-v")
    assert "up to date: " in said and "(5 loops, more than 3 and measured before: --force measures again" in said
    assert log.read_bytes() == kept
    table = workspace.succeed("report", "-v")
    report = (workspace.root / "results/tiny/cpu/report.md").read_text()
    assert report in table
    correct = json.loads((workspace.root / "results/tiny/cpu/eval_bs4_match.json").read_text())["correct"]
    assert f"({correct}/10) on cpu" in report and f"{rounded(4 * 1000 / average)} on cpu, 5 loops only" in report
    assert "msame_bs4_match.txt of 5 loops is kept" in workspace.succeed("perf", "--bs", "4", "--loops", "3", "--force")
    [aside] = log.parent.glob("msame_bs4_match.txt.before-*")
    assert aside.read_bytes() == kept and log.read_text().count("Inference time: ") == 3
    (workspace.root / "results/tiny/cpu/eval_bs4_match.json").write_text("{}")
    assert "eval_bs4_match.json is not what" in workspace.fail(5, "report")


def test_a_limited_run_shares_no_file_with_a_whole_one(workspace: Workspace) -> None:
    before = workspace.files()
    said = workspace.succeed(*EVALUATE, "--limit", "5")
    assert "/5 (only the first 5 rows: no result)" in said
    assert "[infer bs=4 match first 5 rows] running: " in said
    new = workspace.files() - before
    assert new and all("_limit5" in name for name in new)
    assert "(5/" not in workspace.succeed("report") and "/5)" not in workspace.succeed("report")


def test_two_folders_of_outputs_are_never_guessed_between(workspace: Workspace) -> None:
    """The guide's own outputs have no record: the only folder is taken, of two none."""
    parent = workspace.root / "results/tiny/cpu/outputs_bs4_om"
    [made] = (parent / "match").iterdir()
    (parent / "match.record.json").unlink()
    workspace.succeed("postprocess", "--bs", "4", "--version", "match", "--force")
    shutil.copytree(made, parent / "match" / "20221122_9_5_7_12")
    assert "2 folders" in workspace.fail(2, "postprocess", "--bs", "4", "--version", "match")
    named = f"results/tiny/cpu/outputs_bs4_om/match/{made.name}"
    workspace.succeed("postprocess", "--bs", "4", "--version", "match", "--outputs", named)
    nan = np.full(12, np.nan, "<f4")
    nan.tofile(made / "input_1_output_0.bin")
    failed = workspace.fail(5, "postprocess", "--bs", "4", "--version", "match", "--outputs", named)
    assert "4" in failed and "input_1_output_0.bin" in failed
    (made / "input_1_output_0.bin").unlink()
    assert "input_1_output_0.bin" in workspace.fail(
        5, "postprocess", "--bs", "4", "--version", "match", "--outputs", named
    )


def test_outdated_outputs_are_not_counted_as_if_they_were_new(workspace: Workspace) -> None:
    header, *rows = workspace.data("match").read_bytes().splitlines(keepends=True)
    workspace.data("match").write_bytes(b"".join([header, *reversed(rows)]))
    said = workspace.fail(5, "postprocess", "--bs", "4", "--version", "match")
    assert "preprocess bs=4 match: data/tiny/MNLI/dev_matched.tsv changed" in said
    assert "Run: invoke evaluate --bs 4 --version match --buckets 256 --profile tiny" in said


def test_report_tells_the_present_model_from_others(workspace: Workspace) -> None:
    """Another model's figures, and outputs from elsewhere, never stand as this backend's."""
    workspace.succeed("perf", "--bs", "4", "--loops", "2")
    lines = workspace.succeed("evaluate", "--bs", "4,2").splitlines()
    table = [line.split() for line in lines[-5:]]
    assert table[0] == ["bs", "version", "precision", "accuracy", "right"]
    assert [row[:3] for row in table[1:]] == [[bs, name, "fp32"] for bs in "24" for name in ("match", "mismatch")]
    assert all(row[4] == "%" and row[5].endswith(rows) for row, rows in zip(table[1:], ("/10", "/7") * 2, strict=True))
    row = _table_row(workspace, 4)
    assert row.count("on cpu") == 3 and "on cpu" in _table_row(workspace, 2)
    config = workspace.checkpoint.with_name("model_config.json")
    config.write_text(config.read_text().replace('"position_buckets": 256', '"position_buckets": 254'))
    assert "misshapen" in workspace.fail(5, *EVALUATE)  # the embeddings' rows follow the buckets
    config.write_text(config.read_text().replace('"position_buckets": 254', '"position_buckets": 256'))
    config.write_text(
        config.read_text().replace('"layer_norm_eps": 1e-07', "").replace("{", '{"layer_norm_eps": 0.5, ', 1)
    )
    workspace.succeed(*EVALUATE)
    row = _table_row(workspace, 4)
    assert row.count("on cpu") == 1 and row.count("(outdated: another model)") == 2
    assert "(outdated: another model)" in _table_row(workspace, 2)

    [made] = (workspace.root / "results/tiny/cpu/outputs_bs4_om/match").iterdir()
    shutil.copytree(made, workspace.root / "from_a_310p")
    said = workspace.succeed("postprocess", "--bs", "4", "--version", "match", "--outputs", "from_a_310p")
    assert "accuracy match bs=4 of from_a_310p: " in said
    assert "/10) (user-supplied outputs: from_a_310p)" in _table_row(workspace, 4)


def _table_row(workspace: Workspace, batch_size: int) -> str:
    [row] = [line for line in workspace.succeed("report").splitlines() if f"| tiny bs{batch_size} |" in line]
    return row


def test_a_failed_run_leaves_the_one_before_in_force(workspace: Workspace) -> None:
    """A record goes only when a new one takes its place, so nothing of ours is ever taken for the user's."""
    checkpoint = workspace.checkpoint.read_bytes()
    workspace.checkpoint.write_bytes(checkpoint[:1000])
    before = workspace.files()
    assert "truncated" in workspace.fail(5, *EVALUATE)
    assert workspace.files() == before
    assert "Run: invoke evaluate" in workspace.fail(5, "postprocess", "--bs", "4", "--version", "match")
    workspace.checkpoint.write_bytes(checkpoint)
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == []
    workspace.succeed(*EVALUATE, "--force")
    assert len(list((workspace.root / "results/tiny/cpu/outputs_bs4_om/match").iterdir())) == 1


def test_a_stages_hint_is_a_command_that_can_be_run(workspace: Workspace) -> None:
    [bins] = (workspace.root / "data/tiny/pre_mnli_bs4").glob("match")
    record = workspace.root / "data/tiny/pre_mnli_bs4/match.record.json"
    (bins / "input_mask/input_1.bin").unlink()
    content = json.loads(record.read_text())
    content["subject"][0]["digest"]["dirHash"] = files.folder_digest(bins)  # as if it had always been so
    record.write_text(json.dumps(content))
    said = workspace.fail(5, *EVALUATE)
    command = said.strip().split("Run: invoke ")[1].split()
    assert command == [*("preprocess", "--bs", "4", "--version", "match", "--profile", "tiny", "--force")]
    workspace.succeed(*command)
    workspace.succeed(*EVALUATE)


def test_all_versions_are_checked_before_the_first_is_run(fresh: Workspace) -> None:
    fresh.data("mismatch").unlink()
    before = fresh.files()
    assert "dev_mismatched.tsv is missing" in fresh.fail(3, "evaluate", "--bs", "2,4")
    assert fresh.files() == before


def test_without_weights(workspace: Workspace) -> None:
    workspace.checkpoint.unlink()
    said = workspace.fail(3, "evaluate", "--version", "mismatch")
    assert "models/tiny/pytorch.model-tiny.bin is missing" in said and "invoke.yaml" in said
    mnli = workspace.fail(3, "evaluate", "--version", "mismatch", "--profile", "mnli")
    assert "models/mnli/pytorch.model-073631.bin" in mnli and "Run: invoke fetch --profile mnli" in mnli


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("evaluate", "--bs", "0", "--version", "match"), "--bs '0'"),
        (("evaluate", "--bs=-1", "--version", "match"), "--bs '-1'"),
        (("build-om", "--bs", "x"), "--bs 'x'"),
        (("evaluate", "--version", "foo"), "--version 'foo'"),
        (("infer",), "--version is needed"),
        (("evaluate", "--version", "match", "--limit", "0"), "--limit '0'"),
        (("perf", "--loops", "101"), "--loops '101'"),
        (("build-om", "--profile", "nobodys"), "no profile 'nobodys'"),
        (("build-om", "--backend", "tpu"), "--backend 'tpu'"),
    ],
)
def test_bad_values(workspace: Workspace, arguments: tuple[str, ...], says: str) -> None:
    before = workspace.files()
    assert says in workspace.fail(2, *arguments)
    assert workspace.files() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"index\tgenre\n0\tx\n", "no column named gold_label"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_bad_data_keeps_the_old_bins(workspace: Workspace, content: bytes, says: str) -> None:
    """And with them the right to be used again when the data are back."""
    good, before = workspace.data("match").read_bytes(), workspace.files()
    workspace.data("match").write_bytes(content)
    assert says in workspace.fail(5, *EVALUATE)
    assert workspace.files() == before
    workspace.data("match").write_bytes(good)
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == []


def test_a_row_count_that_the_profile_does_not_expect(workspace: Workspace) -> None:
    rows = workspace.data("match").read_bytes().splitlines(keepends=True)
    workspace.data("match").write_bytes(b"".join(rows[:-1]))
    assert "has 9 rows, expected 10" in workspace.fail(5, *EVALUATE)


def test_stale_bins_do_not_survive(workspace: Workspace) -> None:
    stale = workspace.root / "data/tiny/pre_mnli_bs4/match/input_ids/input_99.bin"
    stale.write_bytes(bytes(1024))
    workspace.succeed(*EVALUATE)
    assert not stale.exists()


def test_preprocess_without_a_version_names_the_missing_one(fresh: Workspace) -> None:
    fresh.data("mismatch").unlink()
    said = fresh.succeed("preprocess", "--bs", "2")
    assert "dev_mismatched.tsv is missing, so mismatch is left out" in said
    assert steps_that_ran(said) == ["preprocess bs=2 match"]
    fresh.data("match").unlink()
    assert "dev_matched.tsv and data/tiny/MNLI/dev_mismatched.tsv are missing" in fresh.fail(3, "preprocess")


def test_clean_leaves_what_the_user_brought(workspace: Workspace) -> None:
    foreign = workspace.root / "models/tiny/cpu/deberta_bs9.xml"
    foreign.write_text("the user's own")
    (workspace.root / "models/tiny/.dynamic.onnx.tmp-1").write_text("left by a killed run")
    before = workspace.files()
    workspace.succeed("clean", "--profile", "tiny", "--dry")
    assert workspace.files() == before
    workspace.succeed("clean", "--profile", "tiny")
    models = {f"models/tiny/{name}" for name in ("pytorch.model-tiny.bin", "model_config.json", "spm.model")}
    data = {f"data/tiny/MNLI/dev_{version}ed.tsv" for version in helpers.ROWS}
    assert workspace.files() == models | data | {"models/tiny/cpu/deberta_bs9.xml"}


def test_dry_prints_the_commands_and_touches_nothing(fresh: Workspace) -> None:
    """By the task's option and by invoke's own."""
    before = fresh.files()
    said = fresh.succeed(*EVALUATE, "--dry")
    assert fresh.succeed("--dry", *EVALUATE) == said and fresh.files() == before
    script = "\n".join(line for line in said.splitlines() if not line.startswith(("backend: ", "executor: ")))
    pasted = subprocess.run(["bash", "-e", "-c", script], capture_output=True, text=True, check=False)
    assert pasted.returncode == 0, pasted.stdout + pasted.stderr
    assert "eval_samples = 10" in (fresh.root / "results/tiny/cpu/eval_bs4_match.txt").read_text()


def test_a_second_invocation_is_refused_while_one_runs(workspace: Workspace) -> None:
    running = workspace.start("export-onnx", "--force")
    assert running.stderr is not None
    for line in running.stderr:
        if "] running: " in line:
            break
    assert "works in" in workspace.fail(4, *EVALUATE)
    assert running.communicate(timeout=helpers.TIMEOUT) is not None and running.returncode == 0


# What shows a step in the middle of its work; the others are over too soon, and stopped in their own stages' tests.
AT_WORK = {"export-onnx": "validating against PyTorch", "build-om bs=4": "verifying against ONNX Runtime"}


def _undo(workspace: Workspace, first: str) -> None:
    """Leave the workspace as it was before this step ran."""
    for pattern in list(OUTPUTS.values())[STEPS.index(first) :]:
        for path in workspace.root.glob(pattern):
            files.remove(path)


@pytest.mark.parametrize(
    ("step", "number"),
    [*((step, signal.SIGINT) for step in STEPS), ("export-onnx", signal.SIGTERM), ("build-om bs=4", signal.SIGHUP)],
)
def test_interrupted_in_each_step(workspace: Workspace, step: str, number: int) -> None:
    """Ctrl-C, kill or a closed terminal: 130, nothing half-written, what was finished is kept, and the same command
    finishes the rest.
    """
    _undo(workspace, step)
    running = workspace.start(*EVALUATE)
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith(f"[{step}] ") and AT_WORK.get(step, "running: ") in line:
            running.send_signal(number)
            break
    out, err = running.communicate(timeout=helpers.TIMEOUT)
    assert running.returncode == 130, out + err
    assert "Traceback" not in out + err and "interrupted" in err
    assert not [name for name in workspace.files() if files.TEMPORARY in name]
    done = STEPS[: STEPS.index(step)]
    assert len([name for name in workspace.files() if name.endswith(".record.json")]) == len(done)
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == list(STEPS[len(done) :])


@pytest.mark.parametrize(("spare", "stopped"), [(100, "export-onnx"), (700, "build-om bs=4")])
def test_full_disk(tiny: Workspace, tmp_path: Path, spare: int, stopped: str) -> None:
    """A disk with `spare` KiB left over from what the user brings: one line, and no file that looks tiny."""
    models = [tiny.checkpoint.with_name(name) for name in ("model_config.json", "spm.model")]
    brought = [tiny.checkpoint, *models, tiny.data("match")]
    with small_disk(tmp_path / "disk", sum(path.stat().st_size for path in brought) // 1024 + spare) as disk:
        workspace = Workspace(disk)
        for path in [*brought, tiny.root / "settings.yaml"]:
            there = disk / path.relative_to(tiny.root)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, there)
        workspace.configure(workspace=str(disk))
        assert "disk is full" in workspace.fail(4, *EVALUATE)
        left = {name for name in workspace.files() if "/logs/" not in name}
        assert not [name for name in left if files.TEMPORARY in name]
        records_left = len([name for name in left if name.endswith(".record.json")])
        assert records_left == STEPS.index(stopped)


def test_a_killed_run_leaves_nothing_that_looks_finished_and_no_process(workspace: Workspace) -> None:
    _undo(workspace, "build-om bs=4")
    running = workspace.start(*EVALUATE)
    assert running.stderr is not None
    stages: list[str] = []
    for line in running.stderr:
        if line.startswith("[build-om bs=4] ") and AT_WORK["build-om bs=4"] in line:
            stages = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            for stage in stages:
                os.kill(int(stage), signal.SIGSTOP)  # it would end by itself, at its next line if not before
            os.kill(running.pid, signal.SIGKILL)
            break
    running.communicate(timeout=helpers.TIMEOUT)
    deadline = time.monotonic() + 5
    while (left := [stage for stage in stages if _is_running(stage)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for stage in left:
        os.kill(int(stage), signal.SIGKILL)
    assert stages and not left
    assert steps_that_ran(workspace.succeed(*EVALUATE))[0] == "build-om bs=4"


def test_a_workspaces_folders_may_be_links(workspace: Workspace, tmp_path: Path) -> None:
    """To a larger disk, for example."""
    for kind in ("models", "data", "results"):
        shutil.move(workspace.root / kind, tmp_path / kind)
        (workspace.root / kind).symlink_to(tmp_path / kind)
    assert steps_that_ran(workspace.succeed(*EVALUATE)) == []
    workspace.succeed("report", "--backend", "cpu")
    assert "verified: " in workspace.succeed("verify", "--backend", "cpu")


def _is_running(process: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_what_outlives_a_killed_run_has_its_lock(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool's own process, for example, which the system does not end with the run."""
    monkeypatch.setattr(session, "LEFT_SECONDS", 0.1)
    with open(workspace.root / ".cache/lock", "w") as lock:
        lock.write("999999999")  # no process has this number
        lock.flush()
        hold = f"fcntl.flock({lock.fileno()}, fcntl.LOCK_EX); print('held', flush=True)"
        code = f"import fcntl, time; {hold}; time.sleep(60)"
        left = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, pass_fds=[lock.fileno()])
    assert left.stdout is not None and left.stdout.readline() == b"held\n"
    said = workspace.fail(4, *EVALUATE)
    left.kill()
    left.communicate()
    assert "a step of an earlier run (process 999999999, which was killed) still works in" in said
    workspace.succeed(*EVALUATE)
