"""The image without PyTorch: which steps need which packages, that its lock is a part of the stages', who gets it."""

from __future__ import annotations

import ast
import functools
import sys
from pathlib import Path
from typing import Any

import pytest

from deberta.core.errors import ConfigError
from deberta.host.engine.npu_access import NpuSettings
from deberta.host.environments import locks, stages
from deberta.host.images import definition, pins
from deberta.host.images.definition import BuildSettings
from deberta.host.plan.plan import STAGES, TORCH, Step
from deberta.host.run import source_digest
from deberta.host.run.docker_executor import DockerExecutor
from tests.image_helpers import make_project
from tests.mnli_helpers import REPOSITORY

LOCK = REPOSITORY / "requirements-runtime-cpu.lock"
PACKAGES = {"google": "protobuf"}  # where the package has another name than its module


@functools.cache
def imported_by(path: str) -> set[str]:
    """The packages that a file of ours imports, by their names in locks."""
    modules = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        modules |= {name.partition(".")[0] for name in names}
    return {PACKAGES.get(name, name) for name in modules - set(sys.stdlib_module_names) - {"deberta"}}


def imported(stage: str) -> set[str]:
    """What a stage imports somewhere in our code."""
    paths = [path for path in source_digest.sources(REPOSITORY, STAGES[stage]) if path.endswith(".py")]
    return set().union(*map(imported_by, paths))


def test_a_stage_is_said_to_need_torch_if_it_imports_it_and_the_others_find_all_they_import() -> None:
    packages = {stage: imported(stage) for stage in STAGES}
    assert {stage for stage, names in packages.items() if "torch" in names} == TORCH
    others = set().union(*(names for stage, names in packages.items() if stage not in TORCH))
    assert others <= {package.name for package in locks.read(LOCK)} and len(others) >= 8


@pytest.mark.parametrize("machine", locks.MACHINES)
def test_its_lock_is_a_part_of_the_stages(machine: str) -> None:
    part, whole = (set(locks.read(lock, machine)) for lock in (LOCK, REPOSITORY / stages.STAGES_LOCK))
    assert part < whole
    assert {"torch", "sympy", "networkx", "transformers"} <= {package.name for package in whole - part}


def test_it_stands_on_the_base_of_export_with_its_dockerfile(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    pins.set_base(project, "export", f"sha256:{'a' * 64}")
    export, other = (
        definition.plan(project, pins.load(project), stage, "x86_64") for stage in ("export", "runtime-cpu")
    )
    assert other.base == export.base and other.unpinned == export.unpinned
    assert other.tag.startswith("deberta-ascend/runtime-cpu:") and other.tag != export.tag
    assert set(other.inputs) ^ set(export.inputs) == {LOCK.name, stages.STAGES_LOCK}
    with pytest.raises(ConfigError, match="'runtime-cpu' stands on the base of export"):
        pins.set_base(project, "runtime-cpu", f"sha256:{'a' * 64}")


def test_the_setting_alone_decides_which_steps_run_in_it(tmp_path: Path) -> None:
    def image_of(builds: BuildSettings, stage: str, tool: str = "") -> str:
        executor = DockerExecutor(REPOSITORY, tmp_path, builds, NpuSettings(), keep=False)
        fields: dict[str, Any] = {"arguments": (), "inputs": (), "outputs": (), "log": Path(), "commands": {}}
        tag: str = executor.identity(Step(name="x", title="x", stage=stage, tool=tool, **fields))["image"]
        return tag.partition(":")[0]

    usual, small = (definition.settings({"runtime_cpu": value}, REPOSITORY) for value in (False, True))
    assert usual == definition.settings({}, REPOSITORY)
    assert {image_of(usual, stage) for stage in STAGES} == {"deberta-ascend/export"}
    assert {stage for stage in STAGES if image_of(small, stage) == "deberta-ascend/export"} == TORCH
    assert {image_of(small, stage) for stage in set(STAGES) - TORCH} == {"deberta-ascend/runtime-cpu"}
    assert set(small.stages) - set(usual.stages) == {"runtime-cpu"}
