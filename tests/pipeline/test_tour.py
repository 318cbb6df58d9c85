"""docs/tour.md is what the commands print: its structure with every test, all of it with the slow ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from invoke.parser.context import ParserContext
from invoke.parser.parser import Parser

import tasks
from tests import tour
from tests.mnli_helpers import REPOSITORY


def blocks() -> list[str]:
    return re.findall(r"(?ms)^```console\n\$ (.*?)\n```$", tour.PAGE.read_text(encoding="utf-8"))


def test_the_page_has_the_tours_commands_in_order_and_each_is_one() -> None:
    text = tour.PAGE.read_text(encoding="utf-8")
    assert text.startswith(tour.HEAD)
    headings = [(stop.heading, stop.text) for stop in tour.TOUR]
    assert re.findall(r"(?m)^## (.*)$", text) == [heading for heading, _ in headings]
    assert len(blocks()) == len(tour.TOUR)
    for block, stop in zip(blocks(), tour.TOUR, strict=True):
        assert block.startswith(f"{stop.line}\n") or block == stop.line
        words = shlex.split(stop.line)
        if words[0] == "./inv" and words[1:]:
            contexts = tasks.namespace.to_contexts()
            assert Parser(contexts, initial=ParserContext()).parse_argv(words[1:])


def test_what_varies_has_one_form_and_the_rest_stays() -> None:
    first = (
        "perf bs=8 match on cpu: 31.4 fps (p50 28.481 ms) 20261128T134251Z_38c02b46 99.08 % (1189/1200), done in 2 s"
    )
    other = "perf bs=8 match on cpu: 160 fps (p50 8 ms) 20271128T134251Z_00000000 99.08 % (1189/1200), done in 32.8 s"
    assert tour.same_form(first) == tour.same_form(other)
    assert tour.same_form(first) != tour.same_form(first.replace("1189", "1188"))


@pytest.mark.slow
def test_the_commands_print_what_the_page_says(tmp_path: Path) -> None:
    missing = [name for name in (*tour.ENVIRONMENTS, ".git") if not (REPOSITORY / name).exists()]
    if missing:
        pytest.skip(f"the tour runs in a clone with this folder's environments, and here is no {', '.join(missing)}")
    new = tour.page(tour.play(tmp_path / "deberta-ascend"))
    assert tour.same_form(new) == tour.same_form(tour.PAGE.read_text(encoding="utf-8"))
