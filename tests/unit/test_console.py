"""Who reads the output decides how it looks: a terminal, a file, a log of GitHub or GitLab."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from deberta.core import progress
from deberta.core.errors import ERROR_STREAM, VisibleStream
from deberta.host.run.console import Console, Surroundings, surroundings

HOSTILE = "x\x1b[2J\u202e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TERM": "xterm"}, Surroundings(terminal=True, colour=True)),
        ({"TERM": "xterm", "NO_COLOR": "1"}, Surroundings(terminal=True)),
        ({"TERM": "xterm", "NO_COLOR": "", "CI": "false"}, Surroundings(terminal=True, colour=True)),
        ({"TERM": "dumb"}, Surroundings(terminal=False)),
        ({}, Surroundings(terminal=False)),
        ({"TERM": "xterm", "CI": "true", "GITLAB_CI": "true"}, Surroundings(terminal=False, groups="gitlab")),
        (
            {"CI": "1", "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "/s"},
            Surroundings(terminal=False, groups="github", step_summary=Path("/s")),
        ),
    ],
)
def test_what_the_environment_says(variables: dict[str, str], expected: Surroundings) -> None:
    assert surroundings(variables) == expected


def printed(around: Surroundings) -> str:
    terminal = Terminal()
    stream = VisibleStream(terminal, ERROR_STREAM, around.terminal, around.colour)
    with contextlib.redirect_stderr(stream):
        console = Console("infer bs=8")
        with console.group(around.groups):
            console.say(HOSTILE)
            console.line("[progress] infer: 30/120 batches 12 s left")
        console.close()
    return terminal.getvalue()


def test_a_terminal_has_a_bar_and_colours_and_nothing_of_what_is_told() -> None:
    text = printed(Surroundings(colour=True))
    assert text.startswith("\x1b[1m[infer bs=8]\x1b[0m x\\u001b[2J\\u202e\n")
    assert "\r\x1b[K[infer bs=8] infer: [#####...............] 30/120 batches 12 s left" in text
    assert "\x1b[1m" not in printed(Surroundings())
    assert printed(Surroundings(terminal=False)) == "[infer bs=8] x\\u001b[2J\\u202e\n"


def test_a_line_that_is_redrawn_fits_its_terminal_and_hours_are_no_seconds() -> None:
    terminal = Terminal()
    for rest in (60, 300):
        progress.redraw(terminal, "what: 1/2 " + "x" * rest)
    short, cut = terminal.getvalue().split("\r\x1b[K")[1:]
    assert short == "what: [###...] 1/2 " + "x" * 60 and len(short) == len(cut) == 79 and "[" not in cut
    assert [progress.duration(seconds) for seconds in (12.2, 600, 9000)] == ["12 s", "10 min", "2.5 h"]


@pytest.mark.parametrize(
    ("kind", "start", "end"),
    [
        ("github", "::group::infer bs=8\n", "::endgroup::\n"),
        (
            "gitlab",
            r"\x1b\[0Ksection_start:\d+:infer_bs_8\[collapsed=true\]\r\x1b\[0Kinfer bs=8\n",
            r"\x1b\[0Ksection_end:\d+:infer_bs_8\r\x1b\[0K\n",
        ),
    ],
)
def test_a_step_is_folded_in_a_services_log(kind: str, start: str, end: str) -> None:
    text = printed(Surroundings(terminal=False, groups=kind))
    assert re.fullmatch(rf"{start}\[infer bs=8\] .*\n{end}", text)
