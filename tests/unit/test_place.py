"""A file that is linked or copied: a second name or a copy, and never over another."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from deberta.core import files


def test_a_file_gets_a_second_name_or_a_copy(tmp_path: Path) -> None:
    source, link = tmp_path / "mine", tmp_path / "link"
    source.write_text("content")
    link.symlink_to(source)
    files.link_or_copy(link, tmp_path / "a/linked")
    assert os.path.samefile(source, tmp_path / "a/linked") and not (tmp_path / "a/linked").is_symlink()
    files.link_or_copy(link, tmp_path / "copied", copy=True)
    with mock.patch("os.link", side_effect=OSError(18, "Invalid cross-device link")):
        files.link_or_copy(link, tmp_path / "across")
    for name in ("copied", "across"):
        assert (tmp_path / name).read_text() == "content" and not os.path.samefile(source, tmp_path / name)


@pytest.mark.parametrize("kind", ["file", "folder", "broken link"])
@pytest.mark.parametrize("copy", [True, False])
def test_nothing_is_replaced(tmp_path: Path, kind: str, copy: bool) -> None:
    source, target = tmp_path / "mine", tmp_path / "there"
    source.write_text("content")
    if kind == "file":
        target.write_text("theirs")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        files.link_or_copy(source, target, copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "there"]
