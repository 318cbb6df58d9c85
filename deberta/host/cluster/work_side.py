"""What the tasks of a cluster do on a worker: they put files in place, and pass questions to the device's own process.

That process was forked before Dask had threads. A task that is not wanted any more, because its command was stopped or
killed, or the scheduler took it back, interrupts what the process runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Optional, Sequence, Union, cast

from distributed import get_worker
from distributed.diagnostics.plugin import WorkerPlugin

from deberta import PROJECT
from deberta.core import progress
from deberta.core.errors import INTERRUPTED, StageError, from_os_error
from deberta.core.job import DeviceFacts
from deberta.host.cluster.shipping import HostFiles, Piece, ShippedFile
from deberta.host.plan.plan import Step
from deberta.host.run import source_digest
from deberta.host.shards.pool import ShardDone, ShardFailed, ShardRequest, ShardWaits
from deberta.host.shards.runner_process import RunnerProcess

NAME = "deberta-ascend"  # of the plugin
WAITS = "deberta-ascend-waits"  # the topic of what tasks wait for
TICK_SECONDS = 0.2
END_SECONDS = 10.0  # for what runs to stop when the worker ends, before it is killed


class RunnerGone(StageError):
    """The device's process has ended: its worker ends too."""


class WorkSide(WorkerPlugin):  # type: ignore[misc]  # distributed is not where types are checked
    """A worker's device: `Worker(..., plugins=[WorkSide(...)])`, with one thread. `device`: HOST/DEVICE.

    `about`: what it said of itself when the worker started.
    """

    name = NAME

    def __init__(
        self, runner: RunnerProcess, device: str, host_files: HostFiles, about: Optional[DeviceFacts] = None
    ) -> None:
        self.device, self.files, self.about = device, host_files, about
        self.code = source_digest.of_package(PROJECT)
        self.busy = ""  # the task that the device's process works for
        self._runner, self._unwanted, self._worker = runner, set[str](), cast(Any, None)

    def setup(self, worker: Any) -> None:
        self._worker = worker

    def teardown(self, worker: Any) -> None:
        """The worker ends, and with it the device's process and what that runs."""
        self._runner.end(END_SECONDS)

    def transition(self, key: str, start: str, finish: str, **_: Any) -> None:
        """Called by Dask in its own thread: a task that runs and is released is wanted by nobody."""
        if start in ("executing", "long-running") and finish in ("released", "cancelled"):
            self._unwanted.add(key)

    def ask(self, question: Union[Step, ShardRequest], key: str) -> Union[DeviceFacts, ShardDone, ShardFailed]:
        """Pass a question to the device's process and wait for the answer.

        Raises RunnerGone if that process has ended, and ends the worker then.
        """
        self.busy = key
        try:
            if key in self._unwanted:
                return self._stopped(question)
            self._runner.ask(question)
            interrupted = False
            while True:
                while not self._runner.connection.poll(TICK_SECONDS):
                    if key in self._unwanted and not interrupted:
                        interrupted = True
                        self._runner.stop()
                if not isinstance(answer := self._runner.read(), ShardWaits):
                    return answer
                progress.say(answer.why)
                self._worker.log_event(WAITS, {"key": key, "why": answer.why})
        except (EOFError, OSError):
            worker = self._worker
            close = partial(worker.close, reason="the device's process has ended")
            worker.loop.add_callback(worker.loop.call_later, 1, close)  # once this task's end is known
            raise RunnerGone("its process was killed") from None
        finally:
            self._unwanted.discard(key)
            self.busy = ""

    def _stopped(self, question: Union[Step, ShardRequest]) -> ShardFailed:
        attempt = question.attempt if isinstance(question, ShardRequest) else 0
        return ShardFailed(self.device, attempt, "it was stopped", INTERRUPTED)


def introduce(dask_worker: Any) -> dict[str, Any]:
    """Who a worker is: run by `Client.run`, in Dask's own thread, so that a busy one answers too."""
    side: Optional[WorkSide] = dask_worker.plugins.get(NAME)
    if side is None:
        return {}
    return {"device": side.device, "code": side.code, "busy": bool(side.busy), "about": side.about}


class Call:
    """A function of this module and its arguments, which Dask leaves as they are."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments


def perform(call: Call) -> Any:
    """Every task of a cluster. Raises errors of ours."""
    try:
        return call.function(*call.arguments)
    except OSError as error:
        raise from_os_error(error) from None


def facts(step: Step) -> Union[DeviceFacts, ShardFailed]:
    """The facts of the device as a step needs them."""
    answer = _side().ask(step, _key())
    assert not isinstance(answer, ShardDone)
    return answer


def put(artifacts: Sequence[ShippedFile]) -> list[ShippedFile]:
    """See HostFiles.put."""
    return _side().files.put(artifacts)


def receive(transfer: str, group: Sequence[Piece]) -> None:
    """See HostFiles.receive."""
    _side().files.receive(transfer, group)


def run_shard(request: ShardRequest, artifacts: Sequence[ShippedFile]) -> Union[ShardDone, ShardFailed, None]:
    """Run a shard; None if a file of its is not in place: another command's shard may have run meanwhile."""
    if _side().files.put(artifacts):
        return None
    answer = _side().ask(request, _key())
    assert not isinstance(answer, DeviceFacts)
    return answer


def _side() -> WorkSide:
    side = get_worker().plugins[NAME]
    assert isinstance(side, WorkSide)
    return side


def _key() -> str:
    return str(get_worker().get_current_task())
