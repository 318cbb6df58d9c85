"""Our commands with a real engine: run from a copy of the project, as any user, and watched or ended in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, TypeVar
from urllib.parse import urlsplit

from deberta.host.engine import address, engine
from tests.pipeline_helpers import Workspace, copy_demo

CALLER = (12345, 23456)  # a user and a group that nothing here belongs to
SECONDS = 60.0  # until something that has to happen has happened

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Place(Workspace):
    """A workspace with the demo's inputs, and the copy of the project whose commands run in it, as `caller`.

    `admitted`: whether that caller is in the group that may use the engine.
    """

    project: Path
    caller: tuple[int, int] = (0, 0)
    admitted: bool = True
    engine: str = os.environ.get("DOCKER_HOST", f"unix://{address.DEFAULT_SOCKET}")

    def command(self, *arguments: str) -> list[str]:
        line = ["env", "-C", str(self.project), f"PYTHONPATH={self.project}", f"DOCKER_HOST={self.engine}"]
        if self.caller[0]:
            group = os.stat(urlsplit(self.engine).path).st_gid
            line += ["setpriv", f"--reuid={self.caller[0]}", f"--regid={self.caller[1]}"]
            line.append(f"--groups={group}" if self.admitted else "--clear-groups")
            # It may look into root's own folders, where this interpreter or the engine's socket may be, but not write.
            line += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        return [*line, *super().command(*arguments)]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run_process(*arguments)  # as the caller

    def copy(self, root: Path, **settings: object) -> Place:
        """Everything as it is here, owners included, in a new folder; `settings` are changed."""
        subprocess.run(["cp", "-a", str(self.root), str(root)], check=True)
        copied = replace(self, root=root)
        copied.configure(workspace=str(root), **settings)
        return copied

    def containers(self, client: Any) -> list[Any]:
        wanted = {engine.LABEL: "container", engine.OF_WORKSPACE: engine.workspace_label(self.root)}
        return list(engine.labelled(client, wanted))

    def at_work(self, client: Any, running: subprocess.Popen[str], pattern: str) -> Any:
        """The container of a step that has begun to write `pattern`."""
        return until(
            lambda: (
                next((one for one in self.containers(client) if one.status == "running"), None)
                if any(self.root.glob(pattern))
                else None
            ),
            running,
        )


def make_place(root: Path, project: Path, caller: tuple[int, int] = (0, 0), **settings: object) -> Place:
    """A workspace of the caller's that holds what is committed of the demo."""
    copy_demo(root)
    (root / "settings.yaml").write_text("{}")
    place = Place(root, project, caller)
    common = {"workspace": str(root), "executor": "docker", "profile": "demo", "buckets": "256"}
    place.configure(**{**common, **settings})
    own(root, caller)
    return place


def invoke(project: Path, build_settings: dict[str, str], *arguments: str) -> str:
    """Run a command in a copy of the project, as root, with this machine's way to the package registries."""
    variables = {f"INVOKE_IMAGES_{name.upper()}": value for name, value in build_settings.items()}
    command = [sys.executable, "-m", "invoke", *arguments]
    environment = {**os.environ, **variables, "PYTHONPATH": str(project)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr + done.stdout


def own(folder: Path, user: tuple[int, int]) -> None:
    subprocess.run(["chown", "-hR", "{}:{}".format(*user), str(folder)], check=True)


def owners(folder: Path) -> set[tuple[int, int]]:
    """Of everything below a folder, and of the folder."""
    found = {(entry.st_uid, entry.st_gid) for entry in (os.lstat(path) for path in folder.rglob("*"))}
    return found | {(os.stat(folder).st_uid, os.stat(folder).st_gid)}


def until(happened: Callable[[], _Found], running: subprocess.Popen[str] | None = None) -> _Found:
    """What `happened` returns, once it is true; fails if a process that has to bring it about ends before."""
    give_up = time.monotonic() + SECONDS
    while not (found := happened()):
        ended = running is not None and running.poll() is not None
        assert not ended or running is None, "".join(running.communicate())
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.05)
    return found


def ran(output: str) -> list[str]:
    """The steps that were not skipped."""
    return [line[1 : line.index("]")] for line in output.splitlines() if "] running: " in line]


class Relay:
    """A socket that leads to the engine until it is cut: the stand-in of an engine that ends while it is in use.

    What a real one does to its containers as it ends is not shown: here they run on.
    """

    def __init__(self, path: Path, target: str) -> None:
        self.address = f"unix://{path}"
        self._target = urlsplit(target).path
        self._ends: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                called = socket.socket(socket.AF_UNIX)
                called.connect(self._target)
                self._ends += [caller, called]
                for ends in ((caller, called), (called, caller)):
                    threading.Thread(target=_pump, args=ends, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


# How a run ends in the middle, and its exit code.
ENDS = {"killed": 4, "removed": 4, "interrupted": 130, "we-are-killed": -9, "engine-gone": 4}


def end_in_the_middle(how: str, place: Place, client: Any, tmp_path: Path, command: tuple[str, ...], sign: str) -> None:
    """Run a command until `sign` is there, end it in this way, and check what is left; the same command works then."""
    before = place.files()
    relay = Relay(tmp_path / "engine.sock", place.engine)
    os.chmod(tmp_path / "engine.sock", 0o666)
    away = replace(place, engine=relay.address) if how == "engine-gone" else place
    running = away.start(*command)
    container = place.at_work(client, running, sign)
    {
        "killed": container.kill,
        "removed": lambda: container.remove(force=True),
        "interrupted": lambda: running.send_signal(signal.SIGINT),
        "we-are-killed": running.kill,
        "engine-gone": relay.cut,
    }[how]()
    out, err = running.communicate(timeout=SECONDS)
    relay.cut()
    assert running.returncode == ENDS[how], out + err
    assert "Traceback" not in out + err
    made = {name for name in place.files() - before if "/logs/" not in name}
    # Killed outright we remove nothing; what is there has names that nothing takes.
    assert not made or (how == "we-are-killed" and all("/." in name for name in made)), made
    if how == "engine-gone":
        assert "stopped answering" in err and len(place.containers(client)) == 1
    else:
        until(lambda: not place.containers(client))
