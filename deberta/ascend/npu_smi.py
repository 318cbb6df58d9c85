"""`npu-smi info`: which NPUs a machine has, what they are called for ATC, and whether they are healthy and idle.

Its tables differ by driver and chip, so that each column is found by its heading. Drivers 22 to 26 on a 310P have

    | NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
    | Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
    | 24      310P3                 | OK              | NA           29                0     / 0             |
    | 0       0                     | 0000:04:00.0    | 0            1832 / 21527                            |

and a 910 has no column Device, or Phy-ID in its place, and HBM-Usage(MB) beside Memory-Usage(MB). The table of
processes is absent with drivers as old as CANN 5.1, has four columns with those up to 25 and five with 26. The Device
is the logical number that msame's --device takes; NPU numbers differ from it, have gaps, and are shared by the chips
of one card. What cannot be read is never guessed at: it is None, or an UnreadableError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

from deberta.ascend.causes import explain, lines_of
from deberta.core.errors import ConfigError, DataError, MissingError

PROGRAM = "npu-smi"
BUSY, IDLE, UNKNOWN = "busy", "idle", "not checked"
IDLE_MEMORY_MB = 2500  # idle cards were seen with 930 to 1910 MB in use; above this something may be loaded
HEALTHY = "OK"  # others: Warning, Alarm, Critical, UNKNOWN
GIVE_CHIP = "Give the chip's name with --soc-version (Ascend310P3), and see yourself that the device is idle"

# Headings as they were seen, lower case. Memory in another unit than MB is not read.
_HEADINGS = {
    "npu": re.compile("npu(?:[ -]?id)?"),
    "chip": re.compile("chip(?:[ -]?id)?"),
    "device": re.compile("device(?:[ -]?id)?|(?:chip )?logic(?:al)?[ -]id"),
    "name": re.compile("(?:chip |npu )?name"),
    "health": re.compile("health(?:[ -]?status)?"),
    "aicore": re.compile(r"ai ?core ?\(%\)"),
    "memory": re.compile(r"(?:memory|hbm|ddr)[ -]usage ?\(mb\)"),
    "process": re.compile("process[ -]?id|pid"),
    "process name": re.compile("process[ -]?name"),
}
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_USAGE = re.compile(r"(\d{1,9})/(\d{1,9})", re.ASCII)
_NAME = re.compile(r"[A-Za-z]*\d{3}\w*(?:-\w+)?", re.ASCII)  # 310P3, 310Pvir01, Ascend910, 910B4-1
_NOT_TOLD = {"", "-", "--", "na", "n/a"}
_NOBODY = re.compile(r"No running process(?:es)? found in NPU (\d{1,9})\b(?: +chip (\d{1,9})\b)?", re.ASCII | re.I)
_MOST_LINES, _LONGEST_LINE = 5000, 10_000  # a longer one is cut, and then no row
_VIRTUAL = re.compile(r"vir\d", re.IGNORECASE)
_SOC_VERSION = re.compile(r"Ascend\w+(?:-\w+)?")


_VERSION = re.compile(r"\bVersion: {0,40}([0-9][0-9A-Za-z._-]{0,40})")


class UnreadableError(DataError):
    """npu-smi printed something that is not understood: no more follows from it."""


@dataclass(frozen=True)
class Device:
    """One chip. `device` is the logical number. None, or an empty name or health: npu-smi does not tell it.

    Memory is in MB, of all kinds together. `processes`: name and id of each; "process" if npu-smi does not see its
    name, as in some containers. `is_unlisted`: there is a table of processes, and it says nothing about this chip.
    """

    npu: Optional[int]
    chip: Optional[int]
    device: Optional[int]
    name: str
    health: str
    aicore_percent: Optional[int]
    memory_used_mb: Optional[int]
    memory_total_mb: Optional[int]
    processes: Optional[tuple[str, ...]] = None
    is_unlisted: bool = False

    @property
    def place(self) -> str:
        npu, chip = ("?" if number is None else str(number) for number in (self.npu, self.chip))
        return f"{self.name or 'name not told'}, NPU {npu} chip {chip}"

    @property
    def label(self) -> str:
        return f"{'of unknown number' if self.device is None else self.device} ({self.place})"


class _Table(NamedTuple):
    """`headings`: of each line of a record, of each cell, the columns in it. `rows`: cells; a text outside of the table
    is one cell, and the lines between rows have none."""

    headings: list[list[list[str]]]
    rows: list[list[str]]

    @property
    def columns(self) -> set[str]:
        return {column for line in self.headings for cell in line for column in cell}

    @property
    def is_of_processes(self) -> bool:
        return any("process" in column for column in self.columns)

    @property
    def is_of_devices(self) -> bool:
        return not self.is_of_processes and self.columns >= {"npu", "name"}


class _Processes(NamedTuple):
    """What is said about processes; a chip of None stands for all of the NPU's."""

    running: list[tuple[int, Optional[int], str]]  # NPU, chip, process
    nobody: set[tuple[int, Optional[int]]]
    is_absent: bool  # no table of processes, and nothing else that could be one
    is_whole: bool  # all was read


def parse(stdout: str) -> tuple[Device, ...]:
    """The chips that `npu-smi info` lists.

    Raises UnreadableError (no table of chips that is understood) and MissingError (it says that there is none).
    """
    lines = [line.strip()[:_LONGEST_LINE] for line in lines_of(stdout) if line.strip()]
    if len(lines) > _MOST_LINES:
        raise UnreadableError(f"npu-smi info prints more than {_MOST_LINES} lines")
    tables = _tables(lines)
    of_devices = [table for table in tables if table.is_of_devices]
    processes = _processes(tables)
    devices = tuple(_device(record, processes) for table in of_devices for record in _records(table))
    if any(device.name or device.device is not None for device in devices):
        return devices
    if explained := explain("npu-smi info", lines):
        raise explained
    if of_devices and not devices and processes.is_whole:
        raise MissingError("npu-smi info shows no device: its table is empty. Run: invoke doctor")
    rows = [line for line in lines if line.startswith("|")]
    shown = (rows[-1] if rows else lines[0])[:200] if lines else "nothing"
    raise UnreadableError(f"what npu-smi info prints is not understood ({' '.join(shown.split())})")


def version(stdout: str) -> str:
    """The version in the heading of `npu-smi info`, which is the driver's; empty if it has none."""
    match = _VERSION.search(stdout)
    return match[1] if match else ""


def _tables(lines: Sequence[str]) -> list[_Table]:
    """A table begins with its headings, and ends where those of the next one begin."""
    tables: list[_Table] = []
    for line in lines:
        is_row = line[0] == line[-1] == "|" and len(line) > 1
        cells = [cell.strip() for cell in line[1:-1].split("|")] if is_row else [line]
        headings = [] if cells[0][:1].isdigit() else [_columns(cell) for cell in cells]
        columns = {column for cell in headings for column in cell}
        if len(cells) > 1 and len(columns & _HEADINGS.keys()) > 1:
            if not tables or any(tables[-1].rows) or tables[-1].columns & columns:
                tables.append(_Table([headings], []))
            else:  # the second line of the headings
                tables[-1].headings.append(headings)
        elif tables:
            tables[-1].rows.append(cells if set(line) - set("+-=| ") else [])
    return tables


def _columns(cell: str) -> list[str]:
    """The columns that a heading's cell names: blanks part them, and one may hold a single blank itself."""
    columns = []
    for part in re.split("  +", cell.lower()):
        whole = _column(part)
        columns += [whole] if whole in _HEADINGS else [_column(word) for word in part.split()]
    return columns


def _column(text: str) -> str:
    return next((name for name, heading in _HEADINGS.items() if heading.fullmatch(text)), text)


def _records(table: _Table) -> Iterator[list[tuple[str, str]]]:
    """Column and value of each record; empty for rows that do not fit the headings.

    Of a process the first cells are enough, since its name may hold a bar.
    """
    block: list[list[str]] = []
    for row in [*table.rows, []]:
        if len(row) > 1:
            block.append(row)
        if block and (not row or len(block) == len(table.headings)):
            sizes = [(len(cells), len(line)) for cells, line in zip(block, table.headings)]
            fits = len(block) == len(table.headings) and all(row == heading for row, heading in sizes)
            pairs = [pair for line in zip(table.headings, block) for cell in zip(*line) for pair in _values(*cell)]
            yield pairs if fits or table.is_of_processes else []
            block = []


def _values(columns: Sequence[str], cell: str) -> Iterable[tuple[str, str]]:
    """Column and value of one cell; nothing where it has not a value for each."""
    if len(columns) == 1:
        return [(columns[0], cell)]
    words = " ".join(cell.split()).replace(" /", "/").replace("/ ", "/").split()
    if columns[-1:] == ["name"] and len(words) > len(columns):  # `Ascend 310P3`
        words[len(columns) - 1 :] = ["".join(words[len(columns) - 1 :])]
    return zip(columns, words) if len(words) == len(columns) else ()


def _device(record: Sequence[tuple[str, str]], processes: _Processes) -> Device:
    values = dict(reversed(record))
    usages = [_USAGE.fullmatch("".join(value.split())) for column, value in record if column == "memory"]
    npu, chip = _number(values.get("npu")), _number(values.get("chip"))
    used, total = (sum(int(usage[group]) for usage in usages if usage) for group in (1, 2))
    is_told = bool(total) and all(usages)
    name, health = "".join(values.get("name", "").split()), values.get("health", "")
    listed = _listed(npu, chip, processes)
    return Device(
        npu=npu,
        chip=chip,
        device=_number(values.get("device")),
        name=name if _NAME.fullmatch(name) else "",
        health="" if health.lower() in _NOT_TOLD else health,
        aicore_percent=_number(values.get("aicore")),
        memory_used_mb=used if is_told else None,
        memory_total_mb=total if is_told else None,
        processes=listed,
        is_unlisted=listed is None and not processes.is_absent,
    )


def _number(text: Optional[str]) -> Optional[int]:
    return int(text) if text and _NUMBER.fullmatch(text) else None


def _processes(tables: Iterable[_Table]) -> _Processes:
    running: list[tuple[int, Optional[int], str]] = []
    nobody: set[tuple[int, Optional[int]]] = set()
    is_absent = is_whole = True
    for table in tables:
        is_absent = is_absent and table.is_of_devices
        is_whole = is_whole and (table.is_of_devices or table.is_of_processes)
        for cells in (row for row in table.rows if len(row) == 1):
            if match := _NOBODY.match(cells[0]):
                nobody.add((int(match[1]), _number(match[2])))
            else:
                is_whole = False
        for record in _records(table):
            values = dict(record)
            npu, process, name = (values.get(column, "") for column in ("npu", "process", "process name"))
            number = _number(npu)
            if not table.is_of_processes:
                is_whole = is_whole and number is not None
            elif number is not None and (_NUMBER.fullmatch(process) or name.lower() not in _NOT_TOLD):
                running.append((number, _number(values.get("chip")), f"{name or 'process'} {process}"))
            else:
                is_whole = False
    return _Processes(running, nobody, is_absent and is_whole, is_whole)


def _listed(npu: Optional[int], chip: Optional[int], processes: _Processes) -> Optional[tuple[str, ...]]:
    """The processes of a chip; None where nothing is said about it."""
    if npu is None:
        return None
    of_npu = [(of_chip, text) for number, of_chip, text in processes.running if number == npu]
    if own := tuple(text for of_chip, text in of_npu if chip is None or of_chip in (None, chip)):
        return own
    is_silent = processes.nobody.isdisjoint({(npu, None), (npu, chip)}) and not (of_npu and processes.is_whole)
    return None if is_silent else ()


def find(devices: Sequence[Device], wanted: int) -> Optional[Device]:
    """The chip with that logical number; None where npu-smi does not tell the numbers of all, or tells one twice.

    Raises ConfigError naming those that are there.
    """
    matching = [device for device in devices if device.device == wanted]
    if len(matching) == 1:
        return matching[0]
    if matching or any(device.device is None for device in devices):
        return None
    labels = "; ".join(device.label for device in devices)
    raise ConfigError(f"--device {wanted} is not there. npu-smi info shows: {labels}")


def is_healthy(device: Device) -> bool:
    """Whether npu-smi says so, or does not tell."""
    return device.health.upper() in (HEALTHY, "")


def check_health(device: Device) -> None:
    """Raise MissingError unless the chip is healthy, as the guide demands, or npu-smi does not tell."""
    if not is_healthy(device):
        number = "" if device.npu is None else f" -i {device.npu}"
        raise MissingError(
            f"device {device.label} is not healthy: npu-smi says {device.health}. "
            f"See: npu-smi info -t health{number}, or take another one with --device"
        )


def state(device: Device) -> str:
    """busy, idle or not checked, from one look: a process between two inferences leaves the AI cores at 0 %.

    Busy: a process is listed, or the AI cores work. Idle: neither, and the memory in use is what a bare driver takes.
    Not checked: more memory is in use by no listed process, or npu-smi does not tell, or which device the chip is.
    """
    if device.processes or device.aicore_percent:
        return BUSY
    if device.device is None or device.is_unlisted or (device.aicore_percent is None and device.processes is None):
        return UNKNOWN
    return IDLE if device.memory_used_mb is not None and device.memory_used_mb <= IDLE_MEMORY_MB else UNKNOWN


def not_checked(device: Device) -> str:
    """What npu-smi does not tell of a device, as the beginning of a sentence; empty if it tells all."""
    if state(device) != UNKNOWN:
        return "" if device.health else "its health was not checked"
    if device.health and device.device is not None:
        return "whether it is idle was not checked"
    return "neither its health nor whether it is idle was checked"


def describe(device: Device) -> str:
    """One line: the state, and what it follows from."""
    aicore = "AI cores not told" if device.aicore_percent is None else f"AI cores {device.aicore_percent} %"
    if device.processes is None:
        listed = "nothing is told of its processes" if device.is_unlisted else "this driver lists no processes"
    else:
        listed = ", ".join(device.processes) or "no processes"
    memory = "memory not told"
    if device.memory_used_mb is not None:
        memory = f"{device.memory_used_mb} of {device.memory_total_mb} MB in use"
    known = "" if state(device) == UNKNOWN else state(device)
    health = "" if is_healthy(device) else f"health {device.health}"
    states = "; ".join(filter(None, (known, health, not_checked(device))))
    return f"device {device.label}: {states}; {aicore}, {memory}, {listed}"


def soc_version(devices: Sequence[Device], wanted: Optional[int] = None) -> str:
    """ATC's name of the chip: `Ascend` + npu-smi's. Without `wanted`, all chips have to be of one kind.

    Raises ConfigError: chips of several kinds, a device that is not there, or a part of a chip (vNPU); UnreadableError
    if npu-smi does not tell the name.
    """
    device = None if wanted is None else find(devices, wanted)
    names = sorted({device.name}) if device else sorted({device.name for device in devices})
    if "" in names:
        raise UnreadableError("npu-smi info does not tell the name of each chip")
    if len(names) != 1:
        raise ConfigError(f"the machine has chips of several kinds: {', '.join(names)}. Give --soc-version or --device")
    return parse_soc_version(soc_name(names[0]))


def soc_name(name: str) -> str:
    """ATC's name of a chip that npu-smi calls so."""
    return name if name.startswith("Ascend") else f"Ascend{name}"


def is_chip(version: str, name: str) -> Optional[bool]:
    """Whether a soc_version is of the chip that npu-smi calls so; None if the two names do not tell.

    A part of a chip has no name of ATC's, npu-smi's Ascend910 is any of Ascend910_9362 and the like, Ascend910B4-1 is a
    kind of Ascend910B4, and Ascend710 was the name of the 310P.
    """
    wanted, own = version.casefold(), soc_name(name).casefold()
    if wanted == own:
        return True
    is_kind = wanted.startswith(f"{own}_") or wanted.partition("-")[0] == own.partition("-")[0]
    return None if is_kind or _VIRTUAL.search(name) or "ascend710" in (wanted, own) else False


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
