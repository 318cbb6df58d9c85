"""A cluster's processes: one scheduler, and on each host a worker for each device. They end on SIGINT and SIGTERM.

They listen on the chosen address alone, with TLS: no page of Dask's and no port of another kind is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Awaitable, Callable, Sequence

from deberta.core import machine
from deberta.core.errors import ConfigError, StageError, from_exit_code, many, run_stage
from deberta.core.job import DeviceFacts
from deberta.host.cluster import dask_settings
from deberta.host.cluster.certificates import HostCertificates
from deberta.host.plan.plan import Inference, Step
from deberta.host.run.session import Session, exclusive
from deberta.host.shards import work
from deberta.host.shards.pool import ShardFailed
from deberta.host.shards.runner_process import RunnerProcess

CLOSE_SECONDS = 15.0


@dataclass(frozen=True)
class WorkerPlan:
    """What a host's workers need. `listen`: its address. `folder`: of their workspaces and the models they share.

    `session`: makes the session of a workspace, with the executor that runs the model.
    """

    scheduler: str
    listen: str
    certificates: HostCertificates
    folder: Path
    tool: str
    session: Callable[[Path], Session]
    say: Callable[[str], None]


def run_scheduler(address: str, port: int, certificates: HostCertificates, say: Callable[[str], None]) -> None:
    """Run a scheduler until it is stopped. Raises ConfigError if it cannot listen there."""
    dask_settings.apply()
    from distributed import Scheduler

    async def serve() -> None:
        security = certificates.security()
        scheduler = _without_pages(Scheduler)(
            host=_bracketed(address), port=port, protocol="tls", security=security, dashboard=False
        )
        try:
            await scheduler
        except (OSError, RuntimeError) as error:  # the second holds the first
            raise ConfigError(
                f"the scheduler cannot listen on {address}, port {port}: {error.__cause__ or error}. It is started on "
                "the host that its address in invoke.yaml names; or another one runs already: invoke cluster show"
            ) from None
        say(f"scheduler at {scheduler.address}. Ctrl-C ends it, and with it all that its workers do")
        try:
            await scheduler.finished()
        finally:
            with contextlib.suppress(Exception):  # of Dask's, on its way out
                await asyncio.wait_for(scheduler.close(), CLOSE_SECONDS)

    _run(serve)


def run_workers(plan: WorkerPlan, devices: Sequence[int]) -> None:
    """A process for each device until all have ended, or this one is stopped.

    Raises ConfigError for root, and StageError naming the devices whose workers ended with an error.
    """
    if os.geteuid() == 0:
        raise ConfigError(
            "a worker runs what a cluster's certificates allow, so it does not run as root. Start it as an ordinary "
            "user who may use the devices (of the driver's group, HwHiAiUser)"
        )
    children = {machine.fork(partial(run_stage, partial(_run_worker, plan, device), [])): device for device in devices}
    failed: dict[int, int] = {}
    try:
        while children:
            number, status = os.waitpid(-1, 0)
            if number in children:
                device, code = children.pop(number), _code(status)
                if code:
                    failed[device] = code
                if children and code:
                    plan.say(f"the worker of {work.name_of(device)} ended; {many(len(children), 'device')} left")
    finally:
        for number in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGINT)
        for number in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(number, 0)
    if failed:
        names = ", ".join(work.name_of(device) for device in failed)
        message = f"the worker of {names} ended with an error: see above"
        raise from_exit_code(next(iter(failed.values())), message)


def _code(status: int) -> int:
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _run_worker(plan: WorkerPlan, device: int, _: Sequence[str]) -> None:
    """In a process of its own."""
    name = work.name_of(device)
    session = plan.session(plan.folder / name.replace("/", "-"))
    session.workspace.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive(session):
        # Forked before Dask starts threads. It ends with this process, and what it runs with it.
        runner = RunnerProcess(session, device, alone=True)
        try:
            facts = _facts(runner, plan.tool, device)
            _run(lambda: _serve(plan, name, runner, facts))
        finally:
            runner.end()


def _facts(runner: RunnerProcess, tool: str, device: int) -> DeviceFacts:
    """What the device says of itself before it is offered. Raises the errors of one that cannot be used."""
    step = Step(
        name="cluster-worker",
        title="cluster worker",
        stage="" if tool else "run-cpu",
        tool=tool,
        arguments=(),
        inputs=(),
        outputs=(),
        log=PurePosixPath("results/logs/cluster-worker.log"),
        commands={},
        inference=Inference((), (device,)),
    )
    runner.ask(step)
    answer = runner.facts()
    if isinstance(answer, ShardFailed):
        raise from_exit_code(answer.code, f"{answer.device}: {answer.why}")
    return answer


async def _serve(plan: WorkerPlan, name: str, runner: RunnerProcess, facts: DeviceFacts) -> None:
    from deberta.host.cluster.shipping import HostFiles
    from deberta.host.cluster.work_side import WorkSide

    dask_settings.apply()
    from distributed import Worker

    security = plan.certificates.security()
    await dask_settings.reach(plan.scheduler, security)
    host_files = HostFiles(plan.folder / name.replace("/", "-"), plan.folder / "models", work.host())
    worker = _without_pages(Worker)(
        plan.scheduler, host=_bracketed(plan.listen), protocol="tls", nthreads=1, name=name, memory_limit=0,
        security=security, dashboard=False, nanny=None, local_directory=str(plan.folder / "dask"),
        plugins=(WorkSide(runner, name, host_files, facts),), death_timeout=dask_settings.CONNECT_SECONDS,
    )  # fmt: skip
    try:
        await worker
    except (OSError, TimeoutError, asyncio.TimeoutError) as error:
        raise dask_settings.no_answer(plan.scheduler, error) from None
    except RuntimeError as error:  # it holds what Dask met
        raise StageError(f"{name} did not start: {error.__cause__ or error}") from None
    plan.say(f"{name} is at {worker.address}: {', '.join(filter(None, (facts.chip, facts.cann, facts.driver)))}")
    try:
        await worker.finished()
    finally:
        with contextlib.suppress(Exception):  # of Dask's, on its way out
            await asyncio.wait_for(worker.close(), CLOSE_SECONDS)
    raise StageError(f"{name}: the scheduler at {plan.scheduler} has ended, or let this worker go. Start it again")


def _bracketed(address: str) -> str:
    """As Dask wants addresses of IPv6."""
    return f"[{address}]" if ":" in address else address


def _without_pages(server: type[Any]) -> type[Any]:
    """A scheduler or worker that opens no HTTP port: Dask would listen on all addresses for pages and metrics."""

    class WithoutPages(server):  # type: ignore[misc]
        def start_http_server(self, *_: Any, **__: Any) -> None:
            self.http_server = None

    return WithoutPages


def _run(serve: Callable[[], Awaitable[None]]) -> None:
    """Run until it ends, or a signal stops it: raises KeyboardInterrupt then, once all is closed."""

    async def main() -> None:
        task = asyncio.ensure_future(serve())
        loop, stopped = asyncio.get_running_loop(), []

        def stop() -> None:
            stopped.append(True)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        try:
            await task
        except asyncio.CancelledError:
            if not stopped:
                raise
        if stopped:
            raise KeyboardInterrupt

    # Not asyncio.run: at its end it waits for tasks of Dask's, some of which never end. This process does.
    asyncio.new_event_loop().run_until_complete(main())
