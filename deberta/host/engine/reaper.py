"""A process that waits until the one that started it ends, and then removes the containers of its session."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time

from deberta.host.engine import engine
from deberta.host.engine.reaper_process import DONE, FREE, HOLD

MOST_FILES = 8


def main(session: str) -> None:
    """Errors go nowhere: the next run in the workspace removes what is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it outlives its parent
    client = engine.connect()
    with socket.socket(fileno=os.dup(0)) as connection:
        if wait(connection):
            return
    for pause in (0, 2):  # twice, for a container that the engine was just creating
        time.sleep(pause)
        for left in engine.labelled(client, {engine.LABEL: "container", engine.OF_SESSION: session}):
            if left.labels.get(engine.KEPT) != "yes":
                engine.remove(left)
            elif left.status == "running":
                left.kill()


def wait(connection: socket.socket) -> bool:
    """Whether nothing is left to remove, as the other end says, or it has ended.

    What it hands over stays open here meanwhile, and after its end until ours: a device's lock is then free once its
    container is gone.
    """
    held: list[int] = []
    while True:
        message = b""
        with contextlib.suppress(ConnectionError):
            message, files, _, _ = socket.recv_fds(connection, 1, MOST_FILES)
            held += files
        if message == FREE:
            while held:
                os.close(held.pop())
            with contextlib.suppress(ConnectionError):
                connection.sendall(FREE)
        elif message != HOLD:
            return message == DONE


if __name__ == "__main__":
    main(sys.argv[1])
