"""Workspaces that many of these tests begin with; each test copies what it changes."""

from __future__ import annotations

import pytest

from tests import pipeline_helpers
from tests.pipeline_helpers import Workspace


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What the user brings, and nothing else."""
    return pipeline_helpers.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def evaluated(tiny: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """`invoke evaluate --bs 4 --version match` has run on the cpu backend."""
    workspace = tiny.copy(tmp_path_factory.mktemp("evaluated") / "workspace")
    workspace.succeed("evaluate", "--bs", "4", "--version", "match")
    return workspace
