"""report.html in a real browser: on a desk, on a phone, in the dark and on paper."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Literal

import pytest
from playwright.sync_api import Browser

from deberta.stages.report import render
from tests import browser_helpers, report_samples

REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "accepted": report_samples.mnli,
    "checked": report_samples.demo,
    "failed": report_samples.failed,
    "limited": report_samples.limited,
}
WIDTHS = (360, 1280)


@pytest.fixture(name="browser", scope="module")
def _browser() -> Iterator[Browser]:
    with browser_helpers.browser() as started:
        yield started


@pytest.fixture(name="shots", scope="module")
def _shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures are kept: a folder of the user's, REPORT_SCREENSHOTS, or pytest's own."""
    kept = os.environ.get("REPORT_SCREENSHOTS")
    folder = Path(kept).resolve() if kept else tmp_path_factory.mktemp("shots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(name="page_of", scope="module")
def _page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of one of the reports, made as a user's is."""
    folder = tmp_path_factory.mktemp("pages")

    def make(name: str) -> Path:
        path = report_samples.write(folder / f"{name}.json", REPORTS[name]())
        page = path.with_suffix(".html")
        render.main(["--report", str(path), "--markdown", str(path.with_suffix(".md")), "--html", str(page)])
        return page

    return make


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPORTS)
def test_page(
    browser: Browser,
    page_of: Callable[[str], Path],
    shots: Path,
    name: str,
    width: int,
    scheme: Literal["light", "dark"],
) -> None:
    """It asks for nothing, complains about nothing, fits its window, and can be read."""
    path = page_of(name)
    with browser_helpers.opened(browser, path, width, scheme) as (page, asked, said):
        picture = shots / f"{name}_{width}_{scheme}.png"
        page.screenshot(path=picture, full_page=True)
        assert (asked, said) == ([path.as_uri()], [])
        assert browser_helpers.overflow(page) <= 0
        assert browser_helpers.faint(page) == []
        assert browser_helpers.crowded(page) == []
        assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_on_paper(browser: Browser, page_of: Callable[[str], Path], shots: Path) -> None:
    """Black on white from a dark screen too, and no table is cut off at the paper's edge."""
    with browser_helpers.opened(browser, page_of("accepted"), 1280, "dark") as (page, _, _):
        page.emulate_media(media="print", color_scheme="dark")
        ground, ink = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (ground, ink) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
        page.set_viewport_size({"width": 688, "height": 972})  # A4 without its margins, at 96 px to the inch
        assert browser_helpers.overflow(page) <= 0
        assert browser_helpers.faint(page) == []
        paper = shots / "accepted.pdf"
        page.pdf(path=paper, format="A4", prefer_css_page_size=True)
        content = paper.read_bytes()
        assert content.startswith(b"%PDF") and content.count(b"/Type /Page\n") >= 2


def test_what_the_checks_find(browser: Browser, tmp_path: Path) -> None:
    """The page's own checks see a page that does everything wrong."""
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        '<!DOCTYPE html><title>x</title><body style="margin:0"><p style="color:#bbb;width:2000px">faint</p>'
        '<svg width="100" height="20"><text x="0" y="15">one text</text><text x="9" y="15">another</text></svg>'
        '<img src="missing.png"><script>console.log("said")</script>'
    )
    with browser_helpers.opened(browser, wrong, 360) as (page, asked, said):
        assert len(asked) == 2 and "said" in said and browser_helpers.overflow(page) > 1000
        assert [text.split(":")[0] for text in browser_helpers.faint(page)] == ["faint"]
        assert "one text and another overlap" in browser_helpers.crowded(page)


def test_without_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("BROWSER_TESTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        browser_helpers.need()
    monkeypatch.setenv("BROWSER_TESTS", "required")
    with pytest.raises(pytest.fail.Exception, match="no chromium"):
        browser_helpers.need()
