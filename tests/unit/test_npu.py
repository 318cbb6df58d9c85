"""`npu-smi info` as it was seen in public, driver by driver, and what is told from it."""

from __future__ import annotations

import pytest

from deberta.ascend import npu_smi
from deberta.ascend.npu_smi import BUSY, IDLE, UNKNOWN, Device
from deberta.core.errors import ConfigError, MissingError

# Driver 22.0.2, the one of CANN 5.1.RC2: narrow, without the line of versions. Two cards.
NARROW = """\
+-------------------+-----------------+------------------------------------------------------+
| NPU     Name      | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device    | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===================+=================+======================================================+
| 0       310P3     | OK              | 15.8         42                0    / 0              |
| 0       0         | 0000:82:00.0    | 0            1074 / 21534                            |
+===================+=================+======================================================+
| 1       310P3     | OK              | 15.4         43                1236 / 1236           |
| 0       1         | 0000:89:00.0    | 0            1070 / 21534                            |
+===================+=================+======================================================+
"""
# Driver 22.0.4: wide, versions, no table of processes, a dashed line at the end.
WIDE = """\
+--------------------------------------------------------------------------------------------------------+
| npu-smi 22.0.0                                   Version: 22.0.4                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)     Hugepages-Usage(page)     |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 7       310P3                 | OK              | NA           28                0    / 0              |
| 0       0                     | 0000:00:07.0    | 0            1805 / 21527                            |
+-------------------------------+-----------------+------------------------------------------------------+
"""
TABLE_OF_PROCESSES = """\
+===============================+=================+======================================================+
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Chip                  | Process id      | Process name             | Process memory(MB)        |
+===============================+=================+======================================================+
"""
# Driver 23.0.0.
NOBODY = (
    WIDE.replace("| 7  ", "| 24 ")
    + TABLE_OF_PROCESSES
    + "| No running processes found in NPU 24                                                                   |\n"
)
# Driver 25.2: Atlas 300I Duo, two chips on one card, between them a dashed line.
DUO = (
    WIDE.splitlines()[0]
    + """
| npu-smi 25.2.0                                   Version: 25.2.0                                       |
+-------------------------------+-----------------+------------------------------------------------------+
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 2       310P3                 | OK              | NA           45                0     / 0             |
| 0       0                     | 0000:01:00.0    | 0            1529 / 44280                            |
+-------------------------------+-----------------+------------------------------------------------------+
| 2       310P3                 | OK              | NA           43                0     / 0             |
| 1       1                     | 0000:01:00.0    | 0            1412 / 43693                            |
+===============================+=================+======================================================+
"""
)
# Driver 25.2.1: NPU numbers with gaps, memory in use glued to its slash, another process's memory.
GLUED = (
    "\n".join(DUO.splitlines()[2:6])
    + """
| 32      310P3                 | OK              | NA           49                0     / 0             |
| 0       1                     | 0000:02:00.0    | 0            1910 / 21527                            |
+===============================+=================+======================================================+
| 32768   310P3                 | OK              | NA           46                8808  / 8808          |
| 0       2                     | 0000:81:00.0    | 0            19562/ 21527                            |
"""
)
VIRTUAL = WIDE.replace("310P3    ", "310Pvir01").replace("1805 / 21527", "249  / 2690 ")
# A 910B's: no Device column, so no logical number.
NO_DEVICE_COLUMN = """\
| NPU   Name           | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                 | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+======================+===============+====================================================+
| 0     910B           | OK            | 79.4        82                0    / 0             |
| 0                    | 0000:81:00.0  | 0           1979 / 15039      0    / 32768         |
"""


# The 910B's of driver 24 with its processes, one without a name (three of eight cards).
CARDS = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 91.0        36                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3401 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | OK            | 95.4        37                0    / 0             |
| 0                         | 0000:C2:00.0  | 0           0    / 0          1400 / 65536         |
+===========================+===============+====================================================+
| 2     910B3               | OK            | 95.4        37                0    / 0             |
| 0                         | 0000:81:00.0  | 0           0    / 0          1400 / 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 1333928       |                          | 37709                   |
+===========================+===============+====================================================+
| No running processes found in NPU 1                                                            |
+===========================+===============+====================================================+
"""
# An A3's: chips of one NPU by Phy-ID, which is not the logical number.
PHYSICAL = """\
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 179.7       38                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3112 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           37                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          2880 / 65536         |
"""
# Composed: other orders and numbers of columns, and one line for a chip.
ONE_LINE = """\
| Device ID | NPU ID | Chip ID | Chip Name    | Memory-Usage(MB) | AICore(%) | Health Status | Temp(C) |
+-----------+--------+---------+--------------+------------------+-----------+---------------+---------+
| 1         | 4      | 0       | Ascend 310P1 | 1812 / 21527     | 0         | OK            | 40      |
| 0         | 2      | 0       | Ascend 310P1 | 1800 / 21527     | 7         | Warning       | 41      |
+-----------+--------+---------+--------------+------------------+-----------+---------------+---------+
| NPU ID    | Process id | Process name  | Process memory(MB) |
| No running process found in NPU 4                           |
"""
EDGE = WIDE.replace("0000:00:07.0", "NA          ").replace("310P3", "310B4").replace("| OK      ", "| Alarm   ")
OF_26 = (
    "| NPU     Chip                  | Process id      | Process name       | Process memory(MB)    "
    "| Process id in container |\n+===============================+=================+====================+\n"
)
ROW_OF_26 = "| 7       0                     | 485946          | python3            | 150      | NA       |\n"
NEW = WIDE + OF_26


def one(text: str) -> Device:
    [device] = npu_smi.parse(text)
    return device


def test_every_layout() -> None:
    assert npu_smi.parse(NARROW) == (
        Device(0, 0, 0, "310P3", "OK", 0, 1074, 21534),
        Device(1, 0, 1, "310P3", "OK", 0, 1070, 21534),
    )
    assert npu_smi.parse(WIDE) == (Device(7, 0, 0, "310P3", "OK", 0, 1805, 21527),)
    assert one(NOBODY) == Device(24, 0, 0, "310P3", "OK", 0, 1805, 21527, processes=())
    assert npu_smi.parse(DUO) == (
        Device(2, 0, 0, "310P3", "OK", 0, 1529, 44280),
        Device(2, 1, 1, "310P3", "OK", 0, 1412, 43693),
    )
    assert [(d.npu, d.device, d.memory_used_mb) for d in npu_smi.parse(GLUED)] == [
        (32, 1, 1910),
        (32768, 2, 19562),
    ]
    assert npu_smi.parse(PHYSICAL) == (
        Device(0, 0, None, "Ascend910", "OK", 0, 3112, 65536),
        Device(0, 1, None, "Ascend910", "OK", 0, 2880, 65536),
    )
    assert one(EDGE) == Device(7, 0, 0, "310B4", "Alarm", 0, 1805, 21527)
    assert npu_smi.parse(ONE_LINE) == (
        Device(4, 0, 1, "Ascend310P1", "OK", 0, 1812, 21527, processes=()),
        Device(2, 0, 0, "Ascend310P1", "Warning", 7, 1800, 21527, is_unlisted=True),
    )
    indented = "".join(f"         {line}\n" for line in NARROW.splitlines())
    assert npu_smi.parse(indented) == npu_smi.parse(NARROW)


def test_a_chip_that_is_called_by_digits_alone() -> None:
    assert one(WIDE.replace("310P3", "310  ")).name == "310"
    assert npu_smi.soc_version([one(WIDE.replace("310P3    ", "Ascend910"))]) == "Ascend910"


def test_processes_belong_to_their_chip() -> None:
    busy_chip = (
        "| 2       1                     | 139667          |                          | 30780                     |\n"
    )
    idle, busy = npu_smi.parse(DUO + TABLE_OF_PROCESSES + busy_chip)
    assert (idle.processes, busy.processes) == ((), ("process 139667",))
    assert (npu_smi.state(idle), npu_smi.state(busy)) == (IDLE, BUSY)
    other_card = busy_chip.replace("| 2 ", "| 5 ")
    silent = npu_smi.parse(DUO + TABLE_OF_PROCESSES + other_card)
    assert {(device.processes, npu_smi.state(device)) for device in silent} == {(None, UNKNOWN)}
    assert [(d.processes, npu_smi.state(d)) for d in npu_smi.parse(CARDS)] == [
        (("process 1333928",), BUSY),
        ((), UNKNOWN),  # of an idle chip, and nothing tells which device it is
        (None, UNKNOWN),
    ]


@pytest.mark.parametrize(
    ("row", "state"),
    [
        (ROW_OF_26, BUSY),
        (ROW_OF_26.replace("485946", "NA    "), BUSY),  # a process all the same
        (ROW_OF_26.replace("python3", "       "), BUSY),
        (ROW_OF_26.replace("| NA ", "| 17 | more "), BUSY),
        (ROW_OF_26.replace("python3", "a|b    "), BUSY),
        (ROW_OF_26.replace("| 7 ", "| 8 "), UNKNOWN),  # nothing about this one
        (ROW_OF_26.replace("| 7       0", "| ?        "), UNKNOWN),
        ("| 7       0                     | NA              | NA                 | NA |\n", UNKNOWN),
        ("", UNKNOWN),
        ("| No running processes found in NPU 7 |\n", IDLE),
        ("| No running processes found in NPU 7 |\nsome other text\n", IDLE),
        ("| No running processes found in NPU 70 |\n", UNKNOWN),
        ("| No running processes |\n", UNKNOWN),
    ],
)
def test_five_columns_of_processes(row: str, state: str) -> None:
    assert npu_smi.state(one(NEW + row)) == state


@pytest.mark.parametrize(
    "after",
    [
        "| Processes on NPU 7: python3 485946 |\n",
        "| PID | What | Where |\n| 485946 | python3 | 7 0 |\n",
        "| Process | NPU | Chip |\n| 485946 | 7 | 0 |\n",
        "python3 (485946) uses NPU 7\n",
        "| 7  310P3 | OK |\n",
    ],
)
def test_what_may_be_a_process_is_no_proof_of_an_idle_device(after: str) -> None:
    device = npu_smi.find(npu_smi.parse(WIDE + after), 0)
    assert device is None or npu_smi.state(device) != IDLE


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "1805 / 21527",
            "NA          ",
            "0 (310P3, NPU 7 chip 0): whether it is idle was not checked; AI cores 0 %, memory not",
        ),
        ("Memory-Usage(MB)", "Memory-Usage(GB)", "whether it is idle was not checked; AI cores 0 %, memory not told"),
        ("1805 / 21527", "1805        ", "idle was not checked; AI cores 0 %, memory not told"),
        ("| OK      ", "| NA      ", ": idle; its health was not checked; AI cores"),
        ("Health", "State ", ": idle; its health was not checked; AI cores"),
        ("AICore(%)", "AIC(all) ", "whether it is idle was not checked; AI cores not told, 1805"),
        ("310P3", "-----", "(name not told, NPU 7 chip 0): idle"),
    ],
)
def test_what_is_not_told_is_not_checked(old: str, new: str, says: str) -> None:
    device = one(WIDE.replace(old, new))
    assert says in npu_smi.describe(device)
    assert bool(npu_smi.not_checked(device)) == ("not checked" in says)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        (WIDE, IDLE),  # no process table, nothing in use: as much as the guide's driver can tell
        (NOBODY, IDLE),
        (WIDE.replace("| 0            1805", "| 3            1805"), BUSY),
        (NOBODY.replace("| 0            1805", "| 100          1805"), BUSY),
        # More memory than a bare driver takes, and nobody to be seen.
        (WIDE.replace("1805 /", "3292 /"), UNKNOWN),
        (NOBODY.replace("1805 /", "19435/"), UNKNOWN),
        (WIDE.replace("| 0            1805", "| NA           1805"), UNKNOWN),
        (NOBODY.replace("| 0            1805", "| NA           1805"), IDLE),
        (WIDE.replace("| 0            1805", "| NA           1805") + TABLE_OF_PROCESSES, UNKNOWN),
        (
            NOBODY.replace("| No running processes found in NPU 24 ", "| 24      0      | 77 | python | 300 "),
            BUSY,
        ),
    ],
)
def test_busy_idle_or_unknown(text: str, state: str) -> None:
    assert npu_smi.state(one(text)) == state


def test_what_is_said_of_a_device() -> None:
    busy = NOBODY.replace("| No running processes found in NPU 24 ", "| 24      0      | 77 | python | 300 ")
    where = "device 0 (310P3, NPU 24 chip 0)"
    assert npu_smi.describe(one(busy)) == f"{where}: busy; AI cores 0 %, 1805 of 21527 MB in use, python 77"
    assert npu_smi.describe(one(NOBODY)) == f"{where}: idle; AI cores 0 %, 1805 of 21527 MB in use, no processes"
    assert npu_smi.describe(one(WIDE)).endswith("in use, this driver lists no processes")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n".join(WIDE.splitlines()[:6]), "shows no device"),
        ("dcmi model initialized failed, because the device is used. ret is -8020\n", "another container"),
        ("dcmi module initialize failed. ret is -8005\n", "the driver does not answer"),
    ],
)
def test_no_device(text: str, says: str) -> None:
    with pytest.raises(MissingError) as raised:
        npu_smi.parse(text)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "nothing"),
        ("npu-smi: command failed\n", "npu-smi: command failed"),
        ("{}", "{}"),
        ("\n".join(WIDE.splitlines()[:7]), r"\| 7 310P3 \| OK \| NA 28 0 / 0 \|"),
        ("\n".join(WIDE.splitlines()[6:]), ""),  # no headings
        (WIDE.replace("| 7       310P3", "| -       -    ").replace("| 0       0 ", "| -       - "), ""),
        (WIDE.replace("Name", "Kind"), ""),
    ],
)
def test_what_is_not_understood_is_not_guessed_at(text: str, shown: str) -> None:
    with pytest.raises(npu_smi.UnreadableError, match=rf"^what npu-smi info prints is not understood \({shown}"):
        npu_smi.parse(text)


@pytest.mark.parametrize("text", [NO_DEVICE_COLUMN, CARDS, PHYSICAL, DUO + "| 3  310P3 | OK |\n"])
def test_numbers_that_are_not_told(text: str) -> None:
    devices = npu_smi.parse(text)
    assert npu_smi.find(devices, 5) is None
    assert npu_smi.find(npu_smi.parse(WIDE + WIDE), 0) is None  # two of one number


def test_a_device_that_is_not_there() -> None:
    """NPU 32 is device 1: what msame takes is the logical number."""
    devices = npu_smi.parse(GLUED)
    device = npu_smi.find(devices, 2)
    assert device is not None and device.npu == 32768
    with pytest.raises(ConfigError, match=r"--device 32 .* shows: 1 \(310P3, NPU 32 chip 0\); 2 \(310P3, NPU 32768 ch"):
        npu_smi.find(devices, 32)


@pytest.mark.parametrize("health", ["Warning", "Alarm", "Critical", "UNKNOWN"])
def test_an_unhealthy_device(health: str) -> None:
    npu_smi.check_health(one(WIDE))
    device = one(WIDE.replace("| OK      ", f"| {health:<8}"))
    with pytest.raises(MissingError, match=f"device 0 .* is not healthy: npu-smi says {health}"):
        npu_smi.check_health(device)


def test_the_chips_name_for_atc() -> None:
    assert npu_smi.soc_version(npu_smi.parse(NARROW)) == "Ascend310P3"
    several = npu_smi.parse(NARROW.replace("| 1       310P3", "| 1       310P1"))
    assert npu_smi.soc_version(several, 1) == "Ascend310P1"
    with pytest.raises(ConfigError, match="several kinds: 310P1, 310P3"):
        npu_smi.soc_version(several)
    with pytest.raises(ConfigError, match="--device 5 is not there"):
        npu_smi.soc_version(several, 5)
    with pytest.raises(ConfigError, match=r"Ascend310Pvir01 names a part of a chip \(vNPU\)"):
        npu_smi.soc_version(npu_smi.parse(VIRTUAL))
    assert npu_smi.soc_version(npu_smi.parse(NO_DEVICE_COLUMN), 0) == "Ascend910B"
    with pytest.raises(npu_smi.UnreadableError, match="does not tell the name"):
        npu_smi.soc_version(npu_smi.parse(WIDE.replace("310P3", "-----")))


@pytest.mark.parametrize(
    ("version", "name", "is_same"),
    [
        ("Ascend310P3", "310P3", True),
        ("Ascend310P3", "310P1", False),
        ("Ascend310", "310P3", False),
        ("Ascend310P3", "310", False),
        ("Ascend310B1", "310B4", False),
        ("Ascend310P3", "310Pvir02", None),
        ("Ascend910_9392", "Ascend910", None),
        ("Ascend910", "Ascend910", True),
        ("Ascend910B3", "Ascend910", False),
        ("Ascend710", "310P3", None),
    ],
)
def test_names_of_one_chip(version: str, name: str, is_same: object) -> None:
    assert npu_smi.is_chip(version, name) is is_same


@pytest.mark.parametrize("text", ["310P3", "Ascend", "Ascend 310P3", "Ascend310P3;x", "", "Ascend310Pvir02"])
def test_a_soc_version_that_cannot_be_one(text: str) -> None:
    assert npu_smi.parse_soc_version("Ascend310P3") == "Ascend310P3"
    with pytest.raises(ConfigError):
        npu_smi.parse_soc_version(text)


def test_colours_are_no_part_of_a_table() -> None:
    coloured = WIDE.replace("| OK ", "| \x1b[32mOK\x1b[0m ").replace("\n", "\x1b[0m\n")
    assert npu_smi.parse(coloured) == npu_smi.parse(WIDE)
    assert npu_smi.is_healthy(one(WIDE.replace("| OK ", "| ok ")))


def test_names_with_a_dash() -> None:
    """910B4-1 is a chip of its own to npu-smi and ATC, and runs as a 910B4 does."""
    devices = npu_smi.parse(WIDE.replace("310P3  ", "910B4-1"))
    assert npu_smi.soc_version(devices) == "Ascend910B4-1"
    assert npu_smi.is_chip("Ascend910B4-1", "910B4-1") is True
    assert npu_smi.is_chip("Ascend910B4", "910B4-1") is None is npu_smi.is_chip("Ascend910B4-1", "910B4")
    assert npu_smi.is_chip("Ascend910B3", "910B4-1") is False
    with pytest.raises(ConfigError, match="part of a chip"):
        npu_smi.soc_version(npu_smi.parse(WIDE.replace("310P3      ", "310Pvir02-1c")))
