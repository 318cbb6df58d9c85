"""--device with several numbers, or all: what it names, which tasks take it, and what a record says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from invoke.config import Config
from invoke.context import Context

from deberta.ascend import npu_smi, programs
from deberta.core import machine
from deberta.core.errors import ConfigError, MissingError
from deberta.host.cli import auto, settings
from deberta.host.cli.options import Options, devices
from deberta.host.plan import evaluation
from deberta.host.plan.plan import Case, Plan
from tests.unit.test_npu import GLUED, NO_DEVICE_COLUMN
from tests.unit.test_steps import MNLI

CHIPS = {"npu_devices": lambda: npu_smi.parse(GLUED)}


def _context(**values: Any) -> Context:
    return Context(Config(overrides={"profiles": {"mnli": MNLI}, **values}))


def _plan(typed: str = "", setting: Any = 0, several: bool = True) -> Plan:
    options = Options(
        device=devices("--device", typed) if typed else (), backend="ascend", task="infer" if several else "perf"
    )
    return settings.plan_of(_context(device=setting), options, devices="several" if several else "one")


@pytest.mark.parametrize("text", ["", "0,", "0,x", "0,0", "0,256", "-1", "ALL", "٣"])
def test_wrong_devices_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--device"):
        devices("--device", text)


def test_the_setting_is_a_number_a_list_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stand_in in CHIPS.items():
        monkeypatch.setattr(programs, name, stand_in)
    assert [_plan(setting=value).devices for value in (3, [2, 0], "1,2")] == [(3,), (2, 0), (1, 2)]
    listed = tuple(sorted(chip.device for chip in CHIPS["npu_devices"]() if chip.device is not None))
    assert _plan(setting="all").devices == _plan("all").devices == listed and len(listed) > 1
    assert _plan("3", "all").devices == (3,)
    with pytest.raises(ConfigError, match=r"^device in invoke\.yaml 0,0 names device 0 twice"):
        _plan(setting=[0, 0])


def test_a_task_of_one_device_refuses_several() -> None:
    for typed, setting, source in (("2,3", 0, "--device"), ("", [2, 3], "device in invoke.yaml")):
        with pytest.raises(
            ConfigError, match=f"^perf runs on one device, and {source} names 2: 2, 3. Name one .*--device 2$"
        ):
            _plan(typed, setting, several=False)
    assert _plan("3", [2, 3], several=False).devices == (3,)


def test_all_is_an_error_where_the_chips_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "npu_devices", lambda: None)
    with pytest.raises(MissingError, match=r"which devices are here is not known: no npu-smi on PATH\. Name them"):
        auto.all_devices("ascend")
    for text, problem in ((NO_DEVICE_COLUMN, "does not tell each chip's number"), ("it works", "is not understood")):
        monkeypatch.setattr(programs, "npu_devices", lambda text=text: npu_smi.parse(text))
        with pytest.raises(npu_smi.UnreadableError, match=f"which devices are here is not known: .*{problem}"):
            auto.all_devices("ascend")
    monkeypatch.setattr(machine, "effective_cpus", lambda: 3)
    assert auto.all_devices("cpu") == (0, 1, 2)
    monkeypatch.setattr(machine, "effective_cpus", lambda: 100)
    assert auto.all_devices("cpu") == tuple(range(auto.MOST_PROCESSES))


@pytest.mark.parametrize("runner", ["msame", "ais_bench"])
def test_steps_on_several_devices_are_those_of_device_0(runner: str) -> None:
    alone = Case(replace(_plan("0"), runner=runner), 8, "match")
    several = replace(alone, plan=replace(alone.plan, devices=(2, 3)))
    [step], [of_first] = (evaluation.infer(case, {256: 9815}) for case in (several, alone))
    assert step.arguments == of_first.arguments and step.inference and step.inference.devices == (2, 3)
    timed = evaluation.perf(several, 100)
    assert (
        timed.inference
        and timed.inference.devices == (2,)
        and timed.arguments[timed.arguments.index("--device") + 1] == "2"
    )
