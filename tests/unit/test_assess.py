"""The stage that makes report.json: what it refuses to count, what it counts, and the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import structs

from deberta.core import errors
from deberta.core.contract import LABELS
from deberta.core.paths import Artifacts
from deberta.core.report import Percentiles, Report
from deberta.stages.report import assess, canonical, markdown
from deberta.stages.report.phrases import Phrases
from tests import report_helpers
from tests.mnli_helpers import stage_command, stage_environment
from tests.report_helpers import FOLDER, NEAR_TIE, edit, example_job, example_report

ARTIFACTS = Artifacts("demo", "cpu")
EVALUATION = ARTIFACTS.evaluation(8, "match").with_suffix(".json")
OUTPUTS = ARTIFACTS.outputs(8, "match") / FOLDER
LOG = ARTIFACTS.timing_log(8, "match")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A whole workspace, and its job relative to it."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, example_job(folder).relative_to(folder)


@pytest.fixture
def job(whole: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The job in a copy of that workspace, which is the working directory."""
    shutil.copytree(whole[0], tmp_path / "workspace")
    monkeypatch.chdir(tmp_path / "workspace")
    return whole[1]


def main(job: Path, output: str = "report.json") -> int:
    return errors.run_stage(assess.main, ["--job", str(job), "--output", output])


def shift(path: Path, by: float) -> None:
    """Add to the logits of the first row's first label."""
    logits = np.frombuffer(path.read_bytes(), "<f4").copy()
    logits[0] += by
    path.write_bytes(logits.tobytes())


def other_logits(job: Path) -> None:
    shift(Path(OUTPUTS, "input_0_output_0.bin"), -50)


def other_last_bits(job: Path) -> None:
    shift(Path(OUTPUTS, "input_0_output_0.bin"), 1e-3)


def nan_logits(job: Path) -> None:
    shift(Path(OUTPUTS, "input_2_output_0.bin"), np.nan)


def no_outputs(job: Path) -> None:
    edit(job, cells=[{**cell, "outputs": {"256": "results/none"}} for cell in json.loads(job.read_bytes())["cells"]])


def fewer_outputs(job: Path) -> None:
    Path(OUTPUTS, "input_5_output_0.bin").unlink()


def better_count(job: Path) -> None:
    edit(Path(EVALUATION), correct=47)


def extra_key(job: Path) -> None:
    edit(Path(EVALUATION), checked_by="me")


def no_genre(job: Path) -> None:
    edit(Path(EVALUATION), genres={})


def not_json(job: Path) -> None:
    Path(EVALUATION).write_text("{", encoding="utf-8")


def no_json(job: Path) -> None:
    Path(EVALUATION).unlink()


def better_text(job: Path) -> None:
    path = Path(EVALUATION).with_suffix(".txt")
    path.write_bytes(path.read_bytes().replace(b"accuracy = 0.8", b"accuracy = 0.9"))


def fewer_rows(job: Path) -> None:
    path = Path(json.loads(job.read_bytes())["data"]["match"])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def other_reference(values: Any) -> Callable[[Path], None]:
    return lambda job: np.save(ARTIFACTS.reference("match"), values, allow_pickle=True)


def no_reference(job: Path) -> None:
    Path(ARTIFACTS.reference("match")).unlink()


def half_a_reference(job: Path) -> None:
    path = Path(ARTIFACTS.reference("match"))
    path.write_bytes(path.read_bytes()[:-12])


def faster_log(job: Path) -> None:
    path = Path(LOG)
    head, _, rest = path.read_text(encoding="utf-8").rpartition("first time: ")
    path.write_text(head + "first time: 1.0 ms\n" + rest.partition("\n")[2], encoding="utf-8")


def empty_log(job: Path) -> None:
    Path(LOG).write_text("", encoding="utf-8")


def no_log(job: Path) -> None:
    Path(LOG).unlink()


def no_sentinel(job: Path) -> None:
    Path(ARTIFACTS.data_check("match")).unlink()


def strange_sentinel(job: Path) -> None:
    Path(ARTIFACTS.data_check("match")).write_text("[]", encoding="utf-8")


def cell_twice(job: Path) -> None:
    edit(job, cells=json.loads(job.read_bytes())["cells"] * 2)


def nothing_measured(job: Path) -> None:
    edit(job, cells=[], performances=[])


def unknown_gate(job: Path) -> None:
    edit(job, gates={"acuracy": {}})


def later_format(job: Path) -> None:
    edit(job, format=2)


def half_a_job(job: Path) -> None:
    content = json.loads(job.read_bytes())
    del content["gates"], content["cells"]
    report_helpers.write_json(job, content)


def unknown_fact(job: Path) -> None:
    edit(job, measured={**report_helpers.measured("cpu", 0), "weather": "fine"})


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (other_logits, 5, f"{EVALUATION}: correct is 43, and 42 by the logits in {OUTPUTS}. Run: invoke postprocess"),
        (other_last_bits, 5, f"{EVALUATION}: outputs_sha256 is "),
        (nan_logits, 5, f"{OUTPUTS}: 1 of 48 rows hold NaN or infinity, the first in input_2_output_0.bin row 0"),
        (no_outputs, 3, "results/none is missing. Run: invoke infer"),
        (fewer_outputs, 5, f"1 outputs of 6 are missing from {OUTPUTS}: input_5_output_0.bin"),
        (better_count, 5, f"{EVALUATION}: correct is 47, and 43 by the logits"),
        (extra_key, 5, "checked_by is there, and not expected"),
        (no_genre, 5, "genres.fiction is missing"),
        (not_json, 5, f"{EVALUATION} is not JSON"),
        (no_json, 3, f"{EVALUATION} is missing. Run: invoke postprocess --bs 8 --version match --force"),
        (better_text, 5, f"{EVALUATION.with_suffix('.txt')} is not what the logits"),
        (fewer_rows, 5, "has 47 rows, expected 48"),
        (other_reference(np.zeros((48, 3))), 5, "reference_match.npy does not hold float32 [48, 3]"),
        (other_reference(np.zeros((47, 3), "<f4")), 5, "does not hold float32 [48, 3]"),
        (other_reference(np.full((48, 3), np.nan, "<f4")), 5, "48 rows hold NaN or infinity, the first is row 0"),
        (other_reference(np.array([{"code": 1}])), 5, "reference_match.npy is not a NumPy array"),
        (half_a_reference, 5, "reference_match.npy is not a NumPy array"),
        (no_reference, 3, "reference_match.npy is missing. Run: invoke acceptance"),
        (faster_log, 5, f"{LOG}: its average is 1.0 ms, and 17."),
        (empty_log, 5, f"{LOG}: no throughput can be computed from an average of None ms"),
        (no_log, 3, f"{LOG} is missing. Run: invoke perf --bs 8"),
        (no_sentinel, 3, "data_check_match.json is missing"),
        (strange_sentinel, 5, "data_check_match.json does not fit its schema: Expected `object`, got `array`"),
        (cell_twice, 5, "it names one of its cells twice"),
        (nothing_measured, 3, "nothing has been measured for profile demo. Run: invoke evaluate"),
        (unknown_gate, 5, "at $.gates: Object contains unknown field `acuracy`"),
        (later_format, 5, "at $.format: Expected `int` <= 1"),
        (half_a_job, 5, "Object missing required field `cells`"),
        (unknown_fact, 5, "does not fit its schema, at $.measured: Object contains unknown field `weather`"),
    ],
)
def test_what_does_not_hold_is_named_and_nothing_is_written(
    job: Path, spoil: Callable[[Path], None], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(job)
    Path("report.json").write_text("an earlier report", encoding="utf-8")
    assert main(job) == code
    message = capsys.readouterr().err
    assert says in message and message.count("\n") == 1
    assert Path("report.json").read_text(encoding="utf-8") == "an earlier report"


def test_a_missing_job_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(tmp_path / "report_job.json") == 3
    assert "report_job.json is missing. Run: invoke report" in capsys.readouterr().err


def test_the_report_has_what_the_files_say(tmp_path: Path) -> None:
    report = example_report(tmp_path)
    assert report["verdict"]["verdict"] == "checked" and report["title"].endswith("profile demo, backend cpu")
    body = report["body"]
    assert body["reference"]["match"]["correct"] == 44 and set(body["sentinels"]) == {"match", "mismatch"}
    assert [(cell["batch_size"], cell["version"], cell["correct"]) for cell in body["cells"]] == [
        *((1, "match", 44), (1, "mismatch", 33), (8, "match", 43), (8, "mismatch", 33)),
    ]
    cell = body["cells"][2]
    assert (cell["rows"], cell["accuracy"], cell["interval"]) == (48, 43 / 48, [0.778326, 0.954678])
    assert cell["genres"]["slate"]["rows"] == 10 and len(cell["genres"]) == 5
    assert cell["permutations"][0] == {"order": list(LABELS), "correct": 43, "accuracy": 43 / 48}
    assert len({tuple(entry["order"]) for entry in cell["permutations"]}) == 6
    assert sum(entry["correct"] for entry in cell["permutations"]) == 2 * 48  # each output fits two orders of six
    tie = {"row": NEAR_TIE, "line": NEAR_TIE + 2, "margin": 0.003}
    assert cell["versus_reference"] == {
        **{"same_labels": 47, "only_reference_correct": 1, "only_this_correct": 0, "p_value": 0.5},
        "flips": [{**tie, "gold": "entailment", "reference": "entailment", "this": "contradiction"}],
        **{"flips_total": 1, "beyond_near_ties": 0},
    }
    assert body["agreement"]["match"] == {
        **{"batch_sizes": [1, 8], "rows_that_differ": 1, "beyond_near_ties": 0, "near_tie_margin": 0.05},
        "differences": [{**tie, "labels": {"1": "entailment", "8": "contradiction"}}],
    }
    run = report["measured"]["performances"][2]
    assert (run["loops"], len(run["times_ms"]), run["warning"]) == (100, 100, "")
    assert (run["place"], run["pinned"]) == ("on cpu", True)
    assert run["fps"] == 8000 / run["average_ms"] and max(run["times_ms"]) == run["times_ms"][0]
    assert run["percentiles_ms"]["p99"] < run["times_ms"][0] and run["interval_ms"][0] < run["average_ms"]


def test_the_same_inputs_give_the_same_bytes_and_the_body_knows_no_machine(job: Path, tmp_path: Path) -> None:
    assert main(job) == 0
    command = stage_command("assess", "--job", job, "--output", "again.json", "--summary", "summary.json")
    done = subprocess.run(command, env=stage_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 evaluations counted again, 4 performance runs: checked: again.json" in done.stdout
    content = Path("report.json").read_bytes()
    assert content == Path("again.json").read_bytes() and content.endswith(b"}\n")
    report, summary = json.loads(content), json.loads(Path("summary.json").read_bytes())
    assert (summary["verdict"], summary["body_sha256"]) == ("checked", report["body_sha256"])
    # Elsewhere, later, slower, with another tool.
    other = example_job(tmp_path / "elsewhere")
    report_helpers.write_timing_log(tmp_path / "elsewhere" / LOG, 99.0)
    measured = {**report_helpers.measured("cpu", 0), "made": "2027-05-05T00:00:00+02:00", "tools": {"atc": "6"}}
    edit(other, measured=measured)
    second = json.loads(msgspec.json.encode(assess.assess(assess.read_job(other), tmp_path / "elsewhere")))
    assert second["body"] == report["body"] and second["measured"] != report["measured"]
    # Read back from the file, the body still has its digest, and no other body has it.
    assert report["body_sha256"] == second["body_sha256"] == canonical.digest(report["body"])
    report["body"]["cells"][0]["correct"] += 1
    assert canonical.digest(report["body"]) != second["body_sha256"]


def test_canonical_json_is_that_of_the_rfc() -> None:
    # RFC 8785: keys sorted by UTF-16, ECMAScript's numbers, no spaces.
    body = {"b": 1.0, "a": [0.1, 1e21, 333333333.33333329], "\u20ac": "\u20ac", "\U0001f600": None, "\ufb33": True}
    text = '{"a":[0.1,1e+21,333333333.3333333],"b":1,"€":"€","\U0001f600":null,"\ufb33":true}'
    assert canonical.digest(body) == hashlib.sha256(text.encode()).hexdigest()


def test_a_report_takes_what_there_is_and_judges_nothing(job: Path) -> None:
    content = json.loads(job.read_bytes())
    cells = [{**content["cells"][0], "origin": "outdated: another model"}, content["cells"][1]]
    edit(job, purpose="report", cells=cells, sentinels={}, references={}, performances=[])
    assert main(job) == 0
    report = json.loads(Path("report.json").read_bytes())
    assert report["verdict"] is None and report["measured"]["performances"] == []
    assert (report["body"]["reference"], report["body"]["sentinels"]) == ({}, {})
    old, present = report["body"]["cells"]
    assert old["origin"] == "outdated: another model" and present["versus_reference"] is None
    # What is not of the present model is shown, and compared with nothing.
    assert report["body"]["agreement"]["match"]["batch_sizes"] == [8]
    edit(job, cells=[], performances=content["performances"][:1])
    assert main(job) == 0


def test_flips_beyond_near_ties_come_first_and_long_lists_are_cut(tmp_path: Path) -> None:
    path = example_job(tmp_path, rows={"match": 900}, batch_sizes=(1, 4))
    reference = tmp_path / ARTIFACTS.reference("match")
    logits = np.load(reference)
    report_helpers.write_reference(reference, np.roll(logits, 1, axis=1))
    edit(path, gates={"near_tie_margin": 3.0})
    body = msgspec.to_builtins(assess.assess(assess.read_job(path), tmp_path))["body"]
    versus = body["cells"][0]["versus_reference"]
    margins = [flip["margin"] for flip in versus["flips"]]
    assert (versus["flips_total"], versus["same_labels"], len(margins)) == (900, 0, 50)
    assert margins == sorted(margins, reverse=True) and margins[-1] > 3.0
    ordered = np.sort(logits.astype(np.float64), axis=1)
    assert versus["beyond_near_ties"] == int((np.round(ordered[:, 2] - ordered[:, 1], 3) >= 3.0).sum()) > 50


def test_without_a_margin_nothing_is_a_near_tie(job: Path) -> None:
    edit(job, gates={"near_tie_margin": None})
    assert main(job) == 0
    report = json.loads(Path("report.json").read_bytes())
    assert report["body"]["agreement"]["match"]["beyond_near_ties"] == 1
    assert report["verdict"]["verdict"] == "failed"  # which is no error of the stage


def test_ais_bench_has_its_own_warm_up_rule(job: Path) -> None:
    times = [2.0, 1.0, 1.0, 1.0]
    log = ARTIFACTS.timing_log(8, "match", "ais_bench")
    summary = {"npu_compute_time_list": times, "NPU_compute_time": {"mean": 1.25}, "throughput": 6400.0}
    report_helpers.write_json(Path(log), summary)
    first = assess.read_job(job).performances[1]
    run = assess.performance(structs.replace(first, runner="ais_bench", log=str(log)))
    assert (run.fps, run.average_ms, run.loops) == (6400.0, 1.25, 4)
    assert run.percentiles_ms == Percentiles(p50=1.0, p90=2.0, p99=2.0) and "4 times that count" in run.warning


def test_five_loops_are_too_few_to_conclude(job: Path) -> None:
    report_helpers.write_timing_log(Path(LOG), 17.0, loops=5)
    run = assess.performance(assess.read_job(job).performances[1])
    assert run.loops == 5 and "4 times that count: fewer than 20 say little" in run.warning


def test_wrong_rows_are_listed_with_their_texts_the_largest_margins_first(job: Path) -> None:
    data = Path(json.loads(job.read_bytes())["data"]["match"])
    old, long = "A boat 35.", "A bo\x1bat | <b>" + 600 * "x"
    data.write_text(data.read_text(encoding="utf-8").replace(old, long), encoding="utf-8")
    assert main(job) == 0
    report = json.loads(Path("report.json").read_bytes())
    first, second = report["measured"]["wrong_rows"]
    assert [(entry["batch_size"], entry["version"], entry["origin"]) for entry in (first, second)] == [
        (1, "match", ""),
        (1, "mismatch", ""),
    ]
    assert (first["total"], second["total"]) == (4, 3)
    margins = [row["margin"] for row in first["rows"]]
    assert sorted(margins, reverse=True) == margins and all(row["gold"] != row["label"] for row in first["rows"])
    texts = {row["row"]: row["premise"] for row in first["rows"]}
    assert texts == {11: "A boat 11.", 23: "A boat 23.", 35: f"{long[:500]}...", 47: "A boat 47."}
    pages = markdown.markdown(msgspec.convert(report, Report), Phrases("en"))
    assert "A bo\x1bat \\| &lt;b>xxx" in pages  # the render stage makes control characters visible
