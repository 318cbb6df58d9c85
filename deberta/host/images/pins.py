"""What images are built from: docker/pins.toml, and docker/overrides.toml for bases that replace pinned ones.

pins.toml is committed, its tables are below. overrides.toml is of one machine: a table `base` from stage to an image,
as NAME@sha256:DIGEST, or sha256:ID of an image on the engine. Only `lock` and `set_base` write them; comments stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, List, Mapping, Optional

import tomlkit
from tomlkit.exceptions import TOMLKitError

from deberta.core import files
from deberta.core.errors import ConfigError, DebertaError, MissingError

STAGES = ("export", "compile", "runtime")
ARCHITECTURES = ("x86_64", "aarch64")
PINS, OVERRIDES = Path("docker", "pins.toml"), Path("docker", "overrides.toml")
CANN, MSAME, WHEELS = Path("docker", "cann"), Path("docker", "bin", "msame"), Path("docker", "ais_bench")
DEBS = Path("docker", "debs")  # a folder for each stage below it
CANN_PACKAGE = re.compile(r"Ascend-cann-(toolkit|nnrt)_(\S+)_linux-(x86_64|aarch64)\.run")
PINNED = "pinned"  # `--base STAGE=pinned` takes a replacement back

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REFERENCE = re.compile(r"(?:[a-z0-9][A-Za-z0-9._:/-]*@)?sha256:[0-9a-f]{64}")
_ELF_MACHINES = {0x3E: "x86_64", 0xB7: "aarch64"}  # ELF header, e_machine: EM_X86_64, EM_AARCH64


@dataclass(frozen=True)
class Base:
    """A base image: its tag, for people, the digest that counts, and what replaces both on this machine, or ""."""

    image: str
    digest: str
    override: str = ""

    @property
    def reference(self) -> str:
        """NAME@sha256:DIGEST, or sha256:ID of an image on the engine."""
        return self.override or f"{without_tag(self.image)}@{self.digest}"


@dataclass(frozen=True)
class Lock:
    """A hash-locked requirements file, relative to the project."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ImagePins:
    """All pins. The mappings are from file name (msame: from architecture) to SHA-256; debs by stage first."""

    bases: Mapping[str, Base]
    locks: Mapping[str, Lock]
    cann: Mapping[str, str] = field(default_factory=dict)
    msame: Mapping[str, str] = field(default_factory=dict)
    debs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    wheels: Mapping[str, str] = field(default_factory=dict)  # of the compile image


def load(project: Path) -> ImagePins:
    """Read both files. Raises MissingError (no pins.toml) and ConfigError (anything in them that is not understood)."""
    path = project / PINS
    document = _parse(path)
    if document is None:
        raise MissingError(f"{path} is missing. Run: git checkout -- {PINS}")
    where = str(PINS)
    _only(document, ("base", "lock", "cann", "msame", "deb", "wheel"), where)
    overrides = _overrides(project)
    bases = {}
    for stage, entry in _tables(document, "base", where, STAGES).items():
        values = _strings(entry, ("image", "digest"), f"{where}: [base.{stage}]")
        _must(_DIGEST, values["digest"], f"{where}: digest of [base.{stage}]", "sha256: and 64 hexadecimal digits")
        bases[stage] = Base(values["image"], values["digest"], overrides.get(stage, ""))
    locks = {}
    for stage, entry in _tables(document, "lock", where, STAGES).items():
        values = _strings(entry, ("file", "sha256"), f"{where}: [lock.{stage}]")
        locks[stage] = Lock(values["file"], _sha256(values["sha256"], f"{where}: sha256 of [lock.{stage}]"))
    for kind, found, needed in (("base", set(bases), STAGES), ("lock", set(locks), ("export", "compile"))):
        if absent := sorted(set(needed) - found):
            raise ConfigError(f"{where} has no [{kind}.{absent[0]}]. Run: git checkout -- {PINS}")
    return ImagePins(
        bases,
        locks,
        _hashes(document, "cann", where),
        _hashes(document, "msame", where, ARCHITECTURES),
        {
            stage: hashes
            for stage in _tables(document, "deb", where, STAGES)
            if (hashes := _hashes(document["deb"], stage, f"{where}: deb"))
        },
        {
            name: sha256
            for stage in _tables(document, "wheel", where, ("compile",))
            for name, sha256 in _hashes(document["wheel"], stage, f"{where}: wheel").items()
        },
    )


def lock(project: Path, resolve: Optional[Callable[[str], str]], arch: str) -> List[str]:
    """Rewrite pins.toml for what is here now; returns what changed, one line each.

    `resolve` gives the digest that a tag has now; one that it raises an error of ours for keeps its digest, which is
    said. None keeps all. `arch` is taken for an msame that is no ELF file. Pins of .deb files and wheels that are gone
    are dropped; those of CANN packages and msame stay, since another machine may have them.
    """
    load(project)  # nothing is rewritten that was not understood
    path = project / PINS
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    said: List[str] = []
    for stage, entry in document["base"].items():
        if resolve is not None:
            try:
                _put(entry, "digest", resolve(str(entry["image"])), f"base.{stage}", said, str(entry["image"]))
            except DebertaError as error:
                said.append(f"base.{stage}: digest kept: {error}")
    for stage, entry in document["lock"].items():
        file = project / str(entry["file"])
        if not file.is_file():
            raise MissingError(f"{file} is missing. Run: git checkout -- {entry['file']}")
        _put(entry, "sha256", files.sha256_of(file), f"lock.{stage}", said)
    present: Dict[tuple[str, ...], Path] = {}
    present.update({("cann", file.name): file for file in _files(project / CANN, ".run")})
    if (project / MSAME).is_file():
        present["msame", architecture(project / MSAME) or arch] = project / MSAME
    for stage in STAGES:
        present.update({("deb", stage, file.name): file for file in _files(project / DEBS / stage, ".deb")})
    present.update({("wheel", "compile", file.name): file for file in _files(project / WHEELS, ".whl")})
    for keys, file in present.items():
        _put(_table(document, keys), "sha256", files.sha256_of(file), ".".join(keys), said)
    for kind in ("deb", "wheel"):
        for stage, entries in document.get(kind, {}).items():
            for name in [name for name in entries if (kind, stage, name) not in present]:
                del entries[name]
                said.append(f"{kind}.{stage}.{name}: dropped, the file is gone")
    text = tomlkit.dumps(document)
    if text != path.read_text(encoding="utf-8"):
        files.write_text(path, text)
    return said


def set_base(project: Path, stage: str, value: str, given: str = "") -> None:
    """Replace a stage's base on this machine by `value` (NAME@sha256:DIGEST or sha256:ID), or take that back (PINNED).

    `given`: the name the user knows it by, kept as a comment. Raises ConfigError.
    """
    if stage not in STAGES:
        raise ConfigError(f"{stage!r} is no stage image: {', '.join(STAGES)}. Run: invoke images --base STAGE=IMAGE")
    if value != PINNED:
        _check_reference(value, f"--base {stage}")
    current = {**_overrides(project), stage: value}
    path = project / OVERRIDES
    document = _parse(path) or tomlkit.parse("# Set by invoke images --base STAGE=IMAGE; taken back by STAGE=pinned.\n")
    table = document.setdefault("base", tomlkit.table())
    if value == PINNED:
        table.pop(stage, None)
        current.pop(stage)
    else:
        item = tomlkit.string(value)
        if given and given != value:
            item.comment(" ".join(given.split()))
        table[stage] = item
    if current:
        files.write_text(path, tomlkit.dumps(document))
    else:
        path.unlink(missing_ok=True)


def architecture(path: Path) -> Optional[str]:
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


def without_tag(image: str) -> str:
    """NAME of NAME:TAG; a registry may have a port."""
    path = PurePosixPath(image)
    return str(path.with_name(path.name.partition(":")[0]))


def _parse(path: Path) -> Optional[tomlkit.TOMLDocument]:
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}. Correct it, or run: git checkout -- {PINS}") from None


def _overrides(project: Path) -> Dict[str, str]:
    document = _parse(project / OVERRIDES)
    if document is None:
        return {}
    where = str(OVERRIDES)
    _only(document, ("base",), where)
    table = document.get("base", {})
    found = _strings(table, tuple(table), f"{where}: [base]")
    _only(found, STAGES, f"{where}: [base]")
    for stage, value in found.items():
        _check_reference(value, f"{where}: base.{stage}")
    return found


def _check_reference(value: str, what: str) -> None:
    _must(_REFERENCE, value, what, "NAME@sha256: and 64 hexadecimal digits, or the id of an image on the engine")


def _files(folder: Path, suffix: str) -> List[Path]:
    return sorted(path for path in folder.glob(f"*{suffix}") if path.is_file()) if folder.is_dir() else []


def _put(entry: Any, key: str, value: str, name: str, said: List[str], comment: str = "") -> None:
    """Set a value, keeping or making the comment behind it."""
    old = str(entry.get(key, ""))
    if old == value:
        return
    item = tomlkit.string(value)
    if comment:
        item.comment(comment)
        item.trivia.comment_ws = "  "
    entry[key] = item
    said.append(f"{name}: {old} -> {value}" if old else f"{name}: {value}")


def _table(document: Any, keys: tuple[str, ...]) -> Any:
    """The table at a path of keys, made if need be, as [a.b."c"]."""
    table = document
    for depth, key in enumerate(keys, 1):
        if key not in table:
            table[key] = tomlkit.table(is_super_table=depth < len(keys))
        table = table[key]
    return table


def _only(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    if unknown := sorted(set(table) - set(known)):
        raise ConfigError(f"{where} has {unknown[0]!r}, which is not one of: {', '.join(known)}. Take it out")


def _tables(document: Mapping[str, Any], name: str, where: str, known: tuple[str, ...] = ()) -> Dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict) or not all(isinstance(entry, dict) for entry in table.values()):
        raise ConfigError(f"{where}: [{name}] does not hold tables only. Correct it, or run: git checkout -- {PINS}")
    if known:
        _only(table, known, f"{where}: [{name}]")
    return dict(table)


def _strings(entry: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Dict[str, str]:
    """The values of exactly these keys."""
    _only(entry, keys, where)
    for key in keys:
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise ConfigError(f"{where} has no {key}. Correct it, or run: git checkout -- {PINS}")
    return {key: str(entry[key]) for key in keys}


def _hashes(document: Mapping[str, Any], name: str, where: str, known: tuple[str, ...] = ()) -> Dict[str, str]:
    """{entry: sha256} of a table of tables that hold a hash and nothing else."""
    found = {}
    for key, entry in _tables(document, name, where, known).items():
        what = f'[{name}."{key}"]'
        found[key] = _sha256(_strings(entry, ("sha256",), f"{where}: {what}")["sha256"], f"{where}: sha256 of {what}")
    return found


def _sha256(value: str, what: str) -> str:
    return _must(_SHA256, value, what, "64 hexadecimal digits")


def _must(pattern: re.Pattern[str], value: str, what: str, wanted: str) -> str:
    if not pattern.fullmatch(value):
        raise ConfigError(f"{what} is {value!r}, not {wanted}. Correct it, or run: git checkout -- {PINS}")
    return value
