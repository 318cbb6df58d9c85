"""Performance runs of several devices in a report: which is slow, what their sum is, and where none of it stands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deberta.core.errors import DataError, MissingError
from deberta.core.paths import Artifacts
from deberta.core.report import Report
from deberta.stages.report import assess, tables
from deberta.stages.report.markdown import markdown
from deberta.stages.report.phrases import Phrases
from tests import report_helpers

ARTIFACTS = Artifacts("demo", "ascend")
MS = 2.0 + 1.9 * 8  # of a batch of 8, on the device that the report's own figures are of


def _job(root: Path, slower: Mapping[str, float], own: str = "a/0", **values: Any) -> Path:
    """A job with runs of further devices at batch size 8, each so many times slower than the first one."""
    path = report_helpers.example_job(root, backend="ascend")
    job = msgspec.json.decode(path.read_bytes())
    run = next(r for r in job["performances"] if (r["batch_size"], r["version"]) == (8, "match"))
    run["device"] = own
    logs = {name: str(ARTIFACTS.device_log(8, "match", name)) for name in slower}
    for name, factor in slower.items():
        report_helpers.write_timing_log(root / logs[name], MS * factor, loops=99)
    return report_helpers.write_json(
        path, {**job, "on_devices": [{**run, "device": name, "log": logs[name], **values} for name in slower]}
    )


def _report(root: Path, slower: Mapping[str, float], **values: Any) -> Report:
    return assess.assess(assess.read_job(_job(root, slower, **values)), root)


def test_a_slow_device_is_named_and_the_sum_stands_alone(tmp_path: Path) -> None:
    report = _report(tmp_path, {"a/1": 1.004, "b/0": 1.3, "b/1": 1.001})
    [runs] = report.measured.device_runs
    assert [(each.device, each.conclusion) for each in runs.devices] == [
        ("a/0", "no difference"),
        ("a/1", "no difference"),
        ("b/0", "slower"),
        ("b/1", "no difference"),
    ]
    slow = runs.devices[2]
    assert slow.change == pytest.approx(1 / 1.3 - 1, abs=0.01) and runs.reference in ("a/1", "b/1", "a/0")
    assert runs.sum == pytest.approx(sum(each.fps for each in runs.devices))
    text = markdown(report, Phrases("en"))
    assert f"Slow: b/0 (bs 8 match), {100 * slow.change:+.1f} % beside {runs.reference}, noise " in text
    total = tables.rounded(runs.sum)
    assert text.count(total) == 1 and f"| sum of 4 devices |  | {total} |" in text
    alone = assess.assess(
        assess.read_job(report_helpers.example_job(tmp_path / "alone", backend="ascend")), tmp_path / "alone"
    )
    assert report.body_sha256 == alone.body_sha256 and report.verdict == alone.verdict
    assert report.measured.performances == alone.measured.performances and not alone.measured.device_runs
    assert "## Devices" not in markdown(alone, Phrases("en"))


def test_within_the_noise_no_device_is_slow(tmp_path: Path) -> None:
    """Of two the faster one is what the other is compared with, whichever the report's own figures are of."""
    [runs] = _report(tmp_path, {"a/1": 0.98}, own="").measured.device_runs
    assert runs.reference == "a/1" and [each.conclusion for each in runs.devices] == ["no difference"] * 2
    assert [each.device for each in runs.devices] == ["", "a/1"] and runs.devices[0].noise
    text = markdown(_report(tmp_path / "b", {"a/1": 0.98}, own=""), Phrases("en"))
    assert "| 8 | match | first device | 100 |" in text and "Slow: " not in text


def test_what_stands_behind_a_devices_run_is_told(tmp_path: Path) -> None:
    report = _report(tmp_path, {"a/1": 1.0}, pinned=False, not_checked=["its health"])
    assert report.measured.device_runs[0].devices[1].remarks == ["not pinned", "its health"]


def test_a_log_that_is_no_log_is_an_error(tmp_path: Path) -> None:
    path = _job(tmp_path, {"a/1": 1.0})
    log = tmp_path / ARTIFACTS.device_log(8, "match", "a/1")
    log.write_text(log.read_text().replace("without first time: ", "without first time: 9"))
    with pytest.raises(DataError, match=r"msame_bs8_match\.device-a-1\.txt: its average is"):
        assess.assess(assess.read_job(path), tmp_path)
    log.unlink()
    with pytest.raises(MissingError, match=r"device-a-1\.txt is missing"):
        assess.assess(assess.read_job(path), tmp_path)
    with pytest.raises(DataError, match="it names one of its runs on devices twice"):
        assess.read_job(_job(tmp_path / "twice", {"a/0": 1.0}))
