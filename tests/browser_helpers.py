"""A headless Chromium for tests of pages, and what to look at in a page. It is Debian's: apt-get install chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Optional

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")

# Texts with less contrast to what is behind them than WCAG 2.2 AA asks for: 4.5 to 1, of large ones 3 to 1.
# Colours are read back from a canvas, so that every notation (color-mix too) comes as numbers.
_FAINT = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data, (part) => part / 255);
  };
  const over = (top, under) => [0, 1, 2].map((k) => top[k] * top[3] + under[k] * (1 - top[3]));
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.unshift(rgba(getComputedStyle(at).backgroundColor));
    return layers.reduce((under, top) => over(top, under), [1, 1, 1]);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data.trim()).join("");
    if (!text || ["title", "desc"].includes(element.tagName)) continue;
    const style = getComputedStyle(element), ground = behind(element);
    const ink = over(rgba(element instanceof SVGElement ? style.fill : style.color), ground);
    const [low, high] = [luminance(ink), luminance(ground)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < (large ? 3 : 4.5)) found.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return found;
}"""
# Texts of a chart that stick out of it, run into each other or stand on a mark or an error bar, by their boxes on the
# screen, line gaps aside.
_CROWDED = """() => {
  const found = [];
  for (const chart of document.querySelectorAll("svg")) {
    const frame = chart.getBoundingClientRect();
    const boxes = [...chart.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
    boxes.forEach(([text, box], place) => {
      if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1
          || box.bottom > frame.bottom + 1) found.push(`${chart.id}: ${text} sticks out`);
      for (const [other, its] of boxes.slice(place + 1))
        if (box.left < its.right - 1 && its.left < box.right - 1
            && box.top < its.bottom - 3 && its.top < box.bottom - 3)
          found.push(`${text} and ${other} overlap`);
      for (const mark of chart.querySelectorAll(".whisker, .mark, .bar, .marked")) {
        const its = mark.getBoundingClientRect();
        if (box.left < its.right - .5 && its.left < box.right - .5
            && box.top < its.bottom - 3 && its.top < box.bottom - 3)
          found.push(`${chart.id}: ${text} stands on a ${mark.classList[0]}`);
      }
    });
  }
  return found;
}"""


# Tables that go on beyond their frame without saying so, and those that say so and end there.
_HINTS = """() => [...document.querySelectorAll(".scroll")].filter((frame) => frame.checkVisibility()
  && (frame.scrollWidth > frame.clientWidth + 1) !== (frame.querySelector(".hint").getBoundingClientRect().height > 0))
  .map((frame) => frame.querySelector("table").id)"""


def find() -> Optional[str]:
    """A Chromium on PATH, None if there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def need() -> str:
    """The Chromium's path; without one the test is skipped, or fails where BROWSER_TESTS=required."""
    path = find()
    if path is None:
        said = f"no {' or '.join(NAMES)} on PATH. On Debian: apt-get install chromium"
        if os.environ.get("BROWSER_TESTS") == "required":
            pytest.fail(said)
        pytest.skip(said)
    return path


@contextmanager
def browser() -> Iterator[Browser]:
    """The sandbox is off for root only, who cannot have it."""
    path = need()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, chromium_sandbox=os.geteuid() != 0)
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(
    browser: Browser, path: Path, width: int, scheme: Literal["light", "dark"] = "light"
) -> Iterator[tuple[Page, list[str], list[str]]]:
    """A page, every address that it asked for, and what it complained about."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    said: list[str] = []
    try:
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        yield page, asked, said
    finally:
        context.close()


def overflow(page: Page) -> int:
    """How many px the page is wider than its window."""
    found: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return found


def faint(page: Page) -> list[str]:
    """Texts that are hard to read, with their contrast."""
    found: list[str] = page.evaluate(_FAINT)
    return found


def crowded(page: Page) -> list[str]:
    """Texts of charts that stick out, overlap or stand on a mark."""
    found: list[str] = page.evaluate(_CROWDED)
    return found


def wrong_hints(page: Page) -> list[str]:
    """Tables whose hint to scroll is there and not needed, or the other way round."""
    found: list[str] = page.evaluate(_HINTS)
    return found


def below(page: Page, selector: str) -> list[str]:
    """The elements that are not whole on the first screen."""
    found: list[str] = page.evaluate(
        "(selector) => [...document.querySelectorAll(selector)].filter((element) =>"
        " element.getBoundingClientRect().bottom > innerHeight).map((element) => element.innerText)",
        selector,
    )
    return found


def unfold(page: Page) -> None:
    """Open all that can be opened."""
    page.evaluate("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
