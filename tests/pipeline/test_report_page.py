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
SCREENS = ((390, 844), (1280, 900))  # a phone and a desk, px
KEPT = "REPORT_SCREENSHOTS" in os.environ  # then pictures are of whole pages
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


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
def _page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The page of one of the reports in a language, made as a user's is."""
    folder = tmp_path_factory.mktemp("pages")

    def make(name: str, language: str) -> Path:
        path = report_samples.write(folder / f"{name}.json", REPORTS[name]())
        page = folder / f"{name}_{language}.html"
        options = ["--markdown", str(page.with_suffix(".md")), "--html", str(page), "--language", language]
        render.main(["--report", str(path), *options])
        return page

    return make


@pytest.mark.parametrize(
    ("name", "language"), [*((name, "en") for name in REPORTS), ("accepted", "zh"), ("failed", "zh")]
)
def test_page(browser: Browser, page_of: Callable[[str, str], Path], shots: Path, name: str, language: str) -> None:
    """It asks for nothing, complains about nothing, fits its window, and can be read; its figures come first."""
    path = page_of(name, language)
    with browser_helpers.opened(browser, path, SCREENS[0][0]) as (page, asked, said):
        for width, height in SCREENS:
            page.set_viewport_size({"width": width, "height": height})
            assert browser_helpers.overflow(page) <= 0
            assert browser_helpers.crowded(page) == []
            assert browser_helpers.below(page, ".verdict, .tile") == []
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                picture = shots / f"{name}_{language}_{width}_{scheme}.png"
                page.screenshot(path=picture, full_page=KEPT)
                assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000
        browser_helpers.unfold(page)
        for width, height in SCREENS:
            page.set_viewport_size({"width": width, "height": height})
            assert browser_helpers.overflow(page) <= 0
            assert browser_helpers.wrong_hints(page) == []
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert browser_helpers.faint(page) == []
        assert (asked, said) == ([path.as_uri()], [])


def test_on_paper(browser: Browser, page_of: Callable[[str, str], Path], shots: Path) -> None:
    """Black on white from a dark screen too, and no table is cut off at the paper's edge."""
    with browser_helpers.opened(browser, page_of("accepted", "en"), 1280, "dark") as (page, _, _):
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
        '<svg width="100" height="20"><text x="0" y="15">one text</text><text x="9" y="15">another</text>'
        '<path class="mark" d="M5 0V20H9"/></svg>'
        '<img src="missing.png"><script>console.log("said")</script>'
    )
    with browser_helpers.opened(browser, wrong, 360) as (page, asked, said):
        assert len(asked) == 2 and "said" in said and browser_helpers.overflow(page) > 1000
        assert [text.split(":")[0] for text in browser_helpers.faint(page)] == ["faint"]
        crowded = browser_helpers.crowded(page)
        assert "one text and another overlap" in crowded and ": one text stands on a mark" in crowded


def test_without_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("BROWSER_TESTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        browser_helpers.need()
    monkeypatch.setenv("BROWSER_TESTS", "required")
    with pytest.raises(pytest.fail.Exception, match="no chromium"):
        browser_helpers.need()
