"""What `auto` means: which backend, executor and chip a command uses, always said aloud."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from deberta import atc, npu
from deberta.atc import AtcOptions
from deberta.contract import BACKENDS, EXECUTORS
from deberta.errors import ConfigError, MissingError
from deberta.host import cann, tools

DEVICES = Path("/dev")


def backend(asked: str, compiles: bool, cann_setting: str = "") -> str:
    """The backend to use; says what `auto` picked. `compiles`: the command needs ATC, not a device. Raises ConfigError.

    `auto` takes ascend to compile if CANN is here, and to run the model if a device node is.
    """
    if asked not in (*BACKENDS, "auto"):
        raise ConfigError(f"--backend {asked!r} is not one of: auto, {', '.join(BACKENDS)}")
    if asked != "auto":
        return asked
    if compiles and (script := cann_setting or cann.present()):
        print(f"backend: ascend (auto; CANN is here: {script})")
        return "ascend"
    nodes = sorted(path.name for path in DEVICES.glob("davinci[0-9]*"))
    if not compiles and nodes:
        print(f"backend: ascend (auto; there is {', '.join(nodes)})")
        return "ascend"
    print(f"backend: cpu (auto; {'no CANN' if compiles else 'no NPU'} is here, so no .om is made)")
    return "cpu"


def executor(asked: str) -> str:
    """The executor to use; says what `auto` picked. Raises ConfigError."""
    if asked not in (*EXECUTORS, "auto"):
        raise ConfigError(f"--executor {asked!r} is not one of: auto, {', '.join(EXECUTORS)}")
    if asked == "docker":
        raise ConfigError("the docker executor is not part of this version. Use: --executor local")
    if asked == "auto":
        print("executor: local (auto; this version has no docker executor)")
    return "local"


def soc_version(asked: str, device: int) -> str:
    """The chip to compile for; `auto` asks npu-smi, and says what it found. Raises ConfigError and MissingError."""
    if asked != "auto":
        return npu.parse_soc_version(asked)
    report = tools.npu_report()
    if report is None:
        raise MissingError(
            "no npu-smi on PATH tells the chip's name. Give it with --soc-version (Ascend310P3), or set soc_version in "
            "invoke.yaml"
        )
    found = npu.soc_version(report.devices, device if any(d.device == device for d in report.devices) else None)
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


def programs(workspace: Path, setting: str, soc: str, device: int, msame: Path) -> tools.Tools:
    """Where atc and msame are looked for, and how the chip is told, once a step needs them."""

    def installed() -> cann.Cann:
        home = workspace / ".cache" / "scratch" / "home"
        home.mkdir(parents=True, exist_ok=True)
        return cann.load(setting, home)

    return tools.Tools(
        cann=functools.cache(installed),
        soc_version=functools.cache(lambda: soc_version(soc, device)),
        msame=msame,
        source=lambda: str(cann.find(setting) if setting else cann.present() or cann.SCRIPTS[-1]),
    )
