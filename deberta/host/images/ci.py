"""The CI image: our code and its locked packages on the export image, with CANN and msame if the user supplied them.

An acceptance run in it fetches nothing; its steps are processes (the local executor). Its tag is a hash of its whole
content, our code included. Its parts come from the stage images, which are built first if need be.
"""

from __future__ import annotations

import hashlib
import importlib
import platform
import re
import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Sequence

from deberta.core import files
from deberta.core.errors import ConfigError, MissingError, one_line
from deberta.host.engine import containers, engine
from deberta.host.environments import cluster, venvs
from deberta.host.environments import stages as stage_env
from deberta.host.images import build, definition, pins
from deberta.host.images.definition import BuildSettings, File, Image
from deberta.host.images.pins import ImagePins

YAML: Any = importlib.import_module("invoke.vendor.yaml")  # invoke has its own copy, without types
STAGE = "ci"
HOLDS, NOTICE, PARTS = (f"{definition.REPOSITORY}.{name}" for name in ("holds", "redistribution", "parts"))
FREE = "holds this project and open-source packages only"
NOT_FREE = "not for redistribution: holds {}, whose licence does not allow it"
SCRIPTS = ("ci-collect", "install-packages")  # of docker/, used by the build only
INSIDE = ("check-cann", "ci-finish", "ci-inv", "ci-set-env", "settle", pins.PINS.name)  # of docker/, kept in the image
OURS = ("inv", "tasks.py", "LICENSE", venvs.HOST_LOCK, stage_env.STAGES_LOCK, cluster.CLUSTER_LOCK)
TOP, PACKAGE = "project/", "project/deberta/"  # of the context
SETTINGS, GATES = Path("invoke.yaml"), Path("gates.toml")
UNPINNED = "image_unpinned"  # a setting of the image alone: how it differs from what is pinned
SET_ENV = containers.CODE / "docker" / "ci-set-env"  # the setting `cann` in the image
# Settings of one machine, or of its network.
_LEFT_OUT = ("images", "containers", "npu", "stages_python", "msame", "wheelhouse")
_NAME = re.compile(r"(?:[\w.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::\w[\w.-]{0,127})?", re.ASCII)


class Parts(NamedTuple):
    """The images and files it is built from. `lacks`: why it has no CANN, or no msame; empty if it has both."""

    export: Image
    compile: Image | None = None
    msame: File | None = None
    lacks: str = ""

    @property
    def stages(self) -> list[Image]:
        return [image for image in (self.export, self.compile) if image]

    @property
    def holds(self) -> tuple[str, ...]:
        return ("cpu", *(["cann"] if self.compile else []), *(["msame"] if self.msame else []))


def parts(project: Path, loaded: ImagePins, arch: str) -> Parts:
    """The stage images, as they would be built now, and msame; CANN and msame may be absent.

    Raises MissingError (a user-supplied file is not pinned yet) and the errors of `definition.plan`.
    """
    export = definition.plan(project, loaded, "export", arch)
    try:
        with_cann = definition.plan(project, loaded, "compile", arch)
    except MissingError as error:
        if any((project / pins.CANN).glob(f"*-toolkit_*-{arch}.run")):
            raise
        return Parts(export, lacks=str(error))
    try:
        return Parts(export, with_cann, definition.UserFiles(project, loaded, arch).msame())
    except MissingError as error:
        if (project / pins.MSAME).is_file():
            raise
        return Parts(export, with_cann, lacks=str(error))


def plan(project: Path, contents: Parts, scratch: Path) -> Image:
    """The CI image of these parts; its invoke.yaml is written to the folder `scratch`, the only thing written.

    Raises MissingError (a file of the project is gone) and ConfigError (invoke.yaml is malformed).
    """
    unpinned = tuple(dict.fromkeys(reason for image in contents.stages for reason in image.unpinned))
    text, gates = settings(project, bool(contents.compile), unpinned)
    files.write_text(scratch / SETTINGS, text)
    inside = [
        *_ours(project),
        File(f"{TOP}{SETTINGS}", scratch / SETTINGS, hashlib.sha256(text.encode()).hexdigest()),
        *([definition.own_file(gates.parent, Path(gates.name), f"{TOP}{GATES}")] if gates else []),
        *([replace(contents.msame, name=f"{TOP}{pins.MSAME.as_posix()}")] if contents.msame else []),
    ]
    for_build = [
        *(definition.own_file(project, Path("docker", script), script) for script in SCRIPTS),
        definition.own_file(project, Path("docker", "ci.Dockerfile"), "Dockerfile"),
        definition.own_file(project, Path(venvs.HOST_LOCK), "requirements.lock"),
    ]
    inputs = {f"{image.stage} image": image.tag for image in contents.stages}
    inputs["code"] = definition.digest_of({file.name: file.sha256 for file in inside if file.name.startswith(PACKAGE)})
    inputs.update({file.name[len(TOP) :]: file.sha256 for file in inside if not file.name.startswith(PACKAGE)})
    inputs.update({file.path.relative_to(project).as_posix(): file.sha256 for file in for_build})
    notes = {
        HOLDS: definition.canonical(contents.holds),
        NOTICE: notice(contents),
        PARTS: definition.canonical({image.stage: dict(image.inputs) for image in contents.stages}),
    }
    export, content, lock = contents.export, tuple(for_build + inside), project / venvs.HOST_LOCK
    return Image(STAGE, export.arch, export.tag, inputs, unpinned, content, export.epoch, lock=lock, notes=notes)


def notice(contents: Parts) -> str:
    """Whether the image may be given to others, as its label says."""
    names = [name for name, part in (("CANN", contents.compile), ("msame", contents.msame)) if part]
    return NOT_FREE.format(" and ".join(names)) if names else FREE


def settings(project: Path, with_cann: bool, unpinned: Sequence[str]) -> tuple[str, Path | None]:
    """The text of the image's invoke.yaml, and the user's own file of gates if there is one.

    It is the project's, with profiles and ATC's options, without settings of this machine (proxies, index,
    certificates). Raises ConfigError and MissingError.
    """
    path = project / SETTINGS
    try:
        values = YAML.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise MissingError(f"{path} is missing. Run: git checkout -- {SETTINGS}") from None
    except (YAML.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {one_line(str(error))}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of settings. Correct it, or run: git checkout -- {SETTINGS}")
    kept = {key: value for key, value in values.items() if key not in _LEFT_OUT}
    kept.update(executor="local", workspace=str(containers.ROOT), cann=str(SET_ENV) if with_cann else "")
    kept.update(stages_python="", msame="", wheelhouse="")  # variables can set only keys that exist
    kept[UNPINNED] = list(unpinned)
    gates = project / Path(str(kept["gates"])).expanduser() if kept.get("gates") else None
    if gates and not gates.is_file():
        raise MissingError(f"{gates} is missing. Correct gates in {SETTINGS}, or empty it")
    if gates:
        kept["gates"] = str(containers.CODE / GATES)
    return str(YAML.safe_dump(kept, allow_unicode=True, sort_keys=True)), gates


def check_name(name: str) -> str:
    """`--tag`: NAME or NAME:TAG, but not a name of the form of our own tags. Raises ConfigError."""
    if not _NAME.fullmatch(name) or name.startswith(f"{definition.REPOSITORY}/"):
        raise ConfigError(
            f"--tag {name!r} is no name for an image. Give NAME or NAME:TAG, for example mirror.example/deberta:1; "
            f"{definition.REPOSITORY}/... are names of ours"
        )
    return name


def make(project: Path, workspace: Path, builds: BuildSettings, tag: str, force: bool, dry: bool) -> None:
    """Build the image, and its stage images, if they are missing; `tag`: one more name for it, or empty."""
    loaded, client = pins.load(project), engine.connect()
    contents = parts(project, loaded, platform.machine())
    with tempfile.TemporaryDirectory() as scratch:
        image = plan(project, contents, Path(scratch))
        print(f"holds: {', '.join(contents.holds)}; {notice(contents)}")
        if contents.lacks:
            print(f"without {'msame' if contents.compile else 'CANN: for the cpu backend only'}: {contents.lacks}")
        if not dry and (force or not build.find(client, image)):
            ids = [build.ensure(client, part, builds, workspace) for part in contents.stages]
            image = replace(image, arguments={"CANN": ids[-1]})  # of the compile image, or of the export image
        image_id = build.update(client, image, builds, workspace, "", force, dry)
    if tag:
        print(f"{'would name' if dry else 'named'} it {tag}")
        if not dry:
            repository, _, version = tag.rpartition(":") if ":" in PurePosixPath(tag).name else (tag, "", "latest")
            with engine.explained(f"naming {image.tag} {tag}"):
                client.api.tag(image_id, repository, version)


def _ours(project: Path) -> list[File]:
    """Our files that the commands need, by their place in the image."""
    package = [name for name in files.files_in(project / "deberta") if "__pycache__" not in name]
    paths = [*map(Path, OURS), *(Path("docker", name) for name in INSIDE), *(Path("deberta", name) for name in package)]
    return [definition.own_file(project, path, f"{TOP}{path.as_posix()}") for path in paths]
