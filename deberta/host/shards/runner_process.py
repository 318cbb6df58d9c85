"""A process of ours that runs shards on one device: a copy of this one, with one thread, which ends with this one.

Interrupts and ends of processes are then those of any run: the copy stops its runner on SIGINT, and the kernel kills
both when this process is killed. Make it before this process has other threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from dataclasses import replace
from multiprocessing import Pipe
from typing import Callable, Union

from deberta.core import machine, progress
from deberta.core.errors import INTERRUPTED, DebertaError, StageError, from_os_error
from deberta.core.job import DeviceFacts
from deberta.host.engine.transcript import GRACE_SECONDS
from deberta.host.plan.plan import Step
from deberta.host.run.session import Session
from deberta.host.shards import work
from deberta.host.shards.pool import ShardDone, ShardFailed, ShardRequest, ShardWaits

Answer = Union[DeviceFacts, ShardDone, ShardFailed]


class RunnerProcess:
    """`connection` is ready to be read when an answer is there, or the process has ended.

    `alone`: it has the workspace to itself, so that its executor looks after what earlier runs left on an engine.
    """

    def __init__(self, session: Session, device: int, alone: bool = False) -> None:
        self.device = device
        self.connection, theirs = Pipe()

        def serve() -> None:
            self.connection.close()
            executor = session.executor if alone else session.executor.sibling()
            _serve(replace(session, executor=executor), device, theirs)

        self.number, self._is_there = machine.fork(serve), True
        theirs.close()

    def ask(self, question: Union[Step, ShardRequest]) -> None:
        """Ask for the facts of the device as a step needs them, or for a shard. Raises OSError if it has ended."""
        self.connection.send(question)

    def answer(self) -> Answer:
        """The answer to the one question that was asked. Raises EOFError if the process has ended."""
        while isinstance(answer := self.read(), ShardWaits):
            progress.say(answer.why)
        return answer

    def facts(self) -> Union[DeviceFacts, ShardFailed]:
        """The answer to a step that was asked about. Raises StageError if the process has ended."""
        try:
            answer = self.answer()
        except EOFError:
            name = work.name_of(self.device)
            raise StageError(f"the process of {name} ended while it looked at the device") from None
        assert not isinstance(answer, ShardDone)
        return answer

    def read(self) -> Union[Answer, ShardWaits]:
        """The answer, or before it what it waits for. Raises EOFError if the process has ended."""
        try:
            answer: Union[Answer, ShardWaits] = self.connection.recv()
        except OSError:
            raise EOFError from None
        return answer

    def stop(self) -> None:
        """Stop what it runs for the question that was asked; the answer is a failure then, and the process stays."""
        if not self._has_ended():
            os.kill(self.number, signal.SIGUSR1)

    def end(self, grace: float = GRACE_SECONDS) -> None:
        """Stop what it does, and wait for its end; after `grace` seconds it is killed, and its runner with it."""
        self.connection.close()  # idle, it ends by itself
        give_up = time.monotonic() + grace
        if not self._has_ended():
            os.kill(self.number, signal.SIGINT)
        try:
            while not self._has_ended() and time.monotonic() < give_up:
                time.sleep(0.02)
        finally:
            if self._is_there:
                os.kill(self.number, signal.SIGKILL)
                os.waitpid(self.number, 0)
                self._is_there = False

    def _has_ended(self) -> bool:
        """Once it has, its number may be another process's."""
        if self._is_there and os.waitpid(self.number, os.WNOHANG)[0]:
            self._is_there = False
        return not self._is_there


class _Stopped(KeyboardInterrupt):
    """`stop` was called: executors end what they run as for any interrupt."""


def _raise_stopped(number: int, frame: object) -> None:
    raise _Stopped


def _serve(session: Session, device: int, connection: object) -> None:
    """Answer questions until there is nobody who asks."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with contextlib.closing(session.executor), contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            question = connection.recv()  # type: ignore[attr-defined]
            connection.send(_unless_stopped(session, device, question, connection.send))  # type: ignore[attr-defined]


def _unless_stopped(
    session: Session, device: int, question: Union[Step, ShardRequest], send: Callable[[ShardWaits], None]
) -> Answer:
    try:
        signal.signal(signal.SIGUSR1, _raise_stopped)
        try:
            return _answer(session, device, question, send)
        finally:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    except _Stopped:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        attempt = question.attempt if isinstance(question, ShardRequest) else 0
        return ShardFailed(work.name_of(device), attempt, "it was told to stop", INTERRUPTED)


def _answer(
    session: Session, device: int, question: Union[Step, ShardRequest], send: Callable[[ShardWaits], None]
) -> Answer:
    step = question.step if isinstance(question, ShardRequest) else question
    attempt = question.attempt if isinstance(question, ShardRequest) else 0

    def wait(line: str) -> None:
        send(ShardWaits(work.name_of(device), attempt, line))

    try:
        session.executor.prepare(step)
        if isinstance(question, ShardRequest):
            return work.run(session, question, device, wait)
        return work.facts(session, step, device, wait)
    except DebertaError as error:
        problem = error
    except OSError as error:
        problem = from_os_error(error)
    except Exception:
        problem = StageError(traceback.format_exc())
    return ShardFailed(work.name_of(device), attempt, str(problem), problem.exit_code)
