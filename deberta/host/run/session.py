"""One invocation: where things are and how steps run; and the lock that keeps two of them apart."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Callable, Iterable, Iterator, Mapping, Optional, Protocol, Sequence

from deberta.core import files, machine, progress, records
from deberta.core.errors import StageError, many
from deberta.host.plan.plan import Step
from deberta.host.run import device_locks, leftovers
from deberta.host.run.console import Console
from deberta.host.run.executor import Executor, Judged
from deberta.host.run.messages import as_started

LEFT_SECONDS = 10.0  # for processes of a run that was killed to end: the system kills them, or the reaper does
CHAINS = ("", "acceptance", "demo", "evaluate", "reproduce")  # tasks whose own steps are all that they run


class Shards(Protocol):
    """Implemented by `host.shards.sharded.ShardedRuns`; nothing here knows more of it.

    `measures`: the devices are a cluster's, which performance runs go to, too: this host needs none.
    """

    @property
    def measures(self) -> bool: ...

    def infer(
        self, session: Session, step: Step, temporary: Mapping[PurePosixPath, Path], summary: Path, console: Console
    ) -> list[Judged]:
        """Run the step's batches on the devices. Fill the temporary folder of each of its runs, and write a summary.

        A performance run of a cluster's runs on one device.
        """

    def others(self, session: Session, step: Step, devices: Sequence[int]) -> dict[str, int]:
        """The devices beside that of performance runs whose performance is measured too, HOST/DEVICE: its number.

        On cpu they are further hosts. `devices`: this host's. Asks a cluster who is there, and raises its errors.
        """

    def measure(self, session: Session, steps: Sequence[Step], record: Callable[[Step], object]) -> None:
        """Make the performance runs of further devices of a cluster, on all hosts at once, one at a time on a host.

        `record` is called with each step whose run is there, which `infer` then takes. Raises an error naming all
        devices that failed, once the others have ended.
        """

    def begun(self, step: Step) -> str:
        """When a run that `infer` will only take began, in ISO 8601; empty for all others."""

    def internal(self, step: Step) -> Mapping[str, Any]:
        """What the record of a step that just ran says of its shards, among its internal parameters."""

    def recorded(self, session: Session, step: Step) -> None:
        """The step has its record: what was kept to go on from is not needed any more."""


@dataclass(frozen=True)
class Session:
    """`soc_version` tells the chip when one is compiled for.

    `strict`: a modified artifact raises DataError instead of being rebuilt. `ran`: names of steps; each is forced, or
    shown in a dry run, once. `planned` takes the steps of a dry run, instead of the executor, which prints them.
    `verbose`: each step that is up to date is named, and each artifact's digest shown. `groups`: of a CI service's log.
    `shards`: what runs accuracy runs on several devices; None: one runs them. `locks`: the folder of device_locks.
    `up_to_date`: what is to be said of each such step, by its name. `hashing` makes the memory of digests.
    """

    project: Path
    workspace: Path
    executor: Executor
    soc_version: Callable[[], str]
    force: bool = False
    task: str = ""
    why_forced: str = "--force"
    dry: bool = False
    strict: bool = False
    planned: Optional[list[tuple[Session, Step]]] = None
    verbose: bool = False
    groups: str = ""
    shards: Optional[Shards] = None
    locks: Path = field(default_factory=lambda: device_locks.FOLDER)
    up_to_date: dict[str, str] = field(default_factory=dict, compare=False)
    hashing: Callable[[Path], records.Digests] = records.Digests
    digests: records.Digests = field(init=False)
    ran: set[str] = field(init=False, default_factory=set, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digests", self.hashing(self.workspace))

    def forces(self, task: str) -> bool:
        """Whether the steps that are a task's own run again."""
        return self.force and (self.task in CHAINS or task == self.task)

    def say(self, line: str) -> None:
        """Tell what was decided; in a dry run as a comment among the lines to paste, and nothing in a planned one."""
        if not self.dry:
            progress.say(line)
        elif self.planned is None:
            print(as_started(f"# {line}"))

    def say_up_to_date(self) -> None:
        """Tell in one line how many steps there was nothing to do for; again only of others."""
        if self.up_to_date and not self.verbose:
            progress.say(f"{many(len(self.up_to_date), 'step')} up to date")
        self.up_to_date.clear()

    def show_paths(self, paths: Iterable[PurePosixPath]) -> None:
        """Print what the command was to make, a path a line; nothing in a dry run."""
        if not self.dry:
            print(*paths, sep="\n", flush=True)

    def show(self, line: str) -> None:
        """Print a line of the result; in a dry run as a comment, and nothing in a planned one."""
        if self.planned is None:
            print(as_started(f"# {line}" if self.dry else line), flush=True)


def holder(workspace: Path, locks: Path = Path("/proc/locks")) -> str:
    """The number of the process that holds the workspace's lock, empty if none does; takes no lock itself."""
    path = workspace / ".cache" / "lock"
    try:
        number, inode = files.read_text(path).strip(), path.stat().st_ino
    except OSError:
        return ""
    with contextlib.suppress(OSError):  # a process's number may have been given to another since
        if f":{inode} " not in files.read_text(locks):
            return ""
    return number if machine.is_alive(number) else ""


def _acquire(lock: IO[str], workspace: Path) -> None:
    """Take the lock, once what a killed run has left has ended. Raises StageError, which says who has it."""
    give_up = time.monotonic() + LEFT_SECONDS
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip()
        if machine.is_alive(holder):
            raise StageError(f"another invoke (process {holder}) works in {workspace}. Run this again when it is done")
        if time.monotonic() > give_up:
            raise StageError(
                f"a step of an earlier run (process {holder or '?'}, which was killed) still works in {workspace}. "
                f"See who: fuser -v {shlex.quote(lock.name)}. Run this again when it is done"
            )
        time.sleep(0.1)


@contextlib.contextmanager
def exclusive(session: Session) -> Iterator[None]:
    """Hold the workspace's lock: two invocations never write the same artifacts. Tidy up before and afterwards.

    The lock's file has the holder's number until that ends in good order: what is in it then tells of a kill.
    """
    if session.dry:
        if session.planned is None:
            print(f"cd {shlex.quote(str(session.workspace))}")
        yield
        return
    path = session.workspace / ".cache" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as lock:
        _acquire(lock, session.workspace)
        os.set_inheritable(lock.fileno(), True)  # what a run starts holds the lock too: see `local.execute`
        lock.seek(0)
        was_killed = bool(lock.read().strip())
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            leftovers.sweep_files(session.workspace, was_killed, session.say)
            leftovers.sweep_engine(session.workspace, session.say)
            with contextlib.closing(session.executor):  # last: it hands over what root made, the digests among it
                try:
                    yield
                finally:
                    session.say_up_to_date()
                    session.digests.save()
        finally:
            lock.truncate(0)
