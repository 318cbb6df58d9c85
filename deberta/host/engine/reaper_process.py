"""Our end of the reaper, which removes this session's containers if we are killed, and holds their locks until then."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from typing import Sequence

from deberta import PROJECT

HOLD, FREE, DONE = b"h", b"f", b"d"
ANSWER_SECONDS = 30.0  # for a process of Python's to start and import the SDK


class ReaperProcess:
    """It has the workspace's lock until it ends: no run begins beside a container of an earlier one.

    All is in vain, and no error, if it has ended: then no engine answered it.
    """

    def __init__(self, session: str) -> None:
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(ANSWER_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "deberta.host.engine.reaper", session],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                start_new_session=True,
                close_fds=False,
            )

    def hold(self, files: Sequence[int]) -> None:
        """Have it keep these files open, too, until its end or `free`: locks of what the next container uses."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._connection, [HOLD], list(files))

    def free(self) -> None:
        """Have it close them, and wait until it has."""
        with contextlib.suppress(OSError):
            self._connection.sendall(FREE)
            self._connection.recv(1)

    def end(self) -> None:
        """No container is left."""
        with contextlib.suppress(OSError), self._connection:
            self._connection.sendall(DONE)
        self._process.wait()

    def leave(self) -> None:
        """Have it remove what is left, after we have ended."""
        self._connection.close()
