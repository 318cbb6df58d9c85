"""The demo's chain on an emulated aarch64: as its new user does it, from a clone and a wheelhouse alone.

`./inv test --emulated` runs it, and fails where it cannot run.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import demo_digests
from tests.emulated import machine
from tests.emulated.machine import Machine
from tests.mnli_helpers import REPOSITORY

CLONE = "root/deberta-ascend"
PYTHON = f"/{CLONE}/.venv-stages/bin/python"
INSTALL = (
    f"from pathlib import Path; from tests import fake_cann; fake_cann.install(Path('/opt/Ascend'), python='{PYTHON}')"
)
STAND_INS = "INVOKE_CANN=/opt/Ascend/ascend-toolkit INVOKE_MSAME=/opt/Ascend/msame PATH=/opt/Ascend/bin:$PATH"
# Of the table's commands for all rows, what these commands make too.
SHARED = (
    "models/demo/dynamic.onnx",
    "models/demo/cpu/dynamic_lengths.onnx",
    "models/demo/cpu/deberta_bs8_lengths.xml",
    "models/demo/cpu/deberta_bs8_lengths.bin",
)


@pytest.fixture(name="emulated")
def _emulated() -> Iterator[Machine]:
    if reason := machine.lacking():
        if os.environ.get("EMULATED_TESTS") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="deberta-aarch64-") as folder, machine.booted(Path(folder)) as booted:
        yield booted


@pytest.mark.slow
@pytest.mark.emulated
def test_a_fresh_clone_makes_the_same_bytes_on_aarch64(emulated: Machine) -> None:
    """Without network there; the wheels are fetched here, and kept for the next time."""
    subprocess.run([str(REPOSITORY / "inv"), "wheelhouse", str(emulated.wheels), "--for", "aarch64"], check=True)
    clone = emulated.root / CLONE
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(clone)], check=True)
    assert emulated.run("uname -m").stdout == "aarch64\n"

    looked = emulated.run("./inv doctor --profile demo", f"/{CLONE}").stdout
    assert "Traceback" not in looked and "can run now: demo" in looked
    ascend = (f"{STAND_INS} ./inv {command}" for command in demo_digests.ASCEND)
    for line in (f"./inv {demo_digests.LIMITED}", f'{PYTHON} -c "{INSTALL}"', *ascend):
        assert emulated.run(line, f"/{CLONE}").returncode == 0, line

    expected = demo_digests.table(demo_digests.LIMITED, *demo_digests.ASCEND)
    expected.update({name: demo_digests.table()[name] for name in SHARED})
    made = demo_digests.digests(clone)
    print(*(f"{digest}  {name}" for name, digest in made.items()), sep="\n")
    assert made == expected
