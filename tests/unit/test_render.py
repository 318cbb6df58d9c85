from __future__ import annotations

import json
import xml.etree.ElementTree as xml
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Callable, Optional

import msgspec
import pytest

from deberta.core.errors import run_stage
from deberta.core.report import Report
from deberta.stages.report import assess, charts, render, tables
from deberta.stages.report.charts import Axis, ChartRow, Key
from deberta.stages.report.markdown import markdown
from deberta.stages.report.page import html
from deberta.stages.report.phrases import Phrases
from tests import report_helpers, report_samples
from tests.report_samples import changed

HOSTILE = '<script>alert("1")</script>|\n</td>'
VOID = {"meta", "link", "br", "img"}


def html_of(report: dict[str, Any], data: str = "", language: str = "en") -> str:
    return html(msgspec.convert(report, Report), data, Phrases(language))


def markdown_of(report: dict[str, Any], language: str = "en") -> str:
    return markdown(msgspec.convert(report, Report), Phrases(language))


class Page(HTMLParser):
    """What a reader of the page gets: tables by id as rows of texts, captions, links, ids, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, list[str]] = {}  # by tag
        self.header = ""
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, Optional[str]]] = []  # tag, name, value
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables[str(dict(attrs)["id"])] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "span" and self._rows and self._rows[-1] and self._rows[-1][-1]:
            self._rows[-1][-1] += ", "  # the next line of a cell

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, Optional[str]]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data
        if "header" in self._open:
            self.header += data
        if {"td", "th"} & set(self._open):
            self._rows[-1][-1] += data

    @property
    def _rows(self) -> list[list[str]]:
        return next(reversed(self.tables.values()), [])

    def values(self, name: str) -> list[str]:
        return [value or "" for _, attribute, value in self.attributes if attribute == name]


def test_the_page_says_what_the_report_says() -> None:
    report = report_samples.mnli()
    page = Page(html_of(report))
    body, measured = report["body"], report["measured"]
    [head, *rows] = page.tables["t-guide"]
    assert head[3:] == ["measured accuracy", "baseline fps (published)", "310P fps (published)", "measured fps"]
    assert rows[2] == [
        *("Deberta bs8", "M=90.5/MM=90.5", "M=90.46/MM=90.71"),
        "M=90.46 (8879/9815) on ascend, MM=90.71 (8919/9832) on ascend",
        *("2.821", "4.639", "4.971 on ascend"),
    ]
    assert len(rows) == 6

    [match, mismatch] = (next(one for one in body["cells"] if one["version"] == v) for v in body["versions"])
    for number, one in ((1, match), (2, mismatch)):  # all batch sizes counted the same
        shown = {row[0]: row[1:] for row in page.tables[f"t-genres-{number}"][1:]}
        assert list(shown) == ["all", *one["genres"]]
        for name, counted in {"all": one, **one["genres"]}.items():
            low, high = counted["interval"]
            figures = [
                f"{counted['correct']}/{counted['rows']}",
                f"{100 * counted['accuracy']:.2f}",
                f"{100 * low:.2f} to {100 * high:.2f}",
            ]
            assert shown[name] == figures
        for row in page.tables[f"t-confusion-{number}"][1:-1]:
            assert row[1:-1] == [f"{count}" for count in one["confusion"][row[0]].values()]
            assert row[-1] == f"{one['labels_gold'][row[0]]}"
        totals = [f"{count}" for count in one["labels_predicted"].values()]
        assert page.tables[f"t-confusion-{number}"][-1] == ["predicted", *totals, f"{one['rows']}"]
    assert page.texts["caption"].count("match, bs 1, 4, 8, 16, 32, 64 on ascend") == 2

    folded = [row for name, rows in page.tables.items() if name.startswith("t-gates-") for row in rows[1:]]
    assert "t-gates" not in page.tables and folded == [
        [gate[key] for key in ("gate", "of", "required", "found", "status")] for gate in report["verdict"]["gates"]
    ]
    assert page.texts["summary"][:2] == ["correct_rows: 12 checks passed", "fps: 6 checks passed"]
    for row, run in zip(page.tables["t-performances"][1:], measured["performances"]):
        percentiles = [tables.rounded(run["percentiles_ms"][name]) for name in ("p50", "p90", "p99")]
        average = tables.with_interval(run["average_ms"], run["interval_ms"])
        figures = ["100", tables.rounded(run["fps"]), average, *percentiles, "1.3 %"]
        assert row == [f"{run['batch_size']}", "match", *figures]
    assert page.tables["t-performances"][0][-2] == "largest, ms"  # of 99 times a p99 is no more
    assert page.tables["t-performances"][3][4] == "1609 ± 5"
    hashes = {**body["inputs"], **body["artifacts"], **measured["artifacts"]}
    files = [row for name in ("inputs", "artifacts", "measured-artifacts") for row in page.tables[f"t-{name}"][1:]]
    assert {path: {kind: digest[12:]} for path, kind, digest in files} == hashes  # behind its first digits
    assert all(digest[:12] == digest[12:24] for *_, digest in files)
    assert report["body_sha256"] in page.texts["code"]
    assert page.tables["t-versus"][1] == ["1, 4, 8, 16, 32, 64", "match", "9814/9815", "1", "0", "1", "1", "0"]
    assert page.tables["t-flips"][1][-1] == "1, 4, 8, 16, 32, 64"
    assert page.tables["t-orders"][1][:4] == [
        "1, 4, 8, 16, 32, 64",
        "match",
        "contradiction, neutral, entailment",
        "8879",
    ]


def test_the_page_stands_alone_and_holds_together() -> None:
    """No script, nothing to load, every link and label leads somewhere, and no id is there twice."""
    text = html_of(report_samples.mnli(), "report.json")
    page = Page(text)
    assert not {"script", "img", "iframe", "object", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name == "src"]
    assert "url(" not in text and "@import" not in text and "http" not in text.replace("http-equiv", "")
    ids = page.values("id")
    assert len(ids) == len(set(ids)) > 20
    links = [value for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert {link.removeprefix("#") for link in links if link and link.startswith("#")} <= set(ids)
    assert [link for link in links if link and not link.startswith("#")] == ["report.json"]
    assert {one for value in page.values("aria-labelledby") for one in value.split()} <= set(ids)
    assert page.tags.count("h1") == page.tags.count("main") == 1 and page.values("lang") == ["en"]
    assert page.tags.count("caption") == page.tags.count("table") and set(page.values("scope")) == {"row", "col"}
    assert page.tags.count("svg") == page.tags.count("desc") == 2 + 2


def test_both_forms_are_the_same_bytes_again() -> None:
    first, second = report_samples.mnli(), json.loads(json.dumps(report_samples.mnli()))
    assert (markdown_of(first), html_of(first)) == (markdown_of(second), html_of(second))


@pytest.mark.parametrize("make", [report_samples.demo, report_samples.limited, report_samples.failed])
def test_only_an_acceptance_reads_as_one(make: Callable[[], dict[str, Any]]) -> None:
    report = make()
    page, text = Page(html_of(report)), markdown_of(report)
    assert "accepted" not in (page.header + page.texts["title"][0]).lower()
    assert "accepted" not in " ".join(page.values("class")) and "accepted" not in text.lower()
    word = "Failed" if report["verdict"]["verdict"] == "failed" else "Checked"
    assert page.texts["strong"] == [word] and f"**{word}.**" in text and page.texts["title"][0].startswith(word)
    if word == "Checked":
        assert "No acceptance because:" in page.header and "- backend cpu: no NPU was used" in text
        assert "backend cpu: no NPU was used" in page.header
    else:
        assert (
            "1 of 5 checks of 3 gates failed." in page.header
            and "found 1103 of 1200, required at least 1154" in page.header
        )


def test_an_acceptance_and_a_report_without_a_verdict() -> None:
    page = Page(html_of(report_samples.mnli()))
    assert page.texts["strong"] == ["Accepted"] and "All gates pass: 18 checks of 2 gates." in page.header
    bare = changed(report_samples.mnli(), lambda report: report.update(verdict=None))
    page, text = Page(html_of(bare)), markdown_of(bare)
    assert page.texts["strong"] == ["No verdict"] and "t-gates" not in page.tables
    assert "accepted" not in page.header.lower() and "## Gates" not in text and "| Deberta bs64 |" in text


def test_a_limited_run_says_so_everywhere() -> None:
    said = "first 64 rows only, no result"
    page, text = Page(html_of(report_samples.limited())), markdown_of(report_samples.limited())
    assert page.texts["p"][2] == "First 64 rows only, no result." and said in page.texts["title"][0].lower()
    assert all(said in caption for caption in page.texts["caption"] + page.texts["figcaption"])
    assert "**First 64 rows only, no result.**" in text and f"| M=96.67 (58/60) on cpu, {said} |" in text
    assert page.tables["t-guide"][2][1] == f"M=96.67 (58/60) on cpu, {said}"
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(headings) > 5 and all(said in line for line in headings if line not in ("## Environment", "## Steps"))
    assert "rows only" not in html_of(report_samples.demo()) + markdown_of(report_samples.demo())


def test_names_from_data_stay_text() -> None:
    def change(report: dict[str, Any]) -> None:
        for cell in report["body"]["cells"]:
            cell["genres"][HOSTILE] = cell["genres"].pop(next(iter(cell["genres"])))
            cell["origin"] = f"outdated: {HOSTILE}"
        report["measured"]["host"]["name"] = report["measured"]["performances"][0]["origin"] = HOSTILE
        report["verdict"]["why_not_accepted"].append(HOSTILE)

    report = changed(report_samples.demo(), change)
    text, plain = html_of(report, '"><b>.json'), markdown_of(report)
    assert "<script" not in text and "<b>" not in text
    page = Page(text)
    assert page.tables["t-genres-1"][-1][0] == HOSTILE
    assert "<script" not in plain and "</td>" not in plain
    widths = [(line.count("|") - line.count("\\|")) for line in plain.splitlines() if "&lt;script" in line]
    assert sorted(widths) == [1, 3, 4, 4, 7, 7, 7, 11]  # no cell became two


def test_what_stands_behind_a_figure() -> None:
    def change(report: dict[str, Any]) -> None:
        measured = report["measured"]
        measured["places"]["bs8_match"]["pinned"] = False
        report["body"]["cells"][2]["origin"] = "outdated: another model"
        measured["performances"][0].update(runner="ais_bench", place="on cpu (ais_bench)", pinned=False)
        measured["performances"][1].update(place="on another host", pinned=True)

    report = changed(report_samples.demo(), change)
    text, page = markdown_of(report), Page(html_of(report))
    for table in (text, "\n".join(f"| {' | '.join(row)} |" for row in page.tables["t-guide"])):
        assert "| M=99.08 (1189/1200) on cpu |" in table  # bs 1
        assert "| M=99.08 (1189/1200) on cpu, not pinned, MM=96.42 (1157/1200) (outdated: another model) |" in table
        assert " on cpu (ais_bench), not pinned |" in table and "512.1 on another host |" in table
    assert "| 1 | match (ais_bench) | 100 |" in text and "its own throughput" in text
    assert "Not pinned: made in an image" in text and "Not pinned" not in markdown_of(report_samples.demo())
    assert "Measured on the CPU backend (x86_64; openvino 2026.4.1, f32, 2 threads). No Ascend device" in text
    assert "CPU backend" not in markdown_of(report_samples.mnli()) and "90.6/MM=90.7" in markdown_of(
        report_samples.mnli()
    )


def test_parts_that_are_not_there() -> None:
    def change(report: dict[str, Any]) -> None:
        report["body"].update(cells=[], reference={}, sentinels={}, agreement={}, artifacts={})
        report["measured"].update(performances=[], engines=[], steps=[], artifacts={}, places={}, wrong_rows=[])

    report = changed(report_samples.demo(), change)
    page, text = Page(html_of(report)), markdown_of(report)
    assert {name for name in page.tables if "gates" not in name} == {
        "t-guide",
        "t-environment",
        "t-inputs",
    } and "svg" not in page.tags
    assert page.tables["t-guide"][1] == ["demo bs1"]
    assert "| demo bs8 |" in text and "Comparison" not in text

    def less(report: dict[str, Any]) -> None:
        for cell in report["body"]["cells"]:
            cell["versus_reference"] = None
        report["measured"]["performances"][0].update(loops=1, times_ms=[2.4], interval_ms=None)

    report = changed(report_samples.demo(), less)
    assert "t-versus" not in Page(html_of(report)).tables and markdown_of(report).count(" on cpu |") == 3
    assert markdown_of(report).count(" on cpu, 1 loops only |") == 1
    assert any("on cpu, 1 loops only" in row[-1] for row in Page(html_of(report)).tables["t-guide"])


@pytest.mark.parametrize(
    ("backend", "limit", "word"), [("ascend", 0, "Accepted"), ("cpu", 0, "Checked"), ("cpu", 24, "Checked")]
)
def test_what_assess_writes_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, limit: int, word: str
) -> None:
    job = report_helpers.example_job(tmp_path, backend=backend, limit=limit)
    monkeypatch.chdir(tmp_path)
    assess.main(["--job", str(job), "--output", "report.json"])
    render.main(["--report", "report.json", "--markdown", "report.md", "--html", "report.html"])
    page, report = Page(Path("report.html").read_text()), json.loads(Path("report.json").read_text())
    assert page.texts["strong"] == [word] and f"**{word}.**" in Path("report.md").read_text()
    first, second = (tables.rounded(run["fps"]) for run in report["measured"]["performances"] if run["batch_size"] == 1)
    assert page.tables["t-guide"][1][-1] == f"M={first} on {backend}, MM={second} on {backend}"
    checks = [row for name, rows in page.tables.items() if name.startswith("t-gates") for row in rows[1:]]
    assert len(checks) == len(report["verdict"]["gates"])
    inputs = {path: {kind: digest[12:]} for path, kind, digest in page.tables["t-inputs"][1:]}
    assert inputs == report["body"]["inputs"]


def test_other_lengths_and_precisions_stand_apart() -> None:
    def change(report: dict[str, Any]) -> None:
        _, bucketed, _ = report["body"]["cells"]
        bucketed["lengths"] = {"32": 1000, "64": 200}
        report["body"]["cells"].insert(2, {**bucketed, "precision": "int8", "correct": 1180, "accuracy": 1180 / 1200})
        stands = {"version": "match", "batch_size": 8, "origin": ""}
        of_genre = {"rows": 600, "fp32": 599, "lower": 590, "labels_changed": 11}
        report["measured"].update(
            published=report_samples.mnli()["measured"]["published"],
            throughputs=[
                {**stands, "precision": "fp32", "lengths": {"32": 1000, "64": 200}, "place": "on cpu", "pinned": True}
                | {"rows": 1200, "fps": 900.0}
            ],
            label_changes=[
                {**stands, "lengths": [32, 64], "rows": 1200, "fp32": {"correct": 1189}, "lower": {"correct": 1180}}
                | {"precision": "int8", "genres": {"fiction": of_genre}}
                | {"labels_changed": 11, "right_before": 10, "right_now": 1, "largest_margin_changed": 0.5}
                | {"max_abs_difference": 0.25, "mean_abs_difference": 0.01}
            ],
        )
        report["measured"]["places"]["bs8_int8_match"] = {"place": "on cpu", "pinned": True}
        report["measured"]["performances"].append({**report["measured"]["performances"][1], "length": 64})

    report = changed(report_samples.demo(), change)
    text, page = markdown_of(report), Page(html_of(report))
    assert page.tables["t-guide"][2][3] == "MM=96.42 (1157/1200) on cpu"  # bs 8, beside published figures
    assert page.tables["t-guide"][2][6] == "512.1 on cpu"
    assert page.tables["t-lengths"][1:] == [
        ["8", "match", "fp32", "32,64", "99.08 (1189/1200) on cpu", "32,64", "900.0 on cpu", "512.1"],
        ["8", "match", "int8", "32,64", "98.33 (1180/1200) on cpu in int8", "-", "-", "-"],
    ]
    assert page.tables["t-precisions"][1][2:9] == ["int8", "32,64", "1180/1200", "1189/1200", "11", "10", "1"]
    assert page.tables["t-precision-genres"][1:] == [["8", "match", "int8", "fiction", "600", "599", "590", "11"]]
    assert "## Other lengths and precisions" in text and "held against the published figures" in text
    assert page.tables["t-performances"][-1][-1] == "length 64"
    bare = changed(report, lambda report: report["measured"].update(published=[]))
    assert "M=99.08 (1189/1200) on cpu, 2 lengths" in markdown_of(bare)  # nothing is published beside it


def test_files_appear_together_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_samples.write(tmp_path / "report.json", report_samples.demo())
    made, page, summary = tmp_path / "report.md", tmp_path / "report.html", tmp_path / "summary.json"
    command = ["--report", str(report), "--markdown", str(made), "--html", str(page)]
    page.mkdir()
    (page / "file").touch()
    assert run_stage(render.main, command) == 4 and not made.exists()
    page.rename(tmp_path / "folder")
    assert run_stage(render.main, [*command, "--summary", str(summary)]) == 0
    assert "report.html: checked" in capsys.readouterr().out
    assert json.loads(summary.read_text())["bytes"] == {str(path): path.stat().st_size for path in (made, page)}
    assert 'href="report.json"' in page.read_text()


def _accept(report: dict[str, Any], limit: int = 0) -> None:
    for gate in report["verdict"]["gates"]:
        gate["status"] = "passed"
    report["body"]["limit"] = limit
    report["verdict"].update(verdict="accepted", why_not_accepted=[])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "report.json is missing. Run: invoke report"),
        ("{", "is not JSON"),
        ('{"format": NaN}', "is not JSON"),
        ("[]", "does not fit its schema: Expected `object`, got `array`"),
        ('{"format": 2}', "does not fit its schema, at $.format: Expected `int` <= 1"),
        ('{"format": 1}', "does not fit its schema: Object missing required field `title`"),
        (
            lambda report: report["body"]["cells"][0].pop("genres"),
            "at $.body.cells[0]: Object missing required field `genres`",
        ),
        (lambda report: report["measured"].update(loops="many"), "at $.measured.loops"),
        (_accept, "says accepted, but: no NPU was used"),
        (lambda report: _accept(report, limit=64), "it is of the first rows only"),
        (
            lambda report: report["verdict"]["gates"][0].update(status="failed"),
            "says checked, but: correct_rows failed",
        ),
    ],
)
def test_what_is_no_report_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, says: str
) -> None:
    path = tmp_path / "report.json"
    if callable(content):
        report_samples.write(path, changed(report_samples.demo(), content))
    elif content is not None:
        path.write_text(content)
    _refused(path, capsys, says, 5 if content else 3)


def test_a_body_that_was_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_samples.demo()
    report["body"]["cells"][0]["correct"] += 1
    _refused(report_samples.write(tmp_path / "report.json", report), capsys, "it was changed", 5)


def _refused(path: Path, capsys: pytest.CaptureFixture[str], says: str, code: int) -> None:
    made, page = path.with_suffix(".md"), path.with_suffix(".html")
    assert run_stage(render.main, ["--report", str(path), "--markdown", str(made), "--html", str(page)]) == code
    assert says in capsys.readouterr().err and not made.exists() and not page.exists()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 5.027, [0, 2, 4, 6]),
        (86.2, 92.6, [86, 88, 90, 92, 94]),
        (15.4, 15.9, [15.4, 15.5, 15.6, 15.7, 15.8, 15.9]),
        (12700, 13390, [12600, 12800, 13000, 13200, 13400]),
        (0.001, 0.0031, [0.001, 0.0015, 0.002, 0.0025, 0.003, 0.0035]),
        (3, 3, [2.8, 2.9, 3.0, 3.1, 3.2]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_a_wide_range_has_a_logarithmic_axis() -> None:
    axis = charts.axis("ms", 2.4, 240)
    assert axis.is_logarithmic and (axis.ticks[0], axis.ticks[-1]) == (2, 500)
    assert charts.axis("ms", 2.4, 24).ticks[0] == 0 and not charts.axis("ms", 2.4, 24).is_logarithmic


@pytest.mark.parametrize(
    "svg",
    [
        charts.rows(
            "a", "t", [ChartRow(HOSTILE, 50, 0, 100, "50")], Axis("%", [0, 50, 100]), marked={"official 50": 50}
        ),
        charts.rows(
            "b", "t", [ChartRow("x", 2, 1, 99, "2"), ChartRow("y", 3, 3, 3, "3")], Axis("x", [0, 2, 4]), with_bars=True
        ),
        charts.rows("c", "t", [ChartRow("x", 5, 5, 5, "5", others=[("tail", 5)])], charts.axis("x", 5, 5), HOSTILE),
        charts.rows(
            "d", "t", [ChartRow("x", 9, 1, 2e4, "9")], charts.axis("ms", 1, 2e4), keys=[Key("bar", HOSTILE)] * 3
        ),
    ],
)
def test_charts_are_whole_and_within_their_frame(svg: str) -> None:
    chart = xml.fromstring(svg)
    _, _, width, height = map(float, chart.attrib["viewBox"].split())
    for element in chart.iter():
        for name, most in (("x", width), ("x1", width), ("cx", width), ("y", height), ("y2", height), ("cy", height)):
            assert 0 <= float(element.attrib.get(name, 0)) <= most
    assert chart.attrib["role"] == "img" and chart[0].tag == "title" and chart[1].text
