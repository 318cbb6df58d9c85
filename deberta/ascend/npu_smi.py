"""`npu-smi info`: which NPUs a machine has, what they are called for ATC, and whether they are healthy and idle.

Its table has several widths and forms. Seen with drivers 22.0.2 to 25.5 on 310P cards (one of two rows for a chip):

    | 24      310P3                 | OK              | NA           29                0     / 0             |
    | 0       0                     | 0000:04:00.0    | 0            1832 / 21527                            |

that is NPU, name | health | power, temperature, huge pages; then chip, device | bus | AI cores in %, memory in MB.
A table of processes follows, but not with drivers as old as CANN 5.1. The device in the second row is the logical
number that msame's --device takes; NPU numbers differ from it, have gaps, and are shared by the chips of one card.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from deberta.ascend.runs import explain
from deberta.core.errors import ConfigError, DataError, MissingError

BUSY, IDLE, UNKNOWN = "busy", "idle", "unknown"
IDLE_MEMORY_MB = 2500  # idle cards were seen with 930 to 1910 MB in use; above this something may be loaded
HEALTHY = "OK"  # others: Warning, Alarm, Critical, UNKNOWN

_PLACE = re.compile(r"(\d{1,9}) +(\d{1,9})", re.ASCII)
# The cells of a chip's two rows; its name is 310P3, 310Pvir01, Ascend910 ...
_CHIP = re.compile(
    r"(?P<npu>\d{1,9}) +(?P<name>[A-Za-z]*\d\w*)\|(?P<health>[^|]*)\|[^|]*\|"
    r"(?P<chip>\d{1,9}) +(?P<device>\d{1,9})\|[^|]*\|"
    r"(?P<aicore>\d{1,9}|NA|-) +(?P<used>\d{1,9}) */ *(?P<total>\d{1,9})",
    re.ASCII,
)
_NOBODY = re.compile(r"No running processes found in NPU (\d{1,9})", re.ASCII)
_VIRTUAL = re.compile(r"vir\d", re.IGNORECASE)
_SOC_VERSION = re.compile(r"Ascend\w+")


@dataclass(frozen=True)
class Device:
    """One chip. `device` is the logical number. None: npu-smi does not report it.

    `processes`: name and id of each; "process" if npu-smi does not see its name, as in some containers.
    """

    npu: int
    chip: int
    device: int
    name: str
    health: str
    aicore_percent: Optional[int]
    memory_used_mb: int
    memory_total_mb: int
    processes: Optional[tuple[str, ...]] = None

    @property
    def label(self) -> str:
        return f"{self.device} ({self.name}, NPU {self.npu} chip {self.chip})"


def parse(stdout: str) -> tuple[Device, ...]:
    """The chips that `npu-smi info` lists. Raises DataError (a table of another form) and MissingError (no device)."""
    lines = [line.strip() for line in stdout.splitlines() if line.strip()]
    if devices := _devices([_cells(line) for line in lines]):
        return devices
    raise explain("npu-smi info", lines) or MissingError(
        f"npu-smi info shows no device; it printed: {lines[0] if lines else 'nothing'}. Run: invoke doctor"
    )


def _cells(line: str) -> list[str]:
    """The cells of a table's row, or nothing for a line of another kind."""
    return [cell.strip() for cell in line[1:-1].split("|")] if line.startswith("|") and line.endswith("|") else []


def _devices(rows: Sequence[Sequence[str]]) -> tuple[Device, ...]:
    """The table of chips has three cells a row and two rows a chip; headings do not begin with a number."""
    numbered = [row for row in rows if len(row) == 3 and row[0][:1].isdigit()]
    processes = _processes(rows)
    devices = []
    for row, after in zip(numbered[0::2], [*numbered[1::2], []]):
        match = _CHIP.fullmatch("|".join([*row, *after]))
        if match is None:
            raise DataError(
                f"npu-smi info has a table of a form that is not known: '{' | '.join(row)}', then "
                f"'{' | '.join(after)}', are not NPU, name | health | ... and chip, device | bus | AI cores, memory. "
                "Give --soc-version, and look yourself that the device is idle"
            )
        name, health, aicore = match["name"], match["health"], match["aicore"]
        npu, chip, device, used, total = map(int, match.group("npu", "chip", "device", "used", "total"))
        percent = int(aicore) if aicore.isdigit() else None
        listed = tuple(text for on, text in processes[npu] if on == chip) if npu in processes else None
        devices.append(Device(npu, chip, device, name, health, percent, used, total, listed))
    return tuple(devices)


def _processes(rows: Sequence[Sequence[str]]) -> dict[int, list[tuple[int, str]]]:
    """NPU -> (chip, process), of the NPUs that the table of processes names: it lists all of theirs, maybe none."""
    processes: dict[int, list[tuple[int, str]]] = {}
    for row in rows:
        if len(row) == 1 and (nobody := _NOBODY.match(row[0])):
            processes.setdefault(int(nobody[1]), [])
        elif len(row) == 4 and (place := _PLACE.fullmatch(row[0])) and row[1].isdigit():
            processes.setdefault(int(place[1]), []).append((int(place[2]), f"{row[2] or 'process'} {row[1]}"))
    return processes


def find(devices: Sequence[Device], wanted: int) -> Device:
    """The chip with that logical number. Raises ConfigError naming those that are there."""
    for device in devices:
        if device.device == wanted:
            return device
    labels = "; ".join(device.label for device in devices)
    raise ConfigError(f"--device {wanted} is not there. npu-smi info shows: {labels}")


def check_health(device: Device) -> None:
    """Raise MissingError unless the chip is healthy, as the guide demands."""
    if device.health != HEALTHY:
        raise MissingError(
            f"device {device.label} is not healthy: npu-smi says {device.health}. "
            f"See: npu-smi info -t health -i {device.npu}, or take another one with --device"
        )


def state(device: Device) -> str:
    """busy, idle or unknown, from one look: a process between two inferences leaves the AI cores at 0 %.

    Busy: a process is listed, or the AI cores work. Idle: neither, and the memory in use is what a bare driver takes.
    Unknown: more memory is in use by no listed process, or npu-smi does not tell.
    """
    if device.processes or device.aicore_percent:
        return BUSY
    if device.aicore_percent is None and device.processes is None:
        return UNKNOWN
    return IDLE if device.memory_used_mb <= IDLE_MEMORY_MB else UNKNOWN


def describe(device: Device) -> str:
    """One line: the state, and what it follows from."""
    aicore = "AI cores not told" if device.aicore_percent is None else f"AI cores {device.aicore_percent} %"
    listed = "this driver lists no processes" if device.processes is None else ", ".join(device.processes)
    memory = f"{device.memory_used_mb} of {device.memory_total_mb} MB in use"
    return f"device {device.label}: {state(device)}; {aicore}, {memory}, {listed or 'no processes'}"


def soc_version(devices: Sequence[Device], wanted: Optional[int] = None) -> str:
    """ATC's name of the chip: `Ascend` + npu-smi's. Without `wanted`, all chips have to be of one kind.

    Raises ConfigError: chips of several kinds, a device that is not there, or a part of a chip (vNPU).
    """
    names = [find(devices, wanted).name] if wanted is not None else sorted({device.name for device in devices})
    if len(names) != 1:
        raise ConfigError(f"the machine has chips of several kinds: {', '.join(names)}. Give --soc-version or --device")
    return parse_soc_version(names[0] if names[0].startswith("Ascend") else f"Ascend{names[0]}")


def parse_soc_version(text: str) -> str:
    """A name that can be one of ATC's, from the command line or npu-smi. Raises ConfigError; ATC itself knows which."""
    if _VIRTUAL.search(text):
        raise ConfigError(
            f"{text} names a part of a chip (vNPU), which ATC cannot compile for: give the whole chip's name with "
            "--soc-version, as npu-smi info shows it where the chip is not divided (Ascend310P3)"
        )
    if not _SOC_VERSION.fullmatch(text):
        raise ConfigError(f"--soc-version {text!r} is not Ascend and a chip's name, like Ascend310P3")
    return text
