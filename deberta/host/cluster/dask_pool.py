"""A cluster's devices: Dask carries requests and answers, and says who is gone. It places and retries nothing."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
import uuid
from collections import defaultdict
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as WaitedTooLong
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Coroutine, Optional, Sequence, TypeVar, Union

import distributed
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from deberta import PROJECT
from deberta.core import records
from deberta.core.errors import ConfigError, DebertaError, MissingError, StageError, from_exit_code, from_os_error, some
from deberta.core.job import DeviceFacts
from deberta.host.cluster import dask_settings, shipping, work_side
from deberta.host.cluster.shipping import ShippedFile
from deberta.host.plan.plan import Step
from deberta.host.run import source_digest
from deberta.host.shards.pool import DeviceGone, Event, ShardFailed, ShardRequest, ShardWaits

T = TypeVar("T")
SENDERS = 2  # hosts that files are sent to at a time
WATCH_SECONDS = 1.0
MEET_SECONDS = 30.0  # for a worker to say who it is
BUSY_SECONDS = 30.0  # for a shard of a command that was stopped to end
STOP_SECONDS = 15.0  # for a device to stop what it runs
# Dask's own errors of one or of several cancelled tasks are concurrent's.
GONE = (KilledWorker, CommClosedError, CancelledError, asyncio.CancelledError)


class _Gone(Exception):
    """A worker that answers no more."""


@dataclass(frozen=True)
class _Device:
    """`address`: of its worker's process, which another process of the same name does not have. `gone`: why it is."""

    name: str
    host: str
    address: str
    gone: asyncio.Future[str]


class DaskPool:
    """See `host.shards.pool.Pool`. Dask's event loop runs in a thread of its own.

    `scheduler`: tls://HOST:PORT; `security`: distributed's Security. `say` is called by the thread that calls us.
    Raises MissingError if no scheduler answers.
    """

    def __init__(self, scheduler: str, security: Any, workspace: Path, say: Callable[[str], None]) -> None:
        dask_settings.apply()
        self.engine = f"distributed {distributed.__version__}"
        self._scheduler, self._workspace, self._say = scheduler, workspace, say
        self._digests = records.Digests(workspace)
        self._transfer = uuid.uuid4().hex
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._devices: dict[str, _Device] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by device: what it was asked for
        self._keys: dict[str, tuple[str, int]] = {}  # of Dask's tasks that run: device and attempt
        self._model: list[ShippedFile] = []
        self._code = source_digest.of_package(PROJECT)
        self._watch: Optional[asyncio.Task[None]] = None
        self._is_silent = False  # the scheduler
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cluster", daemon=True)
        self._thread.start()
        try:
            self._client = self._call(self._connect(security))
        except BaseException:
            self._end_loop()
            raise

    async def _connect(self, security: Any) -> Any:
        self._senders = asyncio.Semaphore(SENDERS)
        self._hosts: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        try:
            client = await distributed.Client(
                self._scheduler, security=security, asynchronous=True, set_as_default=False,
                timeout=dask_settings.CONNECT_SECONDS, direct_to_workers=False,
            )  # fmt: skip
        except (OSError, TimeoutError, asyncio.TimeoutError) as error:
            raise dask_settings.no_answer(self._scheduler, error) from None
        client.subscribe_topic(work_side.WAITS, self._tell_wait)
        return client

    def _tell_wait(self, event: tuple[float, dict[str, str]]) -> None:
        """A task waits for another run of ours that has the device; other clients' tasks say so too."""
        _, wait = event
        device, attempt = self._keys.get(wait["key"], ("", 0))
        if attempt:
            self._post(device, ShardWaits(device, attempt, wait["why"]))
        elif device:
            self._lines.put(f"{device}: {wait['why']}")

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the loop's thread do something, and wait for it; an interrupt ends the waiting and the work."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                with contextlib.suppress(WaitedTooLong):
                    return future.result(0.2)
                if future.done():
                    return future.result()
                self._say_lines()
        except BaseException:
            future.cancel()
            raise

    def _say_lines(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._say(self._lines.get_nowait())

    def devices(self, step: Step) -> Sequence[DeviceFacts]:
        """Who can run shards of this step now; its model is on their hosts then.

        Raises MissingError without a worker, ConfigError for one of other code, and the errors of devices and shipping.
        """
        facts = self._call(self._meet_all(step))
        self._say_lines()
        return facts

    def start(self, device: str, request: ShardRequest) -> None:
        self._loop.call_soon_threadsafe(self._begin, device, request)

    def wait(self, seconds: float) -> list[Event]:
        self._say_lines()
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=seconds))
            while True:
                events.append(self._events.get_nowait())
        self._say_lines()
        return events

    def drop(self, device: str) -> None:
        """The worker is told to stop what it does, and stays: one that was stopped is told when it goes on."""
        self._loop.call_soon_threadsafe(self._forget, device)

    def close(self) -> None:
        """Stop everything, and wait until the devices that can be reached have nothing to do."""
        if not self._loop.is_running():
            return
        try:
            self._call(self._close())
        finally:
            self._say_lines()
            self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)

    async def _meet_all(self, step: Step) -> list[DeviceFacts]:
        workers = (await self._client.scheduler.identity(n_workers=-1))["workers"]
        if not workers:
            raise MissingError(f"no device is at {self._scheduler}. Start one on each host: invoke cluster worker")
        met = _all(await asyncio.gather(*map(self._meet, workers), return_exceptions=True))
        for device in sorted(filter(None, met), key=lambda device: device.name):
            if device.name in self._devices:
                raise ConfigError(f"two workers say that they have {device.name}. End one: invoke cluster show")
            self._devices[device.name] = device
        self._watch = asyncio.ensure_future(self._watch_all())
        devices = list(self._devices.values())
        answers = _all(await asyncio.gather(*(self._look(device, step) for device in devices), return_exceptions=True))
        self._model = await asyncio.to_thread(shipping.of_step, self._workspace, self._digests, step)
        _all(await asyncio.gather(*(self._send_model(device) for device in devices), return_exceptions=True))
        facts = [answer for answer in answers if answer is not None and answer.name in self._devices]
        if not facts:
            raise StageError(f"no device at {self._scheduler} answers. See who is there: invoke cluster show")
        while not self._events.empty():  # of devices that went meanwhile, and are left out
            self._events.get_nowait()
        return facts

    async def _meet(self, address: str) -> Optional[_Device]:
        """A worker that is idle. Raises ConfigError for one of other code, StageError for a busy one."""
        give_up = time.monotonic() + BUSY_SECONDS
        while True:
            answer: Any
            try:
                run = self._client.run(work_side.introduce, workers=[address], on_error="return")
                answer = (await asyncio.wait_for(run, MEET_SECONDS)).get(address)
            except (OSError, asyncio.TimeoutError) as error:
                answer = error
            if isinstance(answer, (OSError, asyncio.TimeoutError)):
                self._lines.put(f"the worker at {address} does not answer, and is left out")
                return None
            if not isinstance(answer, dict) or answer.get("code") != self._code:
                name = answer.get("device", address) if isinstance(answer, dict) else address
                theirs = answer.get("code", "")[:12] if isinstance(answer, dict) else str(answer)
                raise ConfigError(
                    f"{name} has other code or locks than this host: {theirs or 'unknown'}, not {self._code[:12]}. "
                    "Install the same on all hosts, and start its worker again"
                )
            name = answer["device"]
            if not answer["busy"]:
                return _Device(name, name.rpartition("/")[0], address, self._loop.create_future())
            if time.monotonic() > give_up:
                raise StageError(f"{name} runs a shard of another command. Run this again when it is done")
            await asyncio.sleep(0.5)

    async def _look(self, device: _Device, step: Step) -> Optional[DeviceFacts]:
        """The facts of a device; None if it is gone. Raises the error of one that is not fit."""
        try:
            answer = await self._task(device, work_side.facts, step)
        except _Gone as gone:
            self._lines.put(f"{device.name} is left out: {gone}")
            return None
        if isinstance(answer, ShardFailed):
            raise from_exit_code(answer.code, f"{device.name}: {answer.why}")
        assert isinstance(answer, DeviceFacts)
        if answer.name != device.name:
            raise ConfigError(f"the worker of {device.name} calls its device {answer.name}. Start it again")
        return answer

    async def _send_model(self, device: _Device) -> None:
        with contextlib.suppress(_Gone):
            async with self._hosts[device.host]:
                await self._send(device, self._model)

    async def _send(self, device: _Device, artifacts: Sequence[ShippedFile]) -> None:
        """Send what a device's host lacks, piece by piece, from a few senders at a time."""
        lacking = await self._task(device, work_side.put, artifacts)
        size, started = sum(artifact.size for artifact in lacking), time.monotonic()
        is_large = size >= shipping.PIECE and lacking[0].stays
        if is_large:
            self._lines.put(f"sending {lacking[0].path} ({size / 1e6:,.0f} MB) to {device.host}")
        groups = shipping.pieces(lacking)
        while True:
            async with self._senders:
                group = await asyncio.to_thread(next, groups, None)
                if group is None:
                    break
                await self._task(device, work_side.receive, self._transfer, group)
        if is_large:
            self._lines.put(f"{device.host} has {lacking[0].path}, after {time.monotonic() - started:.0f} s")

    async def _task(self, device: _Device, function: Callable[..., T], *arguments: Any) -> T:
        """Have a worker do something. Raises _Gone, and the errors of ours that it raised there."""
        call = work_side.Call(function, arguments)
        future = self._client.submit(
            work_side.perform, call, workers=[device.address], allow_other_workers=False, retries=0, pure=False
        )
        [attempt] = [argument.attempt for argument in arguments if isinstance(argument, ShardRequest)] or [0]
        self._keys[future.key] = device.name, attempt
        del call, arguments
        answer = asyncio.ensure_future(_result(self._client, future))
        try:
            await asyncio.wait({answer, device.gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise _Gone(device.gone.result())
            try:
                value: T = answer.result()
            except GONE:
                raise _Gone(self._why) from None
            except work_side.RunnerGone as error:
                raise _Gone(str(error)) from None
            return value
        finally:
            answer.cancel()
            del self._keys[future.key]
            future.release()  # a task that still runs is stopped by it

    def _begin(self, name: str, request: ShardRequest) -> None:
        if name in self._devices:
            self._tasks[name] = self._loop.create_task(self._serve(self._devices[name], request))

    async def _serve(self, device: _Device, request: ShardRequest) -> None:
        """Have a device run a shard, and say what came of it."""
        event: Event
        try:
            bins = await asyncio.to_thread(shipping.of_shard, self._workspace, request)
            answer = None
            while answer is None:
                await self._send(device, [*self._model, *bins])
                answer = await self._task(device, work_side.run_shard, request, [*self._model, *bins])
            event = answer
        except _Gone as gone:
            event = DeviceGone(device.name, str(gone))
        except DebertaError as error:
            event = ShardFailed(device.name, request.attempt, str(error), error.exit_code)
        except OSError as error:
            problem = from_os_error(error)
            event = ShardFailed(device.name, request.attempt, str(problem), problem.exit_code)
        except Exception as error:  # a bug, there or here
            event = ShardFailed(device.name, request.attempt, repr(error), StageError.exit_code)
        self._tasks.pop(device.name, None)
        self._post(device.name, event)

    def _post(self, device: str, event: Event) -> None:
        """Tell of an event, unless the device was given up."""
        if device in self._devices:
            if isinstance(event, DeviceGone):
                del self._devices[device]
            self._events.put(event)

    def _forget(self, device: str) -> None:
        self._devices.pop(device, None)
        task = self._tasks.pop(device, None)
        if task is not None:
            task.cancel()

    async def _watch_all(self) -> None:
        """Tell of workers that the scheduler lost, and of a scheduler that is gone."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            addresses: set[str] = set()
            try:
                addresses = {*await asyncio.wait_for(self._client.scheduler.ncores(), dask_settings.SILENT_SECONDS)}
            except (OSError, RuntimeError, asyncio.TimeoutError):
                self._is_silent = True
            for device in list(self._devices.values()):
                if device.address not in addresses and not device.gone.done():
                    device.gone.set_result(self._why)
                    if device.name not in self._tasks:
                        self._post(device.name, DeviceGone(device.name, self._why))

    @property
    def _why(self) -> str:
        """Why a device answers no more."""
        if self._client.status == "running" and not self._is_silent:
            return "its worker ended, or its host does not answer"
        return f"the scheduler at {self._scheduler} does not answer: start it again with invoke cluster scheduler"

    async def _close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        busy = [self._devices[name] for name in self._tasks if name in self._devices]
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ended = await asyncio.gather(*map(self._has_ended, busy))
        if still := [device.name for device, is_idle in zip(busy, ended) if not is_idle]:
            self._lines.put(f"{some(still)} did not say that it stopped. See: invoke cluster show")
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._client.close(), 5)

    async def _has_ended(self, device: _Device) -> bool:
        """Whether a device that was told to stop has stopped, or is gone."""
        give_up = time.monotonic() + STOP_SECONDS
        while time.monotonic() < give_up and not device.gone.done():
            try:
                run = self._client.run(work_side.introduce, workers=[device.address])
                if not (await asyncio.wait_for(run, STOP_SECONDS))[device.address]["busy"]:
                    return True
            except asyncio.TimeoutError:
                return False
            except Exception:  # of Dask's, where the worker or the scheduler is gone
                return True
            await asyncio.sleep(0.1)
        return device.gone.done()


async def _result(client: Any, future: Any) -> Any:
    """The result of a task, fetched by itself: Dask fetches several at once, which one stopped worker delays."""
    with client.as_current():
        await distributed.wait(future)
    if future.status != "finished":
        return await future  # raises its error
    response = await client.scheduler.gather(keys=[future.key])
    if response["status"] != "OK":
        raise CommClosedError(f"the result is lost: {response}")
    return response["data"][future.key]


def _all(answers: Sequence[Union[T, BaseException]]) -> list[T]:
    """The answers. Raises the errors among them, those of ours in one."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    ours = [error for error in errors if isinstance(error, DebertaError)]
    for error in errors:
        if not isinstance(error, DebertaError):
            raise error
    if ours:
        raise from_exit_code(ours[0].exit_code, "; ".join(dict.fromkeys(map(str, ours))))
    return [answer for answer in answers if not isinstance(answer, BaseException)]
