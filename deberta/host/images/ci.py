"""The CI image: our code and its locked packages on the export image, with CANN and msame if the user has brought them.

An acceptance run in it fetches nothing; its steps are processes (the local executor). Its tag is a hash of all that
goes in, our code included. The parts are the stage images', which are built first if need be.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from deberta.core import files
from deberta.core.errors import ConfigError, MissingError
from deberta.core.records import Digests
from deberta.host.engine import containers, engine
from deberta.host.environments import stages as stage_env
from deberta.host.environments import venvs
from deberta.host.images import build as building
from deberta.host.images import definition, manage, pins
from deberta.host.images.definition import BuildSettings, File, Image
from deberta.host.images.pins import ImagePins

YAML: Any = importlib.import_module("invoke.vendor.yaml")  # invoke brings its own, without types
STAGE = "ci"
HOLDS, NOTICE, PARTS = (f"{definition.REPOSITORY}.{name}" for name in ("holds", "redistribution", "parts"))
FREE = "holds this project and open-source packages only"
NOT_FREE = "not for redistribution: holds {}, whose licence does not allow it"
SCRIPTS = ("ci-collect", "install-packages")  # of docker/, for the build alone
INSIDE = ("check-cann", "ci-finish", "ci-inv", "ci-set-env", pins.PINS.name)  # of docker/, that stay in it
OURS = ("inv", "tasks.py", "LICENSE", venvs.HOST_LOCK, stage_env.STAGES_LOCK)
TOP, PACKAGE = "project/", "project/deberta/"  # of the context
SETTINGS, GATES = Path("invoke.yaml"), Path("gates.toml")
UNPINNED = "image_unpinned"  # a setting that it alone has: why a run in it is not what the project pins
SET_ENV = containers.CODE / "docker" / "ci-set-env"  # the setting `cann` in it
# Of one machine, or a way to its network: none of these goes in.
_NOT_TAKEN = ("images", "npu", "stages_python", "msame")
_NAME = re.compile(r"(?:[\w.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::\w[\w.-]{0,127})?", re.ASCII)


@dataclass(frozen=True)
class Parts:
    """What it is put together from. `lacks`: why it has no CANN, or CANN but no msame; empty if it has both."""

    export: Image
    compile: Optional[Image] = None
    msame: Optional[File] = None
    lacks: str = ""

    @property
    def holds(self) -> Tuple[str, ...]:
        return ("cpu", *(["cann"] if self.compile else []), *(["msame"] if self.msame else []))


def parts(project: Path, loaded: ImagePins, arch: str) -> Parts:
    """The stage images, as they would be built now, and msame. Only what nobody has brought is left out.

    Raises MissingError (what was brought is not pinned yet) and the errors of `images.plan`.
    """
    export = definition.plan(project, loaded, "export", arch)
    try:
        with_cann = definition.plan(project, loaded, "compile", arch)
    except MissingError as error:
        if any((project / pins.CANN).glob(f"*-toolkit_*-{arch}.run")):
            raise
        return Parts(export, lacks=str(error))
    try:
        return Parts(export, with_cann, definition.msame_file(project, loaded, arch, Digests(project / "docker")))
    except MissingError as error:
        if (project / pins.MSAME).is_file():
            raise
        return Parts(export, with_cann, lacks=str(error))


def plan(project: Path, found: Parts, scratch: Path) -> Image:
    """The image of these parts; its settings are written to the folder `scratch`, and nothing else anywhere.

    Raises MissingError (a file of ours is gone) and ConfigError (invoke.yaml cannot be read, or its gates cannot).
    """
    stages = [image for image in (found.export, found.compile) if image]
    unpinned = tuple(dict.fromkeys(reason for image in stages for reason in image.unpinned))
    text, gates = settings(project, bool(found.compile), unpinned)
    files.write_text(scratch / SETTINGS, text)
    inside = [
        *_ours(project),
        File(f"project/{SETTINGS}", scratch / SETTINGS, hashlib.sha256(text.encode()).hexdigest()),
        *([definition.own_file(gates.parent, Path(gates.name), f"project/{GATES}")] if gates else []),
        *([replace(found.msame, name=f"project/{pins.MSAME.as_posix()}")] if found.msame else []),
    ]
    build = [definition.own_file(project, Path("docker", script), script) for script in SCRIPTS]
    build.append(definition.own_file(project, Path("docker", "ci.Dockerfile"), "Dockerfile"))
    build.append(definition.own_file(project, Path(venvs.HOST_LOCK), "requirements.lock"))
    inputs = {
        "export image": found.export.tag,
        **({"compile image": found.compile.tag} if found.compile else {}),
        "code": _digest([file for file in inside if file.name.startswith(PACKAGE)]),
        **{file.name[len(TOP) :]: file.sha256 for file in inside if not file.name.startswith(PACKAGE)},
        **{file.path.relative_to(project).as_posix(): file.sha256 for file in build},
    }
    tag = f"{definition.REPOSITORY}/{STAGE}:{hashlib.sha256(definition.canonical(inputs).encode()).hexdigest()[:20]}"
    return Image(
        STAGE,
        found.export.arch,
        tag,
        found.export.tag,
        inputs,
        unpinned,
        tuple(build + inside),
        lock=project / venvs.HOST_LOCK,
        notes={
            HOLDS: definition.canonical(found.holds),
            NOTICE: notice(found),
            PARTS: definition.canonical({image.stage: dict(image.inputs) for image in stages}),
        },
    )


def notice(found: Parts) -> str:
    """May it be given to others? As its label says."""
    held = " and ".join(name for name, part in (("CANN", found.compile), ("msame", found.msame)) if part)
    return NOT_FREE.format(held) if held else FREE


def settings(project: Path, with_cann: bool, unpinned: Sequence[str]) -> Tuple[str, Optional[Path]]:
    """invoke.yaml for the image, and the user's own file of gates if there is one. Raises ConfigError, MissingError.

    It is the project's, with profiles and ATC's options, without what is of this machine: no proxy, index, certificate.
    """
    path = project / SETTINGS
    try:
        values = YAML.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Run: git checkout -- {SETTINGS}") from None
    except (YAML.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of settings. Correct it, or run: git checkout -- {SETTINGS}")
    kept = {key: value for key, value in values.items() if key not in _NOT_TAKEN}
    kept.update(executor="local", workspace=str(containers.ROOT), cann=str(SET_ENV) if with_cann else "")
    kept.update(stages_python="", msame="")  # invoke lets variables set only what is there
    kept[UNPINNED] = list(unpinned)
    gates = project / Path(str(kept["gates"])).expanduser() if kept.get("gates") else None
    if gates and not gates.is_file():
        raise MissingError(f"{gates} is missing. Correct gates in {SETTINGS}, or empty it")
    if gates:
        kept["gates"] = str(containers.CODE / GATES)
    return str(YAML.safe_dump(kept, allow_unicode=True, sort_keys=True)), gates


def check_name(name: str) -> str:
    """`--tag`: NAME or NAME:TAG, and none of the names that say what an image is made of. Raises ConfigError."""
    if not _NAME.fullmatch(name) or name.startswith(f"{definition.REPOSITORY}/"):
        raise ConfigError(
            f"--tag {name!r} is no name for an image. Give NAME or NAME:TAG, for example mirror.example/deberta:1; "
            f"{definition.REPOSITORY}/... are names of ours"
        )
    return name


def make(project: Path, workspace: Path, builds: BuildSettings, tag: str, force: bool, dry: bool) -> None:
    """Build the image if it is not there, and what it stands on; `tag`: one more name for it, or empty."""
    loaded, client = pins.load(project), engine.connect()
    found = parts(project, loaded, platform.machine())
    with tempfile.TemporaryDirectory() as scratch:
        image = plan(project, found, Path(scratch))
        print(f"holds: {', '.join(found.holds)}; {notice(found)}")
        if found.lacks:
            print(f"without {'msame' if found.compile else 'CANN: for the cpu backend only'}: {found.lacks}")
        if image.unpinned:
            print(f"not pinned: {'; '.join(image.unpinned)}")
        made = building.find(client, image)
        if made and not force:
            print(f"up to date: {image.tag}, {made}")
        else:
            why = "--force" if made else building.why(client, image)
            print(f"{'would build' if dry else 'building'} {image.tag}: {why}", flush=True)
            if not dry:
                made = _build(client, image, found, builds, workspace / manage.LOGS)
                print(f"done: {image.tag}, {made}")
    if tag:
        print(f"{'would name' if dry else 'named'} it {tag}")
        if not dry:
            repository, _, version = tag.rpartition(":") if ":" in PurePosixPath(tag).name else (tag, "", "latest")
            with engine.explained(f"naming {image.tag} {tag}"):
                client.api.tag(made, repository, version)


def _build(client: Any, image: Image, found: Parts, builds: BuildSettings, logs: Path) -> str:
    """The id of the image, built after the stage images that are missing."""
    ids: Dict[str, str] = {}
    for part in (found.export, found.compile):
        if part:
            ids[part.stage] = building.find(client, part) or ""
        if part and not ids[part.stage]:
            print(f"building {part.tag}: {building.why(client, part)}", flush=True)
            ids[part.stage] = building.build(client, part, builds, logs / f"{part.stage}.log", _say)
    given = replace(image, arguments={"CANN": ids.get("compile") or ids["export"]})
    return building.build(client, given, builds, logs / f"{STAGE}.log", _say)


def _ours(project: Path) -> List[File]:
    """Our files that the commands need, by their place in the image."""
    package = [name for name in files.files_in(project / "deberta") if "__pycache__" not in name]
    paths = [*map(Path, OURS), *(Path("docker", name) for name in INSIDE), *(Path("deberta", name) for name in package)]
    return [definition.own_file(project, path, f"project/{path.as_posix()}") for path in paths]


def _digest(ours: List[File]) -> str:
    listed: Mapping[str, str] = {file.name: file.sha256 for file in ours}
    return hashlib.sha256(definition.canonical(dict(listed)).encode()).hexdigest()


def _say(line: str) -> None:
    print(f"  {line}", flush=True)
