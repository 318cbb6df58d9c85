"""Each Chinese page has its English page's headings, blocks, tables and links, and the language it links to is said."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.mnli_helpers import REPOSITORY

SUFFIX = ".zh-CN.md"
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)(（英文）)?")
CHINESE = sorted(
    str(path.relative_to(REPOSITORY)) for folder in ("", "docs") for path in (REPOSITORY / folder).glob(f"*{SUFFIX}")
)


def english_of(name: str) -> str:
    return name[: -len(SUFFIX)] + ".md"


@cache
def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ .*", FENCE.sub("", text), re.MULTILINE)


def levels(text: str) -> list[int]:
    return [line.index(" ") for line in headings(text)]


def sections(text: str) -> list[str]:
    return re.split(r"^#+ ", FENCE.sub("", text), flags=re.MULTILINE)


def code(text: str) -> set[str]:
    return set(re.findall(r"`[^`\n]+`", text))


def tables(text: str) -> list[list[int]]:
    """The number of cells of each row, table by table."""
    plain = re.sub(r"`[^`\n]+`", "code", FENCE.sub("", text))
    found = re.findall(r"(?:^\|.*\n?)+", plain, re.MULTILINE)
    return [[line.count("|") - 1 for line in table.strip().splitlines()] for table in found]


def rows(text: str) -> list[list[str]]:
    """The code of each row of each table, sorted: another language has another order of words."""
    return [sorted(re.findall(r"`[^`\n]+`", line)) for line in re.findall(r"^\|.*", FENCE.sub("", text), re.MULTILINE)]


def target(page: str, link: str) -> str:
    """The file that a link of a page leads to, from the repository's root."""
    path = (REPOSITORY / page).parent / link.partition("#")[0]
    return str(path.resolve().relative_to(REPOSITORY.resolve()))


def links(page: str) -> list[tuple[str, str, bool]]:
    """(link, the file it leads to, whether it is said to be English) of each link to a file of the repository."""
    found = LINK.findall(FENCE.sub("", read(page)))
    return [(link, target(page, link), bool(said)) for link, said in found if "://" not in link]


def anchors(name: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    texts = (line.partition(" ")[2].replace("`", "") for line in headings(read(name)))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in texts}


def test_there_are_chinese_pages_of_what_is_read_first() -> None:
    pages = ("tasks", "guide", "profiles", "ascend", "docker", "acceptance", "verify", "ci")
    assert set(CHINESE) >= {"README.zh-CN.md", *(f"docs/{name}{SUFFIX}" for name in pages)}


@pytest.mark.parametrize("page", CHINESE)
def test_page_is_in_step_with_the_english_one(page: str) -> None:
    chinese, english = read(page), read(english_of(page))
    assert levels(chinese) == levels(english)
    assert FENCE.findall(chinese) == FENCE.findall(english)
    assert tables(chinese) == tables(english)
    assert rows(chinese) == rows(english)
    for own, their in zip(sections(chinese), sections(english)):
        assert code(own) == code(their), own.partition("\n")[0]
        assert len(re.findall(r"^(?:- |\d+\. )", own, re.MULTILINE)) == len(
            re.findall(r"^(?:- |\d+\. )", their, re.MULTILINE)
        )


@pytest.mark.parametrize("page", CHINESE)
def test_links_lead_to_chinese_pages_or_say_that_they_do_not(page: str) -> None:
    pair = english_of(page)
    assert pair in {file for _, file, _ in links(page)} and page in {file for _, file, _ in links(pair)}
    for link, file, said in links(page):
        assert (REPOSITORY / file).exists(), link
        in_english = file.endswith(".md") and not file.endswith(SUFFIX) and file != pair
        assert said == in_english, f"{link}: say （英文） after a link to an English page, and of no other"
        assert not in_english or not (REPOSITORY / (file[:-3] + SUFFIX)).exists(), f"{link} has a Chinese page"
    own, their = ({file.replace(".zh-CN", "") for _, file, _ in links(name)} for name in (page, pair))
    assert own == their


@pytest.mark.parametrize("page", [*CHINESE, *map(english_of, CHINESE)])
def test_anchors_exist(page: str) -> None:
    for link, file, _ in links(page):
        anchor = link.partition("#")[2]
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("page", CHINESE)
def test_blanks_stand_around_latin_words(page: str) -> None:
    """Between a Chinese character and a Latin letter, digit or piece of code; no ASCII comma follows a Chinese one."""
    text = re.sub(r"\]\([^)]*\)", "]", FENCE.sub("", read(page)))
    text = re.sub(r"[\[\]*]", "", text)
    crowded = re.findall(r".{0,8}(?:[一-鿿][A-Za-z0-9`]|[A-Za-z0-9`%][一-鿿]|[一-鿿][,;:(]).{0,8}", text)
    assert not crowded
