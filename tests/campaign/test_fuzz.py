"""Every parser of data from outside, fed with what is almost valid: errors of ours come out, and in bounded time.

The mutations are our own, seeded and fast, because 200,000 inputs by hypothesis take hours; hypothesis makes the
structured ones (values of another kind, and texts of many sorts).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Optional

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deberta.core import errors, files
from tests.campaign import mutations
from tests.campaign.fuzz_parsers import NAMES, OF_JSON, Parser, parsers

INPUTS = int(os.environ.get("CAMPAIGN_INPUTS", "200000"))  # of each parser
SHARE = 40  # of them, with every test
SECONDS = 10  # for one input


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Parser]:
    table = parsers(tmp_path_factory.mktemp("seeds"))
    assert sorted(table) == NAMES
    return table


@contextmanager
def limited() -> Iterator[None]:
    def stop(number: int, frame: Optional[FrameType]) -> None:
        raise TimeoutError(f"one input took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read(parser: Parser, content: bytes, folder: Path) -> bool:
    """Whether it was refused. Anything but an error of ours is a failure of the test, which shows the input."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        parser.read(content, folder)
    except BaseException as error:
        if isinstance(error, (errors.DebertaError, files.UnfitFile, *parser.allowed)):
            return True
        if isinstance(error, KeyboardInterrupt):
            raise
        shown = content if len(content) < 3000 else content[:3000] + b"..."
        raise AssertionError(f"{type(error).__name__}: {error} of {shown!r}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


def fuzz(name: str, parser: Parser, count: int, folder: Path) -> None:
    source, started, refused = random.Random(name), time.monotonic(), 0
    documents: list[Any] = []
    for seed in parser.seeds:
        with suppress(ValueError):
            documents.append(json.loads(seed))
    with limited():
        for number in range(count):
            if documents and number % 2:
                content = json.dumps(mutations.with_other_values(source.choice(documents), source)).encode()
            else:
                seeds = parser.seeds
                content = mutations.mutated(source.choice(seeds), source.choice(seeds), source)
            refused += read(parser, content, folder)
    print(f"{name}: {count} inputs, {refused} refused, {time.monotonic() - started:.1f} s, 0 errors that are not ours")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_share(name: str, known: dict[str, Parser], tmp_path: Path) -> None:
    fuzz(name, known[name], SHARE, tmp_path)


@pytest.mark.campaign
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_all(name: str, known: dict[str, Parser], tmp_path: Path) -> None:
    fuzz(name, known[name], INPUTS, tmp_path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
QUICK = settings(
    max_examples=30, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@QUICK
@given(VALUES, st.sampled_from([name for name in NAMES if name in OF_JSON]))
def test_values_of_any_kind(known: dict[str, Parser], tmp_path: Path, value: Any, name: str) -> None:
    with limited():
        read(known[name], json.dumps(value).encode(), tmp_path)


@QUICK
@given(st.text(max_size=200), st.sampled_from(NAMES))
def test_texts_of_any_kind(known: dict[str, Parser], tmp_path: Path, text: str, name: str) -> None:
    with limited():
        read(known[name], text.encode("utf-8", errors="surrogatepass"), tmp_path)
