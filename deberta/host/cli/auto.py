"""What `auto` means: which backend, executor and chip a command uses, printed whenever auto decides."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Optional, Sequence

from deberta.ascend import cann, npu_smi, programs
from deberta.core import machine, progress
from deberta.core.errors import DebertaError, MissingError
from deberta.host.engine import ping

AUTO, ALL = "auto", "all"
MOST_PROCESSES = 8  # that `all` takes on cpu: each has the model in its own memory
DEVICES = Path("/dev")


def backend(name: str, compiles: bool, cann_setting: str, project: Path) -> str:
    """The backend to use. `compiles`: the command needs ATC, not a device.

    `auto` takes ascend to compile if CANN is here or what the compile image is made of, and to run the model if a
    device node is.
    """
    picked, reason = pick_backend(name, compiles, cann_setting, project)
    if reason:
        progress.say(f"backend: {picked} (auto; {reason})")
    return picked


def pick_backend(name: str, compiles: bool, cann_setting: str, project: Path) -> tuple[str, str]:
    """The same and auto's reason, which is empty where `name` is a backend; nothing is printed."""
    if name != AUTO:
        return name, ""
    lacking = "no NPU is here"
    if compiles:
        location, looked = cann.search(cann_setting)
        place = location.text if location else _compile_image(project)
        if place:
            return "ascend", f"CANN is here: {place}"
        lacking = f"no CANN is here{''.join(f'; {text}' for text in looked[:-1])}"  # the last lists the known places
    elif nodes := sorted(path.name for path in DEVICES.glob("davinci[0-9]*")):
        return "ascend", f"there is {', '.join(nodes)}"
    return "cpu", f"{lacking}, so no .om is made"


def _compile_image(project: Path) -> str:
    """The tag of the compile image if its files are all here, empty if not."""
    from deberta.host.images import definition, pins  # tomlkit is not loaded for the list of tasks

    try:
        return definition.plan(project, pins.load(project), "compile", platform.machine()).tag
    except MissingError:
        return ""


def executor(name: str, script: str = "", usual: str = "") -> str:
    """The executor to use. `script`: the setting `cann`.

    `auto` takes the task's usual one, else local on a host with CANN, else docker if an engine answers.
    """
    picked, reason = pick_executor(name, script, usual)
    if reason:
        progress.say(f"executor: {picked} (auto; {reason})")
    return picked


def pick_executor(name: str, script: str = "", usual: str = "") -> tuple[str, str]:
    """The same and auto's reason, which is empty where `name` is an executor; nothing is printed."""
    if name != AUTO:
        return name, ""
    if usual:
        return usual, "this task's usual one"
    if location := cann.search(script)[0]:
        return "local", f"CANN is here: {location.text}"
    looked = ping.look()
    if looked.is_closed:
        return "local", "this user may not use the Docker engine: doctor says why"
    if address := _engine(looked.answers):
        return "docker", f"an engine answers at {address}"
    return "local", "no Docker engine answers"


def _engine(answers: Optional[bool]) -> str:
    """The address of an engine that can be used, empty if there is none. `answers`: as the fast look found."""
    if answers is False:
        return ""
    from deberta.host.engine import engine  # the SDK is slow to import, and most commands need none

    try:
        engine.connect(timeout=3).close()
    except DebertaError:
        return ""
    return str(engine.address()["base_url"])


def all_devices(backend: str) -> tuple[int, ...]:
    """All devices of this host: the chips that npu-smi lists; on cpu a process for each core, MOST_PROCESSES at most.

    Raises MissingError without npu-smi, and UnreadableError where it does not tell each chip's number.
    """
    if backend == "cpu":
        numbers = tuple(range(min(machine.effective_cpus(), MOST_PROCESSES)))
        return _say_all(numbers, "a process for each core" if len(numbers) < MOST_PROCESSES else "processes")
    unknown, instead = "which devices are here is not known", "Name them: --device 0,1"
    try:
        listed = programs.npu_devices()
    except npu_smi.UnreadableError as error:
        raise npu_smi.UnreadableError(f"{unknown}: {error}. {instead}") from None
    if listed is None:
        raise MissingError(f"{unknown}: no npu-smi on PATH. {instead}")
    known = sorted({entry.device for entry in listed if entry.device is not None})
    if len(known) < len(listed):
        places = "; ".join(entry.label for entry in listed)
        raise npu_smi.UnreadableError(f"{unknown}: npu-smi info does not tell each chip's number ({places}). {instead}")
    return _say_all(tuple(known), "npu-smi info")


def _say_all(numbers: tuple[int, ...], source: str) -> tuple[int, ...]:
    progress.say(f"devices: {', '.join(map(str, numbers))} (all; {source})")
    return numbers


def soc_version(name: str, wanted: Sequence[int]) -> str:
    """The chip to compile for; `auto` asks npu-smi, of the wanted devices that it lists, or else of all.

    Raises ConfigError and MissingError.
    """
    if name != AUTO:
        return npu_smi.parse_soc_version(name)
    try:
        devices = programs.npu_devices()
    except npu_smi.UnreadableError as error:
        raise npu_smi.UnreadableError(f"{error}. {npu_smi.GIVE_CHIP}") from None
    if devices is None:
        raise MissingError(f"no npu-smi on PATH tells the chip's name. {npu_smi.GIVE_CHIP}")
    own = [entry for entry in devices if entry.device in wanted]
    chip = npu_smi.soc_version(own or devices, own[0].device if len(own) == 1 else None)
    progress.say(f"soc_version: {chip} (auto; npu-smi info)")
    return chip
