"""invoke.yaml's settings: unknown and wrongly typed ones are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from invoke.config import Config
from invoke.context import Context

from deberta.core.errors import ConfigError
from deberta.host.cli import settings
from tests import pipeline_helpers

ROOT = Path(__file__).resolve().parents[2]


def read(**values: Any) -> settings.InvokeSettings:
    return settings.read(Context(Config(overrides=values)))


def test_invoke_yaml_has_every_setting_and_the_defaults_that_we_take_without_it() -> None:
    config = Config(project_location=ROOT)
    config.load_project()
    committed, defaults = settings.read(Context(config)), read()
    assert {str(key) for key in config} - set(Config.global_defaults()) == set(
        settings.InvokeSettings.__struct_fields__
    ) - {"image_unpinned"}
    for name in ("profile", "executor", "backend", "soc_version", "device", "runner", "buckets", "batch_sizes"):
        assert getattr(committed, name) == getattr(defaults, name)
    assert read(cann=None, device=None) == defaults  # a key that is left empty


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"profil": "mnli"}, "unknown field `profil`, which is not one of: profile, executor, "),
        ({"executor": "podman"}, r"executor: .*\^\(auto\|docker\|local\)\$"),
        ({"backend": 3}, "backend: Expected `str`, got `int`"),
        ({"device": 256}, "device: Expected `int` <= 255"),
        ({"runner": "benchmark"}, "runner: "),
        ({"batch_sizes": []}, "batch_sizes: .* length >= 1"),
        ({"batch_sizes": [1, 0]}, r"batch_sizes\[.*\]: Expected `int` >= 1"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=f"^a setting in invoke.yaml: .*{problem}"):
        read(**values)


def test_what_the_users_own_file_says_to_other_projects_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".invoke.yaml").write_text("another_project: {x: 1}\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    workspace = pipeline_helpers.make(tmp_path / "workspace")
    assert workspace.run("explain", "export-onnx").returncode == 0
