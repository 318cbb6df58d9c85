"""Every command in the documentation is one that exists, and those that need nothing but the demo are run."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import pytest

from deberta.core.contract import VERSIONS
from deberta.host.workflows import development
from tests import in_process
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import environment, make_small_demo

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), REPOSITORY / "docker/README.md"])
# Not to be run inside the tests: they would fetch, train for minutes, be this very run, or compare two acceptances
# that differ (tests/pipeline/test_diff_task.py has such). Nor is what needs an earlier report (--baseline)
# or an engine, and what downloads: tests/container/test_offline.py runs such blocks.
ROWS = 64
ONLY_PARSED = ("fetch", "finetune", "test", "lint", "clean", "doctor", "diff", "wheelhouse", "images", "cluster")
RUN_ELSEWHERE = ("demo", "reproduce")  # whole: test_demo.py, test_reproduce.py


def blocks() -> list[tuple[str, str]]:
    """(page, command line) of every line in a ```sh block."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            found += [(page.name, line) for line in block.splitlines() if line.strip()]
    return found


def inline() -> list[tuple[str, str]]:
    """(page, command line) of every `invoke ...` or `./inv ...` in running text."""
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        found += [(page.name, line) for line in re.findall(r"`((?:invoke|\./inv) [^`]+)`", text)]
    return found


@cache
def options_of(task: str) -> str:
    done = in_process.run_invoke(["--help", task], REPOSITORY, environment())
    assert done.returncode == 0, f"there is no task {task!r}"
    return done.stdout


@pytest.mark.parametrize(("page", "line"), sorted(set(blocks() + inline())))
def test_command_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(line)
    assert words[0] in ("./inv", "invoke"), line
    if words[1] == "explain" and len(words) > 3:
        words = words[1:]  # what follows are options of the task that is explained
    if words[1].startswith("-"):
        return  # invoke's own option
    known = options_of(words[1])
    for word in words[2:]:
        if word.startswith("--"):
            assert re.search(rf"(?<![\w-]){re.escape(word.split('=')[0])}(?![\w-])", known), f"{page}: {line}"


def test_blocks_run(tmp_path: Path) -> None:
    """Each once and as they stand, but on the first rows of the demo, without its training, and with fewer loops."""
    workspace = make_small_demo(tmp_path, ROWS, dict.fromkeys(VERSIONS, (ROWS, ROWS)))
    ran = 0
    for words in dict.fromkeys(tuple(shlex.split(line)[1:]) for _, line in blocks()):
        if words[0] in ONLY_PARSED or words[0].startswith("-") or {"--baseline", "--cluster", "docker"} & {*words}:
            continue
        if words[0] in RUN_ELSEWHERE and "--remake" not in words:
            continue
        more = [] if words[0] == "demo" or "--profile" in words else ["--profile", "demo"]
        more += ["--loops", "10"] if words[0] == "perf" and "--loops" not in words else []
        more += ["--dry"] if "--remake" in words else []
        workspace.succeed(*words, *more)
        ran += 1
    assert ran >= 6


def test_readme_says_how_long_the_tests_take() -> None:
    english, chinese = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
    minutes = development.TEST_MINUTES
    assert f"about {minutes} minutes on two CPUs" in english and f"两个 CPU 上约 {minutes} 分钟" in chinese
