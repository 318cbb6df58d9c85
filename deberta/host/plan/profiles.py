"""Profiles: one model with its data, as invoke.yaml names them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath as Path
from typing import Any, Iterable, Mapping, Optional

from deberta.core.contract import BACKENDS, DEV_FILES, LABELS, SHARD_INDEX, VERSIONS
from deberta.core.errors import ConfigError
from deberta.core.paths import Artifacts

_FILES = ("checkpoint", "config", "tokenizer", "dataset")
_KEYS = {*_FILES, "labels", "rows", "published"}
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Profile:
    """Files are below `models/<name>/`, the folder of the data set is below `data/<name>/`.

    `rows` gives each version of the profile its expected number of rows, None for any number. `labels` is the label
    order of the checkpoint, None to take the config's id2label. `published`: the guide's figures are this model's.
    """

    name: str
    checkpoint_path: Path
    config_path: Path
    tokenizer_path: Path
    dataset_path: Path
    labels: Optional[tuple[str, ...]]
    rows: Mapping[str, Optional[int]]
    published: bool

    def data_path(self, version: str) -> Path:
        """The version's tsv. Raises ConfigError for a version that the profile does not have."""
        if version not in self.rows:
            raise ConfigError(f"profile {self.name} has no version {version!r}, only: {', '.join(self.rows)}")
        return self.dataset_path / DEV_FILES[version]

    def inputs(self, versions: Iterable[str]) -> list[Path]:
        """What the user brings for these versions: what is hashed."""
        return list(map(hashed, self.files(versions)))

    def files(self, versions: Iterable[str]) -> list[Path]:
        """The same as the profile names it, and the stages read it."""
        return [self.checkpoint_path, self.config_path, self.tokenizer_path, *map(self.data_path, versions)]


def hashed(path: Path) -> Path:
    """The file or folder by whose digest a record names an input: an index of shards stands for all of its folder."""
    return path.parent if path.name.endswith(SHARD_INDEX) else path


def load(name: Any, profiles: Any) -> Profile:
    """The profile of that name from invoke.yaml's `profiles`; both may be anything that YAML can say.

    Raises ConfigError naming everything wrong with it.
    """
    known = by_name(profiles)
    check_name(name)
    if name not in known:
        raise ConfigError(f"there is no profile {name!r} in invoke.yaml, only: {', '.join(sorted(map(str, known)))}")
    values = known[name]
    if not isinstance(values, dict):
        raise ConfigError(f"profile {name} in invoke.yaml is {values!r}, not a mapping")
    problems = [f"unknown key {key!r}" for key in sorted(set(values) - _KEYS, key=str)]
    problems += [f"{key} {problem}" for key in _FILES if (problem := _file_problem(key, values.get(key)))]
    rows = dict.fromkeys(VERSIONS) if values.get("rows") is None else values["rows"]
    if not isinstance(rows, dict) or not rows:
        problems.append(f"rows is {rows!r}, not a number of rows for each of: {', '.join(VERSIONS)}")
    for version, count in rows.items() if isinstance(rows, dict) else ():
        if version not in VERSIONS:
            problems.append(f"rows names {version!r}, which is no version")
        elif count is not None and (type(count) is not int or count < 1):
            problems.append(f"rows of {version} is {count!r}, not a positive whole number")
    labels = values.get("labels")
    if labels is not None and not (isinstance(labels, (list, tuple)) and sorted(map(str, labels)) == sorted(LABELS)):
        problems.append(f"labels {labels!r} is not an order of {', '.join(LABELS)}")
    published = values.get("published", False)
    if not isinstance(published, bool):
        problems.append(f"published is {published!r}, not true or false")
    if problems:
        raise ConfigError(f"profile {name} in invoke.yaml: {'; '.join(problems)}")
    artifacts, order = Artifacts(name), None if labels is None else tuple(labels)
    checkpoint, config, tokenizer = (artifacts.models / values[key] for key in _FILES[:3])
    return Profile(name, checkpoint, config, tokenizer, artifacts.data / values["dataset"], order, rows, published)


def by_name(profiles: Any) -> dict[Any, Any]:
    """invoke.yaml's `profiles` as plain dicts. Raises ConfigError."""
    known = _plain(profiles)
    if not isinstance(known, dict):
        raise ConfigError(f"profiles in invoke.yaml is {known!r}, not a mapping of names to profiles")
    return known


def check_name(name: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no profile's name: letters, digits, _, . and -, a letter or digit first")


def _plain(value: Any) -> Any:
    """A mapping as dicts, anything else as it is. invoke's own mappings iterate and index, but are no Mapping."""
    return {key: _plain(value[key]) for key in value} if hasattr(value, "keys") else value


def _file_problem(key: str, value: Any) -> str:
    """What is wrong with a file's name in a profile; empty if nothing is."""
    if value in (None, ""):
        return "is missing"
    if not isinstance(value, str):
        return f"is {value!r}, not a file name"
    if Path(value).is_absolute() or ".." in Path(value).parts:
        return f"{value!r} leaves the profile's folder (invoke add-profile links files into it)"
    if "," in value or not value.isprintable():
        return f"{value!r} holds a comma or an unprintable character"  # msame separates its inputs by commas
    if key != "dataset" and str(hashed(Path(value))) in (".", *BACKENDS):  # its digest would change with every artifact
        shards = "; put the index and its shards into one of their own" if hashed(Path(value)) != Path(value) else ""
        return f"{value!r} is {'in ' if shards else ''}a folder that artifacts are written to{shards}"
    return ""
