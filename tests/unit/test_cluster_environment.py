"""The environment of a cluster's commands: a command replaces itself by the same one in it, once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from deberta import PROJECT
from deberta.core.errors import MissingError
from deberta.host.environments import cluster, locks, stages, venvs


def test_its_lock_has_the_hosts_packages_at_the_same_versions() -> None:
    own = stages.locked_versions(PROJECT / cluster.CLUSTER_LOCK)
    host = {package.name: package.version for package in locks.read(PROJECT / venvs.HOST_LOCK)}
    assert {name: own.get(name) for name in host} == host
    assert {"distributed", "cryptography"} <= set(own) and "torch" not in own


def test_a_command_is_replaced_by_the_same_one_in_it_and_never_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / cluster.FOLDER / "bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    for folder in (tmp_path, tmp_path / cluster.FOLDER):
        (folder / cluster.CLUSTER_LOCK).write_text("x==1\n")
    replaced: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, arguments: replaced.append(arguments))
    monkeypatch.setattr(sys, "argv", ["inv", "cluster", "show", "--json"])
    monkeypatch.delenv(cluster.REPLACED, raising=False)
    cluster.enter(tmp_path)
    assert replaced == [[str(python), str(tmp_path / "tasks.py"), "cluster", "show", "--json"]]
    with pytest.raises(MissingError, match=r"does not run as the Python of .*Remove that folder"):
        cluster.enter(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / cluster.FOLDER))
    cluster.enter(tmp_path)
    assert len(replaced) == 1 and cluster.REPLACED not in os.environ
