"""What `invoke test` says, and asks of pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from deberta.core import machine
from deberta.host.workflows import development


def test_a_process_for_each_cpu_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(development, "_check", lambda _, arguments, *more: commands.append(arguments))
    for cpus, path, slow, campaign, names in (
        (2, "tests", False, False, None),
        (1, "tests", True, False, "atc"),
        (2, "a.py", True, True, None),
    ):
        monkeypatch.setattr(machine, "effective_cpus", lambda cpus=cpus: cpus)
        development.test(Path(), path, slow, campaign, names, dry=False)
    durations = ["--durations", "10", "--durations-min", "1"]
    assert commands == [
        ["pytest", "tests", *durations, "-m", "not slow and not campaign and not emulated", "-n", "2"],
        ["pytest", "tests", *durations, "-m", "not campaign and not emulated", "-k", "atc"],
        ["pytest", "a.py", *durations, "-m", "not emulated"],
    ]
    assert f"about {development.TEST_MINUTES} minutes" in capsys.readouterr().err


def test_an_emulation_that_cannot_run_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    development.test_emulated(Path("here"), "aarch64", dry=True)
    command = "EMULATED_TESTS=required here/.venv-stages/bin/python -m pytest tests/emulated --capture=no -k aarch64\n"
    assert capsys.readouterr().out == command
