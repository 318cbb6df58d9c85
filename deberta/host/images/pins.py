"""What images are built from: docker/pins.toml, and docker/overrides.toml for bases that replace pinned ones.

pins.toml is committed. overrides.toml belongs to one machine: its table `base` gives a stage another image, as
NAME@sha256:DIGEST, or sha256:ID of an image on the engine. Only `lock` and `set_base` write them, and keep comments.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Callable, Dict, Literal, Mapping, NamedTuple, cast

import msgspec
import tomlkit
from msgspec import Meta
from tomlkit.exceptions import TOMLKitError

from deberta.core import files, machine
from deberta.core.errors import ConfigError, DebertaError, MissingError, one_line
from deberta.core.schema import Sha256, Text, convert

STAGES = ("export", "compile", "runtime")  # the stage images with a base of their own
RUNTIME_CPU = "runtime-cpu"  # the export image without PyTorch: on the same base
IMAGES = (*STAGES, RUNTIME_CPU)
PINS, OVERRIDES = Path("docker", "pins.toml"), Path("docker", "overrides.toml")
CANN, MSAME, WHEELS = Path("docker", "cann"), Path("docker", "bin", "msame"), Path("docker", "ais_bench")
DEBS = Path("docker", "debs")  # a folder for each stage below it
CANN_PACKAGE = re.compile(r"Ascend-cann-(toolkit|nnrt)_(\S+)_linux-(x86_64|aarch64)\.run")
PINNED = "pinned"  # `--base STAGE=pinned` removes a replacement

Stage = Literal["export", "compile", "runtime"]
Architecture = Literal["x86_64", "aarch64"]
Platform = Literal["linux/amd64", "linux/arm64"]
PLATFORMS = cast(Mapping[str, Platform], machine.PLATFORMS)  # a test compares the names
Digest = Annotated[str, Meta(pattern=r"^sha256:[0-9a-f]{64}\Z")]
# From 1980 on: a zip holds no earlier time.
Seconds = Annotated[int, Meta(ge=315532800, le=4102444800)]
Reference = Annotated[str, Meta(pattern=r"^(?:[a-z0-9][A-Za-z0-9._:/-]*@)?sha256:[0-9a-f]{64}\Z")]

_HINT = f". Correct it, or run: git checkout -- {PINS}"
_ELF_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}  # ELF header, e_machine: EM_X86_64, EM_AARCH64


class Lock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A hash-locked requirements file, relative to the project."""

    file: Text
    sha256: Sha256


class PinnedBase(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A base image: its tag, which is only shown to people, and the digest that is used.

    `platforms`: linux/amd64 and linux/arm64, as far as they are known, to the digest of the image in the list `digest`.
    """

    image: Text
    digest: Digest
    platforms: Dict[Platform, Digest] = {}


class Base(PinnedBase, frozen=True):
    """A base image with the reference that replaces it on this machine, or ""."""

    override: str = ""

    @property
    def reference(self) -> str:
        """NAME@sha256:DIGEST, or sha256:ID of an image on the engine."""
        return self.override or f"{without_tag(self.image)}@{self.digest}"


@dataclass(frozen=True)
class ImagePins:
    """All pins. The mappings are from file name (msame: from architecture) to SHA-256; debs by stage first.

    `source_date_epoch`: the time of everything that a build makes, in seconds since 1970.
    """

    source_date_epoch: int
    bases: Mapping[str, Base]
    locks: Mapping[str, Lock]
    cann: Mapping[str, str]
    msame: Mapping[str, str]
    debs: Mapping[str, Mapping[str, str]]
    wheels: Mapping[str, str]  # of the compile image


class _Bases(msgspec.Struct, forbid_unknown_fields=True):
    export: PinnedBase
    compile: PinnedBase
    runtime: PinnedBase


class _Locks(msgspec.Struct, forbid_unknown_fields=True):
    export: Lock
    compile: Lock
    runtime_cpu: Lock = msgspec.field(name=RUNTIME_CPU)


class _PinnedFile(msgspec.Struct, forbid_unknown_fields=True):
    sha256: Sha256


class _Pins(msgspec.Struct, forbid_unknown_fields=True):
    """pins.toml, but for the entries that are named after files: `_hashes` reads them, so that errors name them."""

    source_date_epoch: Seconds
    base: _Bases
    lock: _Locks
    cann: Dict[str, Any] = {}
    msame: Dict[Architecture, Any] = {}
    deb: Dict[Stage, Dict[str, Any]] = {}
    wheel: Dict[Literal["compile"], Dict[str, Any]] = {}


class _Overrides(msgspec.Struct, forbid_unknown_fields=True):
    base: Dict[Stage, Reference] = {}


def load(project: Path) -> ImagePins:
    """Read both files. Raises MissingError (no pins.toml) and ConfigError (an unknown, missing or malformed entry)."""
    document = _parse(project / PINS)
    if document is None:
        raise MissingError(f"{project / PINS} is missing. Run: git checkout -- {PINS}")
    tables = convert(document.unwrap(), _Pins, str(PINS), _HINT)
    overrides = _overrides(project)
    bases = {
        stage: Base(base.image, base.digest, base.platforms, overrides.get(stage, ""))
        for stage, base in msgspec.structs.asdict(tables.base).items()
    }
    return ImagePins(
        source_date_epoch=tables.source_date_epoch,
        bases={**bases, RUNTIME_CPU: bases[base_of(RUNTIME_CPU)]},
        locks={"export": tables.lock.export, "compile": tables.lock.compile, RUNTIME_CPU: tables.lock.runtime_cpu},
        cann=_hashes("cann", tables.cann),
        msame=_hashes("msame", tables.msame),
        debs={stage: _hashes(f"deb.{stage}", entries) for stage, entries in tables.deb.items() if entries},
        wheels=_hashes("wheel.compile", tables.wheel.get("compile", {})),
    )


def base_of(stage: str) -> str:
    """The stage whose base, in pins.toml and by `--base`, an image stands on."""
    return "export" if stage == RUNTIME_CPU else stage


class Registries(NamedTuple):
    """What is asked of registries: the present digest of a tag, and the images of such a digest by platform.

    `platforms`: None for a digest that is no list. Both raise errors of ours.
    """

    digest: Callable[[str], str]
    platforms: Callable[[str, str], Mapping[str, str] | None]


def lock(project: Path, registries: Registries | None, architecture: str) -> list[str]:
    """Rewrite pins.toml for the files and tags of now; returns what changed, one line each.

    `registries`: None keeps all digests, and an error of ours keeps those of that base and becomes a line.
    `architecture` is used for an msame that is no ELF file. Pins of .deb files and wheels that are gone are
    dropped; those of CANN packages and msame stay, since another machine may have them.
    """
    load(project)  # a file with mistakes is not rewritten
    path = project / PINS
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    changes: list[str] = []
    for stage, entry in document["base"].items():
        if registries is not None:
            _lock_base(entry, f"base.{stage}", registries, changes)
    for stage, entry in document["lock"].items():
        file = project / str(entry["file"])
        if not file.is_file():
            raise MissingError(f"{file} is missing. Run: git checkout -- {entry['file']}")
        _set(entry, "sha256", files.sha256_of(file), f"lock.{stage}", changes)
    present: dict[tuple[str, ...], Path] = {("cann", path.name): path for path in user_files(project / CANN, ".run")}
    if (project / MSAME).is_file():
        present["msame", architecture_of(project / MSAME) or architecture] = project / MSAME
    for stage in STAGES:
        present.update({("deb", stage, file.name): file for file in user_files(project / DEBS / stage, ".deb")})
    present.update({("wheel", "compile", file.name): file for file in user_files(project / WHEELS, ".whl")})
    for keys, file in present.items():
        _set(_table(document, keys), "sha256", files.sha256_of(file), ".".join(keys), changes)
    for kind in ("deb", "wheel"):
        for stage, entries in document.get(kind, {}).items():
            for name in [name for name in entries if (kind, stage, name) not in present]:
                del entries[name]
                changes.append(f"{kind}.{stage}.{name}: dropped, the file is gone")
    text = tomlkit.dumps(document)
    if text != path.read_text(encoding="utf-8"):
        files.write_text(path, text)
    return changes


def _lock_base(entry: Any, name: str, registries: Registries, changes: list[str]) -> None:
    """Set the digests of a base: of its tag, and of each platform in that list. An unknown one is not in the file."""
    image, before = str(entry["image"]), str(entry["digest"])
    try:
        _set(entry, "digest", registries.digest(image), name, changes, image)
    except DebertaError as error:
        changes.append(f"{name}: digest kept: {error}")
    digest = str(entry["digest"])
    if digest != before and entry.pop("platforms", None):
        changes.append(f"{name}: digests of its platforms dropped: they were of the digest before")
    try:
        known = registries.platforms(image, digest)
    except DebertaError as error:
        kept = "kept" if entry.get("platforms") else "not recorded"
        changes.append(f"{name}: digests of its platforms {kept}: {error}")
        return
    for platform in PLATFORMS.values():
        recorded = entry.get("platforms", {})
        if known is not None and platform in known:
            _set(_table(entry, ("platforms",)), platform, known[platform], f"{name}.{platform}", changes)
        elif platform in recorded:
            del recorded[platform]
            changes.append(f"{name}.{platform}: dropped, {digest} has no image for it")
        elif known is not None:
            changes.append(f"{name}.{platform}: not recorded, {digest} has no image for it")
    if known is None:
        changes.append(f"{name}: {digest} is of one platform")


def set_base(project: Path, stage: str, reference: str, name: str = "") -> None:
    """Replace a stage's base on this machine by NAME@sha256:DIGEST or sha256:ID, or remove the replacement (PINNED).

    `name`: how the user calls the image, kept as a comment. Raises ConfigError.
    """
    if stage not in STAGES:
        what = f"stands on the base of {base_of(stage)}" if stage in IMAGES else "is no stage image"
        raise ConfigError(f"{stage!r} {what}: {', '.join(STAGES)}. Run: invoke images --base STAGE=IMAGE")
    overrides = {key: value for key, value in _overrides(project).items() if key != stage}
    path = project / OVERRIDES
    document = _parse(path) or tomlkit.parse("# Set by invoke images --base STAGE=IMAGE; removed by STAGE=pinned.\n")
    table = document.setdefault("base", tomlkit.table())
    if reference == PINNED:
        table.pop(stage, None)
    else:
        overrides[stage] = convert(reference, Reference, f"--base {stage}")
        item = tomlkit.string(reference)
        if name and name != reference:
            item.comment(one_line(name))
        table[stage] = item
    if overrides:
        files.write_text(path, tomlkit.dumps(document))
    else:
        path.unlink(missing_ok=True)


def architecture_of(path: Path) -> str | None:
    """The machine that an ELF file is for (x86_64, aarch64, or its number); None for a script.

    Raises ConfigError for what is neither. e_machine: two bytes at offset 18, little-endian on both machines.
    """
    with open(path, "rb") as file:
        head = file.read(20)
    if head.startswith(b"#!"):
        return None
    if not head.startswith(b"\x7fELF") or len(head) < 20:
        raise ConfigError(f"{path} is neither a program (ELF) nor a script. Build msame as the guide says")
    number = int.from_bytes(head[18:20], "little")
    return _ELF_MACHINES.get(number, f"ELF machine {number}")


def user_files(folder: Path, suffix: str) -> list[Path]:
    """The regular files with this suffix in a folder, sorted; none if there is no such folder."""
    return sorted(path for path in folder.glob(f"*{suffix}") if path.is_file())


def machine_of(platform: str) -> str:
    """x86_64 for linux/amd64: the machine of a platform that PLATFORMS has."""
    return next(machine for machine, name in PLATFORMS.items() if name == platform)


def without_tag(image: str) -> str:
    """NAME of NAME:TAG; a registry may have a port."""
    path = PurePosixPath(image)
    return str(path.with_name(path.name.partition(":")[0]))


def _parse(path: Path) -> tomlkit.TOMLDocument | None:
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}{_HINT}") from None


def _overrides(project: Path) -> Mapping[Any, str]:
    document = _parse(project / OVERRIDES)
    return convert(document.unwrap() if document else {}, _Overrides, str(OVERRIDES)).base


def _hashes(table: str, entries: Mapping[Any, Any]) -> dict[str, str]:
    return {
        name: convert(entry, _PinnedFile, f'{PINS}: {table}."{name}"', _HINT).sha256 for name, entry in entries.items()
    }


def _set(entry: Any, key: str, value: str, name: str, changes: list[str], comment: str = "") -> None:
    """Set a value of a table and list the change; the comment behind it is kept, or replaced by `comment`."""
    old = str(entry.get(key, ""))
    if old == value:
        return
    item = tomlkit.string(value)
    if comment:
        item.comment(comment)
        item.trivia.comment_ws = "  "
    entry[key] = item
    changes.append(f"{name}: {old} -> {value}" if old else f"{name}: {value}")


def _table(document: Any, keys: tuple[str, ...]) -> Any:
    """The table at a path of keys, as [a.b."c"]; it is added if it is not there."""
    table = document
    for depth, key in enumerate(keys, 1):
        table = table.setdefault(key, tomlkit.table(is_super_table=depth < len(keys)))
    return table
