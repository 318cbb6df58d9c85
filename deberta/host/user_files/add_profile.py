"""add-profile: a model and data of the user's become a profile. All that can be wrong is found before it is made."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Mapping, Optional, Sequence

from deberta.ascend import programs
from deberta.core import mnli
from deberta.core.contract import DEV_FILES, LABELS, VERSIONS
from deberta.core.errors import ConfigError, DataError, MissingError, many, one_line
from deberta.core.paths import Artifacts, record_of
from deberta.host.plan import profiles
from deberta.host.plan.plan import Case, Input, Plan, Step, stage
from deberta.host.run import runner
from deberta.host.run.messages import as_started
from deberta.host.run.session import Session
from deberta.host.user_files import placing
from deberta.host.user_files.placing import Placement

MODEL, TOKENIZER, DATASET = "model", "tokenizer", "MNLI"  # folders below models/<name>, models/<name>, data/<name>
_READ = (".json", ".safetensors", ".bin", ".model")  # what the files end with that a model is read from
Write = Callable[[str, Sequence[str]], Callable[[], None]]


@dataclass(frozen=True)
class Request:
    """What was asked for. Paths are absolute; `labels`, `columns` and `label_words` are texts for the stages."""

    name: str
    model: Path
    tokenizer: Optional[Path]
    data: Mapping[str, Path]  # by version
    labels: str = ""
    columns: str = ""
    label_words: str = ""
    copy: bool = False


def by_version(paths: Sequence[Path]) -> dict[str, Path]:
    """Which file is of which version: by `match` and `mismatch` in its name, else the first is match, then mismatch.

    A folder stands for its dev_matched.tsv and dev_mismatched.tsv. Raises ConfigError and MissingError.
    """
    named = [file for path in paths for file in (_dev_files(path) if path.is_dir() else [path])]
    versions = [next((v for v in ("mismatch", "match") if v in path.name.lower()), "") for path in named]
    if not named or len(named) > len(VERSIONS):
        raise ConfigError(f"--data names {many(len(named), 'file')}; a profile has one or two: {', '.join(VERSIONS)}")
    free = [version for version in VERSIONS if version not in versions]
    versions = [version or free.pop(0) for version in versions]
    if len(set(versions)) < len(named):
        raise ConfigError(f"by their names {named[0]} and {named[1]} are both of {versions[0]}. Rename one")
    if len(named) > 1 and os.path.realpath(named[0]) == os.path.realpath(named[1]):
        raise ConfigError(f"--data names {named[0]} twice")
    return {version: dict(zip(versions, named))[version] for version in VERSIONS if version in versions}


def _dev_files(folder: Path) -> list[Path]:
    present = [folder / name for name in DEV_FILES.values() if (folder / name).is_file()]
    if not present:
        raise MissingError(f"--data {folder} holds no {' or '.join(DEV_FILES.values())}. Name the files themselves")
    return present


def add(session: Session, request: Request, known: Mapping[Any, Any], write: Write) -> None:
    """Look at everything, put it into place, and write the profile. `known`: the profiles that there are.

    `write` prepares the settings file with the profile's lines, and returns what writes it. Raises ConfigError,
    MissingError, DataError; then nothing is left.
    """
    profiles.check_name(request.name)
    paths = [request.model, *([request.tokenizer] if request.tokenizer else []), *request.data.values()]
    if missing := [str(path) for path in paths if not path.exists()]:
        raise MissingError(f"{', '.join(missing)}: not there. Check the paths")
    looking = _describing(request)
    if session.dry:
        return _show(session, request, looking)
    model = runner.look(session, looking)
    values, placements = _profile(request, model)
    before = known.get(request.name)
    if before is not None and {**before, "rows": 0} != {**values, "rows": 0}:
        raise _differs(request.name, before, values)
    draft = Plan(profiles.load(request.name, {request.name: values}), "cpu")
    converting = {v: _converting(request, model, draft, v) for v, path in request.data.items() if _needs(request, path)}
    counted = {v: runner.look(session, _rehearsal(session, converting[v])) for v in converting}
    for version in [version for version in request.data if version not in converting]:
        counted[version] = {"rows": _count(request.data[version]), "kind": "GLUE's tsv, as it is"}
        placements.append(Placement(request.data[version], draft.profile.data_path(version)))
    values["rows"] = {version: counted[version]["rows"] for version in request.data}
    if before is not None and before != values:
        raise _differs(request.name, before, values)
    lines = _lines(request, model, values, counted)
    commit = write(request.name, lines) if before is None else None
    outputs = [path for step in converting.values() for path in step.outputs]
    records = list(map(record_of, outputs))
    undone = placing.undone_if_it_fails(session.workspace, [*outputs, *records])
    with undone, placing.placed(session.workspace, placements, request.copy):
        runner.run_all(session, list(converting.values()))
        if commit is not None:
            commit()
    _print(request, model, counted, values, before is not None)


def _describing(request: Request) -> Step:
    folder = request.model if request.model.is_dir() else request.model.parent
    tokenizer = request.tokenizer or folder
    read = [*folder.iterdir(), *(tokenizer.iterdir() if tokenizer.is_dir() else [tokenizer])]
    used = dict.fromkeys(path for path in read if path.suffix in _READ and path.is_file())
    unknown = dict.fromkeys(("checkpoint", "config", "tokenizer", "dataset"), MODEL)
    draft = Plan(profiles.load(request.name, {request.name: unknown}), "cpu")
    return replace(
        stage(
            "describe-model",
            Case(draft),
            reads={},
            also_reads=[Input(PurePosixPath(path), "Check --model") for path in used],
            writes={},
            options={
                "--model": str(request.model),
                "--tokenizer": str(request.tokenizer or ""),
                "--labels": request.labels,
            },
        ),
        log=_log(request, "describe-model"),
    )


def _converting(request: Request, model: Mapping[str, Any], draft: Plan, version: str) -> Step:
    """One file -> GLUE's tsv in the profile's folder. Labels may be the model's own words."""
    own = dict(zip(model["own_labels"], model["labels"]))
    words = [
        f"{word}={label}" for word, label in own.items() if word.lower() not in LABELS and not set(word) & set(",=")
    ]
    return replace(
        stage(
            "convert-data",
            Case(draft, version=version),
            reads={"--data": Input(PurePosixPath(request.data[version]), "Check --data")},
            writes={"--output": draft.profile.data_path(version)},
            options={
                "--columns": request.columns,
                "--label-words": request.label_words,
                "--model-words": ",".join(words),
            },
        ),
        log=_log(request, f"convert-data_{version}"),
    )


def _log(request: Request, name: str) -> PurePosixPath:
    return PurePosixPath(".cache", "logs", f"{request.name}_{name}.log")


def _rehearsal(session: Session, step: Step) -> Step:
    """The same conversion with its output in the step's scratch folder: all rows are read before anything is made."""
    [output] = step.outputs
    there = programs.scratch(step.name) / output.name
    return replace(
        step, arguments=tuple(str(there) if a == str(output) else a for a in step.arguments), outputs=(there,)
    )


def _needs(request: Request, path: Path) -> bool:
    """Whether a file has to be converted: it is not GLUE's dev tsv, or the request says how it is to be read."""
    return bool(request.columns or request.label_words) or not mnli.is_dev_file(path)


def _count(path: Path) -> int:
    """The rows of GLUE's tsv, all of them checked. Raises DataError."""
    try:
        return mnli.count(path)
    except DataError as error:
        meaning = ". Say what labels of your own mean: --label-words WORD=entailment" if "label" in str(error) else ""
        raise DataError(f"{error}{meaning}") from None


def _profile(request: Request, model: Mapping[str, Any]) -> tuple[dict[str, Any], list[Placement]]:
    """The profile's values but for its rows, and where the model's files go."""
    folder = Artifacts(request.name).models
    main, config = Path(model["checkpoint"]), Path(model["config"])
    in_model = [config, main, *map(Path, model["shards"])]
    tokenizer = list(map(Path, model["tokenizer"]))
    placements = [Placement(path, folder / MODEL / os.path.relpath(path, main.parent)) for path in in_model]
    placements += [Placement(path, folder / TOKENIZER / path.name) for path in tokenizer]
    values = {
        "checkpoint": f"{MODEL}/{main.name}",
        "config": f"{MODEL}/{config.name}",
        "tokenizer": TOKENIZER if len(tokenizer) > 1 else f"{TOKENIZER}/{tokenizer[0].name}",
        "dataset": DATASET,
        "labels": list(model["labels"]),
        "rows": dict.fromkeys(request.data, 1),
    }
    return values, placements


def _differs(name: str, before: Any, values: Mapping[str, Any]) -> ConfigError:
    """The error for a name that another profile has."""
    keys = [key for key in {**before, **values} if before.get(key) != values.get(key)]
    both = "; ".join(f"{key} {before.get(key)!r}, now {values.get(key)!r}" for key in keys)
    return ConfigError(f"there is a profile {name} already, and it is another one: {both}. Take another name")


def _lines(
    request: Request, model: Mapping[str, Any], values: Mapping[str, Any], counted: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """The profile's lines for the settings file, the first of them its name."""
    how = "Copied" if request.copy else "Linked"
    lines = [
        f"# Added by `invoke add-profile`: {_architecture(model)}.",
        f"{_quoted(request.name)}:",
        f"  # {how} from {request.model}.",
        f"  checkpoint: {_quoted(values['checkpoint'])}",
        f"  config: {_quoted(values['config'])}",
        f"  tokenizer: {_quoted(values['tokenizer'])}",
        *(f"  # {DEV_FILES[v]}: {request.data[v]} ({counted[v]['kind']}){_by(counted[v])}." for v in request.data),
        f"  dataset: {values['dataset']}",
        f"  # What the model's outputs mean, in their order: {_source_of_labels(model)}.",
        f"  labels: [{', '.join(values['labels'])}]",
        "  # The rows of each file: a file of another number stops a run.",
        f"  rows: {{{', '.join(f'{version}: {count}' for version, count in values['rows'].items())}}}",
    ]
    return [one_line(line) if line.lstrip() == line else f"  {one_line(line)}" for line in lines]


def _quoted(text: str) -> str:
    """A text as YAML reads it as one."""
    plain = text[:1].isalpha() and text.lower() not in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return text if plain and all(c.isascii() and (c.isalnum() or c in "_./-") for c in text) else json.dumps(text)


def _architecture(model: Mapping[str, Any]) -> str:
    types = ", ".join(model["dtypes"])
    return (
        f"{model['kind']} {model['architecture']}, {model['layers']} layers of {model['hidden_size']}, "
        f"{model['parameters']:,} parameters in {types}"
    )


def _source_of_labels(model: Mapping[str, Any]) -> str:
    own = ", ".join(model["own_labels"])
    return f"id2label says {own}" if own else "by --labels"


def _by(counted: Mapping[str, Any]) -> str:
    columns = counted.get("columns", {})
    return f", {', '.join(f'{role}={name}' for role, name in columns.items())}" if columns else ""


def _show(session: Session, request: Request, looking: Step) -> None:
    """What would be done, as lines to paste and comments; what only the stage can tell is not in it."""
    session.executor.show(looking)
    for version, path in request.data.items():
        done = f"is converted to {DEV_FILES[version]}" if _needs(request, path) else f"becomes {DEV_FILES[version]}"
        session.say(f"{path} {done} in data/{request.name}/{DATASET}")
    session.say(f"the model's files are {'copied' if request.copy else 'linked'} into models/{request.name}")
    session.say(f"profile {request.name} is added to the settings")


def _print(
    request: Request,
    model: Mapping[str, Any],
    counted: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Any],
    is_known: bool,
) -> None:
    shards = f" in {many(len(model['shards']), 'shard')}" if model["shards"] else ""
    mapped = (
        "" if model["character_map"] else "; without the character map of DeBERTa's own: ids may differ in a few rows"
    )
    print(f"model: {_architecture(model)}: {model['checkpoint']}{shards}")
    print("".join(f"note: {note}\n" for note in model["notes"]), end="")
    print(f"labels: {', '.join(values['labels'])} ({_source_of_labels(model)})")
    print(f"tokenizer: {', '.join(model['tokenizer'])}: {model['pieces']} pieces{mapped}")
    for version, path in request.data.items():
        table = counted[version]
        labels, left_out = table.get("labels"), table.get("rows_left_out")
        shares = f" ({', '.join(f'{label} {count}' for label, count in labels.items())})" if labels else ""
        without = f", {left_out} left out for want of a label" if left_out else ""
        print(f"data, {version}: {path} ({table['kind']}): {table['rows']} rows{shares}{without}{_by(table)}")
    print(f"profile {request.name} {'was there already, the same' if is_known else 'is added'}. Next:")
    for version in request.data:
        print(as_started(f"  invoke evaluate --bs 8 --version {version} --profile {request.name}"))
