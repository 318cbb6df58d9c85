"""Kills at random moments and at every commit point: nothing is lost, left or accused, and the next run is right.

CAMPAIGN_KILLS (300) kills from CAMPAIGN_SEED (0) on; each prints its number, by which it can be repeated alone.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Callable

import pytest

from tests.campaign import kills
from tests.campaign.kills import ACCEPT, Killed
from tests.pipeline_helpers import Workspace, make_small_demo

CASE = ("--backend", "cpu", "--bs", "8", "--version", "match")
PADDED = (*CASE, "--buckets", "256")
# Name -> what is removed from a finished workspace, and the command that is killed.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "evaluate": (("results/demo", "data/demo/pre_mnli_bs8_s64"), ("evaluate", *CASE)),
    "evaluate padded": (("results/demo", "data/demo/pre_mnli_bs8"), ("evaluate", *PADDED)),
    "evaluate --force": ((), ("evaluate", *CASE, "--force")),
    "acceptance": (("results/demo", "models/demo/cpu"), ACCEPT),
    "acceptance --force": ((), (*ACCEPT, "--force")),
    "build-om --force": ((), ("build-om", "--bs", "8", "--backend", "cpu", "--force")),
    "infer --force": ((), ("infer", *CASE, "--force")),
    "preprocess --force": ((), ("preprocess", "--bs", "8", "--version", "match", "--force")),
    "from nothing": (("results/demo", "models/demo/cpu", "models/demo/dynamic.onnx", "data/demo/pre_mnli_bs8"), ACCEPT),
}
SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
KILLS = int(os.environ.get("CAMPAIGN_KILLS", "300"))


@pytest.fixture(name="undisturbed", scope="module")
def _undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = make_small_demo(tmp_path_factory.mktemp("undisturbed"), 24, {"match": (24, 1)})
    workspace.succeed("evaluate", *PADDED)
    workspace.succeed(*ACCEPT)
    return workspace


@pytest.fixture(name="seconds", scope="module")
def _seconds(undisturbed: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """How long each command takes when nothing disturbs it, as far as it was asked for."""
    return {}


def prepared(undisturbed: Workspace, root: Path, name: str) -> Workspace:
    workspace = undisturbed.copy(root)
    for path in COMMANDS[name][0]:
        for present in workspace.root.glob(f"{path}*"):
            if "acceptances" not in str(present):
                shutil.rmtree(present) if present.is_dir() else present.unlink()
    return workspace


def _also(name: str) -> list[tuple[str, ...]]:
    """What has to run, too, to make what is in a finished workspace."""
    return [("evaluate", *PADDED)] if "results/demo" in COMMANDS[name][0] else []


def kill(
    undisturbed: Workspace,
    folder: Path,
    number: int,
    seconds: dict[str, float],
    killed: Callable[[Workspace, tuple[str, ...]], Killed] = Killed,
) -> tuple[str, str, list[str]]:
    """Kill what the number stands for; returns the command, the way, and what is wrong."""
    chance = random.Random(number)
    name, how = chance.choice(list(COMMANDS)), chance.choice(kills.HOWS)
    workspace = prepared(undisturbed, folder / str(number), name)
    if name not in seconds:
        rehearsal = prepared(undisturbed, folder / "rehearsal", name)
        started = time.monotonic()
        assert not killed(rehearsal, COMMANDS[name][1]).after(600, how)
        seconds[name] = time.monotonic() - started
        shutil.rmtree(rehearsal.root)
    moment = chance.uniform(0.2, seconds[name])
    problem = killed(workspace, COMMANDS[name][1]).after(moment, how)
    wrong = [problem] if problem else []
    wrong += kills.recovered(workspace, undisturbed, *_also(name))
    if not wrong:
        shutil.rmtree(workspace.root)
    return name, how, [f"kill {number} ({name}, {how}, after {moment:.2f} s): {text}" for text in wrong]


@pytest.mark.parametrize("number", (1, 2, 5))
def test_a_few_random_kills(undisturbed: Workspace, tmp_path: Path, number: int) -> None:
    _, _, wrong = kill(undisturbed, tmp_path, number, dict.fromkeys(COMMANDS, 4.0))
    assert wrong == []


@pytest.mark.campaign
def test_random_kills(undisturbed: Workspace, tmp_path: Path, seconds: dict[str, float]) -> None:
    assert faults(KILLS, lambda number: kill(undisturbed, tmp_path, number, seconds)) == []


def faults(kills: int, kill_number: Callable[[int], tuple[str, str, list[str]]]) -> list[str]:
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for number in range(SEED, SEED + kills):
        name, how, texts = kill_number(number)
        counts.update([name, how])
        wrong += texts
        print(f"{number}: {name}, {how}: {'; '.join(texts) or 'recovered'}", flush=True)
    print(dict(counts), f"{kills} kills, {len(wrong)} faults", flush=True)
    return wrong


def at_points(undisturbed: Workspace, folder: Path, name: str, wanted: list[str] | None) -> tuple[int, list[str]]:
    """Kill the command at each commit point that it reaches, or at those wanted; returns how many, and the faults."""
    command = COMMANDS[name][1]
    workspace = prepared(undisturbed, folder / "survey", name)
    variables = kills.patched(workspace, folder / "patch")
    points = Path(variables[kills.POINTS])
    if wanted is None:
        assert not Killed(workspace, command, variables).after(600, "kill")
        reached = Counter(points.read_text().split())
        wanted = [f"{point}:{number + 1}" for point, count in reached.items() for number in range(count)]
    wrong = []
    for point in wanted:
        shutil.rmtree(workspace.root)
        points.unlink(missing_ok=True)
        workspace = prepared(undisturbed, folder / "survey", name)
        workspace.configure(stages_python=str(folder / "patch" / "python"))
        killed = Killed(workspace, command, {**variables, kills.POINT: point})
        process = killed.start()
        output, _ = process.communicate(timeout=600)
        texts = [] if process.returncode == -9 else [f"exit code {process.returncode}: {output[-500:]}"]
        texts += filter(None, [killed.left()])
        texts += kills.recovered(workspace, undisturbed, *_also(name))
        wrong += [f"{name} at {point}: {text}" for text in texts]
        print(f"{name} at {point}: {'; '.join(texts) or 'recovered'}", flush=True)
    return len(wanted), wrong


def test_a_few_commit_points(undisturbed: Workspace, tmp_path: Path) -> None:
    _, wrong = at_points(undisturbed, tmp_path, "infer --force", ["switched:1", "begun:1"])
    assert wrong == []


@pytest.mark.campaign
@pytest.mark.parametrize("name", COMMANDS)
def test_every_commit_point(undisturbed: Workspace, tmp_path: Path, name: str) -> None:
    count, wrong = at_points(undisturbed, tmp_path, name, None)
    print(f"{name}: killed at {count} commit points, {len(wrong)} faults", flush=True)
    assert count and wrong == []
