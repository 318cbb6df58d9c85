"""What this machine has and lacks: every check is made first, and only then is anything shown.

A check looks and never changes anything. It says what is there, what is required, what a lack of it blocks, and how to
get it; `needed` marks what the cpu backend with the local executor cannot do without.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

from deberta.ascend.cann import SCRIPTS, find
from deberta.ascend.programs import MSAME
from deberta.core import machine
from deberta.core.errors import DebertaError
from deberta.host.environments import stages
from deberta.host.plan.plan import Plan

OK, MISSING, UNKNOWN = "ok", "missing", "unknown"
GIB = 1 << 30
FULL_DISK, FULL_MEMORY = 8 * GIB, 4 * GIB  # models, bins and results of the guide's model; its export peaks below 4 GiB
SMALL_DISK, SMALL_MEMORY = 1 * GIB, 2 * GIB  # the demo's
ENGINE_TIMEOUT = 3  # seconds
WRITTEN = ("models", "data", "results", ".cache")  # below the workspace


@dataclass(frozen=True)
class HostCheck:
    """One thing looked at. `state` is ok, missing or unknown (it could not be told, or is worth knowing)."""

    name: str
    found: str
    required: str
    state: str
    blocks: str = ""  # what does not work without it
    get: str = ""  # how to get it
    needed: bool = False  # the cpu backend with the local executor needs it


def run(
    project: Path,
    workspace: Path,
    inputs: Sequence[Tuple[Path, str, str]],
    full_size: bool = True,
    python: Optional[Path] = None,
    cann_setting: str = "",
    msame_path: Optional[Path] = None,
) -> Tuple[HostCheck, ...]:
    """Every check. `inputs`: (path, relative to the workspace or absolute; what it blocks; command that gets it).

    `full_size` False asks for the disk and memory that the demo needs, not for the guide's model's. `python` is the
    interpreter of an environment that the user prepared for the stages (the setting stages_python); `cann_setting` and
    `msame_path` are the settings of the ascend backend.
    """
    return (
        host_python(sys.version_info[:3]),
        *stage_environment(project, python),
        writable(workspace),
        disk(workspace, FULL_DISK if full_size else SMALL_DISK),
        memory(FULL_MEMORY if full_size else SMALL_MEMORY),
        cores(),
        cpu_features(),
        *(input_file(workspace / path, str(path), blocks, get) for path, blocks, get in inputs),
        engine(),
        *stage_images(project),
        cann(cann_setting),
        compiler(),
        msame(msame_path or project / MSAME),
        devices(),
        npu_smi(),
    )


def inputs(plan: Plan) -> Tuple[Tuple[Path, str, str], ...]:
    """What a profile's user brings, as `run` takes it."""
    profile = plan.profile
    needed = [
        (profile.checkpoint_path, "export-onnx, build-om, infer, evaluate, perf"),
        (profile.config_path, "export-onnx, preprocess, evaluate"),
        (profile.tokenizer_path, "preprocess, infer, evaluate, perf"),
        *((profile.data_path(version), f"preprocess and evaluate of {version}") for version in profile.rows),
    ]
    return tuple((Path(path), blocks, plan.source(path).command) for path, blocks in needed)


def missing(checks: Sequence[HostCheck]) -> Tuple[HostCheck, ...]:
    """What the cpu backend with the local executor needs and does not have; empty: doctor exits 0, else 3."""
    return tuple(check for check in checks if check.needed and check.state == MISSING)


def render(checks: Sequence[HostCheck]) -> str:
    """Aligned plain text: one line a check, and below what is not there, what that blocks and how to get it."""
    names = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        required = f" ({check.required})" if check.required else ""
        lines.append(f"{check.state:<7}  {check.name:<{names}}  {check.found}{required}")
        if check.state != OK:
            indent = " " * (len("missing") + names + 4)
            explanation = (("blocks", check.blocks), ("get", check.get))
            lines += [f"{indent}{label}: {text}" for label, text in explanation if text]
    lacking = missing(checks)
    names_lacking = "; ".join(check.name for check in lacking)
    lines += ["", f"cpu backend, local executor: {'missing ' + names_lacking if lacking else 'ready'}"]
    return "\n".join(lines)


def host_python(version: Sequence[int]) -> HostCheck:
    found = f"{'.'.join(map(str, version))} at {sys.executable}"
    state = OK if tuple(version) >= (3, 9) else MISSING
    return HostCheck(
        "Python, host", found, "3.9 or newer", state, "every command", "install a newer Python", needed=True
    )


def stage_environment(project: Path, prepared: Optional[Path] = None) -> Tuple[HostCheck, ...]:
    """The stages' Python and its packages: of the prepared environment, else of our own, made or still to be made.

    Only a Python that runs can be asked for its packages: without one there is no second check.
    """
    name, required, blocks = "Python, stages", f"Python {'.'.join(map(str, stages.PYTHON))}", "every stage"
    python = prepared or stages.find(project)
    if python is None:
        return (_to_be_made(project, name, required, blocks),)
    if prepared:
        get = (
            f"give stages_python a Python 3.11 with the packages of {stages.STAGES_LOCK} in it, "
            f"or leave it out to have {stages.FOLDER} made"
        )
    else:
        get = f"remove {project / stages.FOLDER}: the next command that runs a stage makes it again"
    try:
        found = stages.installed(python)
        problems = stages.misfits(project, found)
    except DebertaError as error:
        return (HostCheck(name, str(error), required, MISSING, blocks, get, needed=True),)
    versions = ", ".join(f"{package} {found[package]}" for package in stages.IMPORTED if package in found)
    interpreter = OK if f"Python {found['python']}" == required else MISSING
    state = MISSING if problems else OK
    said, locked = "; ".join(problems) or versions, f"as in {stages.STAGES_LOCK}"
    return (
        HostCheck(name, f"{found['python']} at {python}", required, interpreter, blocks, get, needed=True),
        HostCheck("packages, stages", said, locked, state, blocks, get, needed=True),
    )


def _to_be_made(project: Path, name: str, required: str, blocks: str) -> HostCheck:
    """ok if all is there that makes the environment on first use."""
    base = stages.find_python()
    if base is None:
        get = "install Python 3.11 (Debian 12: apt-get install python3.11 python3.11-venv)"
        return HostCheck(name, "no Python 3.11", required, MISSING, blocks, get, needed=True)
    need = stages.DISK_MB * 10**6
    if _free(project) < need:
        found = f"not made yet, and {_gib(_free(project))} free where it goes"
        get = f"free {_gib(need)} on the disk of {project}"
        return HostCheck(name, found, required, MISSING, blocks, get, needed=True)
    found = f"{base}; {stages.FOLDER} will be made by the first command that runs a stage"
    return HostCheck(name, found, required, OK, needed=True)


def writable(workspace: Path) -> HostCheck:
    """Whether the commands can make files: in the workspace, or where it goes, and in those of its folders it has."""
    own = [_nearest(workspace), *(workspace / name for name in WRITTEN if os.path.lexists(workspace / name))]
    closed = [str(path) for path in own if not (os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK))]
    if not closed:
        return HostCheck("workspace", str(workspace), "a folder to write in", OK, needed=True)
    get = "see to its owner, its mode and how it is mounted, or set workspace in invoke.yaml to another folder"
    found = f"cannot be written: {', '.join(closed)}"
    return HostCheck("workspace", found, "a folder to write in", MISSING, "every step", get, needed=True)


def disk(workspace: Path, required: int) -> HostCheck:
    free = _free(workspace)
    blocks = "models, bins and results of this profile: a step would stop with a full disk"
    state = OK if free >= required else MISSING
    get = f"free some space on the disk of {workspace}"
    return HostCheck("disk, free", _gib(free), f"{_gib(required)} or more", state, blocks, get, needed=True)


def memory(required: int, meminfo: Path = Path("/proc/meminfo"), cgroups: Optional[Sequence[Path]] = None) -> HostCheck:
    """What is available, and at most what this process's cgroup may use (memory.max; v1: memory.limit_in_bytes)."""
    amounts = _amounts(meminfo)
    if "MemAvailable" not in amounts:
        return HostCheck(
            "memory, free", f"no {meminfo}", f"{_gib(required)} or more", UNKNOWN, "export-onnx", needed=True
        )
    folders = machine.cgroup_folders("memory") if cgroups is None else cgroups
    files = [folder / name for folder in folders for name in ("memory.max", "memory.limit_in_bytes")]
    limits = [int(text) for text in map(_text, files) if text.isdigit()]
    available = min([amounts["MemAvailable"], *limits])
    state = OK if available >= required else MISSING
    get = "close other programs, or raise the container's memory limit"
    return HostCheck(
        "memory, free", _gib(available), f"{_gib(required)} or more", state, "export-onnx", get, needed=True
    )


def cores() -> HostCheck:
    usable, all_of_them = machine.effective_cpus(), os.cpu_count() or 1
    note = "" if usable == all_of_them else f" of {all_of_them} (affinity or the cgroup's CPU quota)"
    return HostCheck("CPU, cores", f"{usable} usable{note}", "1 or more", OK, needed=True)


def cpu_features(cpuinfo: Path = machine.CPUINFO) -> HostCheck:
    """Vector units by their Linux flag names. Where bf16 is fast, OpenVINO takes it unless told f32, as we tell it."""
    flags = machine.cpu_flags(cpuinfo)
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    found = [name for name in known if name in flags]
    if not found:
        slow = "speed: without AVX2 (x86_64) or ASIMD (aarch64) the cpu backend is several times slower"
        return HostCheck("CPU, vector units", f"none known on {platform.machine()}", "", UNKNOWN, slow)
    note = "; bf16 is there, and not used: the precision hint is f32" if any("bf16" in name for name in found) else ""
    return HostCheck("CPU, vector units", " ".join(found) + note, "", OK)


def input_file(path: Path, name: str, blocks: str, get: str) -> HostCheck:
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        size = f"{path.stat().st_size} bytes" if path.is_file() else "a folder"
        return HostCheck(name, size, "", OK, needed=True)
    return HostCheck(name, "not there", "", MISSING, blocks, get, needed=True)


def engine() -> HostCheck:
    """Whether a Docker engine of this machine answers: DOCKER_HOST's, the context's or the usual one."""
    from deberta.host.engine import engine as engines

    blocks = "the docker executor; local runs need no engine"
    get = "install and start a Docker engine, or set DOCKER_HOST, and see that this user may use it"
    try:
        client = engines.connect(ENGINE_TIMEOUT)
    except DebertaError as error:
        return HostCheck("Docker engine", _shortened(str(error), 200), "", MISSING, blocks, get)
    try:
        found = f"{client.version().get('Version', 'version not told')} at {client.api.base_url}"
    finally:
        client.close()
    return HostCheck("Docker engine", found, "", OK)


def stage_images(project: Path) -> Tuple[HostCheck, ...]:
    """Whether the parts of each stage image are here: what is missing is built by the command that needs it."""
    from deberta.host.images import definition, pins

    blocks = {
        "export": "every stage with the docker executor",
        "compile": "build-om with the ascend backend and the docker executor",
        "runtime": "infer and perf with the ascend backend and the docker executor",
    }
    checks = []
    for stage in pins.STAGES:
        try:
            image = definition.plan(project, pins.load(project), stage, platform.machine())
        except DebertaError as error:
            checks.append(HostCheck(f"image, {stage}", str(error), "", MISSING, blocks[stage], "see docker/README.md"))
            continue
        said = f"{image.tag}{' (not pinned)' if image.unpinned else ''} can be built"
        checks.append(HostCheck(f"image, {stage}", said, "", OK))
    return tuple(checks)


def cann(setting: str = "", scripts: Sequence[Path] = SCRIPTS) -> HostCheck:
    """CANN's set_env.sh: the setting's, at the guide's path or the default one."""
    blocks = "the ascend backend on the local executor"
    try:
        return HostCheck("CANN toolkit", str(find(setting, scripts)), "", OK)
    except DebertaError as error:
        found = str(error) if setting else "no set_env.sh"
    places = ", ".join(map(str, scripts))
    get = f"install the CANN toolkit from its vendor (set_env.sh in one of: {places}), or set cann in invoke.yaml"
    return HostCheck("CANN toolkit", found, "", MISSING, blocks, get)


def compiler() -> HostCheck:
    path = shutil.which("atc")
    if path:
        return HostCheck("atc", path, "", OK)
    blocks = "build-om with the ascend backend, unless the PATH that set_env.sh makes has it"
    return HostCheck(
        "atc", "not on PATH", "", MISSING, blocks, "it comes with the CANN toolkit, whose set_env.sh we source"
    )


def msame(path: Path) -> HostCheck:
    if os.access(path, os.X_OK) and path.is_file():
        return HostCheck("msame", str(path), "", OK)
    get = f"build it from Ascend's tools and put it at {MSAME}, or set msame in invoke.yaml"
    found = "not executable" if path.exists() else f"no {path}"
    return HostCheck("msame", found, "", MISSING, "infer and perf with the ascend backend", get)


def devices(folder: Path = Path("/dev")) -> HostCheck:
    """NPU device nodes: davinci<N>, one a chip (davinci_manager alone is the driver, not a chip)."""
    names = sorted(path.name for path in folder.glob("davinci[0-9]*"))
    if names:
        closed = [name for name in names if not os.access(folder / name, os.R_OK | os.W_OK)]
        if not closed:
            return HostCheck("NPU devices", " ".join(names), "", OK)
        get = "add this user to the group that owns them (often HwHiAiUser)"
        found = f"no permission: {' '.join(closed)}"
        return HostCheck("NPU devices", found, "", MISSING, "infer and perf with the ascend backend", get)
    get = "a machine with an Ascend 310P and its driver"
    return HostCheck("NPU devices", f"no {folder}/davinci*", "", MISSING, "infer and perf with the ascend backend", get)


def npu_smi() -> HostCheck:
    path = shutil.which("npu-smi")
    if path:
        return HostCheck("npu-smi", path, "", OK)
    blocks, get = (
        "telling the chip's name for soc_version, and whether the device is idle",
        "it comes with the Ascend driver, in /usr/local/bin",
    )
    return HostCheck("npu-smi", "not on PATH", "", MISSING, blocks, get)


def _free(path: Path) -> int:
    """Free bytes for this user on the disk that holds `path`, or will."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    while not os.path.exists(path):  # unlike Path.exists, it raises nothing for a folder that may not be looked into
        path = path.parent
    return path


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"


def _amounts(meminfo: Path) -> Dict[str, int]:
    """The amounts in /proc/meminfo, in bytes (there in kB of 1024: man 5 proc)."""
    amounts: Dict[str, int] = {}
    for line in _text(meminfo).splitlines():
        words: List[str] = line.replace(":", " ").split()
        if len(words) == 3 and words[1].isdigit() and words[2] == "kB":
            amounts[words[0]] = int(words[1]) * 1024
    return amounts


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""  # not on this system: the check says that it could not tell


def _shortened(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
