"""Two reports side by side, on pairs whose difference is known, and on pairs that somebody made to break it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from deberta.core import files, schema
from deberta.core.contract import DEV_FILES, LABELS
from deberta.core.differences import NO_WORSE, UNKNOWN, WORSE, DiffJob, ReportDifference
from deberta.core.errors import DataError, MissingError, run_stage
from deberta.core.paths import Artifacts
from deberta.core.report import Report
from deberta.stages.diff import diff, sides, speed
from deberta.stages.report import canonical, intervals
from tests import report_helpers
from tests.diff_helpers import ARTIFACTS, compare, make_tree, roll, source
from tests.report_helpers import FOLDER

CHANGED = [row for row in range(0, 120) if row % 4 == 0]  # 30, all of them right in A


@pytest.fixture(name="first", scope="module")
def _first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("diff") / "first")


@pytest.fixture(name="worse", scope="module")
def _worse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tree(tmp_path_factory.mktemp("diff") / "worse", CHANGED)


def test_thirty_changed_labels_are_named(first: Path, worse: Path) -> None:
    result = compare(first, worse)
    rows = [row for row in result.changed_rows if row.version == "match"]
    assert result.changed_total == 30 and [row.version for row in result.changed_rows] == ["match"] * 30
    assert sorted(row.line - 2 for row in rows) == CHANGED
    assert all(row.premise == f"A boat {row.line - 2}." and row.hypothesis == "A ship." for row in rows)
    assert all(row.gold == row.a != row.b and row.batch_sizes == [1, 8] and row.margin_a > 0 for row in rows)
    assert [row.margin_a for row in rows] == sorted((row.margin_a for row in rows), reverse=True)
    by_version = {entry.version: entry for entry in result.accuracy if entry.batch_size_b == 8}
    test = by_version["match"].paired
    assert test is not None
    assert (test.rows, test.only_a_correct, test.only_b_correct, test.changed) == (120, 30, 0, 30)
    assert test.p_value == intervals.mcnemar(30, 0) < 1e-6
    assert by_version["match"].conclusion == "lower" and by_version["mismatch"].conclusion == "no difference"
    assert result.conclusion == WORSE
    assert (
        result.worse[0]
        == "accuracy of match, bs 1, fp32: of 120 rows A alone has 30 right, B alone 0, p below 0.000001"
    )


def test_two_runs_of_one_model_do_not_differ(first: Path, tmp_path: Path) -> None:
    result = compare(first, make_tree(tmp_path / "again", milliseconds=0.003))
    assert (result.conclusion, result.worse, result.not_compared) == (NO_WORSE, [], [])
    assert not result.changed_rows and not result.gates and result.gates_alike > 10
    conclusions = {entry.conclusion for entry in result.accuracy} | {entry.conclusion for entry in result.fps}
    assert conclusions == {"no difference"}
    assert len(result.fps) == 4 and all(0 < (run.noise or 0) < 0.05 for run in result.fps)
    assert result.fps[0].interval_a != result.fps[0].interval_b


def test_what_is_slower_beyond_the_noise(first: Path, tmp_path: Path) -> None:
    result = compare(first, make_tree(tmp_path / "slow", milliseconds=1.0))
    assert [run.conclusion for run in result.fps] == ["slower"] * 4
    assert result.conclusion == WORSE and len(result.worse) == 4 and "the noise is" in result.worse[0]
    back = compare(tmp_path / "slow", first)
    assert [run.conclusion for run in back.fps] == ["faster"] * 4 and back.conclusion == NO_WORSE


def test_the_noise_knows_how_far_two_runs_lie_apart(tmp_path: Path) -> None:
    """Runs of one report that compute the same differ by 10 %: a change of 5 % is none."""

    def uneven(folder: Path) -> None:
        for size in (1, 8):
            report_helpers.write_timing_log(folder / ARTIFACTS.timing_log(size, "match"), 1.1 * (2.0 + 1.9 * size))

    a = make_tree(tmp_path / "a", edit=uneven)
    report = sides.read(source(a, "A")).report
    slower = msgspec.json.decode(msgspec.json.encode(report), type=Report)
    for run in slower.measured.performances:
        run.fps *= 0.95
    assert speed.between([report, report]).freedom == 4 and speed.between([report, report]).deviation > 0.05
    assert [run.conclusion for run in speed.compare(report, slower)] == ["no difference"] * 4
    for run in slower.measured.performances:
        run.times_ms = [time * (50 if number > 80 else 1) for number, time in enumerate(run.times_ms)]
    assert {run.why_not_compared[:22] for run in speed.compare(report, slower)} == {"the times vary so much"}
    slower.body.backend = "ascend"
    assert {run.why_not_compared for run in speed.compare(report, slower)} == {"they are of two backends"}


def test_rows_that_only_one_has(first: Path, tmp_path: Path) -> None:
    """A limited run is compared on its rows; other tsv files by what their rows hold."""
    limited = make_tree(tmp_path / "limited", [0], limit=40)
    result = compare(first, source(limited, "B", 40))
    assert [entry.paired and entry.paired.rows for entry in result.accuracy] == [40, 40, 36, 36]
    assert result.changed_total == 1 and result.changed_rows[0].line == 2
    assert "accuracy of match, bs 8, fp32: 80 of A's 120 rows, not in B" in result.not_compared
    assert result.conclusion in (WORSE, UNKNOWN)

    other = make_tree(tmp_path / "other", [5], edit=_other_lines)
    result = compare(first, other)
    [test] = [entry.paired for entry in result.accuracy if (entry.version, entry.batch_size_b) == ("match", 8)]
    assert test is not None and test.rows == 119
    assert [(row.line_a, row.line, row.premise) for row in result.changed_rows] == [(7, 7, "A boat 5.")]


def _other_lines(folder: Path) -> None:
    """The tsv of match has another first row, and the job knows it."""
    path = folder / ARTIFACTS.data / "MNLI" / DEV_FILES["match"]
    path.write_text(path.read_text(encoding="utf-8").replace("A boat 0.", "A raft."), encoding="utf-8")
    job = folder / ARTIFACTS.job()
    inputs = json.loads(job.read_bytes())["inputs"]
    name = str(path.relative_to(folder))
    report_helpers.edit(job, inputs={**inputs, name: {"sha256": files.sha256_of(path)}})


def test_a_report_without_its_tree_is_compared_by_its_counts(first: Path, worse: Path) -> None:
    alone = structs.replace(source(worse, "B"), root="", job="")
    result = compare(source(first, "A"), alone)
    entry = result.accuracy[0]
    assert entry.paired is None and entry.why_not_paired == "B is a report without its tree: it holds no rows"
    assert (entry.conclusion, entry.p_value < 0.001, result.conclusion) == ("lower", True, WORSE)
    same = compare(source(first, "A"), structs.replace(source(first, "B"), root="", job=""))
    assert {entry.conclusion for entry in same.accuracy} == {"no difference"} and same.conclusion == UNKNOWN
    assert same.not_compared[0].startswith("accuracy of match, bs 1, fp32 row by row: B is a report")


def test_what_b_lacks_is_not_compared(first: Path, tmp_path: Path) -> None:
    result = compare(first, make_tree(tmp_path / "less", rows={"match": 120}, batch_sizes=(8,)))
    assert "accuracy of mismatch, fp32: B has none" in result.not_compared
    assert "fps of match, bs 1, length 256, fp32, msame: B has none" in result.not_compared
    assert any(text.startswith("gate correct_rows (bs 1, match): passed in A") for text in result.not_compared)
    assert result.conclusion == UNKNOWN
    assert ("report", "batch sizes", "1, 8", "8") in [(f.kind, f.what, f.a, f.b) for f in result.facts]


def _int8(folder: Path) -> None:
    """An int8 run of match at batch size 8, with two other labels, beside the float32 one."""
    report_helpers_job = folder / ARTIFACTS.job()
    artifacts = Artifacts("demo", "cpu", precision="int8")
    logits = report_helpers.compiled(report_helpers.pytorch([row % 3 for row in range(120)], "match"), "match", 1)
    outputs, text = artifacts.outputs(8, "match") / FOLDER, artifacts.evaluation(8, "match")
    report_helpers.write_outputs(folder / outputs, roll(logits, (folder.name == "b") * [1, 2]), 8)
    data = str(ARTIFACTS.data / "MNLI" / DEV_FILES["match"])
    report_helpers.evaluate(folder, str(outputs), data, str(text), 8, "match")
    job = json.loads(report_helpers_job.read_bytes())
    cell = {**job["cells"][1], "precision": "int8", "outputs": {"256": str(outputs)}, "evaluation": str(text)}
    measured = {**job["measured"], "places": {**job["measured"]["places"]}}
    measured["places"]["bs8_int8_match"] = {"place": "on cpu", "pinned": True}
    report_helpers.edit(report_helpers_job, cells=[*job["cells"], cell], measured=measured)


def test_int8_runs_are_compared_with_int8_runs(first: Path, tmp_path: Path) -> None:
    a, b = (make_tree(tmp_path / name, edit=_int8) for name in "ab")
    result = compare(a, b)
    entry = result.accuracy[-3]
    assert (entry.version, entry.precision) == ("match", "int8") and entry.paired and entry.paired.changed == 2
    assert {(row.precision, row.line) for row in result.changed_rows} == {("int8", 3), ("int8", 4)}
    without = compare(a, first)
    assert "accuracy of match, int8: B has none" in without.not_compared
    assert {entry.precision for entry in without.accuracy} == {"fp32"}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 0x40
    path.write_bytes(content)


def _link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _nan(path: Path) -> None:
    path.write_text(re.sub('"accuracy": [0-9.]+', '"accuracy": NaN', path.read_text(), count=1))


OUTPUT = ARTIFACTS.outputs(8, "match") / FOLDER / "input_0_output_0.bin"
TSV = ARTIFACTS.data / "MNLI" / DEV_FILES["match"]
BEHIND: dict[str, tuple[Path, Callable[[Path], object], str]] = {  # what is wrong behind a report: rows are not paired
    "outputs changed": (Path(OUTPUT), lambda path: path.write_bytes(b"\xff" * 96), "rows hold NaN or infinity"),
    "outputs cut": (Path(OUTPUT), lambda path: path.write_bytes(b"12"), "(2 bytes, not 96)"),
    "outputs outside": (Path(OUTPUT), _link, "leads out of"),
    "tsv changed": (Path(TSV), _flip, "is not the tsv that the report names"),
    "tsv gone": (Path(TSV), Path.unlink, "is missing"),
    "job cut": (Path(ARTIFACTS.job()), lambda path: path.write_bytes(path.read_bytes()[:99]), "is not JSON"),
    "job is a folder": (Path(ARTIFACTS.job()), _folder, "is not a regular file"),
}


@pytest.mark.parametrize("damage", BEHIND)
def test_rows_that_are_not_the_report_s_are_not_paired(damage: str, first: Path, tmp_path: Path) -> None:
    path, change, reason = BEHIND[damage]
    tree = Path(shutil.copytree(first, tmp_path / "tree"))
    change(tree / path)
    entry = [entry for entry in compare(first, tree).accuracy if entry.version == "match"][-1]
    assert entry.paired is None and reason in entry.why_not_paired and entry.conclusion == "no difference"


def _predictions(folder: Path) -> None:
    """The predictions of the padded runs of match, in the place of their outputs."""
    logits = report_helpers.compiled(report_helpers.pytorch([row % 3 for row in range(120)], "match"), "match", 1)
    lines = [
        {"row": row, "line": row + 2, "gold": LABELS[row % 3], "label": "", "logits": values, "margin": 0.0}
        for row, values in enumerate(roll(logits, [4]).tolist())
    ]
    path = folder / "results/demo/cpu/predictions_bs8_match.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    job = json.loads((folder / ARTIFACTS.job()).read_bytes())
    for cell in job["cells"]:
        if cell["version"] == "match":
            cell["predictions"] = str(path.relative_to(folder))
    report_helpers.edit(folder / ARTIFACTS.job(), cells=job["cells"])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("", "", ""),
        ('{"row": 3,', '{"row": 4,', "line 4 is of row 4"),
        ('"gold": "neutral"', '"gold": "maybe"', "does not fit its schema, at $.gold"),
        ('"logits": [', '"logits": [1e39, ', "does not fit its schema, at $.logits"),
        ('"logits": [-', '"logits": [-' + 40 * "9", "no float32"),
        ('"gold": "entailment"', '"gold": "neutral"', "of 120 rows right, and its report says"),
    ],
)
def test_rows_come_from_predictions(old: str, new: str, reason: str, first: Path, tmp_path: Path) -> None:
    """Those that an evaluation keeps, if they say what its report says."""
    tree = make_tree(tmp_path / "tree", [4], edit=_predictions)
    shutil.rmtree(tree / ARTIFACTS.outputs(8, "match"))
    path = tree / "results/demo/cpu/predictions_bs8_match.jsonl"
    path.write_text(path.read_text().replace(old, new, 1))
    entries = [entry for entry in compare(first, tree).accuracy if entry.version == "match"]
    assert all((reason in entry.why_not_paired) and bool(entry.paired) is not bool(reason) for entry in entries)
    assert reason or [entry.paired and entry.paired.changed for entry in entries] == [1, 1]


def _edited(**changes: Any) -> Callable[[Path], object]:
    return lambda path: report_helpers.edit(path, **changes)


def _body(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A forged body, and the SHA-256 that fits it."""

    def edit(path: Path) -> None:
        report = json.loads(path.read_bytes())
        change(report["body"])
        digest = "0" * 64
        with contextlib.suppress(ValueError):  # of what no canonical form has
            digest = canonical.digest(report["body"])
        report_helpers.edit(path, body=report["body"], body_sha256=digest)

    return edit


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-99]), "is not JSON"),
    "another format": (_edited(format=2), "at $.format"),
    "NaN": (_nan, "is not JSON"),
    "body": (_body(lambda body: body.update(limit=10**17)), "no canonical form"),
    "labels": (_body(lambda body: body.update(labels=["yes", "no", "maybe"])), "at $.body.labels"),
    "counts": (_body(lambda body: body["cells"][0].update(correct=10**15)), "of 120 rows are right"),
    "body without its digest": (_edited(body_sha256="0" * 64), "it was changed"),
    "gone": (Path.unlink, "is missing"),
    "a pipe": (_pipe, "is not a regular file"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_a_report_that_is_damaged_is_refused(damage: str, first: Path, tmp_path: Path) -> None:
    change, message = REFUSED[damage]
    path = tmp_path / "report.json"
    shutil.copyfile(first / ARTIFACTS.report("json"), path)
    change(path)
    alone = structs.replace(source(first, "B"), report=str(path), root="", job="")
    with pytest.raises((DataError, MissingError), match=re.escape(message)):
        compare(source(first, "A"), alone)


def test_figures_that_nobody_measured_do_no_harm(first: Path, tmp_path: Path) -> None:
    """Numbers at the ends of what a report may hold: a conclusion or none, and no traceback."""
    report = json.loads((first / ARTIFACTS.report("json")).read_bytes())
    for number, run in enumerate(report["measured"]["performances"]):
        run["fps"] = (5e-324, 1e308, 1e-300, 1e300)[number]
        run["interval_ms"] = [5e-324, 1e308]
        run["times_ms"] = [5e-324, 1e308, 1e308, 5e-324] * 30
    (tmp_path / "report.json").write_text(json.dumps(report))
    forged = structs.replace(source(first, "B"), report=str(tmp_path / "report.json"), root="", job="")
    result = compare(source(first, "A"), forged)
    assert "not compared" in {run.conclusion for run in result.fps}
    assert schema.text(result) and diff.plain_text(result) and diff.markdown_text(result)


def test_the_stage_writes_the_same_bytes_and_escapes(first: Path, worse: Path, tmp_path: Path) -> None:
    job = DiffJob(a=source(first, "<b>A\u202e"), b=source(worse, "B|\nC"), replaces_published=False)
    files.write_text(tmp_path / "job.json", schema.text(job))
    names = ("--output", "--text", "--markdown")
    arguments = [part for name in names for part in (name, str(tmp_path / name[2:]))]
    assert run_stage(diff.main, ["--job", str(tmp_path / "job.json"), *arguments]) == 0
    contents = [(tmp_path / name[2:]).read_bytes() for name in names]
    assert run_stage(diff.main, ["--job", str(tmp_path / "job.json"), *arguments]) == 0
    assert contents == [(tmp_path / name[2:]).read_bytes() for name in names]
    text, markdown = (content.decode() for content in contents[1:])
    assert "&lt;b>A\\u202e" in markdown and "<b>" not in markdown and "\u202e" not in text + markdown
    assert "B| C (demo on cpu, failed" in text
    result = schema.decode(contents[0], ReportDifference)
    assert result == diff.difference(job)
    forged = structs.replace(result, conclusion=NO_WORSE)
    with pytest.raises(ValueError, match="which its reasons do not say"):
        schema.decode(msgspec.json.encode(forged), ReportDifference)
