"""What an .om was compiled for, by its record, compared with what a run uses it for: chip, batch size, length."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Mapping, Optional

from deberta.ascend import npu_smi
from deberta.ascend.programs import DeviceCheck
from deberta.core import contract, records
from deberta.core.errors import DataError
from deberta.core.paths import record_of
from deberta.host.plan.plan import Case
from deberta.host.run.session import Session

_FIRST_INPUT = re.compile(r"[^:;]+:(-?[0-9]{1,9}),([0-9]{1,9})(;.*)?", re.DOTALL)


def check_shape(session: Session, case: Case) -> None:
    """Raise DataError if the record of an .om names another batch size or length than the run's."""
    options = _options(session, case.compiled)
    shape = _FIRST_INPUT.fullmatch(options.get("--input_shape", ""))
    if shape is None or not (session.workspace / case.compiled).exists():
        return
    gears = re.findall("[0-9]{1,9}", options.get("--dynamic_dims", ""))
    sizes = {contract.whole(text) for text in (gears if shape[1] == "-1" else [shape[1]])}
    length = contract.whole(shape[2])
    if case.batch_size not in sizes or length != case.plan.length:
        raise DataError(
            f"{case.compiled} was compiled for batch size {' or '.join(map(str, sorted(sizes)))} and length {length}, "
            f"by its record, and this run is of batch size {case.batch_size} and length {case.plan.length}. "
            f"Run: {case.command('build-om')} --force, which moves it aside and makes another"
        )


def check_chip(session: Session, model: PurePosixPath, device: DeviceCheck, command: str) -> str:
    """What could not be compared of a model's chip and the device's, empty if they are the same.

    `command` compiles the model. Raises DataError if the chips differ.
    """
    recorded = chip_of(session, model)
    return compare_chips(f"{model} was compiled for", recorded or "", device, command)


def compare_chips(model: str, soc_version: str, device: DeviceCheck, command: str) -> str:
    """Likewise, of a chip that is named. `model`: how a sentence begins that the chip's name ends."""
    if not soc_version or not device.name:
        unknown = "npu-smi does not tell the device's" if soc_version else "no record tells the model's"
        return f"whether the .om is for the chip of {device.label} was not checked: {unknown}"
    if (is_same := npu_smi.is_chip(soc_version, device.name)) is None:
        return (
            f"whether {soc_version}, which the .om is for, is the chip of {device.label} was not checked: npu-smi's "
            f"name {device.name} does not tell"
        )
    if is_same:
        return ""
    own = npu_smi.soc_name(device.name)
    raise DataError(
        f"{model} {soc_version}, and {device.label} is {own}. Run: {command} --soc-version {own}, and leave "
        "--soc-version (or soc_version in invoke.yaml) at that or at auto for the run"
    )


def chip_of(session: Session, model: PurePosixPath) -> Optional[str]:
    """The chip that an .om was compiled for, by its record; None if nothing tells."""
    return _options(session, model).get("--soc_version") or None


def _options(session: Session, model: PurePosixPath) -> Mapping[str, str]:
    """The options of the atc run that made a model, by its record; none without one."""
    record = records.read(session.workspace / record_of(model))
    arguments = record.parameters.get("arguments") if record and record.parameters.get("tool") == "atc" else None
    pairs = [str(argument).partition("=") for argument in arguments] if isinstance(arguments, list) else []
    return {name: value for name, _, value in pairs}
