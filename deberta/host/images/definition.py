"""Stage images as data: what an image is made of, the tag that follows from it, and the files of its build context.

An image's tag is a hash of everything that decides what is in it, so a stale image cannot be used by name. How the
build reaches the network (BuildSettings) is no part of it: those files never get into a layer of the final image.
Nothing here needs an engine; `building` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Dict, List, Mapping, Optional, Tuple

from deberta.core.errors import ConfigError, DataError, MissingError
from deberta.core.records import Digests
from deberta.host.images import pins as pinned
from deberta.host.images.pins import CANN, CANN_PACKAGE, DEBS, MSAME, WHEELS, ImagePins

REPOSITORY = "deberta-ascend"
LABEL, STAGE, INPUTS, UNPINNED = (
    REPOSITORY, f"{REPOSITORY}.stage", f"{REPOSITORY}.inputs", f"{REPOSITORY}.unpinned"
)  # fmt: skip
DOCKER_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TOOLKIT = "Ascend-cann-toolkit_5.1.RC2_linux-{}.run"  # what messages ask for; any version of the name is taken
# File of docker/ that goes into the context of a stage, beside the user's own.
SCRIPTS = {
    "export": ("install-packages",),
    "compile": ("install-cann", "install-packages", "with-cann", "check-cann"),
    "runtime": ("install-cann", "with-cann", "check-cann"),
}
_KEYS = ("wheelhouse", "index_url", "offline", "http_proxy", "https_proxy", "no_proxy", "ca", "network")


@dataclass(frozen=True)
class BuildSettings:
    """How builds reach packages: `images` in invoke.yaml. Empty values: pip's and Docker's defaults.

    `wheelhouse`: a folder of wheels to look in first. `offline`: nothing else is asked, and the build has no network.
    `proxies`: by variable name. `ca`: PEM certificates to trust. `network`: Docker's network for the build.
    """

    wheelhouse: Optional[Path] = None
    index_url: str = ""
    offline: bool = False
    proxies: Mapping[str, str] = field(default_factory=dict)
    ca: Optional[Path] = None
    network: str = ""


@dataclass(frozen=True)
class File:
    """A file of the context: its name there, where it is, its SHA-256, and whether it is run."""

    name: str
    path: Path
    sha256: str
    executable: bool = False


@dataclass(frozen=True)
class Image:
    """A stage's image. `base`: NAME@sha256:DIGEST, or sha256:ID. `unpinned`: why it is not what the project pins.

    `inputs` (name to digest) is all that the tag is made of. `lock` is the requirements file, None without packages.
    `arguments`: of the build, beside BASE. `notes`: labels beside those of every image.
    """

    stage: str
    arch: str
    tag: str
    base: str
    inputs: Mapping[str, str]
    unpinned: Tuple[str, ...]
    files: Tuple[File, ...]
    folders: Tuple[str, ...] = ()  # of the context, there even if empty
    lock: Optional[Path] = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def settings(given: Any, project: Path) -> BuildSettings:
    """BuildSettings of the mapping `images` in invoke.yaml; paths are relative to the project. Raises ConfigError."""
    if given and not hasattr(given, "items"):
        raise ConfigError(f"images in invoke.yaml is {given!r}, not a mapping of settings")
    values = dict(given or {})
    if unknown := sorted(set(map(str, values)) - set(_KEYS)):
        raise ConfigError(f"images.{unknown[0]} in invoke.yaml is not one of: {', '.join(_KEYS)}")
    texts = {key: str(values.get(key) or "") for key in _KEYS if key != "offline"}
    for key, text in texts.items():
        if any(ord(character) < 32 for character in text):
            raise ConfigError(f"images.{key} in invoke.yaml holds a line break or another control character")
    offline = values.get("offline") or False
    if not isinstance(offline, bool):
        raise ConfigError(f"images.offline in invoke.yaml is {offline!r}, not true or false")
    if texts["index_url"] and not texts["index_url"].startswith(("https://", "http://")):
        raise ConfigError(f"images.index_url in invoke.yaml is {texts['index_url']!r}, not an http(s) address")
    wheelhouse, ca = (
        (project / Path(texts[key]).expanduser()).absolute() if texts[key] else None for key in ("wheelhouse", "ca")
    )
    if wheelhouse and not wheelhouse.is_dir():
        raise ConfigError(f"images.wheelhouse in invoke.yaml is {wheelhouse}, which is no folder")
    if ca and not (ca.is_file() and b"-----BEGIN CERTIFICATE-----" in ca.read_bytes()):
        raise ConfigError(f"images.ca in invoke.yaml is {ca}, which is no file of PEM certificates")
    proxies = {key: texts[key] for key in ("http_proxy", "https_proxy", "no_proxy") if texts[key]}
    return BuildSettings(wheelhouse, texts["index_url"], offline, proxies, ca, texts["network"])


def plan(project: Path, pins: ImagePins, stage: str, arch: str) -> Image:
    """The image of a stage for a machine (x86_64 or aarch64). Reads and hashes what it is made of, and changes nothing.

    Raises MissingError (a file that the user brings is not there, or not pinned yet), DataError (a file is not the
    pinned one) and ConfigError.
    """
    if arch not in DOCKER_ARCHITECTURES:
        raise ConfigError(f"there are no stage images for {arch}; they are for {' and '.join(DOCKER_ARCHITECTURES)}")
    digests = Digests(project / "docker")  # a CANN package is over 1 GB; what is packed is hashed again
    base = pins.bases[stage]
    inputs = {"base": base.reference, "architecture": arch}
    files = [
        own_file(project, Path("docker", f"{stage}.Dockerfile"), "Dockerfile"),
        *(own_file(project, Path("docker", script), script) for script in SCRIPTS[stage]),
    ]
    folders: List[str] = []
    lock: Optional[Path] = None
    if stage in pins.locks:
        entry = pins.locks[stage]
        lock = project / entry.file
        files.append(_checked(own_file(project, Path(entry.file), "requirements.lock"), entry.sha256))
    if stage != "export":
        files += _cann(project, pins, stage, arch, digests)
        files += _all(project, DEBS / stage, ".deb", "debs", pins.debs.get(stage, {}), digests)
        folders += ["cann", "debs"]
    if stage == "compile":
        files += _all(project, WHEELS, ".whl", "ais_bench", pins.wheels, digests)
        folders.append("ais_bench")
    if stage == "runtime":
        files.append(msame_file(project, pins, arch, digests))
    with contextlib.suppress(OSError):  # it only saves time, and the project may be read-only
        digests.save()
    inputs.update({str(file.path.relative_to(project).as_posix()): file.sha256 for file in files})
    text = canonical(inputs)
    tag = f"{REPOSITORY}/{stage}:{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    unpinned = (f"base {base.override} in place of {base.image}",) if base.override else ()
    return Image(stage, arch, tag, base.reference, inputs, unpinned, tuple(files), tuple(folders), lock)


def canonical(content: Any) -> str:
    """JSON of one form: what the tag is the hash of, and what the labels hold."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def labels(image: Image) -> Dict[str, str]:
    """What the built image says of itself."""
    return {
        LABEL: "image",
        STAGE: image.stage,
        INPUTS: canonical(dict(image.inputs)),
        UNPINNED: canonical(list(image.unpinned)),
        **image.notes,
    }


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> List[str]:
    """What is not the same in two images' inputs, one text each; empty if all is."""
    said = []
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            verb = "changed" if name in old and name in new else "added" if name in new else "removed"
            said.append(f"{PurePosixPath(name).name} {verb}")
    return said


def own_file(project: Path, path: Path, name: str) -> File:
    """A file of the project. Raises MissingError."""
    try:
        content = (project / path).read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{project / path} is missing. Run: git checkout -- {path}") from None
    script = content.startswith(b"#!")
    return File(name, project / path, hashlib.sha256(content).hexdigest(), script)


def _brought(project: Path, path: Path, name: str, wanted: Optional[str], digests: Digests, runs: bool = False) -> File:
    """A file of the user's, which has to be pinned."""
    sha256 = digests.of(PurePosixPath(path.relative_to("docker").as_posix()))["sha256"]
    if wanted is None:
        raise MissingError(
            f"{path} (SHA-256 {sha256}) is not in {pinned.PINS} yet. If it is the file that you mean, run: "
            "invoke images --lock"
        )
    return _checked(File(name, project / path, sha256, runs), wanted)


def _checked(file: File, wanted: str) -> File:
    if file.sha256 != wanted:
        raise DataError(
            f"{file.path} has SHA-256 {file.sha256}, and {pinned.PINS} says {wanted}. Put the pinned file back, or "
            "take this one with: invoke images --lock"
        )
    return file


def _cann(project: Path, pins: ImagePins, stage: str, arch: str, digests: Digests) -> List[File]:
    """CANN's package for a stage; none if the base was replaced by one that brings it (check-cann looks)."""
    # The run-time package has no compiler; the toolkit has both.
    kinds = ("toolkit",) if stage == "compile" else ("nnrt", "toolkit")
    folder = project / CANN
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    matches = [match for match in map(CANN_PACKAGE.fullmatch, names) if match and match[3] == arch]
    for kind in kinds:
        found = [match[0] for match in matches if match[1] == kind]
        if len(found) > 1:
            raise ConfigError(f"{CANN} has {' and '.join(found)}: which one? Leave one of them there")
        if found:
            path = CANN / found[0]
            return [_brought(project, path, f"cann/{found[0]}", pins.cann.get(found[0]), digests, runs=True)]
    if not pins.bases[stage].override:
        raise MissingError(
            f"the {stage} image needs CANN: put {TOOLKIT.format(arch)} in {CANN} and run invoke images --lock, or name "
            f"an image that has it: invoke images --base {stage}=IMAGE"
        )
    return []


def _all(
    project: Path, folder: Path, suffix: str, name: str, wanted: Mapping[str, str], digests: Digests
) -> List[File]:
    """Every file of a folder of the user's, and exactly those that are pinned."""
    there = sorted(path.name for path in (project / folder).glob(f"*{suffix}") if path.is_file())
    if absent := sorted(set(wanted) - set(there)):
        raise MissingError(
            f"{folder / absent[0]} is in {pinned.PINS}, and not there. Put it back, or take it out of the pins with: "
            "invoke images --lock"
        )
    return [_brought(project, folder / file, f"{name}/{file}", wanted.get(file), digests) for file in there]


def msame_file(project: Path, pins: ImagePins, arch: str, digests: Digests) -> File:
    """The user's msame. Raises MissingError (not there, or not pinned), ConfigError (another machine's), DataError."""
    path = project / MSAME
    if not path.is_file():
        raise MissingError(
            f"the runtime image needs msame: build it as the guide says, put it at {MSAME}, and run: invoke images "
            "--lock"
        )
    machine = pinned.architecture(path)
    if machine not in (None, arch):
        raise ConfigError(f"{MSAME} is built for {machine}, and this machine is {arch}. Build it for {arch}")
    return _brought(project, MSAME, "msame", pins.msame.get(arch), digests, runs=True)
