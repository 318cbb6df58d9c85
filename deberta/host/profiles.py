"""Profiles: one model with its data, as invoke.yaml names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath as Path
from typing import Any, Mapping, Optional

from deberta.artifacts import Artifacts
from deberta.contract import DEV_FILES, LABELS, VERSIONS
from deberta.errors import ConfigError

_KEYS = {"checkpoint", "config", "tokenizer", "dataset", "labels", "rows", "published"}


@dataclass(frozen=True)
class Profile:
    """File names are below `models/<name>/`, `dataset` is below `data/<name>/`.

    `rows` gives each version of the profile its expected number of rows, None for any number. `labels` is the label
    order of the checkpoint, None to take the config's id2label. `published`: the guide's figures are this model's.
    """

    name: str
    checkpoint: str
    config: str
    tokenizer: str
    dataset: str
    labels: Optional[tuple[str, ...]]
    rows: Mapping[str, Optional[int]]
    published: bool

    @property
    def checkpoint_path(self) -> Path:
        return Artifacts(self.name).models / self.checkpoint

    @property
    def config_path(self) -> Path:
        return Artifacts(self.name).models / self.config

    @property
    def tokenizer_path(self) -> Path:
        return Artifacts(self.name).models / self.tokenizer

    @property
    def dataset_path(self) -> Path:
        return Artifacts(self.name).data / self.dataset

    def data_path(self, version: str) -> Path:
        """The version's tsv. Raises ConfigError for a version that the profile does not have."""
        if version not in self.rows:
            raise ConfigError(f"profile {self.name} has no version {version!r}, only: {', '.join(self.rows)}")
        return self.dataset_path / DEV_FILES[version]


def load(name: str, profiles: Mapping[str, Any]) -> Profile:
    """The profile of that name from invoke.yaml's `profiles`. Raises ConfigError naming everything wrong with it."""
    if name not in profiles:
        raise ConfigError(f"there is no profile {name!r} in invoke.yaml, only: {', '.join(sorted(profiles))}")
    values = dict(profiles[name] or {})
    problems = [f"unknown key {key!r}" for key in sorted(set(values) - _KEYS)]
    names = {}
    for key in ("checkpoint", "config", "tokenizer", "dataset"):
        value = values.get(key)
        names[key] = str(value or "")
        if not value:
            problems.append(f"{key} is missing")
        elif Path(str(value)).is_absolute() or ".." in Path(str(value)).parts:
            problems.append(f"{key} {value!r} leaves the profile's folder")
    rows = dict(values.get("rows") or dict.fromkeys(VERSIONS))
    problems += [f"rows names {version!r}, which is no version" for version in rows if version not in VERSIONS]
    problems += [
        f"rows of {version} is {count!r}, not a positive whole number"
        for version, count in rows.items()
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1)
    ]
    labels = values.get("labels")
    if labels is not None and sorted(map(str, labels)) != sorted(LABELS):
        problems.append(f"labels {labels!r} is not an order of {', '.join(LABELS)}")
    if problems:
        raise ConfigError(f"profile {name} in invoke.yaml: {'; '.join(problems)}")
    return Profile(
        name=name,
        labels=tuple(map(str, labels)) if labels is not None else None,
        rows=rows,
        published=bool(values.get("published", False)),
        **names,
    )
