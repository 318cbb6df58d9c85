"""PyTorch's logits: the tsv's rows in order whatever order they ran in, the contract's columns, or an error."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from deberta.core import contract, errors, mnli
from deberta.core.machine import effective_cpus
from deberta.host.plan import checks, profiles
from deberta.host.plan.plan import Plan
from deberta.stages.data import preprocess
from deberta.stages.data.encoding import EncodedRows
from deberta.stages.inference import pytorch_reference
from deberta.stages.model import checkpoint, config
from tests import model_helpers, pipeline_helpers
from tests.mnli_helpers import REPOSITORY, SPM_MODEL, dev_line, stage_command, stage_environment, write_dev
from tests.pipeline_helpers import Workspace

Logits = npt.NDArray[np.float32]


@pytest.fixture(name="workspace", scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tiny model and ten rows, the last of them cut."""
    made = pipeline_helpers.make(tmp_path_factory.mktemp("workspace"))
    lines = made.data("match").read_text(encoding="utf-8").splitlines()[1:-1]
    write_dev(made.data("match"), [*lines, dev_line("A boat", "a ship, a sea " * 100)])
    return made


def _arguments(workspace: Workspace, output: Path) -> list[str]:
    models = workspace.checkpoint.parent
    given = ["--checkpoint", workspace.checkpoint, "--config", models / "model_config.json"]
    given += ["--data", workspace.data("match"), "--tokenizer", models / "spm.model", "--output", output]
    return [*map(str, given), "--labels", ",".join(contract.LABELS)]


def _main(workspace: Workspace, output: Path, *more: object) -> int:
    """The stage in this process; of an option that is given twice, the second counts. Returns its exit code."""
    return errors.run_stage(pytorch_reference.main, [*_arguments(workspace, output), *map(str, more)])


def _run(workspace: Workspace, output: Path, *more: object) -> Logits:
    assert _main(workspace, output, *more) == 0
    found: Logits = np.load(output, allow_pickle=False)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    return found


def _largest(difference: Logits) -> float:
    return float(np.abs(difference).max())


@pytest.mark.parametrize("variant", ["v3", "v2 convolution"])
def test_logits_are_those_of_padded_rows_and_of_rows_alone(variant: str) -> None:
    """Against transformers' model on rows filled to one length; every length several times, in no order."""
    changes = model_helpers.VARIANTS[variant]
    theirs = model_helpers.reference(**changes)
    random = np.random.default_rng(3)
    lengths = random.permutation([1, 2, 3, 17, 17, 17, 40, 40, 64, *range(4, 34)]).tolist()
    rows = [random.integers(1, 300, length, dtype=np.int32) for length in lengths]
    ids, mask = np.zeros((2, len(rows), 64), np.int32)
    for row, own in enumerate(rows):
        ids[row, : len(own)], mask[row, : len(own)] = own, 1
    ours = model_helpers.ours(theirs, **changes)
    together = pytorch_reference.run(ours, rows, "rows", Path("dev.tsv"), batch_tokens=60)
    model_helpers.assert_same(together, model_helpers.logits(theirs, torch.from_numpy(ids), torch.from_numpy(mask)))
    alone = pytorch_reference.run(ours, rows, "rows", Path("dev.tsv"), batch_tokens=1)
    assert _largest(alone - together) <= 1e-5
    assert _largest(together[0] - together[1]) > 1e-3  # rows do differ by more than that


def test_batches_hold_every_row_once_and_no_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 257, 2000).tolist()
    batches = pytorch_reference.plan(lengths, 1000)
    assert sorted(row for batch in batches for row in batch) == list(range(2000))
    assert all(len({lengths[row] for row in batch}) == 1 for batch in batches)
    assert all(sum(lengths[row] for row in batch) <= 1000 for batch in batches)
    assert [lengths[batch[0]] for batch in batches] == sorted((lengths[b[0]] for b in batches), reverse=True)
    assert pytorch_reference.plan([256, 256], 1) == [[0], [1]]


def test_ids_are_those_of_the_bins(workspace: Workspace, tmp_path: Path) -> None:
    rows, facts = pytorch_reference.read_ids(EncodedRows(workspace.data("match"), SPM_MODEL))
    counted = preprocess.preprocess(EncodedRows(workspace.data("match"), SPM_MODEL), 10, {256: tmp_path / "bins"})
    ids, mask = (
        np.fromfile(tmp_path / "bins" / name / "input_0.bin", "<i4").reshape(10, 256) for name in contract.INPUTS
    )
    assert [row.tolist() for row in rows] == [own[m == 1].tolist() for own, m in zip(ids, mask, strict=True)]
    assert len(rows[9]) == 256 and facts["truncated_rows"] == counted["truncated_rows"] == 1


def test_the_file_its_columns_and_the_summary(workspace: Workspace, tmp_path: Path) -> None:
    whole = _run(workspace, tmp_path / "a.npy", "--rows", 10, "--summary", tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_bytes())
    assert whole.shape == (10, 3) and sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "summary.json"]
    assert summary["rows"] == 10 and summary["labels"] == list(contract.LABELS) == summary["checkpoint_labels"]
    assert (summary["torch"], summary["threads"]) == (torch.__version__, effective_cpus())
    assert len(summary["tokenizer_sha256"]) == 64 and summary["tokens"] > 256 and summary["peak_rss_bytes"] > 0
    # A checkpoint whose first output is entailment, then contradiction, then neutral.
    turned = _run(workspace, tmp_path / "b.npy", "--labels", "entailment,contradiction,neutral")
    assert _largest(turned - whole[:, [1, 2, 0]]) <= 1e-5
    first = _run(workspace, tmp_path / "c.npy", "--rows", 10, "--limit", 4, "--summary", tmp_path / "summary.json")
    assert first.shape == (4, 3) and _largest(first - whole[:4]) <= 1e-5
    assert json.loads((tmp_path / "summary.json").read_bytes())["limit"] == 4


def test_the_demos_checkpoint_is_as_good_as_its_gate_says(tmp_path: Path) -> None:
    """1189 of 1200 rows, which other order of columns or rows could not have."""
    models, data = REPOSITORY / "models/demo", REPOSITORY / "data/demo/MNLI/dev_matched.tsv"
    given = ["--checkpoint", models / "pytorch.model-demo.bin", "--config", models / "model_config.json"]
    given += ["--data", data, "--tokenizer", models / "spm.model", "--output", tmp_path / "demo.npy"]
    given += ["--labels", ",".join(contract.LABELS), "--rows", 1200]
    assert errors.run_stage(pytorch_reference.main, [str(argument) for argument in given]) == 0
    gold = [row.label for row in mnli.rows(data)]
    correct = int((np.load(tmp_path / "demo.npy").argmax(axis=1) == gold).sum())
    assert 1186 <= correct <= 1192


def _damaged(workspace: Workspace, folder: Path) -> tuple[Path, int]:
    """A checkpoint of finite weights that are too large for one token, and the row that is to be named."""
    rows = [row.tolist() for row in pytorch_reference.read_ids(EncodedRows(workspace.data("match"), SPM_MODEL))[0]]
    having = {token: [row for row, ids in enumerate(rows) if token in ids] for ids in rows for token in ids}
    token, named = next(item for item in having.items() if len(item[1]) == 1 and item[1] != [0])
    values = config.read(workspace.checkpoint.parent / "model_config.json")
    model = checkpoint.load(workspace.checkpoint, values, contract.LABELS).model
    with torch.no_grad():
        model.deberta.embeddings.word_embeddings.weight[token] = 3e38
    checkpoint.save(folder / "damaged.bin", model)
    return folder / "damaged.bin", named[0]


def test_a_row_that_is_not_finite_is_named_and_the_older_file_stays(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "reference_match.npy"
    _run(workspace, output)
    before = output.read_bytes()
    damaged, named = _damaged(workspace, tmp_path)
    capsys.readouterr()
    assert _main(workspace, output, "--checkpoint", damaged) == 5
    message = capsys.readouterr().err
    assert f"row {named} (dev_matched.tsv line {named + 2})" in message and "invoke fetch" in message
    assert output.read_bytes() == before and [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (("--rows", "9815"), 5, "has 10 rows, expected 9815"),
        (("--limit", "-1"), 2, "--limit '-1'"),
        (("--labels", "yes,no,maybe"), 2, "label order is yes, no, maybe"),
        (("--checkpoint", "/nowhere/model.bin"), 3, "/nowhere/model.bin is missing"),
        (("--data", "/nowhere/dev.tsv"), 3, "invoke fetch"),
        (("--tokenizer", "/nowhere/spm.model"), 3, "/nowhere/spm.model is missing"),
    ],
)
def test_refusals_leave_nothing(
    workspace: Workspace, tmp_path: Path, more: tuple[str, str], code: int, says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert _main(workspace, tmp_path / "a.npy", *more) == code
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"vocab_size": 20}, 5, "line 2), but the model's vocabulary has 20 entries"),
        ({"max_position_embeddings": 200, "position_buckets": 64}, 2, "max_position_embeddings is 200"),
    ],
)
def test_a_config_that_does_not_fit_the_rows_is_refused(
    workspace: Workspace, tmp_path: Path, change: dict[str, int], code: int, says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    values = json.loads((workspace.checkpoint.parent / "model_config.json").read_bytes())
    changed = tmp_path / "model_config.json"
    changed.write_text(json.dumps({**values, **change}), encoding="utf-8")
    assert _main(workspace, tmp_path / "a.npy", "--config", changed) == code
    assert says in capsys.readouterr().err
    assert not (tmp_path / "a.npy").exists()


def test_an_interrupt_leaves_nothing_and_progress_is_said(workspace: Workspace, tmp_path: Path) -> None:
    data = write_dev(tmp_path / "dev.tsv", [dev_line(f"the boat {i}", "a letter " * (i % 90)) for i in range(6000)])
    output = tmp_path / "results" / "reference_match.npy"
    command = stage_command("pytorch-reference", *_arguments(workspace, output), "--data", data)
    process = subprocess.Popen(
        [*command, "--summary", str(tmp_path / "summary.json")],
        env={**stage_environment(), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = next((line for line in process.stderr if line.startswith("[progress] reference")), "")
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=60)
    assert " tokens " in said and re.search(r" (s|min) left", said), complained
    assert process.returncode == errors.INTERRUPTED and "Traceback" not in complained
    assert list(output.parent.iterdir()) == [] and not (tmp_path / "summary.json").exists()


def test_the_planned_step_is_what_the_stage_takes() -> None:
    profile = {"checkpoint": "m.bin", "config": "c.json", "tokenizer": "spm.model", "dataset": "MNLI"}
    own = profiles.load("own", {"own": {**profile, "labels": ["neutral", "entailment", "contradiction"]}})
    step = checks.reference(Plan(own, "ascend"), "mismatch")
    assert (step.name, step.title, step.module) == (
        "reference_mismatch",
        "reference mismatch",
        "deberta.stages.inference.pytorch_reference",
    )
    assert " ".join(step.arguments) == (
        "--checkpoint models/own/m.bin --config models/own/c.json"
        " --data data/own/MNLI/dev_mismatched.tsv --tokenizer models/own/spm.model"
        " --output results/own/reference_mismatch.npy --labels neutral,entailment,contradiction"
    )
    assert [str(path) for path in step.outputs] == ["results/own/reference_mismatch.npy"]
    assert {str(needed.path) for needed in step.inputs} == {
        *("models/own/m.bin", "models/own/c.json", "models/own/spm.model", "data/own/MNLI/dev_mismatched.tsv")
    }
    cpu, limited = (checks.reference(Plan(own, "cpu", limit), "match") for limit in (0, 3))
    assert cpu.outputs != limited.outputs and cpu.name != limited.name and "--labels" in cpu.arguments
    unlabelled = profiles.load("own", {"own": profile})
    assert "--labels" not in checks.reference(Plan(unlabelled, "cpu"), "match").arguments
