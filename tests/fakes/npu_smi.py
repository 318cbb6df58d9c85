"""Stand-in for npu-smi: `info`, `info -l`, `info -m`, `info -t board -i N`, of the machine that FAKE_NPU_SMI names.

  wide          one 310P3, driver 23.0.0, with a process table that says idle (default; as published)
  narrow        two 310P3, driver 22.x, narrow columns, no heading and no process table (as published)
  no-processes  one 310P3, driver 22.0.4, no process table: whether it is busy cannot be seen (as published)
  busy          as wide, with processes, one of them without a name (process row as published for another chip)
  busy-22       as no-processes, AI cores and memory in use
  duo           one 300I Duo, driver 25.2.0: two chips under one NPU id
  sparse        four 310P3 with ids 0, 32, 32768, 32800; used memory glued to its slash (as published)
  vnpu          a virtual NPU, whose name is no soc_version
  unhealthy     one 310P3 with an alarm
  none          no device: the driver does not answer
  in-use        the device is another container's

Layouts follow published outputs. Own choices: the texts and exit codes for an unknown id and an unknown query, the
firmware versions, and the chip names of `-m` on a 310P. npu-smi's numbers say nothing about a real device here.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

NO_DRIVER = "dcmi module initialize failed. ret is -8005"
IN_USE = "dcmi model initialized failed, because the device is used. ret is -8020"
GUIDE_DRIVER = "22.0.2"


@dataclass(frozen=True)
class Chip:
    """One pair of rows. `device` is what msame's --device means; memory in MB."""

    npu: int
    device: int
    bus: str
    used: int
    total: int = 21527
    chip: int = 0
    name: str = "310P3"
    health: str = "OK"
    power: str = "NA"
    temperature: int = 29
    pages: Tuple[int, int] = (0, 0)
    cores: int = 0


@dataclass(frozen=True)
class Machine:
    """`version`: None prints no heading; `processes`: None prints no process table, otherwise (chip, id, name, MB)."""

    chips: Tuple[Chip, ...]
    version: Optional[str] = None
    processes: Optional[Tuple[Tuple[int, int, str, int], ...]] = None
    wide: bool = True
    separator: str = "="
    pages_width: int = 6


WIDE = Chip(24, 0, "0000:04:00.0", 1832)
OLD = Chip(7, 0, "0000:00:07.0", 1805, temperature=28)
MACHINES: Dict[str, Machine] = {
    "wide": Machine((WIDE,), "23.0.0", ()),
    "narrow": Machine(
        (
            Chip(0, 0, "0000:82:00.0", 1074, 21534, power="15.8", temperature=42),
            Chip(1, 1, "0000:89:00.0", 1070, 21534, power="15.4", temperature=43),
        ),
        wide=False,
        pages_width=5,
    ),
    "no-processes": Machine((OLD,), "22.0.4", separator="-", pages_width=5),
    "busy": Machine(
        (Chip(24, 0, "0000:04:00.0", 19435, temperature=61, cores=97),),
        "23.0.0",
        ((0, 139667, "python", 17500), (0, 139702, "", 103)),
    ),
    "busy-22": Machine((Chip(7, 0, "0000:00:07.0", 19435, cores=88),), "22.0.4", separator="-", pages_width=5),
    "duo": Machine(
        (
            Chip(1, 0, "0000:01:00.0", 1529, 44280, temperature=49),
            Chip(1, 1, "0000:01:00.0", 1412, 43693, chip=1, temperature=45),
        ),
        "25.2.0",
        (),
        separator="-",
    ),
    "sparse": Machine(
        (
            Chip(0, 0, "0000:01:00.0", 19435, temperature=49, pages=(8728, 8728)),
            Chip(32, 1, "0000:02:00.0", 1910, temperature=49),
            Chip(32768, 2, "0000:81:00.0", 19562, temperature=46, pages=(8808, 8808)),
            Chip(32800, 3, "0000:82:00.0", 1911, temperature=48),
        ),
        "25.2.1",
    ),
    "vnpu": Machine((Chip(7, 0, "0000:00:07.0", 605, 5382, name="310Pvir02"),), "22.0.4", separator="-", pages_width=5),
    "unhealthy": Machine((Chip(24, 0, "0000:04:00.0", 1832, health="Alarm"),), "23.0.0", ()),
}


def main(argv: Sequence[str]) -> int:
    layout = os.environ.get("FAKE_NPU_SMI") or "wide"
    if layout == "none":
        print(NO_DRIVER)
        return 1
    if layout == "in-use":
        print(IN_USE)
        return 1
    if layout not in MACHINES:
        print(f"npu-smi stand-in: FAKE_NPU_SMI is one of {', '.join(MACHINES)}, none, in-use", file=sys.stderr)
        return 2
    machine = MACHINES[layout]
    if list(argv) == ["info"]:
        lines = table(machine)
    elif list(argv) == ["info", "-l"]:
        lines = listed(machine)
    elif list(argv) == ["info", "-m"]:
        lines = mapped(machine)
    elif list(argv[:3]) == ["info", "-t", "board"] and len(argv) == 5 and argv[3] == "-i":
        found = board(machine, argv[4])
        if found is None:
            print(f"Error parameter of -i: {argv[4]} is no NPU ID. See: npu-smi info -l")
            return 1
        lines = found
    else:
        print("Error parameter. The stand-in knows: info, info -l, info -m, info -t board -i ID")
        return 1
    print("\n".join(lines))
    return 0


def table(machine: Machine) -> List[str]:
    """`npu-smi info`."""
    first = 31 if machine.wide else 19
    edge = _edge("-", first, 17, 54)
    lines = []
    if machine.version is not None:
        heading = f" npu-smi {machine.version}"
        lines += ["+" + "-" * 104 + "+", f"|{heading:<50}{'Version: ' + machine.version:<54}|"]
    name, device = f"{'NPU':<7} Name", f"{'Chip':<7} Device"
    lines += [
        edge,
        f"| {name:<{first - 2}} | {'Health':<15} | {'Power(W)     Temp(C)           Hugepages-Usage(page)':<52} |",
        f"| {device:<{first - 2}} | {'Bus-Id':<15} | {'AICore(%)    Memory-Usage(MB)':<52} |",
        _edge("=", first, 17, 54),
    ]
    for number, chip in enumerate(machine.chips):
        last = number == len(machine.chips) - 1
        name, device = f"{chip.npu:<7} {chip.name}", f"{chip.chip:<7} {chip.device}"
        pages = f"{chip.pages[0]:<{machine.pages_width}}/ {chip.pages[1]}"
        health = f"{chip.power:<12} {chip.temperature:<17} {pages}"
        usage = f"{chip.cores:<12} {chip.used:<5}/ {chip.total}"
        lines += [
            f"| {name:<{first - 2}} | {chip.health:<15} | {health:<52} |",
            f"| {device:<{first - 2}} | {chip.bus:<15} | {usage:<52} |",
            _edge(machine.separator if not last or machine.processes is None else "=", first, 17, 54),
        ]
    return lines + _processes(machine)


def _processes(machine: Machine) -> List[str]:
    if machine.processes is None:
        return []
    thin, thick = _edge("-", 31, 17, 54), _edge("=", 31, 17, 54)
    lines = [
        thin,
        f"| {'NPU     Chip':<29} | {'Process id':<15} | {'Process name':<24} | {'Process memory(MB)':<25} |",
        thick,
    ]
    for npu in sorted({chip.npu for chip in machine.chips}):
        for chip, process, name, memory in machine.processes:
            where = f"{npu:<7} {chip}"
            lines.append(f"| {where:<29} | {process:<15} | {name:<24} | {memory:<25} |")
        if not machine.processes:
            lines.append(f"| {f'No running processes found in NPU {npu}':<102} |")
        lines.append(thick)
    return lines


def _edge(mark: str, *widths: int) -> str:
    return "+" + "+".join(mark * width for width in widths) + "+"


def listed(machine: Machine) -> List[str]:
    """`npu-smi info -l`."""
    ids = [chip.npu for chip in machine.chips]
    lines = [_pair("Total Count", len(set(ids)))]
    for npu in sorted(set(ids)):
        lines += ["", _pair("NPU ID", npu), _pair("Chip Count", ids.count(npu))]
    return lines


def mapped(machine: Machine) -> List[str]:
    """`npu-smi info -m`: the logic id is the table's Device; every card also lists its management chip."""
    lines = [_row("NPU ID", "Chip ID", "Chip Logic ID", "Chip Name")]
    for npu in sorted({chip.npu for chip in machine.chips}):
        chips = [chip for chip in machine.chips if chip.npu == npu]
        lines += [_row(npu, chip.chip, chip.device, f"Ascend {chip.name}") for chip in chips]
        lines.append(_row(npu, len(chips), "-", "Mcu"))
    return lines


def board(machine: Machine, npu: str) -> Optional[List[str]]:
    """`npu-smi info -t board -i N`, or None for an id that is not there."""
    chips = [chip for chip in machine.chips if str(chip.npu) == npu]
    if not chips:
        return None
    return [
        _pair("NPU ID", npu),
        _pair("Software Version", machine.version or GUIDE_DRIVER),
        _pair("Firmware Version", "1.82.22.2.220"),
        _pair("Compatibility", "OK"),
        _pair("PCIe Bus Info", chips[0].bus),
        _pair("Chip Count", len(chips)),
    ]


def _pair(name: str, value: object) -> str:
    return f"\t{name:<30} : {value}"


def _row(*cells: object) -> str:
    return "\t" + " ".join(f"{cell!s:<30}" for cell in cells)
