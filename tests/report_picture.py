"""README's pictures of the demo's report, in both languages, made after README's two commands:
`.venv-stages/bin/python -m tests.report_picture results/demo/cpu/report.json docs`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from deberta.stages.report import render
from tests import browser_helpers

NAMES = {"en": "report.png", "zh": "report.zh-CN.png"}
LARGEST = 150_000  # bytes
SCREEN = {"width": 1280, "height": 530}  # px, down to the links to the sections


def take(report: Path, folder: Path) -> None:
    """Write a picture of the first screen of a report's page in each language. Raises ValueError for a large one."""
    with tempfile.TemporaryDirectory() as scratch, browser_helpers.browser() as browser:
        for language, name in NAMES.items():
            page = Path(scratch) / f"{language}.html"
            options = ["--markdown", str(page.with_suffix(".md")), "--html", str(page), "--language", language]
            render.main(["--report", str(report), *options])
            with browser_helpers.opened(browser, page, SCREEN["width"]) as (window, _, _):
                window.set_viewport_size({"width": SCREEN["width"], "height": SCREEN["height"]})
                picture = window.screenshot()
            if len(picture) > LARGEST:
                raise ValueError(f"{name} has {len(picture):,} bytes, at most {LARGEST:,} fit README")
            (folder / name).write_bytes(picture)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]))
