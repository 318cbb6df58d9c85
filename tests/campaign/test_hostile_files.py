"""Hostile files in every place that a command reads: our errors, quickly, in little memory, and nothing else opened.

Each case is a process of `invoke` on a tree of its own. A few run in the ordinary suite, all of them as the campaign.
"""

from __future__ import annotations

import getpass
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deberta.core import files
from deberta.core.errors import ERROR_PREFIX, visible
from tests import pipeline_helpers
from tests.campaign import hostile_graphs, hostile_models, hostile_trees, measured_process
from tests.campaign.hostile_trees import Case, Surroundings
from tests.mnli_helpers import REPOSITORY
from tests.pipeline_helpers import Workspace
from tests.raw_server import answering

SECONDS, MIB = 20, 2048
CASES = {**hostile_trees.cases(), **hostile_models.cases(), **hostile_graphs.cases()}
# What PyTorch makes in the temporary folder of whoever runs it.
LIBRARIES = (f"torchinductor_{getpass.getuser()}",)
SHARE = (
    "verify: models/tiny/spm.model leads out",
    "verify: a record's input is absolute",
    "verify: results/tiny/cpu/bom.cdx.json has infinity",
    "acceptance: gates are fifo",
    "replay: a loop",
)
_measured: dict[str, measured_process.Done] = {}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with all that an acceptance of the tiny profile leaves, kept acceptances left out."""
    workspace = pipeline_helpers.make(tmp_path_factory.mktemp("hostile") / "finished")
    assert workspace.run("acceptance", "--bs", "1").returncode in (0, 6)
    files.remove(workspace.root / "results/tiny/cpu/acceptances")
    yield workspace
    if _measured:
        slowest = max(_measured, key=lambda name: _measured[name].seconds)
        largest = max(_measured, key=lambda name: _measured[name].mib)
        seconds, mib = _measured[slowest].seconds, _measured[largest].mib
        print(f"\n{len(_measured)} cases; {seconds:.1f} s: {slowest}; {mib:.0f} MiB: {largest}", file=sys.__stderr__)


def _run(case: Case, place: Surroundings, finished: Workspace) -> measured_process.Done:
    folder = place.tree.parent
    values = {"tree": str(place.tree), "made": str(place.made)}
    settings = json.loads((finished.root / "settings.yaml").read_text(encoding="utf-8"))
    own = folder / "own" if case.foreign else place.tree
    settings.update({"workspace": str(own)}, **{name: value.format(**values) for name, value in case.settings})
    (folder / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")
    environment = {
        **{name: value for name, value in pipeline_helpers.environment().items() if "proxy" not in name.lower()},
        **{"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "NO_PROXY": "127.0.0.1"},
        "HTTPS_PROXY": "http://127.0.0.1:9",  # no other server
    }
    with answering(case.answer) as url:
        words = [word.format(url=url.rpartition("/")[0], **values) for word in case.command.split()]
        command = [sys.executable, "-m", "invoke", "-f", str(folder / "settings.yaml"), *words]
        return measured_process.run(command, REPOSITORY, environment, folder / "scratch", 3 * SECONDS)


def check(name: str, finished: Workspace, folder: Path) -> None:
    """Run a case and hold it to what docs/security.md promises."""
    case = CASES[name]
    place = Surroundings(folder / "tree", folder / "outside", folder / "made")
    finished.copy(place.tree)
    for path in (place.outside, place.made, folder / "home", folder / "tmp", folder / "own"):
        path.mkdir()
    place.canary.write_text("canary " * 9, encoding="utf-8")
    case.plant(place)
    before = _listing(place.tree if case.foreign else place.outside), _listing(place.outside)
    with measured_process.watching(place.outside) as touched:
        done = _run(case, place, finished)
    _measured[name] = done
    print(f"MEASURED {name}: {done.code} {done.seconds:.1f} s {done.mib:.0f} MiB {done.stderr[-300:]!r}")
    output = done.stdout + done.stderr
    problems = []
    if done.code is None or not 2 <= done.code <= 6:
        problems.append(f"exit code {done.code}")
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # other programs' share of the machine
    if done.seconds > SECONDS * busy or done.mib > MIB:
        problems.append(f"{done.seconds:.1f} s, {done.mib:.0f} MiB")
    if "Traceback" in output or "panicked" in output:
        problems.append("a traceback")
    lines = done.stderr.splitlines()
    if not lines or not lines[-1].startswith(ERROR_PREFIX) or sum(line.startswith(ERROR_PREFIX) for line in lines) != 1:
        problems.append("not one line of error")
    if visible(output) != output:
        problems.append("control characters")
    if touched:
        problems.append(f"opened or changed outside: {sorted(set(touched))}")
    if files.sha256_of(place.canary) in output:
        problems.append("the digest of a file outside")
    if (_listing(place.tree if case.foreign else place.outside), _listing(place.outside)) != before:
        problems.append("something was written")
    if left := [
        str(path) for name in ("home", "tmp", "own") for path in (folder / name).iterdir() if path.name not in LIBRARIES
    ]:
        problems.append(f"left behind: {left}")
    assert not problems, f"{problems}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    """Every entry below, with its size and time; nothing is opened."""
    paths = [Path(parent) / name for parent, folders, names in os.walk(folder) for name in [*folders, *names]]
    return sorted((str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths)


@pytest.mark.campaign
@pytest.mark.parametrize("name", [name for name in CASES if name not in SHARE])
def test_campaign(name: str, finished: Workspace, tmp_path: Path) -> None:
    check(name, finished, tmp_path)


@pytest.mark.parametrize("name", SHARE)
def test_share(name: str, finished: Workspace, tmp_path: Path) -> None:
    check(name, finished, tmp_path)
