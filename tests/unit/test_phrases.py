"""The report in Chinese: every text of ours has a phrase, no text of the data is touched, and figures stay the same."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deberta.core import report as report_format
from deberta.core.report import Report
from deberta.stages.report import phrases, tables
from deberta.stages.report.markdown import markdown
from deberta.stages.report.page import html
from deberta.stages.report.phrases import Phrases, placeholders
from tests import report_helpers, report_samples
from tests.report_samples import changed

BOOK = phrases.phrases("zh")
NAMES = {"fps", "A", "B", "p", "PyTorch"}  # heads that are the same in both languages
ENGLISH = re.compile(r"[a-z']+,? [a-z']+ [a-z']+")


def test_both_languages_have_the_same_texts_and_placeholders() -> None:
    assert tables.NOTES.keys() <= {name for name, text in tables.NOTES.items() if text in BOOK}
    parts = [part for name, part in tables.TEXTS.items() if name != "notes"]
    shown = {part["caption"] for part in parts} | {head for part in parts for head, _ in part["columns"]}
    assert shown - BOOK.keys() - NAMES - {""} == set()
    for english, chinese in BOOK.items():
        assert placeholders(english) == placeholders(chinese), english
        assert re.search("[\u3000-\uffef]", chinese) or ENGLISH.search(english) is None, english


def _reports(folder: Path) -> list[dict[str, Any]]:
    """Reports with all kinds of verdicts, and one with all that can stand behind a figure."""

    def change(report: dict[str, Any]) -> None:
        measured = report["measured"]
        measured["places"]["bs8_match"].update(
            pinned=False,
            not_checked=["device 0: its health was not checked; AI cores 0 %, memory not told, no processes"],
        )
        report["body"]["cells"][2]["origin"] = "outdated: another model"
        report["body"]["cells"][0]["origin"] = "on cpu, user-supplied ONNX and bins"
        measured["performances"][0].update(runner="ais_bench", place="on cpu (ais_bench)", pinned=False, loops=5)
        measured["performances"][0]["warning"] = (
            "4 times that count: fewer than 20 say little; the average is known to 9.4 % only. "
            "Measure again with more loops (up to 100) or on an idle machine"
        )
        measured["performances"][1].update(origin="user-supplied log", times_ms=[1.0] * 200)
        measured["pins"].update(pinned=False, notes=["not pinned: its record does not say so"])
        report["verdict"]["why_not_accepted"] += [
            "backend cpu (taken by auto): no NPU was used",
            "20 loops of a performance run: the guide's has 100",
            "the published table has batch sizes 1, 4, 16 too",
            "the gates are not those of deberta/gates.toml: official, fps (left out)",
            "no gate looks at the accuracy of profile mine",
            "user-supplied fps, not measured here: bs 8 match",
        ]

    made = [report_helpers.example_report(folder / backend, backend) for backend in ("ascend", "cpu")]
    samples = [report_samples.mnli(), report_samples.demo(), report_samples.failed(), report_samples.limited()]
    bare = changed(report_samples.mnli(), lambda report: report.update(verdict=None))
    devices = changed(report_samples.mnli(), report_samples.on_devices)
    return [*made, *samples, bare, changed(report_samples.demo(), change), devices]


def test_every_text_of_a_report_has_its_phrase(tmp_path: Path) -> None:
    missing: set[str] = set()
    for content in _reports(tmp_path):
        report, book = msgspec.convert(content, Report), Phrases("zh")
        page, text = html(report, "report.json", book), markdown(report, book)
        missing |= book.missing
        english = markdown(report, Phrases("en"))
        assert '<html lang="zh-CN">' in page and text.count("|") == english.count("|")
        for number in re.findall(r"\d+\.\d+", english):
            assert number in text
    names = ("invoke acceptance", "Example CPU", "Figures of an example.")
    assert [text for text in sorted(missing) if ENGLISH.search(text) and not text.startswith(names)] == []


def test_texts_of_the_data_and_long_texts_stay(tmp_path: Path) -> None:
    """A genre or a sentence may read like one of our texts, and text from outside takes no time."""

    def change(report: dict[str, Any]) -> None:
        row = report["measured"]["wrong_rows"][0]["rows"][0]
        row.update(premise="not judged", hypothesis="{n} of {m} <b>")

    report = msgspec.convert(changed(report_samples.demo(), change), Report)
    page = html(report, "", Phrases("zh"))
    assert '<td class="data">not judged</td><td class="data">{n} of {m} &lt;b&gt;</td>' in page
    book = Phrases("zh")
    assert book.say("bs 8: 7 of 9") == "bs 8: 7 of 9" and book.say("7 of 9") == "7 / 9"
    assert book.say("gate: {x} of {0.__class__}") == "门禁：{x} of {0.__class__}"
    started = time.monotonic()
    for filling in (", 1 of 2, ", "; ", " ({x}) ", "a: b, found c, required d"):
        book.say(filling * (phrases.LONGEST // len(filling)))
        assert book.say(filling * phrases.LONGEST) == filling * phrases.LONGEST
    assert time.monotonic() - started < 2
    for number in range(phrases.MOST):
        book.say(f"{number} of x")
    assert book.say("8 of 9") == "8 of 9"  # the report has too many texts


@pytest.mark.parametrize("gate", report_format.GATES)
def test_names_of_gates_are_the_same_in_each_language(gate: str) -> None:
    assert Phrases("zh").say(gate) == gate
