"""The ascend backend's programs on this machine: atc, msame and npu-smi, run in CANN's environment and no other."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Callable, NamedTuple, Optional

from deberta.ascend import ais_bench, cann, executables, msame, npu_smi
from deberta.ascend.cann import Cann
from deberta.ascend.runs import check_files
from deberta.core import contract, files, machine
from deberta.core.errors import ConfigError, MissingError, StageError

MSAME = Path("docker", "bin", "msame")  # below the project
KINDS = ("models", "data", "results")
NPU_SMI_SECONDS = 60
RENUMBERING = ("ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES")


class Tools(NamedTuple):
    """Where the programs are. CANN is located when a step first needs it; `source` is its set_env.sh in a dry run.

    `announce` says once which CANN is used.
    """

    cann: Callable[[], Cann]
    msame: Path
    source: Callable[[], str]
    announce: Callable[[], None]


def executable(tools: Tools, installed: Cann, tool: str) -> Path:
    """The program of a tool: msame is the user's, everything else is CANN's.

    Raises MissingError; ConfigError for one that is there and cannot be started.
    """
    if tool == ais_bench.MODULE:
        return cann.tool(installed, "python3")
    return check_msame(tools.msame) if tool == msame.PROGRAM else cann.tool(installed, tool)


def check_msame(path: Path) -> Path:
    """The user's msame. Raises MissingError, and ConfigError if it is there and cannot be started."""
    executables.check(path)
    if not path.exists():
        raise MissingError(
            f"{path} is missing. Build msame as the guide says, put it there, or see to --msame (msame in invoke.yaml)"
        )
    return path


def variables(installed: Cann, tool: str, home: Path) -> dict[str, str]:
    """The environment of one run: $HOME is `home`, where atc and msame write ascend/ and atc_data/."""
    environment = {**installed.environment, "HOME": str(home)}
    if tool == ais_bench.MODULE:  # it may have been installed with pip --user, below the user's own $HOME
        environment["PYTHONUSERBASE"] = str(Path.home() / ".local")
    return environment


def user_supplied(tools: Tools, installed: Cann, tool: str) -> dict[str, str]:
    """SHA-256 of what the user supplied: {"program": msame's}, or ais_bench's packages by name. Raises MissingError."""
    program = executable(tools, installed, tool)
    if tool != ais_bench.MODULE:
        return {"program": files.sha256_of(program)} if tool == "msame" else {}
    command, environment = [str(program), "-c", ais_bench.PROBE], variables(installed, tool, Path.home())
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    try:
        probe = subprocess.run(command, env=environment, **options)
    except OSError as error:
        raise executables.unstartable(program, error) from error
    return {name: files.sha256_of(Path(path)) for name, path in ais_bench.installed(probe.stdout).items()}


def scratch(name: str) -> PurePosixPath:
    """A step's working folder. After a failure it stays, with CANN's logs in home/ascend, until the step's next run."""
    return PurePosixPath(".cache", "scratch", name)


def new_scratch(workspace: Path, name: str) -> Path:
    """A folder for one run: its summary, $HOME in `home`, and the working directory of a tool.

    Tools write to their working directory (kernel_meta, check_result.json) and read from it (acl.json). The links make
    the workspace's relative paths valid there, in a container too.
    """
    folder = workspace / scratch(name)
    files.remove(folder)
    (folder / "home").mkdir(parents=True)
    for kind in KINDS:
        (workspace / kind).mkdir(exist_ok=True)
        (folder / kind).symlink_to(os.path.relpath(workspace / kind, folder.resolve()))
    return folder


def check_bins(workspace: Path, bins: Sequence[PurePosixPath], size: int, count: int, first: int = 0) -> None:
    """Raise DataError unless each folder holds `count` bins of `size` bytes and nothing else; a file is checked alone.

    `first`: the index of the first bin.

    msame runs whatever is in the first folder, and its runtime accepts a file that is too large.
    """
    bins_of_folder = {contract.input_file(index): size for index in range(first, first + count)}
    for path in (workspace / relative for relative in bins):
        if path.is_file():
            paths, expected = [path], {path.name: size}
        else:
            paths, expected = [file for file in path.iterdir() if not file.name.startswith(".")], bins_of_folder
        check_files(paths, expected, "inputs", path, ". Run: invoke preprocess --force")


def npu_devices() -> Optional[tuple[npu_smi.Device, ...]]:
    """The chips that npu-smi lists, None without npu-smi.

    Raises npu_smi.parse's errors; StageError or ConfigError if it hangs or cannot be started.
    """
    program = executables.on_path(npu_smi.PROGRAM)
    if program is None:
        return None
    return npu_smi.parse(_npu_smi_info(program))


def _npu_smi_info(program: Path) -> str:
    """What `npu-smi info` prints. Raises StageError or ConfigError if it hangs or cannot be started."""
    try:
        process = subprocess.run(
            [program, "info"], stdin=subprocess.DEVNULL, capture_output=True, errors="replace", timeout=NPU_SMI_SECONDS,
            close_fds=False,  # if we are killed, it has our locks until its end
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise StageError(f"npu-smi info did not end in {NPU_SMI_SECONDS} s: the driver hangs. Look at dmesg") from None
    except OSError as error:
        raise executables.unstartable(program, error) from error
    return process.stdout + process.stderr


def driver_version() -> str:
    """The driver's version, from npu-smi's heading; empty if that does not tell."""
    program = executables.on_path(npu_smi.PROGRAM)
    return "" if program is None else npu_smi.version(_npu_smi_info(program))


def check_visible(device: int, *environments: Mapping[str, str]) -> None:
    """Raise ConfigError if a variable says beside --device which devices there are: CANN 8 numbers those from 0 anew.

    In a container ASCEND_VISIBLE_DEVICES is of the runtime that made it, by the host's numbers; CANN does not read it.
    """
    names = RENUMBERING[:1] if machine.is_container() else RENUMBERING
    for name, variables in ((name, variables) for variables in environments for name in names):
        if value := variables.get(name):
            raise ConfigError(
                f"{name} is {value} in the environment, and --device is {device}: newer CANN numbers the devices of "
                f"that variable from 0 anew, so that the two together can mean another chip than npu-smi's {device}. "
                f"Unset {name}, and name devices with --device alone"
            )


class DeviceCheck(NamedTuple):
    """What npu-smi says about the device of a run. `name`: the chip's, empty if that is not known.

    `not_checked`: sentences on what could not be read.
    """

    label: str
    name: str = ""
    not_checked: tuple[str, ...] = ()


def check_device(wanted: int, say: Callable[[str], None]) -> DeviceCheck:
    """Raise an error unless the device is healthy and idle, as the guide demands before a run, or cannot be looked at.

    What cannot be looked at is said, and stops nothing.
    """
    neither, reason = "so neither its health nor whether it is idle was checked", ""
    devices: Sequence[npu_smi.Device] = ()
    try:
        devices = npu_devices() or ()
        reason = "" if devices else "no npu-smi on PATH"
    except npu_smi.UnreadableError as error:
        reason = str(error)
    device = npu_smi.find(devices, wanted) if devices else None
    candidates = [device] if device else devices
    if candidates and all(npu_smi.state(candidate) == npu_smi.BUSY for candidate in candidates):
        line = npu_smi.describe(candidates[0])
        raise StageError(f"{line}. Wait until it is idle, or take another one with --device")
    if candidates and not any(npu_smi.is_healthy(candidate) for candidate in candidates):
        npu_smi.check_health(candidates[0])
    if device is not None:
        line, is_checked = npu_smi.describe(device), not npu_smi.not_checked(device)
    else:
        places = "; ".join(entry.place for entry in devices)
        line = f"device {wanted}: {reason or f'npu-smi info does not tell which chip that is ({places})'}, {neither}"
        is_checked = False
    say(line)
    names = {candidate.name for candidate in candidates}
    label = f"device {device.label if device else wanted}"
    return DeviceCheck(label, names.pop() if len(names) == 1 else "", () if is_checked else (line,))
