"""What this machine has and lacks: every check is made first, and only then is anything shown.

A check looks and never changes anything. It says what is there, what is required, what a lack of it blocks, how to get
it, and which backend and executor cannot do without it. doctor.json has their texts.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Dict, Iterator, Optional, Sequence, Tuple

import msgspec

from deberta.ascend import cann, executables, npu_smi, programs
from deberta.ascend.npu_smi import Device
from deberta.ascend.programs import MSAME
from deberta.core import machine
from deberta.core.errors import DebertaError
from deberta.host.environments import platforms, stages, wheelhouse
from deberta.host.plan.plan import Plan

OK, MISSING, UNKNOWN = "ok", "missing", "unknown"
GIB = 1 << 30
FULL_DISK, FULL_MEMORY = 8 * GIB, 4 * GIB  # models, bins and results of the guide's model; its export peaks below 4 GiB
SMALL_DISK, SMALL_MEMORY = 1 * GIB, 2 * GIB  # the demo's
ENGINE_TIMEOUT = 3  # seconds
STAGES_PYTHON = ".".join(map(str, stages.PYTHON))
WRITTEN = ("models", "data", "results", ".cache")  # below the workspace
ALWAYS = "always"
CPU_LOCAL = ("cpu", "local")


class HostCheck(msgspec.Struct, frozen=True):
    """One thing looked at. `state` is ok, missing or unknown (it could not be told, or is worth knowing)."""

    name: str
    actual: str = ""
    required: str = ""
    state: str = OK
    blocks: str = ""  # what does not work without it
    get: str = ""  # how to get it
    needed: str = ""  # who needs it: "always", or words all of which describe the run, as in "ascend local"


CHECKS = msgspec.json.decode(Path(__file__).with_name("doctor.json").read_bytes(), type=Dict[str, HostCheck])


def run(
    project: Path,
    workspace: Path,
    plan: Plan,
    python: Optional[Path] = None,
    cann_setting: str = "",
    msame_path: Optional[Path] = None,
    wheels: Optional[Path] = None,
) -> Tuple[HostCheck, ...]:
    """Every check, for the profile of `plan`; the demo needs less disk and memory than the guide's model.

    `python` is the interpreter of an environment that the user prepared for the stages (the setting stages_python);
    `cann_setting` and `msame_path` are the settings of the ascend backend; `wheels` is the setting wheelhouse.
    """
    is_demo = plan.profile.name == "demo"
    return (
        host_python(sys.version_info[:3]),
        *stage_environment(project, python),
        *wheelhouse_folder(project, wheels, python),
        writable(workspace),
        disk(workspace, SMALL_DISK if is_demo else FULL_DISK),
        memory(SMALL_MEMORY if is_demo else FULL_MEMORY),
        cores(),
        cpu_features(),
        *inputs(workspace, plan),
        engine(),
        *stage_images(project),
        *toolkit(cann_setting),
        msame(msame_path or project / MSAME),
        devices(),
        *npus(),
    )


def inputs(workspace: Path, plan: Plan) -> Iterator[HostCheck]:
    """What a profile's user brings."""
    profile = plan.profile
    needed = [
        (profile.checkpoint_path, "export-onnx, build-om, infer, evaluate, perf"),
        (profile.config_path, "export-onnx, preprocess, evaluate"),
        (profile.tokenizer_path, "preprocess, infer, evaluate, perf"),
        *((profile.data_path(version), f"preprocess and evaluate of {version}") for version in profile.rows),
    ]
    for name, blocks in needed:
        path = workspace / name
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            size = f"{path.stat().st_size} bytes" if path.is_file() else "a folder"
            yield HostCheck(str(name), size, needed=ALWAYS)
        else:
            yield HostCheck(str(name), "not there", "", MISSING, blocks, plan.source(name).command, ALWAYS)


def missing(checks: Sequence[HostCheck], surroundings: Sequence[str] = CPU_LOCAL) -> Tuple[HostCheck, ...]:
    """What a run needs and does not have; empty: doctor exits 0, else 3.

    `surroundings` describe the run: its backend, its executor, what runs the model, and "auto" for an unknown chip.
    """
    words = {ALWAYS, *surroundings}
    return tuple(c for c in checks if c.state == MISSING and c.needed and words.issuperset(c.needed.split()))


def render(checks: Sequence[HostCheck], surroundings: Sequence[str] = CPU_LOCAL) -> str:
    """Aligned plain text: one line a check, and below what is not there, what that blocks and how to get it."""
    width = max((len(check.name) for check in checks), default=0)
    indent = " " * (len("missing") + width + 4)
    lines = []
    for check in checks:
        required = f" ({check.required})" if check.required else ""
        lines.append(f"{check.state:<7}  {check.name:<{width}}  {check.actual}{required}")
        if check.state != OK:
            explanation = (("blocks", check.blocks), ("get", check.get))
            lines += [f"{indent}{label}: {text}" for label, text in explanation if text]
    lacking = "; ".join(check.name for check in missing(checks, surroundings))
    backend, executor = surroundings[:2]
    return "\n".join(
        [*lines, "", f"{backend} backend, {executor} executor: {'missing ' + lacking if lacking else 'ready'}"]
    )


def host_python(version: Sequence[int]) -> HostCheck:
    return _check("host-python", f"{'.'.join(map(str, version))} at {sys.executable}", tuple(version) >= (3, 9))


def stage_environment(project: Path, prepared: Optional[Path] = None) -> Tuple[HostCheck, ...]:
    """The stages' Python and its packages: of the prepared environment, else of our own, made or still to be made.

    Only a Python that runs can be asked for its packages: without one there is no second check.
    """
    python, folder = prepared or stages.find(project), project / stages.FOLDER
    if python is None:
        return tuple(_new_environment(project))
    whose = "-prepared" if prepared else ""
    try:
        versions = stages.installed(python)
        problems = stages.misfits(project, versions)
    except DebertaError as error:
        return (_check(f"stages-python{whose}", str(error), False, folder=folder),)
    version = versions["python"]
    packages = ", ".join(f"{package} {versions[package]}" for package in stages.IMPORTED if package in versions)
    return (
        _check(f"stages-python{whose}", f"{version} at {python}", version == STAGES_PYTHON, folder=folder),
        _check(f"stages-packages{whose}", "; ".join(problems) or packages, not problems, folder=folder),
    )


def _new_environment(project: Path) -> Iterator[HostCheck]:
    """ok if all is there that makes the environment on first use."""
    yield stages_system()
    python, needed, free = stages.find_python(), stages.DISK_MB * 10**6, free_bytes(project)
    if python is None:
        yield _check("stages-python-none", "no Python 3.11", False)
    elif free < needed:
        actual = f"not made yet, and {_gib(free)} free where it goes"
        yield _check("stages-python-disk", actual, False, amount=_gib(needed), folder=project)
    else:
        actual = f"{python}; {stages.FOLDER} will be made by the first command that runs a stage"
        yield _check("stages-python", actual, True, folder=project / stages.FOLDER)


def wheelhouse_folder(project: Path, wheels: Optional[Path], prepared: Optional[Path] = None) -> Iterator[HostCheck]:
    """Whether the stages can be installed from the wheelhouse, if there is to be one; the files are not read."""
    if wheels is None:
        return
    try:
        entries = wheelhouse.listed(wheels, project / stages.STAGES_LOCK, platform.machine())
        yield _check("wheelhouse", f"{wheels}, {len(entries)} files of the stages' packages for this machine", True)
    except DebertaError as error:
        check = _check("wheelhouse", str(error), False)
        is_needed = prepared is None and stages.find(project) is None
        yield check if is_needed else msgspec.structs.replace(check, needed="")


def stages_system() -> HostCheck:
    """Whether the stages' wheels run on this machine and its C library."""
    problem = platforms.problem(stages.STAGES_LOCK)
    texts = {"system": platforms.required(stages.STAGES_LOCK), "ways": stages.ways_out()}
    return _check("stages-system", problem or platforms.here(), not problem, **texts)


def writable(workspace: Path) -> HostCheck:
    """Whether the commands can make files: in the workspace, or where it goes, and in those of its folders it has."""
    own = [_nearest(workspace), *(workspace / name for name in WRITTEN if os.path.lexists(workspace / name))]
    closed = [str(path) for path in own if not (os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK))]
    return _check("workspace", f"cannot be written: {', '.join(closed)}" if closed else str(workspace), not closed)


def disk(workspace: Path, required: int) -> HostCheck:
    free = free_bytes(workspace)
    return _check("disk", _gib(free), free >= required, amount=_gib(required), folder=str(workspace))


def memory(required: int, meminfo: Path = Path("/proc/meminfo"), cgroups: Optional[Sequence[Path]] = None) -> HostCheck:
    """What is available, and at most what this process's cgroup may use (memory.max; v1: memory.limit_in_bytes)."""
    amount = re.search(r"(?m)^MemAvailable:\s*(\d+) kB$", _text(meminfo))  # of 1024 bytes: man 5 proc
    if amount is None:
        return _check("memory-unknown", f"no {meminfo}", None, amount=_gib(required))
    folders = machine.cgroup_folders("memory") if cgroups is None else cgroups
    files = [folder / name for folder in folders for name in ("memory.max", "memory.limit_in_bytes")]
    limits = [int(text) for text in map(_text, files) if text.isdigit()]
    available = min([int(amount[1]) * 1024, *limits])
    return _check("memory", _gib(available), available >= required, amount=_gib(required))


def cores() -> HostCheck:
    usable, count = machine.effective_cpus(), os.cpu_count() or 1
    note = "" if usable == count else f" of {count} (affinity or the cgroup's CPU quota)"
    return _check("cores", f"{usable} usable{note}", True)


def cpu_features(cpuinfo: Path = machine.CPUINFO) -> HostCheck:
    """Vector units by their Linux flag names, and whether `--precision bf16` can use them."""
    flags = machine.cpu_flags(cpuinfo)
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
    units = " ".join(name for name in known if name in flags)
    if not units:
        return _check("vector-units", f"none known on {platform.machine()}", None)
    note = "" if machine.why_no_bf16(cpuinfo) else "; --precision bf16 can use them, float32 is the default"
    return _check("vector-units", units + note, True)


def engine() -> HostCheck:
    """Whether a Docker engine of this machine answers: DOCKER_HOST's, the context's or the usual one."""
    from deberta.host.engine import engine as engines

    try:
        with contextlib.closing(engines.connect(ENGINE_TIMEOUT)) as client:
            version = client.version().get("Version", "version not told")
            return _check("engine", f"{version} at {engines.address()['base_url']}", True)
    except DebertaError as error:
        return _check("engine", textwrap.shorten(str(error), 400, placeholder="..."), False)


def stage_images(project: Path) -> Iterator[HostCheck]:
    """Whether the parts of each stage image are here: the image is built by the command that needs it."""
    from deberta.host.images import definition, pins

    for stage in pins.STAGES:
        try:
            image = definition.plan(project, pins.load(project), stage, platform.machine())
            actual, ok = f"{image.tag}{' (not pinned)' if image.unpinned else ''} can be built", True
        except DebertaError as error:
            actual, ok = str(error), False
        yield _check(f"image-{stage}", actual, ok)


def toolkit(setting: str = "", scripts: Sequence[Path] = cann.SCRIPTS) -> Iterator[HostCheck]:
    """The CANN that a run on this machine takes, by what it was found, and whether that one has atc."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            location, looked = cann.search(setting, scripts)
            installed = cann.load(setting, Path(scratch), scripts) if location else None
        except DebertaError as error:
            installed, looked = None, [str(error)]
    yield _check("cann", installed.text if installed else "; ".join(looked), bool(installed))
    try:
        atc = str(cann.tool(installed, "atc")) if installed else ""
        yield _check("atc", atc or "no CANN to take it from", bool(installed))
    except DebertaError as error:
        yield _check("atc", str(error), False)


def msame(path: Path) -> HostCheck:
    try:
        return _check("msame", str(programs.check_msame(path)), True, usual=MSAME)
    except DebertaError as error:
        return _check("msame", str(error), False, usual=MSAME)


def npus() -> Iterator[HostCheck]:
    """What npu-smi says about each device, as a run on it would take it."""
    try:
        program, listed = executables.on_path(npu_smi.PROGRAM), programs.npu_devices()
    except npu_smi.UnreadableError as error:
        yield _check("npu-smi", f"not checked: {error}", None)
        return
    except DebertaError as error:
        yield _check("npu-smi", str(error), False)
        return
    yield _check("npu-smi", str(program or "not on PATH"), bool(program))
    for device in listed or ():
        number = "of unknown number" if device.device is None else device.device
        yield _check("npu-device", npu_smi.describe(device), _is_usable(device), device=number)


def _is_usable(device: Device) -> Optional[bool]:
    if npu_smi.state(device) == npu_smi.BUSY or not npu_smi.is_healthy(device):
        return False
    return None if npu_smi.not_checked(device) else True


def devices(folder: Path = Path("/dev")) -> HostCheck:
    """NPU device nodes: davinci<N>, one a chip (davinci_manager alone is the driver, not a chip)."""
    names = sorted(path.name for path in folder.glob("davinci[0-9]*"))
    closed = [name for name in names if not os.access(folder / name, os.R_OK | os.W_OK)]
    if closed:
        return _check("devices-closed", f"no permission: {' '.join(closed)}", False)
    return _check("devices", " ".join(names) or f"no {folder}/davinci*", bool(names))


def _check(key: str, actual: str, ok: Optional[bool], **details: object) -> HostCheck:
    """A check of doctor.json; `details` fill in its texts. `ok` None: unknown."""
    check, state = CHECKS[key], UNKNOWN if ok is None else OK if ok else MISSING
    details.update(python=STAGES_PYTHON, lock=stages.STAGES_LOCK)
    texts = {name: getattr(check, name).format(**details) for name in ("name", "required", "get")}
    return msgspec.structs.replace(check, actual=actual, state=state, **texts)


def free_bytes(path: Path) -> int:
    """Free bytes for this user on the disk that holds `path`, or will."""
    return shutil.disk_usage(_nearest(path)).free


def _nearest(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    while not os.path.exists(path):  # unlike Path.exists, it raises nothing for a folder that may not be looked into
        path = path.parent
    return path


def _gib(amount: int) -> str:
    return f"{amount / GIB:.1f} GiB"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""  # not on this system: the check says that it could not tell
