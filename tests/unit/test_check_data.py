"""A look at the data: every fault that it is there for is found, with its lines, and sound data have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Sequence

import pytest

from deberta.core import contract, errors
from deberta.host.plan import checks, profiles
from deberta.host.plan.plan import Plan
from deberta.stages.data import check_data, encoding, preprocess
from tests.mnli_helpers import REPOSITORY, SPM_MODEL, dev_line, write_dev

SIZES = {
    **{"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8},
    "pos_att_type": [],
}
ROWS = 120
GENRES = ("travel", "fiction")
PROFILE = {"checkpoint": "m.bin", "config": "c.json", "tokenizer": "spm.model", "dataset": "MNLI", "rows": {"match": 9}}

Change = Callable[[list[list[str]]], object]
PAIR_ID, PREMISE, HYPOTHESIS, LABEL = 2, 8, 9, -1  # cells of a line


def _write(path: Path, change: Change = lambda _: None, rows: int = ROWS) -> Path:
    """Sound data, changed: row i has the label i % 3, texts and a pairID of its own."""
    lines = [
        dev_line(f"A boat. {'a ' * (i % 12)}", "A ship. " * (i // 12 + 1), GENRES[i % 2], contract.LABELS[i % 3])
        for i in range(rows)
    ]
    cells = [line.split("\t") for line in lines]
    for i, row in enumerate(cells):
        row[PAIR_ID] = f"{i}n"
    change(cells)
    return write_dev(path, ["\t".join(row) for row in cells])


def _main(data: Path, output: Path, *more: object, tokenizer: Path = SPM_MODEL, pieces: int = 30000) -> int:
    """The stage in this process; returns its exit code."""
    config = data.with_name("model_config.json")
    config.write_text(json.dumps({**SIZES, "vocab_size": pieces}), encoding="utf-8")
    given = ["--data", data, "--tokenizer", tokenizer, "--config", config, "--version", "match", "--output", output]
    return errors.run_stage(check_data.main, [str(argument) for argument in [*given, *more]])


def _look(data: Path, *more: object) -> dict[str, Any]:
    output = data.with_name("sentinel_match.json")
    assert _main(data, output, *more) == 0
    found = json.loads(output.read_bytes())
    assert isinstance(found, dict)
    return found


def test_sound_data_have_no_problem_and_every_count_is_there(tmp_path: Path) -> None:
    data = _write(tmp_path / "dev.tsv")
    found = _look(data, "--rows", ROWS, "--summary", tmp_path / "summary.json")
    counted = preprocess.preprocess(encoding.EncodedRows(data, SPM_MODEL), 8, {256: tmp_path / "bins"})
    assert found == {
        "format": 1,
        "version": "match",
        "rows": ROWS,
        "limit": 0,
        "columns": 16,
        "expected_rows": ROWS,
        "labels": {"contradiction": 40, "neutral": 40, "entailment": 40},
        "genres": {"fiction": 60, "travel": 60},
        "tokens": {"total": counted["tokens"], "unknown": 0, "unknown_rate": 0.0},
        "truncated_rows": 0,
        "truncated_lines": [],
        "duplicate_pair_ids": {"count": 0, "lines": []},
        "duplicate_pairs": 0,
        "empty_sentences": 0,
        "problems": [],
        "notes": [],
    }
    summary = json.loads((tmp_path / "summary.json").read_bytes())
    assert summary.pop("peak_rss_bytes") > 0 and summary == found


def _same_id(rows: list[list[str]]) -> None:
    rows[5][PAIR_ID] = rows[9][PAIR_ID] = rows[2][PAIR_ID]


def _unknown(rows: list[list[str]]) -> None:
    rows[3][PREMISE] = "☃ " * 30
    rows[8][HYPOTHESIS] = "☃ " * 10


def _both(rows: list[list[str]]) -> None:
    _same_id(rows)
    _unknown(rows)


def _two_labels(rows: list[list[str]]) -> None:
    for row in rows:
        row[LABEL] = row[LABEL].replace("neutral", "entailment")


def _empty(rows: list[list[str]]) -> None:
    rows[0][PREMISE], rows[7][HYPOTHESIS] = "", " \u00a0"


@pytest.mark.parametrize(
    ("change", "more", "problem"),
    [
        (_same_id, [], ("duplicate_pair_ids", "2 rows with the pairID of an earlier row", [7, 11])),
        (_unknown, [], ("unknown_tokens", "40 of ", [5, 10])),
        (_two_labels, [], ("labels", "none of 120 rows is labelled neutral", [])),
        (_empty, [], ("empty_sentences", "2 rows of 120 with an empty sentence (allowed 1%)", [2, 9])),
        (lambda _: None, ["--rows", "9815"], ("rows", "the tsv has 120 rows, expected 9815", [])),
    ],
)
def test_a_fault_is_a_problem_that_says_where(
    tmp_path: Path,
    change: Change,
    more: Sequence[str],
    problem: tuple[str, str, list[int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    [found] = _look(_write(tmp_path / "dev.tsv", change), *more)["problems"]
    check, what, lines = problem
    assert (found["check"], found["lines"]) == (check, lines) and found["what"].startswith(what)
    said = capsys.readouterr().out
    assert f"problem: {found['what']}" in said and "; 1 problem: " in said


def test_all_problems_are_found_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_of_them(rows: list[list[str]]) -> None:
        for change in (_same_id, _unknown, _two_labels, _empty):
            change(rows)

    monkeypatch.setattr(encoding, "_CHUNK_ROWS", 4)  # encoded at a time, which no line may show
    found = _look(_write(tmp_path / "dev.tsv", all_of_them), "--rows", 119)
    checks = [problem["check"] for problem in found["problems"]]
    assert checks == ["rows", "duplicate_pair_ids", "unknown_tokens", "labels", "empty_sentences"]
    assert found["duplicate_pair_ids"] == {"count": 2, "lines": [[4, 7], [4, 11]]}
    assert found["problems"][2]["lines"] == [5, 10]
    assert found["tokens"]["unknown_rate"] == round(40 / found["tokens"]["total"], 6) > check_data.UNKNOWN_SHARE


def test_what_is_no_fault_is_a_note(tmp_path: Path) -> None:
    def odd(rows: list[list[str]]) -> None:
        for row in rows[:90]:
            row[LABEL] = "entailment"
        for i in (4, 6):
            rows[i][PREMISE : HYPOTHESIS + 1] = rows[1][PREMISE : HYPOTHESIS + 1]
        rows[6][LABEL] = "neutral"
        rows[10][PREMISE], rows[11][PREMISE] = "", "☃"
        for i in range(20, 27):
            rows[i][HYPOTHESIS] = "A ship. " * (100 + i)

    found = _look(_write(tmp_path / "dev.tsv", odd))
    assert found["problems"] == []
    assert found["tokens"]["unknown"] == 1
    assert found["truncated_rows"] == 7 and found["truncated_lines"] == [22, 23, 24, 25, 26]
    assert found["duplicate_pairs"] == 2 and found["empty_sentences"] == 1
    assert found["notes"] == [
        "7 rows cut at 256 tokens: lines 22, 23, 24, 25, 26 and 2 more",
        "2 rows with both texts of an earlier row, 1 of them with another label: lines 6, 8",
        "1 row with an empty sentence: line 12",
        "labels are far from balance: contradiction 8.3%, neutral 9.2%, entailment 82.5%",
    ]


def test_a_limited_look_is_at_the_first_rows_and_still_counts_the_file(tmp_path: Path) -> None:
    data = _write(tmp_path / "dev.tsv", _both)
    found = _look(data, "--limit", 3, "--rows", ROWS)
    assert (found["rows"], found["limit"], found["expected_rows"]) == (3, 3, ROWS)
    assert sum(found["labels"].values()) == 3 and found["problems"] == []
    [problem] = _look(data, "--limit", 3, "--rows", ROWS + 1)["problems"]
    assert problem["check"] == "rows"


def test_a_few_rows_need_not_have_every_label(tmp_path: Path) -> None:
    found = _look(_write(tmp_path / "dev.tsv", _two_labels, rows=99))
    assert found["problems"] == found["notes"] == [] and found["expected_rows"] is None


@pytest.mark.parametrize(("version", "name"), contract.DEV_FILES.items())
def test_the_demos_data_are_sound_and_its_json_is_the_same_anywhere(tmp_path: Path, version: str, name: str) -> None:
    demo = REPOSITORY / "models/demo"
    made = []
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        data = tmp_path / folder / f"{folder}.tsv"
        data.write_bytes((REPOSITORY / "data/demo/MNLI" / name).read_bytes())
        more = ["--rows", 1200, "--version", version]
        assert _main(data, data.with_suffix(".json"), *more, tokenizer=demo / "spm.model") == 0
        made.append(data.with_suffix(".json").read_bytes())
    assert made[0] == made[1]
    found = json.loads(made[0])
    assert (found["version"], found["rows"], found["problems"]) == (version, 1200, [])
    assert found["duplicate_pair_ids"]["count"] == found["empty_sentences"] == 0


@pytest.mark.parametrize(
    ("change", "more", "code", "says"),
    [
        (lambda rows: rows[4].pop(), {}, 5, "line 6: 15 columns, expected 16"),
        (lambda rows: rows[4].__setitem__(LABEL, "-"), {}, 5, "unknown label '-'"),
        (lambda _: None, {"pieces": 20}, 5, "the model's vocabulary has 20 entries"),
        (lambda _: None, {"tokenizer": Path("/nowhere/spm.model")}, 3, "/nowhere/spm.model is missing"),
    ],
)
def test_what_cannot_be_looked_at_leaves_nothing(
    tmp_path: Path, change: Change, more: dict[str, Any], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "sentinel_match.json"
    assert _main(_write(tmp_path / "dev.tsv", change), output, **more) == code
    assert says in capsys.readouterr().err
    assert not output.exists()


def test_preprocess_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = _write(tmp_path / "dev.tsv", _both)
    summary = tmp_path / "summary.json"
    given = ["--data", data, "--tokenizer", SPM_MODEL, "--bs", 8, "--output", tmp_path / "bins", "--summary", summary]
    assert errors.run_stage(preprocess.main, [str(argument) for argument in given]) == 0
    assert " 40 of them [UNK]; 2 rows with the pairID of an earlier row\n" in capsys.readouterr().out
    assert json.loads(summary.read_bytes())["duplicate_pair_ids"] == 2


def test_the_planned_step_is_what_the_stage_takes() -> None:
    step = checks.check_data(Plan(profiles.load("own", {"own": PROFILE}), "ascend", limit=4), "match")
    assert (step.name, step.title) == ("check-data_match_limit4", "check-data match first 4 rows")
    assert " ".join(step.arguments) == (
        "--data data/own/MNLI/dev_matched.tsv --tokenizer models/own/spm.model --config models/own/c.json"
        " --output results/own/data_check_limit4_match.json --version match --limit 4 --rows 9"
    )
    assert [str(path) for path in step.outputs] == ["results/own/data_check_limit4_match.json"]
    assert {str(needed.path) for needed in step.inputs} == {
        *("data/own/MNLI/dev_matched.tsv", "models/own/spm.model", "models/own/c.json")
    }
