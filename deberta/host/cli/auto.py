"""What `auto` means: which backend, executor and chip a command uses, always said aloud."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any, Optional

from deberta.ascend import atc, cann, npu_smi
from deberta.ascend import programs as tools
from deberta.ascend.atc import AtcOptions
from deberta.core.contract import BACKENDS, EXECUTORS
from deberta.core.errors import ConfigError, DebertaError, MissingError

DEVICES = Path("/dev")


def backend(asked: str, compiles: bool, cann_setting: str = "", project: Optional[Path] = None) -> str:
    """The backend to use; says what `auto` picked. `compiles`: the command needs ATC, not a device. Raises ConfigError.

    `auto` takes ascend to compile if CANN is here or what the compile image is made of, and to run the model if a
    device node is.
    """
    if asked not in (*BACKENDS, "auto"):
        raise ConfigError(f"--backend {asked!r} is not one of: auto, {', '.join(BACKENDS)}")
    if asked != "auto":
        return asked
    if compiles and (found := cann_setting or cann.present() or _compile_image(project)):
        print(f"backend: ascend (auto; CANN is here: {found})")
        return "ascend"
    nodes = sorted(path.name for path in DEVICES.glob("davinci[0-9]*"))
    if not compiles and nodes:
        print(f"backend: ascend (auto; there is {', '.join(nodes)})")
        return "ascend"
    print(f"backend: cpu (auto; {'no CANN' if compiles else 'no NPU'} is here, so no .om is made)")
    return "cpu"


def _compile_image(project: Optional[Path]) -> str:
    """The tag of the compile image if it can be made of what is here, empty if not."""
    if project is None:
        return ""
    from deberta.host.images import (
        definition,
        pins,  # tomlkit is not loaded for the list of tasks
    )

    try:
        return definition.plan(project, pins.load(project), "compile", platform.machine()).tag
    except MissingError:
        return ""


def executor(asked: str, script: str = "", usual: str = "") -> str:
    """The executor to use; says what `auto` picked. `script`: the setting `cann`. Raises ConfigError.

    `auto` takes the task's usual one, else local on a host with CANN, else docker if an engine answers.
    """
    if asked not in (*EXECUTORS, "auto"):
        raise ConfigError(f"--executor {asked!r} is not one of: auto, {', '.join(EXECUTORS)}")
    if asked != "auto":
        return asked
    if usual:
        picked, why = usual, "this task's usual one"
    elif found := script or cann.present():
        picked, why = "local", f"CANN is here: {found}"
    elif answered := _engine():
        picked, why = "docker", f"an engine answers at {answered}"
    else:
        picked, why = "local", "no Docker engine answers"
    print(f"executor: {picked} (auto; {why})")
    return picked


def _engine() -> str:
    """The address of an engine that can be used, empty if there is none."""
    from deberta.host.engine import engine  # the SDK is slow to import, and most commands need none

    try:
        client = engine.connect(timeout=3)
    except DebertaError:
        return ""
    client.close()
    return str(engine.address()["base_url"])


def soc_version(asked: str, device: int) -> str:
    """The chip to compile for; `auto` asks npu-smi, and says what it found. Raises ConfigError and MissingError."""
    if asked != "auto":
        return npu_smi.parse_soc_version(asked)
    report = tools.npu_report()
    if report is None:
        raise MissingError(
            "no npu-smi on PATH tells the chip's name. Give it with --soc-version (Ascend310P3), or set soc_version in "
            "invoke.yaml"
        )
    found = npu_smi.soc_version(report.devices, device if any(d.device == device for d in report.devices) else None)
    print(f"soc_version: {found} (auto; npu-smi info)")
    return found


def atc_options(setting: Any) -> AtcOptions:
    """The options under `atc` in invoke.yaml. Raises ConfigError."""
    if setting and not hasattr(setting, "items"):
        raise ConfigError(f"atc in invoke.yaml is {setting!r}, not a mapping of ATC's options")
    return atc.options(setting)


def cann_setting(project: Path, setting: Any) -> str:
    """The setting `cann`, relative to the project; empty: the known places."""
    return str(project / Path(str(setting)).expanduser()) if setting else ""


def msame_path(project: Path, given: Any) -> Path:
    """The msame binary: what --msame or the setting names, relative to the project, or the usual place."""
    return project / Path(str(given or tools.MSAME)).expanduser()


def programs(workspace: Path, setting: str, msame: Path) -> tools.Tools:
    """Where atc and msame are looked for, once a step needs them."""

    def installed() -> cann.Cann:
        home = workspace / ".cache" / "scratch" / "home"
        home.mkdir(parents=True, exist_ok=True)
        return cann.load(setting, home)

    return tools.Tools(
        cann=functools.cache(installed),
        msame=msame,
        source=lambda: str(cann.find(setting) if setting else cann.present() or cann.SCRIPTS[-1]),
    )
