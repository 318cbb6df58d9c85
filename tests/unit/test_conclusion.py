"""What an acceptance came to: its last line, JUnit's XML, the summary of a CI step, and --require."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable
from xml.etree import ElementTree

import msgspec
import pytest

from deberta.core.errors import ConfigError, DataError, GateError
from deberta.core.report import Report
from deberta.host.plan import profiles
from deberta.host.plan.plan import Plan
from deberta.host.workflows import conclusion
from tests import report_samples as samples

# Element: its attributes that must be there, and that may be: of junit-10.xsd in Jenkins' xunit plugin, as far as used.
JUNIT_ATTRIBUTES = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"time", "skipped"}),
    "testcase": ({"name"}, {"time", "classname"}),
    "failure": (set(), {"type", "message"}),
    "skipped": (set(), {"type", "message"}),
}
HOSTILE = "</failure>]]>\x1b[2J|\u202e<b>"


def result(sample: dict[str, Any], folder: Path) -> conclusion.AcceptanceDocument:
    report = msgspec.convert(sample, Report)
    settings = {"checkpoint": "m.bin", "config": "c.json", "tokenizer": "spm.model", "dataset": "MNLI"}
    profile = profiles.load(report.body.profile, {report.body.profile: settings})
    return conclusion.document(folder, Plan(profile, report.body.backend, report.body.limit), report, "kept here")


@pytest.mark.parametrize(
    ("sample", "line"),
    [
        (samples.mnli, "accepted (ascend, 100 loops, mnli)  M 90.46  MM 90.71  5.2 fps at bs 64  18/18 gates  "),
        (
            samples.demo,
            "checked (cpu, 100 loops, demo)  M 99.08  MM 96.42  512.1 fps at bs 8  4/4 gates, 1 not judged  ",
        ),
        (
            samples.failed,
            "failed: correct_rows (bs 1, match) (cpu, 100 loops, demo)  M 99.08  MM 96.42  "
            "512.1 fps at bs 8  3/4 gates, 1 not judged  ",
        ),
        (samples.limited, "checked (cpu, first 64 rows, 100 loops, demo)  M 96.67  512.1 fps at bs 8  4/4 gates, "),
    ],
)
def test_the_last_line(
    sample: Callable[[], dict[str, Any]], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result(sample(), tmp_path)
    last = conclusion.text(found).splitlines()[-1]
    assert last == found.summary and last.startswith(line)
    page = tmp_path / found.report.html
    assert last.endswith(f"  {page}")
    page.parent.mkdir(parents=True)
    monkeypatch.chdir(page.parent)
    assert result(sample(), tmp_path).summary.endswith(f"  {page.name}")


def test_what_is_required(tmp_path: Path) -> None:
    accepted, checked, failed = (result(sample(), tmp_path) for sample in (samples.mnli, samples.demo, samples.failed))
    for found, require in ((accepted, "accepted"), (accepted, "checked"), (checked, "checked"), (checked, "")):
        conclusion.check(found, require)
    with pytest.raises(GateError, match=r"--require accepted: the verdict is checked \(backend cpu: no NPU was used, "):
        conclusion.check(checked, "accepted")
    with pytest.raises(GateError, match=r"a gate failed: correct_rows \(bs 1, match\)"):
        conclusion.check(failed)


def test_junit_has_a_case_for_each_gate_and_takes_any_text(tmp_path: Path) -> None:
    sample = samples.failed()
    sample["verdict"]["gates"][0].update(found=HOSTILE, of=HOSTILE)
    found = result(sample, tmp_path)
    root = ElementTree.fromstring(conclusion.junit(found).encode())
    [suite] = root
    assert (root.tag, suite.tag, {case.tag for case in suite}) == ("testsuites", "testsuite", {"testcase"})
    for element in root.iter():
        required, optional = JUNIT_ATTRIBUTES[element.tag]
        assert required <= set(element.attrib) <= required | optional
    counts = {"tests": str(len(found.gates)), "failures": "1", "errors": "0"}
    assert {key: root.attrib[key] for key in counts} == {key: suite.attrib[key] for key in counts} == counts
    assert suite.attrib["skipped"] == "1"
    assert all({"name", "classname", "time"} == set(case.attrib) for case in suite)
    states = [[inner.tag for inner in case] for case in suite]
    assert states == [["failure"], [], [], [], ["skipped"]]
    assert suite[0][0].attrib["message"].startswith("found </failure>]]>\\u001b[2J|\\u202e<b>, required at least 1154")
    assert suite[-1][0].attrib == {"message": "backend cpu: its fps says nothing about an NPU"}


def test_junit_replaces_an_acceptances_own_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    conclusion.prepare_junit(path)
    path.write_text(conclusion.junit(result(samples.demo(), tmp_path)))
    conclusion.prepare_junit(path)
    assert not path.exists()
    path.write_text("<testsuites/>")
    with pytest.raises(DataError, match="no acceptance wrote it"):
        conclusion.prepare_junit(path)
    with pytest.raises(ConfigError, match="its folder is not there"):
        conclusion.prepare_junit(tmp_path / "no" / "junit.xml")


def test_the_summary_of_a_step_is_appended_and_escaped(tmp_path: Path) -> None:
    sample, page = samples.failed(), tmp_path / "summary.md"
    sample["verdict"]["gates"][0].update(found=HOSTILE)
    page.write_text("before\n")
    conclusion.append_summary(page, result(sample, tmp_path))
    conclusion.append_summary(None, result(sample, tmp_path))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n### failed: profile demo on cpu\n") and "\x1b" not in text and "<b>" not in text
    assert re.search(
        r"^\| correct_rows \| bs 1, match \| &lt;/failure>.*\| at least 1154 of 1200 \|$", text, re.MULTILINE
    )
    assert "| 8 | match | 99.08 % | 512.1 |" in text and text.count("| 8 | mismatch |") == 1


def test_a_slow_device_is_named_beside_the_others(tmp_path: Path) -> None:
    slow = result(samples.changed(samples.mnli(), samples.on_devices), tmp_path)
    line = "node-2/0: 3.250 fps at bs 1 match, -25.0 % beside node-1/0, and the noise is 5.0 %"
    assert slow.slow_devices == [line] and f"slow device: {line}\n" in conclusion.text(slow)
    assert result(samples.mnli(), tmp_path).slow_devices == []
