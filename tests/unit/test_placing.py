"""Files of the user's are linked or copied into the workspace, all of them or none."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from deberta.core import files
from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.host.user_files.placing import Placement, placed


def sources(tmp_path: Path) -> list[Placement]:
    folder = tmp_path / "theirs"
    (folder / "bins" / "input_ids").mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights")
    (folder / "link").symlink_to("weights")
    (folder / "bins" / "input_ids" / "input_0.bin").write_bytes(b"bin")
    names = {"weights": "models/own/weights", "link": "models/own/model/link", "bins": "data/own/bins"}
    return [Placement(folder / name, PurePosixPath(target)) for name, target in names.items()]


@pytest.mark.parametrize("copy", [False, True])
def test_all_are_in_place(copy: bool, tmp_path: Path) -> None:
    placements, root = sources(tmp_path), tmp_path / "workspace"
    with placed(root, placements, copy) as new:
        assert new == placements
    for source, target in placements:
        assert (root / target).is_symlink() is not copy
        assert copy or os.readlink(root / target) == os.path.realpath(source)
        assert (root / target).is_dir() == source.is_dir()
    content = ["data/own/bins/input_ids/input_0.bin"] if copy else []  # the walk follows no links
    assert files.files_in(root) == [*content, "models/own/model/link", "models/own/weights"]
    for again in (False, True):  # what is there already, and the same, stays
        with placed(root, placements, again) as new:
            assert new == []


@pytest.mark.parametrize("copy", [False, True])
def test_a_failure_takes_everything_back(copy: bool, tmp_path: Path) -> None:
    placements, root = sources(tmp_path), tmp_path / "workspace"
    (root / "models").mkdir(parents=True)
    (root / "models" / "kept").touch()
    with pytest.raises(KeyboardInterrupt), placed(root, placements, copy):
        assert (root / "data/own/bins/input_ids/input_0.bin").exists()
        raise KeyboardInterrupt
    assert sorted(path.name for path in root.rglob("*")) == ["kept", "models"]
    assert (tmp_path / "theirs/bins/input_ids/input_0.bin").read_bytes() == b"bin"


def test_a_failure_leaves_what_was_there_before_or_came_in_between(tmp_path: Path) -> None:
    placements, root = sources(tmp_path), tmp_path / "workspace"
    with placed(root, placements[:1]):
        pass
    with pytest.raises(OSError, match="full"), placed(root, placements):
        (root / "data/own/log").touch()
        raise OSError("full")
    assert files.files_in(root) == ["data/own/log", "models/own/weights"]


def test_what_is_in_the_way_is_named_and_nothing_is_made(tmp_path: Path) -> None:
    placements, root = sources(tmp_path), tmp_path / "workspace"
    (root / "models/own").mkdir(parents=True)
    (root / "models/own/weights").write_bytes(b"others")
    (root / "data/own").mkdir(parents=True)
    (root / "data/own/bins").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"models/own/weights, data/own/bins: something else"), placed(root, placements):
        raise AssertionError
    assert not (root / "models/own/model").exists()


def test_a_source_that_is_no_file(tmp_path: Path) -> None:
    target = PurePosixPath("models/own/weights")
    with pytest.raises(MissingError, match=r"/a, .*/b: not there"):
        placed(tmp_path, [Placement(tmp_path / name, target) for name in "ab"]).__enter__()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="neither a file nor a folder"):
        placed(tmp_path, [Placement(tmp_path / "fifo", target)]).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]
