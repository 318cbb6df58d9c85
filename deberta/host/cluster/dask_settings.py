"""Dask's settings in all of a cluster's processes: it carries messages and watches, and decides nothing.

They are set over those of a user's own files and variables.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from deberta.core.errors import DataError, DebertaError, MissingError

SILENT_SECONDS = 20  # after which a worker without a sign of life is gone; Dask's own setting is 5 minutes
CONNECT_SECONDS = 15
SETTINGS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 0,  # a task whose worker died is never started elsewhere
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.worker-ttl": f"{SILENT_SECONDS}s",
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    "distributed.comm.require-encryption": True,
    "distributed.comm.retry.count": 0,
    "distributed.comm.timeouts.connect": f"{CONNECT_SECONDS}s",
    "distributed.comm.timeouts.tcp": f"{SILENT_SECONDS}s",  # a host without power answers nothing
    "distributed.admin.large-graph-warning-threshold": "1GB",
    "distributed.admin.tick.limit": "1h",  # no warnings that the event loop was busy
    # Code that is loaded at the start is the user's own settings' for other clusters.
    "distributed.scheduler.preload": [],
    "distributed.worker.preload": [],
    "distributed.nanny.preload": [],
    "distributed.client.preload": [],
}


def apply() -> None:
    """Set them in this process, before it makes a scheduler, a worker or a client."""
    import dask
    import distributed  # noqa: F401 - its defaults come with it

    dask.config.set(SETTINGS)
    # What they log of a lost connection is said by us, or is nothing to act on.
    for name in [name for name in logging.root.manager.loggerDict if name.startswith(("distributed", "tornado"))]:
        logging.getLogger(name).setLevel(logging.CRITICAL)


async def reach(scheduler: str, security: Any) -> None:
    """Connect once, as a worker does: by itself that tries again and again, and says little. Raises our errors."""
    from distributed.comm import connect

    try:
        comm = await connect(scheduler, timeout=CONNECT_SECONDS, **security.get_connection_args("worker"))
    except (OSError, TimeoutError, asyncio.TimeoutError) as error:
        raise no_answer(scheduler, error) from None
    comm.abort()


def no_answer(scheduler: str, error: BaseException) -> DebertaError:
    """Dask's error of a connection as ours: that nobody answers is told from that the two trust different CAs."""
    from distributed.comm.core import FatalCommClosedError

    if isinstance(error, FatalCommClosedError):
        why = f": {error.__cause__ or error}".rstrip(": ")
        return DataError(
            f"the scheduler at {scheduler} and this host have certificates of different CAs{why}. Have the host's made "
            "where the cluster's CA is: invoke cluster certs"
        )
    return MissingError(
        f"no scheduler answers at {scheduler} ({str(error) or 'no answer in time'}). Start it there: invoke cluster "
        "scheduler"
    )
