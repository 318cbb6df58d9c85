"""Stage images as data: the inputs of an image, the tag that is their hash, and the files of its build context.

The tag is a hash of everything that decides the image's contents, so a stale image cannot be used by name. How the
build reaches the network (BuildSettings) is not part of it: those files never get into a layer of the final image.
Nothing here needs an engine; `build` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Callable, Iterator, Mapping, Optional, Sequence

import msgspec
from msgspec import Meta

from deberta.core import schema
from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.core.records import Digests
from deberta.host.images import pins
from deberta.host.images.pins import ImagePins

REPOSITORY = "deberta-ascend"
LABEL = REPOSITORY
STAGE, INPUTS, UNPINNED = f"{REPOSITORY}.stage", f"{REPOSITORY}.inputs", f"{REPOSITORY}.unpinned"
ANNOTATION = "org.opencontainers.image."  # what such labels begin with
EPOCH = "SOURCE_DATE_EPOCH"  # a build argument, as tools for reproducible builds call it
DOCKER_ARCHITECTURES = {machine: platform.partition("/")[2] for machine, platform in pins.PLATFORMS.items()}
TOOLKIT = "Ascend-cann-toolkit_5.1.RC2_linux-{}.run"  # named in messages; other versions are accepted
# Scripts of docker/ in the context of a stage, beside the user's files.
SCRIPTS = {
    "export": ("install-packages",),
    "compile": ("install-cann", "install-packages", "with-cann", "check-cann"),
    "runtime": ("install-cann", "with-cann", "check-cann"),
}
SETTLE = "settle"  # beside them in every stage
SCRIPTS[pins.RUNTIME_CPU] = SCRIPTS[pins.base_of(pins.RUNTIME_CPU)]
DESCRIPTIONS = {
    "export": "Python packages that export, tokenize, judge, and run the cpu backend",
    pins.RUNTIME_CPU: "Python packages that judge, and run the cpu backend: the export image without PyTorch",
    "compile": "ATC, with the Python packages that it imports",
    "runtime": "msame, with the run-time libraries of CANN",
    "ci": "all of an acceptance run but the checkpoint and the data",
}
Line = Annotated[str, Meta(pattern=r"^[^\x00-\x1f]*\Z")]  # without line breaks and other control characters


class BuildSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How builds reach packages: `images` in invoke.yaml. Empty values: pip's and Docker's defaults.

    `wheelhouse`: a folder of wheels that is searched first. `offline`: the only one, and the build has no network.
    `ca`: a file of PEM certificates to trust. `network`: Docker's network for the build.
    `runtime_cpu`: whether the steps that need no PyTorch run in the image without it.
    """

    wheelhouse: Optional[Path] = None
    index_url: Annotated[str, Meta(pattern=r"^https?://[^\x00-\x1f]+\Z")] = ""
    offline: bool = False
    http_proxy: Line = ""
    https_proxy: Line = ""
    no_proxy: Line = ""
    ca: Optional[Path] = None
    network: Line = ""
    runtime_cpu: bool = False

    @property
    def stages(self) -> tuple[str, ...]:
        """The stage images that steps run in."""
        return pins.IMAGES if self.runtime_cpu else pins.STAGES


@dataclass(frozen=True)
class File:
    """A file of the context: its name there, where it is, its SHA-256, and whether it is executable."""

    name: str
    path: Path
    sha256: str
    executable: bool = False


@dataclass(frozen=True)
class Image:
    """A stage's image. `base`: NAME@sha256:DIGEST, or sha256:ID. `unpinned`: how it differs from what is pinned.

    `base_name`: NAME:TAG of a pinned base, else empty; `base_digest`: its digest for this machine, if it is recorded.
    `epoch`: the time of its files and of itself, in seconds. `inputs`: name to digest. `lock` is the requirements file,
    None without Python packages. `arguments`: build arguments beside BASE. `notes`: labels beside those of every image.
    """

    stage: str
    arch: str
    base: str
    inputs: Mapping[str, str]
    unpinned: tuple[str, ...]
    files: tuple[File, ...]
    epoch: int
    base_name: str = ""
    base_digest: str = ""
    folders: tuple[str, ...] = ()  # of the context, added even if empty
    lock: Path | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        return f"{REPOSITORY}/{self.stage}:{digest_of(self.inputs)[:20]}"


def settings(values: Any, project: Path, only_from: Optional[Path] = None) -> BuildSettings:
    """BuildSettings of the mapping `images` in invoke.yaml; paths are relative to the project. Raises ConfigError.

    `only_from`: the setting `wheelhouse`, a folder for the whole project, with which builds have no network.
    """
    images = schema.setting(values, BuildSettings, "images")
    paths = (images.wheelhouse, images.ca)
    wheelhouse, ca = ((project / path.expanduser()).absolute() if path else None for path in paths)
    if only_from:
        if wheelhouse and wheelhouse != only_from:
            raise ConfigError(f"wheelhouse is {only_from}, and images.wheelhouse {wheelhouse}. Leave one of them empty")
        wheelhouse, images = only_from, msgspec.structs.replace(images, offline=True)
    if wheelhouse and not wheelhouse.is_dir():
        raise ConfigError(f"images in invoke.yaml: wheelhouse: {wheelhouse} is no folder")
    if ca and not (ca.is_file() and b"-----BEGIN CERTIFICATE-----" in ca.read_bytes()):
        raise ConfigError(f"images in invoke.yaml: ca: {ca} is no file of PEM certificates")
    return msgspec.structs.replace(images, wheelhouse=wheelhouse, ca=ca)


def plan(project: Path, pinned: ImagePins, stage: str, arch: str) -> Image:
    """The image of a stage for a machine (x86_64 or aarch64). Reads and hashes its inputs, and builds nothing.

    Raises MissingError (a user-supplied file is missing, or not pinned yet), DataError (a file is not the pinned one)
    and ConfigError.
    """
    if arch not in DOCKER_ARCHITECTURES:
        raise ConfigError(f"there are no stage images for {arch}; they are for {' and '.join(DOCKER_ARCHITECTURES)}")
    base, entry, supplied = pinned.bases[stage], pinned.locks.get(stage), UserFiles(project, pinned, arch)
    files = [
        own_file(project, Path("docker", f"{pins.base_of(stage)}.Dockerfile"), "Dockerfile"),
        *(own_file(project, Path("docker", script), script) for script in (*SCRIPTS[stage], SETTLE)),
    ]
    folders: list[str] = []
    if entry:
        files.append(_checked(own_file(project, Path(entry.file), "requirements.lock"), entry.sha256))
    if stage in ("compile", "runtime"):
        files += supplied.cann(stage) + supplied.all(pins.DEBS / stage, ".deb", "debs", pinned.debs.get(stage, {}))
        folders += ["cann", "debs"]
    if stage == "compile":
        files += supplied.all(pins.WHEELS, ".whl", "ais_bench", pinned.wheels)
        folders.append("ais_bench")
    if stage == "runtime":
        files.append(supplied.msame())
    with contextlib.suppress(OSError):  # it only saves time, and the project may be read-only
        supplied.digests.save()
    epoch = pinned.source_date_epoch
    inputs = {"base": base.reference, "architecture": arch, EPOCH: str(epoch)}
    inputs.update({file.path.relative_to(project).as_posix(): file.sha256 for file in files})
    unpinned = (f"base {base.override} in place of {base.image}",) if base.override else ()
    lock = project / entry.file if entry else None
    name = "" if base.override else base.image
    own = base.platforms.get(pins.PLATFORMS[arch], "") if name else ""
    return Image(stage, arch, base.reference, inputs, unpinned, tuple(files), epoch, name, own, tuple(folders), lock)


def plans(project: Path, stages: Sequence[str], show: Callable[[str], None], machine: str = "") -> Iterator[Image]:
    """The images of these stages for a machine (empty: this one); one whose files are not here is left out, and said.

    Raises the errors of `plan`, and MissingError too if there is one stage only.
    """
    loaded = pins.load(project)
    for stage in stages:
        try:
            yield plan(project, loaded, stage, machine or platform.machine())
        except MissingError as error:
            if len(stages) == 1:
                raise
            show(f"{stage}: left out: {error}")


def canonical(content: Any) -> str:
    """JSON with sorted keys and no spaces: hashed for tags, and stored in labels."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(content: Mapping[str, str]) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(dict(content)).encode()).hexdigest()


def labels(image: Image) -> dict[str, str]:
    """The labels that the built image carries."""
    inputs, unpinned = canonical(dict(image.inputs)), canonical(list(image.unpinned))
    ours = {LABEL: "image", STAGE: image.stage, INPUTS: inputs, UNPINNED: unpinned}
    return {**ours, **_annotations(image), **image.notes}


def created(image: Image) -> str:
    """The time of the image, as RFC 3339 writes it: never that of its build."""
    return datetime.fromtimestamp(image.epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _annotations(image: Image) -> dict[str, str]:
    """The labels that the Open Container Initiative names. All follow from the inputs, so that two builds agree.

    No revision, therefore: two commits may have the same inputs. `licenses` is for what is the project's own.
    """
    values = {
        "title": f"{REPOSITORY} {image.stage}",
        "description": DESCRIPTIONS[image.stage],
        "version": image.tag.rpartition(":")[2],
        "created": created(image),
        "licenses": "Apache-2.0",
    }
    if image.base_name:
        values.update({"base.name": image.base_name, "base.digest": image.base.rpartition("@")[2]})
    return {f"{ANNOTATION}{name}": value for name, value in values.items()}


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The differences between two images' inputs, one text each."""
    texts = []
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            verb = "changed" if name in old and name in new else "added" if name in new else "removed"
            texts.append(f"{PurePosixPath(name).name} {verb}")
    return texts


def own_file(project: Path, path: Path, name: str) -> File:
    """A file of the project. Raises MissingError."""
    try:
        content = (project / path).read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{project / path} is missing. Run: git checkout -- {path}") from None
    return File(name, project / path, hashlib.sha256(content).hexdigest(), executable=content.startswith(b"#!"))


class UserFiles:
    """The user-supplied files of a project, each of which must have its pinned SHA-256."""

    def __init__(self, project: Path, pinned: ImagePins, arch: str) -> None:
        self.project, self.pinned, self.arch = project, pinned, arch
        self.digests = Digests(project / "docker")  # remembered: a CANN package is over 1 GB; packing hashes it again

    def msame(self) -> File:
        """Raises MissingError (not there, or not pinned), ConfigError (another machine's) and DataError."""
        if not (self.project / pins.MSAME).is_file():
            raise MissingError(
                f"the runtime image needs msame: build it as the guide says, put it at {pins.MSAME}, and run: "
                "invoke images --lock"
            )
        machine = pins.architecture_of(self.project / pins.MSAME)
        if machine not in (None, self.arch):
            raise ConfigError(
                f"{pins.MSAME} is built for {machine}, and the image is for {self.arch}. Build it for {self.arch}"
            )
        return self._file(pins.MSAME, "msame", self.pinned.msame.get(self.arch), executable=True)

    def cann(self, stage: str) -> list[File]:
        """CANN's package; none if the base was replaced and no package is there (check-cann tests the base)."""
        # The run-time package has no compiler; the toolkit has both.
        kinds = ("toolkit",) if stage == "compile" else ("nnrt", "toolkit")
        matches = [pins.CANN_PACKAGE.fullmatch(path.name) for path in pins.user_files(self.project / pins.CANN, ".run")]
        for kind in kinds:
            packages = [match[0] for match in matches if match and match[3] == self.arch and match[1] == kind]
            if len(packages) > 1:
                raise ConfigError(f"{pins.CANN} has {' and '.join(packages)}: which one? Leave one of them there")
            for name in packages:
                return [self._file(pins.CANN / name, f"cann/{name}", self.pinned.cann.get(name), executable=True)]
        if not self.pinned.bases[stage].override:
            raise MissingError(
                f"the {stage} image needs CANN: put {TOOLKIT.format(self.arch)} in {pins.CANN} and run invoke images "
                f"--lock, or name an image that has it: invoke images --base {stage}=IMAGE"
            )
        return []

    def all(self, folder: Path, suffix: str, name: str, pinned: Mapping[str, str]) -> list[File]:
        """Every file with a suffix in a folder, which must be exactly those that are pinned."""
        names = [path.name for path in pins.user_files(self.project / folder, suffix)]
        if absent := sorted(set(pinned) - set(names)):
            raise MissingError(
                f"{folder / absent[0]} is in {pins.PINS}, and not there. Put it back, or take it out of the pins with: "
                "invoke images --lock"
            )
        return [self._file(folder / file, f"{name}/{file}", pinned.get(file)) for file in names]

    def _file(self, path: Path, name: str, pinned: str | None, executable: bool = False) -> File:
        sha256 = self.digests.of(PurePosixPath(path.relative_to("docker").as_posix()))["sha256"]
        if pinned is None:
            raise MissingError(
                f"{path} (SHA-256 {sha256}) is not in {pins.PINS} yet. If it is the file that you mean, run: "
                "invoke images --lock"
            )
        return _checked(File(name, self.project / path, sha256, executable), pinned)


def _checked(file: File, pinned: str) -> File:
    if file.sha256 != pinned:
        raise DataError(
            f"{file.path} has SHA-256 {file.sha256}, and {pins.PINS} says {pinned}. Put the pinned file back, or "
            "take this one with: invoke images --lock"
        )
    return file
