"""predict: a label for texts without one, what it refuses, and that nothing is left but what was asked for."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest

from deberta.core.errors import ConfigError, DataError, MissingError, run_stage
from deberta.host.plan.plan import Plan
from deberta.host.prediction import prediction
from deberta.host.prediction.prediction import PredictionRequest
from deberta.host.program.command_line import with_file
from deberta.stages.data import convert_pairs
from tests.pipeline_helpers import Workspace
from tests.verify_helpers import ARTIFACTS, PROFILE, TSV, accepted, copy_tree, read, write

PREDICT = ("predict", "--backend", "cpu", "--bs", "8")
REFUSED: dict[str, tuple[bytes, str]] = {
    "no columns.csv": (b"text,other\na,b\n", "no column for premise .*; no column for hypothesis .*: text, other"),
    "no text.jsonl": (b'{"premise": "a", "hypothesis": " "}\n{"premise": 3}\n', "2 bad rows: entry 1: .* is empty; "),
    "no rows.tsv": (b"sentence1\tsentence2\n", "has no rows"),
    "latin.tsv": (b"sentence1\tsentence2\na\t\xe9\n", "is not UTF-8: byte 0xe9"),
    "long.tsv": (b"premise\thypothesis\na\t" + 2**20 * b"b" + b"\n", "line 2: it has more than 1048576 bytes"),
}


@pytest.fixture(name="workspace", scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The demo's model, evaluated at batch size 8."""
    made, root = accepted(tmp_path_factory), tmp_path_factory.mktemp("predict")
    write(root / "settings.yaml", {**read(made.root / "settings.yaml"), "workspace": str(root)})
    return Workspace(copy_tree(made, root))


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    arguments = ["--data", str(tmp_path / name), "--output", str(tmp_path / "rows"), "--most", "2"]
    assert run_stage(convert_pairs.main, arguments) == DataError.exit_code
    assert re.search(message, capsys.readouterr().err)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("data", "pair", "output", "error"),
    [
        ("", ("", ""), "", ConfigError),
        ("rows.tsv", ("a", "b"), "", ConfigError),
        ("", ("a", " "), "", ConfigError),
        ("", ("a", "\udcff"), "", ConfigError),
        ("nowhere.tsv", ("", ""), "", MissingError),
        ("rows.tsv", ("", ""), "out.txt", ConfigError),
        ("rows.tsv", ("", ""), "nowhere/out.csv", MissingError),
        ("rows.tsv", ("", ""), "there.csv", DataError),
    ],
)
def test_what_was_typed_is_refused_first(
    tmp_path: Path, plan: Plan, data: str, pair: tuple[str, str], output: str, error: type[Exception]
) -> None:
    for name in ("rows.tsv", "there.csv"):
        (tmp_path / name).touch()
    places = [tmp_path / name if name else None for name in (data, output)]
    with pytest.raises(error):
        prediction.check(PredictionRequest(plan, (), places[0], pair, "", 0, (), places[1]), force=False)


@pytest.fixture(name="plan")
def _plan() -> Plan:
    from deberta.host.plan import profiles

    return Plan(profiles.load("small", {"small": PROFILE}), "cpu")


def test_labels_are_those_of_the_evaluation(workspace: Workspace, tmp_path: Path) -> None:
    """A file of GLUE's test form, in two parts; the same rows with their labels were evaluated."""
    lines = (workspace.root / TSV).read_text(encoding="utf-8").splitlines()
    test = tmp_path / "test_matched.tsv"
    test.write_text("".join("\t".join(line.split("\t")[:10]) + "\n" for line in lines), encoding="utf-8")
    before = workspace.files()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deberta.host.prediction.steps.PART_ROWS", 40)
        said = workspace.succeed(*PREDICT, "--file", str(test), "--output", str(tmp_path / "out.jsonl"))
    assert "64 rows (contradiction" in said
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    path = workspace.root / ARTIFACTS.predictions(8, "match")
    evaluated = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(row["row"], row["line"], row["label"]) for row in rows] == [
        (row["row"], row["line"], row["label"]) for row in evaluated
    ]
    assert all(abs(row["margin"] - known["margin"]) < 1e-3 for row, known in zip(rows, evaluated, strict=True))
    assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-5 for row in rows)
    assert workspace.files() == before


def test_a_pair_is_one_document_and_a_table_has_its_columns(workspace: Workspace, tmp_path: Path) -> None:
    long = 300 * "and a door "
    done = workspace.run(*PREDICT, "--premise", long, "--hypothesis", "A\tdoor.", "--json")
    assert "1 row with more than 256 tokens: the rest was cut off" in done.stderr
    document = json.loads(done.stdout)
    [row] = document["predictions"]
    assert (document["rows"], document["truncated_rows"], row["hypothesis"]) == (1, 1, "A door.")
    table = tmp_path / "rows.csv"
    table.write_text('a,b\n"A boat.",A ship.\n', encoding="utf-8")
    out = tmp_path / "out.csv"
    columns = ("--columns", "premise=a,hypothesis=b", "--output", str(out))
    workspace.succeed(*PREDICT, "--file", str(table), *columns)
    with open(out, encoding="utf-8", newline="") as file:
        [written] = csv.DictReader(file)
    assert (written["line"], written["premise"], written["hypothesis"]) == ("2", "A boat.", "A ship.")
    assert "is there, and is never replaced" in workspace.fail(5, *PREDICT, "--file", str(table), *columns)
    assert "predict" in workspace.succeed(*PREDICT, "--file", str(table), "--dry")
    assert not [name for name in workspace.files() if "predict.tmp" in name or "scratch/predict" in name]


def test_an_interrupted_prediction_leaves_nothing(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    before = workspace.files()
    (tmp_path / "rows.tsv").write_text("premise\thypothesis\na\tb\n")
    monkeypatch.setattr(prediction, "_part", interrupted)
    with pytest.raises(KeyboardInterrupt):
        workspace.run(*PREDICT, "--file", str(tmp_path / "rows.tsv"), "--output", str(tmp_path / "out.csv"))
    assert workspace.files() == before and os.listdir(tmp_path) == ["rows.tsv"]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("predict rows.tsv --json", "predict --file rows.tsv --json"),
        ("predict --bs 8 --json rows.tsv", "predict --bs 8 --json --file rows.tsv"),
        ("predict --premise a --hypothesis b", "predict --premise a --hypothesis b"),
        ("evaluate rows.tsv", "evaluate rows.tsv"),
    ],
)
def test_a_file_needs_no_option(typed: str, read: str) -> None:
    assert with_file(typed.split()) == read.split()
