"""README's pictures are made by their command, and are small."""

from __future__ import annotations

from pathlib import Path

from tests import report_picture, report_samples
from tests.mnli_helpers import REPOSITORY


def test_a_picture_in_each_language(tmp_path: Path) -> None:
    report_picture.take(report_samples.write(tmp_path / "report.json", report_samples.demo()), tmp_path)
    for name in report_picture.NAMES.values():
        for picture in (tmp_path / name, REPOSITORY / "docs" / name):
            data = picture.read_bytes()
            assert data.startswith(b"\x89PNG") and 20_000 < len(data) <= report_picture.LARGEST
