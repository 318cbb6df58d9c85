"""What killed runs left in a workspace and on its engine, removed by the next command that has the workspace's lock.

Commands that take no lock change nothing here: doctor, status, verify and the like, `--dry` and `--list`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Callable, Sequence

from deberta.ascend import programs
from deberta.core import files
from deberta.core.errors import ConfigError, DebertaError, one_line, some
from deberta.host.engine import address, ping, unfinished
from deberta.host.engine.unfinished import Unfinished

ENGINE_SECONDS = 10.0  # for an engine that has answered at once to answer again


def sweep_files(workspace: Path, was_killed: bool, say: Callable[[str], None]) -> None:
    """Remove what processes that have ended left half-written; deeper folders hold thousands of files, and no such.

    `was_killed`: the last run ended by a kill, so its scratch folders go, too. A step that failed keeps its own.
    """
    removed = []
    for kind in (*programs.KINDS, ".cache"):
        for depth in range(4):
            for path in list((workspace / kind).glob(f"{'*/' * depth}.*{files.TEMPORARY}*")):
                with contextlib.suppress(OSError):  # what cannot be removed is in nobody's way
                    files.remove_leftover(path)
                    if not path.exists() and not path.name.endswith(files.ASIDE):  # such has its name again
                        removed.append(path)
    for path in sorted((workspace / programs.scratch("")).glob("*")) if was_killed else ():
        with contextlib.suppress(OSError):
            files.remove(path)
            removed.append(path)
    if removed:
        say(f"removed what an earlier run left: {some([str(path.relative_to(workspace)) for path in removed], 3)}")


def sweep_engine(workspace: Path, say: Callable[[str], None]) -> None:
    """Remove containers and images of unfinished builds. Where no file tells of any, no engine is asked.

    What cannot be removed now is said, and stays for a later command.
    """
    entries = unfinished.left(workspace)
    if not entries:
        return
    here = ""
    with contextlib.suppress(ConfigError):
        here = address.endpoint().url
    for url in sorted({entry.url for entry in entries}):
        problem = ""
        if url != here:
            problem = f"set DOCKER_HOST={url} to have that removed"
        elif ping.look().answers is False:
            problem = "it does not answer now"
        else:
            try:
                _sweep(workspace, [entry for entry in entries if entry.url == url], say)
            except DebertaError as error:
                problem = one_line(str(error))
        if problem:
            say(f"a killed run may have left containers or images on the engine at {url}: {problem}")


def _sweep(workspace: Path, entries: Sequence[Unfinished], say: Callable[[str], None]) -> None:
    """On the engine that is in use. Raises the errors of the engine."""
    from deberta.host.engine import engine  # the SDK is slow to import, and almost always there is nothing to do
    from deberta.host.images import build

    with contextlib.closing(engine.connect(ENGINE_SECONDS)) as client:
        for entry in entries:
            if not entry.label:
                engine.remove_left(client, workspace, say)
            elif (removed := build.clean(client, entry.label, build.INTERRUPT_SECONDS)) is None:
                return say(f"what a killed build left stays: the engine at {entry.url} stopped answering")
            elif removed:
                say(f"removed {removed} containers and images of a build that was killed")
            entry.file.unlink(missing_ok=True)
